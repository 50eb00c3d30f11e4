"""The benchmark of style transfer at a tiny size, and that it refuses to time two sides that do not agree."""

import dataclasses
import inspect
import json
import runpy
import shutil
import sys
from pathlib import Path
from statistics import median

import jax
import numpy as np
import pytest
from scripts import load_script

from ganstyle_jax.features import vgg, weights
from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style import gatys

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "experiments" / "bench" / "gatys.py"
CHANNELS = ((3,), (4,), (5, 4), (6,), (5,))
COMMON = vgg.VGG(CHANNELS, padding="reflect")
RARE = vgg.VGG(CHANNELS, padding="replicate", first_padding="zeros", pooling="average", ceil_mode=True)
CONTESTANTS = ["eager, contiguous", "eager, channels_last"]

pytestmark = pytest.mark.usefixtures("quick_compile")


bench = load_script("bench/gatys")


def random_params(network: vgg.VGG) -> dict:
    """He et al. 2015, with biases that matter and a map of colours that mixes them."""
    rng = np.random.default_rng(0)

    def fill(x):
        size = (2 / np.prod(x.shape[:-1])) ** 0.5 if x.ndim == 4 else 0.2
        return (size * rng.normal(size=x.shape)).astype(np.float32)

    params = jax.tree.map(fill, jax.eval_shape(network.init, jax.random.key(0)))
    params["input"]["kernel"] += np.eye(3, dtype=np.float32)
    return params


def make_torch(network: vgg.VGG, params: dict, dtype: str = "float32", cfg: gatys.Config | None = None):
    plain = dataclasses.asdict(network), params, dataclasses.asdict(cfg or gatys.Config())
    return bench.Torch("cpu", dtype, True, *plain)


@pytest.fixture(scope="module")
def small(torch):
    """(network, its weights, our side, our result in float64 at the size of the exact check)."""
    network = RARE
    params = random_params(network)
    ours = bench.Ours(bench.Bench(), network, params)
    ours.load(bench.make_pictures(bench.EXACT_SIZE))
    return network, params, ours, ours.evaluate("ours", "float64")


def errors_of(result, torch_side, dtype: str = "float64", tolerances: str = "float64") -> dict:
    torch_side.load(bench.make_pictures(bench.EXACT_SIZE))
    theirs = torch_side.evaluate(CONTESTANTS[0], dtype)
    return bench.parity_errors(result, theirs, bench.TOLERANCES[tolerances], CONTESTANTS[0])


# ---------------------------------------------------------------------------------------------------------------------
# Parity


def test_both_sides_are_the_same_loss(small):  # with the other network below, where the script is run
    network, params, _, result = small
    assert max(errors_of(result, make_torch(network, params)).values()) < 1e-12


def test_bfloat16_is_compared_roughly(small):
    network, params, ours, _ = small
    rounded, theirs = ours.evaluate("ours", "bfloat16"), make_torch(network, params)
    assert min(errors_of(rounded, theirs, "bfloat16", "rough").values()) > 0
    with pytest.raises(UserError, match="differs from PyTorch's"):
        errors_of(rounded, theirs)  # it did round


@pytest.mark.parametrize("layer", ["input", "conv1_1", "conv2_1", "conv3_2", "conv4_1", "conv5_1"])
@pytest.mark.parametrize("part", ["kernel", "bias"])
def test_a_changed_channel_is_refused(small, layer, part):
    network, params, _, result = small
    changed = {name: dict(of) for name, of in params.items()}
    changed[layer][part] = changed[layer][part].copy()
    changed[layer][part][..., np.argmax(params[layer]["bias"])] += 1e-3  # one that is not off everywhere
    with pytest.raises(UserError, match="differs from PyTorch's"):
        errors_of(result, make_torch(network, changed))


@pytest.mark.parametrize(
    "field, value",
    [("padding", "zeros"), ("first_padding", None), ("pooling", "max"), ("ceil_mode", False)],
)
def test_another_network_is_refused(small, field, value):
    network, params, _, result = small
    with pytest.raises(UserError, match="differs from PyTorch's"):
        errors_of(result, make_torch(dataclasses.replace(network, **{field: value}), params))


