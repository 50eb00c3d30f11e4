"""Generators of pytorch-CycleGAN-and-pix2pix: pictures equal to PyTorch's, there and back, refusals."""

import jax
import numpy as np
import pytest

from ganstyle_jax import cli
from ganstyle_jax.features import array_files, torch_files
from ganstyle_jax.gan import cyclegan, cyclegan_files
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import runs
from ganstyle_jax.nn.translation import ResNetGenerator, UNetGenerator

pytestmark = pytest.mark.usefixtures("quick_compile")


def net_of(kind="resnet", **changes):
    import torch_cyclegan_generator as reference

    norm, seed = reference.instance(changes.pop("affine", False), changes.pop("track", False)), changes.pop("seed", 0)
    settings = {"width": 3, **({"blocks": 1} if kind == "resnet" else {"depth": 5})} | changes
    return reference.random({"resnet": reference.ResNet, "unet": reference.UNet}[kind](norm=norm, **settings), seed)


def state_of(net):
    return {name: value.numpy() for name, value in net.state_dict().items()}


def pictures(dtype, size=(32, 36), channels=3):
    return np.random.default_rng(0).uniform(-1, 1, (2, *size, channels)).astype(dtype)


NETWORKS = [
    pytest.param({}, ResNetGenerator(3, 1), id="resnet"),
    pytest.param({"affine": True}, ResNetGenerator(3, 1, affine=True), id="affine"),
    pytest.param({"padding": "zero"}, ResNetGenerator(3, 1, padding="zero"), id="zeros"),
    pytest.param(
        {"padding": "zero", "affine": True}, ResNetGenerator(3, 1, padding="zero", affine=True), id="zeros-affine"
    ),
    pytest.param({"dropout": True, "blocks": 2}, ResNetGenerator(3, 2), id="dropout"),
    pytest.param({"dropout": True, "padding": "zero"}, ResNetGenerator(3, 1, padding="zero"), id="dropout-zeros"),
    pytest.param({"track": True}, ResNetGenerator(3, 1), id="statistics"),
    pytest.param(
        {"first": True, "padding": "zero", "affine": True, "track": True},
        ResNetGenerator(3, 1, padding="zero", ends="zero", affine=True),
        id="of-2017",
    ),
    pytest.param({"channels": (1, 2)}, ResNetGenerator(3, 1, inputs=1, channels=2), id="channels"),
    pytest.param({"kind": "unet"}, UNetGenerator(3, 5), id="unet"),
    pytest.param(
        {"kind": "unet", "depth": 6, "affine": True, "dropout": True, "track": True},
        UNetGenerator(3, 6, affine=True),
        id="unet-affine-dropout",
    ),
]


def size_for(generator):
    return (2**generator.depth,) * 2 if isinstance(generator, UNetGenerator) else (16, 20)


