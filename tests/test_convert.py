"""State dicts of the common PyTorch DCGAN example: there and back, and into networks written as it writes them."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from ganstyle_jax.features import torch_files
from ganstyle_jax.gan import convert, dcgan
from ganstyle_jax.io.files import UserError

CONFIGS = [
    dcgan.Config(16, channels=1, width=3, latent_dim=5),
    dcgan.Config(32, channels=3, width=2, latent_dim=7),
    dcgan.Config(64, channels=3, width=4, latent_dim=100),
    dcgan.Config(128, channels=1, width=1, latent_dim=2),
]
SIXTY_FOUR = CONFIGS[2]
NETWORKS = {
    "generator": (convert.generator_to_torch, convert.generator_from_torch),
    "discriminator": (convert.discriminator_to_torch, convert.discriminator_from_torch),
}


def variables_of(which, cfg):
    """{"params", "batch_stats"} of a network, no two numbers alike, variances positive."""
    rng = np.random.default_rng(0)
    state = jax.eval_shape(lambda key: dcgan.init(key, cfg), jax.random.key(0))
    network = state.gen if which == "generator" else state.disc
    return jax.tree.map(lambda leaf: rng.uniform(0.05, 0.5, leaf.shape).astype(leaf.dtype), network.variables)


def state_dict_of(which, cfg=SIXTY_FOUR):
    return NETWORKS[which][0](variables_of(which, cfg), cfg)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def example_network(torch, which, cfg):
    """The example's networks for 64 pixels, in its own words: nz latents, ngf and ndf channels."""
    nn, nz, nc, ngf, ndf = torch.nn, cfg.latent_dim, cfg.channels, cfg.width, cfg.width
    if which == "generator":
        main = nn.Sequential(
            nn.ConvTranspose2d(nz, ngf * 8, 4, 1, 0, bias=False),
            nn.BatchNorm2d(ngf * 8),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 8, ngf * 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ngf * 4),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 4, ngf * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ngf * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 2, ngf, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ngf),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False),
            nn.Tanh(),
        )
    else:
        main = nn.Sequential(
            nn.Conv2d(nc, ndf, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf, ndf * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ndf * 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf * 2, ndf * 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ndf * 4),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf * 4, ndf * 8, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ndf * 8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf * 8, 1, 4, 1, 0, bias=False),
            nn.Sigmoid(),
        )
    network = nn.Module()
    network.main = main
    return network.eval()


# ---------------------------------------------------------------------------------------------------------------------
# There and back


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda cfg: str(cfg.image_size))
@pytest.mark.parametrize("which", NETWORKS)
def test_round_trip_is_exact(which, cfg):
    to_torch, from_torch = NETWORKS[which]
    variables = variables_of(which, cfg)
    assert_same(from_torch(to_torch(variables, cfg), cfg), variables)


@pytest.mark.parametrize("which", NETWORKS)
def test_round_trip_in_float64_and_from_other_precisions(which):
    to_torch, from_torch = NETWORKS[which]
    wide = dataclasses.replace(SIXTY_FOUR, dtype="float64")
    with jax.enable_x64(True):
        variables = variables_of(which, wide)
    state = to_torch(variables, wide)
    assert state["main.0.weight"].dtype == np.float64
    assert_same(from_torch(state, wide), variables)
    # A run in float32 takes what it is given, and keeps float32.
    assert_same(from_torch(state, SIXTY_FOUR), jax.tree.map(np.float32, variables))
    half = {name: value.astype(np.float16) for name, value in state.items()}
    expected = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), variables)
    assert_same(from_torch(half, SIXTY_FOUR), expected)


@pytest.mark.parametrize("which", NETWORKS)
def test_reading_leaves_the_state_dict_as_it_was(which):
    state = state_dict_of(which)
    names = list(state)
    NETWORKS[which][1](state, SIXTY_FOUR)
    assert list(state) == names


