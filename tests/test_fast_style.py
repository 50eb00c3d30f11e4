"""Style in one pass: a whole training step against PyTorch's, the losses, blends, and what is refused."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganstyle_jax.features import network_files, vgg
from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style import fast_style
from ganstyle_jax.style.losses import total_variation

pytestmark = pytest.mark.usefixtures("quick_compile")
DOCS = Path(__file__).resolve().parents[1] / "docs"
NETWORK = vgg.VGG(((4, 5), (6,), (7,)))
STYLES = 2
LOSSES = jax.jit(fast_style.losses, static_argnames="cfg")


@pytest.fixture(scope="module")
def cfg(tmp_path_factory) -> fast_style.Config:
    """Two styles of noise and a small feature network with random weights, in float64."""
    folder = tmp_path_factory.mktemp("style")
    params = NETWORK.init(jax.random.key(3))
    params = {name: layer | {"bias": 0.1 + layer["bias"]} for name, layer in params.items()}
    network_files.write(folder / "features.safetensors", NETWORK, params)
    for i, shape in enumerate([(20, 24), (24, 17)]):
        images.save_png(folder / f"{i}.png", np.random.default_rng(i).integers(0, 256, (*shape, 3)).astype(np.uint8))
    return fast_style.Config(
        style=tuple(folder / f"{i}.png" for i in range(STYLES)),
        image_size=16,
        width=3,
        blocks=1,
        output="tanh",
        features=str(folder / "features.safetensors"),
        content_layer="relu2_1",
        style_layers=("relu1_2", "relu3_1"),
        style_layer_weights=(1.0, 3.0),
        style_size=24,
        dtype="float64",
    )


def photographs(b, seed=0):
    return np.tanh(np.random.default_rng(seed).normal(size=(b, 16, 16, 3)))


# ---------------------------------------------------------------------------------------------------------------------
# The reference


def torch_taps(torch, params, x):
    """(b, 3, h, w) in [-1, 1] to the ReLUs of NETWORK."""
    functional, taps = torch.nn.functional, {}
    to = lambda a: torch.tensor(np.array(a, np.float64))  # noqa: E731
    x = torch.einsum("bihw,io->bohw", x, to(params["input"]["kernel"])) + to(params["input"]["bias"])[:, None, None]
    for i, block in enumerate(NETWORK.channels, start=1):
        x = functional.max_pool2d(x, 2) if i > 1 else x
        for j in range(1, len(block) + 1):
            layer = params[f"conv{i}_{j}"]
            x = functional.relu(
                functional.conv2d(x, to(layer["kernel"]).permute(3, 2, 0, 1), to(layer["bias"]), padding=1)
            )
            taps[f"relu{i}_{j}"] = x
    return taps


def torch_losses(torch, params, painted, photos, chosen, styles, cfg):
    """Content, style and total variation as the papers have them, each divided by its target's squares."""

    def gram(x):
        flat = x.flatten(2)
        return flat @ flat.transpose(1, 2) / flat.shape[2]

    found, photo = torch_taps(torch, params, painted), torch_taps(torch, params, photos)[cfg.content_layer]
    each = lambda x: (x**2).flatten(1).sum(1)  # noqa: E731
    content = cfg.content_weight * (each(found[cfg.content_layer] - photo) / each(photo)).mean()
    of_styles = [torch_taps(torch, params, style[None]) for style in styles]
    style = torch.zeros((), dtype=torch.float64)
    for layer, share in zip(cfg.style_layers, cfg.style_layer_weights, strict=True):
        target = torch.cat([gram(of_styles[k][layer]) for k in chosen])
        error = (each(gram(found[layer]) - target) / each(target)).mean()
        style = style + cfg.style_weight * share / sum(cfg.style_layer_weights) * error
    down, across = painted[:, :, 1:] - painted[:, :, :-1], painted[:, :, :, 1:] - painted[:, :, :, :-1]
    return content, style, cfg.tv_weight * ((down**2).mean() + (across**2).mean())