@pytest.mark.parametrize("settings, generator", NETWORKS)
def test_pictures_are_pytorchs(torch, x64, tmp_path, settings, generator):
    """Through a file, in float64."""
    import torch_cyclegan_generator as reference

    net = net_of(**settings).double()
    torch.save(net.state_dict(), tmp_path / "latest_net_G_A.pth")
    found, params = cyclegan_files.from_torch(torch_files.read_state_dict(tmp_path / "latest_net_G_A.pth"))
    assert found == generator
    x = pictures(np.float64, size_for(found), found.inputs)
    painted = np.asarray(jax.jit(found.apply)(params, x))
    expected = reference.painted(net, x)
    assert painted.dtype == expected.dtype == np.float64 and expected.std() > 0.3
    np.testing.assert_allclose(painted, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("settings, generator", NETWORKS)
def test_there_and_back(torch, settings, generator):
    """Into PyTorch's network: all as it was, but for what has no effect."""
    import torch_cyclegan_generator as reference

    if settings.get("dropout") and "kind" not in settings:
        net = net_of(**settings | {"dropout": False})  # which takes a number in PyTorch's blocks, and is not kept
    else:
        net = net_of(**settings)
    before = state_of(net)
    found, params = cyclegan_files.from_torch(before)
    new = jax.eval_shape(found.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, new)  # as a run has them
    after = cyclegan_files.to_torch(params, found)
    kept = {name for name in before if not cyclegan_files.UNUSED.fullmatch(name)}
    assert set(after) == kept
    changed = [name for name in kept if not np.array_equal(before[name], after[name])]
    assert all(name.endswith(".bias") and not after[name].any() for name in changed)
    x = pictures(np.float32, size_for(found), found.inputs)
    expected = reference.painted(net, x)
    missing, unexpected = net.load_state_dict({k: torch.tensor(v) for k, v in after.items()}, strict=False)
    assert not unexpected and all(cyclegan_files.UNUSED.fullmatch(name) for name in missing)
    np.testing.assert_allclose(reference.painted(net, x), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("blocks", [6, 9])
@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_the_published_names(torch, blocks, padding):
    """Those of its networks of 6 and 9 blocks, at a small width, and the very last by its number."""
    state = state_of(net_of(blocks=blocks, padding=padding, width=1))
    assert cyclegan_files.from_torch(state)[0] == ResNetGenerator(1, blocks, padding=padding)
    first, second = (1, 5) if padding == "reflect" else (0, 3)
    assert {f"model.10.conv_block.{first}.weight", f"model.10.conv_block.{second}.weight"} <= set(state)
    assert f"model.{17 + blocks}.weight" in state


def test_names_that_wrappers_have_put_before(torch):
    state = state_of(net_of(affine=True))
    plain = cyclegan_files.from_torch(state)
    wrapped = cyclegan_files.from_torch({f"module.{name}": value for name, value in state.items()})
    assert wrapped[0] == plain[0]
    jax.tree.map(np.testing.assert_array_equal, wrapped[1], plain[1])


def test_blocks_that_others_call_otherwise(torch):
    state = state_of(net_of(blocks=2))
    others = {name.replace("conv_block", "block"): value for name, value in state.items()}
    assert "model.11.block.5.weight" in others
    jax.tree.map(np.testing.assert_array_equal, *(cyclegan_files.from_torch(of)[1] for of in (others, state)))


def test_half_precision_is_read_as_float32(torch):
    _, params = cyclegan_files.from_torch(state_of(net_of().half()))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


REFUSED = [
    (
        lambda s: {"main.0.weight": np.zeros((2, 3, 4, 4))},
        r"no generator of pytorch-CycleGAN-and-pix2pix: it holds main",
    ),
    (lambda s: {}, r"it holds nothing, \.\.\., and neither model\.0\.weight or model\.1\.weight of 7x7 pixels nor"),
    (lambda s: without(s, "model.10.conv_block.5.weight"), r"no model\.10\.conv_block\.5\.weight, which a ResNet gene"),
    (lambda s: without(s, "model.11.weight"), r"no model\.11\.weight, which a ResNet generator of width 3 with 1 bl"),
    (lambda s: without(s, "model.2.bias"), r"the file has no model\.2\.bias"),
    (lambda s: without(s, "model.2.weight"), r"also holds model\.2\.weight|also holds model\.2\.bias"),
    (
        lambda s: s | {"model.4.weight": np.zeros((6, 5, 3, 3))},
        r"model\.4\.weight has the shape \(6, 5, 3, 3\), and .* nee",
    ),
    (
        lambda s: s | {"model.5.bias": np.full(6, np.nan)},
        r"model\.5\.bias holds 6 NaN, so the training that it is from",
    ),
    (
        lambda s: s | {"fc.weight": np.zeros(3)},
        r"also holds fc\.weight, for which a ResNet generator of width 3 with 1",
    ),
    (
        lambda s: {k: v for k, v in s.items() if v.ndim == 4 or k == "model.18.bias"},
        r"no biases, as .* \(--norm batch\)",
    ),
    (
        lambda s: s | {"model.1.weight": np.zeros((0, 3, 7, 7))},
        r"of this shape is not accepted: width must be at least 1",
    ),
]


@pytest.mark.parametrize("change, message", REFUSED)
def test_other_files_are_refused(torch, change, message):
    with pytest.raises(UserError, match=message):
        cyclegan_files.from_torch(change(state_of(net_of(affine=True))))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: {"model.model.0.weight": np.zeros((3, 3, 4, 4))},
            r"no model\.model\.1\.model\.1\.weight, the second",
        ),
        (
            lambda s: without(s, "model.model.3.bias"),
            r"no model\.model\.3\.bias, which a U-Net generator of width 3 and",
        ),
        (lambda s: {k: v for k, v in s.items() if v.ndim == 4 or k == "model.model.3.bias"}, r"\(--norm batch\)"),
    ],
)
def test_other_unets_are_refused(torch, change, message):
    with pytest.raises(UserError, match=message):
        cyclegan_files.from_torch(change(state_of(net_of("unet"))))


def test_a_network_that_the_implementation_does_not_have():
    generator = ResNetGenerator(4, 1, "nearest")
    with pytest.raises(UserError, match="no network with nearest enlargement: train with --upsampling transposed"):
        cyclegan_files.to_torch(generator.init(jax.random.key(0)), generator)


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def saved(torch, folder, **files):
    """{name: network} as files NAME.pth."""
    for name, net in files.items():
        torch.save(net.state_dict(), folder / f"{name}.pth")
    return [folder / f"{name}.pth" for name in files]