def test_names_are_those_of_the_example():
    """Counted off by hand: three layers to a level, the weights of two of which are kept."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    generator = {f"main.{i}.weight" for i in (0, 3, 6, 9, 12)} | {f"main.{i}.{n}" for i in (1, 4, 7, 10) for n in norm}
    discriminator = {f"main.{i}.weight" for i in (0, 2, 5, 8, 11)} | {f"main.{i}.{n}" for i in (3, 6, 9) for n in norm}
    assert set(state_dict_of("generator")) == generator
    assert set(state_dict_of("discriminator")) == discriminator


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda cfg: str(cfg.image_size))
@pytest.mark.parametrize("which", NETWORKS)
def test_the_reference_loads_it_strictly_and_gives_it_back(torch, which, cfg):
    import torch_dcgan

    if which == "generator":
        network = torch_dcgan.Generator(cfg.image_size, cfg.channels, cfg.latent_dim, cfg.width)
    else:
        network = torch_dcgan.Discriminator(cfg.image_size, cfg.channels, cfg.width)
    variables = variables_of(which, cfg)
    state = {name: torch.tensor(value) for name, value in NETWORKS[which][0](variables, cfg).items()}
    network.load_state_dict(state, strict=True)
    returned = {name: value.numpy() for name, value in network.state_dict().items()}
    assert_same(NETWORKS[which][1](returned, cfg), variables)


@pytest.mark.parametrize("which", NETWORKS)
def test_the_plain_example_draws_the_same_pictures(torch, tmp_path, which):
    """By way of a file, as a user would: into the example's network, whose Sigmoid is that of our logits."""
    variables = variables_of(which, SIXTY_FOUR)
    torch_files.write_state_dict(tmp_path / "net.pth", NETWORKS[which][0](variables, SIXTY_FOUR))
    network = example_network(torch, which, SIXTY_FOUR)
    network.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True), strict=True)
    rng = np.random.default_rng(1)
    if which == "generator":
        inputs = rng.normal(size=(3, 100)).astype(np.float32)
        ours = jax.jit(lambda v, z: dcgan.Generator(SIXTY_FOUR).apply(v, z, train=False))(variables, inputs)
        with torch.no_grad():
            theirs = network.main(torch.tensor(inputs)[:, :, None, None]).numpy().transpose(0, 2, 3, 1)
    else:
        inputs = rng.uniform(-1, 1, (3, 64, 64, 3)).astype(np.float32)
        variables["params"]["judge"] = (variables["params"]["judge"] - 0.275) / 100  # both signs, not all sure
        network = example_network(torch, which, SIXTY_FOUR)
        state = convert.discriminator_to_torch(variables, SIXTY_FOUR)
        network.load_state_dict({name: torch.tensor(value) for name, value in state.items()}, strict=True)
        logits = jax.jit(lambda v, x: dcgan.Discriminator(SIXTY_FOUR).apply(v, x, train=False))(variables, inputs)
        ours = jax.nn.sigmoid(logits)
        with torch.no_grad():
            theirs = network.main(torch.tensor(inputs.transpose(0, 3, 1, 2))).numpy().ravel()
    assert theirs.std() > 1e-3  # something to compare
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Config


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda cfg: str(cfg.image_size))
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("which", NETWORKS)
def test_config_is_read_off_the_shapes(which, prefix, cfg):
    state = {prefix + name: value for name, value in state_dict_of(which, cfg).items()}
    latent_dim = cfg.latent_dim if which == "generator" else dcgan.Config().latent_dim
    assert convert.config_of(state) == (which, dataclasses.replace(cfg, latent_dim=latent_dim))


@pytest.mark.parametrize("which", NETWORKS)
def test_data_parallel_prefix(which):
    plain = state_dict_of(which)
    wrapped = {f"module.{name}": value for name, value in plain.items()}
    assert_same(NETWORKS[which][1](wrapped, SIXTY_FOUR), NETWORKS[which][1](plain, SIXTY_FOUR))


# ---------------------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize("which", NETWORKS)
def test_another_size_is_named(which):
    state = state_dict_of(which)
    with pytest.raises(UserError, match=f"main.* a {which} of 32 pixels, width 4"):
        NETWORKS[which][1](state, dataclasses.replace(SIXTY_FOUR, image_size=32))
    with pytest.raises(UserError, match=f"main.* a {which} of 128 pixels, width 4"):
        NETWORKS[which][1](state, dataclasses.replace(SIXTY_FOUR, image_size=128))
    with pytest.raises(UserError, match=r"main\.0\.weight has shape .* width 8 needs"):
        NETWORKS[which][1](state, dataclasses.replace(SIXTY_FOUR, width=8))
    with pytest.raises(UserError, match=r"main\.\d+\.weight has shape .* needs"):
        NETWORKS[which][1](state, dataclasses.replace(SIXTY_FOUR, channels=1))