@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
def test_training_steps_are_pytorchs(torch, x64, cfg, upsampling):
    """Three steps with copied weights: losses before each, weights after all of them and their average."""
    from torch_image_transform import TransformerNet

    cfg = dataclasses.replace(cfg, upsampling=upsampling)
    constants, transform = fast_style.constants(cfg), fast_style.network(cfg)
    state = fast_style.init(jax.random.key(0), cfg, constants)
    net = TransformerNet(transform.whole(state.params), cfg.blocks, upsampling)
    step = jax.jit(functools.partial(fast_style.train_step, cfg=cfg))
    adam = torch.optim.Adam(net.parameters(), lr=cfg.learning_rate)
    to_torch = lambda x: torch.tensor(np.array(x, np.float64)).permute(0, 3, 1, 2)  # noqa: E731
    styles = [to_torch(fast_style.style_picture(path, cfg)[None])[0] for path in cfg.style]
    average, keep = net.tree(lambda p: p.clone()), 0.5 ** (4 / cfg.ema_halflife_images)
    drawn = set()
    for i in range(3):
        key, photos = jax.random.key(i), photographs(4, i)
        chosen = np.asarray(jax.random.randint(key, (4,), 0, STYLES))
        drawn |= set(chosen.tolist())
        painted = net(to_torch(photos), torch.eye(STYLES, dtype=torch.float64)[chosen.tolist()])
        expected = torch_losses(torch, constants["features"], painted, to_torch(photos), chosen, styles, cfg)
        adam.zero_grad()
        sum(expected).backward()
        adam.step()
        average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, net.tree(lambda p: p))
        state, metrics = step(state, {"content": {"image": photos}}, key, constants=constants)
        for name, value in zip(("content", "style", "tv"), expected, strict=True):
            np.testing.assert_allclose(metrics[f"loss/{name}"], value.item(), rtol=1e-10)
        np.testing.assert_allclose(metrics["loss"], sum(expected).item(), rtol=1e-10)
    assert drawn == {0, 1}
    for found, expected in ((state.params, net.tree(lambda p: p)), (state.ema, average)):
        expected = transform.trained(expected)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for (path, f), e in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
            error = np.linalg.norm(f - e)
            assert error <= 1e-10 * np.linalg.norm(e), f"{jax.tree_util.keystr(path)}: {error}"


# ---------------------------------------------------------------------------------------------------------------------
# Losses


def test_a_style_picture_has_no_error_of_its_own(x64, cfg):
    """And another style's is felt by that style alone."""
    constants = fast_style.constants(cfg)
    own = fast_style.style_picture(cfg.style[1], cfg)[None]
    right, wrong = (LOSSES(own, own, jnp.array([style]), cfg, constants) for style in (1, 0))
    for name in ("content/relu2_1", "style/relu1_2", "style/relu3_1"):
        np.testing.assert_allclose(right[name], 0, atol=1e-12)
        assert name.startswith("content") or wrong[name] > 1e-4
    np.testing.assert_allclose(right["tv"], cfg.tv_weight * total_variation(own[0]))


def test_losses_are_relative(x64, cfg):
    """A picture without features has errors of 1, so that terms are what they weigh."""
    constants = fast_style.constants(cfg)
    dark = constants["features"] | {
        name: {"kernel": layer["kernel"] * 0, "bias": layer["bias"] * 0 - 1}
        for name, layer in constants["features"].items()
        if name != "input"
    }
    images, chosen = photographs(2), jnp.array([0, 1])
    found = LOSSES(images, images, chosen, cfg, constants | {"features": dark})
    np.testing.assert_allclose(found["style/relu1_2"], cfg.style_weight / 4, rtol=1e-12)
    np.testing.assert_allclose(found["style/relu3_1"], cfg.style_weight * 3 / 4, rtol=1e-12)