@pytest.mark.parametrize(
    "changed",
    [
        {"content_weight": 0.051},
        {"style_weight": 1.01},
        {"tv_weight": 0.0201},
        {"content_layers": ("relu3_1",)},
        {"style_layer_weights": (1.0, 1.0, 1.0, 1.0, 1.01)},
    ],
)
def test_another_loss_is_refused(small, changed):
    network, params, _, result = small
    with pytest.raises(UserError, match="differs from PyTorch's"):
        errors_of(result, make_torch(network, params, cfg=gatys.Config(**changed)))


def test_parity_is_relative_and_refuses_nan_zeros_and_other_shapes():
    rng = np.random.default_rng(0)
    gradient, limits = rng.normal(size=(4, 5, 3)), {"loss": 1e-4, "gradient": 1e-4}
    errors = bench.parity_errors((2.0001, 1.00005 * gradient), (2.0, gradient), limits, "eager")
    assert errors == {"loss": pytest.approx(5e-5), "gradient": pytest.approx(5e-5)}
    bad = [
        ((2.001, gradient), "the loss differs from PyTorch's \\(eager\\) by 0.0005"),
        ((2.0, 1.001 * gradient), "the gradient differs .* by 0.001, and 0.0001 is accepted"),
        ((2.0, -gradient), "the gradient differs"),
        ((2.0, gradient.swapaxes(0, 1)), "the gradient has shape"),
        ((np.nan, gradient), "the loss differs"),
        ((2.0, np.nan * gradient), "the gradient differs"),
        ((2.0, 0 * gradient), "the gradient differs"),
    ]
    for result, message in bad:
        with pytest.raises(UserError, match=message):
            bench.parity_errors(result, (2.0, gradient), limits, "eager")
    for zeros in ((0.0, gradient), (2.0, 0 * gradient)):
        with pytest.raises(UserError, match="differs"):
            bench.parity_errors((2.0, gradient), zeros, limits, "eager")


def test_only_float32_without_tf32_is_compared_closely():
    cpu, gpu = bench.Bench(), bench.Bench(device="gpu")
    close, rough = bench.TOLERANCES["float32"], bench.TOLERANCES["rough"]
    assert cpu.tolerances == close and gpu.tolerances == rough
    assert dataclasses.replace(gpu, tf32=False).tolerances == close
    assert dataclasses.replace(cpu, dtype="bfloat16").tolerances == rough


# ---------------------------------------------------------------------------------------------------------------------
# The script


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    params = random_params(COMMON)
    params["input"]["kernel"] = np.diag(np.float32([2, 3, 4]))  # as most networks have it: each colour by itself
    weights.write(path, COMMON, params)
    return path