@pytest.mark.parametrize("which", NETWORKS)
def test_missing_and_left_over_names_are_named(which):
    from_torch = NETWORKS[which][1]
    for name in state_dict_of(which):
        state = state_dict_of(which)
        del state[name]
        if name.endswith("num_batches_tracked"):  # old files lack it, and it says nothing
            from_torch(state, SIXTY_FOUR)
        else:
            with pytest.raises(UserError, match=f"no {name.replace('.', '[.]')}, which a {which} of 64 pixels"):
                from_torch(state, SIXTY_FOUR)
    state = state_dict_of(which) | {"main.0.bias": np.zeros(32, np.float32)}
    with pytest.raises(UserError, match=r"holds main\.0\.bias, which a .* has no place for"):
        from_torch(state, SIXTY_FOUR)


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda cfg: str(cfg.image_size))
def test_one_network_is_not_the_other(cfg):
    with pytest.raises(UserError):
        convert.generator_from_torch(state_dict_of("discriminator", cfg), cfg)
    with pytest.raises(UserError):
        convert.discriminator_from_torch(state_dict_of("generator", cfg), cfg)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"conv1.weight": np.zeros((6, 1, 5, 5)), "conv1.bias": np.zeros(6)},  # LeNet
        {f"main.{i}.weight": np.zeros((4, 4, 3, 3)) for i in (0, 3, 6)},  # 3x3 kernels
        {f"main.{i}.weight": np.zeros((4, 4)) for i in (0, 3, 6)},  # a perceptron
    ],
    ids=["empty", "lenet", "3x3", "perceptron"],
)
def test_config_of_another_networks_dict(state):
    with pytest.raises(UserError, match="not a state dict of the common PyTorch DCGAN example"):
        convert.config_of(state)


def test_config_of_an_unsupported_dcgan():
    state = {f"main.{3 * i}.weight": np.zeros((2, 2, 4, 4)) for i in range(4)}  # 32 pixels, two channels
    with pytest.raises(UserError, match="channels must be 1 or 3, got 2"):
        convert.config_of(state)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints as people's scripts save them


SIXTEEN = dcgan.Config(16, channels=3, width=2, latent_dim=5)


@pytest.fixture
def undrawn(monkeypatch):
    """New networks are zeros, which saves the time that drawing them takes."""
    draw = dcgan.init

    def init(key, cfg):
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(lambda key: draw(key, cfg), key))

    monkeypatch.setattr(dcgan, "init", init)


def assert_both(paths, cfg=SIXTEEN):
    """Both networks are taken from the files."""
    found_cfg, state, found = convert.state_of_files(paths)
    assert sorted(found) == ["discriminator", "generator"]
    assert found_cfg == dataclasses.replace(cfg, batch_norm="running")
    assert_same(state.gen.variables, variables_of("generator", cfg))
    assert_same(state.disc.variables, variables_of("discriminator", cfg))


def saved(torch, path, tree):
    """As torch.save does it, arrays as tensors."""
    torch.save(jax.tree.map(lambda x: torch.tensor(x) if isinstance(x, np.ndarray) else x, tree), path)
    return path


def test_both_networks_in_one_file(torch, tmp_path, undrawn):
    states = {name: state_dict_of(which, SIXTEEN) for name, which in (("netG", "generator"), ("netD", "discriminator"))}
    moments = {"state": {0: {"exp_avg": states["netG"]["main.0.weight"]}}, "param_groups": [{"lr": 2e-4}]}
    checkpoint = {"epoch": 3, **states, "optimizerG": moments, "losses": {"G": [1.0]}, "stats": {"mean": np.ones(3)}}
    assert_both([saved(torch, tmp_path / "a.pth", checkpoint)])
    assert_both([saved(torch, tmp_path / "b.pth", {"models": {"D": states["netD"], "G": states["netG"]}})])
    of_one_module = {f"generator.{name}": value for name, value in states["netG"].items()}
    of_one_module |= {f"discriminator.{name}": value for name, value in states["netD"].items()}
    assert_both([saved(torch, tmp_path / "c.pth", {"state_dict": of_one_module, "global_step": 7})])
    averaged = saved(torch, tmp_path / "d.pth", checkpoint | {"netG_ema": states["netG"]})
    with pytest.raises(UserError, match=r"d\.pth holds a second generator: save 'netG_ema' or 'netG' by itself"):
        convert.state_of_files([averaged])
    with pytest.raises(UserError, match=r"e\.pth: this is not a state dict of the common"):
        convert.state_of_files([saved(torch, tmp_path / "e.pth", {"a": {"w": np.ones(2)}, "b": {"w": np.ones(2)}})])


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."])
def test_prefixes_of_wrappers(tmp_path, undrawn, prefix):
    from safetensors.numpy import save_file

    for which, name in (("generator", "netG"), ("discriminator", "netD")):
        state = {prefix + key: np.ascontiguousarray(x) for key, x in state_dict_of(which, SIXTEEN).items()}
        torch_files.write_state_dict(tmp_path / f"{name}.pth", state)
        save_file(state, tmp_path / f"{name}.safetensors")
    assert_both([tmp_path / "netG.pth", tmp_path / "netD.safetensors"])


