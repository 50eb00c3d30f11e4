"""CycleGAN trained in PyTorch, measured beside ours, and timed against ours."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from scripts import load_script

from ganstyle_jax import contract
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.gan import cyclegan, cyclegan_files
from ganstyle_jax.io.files import UserError
from ganstyle_jax.io.images import save_png
from ganstyle_jax.loop import sources
from ganstyle_jax.loop.settings import Loop

bench = load_script("bench/cyclegan")
distance = load_script("translation_distance")
pytestmark = pytest.mark.usefixtures("home")

TINY = dict(image_size=20, crop=16, width=2, blocks=1, discriminator_width=2, discriminator_halvings=2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """A folder of pictures, each of one colour that says which it is: 5 and 3 to train with, 4 of each to test."""
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(0)
    for name, count, blue in (("trainA", 5, 0), ("trainB", 3, 80), ("testA", 4, 160), ("testB", 4, 240)):
        for i in range(count):
            picture = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            picture[..., 2] = blue + i
            save_png(folder / name / f"{i}.png", picture)
    return folder


@pytest.fixture
def training(torch):
    return load_script("bench/train_translation_torch")


@pytest.fixture
def translation(training):
    return training.translation


def settings_of(training, pair: Path, out: Path, **given):
    return training.Settings((str(pair),), out, **(TINY | dict(steps=3, threads=1, log_every=2, save_every=2) | given))


# ---------------------------------------------------------------------------------------------------------------------
# Training in PyTorch


@pytest.mark.parametrize("joined", [True, False])
def test_a_step_is_the_references(torch, translation, joined):
    """In float64, with histories that are drawn from, and the learning rate of both."""
    reference, rng = translation.reference, np.random.default_rng(0)
    torch.manual_seed(0)
    sides = []
    for _ in range(2):
        nets = {name: net.double() for name, net in translation.networks(2, 1, 2, 2).items()}
        sides.append((nets, {x: reference.ImagePool(2) for x in "ab"}))
    (nets, pools), (plain, plain_pools) = sides
    for name, net in nets.items():
        net.load_state_dict(plain[name].state_dict())
    optimizers = translation.optimizers(nets, 1e-2)
    plain_optimizers = {"gen": reference.adam(plain["a2b"], plain["b2a"], rate=1e-2)}
    plain_optimizers |= {name: reference.adam(plain[name], rate=1e-2) for name in translation.JUDGES}
    for t in range(3):
        real = {x: torch.tensor(np.tanh(rng.normal(size=(2, 3, 16, 16)))) for x in "ab"}
        draws = {x: ([True, t == 2], [1, 0]) for x in "ab"}
        found = translation.step(nets, optimizers, pools, real, draws, joined)
        expected = reference.cyclegan_step(plain, plain_optimizers, plain_pools, real, draws)
        for name, loss in expected.items():
            share = 2 if name in ("cycle", "identity") else 1
            assert share * found[name].item() == pytest.approx(loss, rel=1e-10), name
    for name, net in nets.items():
        for (path, a), b in zip(net.named_parameters(), plain[name].parameters(), strict=True):
            if not is_silent(net, path):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=f"{name}.{path}")


def is_silent(net, path: str) -> bool:
    """Whether it is a bias that a normalisation takes away, whose gradient is rounding alone."""
    parts = path.split(".")
    within, place = net, parts[:-1]
    for part in place[:-1]:
        within = getattr(within, part)
    following = getattr(within, str(int(place[-1]) + 1), None)
    return parts[-1] == "bias" and type(following).__name__ == "InstanceNorm2d"


def test_weights_to_begin_with(torch, translation):
    torch.manual_seed(0)
    for net in translation.networks(16, 2, 16, 2).values():
        for _, conv, _ in translation.reference.layers_of(net):
            assert not conv.bias.any()
            # 2,304 values and more but in a discriminator's first and last layers, of 768 and 1,024.
            assert conv.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_the_learning_rate_is_ours(training, pair, tmp_path):
    settings = settings_of(training, pair, tmp_path, steps=8, learning_rate=1.0)
    rates = [training.rate(settings, step) for step in range(8)]
    assert rates == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_pictures_come_in_the_order_of_ours(training, pair, tmp_path):
    settings = settings_of(training, pair, tmp_path, batch_size=2, seed=3)
    method, cfg = contract.of(cyclegan), settings.config
    given = sources.named(str(pair), method, cfg)
    assert [Path(place).name for place in given.values()] == ["trainA", "trainB"]
    orders = sources.batched(
        sources.opened(given, method, cfg, 3), method, cfg, Loop(run_dir=tmp_path, batch_size=2, seed=3)
    )
    stored = {x: order.load(progress=False)["image"] for x, order in orders.items()}
    drawn, again, mirrored, corners = training.batches(settings, given), training.batches(settings, given), 0, set()
    for step in range(12):
        batch = next(drawn)
        for x, seen in next(again).items():
            np.testing.assert_array_equal(seen, batch[x])
            for part, i in zip(seen, orders[x].indices(step), strict=True):
                whole = stored[x][i] / np.float32(127.5) - 1
                places = {
                    (top, left, way): whole[top : top + 16, left : left + 16][:, ::way]
                    for top in range(5)
                    for left in range(5)
                    for way in (1, -1)
                }
                (place,) = [place for place, cut in places.items() if np.allclose(part, cut, atol=1e-6)]
                corners.add(place[:2])
                mirrored += place[2] == -1
    assert len(corners) > 10 and 12 < mirrored < 36  # of 48


def test_training_leaves_files_that_are_read(torch, training, translation, pair, tmp_path, capsys):
    record = training.main(settings_of(training, pair, tmp_path / "one"))
    assert record == json.loads((tmp_path / "one/train.json").read_text())
    assert record["step"] == 3 and record["seconds_per_step"] > 0 and record["settings"]["crop"] == 16
    assert [line["step"] for line in record["losses"]] == [2, 3] and "seed 0, step 2" in capsys.readouterr().out
    assert set(record["losses"][0]) == {"step", "seconds", *bench.LOSSES}
    training.main(settings_of(training, pair, tmp_path / "again"))
    training.main(settings_of(training, pair, tmp_path / "other", seed=1, layout="channels_last"))
    picture = np.tanh(np.random.default_rng(0).normal(size=(1, 16, 16, 3))).astype(np.float32)
    kernels = {}
    for name in ("one", "again", "other"):
        for file in training.FILES.values():
            generator, params = cyclegan_files.read(tmp_path / name / file)
            assert (generator.width, generator.blocks, generator.padding) == (2, 1, "reflect")
            kernels[name, file] = params["down1"]["kernel"]
            net = translation.reference.resnet(2, 1)
            state = torch.load(tmp_path / name / file, weights_only=True)
            net.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})
            made = translation.reference.nhwc(net(torch.tensor(picture).permute(0, 3, 1, 2)))
            np.testing.assert_allclose(generator.apply(params, picture), made, atol=1e-5)  # float32
    first, second = training.FILES.values()
    np.testing.assert_array_equal(kernels["one", first], kernels["again", first])
    # Weights are of 0.02, and three steps of Adam are shorter than 0.001.
    assert np.abs(kernels["one", first] - kernels["other", first]).max() > 0.01
    assert np.abs(kernels["one", first] - kernels["one", second]).max() > 0.01


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"save_every": 0}, "--save-every must be at least 1, got 0"),
        ({"crop": 18}, "crop must be a multiple of 4 from 16 pixels up"),
    ],
)
def test_what_cannot_be_trained_is_told(training, pair, tmp_path, given, sentence):
    with pytest.raises(UserError, match=sentence):
        training.main(settings_of(training, pair, tmp_path, **given))


# ---------------------------------------------------------------------------------------------------------------------
# Measured beside ours


def test_what_pytorch_left_is_measured_like_a_run(training, quick_compile, pair, tmp_path, capsys):
    training.main(settings_of(training, pair, tmp_path / "theirs", seed=4))
    network = vgg.VGG(((3,), (5,)))
    weights.write(tmp_path / "tiny.safetensors", network, network.init(jax.random.key(0)))
    settings = distance.Settings(
        (tmp_path / "theirs",),
        (f"{pair}/test",),
        str(tmp_path / "tiny.safetensors"),
        layers=("relu2_1",),
        json=tmp_path / "record.json",
    )
    distance.main(settings)
    rows = json.loads((tmp_path / "record.json").read_text())["rows"]
    assert [row["direction"] for row in rows] == ["a2b", "b2a"]
    for row in rows:
        assert (row["run"], row["side"], row["step"], row["seed"], row["pixels"]) == ("theirs", "PyTorch", 3, 4, 16)
        assert (row["source_count"], row["target_count"]) == (4, 4) and row["layers"]["relu2_1"]["floor"] > 0
        assert (tmp_path / "theirs/translation_distance" / f"000003_{row['direction']}.png").is_file()
    assert "| theirs | PyTorch | 3 | a2b | relu2_1 |" in capsys.readouterr().out
    distance.main(dataclasses.replace(settings, step=3))
    with pytest.raises(UserError, match="theirs holds PyTorch's step 3 alone: leave --step 2 out"):
        distance.main(dataclasses.replace(settings, step=2))
    (tmp_path / "theirs/train.json").unlink()
    with pytest.raises(UserError, match=r"theirs holds latest_net_G_A\.pth and no train\.json"):
        distance.main(settings)


# ---------------------------------------------------------------------------------------------------------------------
# Timed


def test_a_difference_is_refused():
    of = {
        "losses": np.array([[1.0, 2.0]]),
        "weights": {"a2b": {"down1": {"kernel": np.ones(4)}}},
        "gradients": {"a2b": {"kernel": np.array([3.0, 4.0])}, "disc_a": {"kernel": np.array([1.0, 1.0])}},
    }
    other = {
        "losses": np.array([[1.0, 2.5]]),
        "weights": {"a2b": {"down1": {"kernel": np.array([1, 1, 1.25, 1])}}},
        "gradients": {"a2b": {"kernel": np.array([3.0, 4.0])}, "disc_a": {"kernel": np.array([0.0, 2.0])}},
    }
    errors = {"losses": 0.2, "weights": 0.25, "gradients": 0.5**0.5}
    for name, error in errors.items():
        assert bench.parity_errors(of, other, {name: 1.0}) == {name: pytest.approx(error)}
        with pytest.raises(UserError, match=f"{name} differ by .* from PyTorch's, more than 0.1: not timed"):
            bench.parity_errors(of, other, {name: 0.1})
    with pytest.raises(UserError, match="losses differ by nan"):
        bench.parity_errors(of, {"losses": np.array([[1.0, np.nan]])}, {"losses": 0.1})
    with pytest.raises(UserError, match="weights are of a2b/down1/bias on one side alone"):
        bench.parity_errors(of, {"weights": {"a2b": {"down1": {"kernel": np.ones(4), "bias": 0}}}}, {"weights": 0.1})


def test_contestants_take_turns():
    log: list[str] = []
    seconds = {"ours": 0.1, "eager, contiguous": 0.25, "eager, channels_last": 0.05, "eager, contiguous, apart": 0.2}

    class Ours:
        def load(self):
            pass

        def run(self, steps):
            log.append(f"ours {steps}")
            return seconds["ours"] * steps

    class Theirs:
        def ask(self, method, *arguments):
            if method == "load":
                return None
            name, steps = arguments
            if name.startswith("compiled"):
                raise UserError("no compiler")
            log.append(f"{name} {steps}")
            return seconds[name] * steps

    settings = bench.Bench(rounds=2, round_seconds=1.0, compiled=True)
    result = bench.measure(settings, Ours(), Theirs())
    assert log[-8:] == [f"{name} 4" for name in seconds] * 2 and result["steps_a_round"] == 4
    assert result["best_torch"] == "eager, channels_last" and result["ratio"] == pytest.approx(2)
    assert result["contestants"]["compiled, contiguous"] == {"error": "no compiler"}
    assert "| ours | 0.1 (0.1 to 0.1) | 2.000 |" in bench.table(result)


@pytest.mark.slow
def test_a_step_is_timed_after_parity(torch, quick_compile, tmp_path):
    sizes = dict(size=16, width=2, blocks=1, discriminator_width=2, discriminator_halvings=2)
    settings = bench.Bench(**sizes, batch_size=2, rounds=2, round_seconds=0.0, json=tmp_path / "record.json")
    record = bench.main(settings)
    assert record == json.loads((tmp_path / "record.json").read_text())
    assert max(record["exact_parity"].values()) < 1e-9 and set(record["parity"]) == {"losses", "pictures", "gradients"}
    assert set(record["contestants"]) == {"ours", *settings.torch_names}
    assert all(len(of["seconds_per_step"]) == 2 for of in record["contestants"].values()) and record["ratio"] > 0
    with pytest.raises(UserError, match="crop must be a multiple of 4 from 16 pixels up"):
        bench.main(dataclasses.replace(settings, size=15))


def test_parity_sees_a_history_that_is_drawn_from():
    """Or the comparison in float64 would say nothing of it."""
    sizes = bench.Bench(width=2, blocks=1, discriminator_width=2, discriminator_halvings=2)
    draws = [bench.Ours(sizes)._draws(key_of(t), bench.EXACT_HISTORY) for t in range(bench.EXACT_STEPS)]
    assert any(of[x][0][0] for of in draws[bench.EXACT_HISTORY :] for x in "ab")


def key_of(step: int) -> jax.Array:
    return jax.random.split(jax.random.fold_in(jax.random.key(bench.SEED + 1), step))[1]