def test_times_after_parity(torch, features, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--rounds", "3"])
    path = tmp_path / "record.json"
    bench.main(bench.Bench(features=(str(features),), sizes=(36,), rounds=3, round_seconds=0.01, json=path))
    record = json.loads(path.read_text())
    assert record["command"].split()[1:] == [str(SCRIPT), "--rounds", "3"]
    assert record["date"].endswith("+00:00") and record["machine"]["cores"] >= 1
    assert all(record["versions"]["jax"][name] for name in ("python", "jax", "jaxlib"))
    assert all(record["versions"]["torch"][name] for name in ("python", "torch"))
    assert record["sides"]["torch"]["threads"] == record["machine"]["cores"]
    assert record["settings"]["features"] == ["tiny.safetensors"]
    assert str(Path(sys.executable).parent) not in json.dumps(record["settings"])
    assert max(record["exact_parity"]["tiny.safetensors"].values()) < 1e-12
    assert record["whole"] == []
    (result,) = record["results"]
    assert (result["features"], result["size"], result["dtype"]) == ("tiny.safetensors", 36, "float32")
    assert result["evaluations_per_round"] >= 1
    assert list(result["contestants"]) == ["ours", *CONTESTANTS]
    assert list(result["parity"]) == CONTESTANTS
    for errors in result["parity"].values():
        assert max(errors.values()) < 1e-4  # so small a network turns no ReLU the other way
    for of in result["contestants"].values():
        times, (low, high) = of["seconds"], of["quartiles"]
        assert len(times) == 3 and min(times) > 0 and of["compile_seconds"] > 0
        assert of["median"] == pytest.approx(median(times))
        assert min(times) <= low <= of["median"] <= high <= max(times)
        assert of["evaluations_per_second"] == pytest.approx(1 / of["median"])
    medians = {name: of["median"] for name, of in result["contestants"].items()}
    ours = medians.pop("ours")
    assert result["ratio"] == pytest.approx(ours / min(medians.values()))
    assert medians[result["best_torch"]] == min(medians.values())
    out, err = capsys.readouterr()
    header, _, row = out.splitlines()
    assert row.count("|") == header.count("|") and row.startswith("| tiny.safetensors | 36 | float32 |")
    assert err.index("parity in float64") < err.index("parity: eager") < err.index("round 1 of 3")


class Recorder:
    """A side that notes what it is asked, and takes `seconds` for an evaluation."""

    def __init__(self, log: list, seconds: dict, gradient: float = 1.0):
        self.log, self.seconds, self.gradient = log, seconds, gradient

    def load(self, pictures):
        self.log.append("load")

    def evaluate(self, name, dtype):
        self.log.append(f"evaluate {name} {dtype}")
        return 1.0, np.full((2, 2, 3), self.gradient)

    def run(self, name, count):
        if name.startswith("default"):
            raise UserError("no compiler")
        self.log.append(f"run {name} {count}")
        return count * self.seconds[name]


def test_contestants_take_turns_and_the_best_of_pytorch_counts():
    log: list[str] = []
    seconds = {"ours": 0.1, "eager, contiguous": 0.25, "eager, channels_last": 0.05}
    settings = bench.Bench(rounds=2, compiled=True)
    assert settings.torch_names[:2] == CONTESTANTS and settings.torch_names[2].startswith("default")
    result = bench.measure(settings, 8, Recorder(log, seconds), Recorder(log, seconds))
    turn = [f"run {name} 4" for name in seconds]  # a second of the slowest
    assert log[-6:] == turn * 2
    assert log.index("evaluate eager, channels_last float32") < log.index(turn[0])
    assert result["best_torch"] == "eager, channels_last" and result["ratio"] == pytest.approx(2)
    assert result["contestants"]["default, contiguous"] == {"error": "no compiler"}
    assert list(result["parity"]) == CONTESTANTS


def test_nothing_is_timed_without_parity():
    log: list[str] = []
    seconds = dict.fromkeys(["ours", *CONTESTANTS], 0.1)
    with pytest.raises(UserError, match="the gradient differs"):
        bench.measure(bench.Bench(), 8, Recorder(log, seconds), Recorder(log, seconds, gradient=1.03))
    assert sum(entry.startswith("run") for entry in log) == 3  # each once, to compile it
    with pytest.raises(UserError, match="float64"):
        bench.check_exactly(bench.Bench(), Recorder(log, seconds), Recorder(log, seconds, gradient=1.00001))


def test_a_difference_at_the_last_size_leaves_no_record(features, tmp_path, monkeypatch):
    class Ours(Recorder):
        def __init__(self, *_):
            super().__init__([], dict.fromkeys(["ours", *CONTESTANTS], 0.1))
            self.loads = 0

        def about(self):
            return {"versions": {}}

        def load(self, pictures):
            self.loads += 1

    class Worker(Ours):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def evaluate(self, name, dtype):
            value, gradient = super().evaluate(name, dtype)
            return value, gradient * (-1 if self.loads == 3 else 1)  # float64, 8 pixels, 16 pixels

    monkeypatch.setattr(bench, "Ours", Ours)
    monkeypatch.setattr(bench, "Worker", Worker)
    settings = bench.Bench(features=(str(features),), sizes=(8, 16), json=tmp_path / "record.json")
    with pytest.raises(UserError, match="the gradient differs from PyTorch's \\(eager, contiguous\\) by 2"):
        bench.main(settings)
    assert not (tmp_path / "record.json").exists()
    assert len(bench.main(dataclasses.replace(settings, sizes=(8,)))["results"]) == 1


def run_as_script() -> None:
    before = list(sys.path)
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        sys.path[:] = before


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--features", "no-such-weights"], "there are no weights no-such-weights"),
        (["--torch-python", "no/such/python"], "there is no program no/such/python"),
        (["--torch-python", shutil.which("false") or "/bin/false"], "ended with status 1"),
        (["--rounds", "0"], "rounds must be at least 1, got 0"),
        (["--whole"], "give --pictures FOLDER"),
        (["--sizes"], "nothing to do without sizes"),
    ],
)
def test_failures_are_one_sentence_and_a_status(arguments, expected, features, monkeypatch, capsys):
    given = arguments if "--features" in arguments else [*arguments, "--features", str(features)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *given, "--json", "None"])
    with pytest.raises(SystemExit) as exit_:
        run_as_script()
    out, err = capsys.readouterr()
    assert exit_.value.code not in (None, 0) and out == ""
    assert expected in " ".join(f"{exit_.value.code} {err}".replace("│", " ").split())