def test_only_what_is_looked_at_is_kept(cfg):
    constants = fast_style.constants(dataclasses.replace(cfg, style_layers=("relu1_1",), style_layer_weights=(1.0,)))
    assert set(constants["features"]) == {"input", "conv1_1", "conv1_2", "conv2_1"}
    assert constants["styles"]["relu1_1"].gram.shape == (STYLES, 1, 4, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Requests and refusals


def test_blends(cfg):
    pictures = np.zeros((3, 20, 18, 3), np.float32)
    asked = lambda *blend: fast_style.requests_of(pictures, cfg, fast_style.ApplySettings(blend=blend))["style"]  # noqa: E731
    assert asked().tolist() == [[1, 0]] * 3
    assert asked(0, 1).tolist() == [[0, 1]] * 3
    assert asked(1, 3).tolist() == [[0.25, 0.75]] * 3
    for blend in ((0.0, 0.0), (1.0, 1.0, 1.0), (-1.0, 2.0), (float("nan"),)):
        with pytest.raises(UserError, match="--blend must be 1 to 2 numbers of 0 or more, not all 0, got"):
            asked(*blend)


def test_styles_by_name(cfg):
    cfg = dataclasses.replace(cfg, style=(Path("/x/sea.png"), Path("/x/wave.jpg")))
    pictures = np.zeros((1, 20, 18, 3), np.float32)

    def asked(*names, blend=()):
        return fast_style.requests_of(pictures, cfg, fast_style.ApplySettings(names, blend))["style"].tolist()

    assert asked() == [[1, 0]] and asked("wave") == [[0, 1]] and asked("wave", "sea") == [[0.5, 0.5]]
    assert asked("wave", "sea", blend=(3.0, 1.0)) == [[0.25, 0.75]]
    with pytest.raises(UserError, match="--style must be of what this network has learned, sea wave, got seaside"):
        asked("seaside")
    with pytest.raises(UserError, match="--blend must be one number above 0, got 1 2"):
        asked("sea", blend=(1.0, 2.0))
    cfg = dataclasses.replace(cfg, style=(Path("/x/sea.png"), Path("/y/sea.jpg")))
    with pytest.raises(UserError, match="got sea, which it has more than once: take --blend"):
        asked("sea")


def test_refusals(cfg, tmp_path):
    refused = lambda **changes: fast_style.constants(dataclasses.replace(cfg, **changes))  # noqa: E731
    with pytest.raises(UserError, match="there is no style to learn: give one or several pictures, --style"):
        fast_style.settle(fast_style.Config(), {})
    with pytest.raises(UserError, match=r"there is no .*nowhere\.png|nowhere\.png"):
        refused(style=(tmp_path / "nowhere.png",))
    with pytest.raises(UserError, match="has no layer 'relu5_1'; it has"):
        refused(style_layers=("relu1_1", "relu5_1"))
    images.save_png(tmp_path / "long.png", np.zeros((4, 160, 3), np.uint8))
    with pytest.raises(UserError, match=r"becomes 24 x 1 pixels, too few for .* which need 4 a side"):
        refused(style=(tmp_path / "long.png",))
    for changes, message in [
        (dict(image_size=8), "image_size must be at least 16 pixels, got 8"),
        (dict(style_weight=-1.0), "style_weight must be a number that is not negative, got -1.0"),
        (dict(style_layer_weights=(1.0, 2.0, 3.0)), "style_layer_weights must be one number or 2"),
        (dict(style_layers=("relu1_1", "relu1_1")), "style_layers must be one or several different layers"),
        (dict(width=0), "width must be at least 1, got 0"),
        (dict(dtype="float16"), "dtype must be float32 or float64, got 'float16'"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(cfg, **changes)


@pytest.mark.slow
def test_the_command_trains_and_applies(home, pictures, tmp_path, monkeypatch, capsys):
    """`ganstyle train fast-style --style A B --data SOURCE`, then a picture of another size in the second style."""
    from ganstyle_jax import cli
    from ganstyle_jax.loop import runs

    monkeypatch.chdir(DOCS)
    settings = ["--image-size=16", "--width=4", "--blocks=1", "--style-layers", "relu1_1", "--content-layer=relu1_1"]
    loop = [f"--data={pictures}", f"--run-dir={tmp_path}", "--steps=2", "--batch-size=4", "--devices=1"]
    cli.main(["train", "fast-style", "--style", "faces.png", "mnist.png", *loop, *settings])
    monkeypatch.chdir(tmp_path)
    run = runs.load(tmp_path)
    assert run.cfg.style == (DOCS / "faces.png", DOCS / "mnist.png")
    assert sorted(path.name for path in (tmp_path / "samples").iterdir())[-1] == "000002.png"
    picture = photographs(1).astype(np.float32).repeat(2, 1)[:, :19]
    asked = run.method.requests_of(picture, run.cfg, fast_style.ApplySettings(blend=(0.0, 1.0)))
    made = run.draw(asked)
    assert list(made) == ["content", "result"] and made["result"].shape == picture.shape
    assert np.abs(made["result"] - run.draw(run.method.requests_of(picture, run.cfg))["result"]).max() > 1e-4


@pytest.mark.slow
def test_the_experiment_trains(home, pictures, tmp_path, monkeypatch):
    """Two tiny steps, with all else as the script has it."""
    import runpy
    import sys

    from ganstyle_jax.loop import runs

    path = str(DOCS.parent / "experiments" / "fast_style.py")
    tiny = [
        "--image-size=16",
        "--style-size=32",
        "--width=4",
        "--blocks=1",
        "--steps=2",
        "--batch-size=4",
        "--devices=1",
    ]
    monkeypatch.setattr(
        sys, "argv", [path, f"--data={pictures}", f"--run-dir={tmp_path}", "--style", str(DOCS / "faces.png"), *tiny]
    )
    runpy.run_path(path, run_name="__main__")
    run = runs.load(tmp_path)
    changed = dict(style=(DOCS / "faces.png",), image_size=16, style_size=32, width=4, blocks=1)
    assert run.step == 2 and run.cfg == dataclasses.replace(fast_style.Config(), **changed)