def test_a_network_in_parts(tmp_path, undrawn):
    from safetensors.numpy import save_file

    state = {k: np.ascontiguousarray(x) for k, x in state_dict_of("generator", SIXTEEN).items()}
    places = {name: f"netG-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(state)}
    for part in set(places.values()):
        save_file({name: x for name, x in state.items() if places[name] == part}, tmp_path / part)
    index = tmp_path / "netG.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_same(convert.state_of_files([index])[1].gen.variables, variables_of("generator", SIXTEEN))
    part = tmp_path / "netG-00002-of-00002.safetensors"
    with pytest.raises(UserError, match=r"is one of 2 parts of a model; give .*netG\.safetensors\.index\.json"):
        convert.state_of_files([part])
    for change, said in (
        ({"main.0.weight": "../netG-00001-of-00002.safetensors"}, "a file's name without a folder is accepted"),
        ({"main.99.weight": part.name}, "which it does not"),
        ({"main.0.weight": "other.safetensors"}, "lists the part other.safetensors, which is not beside it"),
        ({"main.0.weight": 3}, "no index of a model in parts"),
    ):
        index.write_text(json.dumps({"weight_map": places | change}))
        with pytest.raises(UserError, match=said):
            convert.state_of_files([index])


@pytest.mark.parametrize("which", NETWORKS)
def test_values_that_no_training_goes_on_from(tmp_path, which):
    state = {name: np.array(value) for name, value in state_dict_of(which, SIXTEEN).items()}
    norm = "main.1" if which == "generator" else "main.3"
    for name, values, said in (
        ("main.0.weight", [np.nan], r"x\.pth: main\.0\.weight holds 1 NaN"),
        ("main.0.weight", [np.nan, np.inf, -np.inf], r"main\.0\.weight holds 1 NaN and 2 infinite"),
        (f"{norm}.running_var", [-0.5], r"running_var holds -0\.5, and a variance is at least 0"),
    ):
        changed = state | {name: state[name].copy()}
        changed[name].flat[: len(values)] = values
        torch_files.write_state_dict(tmp_path / "x.pth", changed)
        paths = [tmp_path / "x.pth"]
        if which == "discriminator":
            torch_files.write_state_dict(tmp_path / "netG.pth", state_dict_of("generator", SIXTEEN))
            paths.append(tmp_path / "netG.pth")
        with pytest.raises(UserError, match=said):
            convert.state_of_files(paths)
    huge = {name: x.astype(np.float64) for name, x in state.items()}
    huge["main.0.weight"].flat[0] = 1e300  # which float32 does not have
    torch_files.write_state_dict(tmp_path / "x.pth", huge)
    with pytest.raises(UserError, match=r"main\.0\.weight holds 1 infinite"):
        convert.state_of_files([tmp_path / "x.pth", *(paths[1:] if which == "discriminator" else [])])


def test_sizes_are_found_to_be_true_before_a_network_is_made(tmp_path, monkeypatch):
    """Of this width a DCGAN has gigabytes of weights; the file has a few."""
    state = state_dict_of("generator", SIXTEEN)
    last = max(
        (name for name in state if name.endswith("weight") and state[name].ndim == 4), key=lambda n: int(n[5:-7])
    )
    state[last] = np.zeros((8192, 3, 4, 4), np.float32)
    torch_files.write_state_dict(tmp_path / "netG.pth", state)
    monkeypatch.setattr(dcgan, "init", lambda *_: pytest.fail("made"))
    with pytest.raises(UserError, match="width 8192 needs"):
        convert.state_of_files([tmp_path / "netG.pth"])


def test_the_loop_is_not_needed_to_read_files():
    code = "import sys, ganstyle_jax.gan.convert; sys.exit(any(m.startswith('ganstyle_jax.loop') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