def test_squeezenet_is_refused(tmp_path):
    params = jax.tree.map(
        lambda x: np.zeros(x.shape, np.float32), jax.eval_shape(vgg.SqueezeNet().init, jax.random.key(0))
    )
    weights.write(tmp_path / "squeeze.safetensors", vgg.SqueezeNet(), params)
    with pytest.raises(UserError, match="is a SqueezeNet, and only VGG"):
        bench.load_network(str(tmp_path / "squeeze.safetensors"))


def test_whole_runs_are_compared_with_one_size(data_dir, features, tmp_path, capsys, monkeypatch):
    calls, signature = [], inspect.signature(gatys.stylize)

    def stylize(*args):  # the real one compiles for too long, and has tests of its own
        given = signature.bind(*args).arguments
        calls.append((given["cfg"], given["content"].shape, [style.shape for style in given["styles"]]))
        share = 1 if given["cfg"].steps == 5 else 0.1
        shape = gatys.fitted_shape(given["content"].shape, given["cfg"].size)
        style = images.resize(given["styles"][0], shape)
        return (1 - share) * images.resize(given["content"], shape) + share * style

    monkeypatch.setattr(gatys, "stylize", stylize)
    settings = bench.Bench(
        features=(str(features),),
        sizes=(),
        whole=True,
        pictures=data_dir / "images" / "inputs",
        whole_size=48,
        whole_evaluations=5,
        json=tmp_path / "record.json",
    )
    bench.main(settings)
    cfg = gatys.Config(size=48)
    assert [call[0] for call in calls] == [cfg, cfg, gatys.Config(size=48, smallest=48, steps=5)]
    assert calls[2][0].sizes == [48]
    assert len({str(call[1:]) for call in calls}) == 1 and calls[0][1] != calls[0][2][0]
    record = json.loads((tmp_path / "record.json").read_text())
    (whole,) = record["whole"]
    assert record["results"] == [] and record["versions"]["jax"]["jax"]
    assert record["settings"]["pictures"] == "inputs"
    assert (whole["content"], whole["style"], whole["size"]) == ("tubingen.jpg", "starry_night.jpg", 48)
    assert min(whole["cold_seconds"], whole["warm_seconds"], whole["one_size"]["cold_seconds"]) > 0
    assert whole["one_size"]["evaluations"] == 5
    assert whole["loss"] > whole["one_size"]["loss"] > 0  # which is the style itself
    assert whole["ratio"] == pytest.approx(whole["loss"] / whole["one_size"]["loss"])
    assert "whole run at 48 pixels" in capsys.readouterr().out