@pytest.mark.slow
def test_two_files_become_a_run_of_both_ways(torch, tmp_path):
    import torch_cyclegan_generator as reference

    nets = {"latest_net_G_B": net_of(affine=True), "latest_net_G_A": net_of(affine=True, seed=1)}
    paths = saved(torch, tmp_path, **nets)
    assert cyclegan_files.recognises(paths)
    said = cyclegan_files.import_files(paths, tmp_path / "run")
    assert said.startswith(
        "a2b of latest_net_G_A.pth and b2a of latest_net_G_B.pth (ResNet with 1 blocks, width 3) in "
    )
    run = runs.load(tmp_path / "run")
    assert (run.cfg.mode, run.cfg.width, run.cfg.blocks, run.cfg.affine, run.step) == ("cycle", 3, 1, True, 0)
    x = pictures(np.float32, (16, 20))
    for way, name in (("a2b", "latest_net_G_A"), ("b2a", "latest_net_G_B")):
        drawn = run.draw(run.method.requests_of(x, run.cfg, cyclegan.ApplySettings(way)))
        expected = reference.painted(nets[name], x)
        np.testing.assert_allclose(drawn[f"{way[0]} to {way[-1]}"], expected, rtol=0, atol=1e-4)
    for file_format in ("pth", "safetensors"):
        cyclegan_files.export_run(tmp_path / "run", tmp_path / "back", file_format, averaged=True)
        for name, net in nets.items():
            (again,) = array_files.read(tmp_path / "back" / f"{name}.{file_format}").dicts.values()
            assert set(again) == set(net.state_dict())
            for part in ("model.1.weight", "model.10.conv_block.6.bias", "model.18.bias"):
                np.testing.assert_array_equal(again[part], net.state_dict()[part].numpy())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, settings, way, mode",
    [
        ("latest_net_G_B", {}, "b2a", "contrastive"),
        ("latest_net_G", {"kind": "unet"}, "a2b", "paired"),
        ("horse2zebra", {"blocks": 0}, "a2b", None),
    ],
)
def test_one_file_becomes_a_run_of_one_way(torch, tmp_path, name, settings, way, mode):
    (path,) = saved(torch, tmp_path, **{name: net_of(**settings)})
    if mode is None:
        with pytest.raises(UserError, match=r"horse2zebra\.pth: a run with such a generator is not accepted: the mode"):
            cyclegan_files.import_files([path], tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return
    said = cyclegan_files.import_files([path], tmp_path / "run")
    assert f"{way} of {name}.pth" in said and f"the mode {mode}, which has no other" in said
    run = runs.load(tmp_path / "run")
    assert (run.cfg.mode, run.cfg.ways) == (mode, (way,))
    assert cyclegan_files.export_run(tmp_path / "run", tmp_path / "back", "pth", averaged=True).endswith("net_G.pth")
    again, before = torch_files.read_state_dict(tmp_path / "back/latest_net_G.pth"), state_of(net_of(**settings))
    weights = [part for part in before if part.endswith("weight")]
    if mode == "contrastive":  # whose loss sees these two before their normalisation takes them away
        weights += ["model.4.bias", "model.7.bias"]
        assert before["model.4.bias"].any()
    assert weights and all(np.array_equal(again[part], before[part]) for part in weights)


def test_files_that_make_no_run(torch, tmp_path):
    paths = saved(torch, tmp_path, G_A=net_of(), G_B=net_of(affine=True), my_G_A=net_of(), grey=net_of(channels=(1, 1)))
    a, b, mine, grey = paths

    def refused(paths, message):
        with pytest.raises(UserError, match=message):
            cyclegan_files.import_files(paths, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused([a, b], r"G_A\.pth and .*G_B\.pth hold different networks, and the two of a run are alike")
    refused([a, mine], r"both named as the generator a2b: give one of each way")
    refused([grey], r"grey\.pth: it makes pictures of 1 channels out of such of 1, and runs are of pictures in colour")
    torch.save({"G_A": net_of().state_dict(), "G_B": net_of().state_dict()}, tmp_path / "both.pth")
    refused(
        [tmp_path / "both.pth"], r"both\.pth holds 2 generators of pytorch-CycleGAN-and-pix2pix: give a file of one"
    )
    (tmp_path / "old").mkdir()
    (tmp_path / "old/run.json").write_text("{}")
    with pytest.raises(UserError, match=r"already holds a run: choose another --out"):
        cyclegan_files.import_files([a], tmp_path / "old")
    assert not cyclegan_files.recognises([tmp_path / "nothing.pth"]) and not cyclegan_files.recognises([a, b, mine])


def test_the_command_converts_both_ways(torch, home, tmp_path, capsys):
    (path,) = saved(torch, tmp_path, latest_net_G_A=net_of(padding="zero"))
    cli.main(["convert", str(path), "--out", str(tmp_path / "run")])
    assert "a2b of latest_net_G_A.pth" in capsys.readouterr().out
    cli.main(["convert", str(tmp_path / "run"), "--out", str(tmp_path / "back")])
    assert "latest_net_G.pth" in capsys.readouterr().out
    assert cyclegan_files.recognises([tmp_path / "back/latest_net_G.pth"])
