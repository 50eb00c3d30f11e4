"""StyleGAN2 against PyTorch in float64, part by part and step by step, and the properties that it is named for."""

import dataclasses
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import load_script

from ganstyle_jax.data import Source
from ganstyle_jax.gan import stylegan2
from ganstyle_jax.io.files import UserError
from ganstyle_jax.nn import adaptive_augment, layers, losses, resampling

pytestmark = pytest.mark.usefixtures("quick_compile")

EVERYTHING = "blit,geometry,color,filter,noise,cutout"
SMALL = dict(image_size=16, channels=3, latent_dim=6, mapping_layers=2, capacity=64, max_channels=8)
TINY = stylegan2.complete(stylegan2.Config(**SMALL))
PARITY = dataclasses.replace(
    TINY,
    dtype="float64",
    conditional=True,
    classes=3,
    group=2,
    r1=3.0,
    r1_interval=2,
    path_interval=2,
    ema_halflife_images=20.0,
    augment_policy=EVERYTHING,
    augment_p=0.6,
    augment_interval=2,
    augment_speed_images=100.0,
)
BATCH = 4
KEY = jax.random.key(3)
LABEL = np.array([2, 0, 1, 1])


def pictures(seed, n, cfg=TINY):
    shape = (n, cfg.image_size, cfg.image_size, cfg.channels or 3)
    return np.tanh(np.random.default_rng(seed).normal(size=shape)).astype(np.dtype(cfg.param_dtype))


def a_state(cfg):
    """A state as after some training, of which no weight is 0; made without compiling anything."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        names = [getattr(key, "name", getattr(key, "key", "")) for key in path]
        if "opt_state" in names or names[0] in ("step", "w_avg", "path_mean", "r1", "signs"):
            return np.zeros(leaf.shape, leaf.dtype)
        if names[0] == "augment_p":
            return np.asarray(cfg.augment_p, leaf.dtype)
        slow = "mapping" in names and "embed" not in names  # whose weights are as large as their rate is small
        values = rng.normal(size=leaf.shape) * (100 if slow else 1)
        return (values * 0.3 + (names[-2] == "affine") if names[-1] == "bias" else values).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(lambda key: stylegan2.init(key, cfg), KEY))


def distance(a, b):
    """|a - b| / |b|."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300)


def assert_same(ours, theirs, tolerance=1e-9):
    """Trees of weights, array by array."""
    import torch_stylegan2

    expected = dict(torch_stylegan2.leaves(theirs))
    found = {tuple(key.key for key in path): x for path, x in jax.tree_util.tree_leaves_with_path(ours)}
    assert set(found) == set(expected)
    for path, x in found.items():
        assert distance(x, expected[path].detach().numpy()) <= tolerance, path


@pytest.fixture(scope="module")
def reference(torch):
    import torch_stylegan2

    return torch_stylegan2


def gradients(reference, loss, tree):
    """The reference's gradients of a loss by a tree of weights, of which some may not matter."""
    import torch

    leaves = reference.leaves(tree)
    found = torch.autograd.grad(loss, [x for _, x in leaves], allow_unused=True)
    zeros = (torch.zeros_like(x) if g is None else g for g, (_, x) in zip(found, leaves, strict=True))
    flat = {path: g for (path, _), g in zip(leaves, zeros, strict=True)}

    def shaped(tree, path=()):
        return {n: shaped(x, (*path, n)) for n, x in tree.items()} if isinstance(tree, dict) else flat[path]

    return shaped(tree)


# ---------------------------------------------------------------------------------------------------------------------
# Parity with PyTorch in float64


@pytest.mark.parametrize("conditional", [False, True])
def test_the_mapping_matches_pytorch(x64, torch, reference, conditional):
    cfg = dataclasses.replace(PARITY, conditional=conditional, mapping_layers=8)
    params, label = a_state(cfg).gen.params["mapping"], LABEL if conditional else None
    z = np.random.default_rng(1).normal(size=(BATCH, 6))
    ours = stylegan2.map_styles({"mapping": params}, jnp.asarray(z), label, cfg)
    their_label = torch.tensor(label) if conditional else None
    theirs = reference.mapping(reference.tensors(params), torch.tensor(z), their_label, 3, 8).detach().numpy()
    assert theirs.std() > 1e-3 and distance(ours, theirs) < 1e-11


@pytest.mark.parametrize("convolution", ["cpu", "xla"])
def test_synthesis_matches_pytorch(x64, torch, reference, convolution):
    """Pictures, and gradients of something of them by all weights."""
    cfg = dataclasses.replace(PARITY, image_size=32, convolution=convolution)
    params = a_state(cfg).gen.params["synthesis"]
    rng = np.random.default_rng(2)
    ws, project = rng.normal(size=(3, cfg.styles, 6)), rng.normal(size=(3, 32, 32, 3))
    noise = stylegan2.draw_noise(KEY, 3, cfg)

    def something(params):
        images = stylegan2.paint({"synthesis": params}, jnp.asarray(ws), noise, cfg)
        return jnp.sum(images * project), images

    (_, images), found = jax.jit(jax.value_and_grad(something, has_aux=True))(params)
    theirs = reference.tensors(params)
    their_noise = reference.tensors(noise, grad=False)
    expected = reference.synthesis(theirs, torch.tensor(ws), their_noise)
    assert distance(images, expected.detach().numpy().transpose(0, 2, 3, 1)) < 1e-11
    loss = (expected * reference.to_nchw(project)).sum()
    assert_same(found, gradients(reference, loss, theirs), 1e-10)


@pytest.mark.parametrize("options", [{}, {"discriminator": "plain", "conditional": False}, {"convolution": "xla"}])
def test_the_discriminator_matches_pytorch(x64, torch, reference, options):
    """Logits, R1, and gradients of the two by all weights: second derivatives."""
    cfg = dataclasses.replace(PARITY, **options)
    params, images = a_state(cfg).disc.params, pictures(0, BATCH, cfg)
    label = LABEL if cfg.conditional else None

    def loss(params):
        logits, back = jax.vjp(lambda x: stylegan2.judge(params, x, label, cfg, None), jnp.asarray(images))
        squared = jnp.sum(back(jnp.ones(BATCH))[0] ** 2, (1, 2, 3))
        return jnp.sum(squared) + jnp.sum(logits**3), (logits, squared)

    (_, (logits, squared)), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    theirs, x = reference.tensors(params), reference.to_nchw(images).requires_grad_(True)
    their_label = torch.tensor(label) if cfg.conditional else None
    their_logits = reference.discriminator(theirs, x, their_label, cfg.group, cfg.classes)
    (gradient,) = torch.autograd.grad(their_logits.sum(), x, create_graph=True)
    their_squared = (gradient**2).sum((1, 2, 3))
    assert distance(logits, their_logits.detach().numpy()) < 1e-11
    assert distance(squared, their_squared.detach().numpy()) < 1e-11
    assert_same(found, gradients(reference, their_squared.sum() + (their_logits**3).sum(), theirs))


@pytest.mark.parametrize("convolution", ["cpu", "xla"])
def test_path_lengths_match_pytorch(x64, torch, reference, convolution):
    """Values, and their gradients by all weights: second derivatives."""
    cfg = dataclasses.replace(PARITY, convolution=convolution)
    params = a_state(cfg).gen.params["synthesis"]
    rng = np.random.default_rng(4)
    ws, project = rng.normal(size=(3, cfg.styles, 6)), rng.normal(size=(3, 16, 16, 3))
    noise = stylegan2.draw_noise(KEY, 3, cfg)

    def loss(params):
        def paint(ws):
            return stylegan2.paint({"synthesis": params}, ws, noise, cfg)

        lengths = stylegan2.path_lengths(paint, jnp.asarray(ws), jnp.asarray(project))
        return jnp.sum(lengths**2 + lengths), lengths

    (_, lengths), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    theirs, their_ws = reference.tensors(params), torch.tensor(ws, requires_grad=True)
    images = reference.synthesis(theirs, their_ws, reference.tensors(noise, grad=False))
    (gradient,) = torch.autograd.grad((images * reference.to_nchw(project)).sum(), their_ws, create_graph=True)
    expected = (gradient**2).sum(2).mean(1).sqrt()
    assert distance(lengths, expected.detach().numpy()) < 1e-11
    assert_same(found, gradients(reference, (expected**2 + expected).sum(), theirs))


STEPS = {
    "everything": {},
    "without": {
        "conditional": False,
        "path_length": 0.0,
        "r1": 0.0,
        "style_mixing": 0.0,
        "augment": "none",
        "discriminator": "plain",
        "ema_ramp_up": False,
    },
}


@pytest.mark.parametrize("options", STEPS.values(), ids=STEPS)
def test_five_steps_match_pytorch(x64, torch, reference, options):
    """With every lazy term at steps 0, 2 and 4, the probability adjusted after steps 2 and 4, and all draws shared."""
    cfg = dataclasses.replace(PARITY, **options)
    state = a_state(cfg)
    step = jax.jit(lambda state, batch, key: stylegan2.train_step(state, batch, key, cfg))

    def their_augment(images, draws):
        if draws is None:
            return images
        return reference.transform(images, draws, adaptive_augment.SYM2, adaptive_augment.SYM6)

    theirs = reference.Training(state.gen.params, state.disc.params, cfg, their_augment)
    theirs.ema = reference.tensors(state.ema, grad=False)
    for i in range(5):
        images, key = pictures(i, BATCH, cfg), jax.random.fold_in(KEY, i)
        label = np.roll(LABEL, i)
        p = state.augment_p

        def drawn(key, n):
            found = jax.tree.map(np.array, stylegan2.draw(key, n, cfg))
            cut = {"cut": found.pop("cut")[0]} if "cut" in found else {}
            return reference.tensors(found, grad=False) | cut

        def draws(key, n, p=p):
            if cfg.augment == "none":
                return None
            shape = (n, cfg.image_size, cfg.image_size, 3)
            found = adaptive_augment.draw(key, shape, p, cfg.augment_policy, jnp.float64)
            return reference.tensors(jax.tree.map(np.array, found), grad=False)

        state, metrics = step(state, {"real": {"image": images, "label": label}}, key)
        keys = [jax.random.fold_in(key, j) for j in range(4)]
        label, real = torch.tensor(label) if cfg.conditional else None, reference.to_nchw(images)
        half = None if label is None else label[::2]
        key_draw, key_shown = jax.random.split(keys[0])
        gen_loss = theirs.generator_step(drawn(key_draw, BATCH), draws(key_shown, BATCH), label)
        if cfg.path_length and i % 2 == 0:
            key_draw, key_project = jax.random.split(keys[1])
            project = jax.random.normal(key_project, (BATCH // 2, 16, 16, 3), jnp.float64)
            theirs.path_step(drawn(key_draw, BATCH // 2), reference.to_nchw(project), half)
        key_draw, key_fake, key_real = jax.random.split(keys[2], 3)
        expected = theirs.discriminator_step(
            drawn(key_draw, BATCH), real, draws(key_fake, BATCH), draws(key_real, BATCH), label
        )
        if cfg.r1 and i % 2 == 0:
            theirs.r1_step(real, draws(keys[3], BATCH), label)
        theirs.end(BATCH)

        found = [metrics[name] for name in ("loss/gen", "loss/disc", "logit/real", "logit/fake")]
        np.testing.assert_allclose(found, [gen_loss, *expected], rtol=1e-9)
        np.testing.assert_allclose(metrics["penalty/r1"], theirs.r1.item(), rtol=1e-9)
        np.testing.assert_allclose(metrics["path_length"], theirs.path_mean.item(), rtol=1e-9)
        np.testing.assert_allclose(metrics["augment_p"], theirs.p, rtol=1e-9)
    assert_same(state.gen.params, theirs.gen)
    assert_same(state.disc.params, theirs.disc)
    assert_same(state.ema, theirs.ema)
    assert distance(state.w_avg, theirs.w_avg.numpy()) < 1e-9
    assert state.step == 5
    if cfg.augment == "adaptive":
        assert abs(float(state.augment_p) - cfg.augment_p) > 1e-3  # it has moved
    else:
        assert state.augment_p == cfg.augment_p


@pytest.mark.slow
def test_mirrored_pictures_come_from_the_key(x64):
    """A step with mirror is a step without it on pictures some of which are turned, in R1 too."""
    cfg = dataclasses.replace(PARITY, conditional=False, classes=None, augment="none", path_length=0.0)
    images, key = pictures(0, BATCH, cfg), jax.random.key(1)
    which = np.asarray(jax.random.bernoulli(jax.random.fold_in(key, 4), 0.5, (BATCH,)))
    assert 0 < which.sum() < BATCH
    by_hand = np.where(which[:, None, None, None], images[:, :, ::-1], images)
    step = jax.jit(stylegan2.train_step, static_argnames="cfg")
    mirroring = dataclasses.replace(cfg, mirror=True)
    turned, _ = step(a_state(cfg), {"real": {"image": images}}, key, mirroring)
    expected, metrics = step(a_state(cfg), {"real": {"image": by_hand}}, key, cfg)
    assert metrics["penalty/r1"] > 0
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), turned, expected)


# ---------------------------------------------------------------------------------------------------------------------
# Config, presets and shapes


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"image_size": 48}, "image_size must be a power of two from 16 to 1024, got 48: take 64"),
        ({"image_size": 2048}, "got 2048: take 1024"),
        ({"image_size": 8}, "got 8: take 16"),
        ({"channels": 4}, "channels must be 1 or 3, got 4"),
        ({"preset": "best"}, "preset must be auto or cifar or .*, got 'best'"),
        ({"discriminator": "orig"}, "discriminator must be resnet or plain, got 'orig'"),
        ({"augment": "ada"}, "augment must be adaptive or fixed or none, got 'ada'"),
        ({"augment_policy": "blit,flip"}, "got 'flip'"),
        ({"noise": "some"}, "noise must be const or random or none, got 'some'"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"group": 0}, "group must be at least 1, got 0"),
        ({"r1_interval": 0}, "r1_interval must be at least 1, got 0"),
        ({"path_interval": -1}, "path_interval must be at least 1, got -1"),
        ({"capacity": 32}, "capacity must be at least image_size, 64, got 32"),
        ({"r1": -1.0}, "r1 must not be negative, got -1.0"),
        ({"path_length": -2.0}, "path_length must not be negative, got -2.0"),
        ({"beta2": 1.0}, "beta2 must be at least 0 and below 1, got 1.0"),
        ({"style_mixing": 1.5}, "style_mixing must be from 0 to 1, got 1.5"),
        ({"augment_target": -0.1}, "augment_target must be from 0 to 1, got -0.1"),
        ({"augment_speed_images": 0.0}, "augment_speed_images must be above 0, got 0.0"),
        ({"dtype": "float16"}, "dtype must be float32 or bfloat16 or float64, got 'float16'"),
    ],
)
def test_config_names_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        stylegan2.Config(**wrong)


COUNTS = {  # of the authors' networks
    ("paper256", 256, None): (24767458, 24001089),
    ("auto", 256, None): (23191522, 24001089),
    ("cifar", 32, 10): (20215315, 23089664),
    ("paper1024", 1024, None): (30370060, 29012513),
}


@pytest.mark.parametrize("preset, size, classes", COUNTS)
def test_presets_have_the_authors_numbers_of_weights(preset, size, classes):
    cfg = stylegan2.Config(size, 3, classes is not None, classes, preset)
    state = jax.eval_shape(lambda key: stylegan2.init(key, cfg), KEY)
    found = [sum(x.size for x in jax.tree.leaves(network.params)) for network in (state.gen, state.disc)]
    assert tuple(found) == COUNTS[preset, size, classes]


def test_presets():
    def said(preset, size, batch):
        cfg = stylegan2.of_the_batch(stylegan2.Config(size, preset=preset), batch)
        return cfg.mapping_layers, cfg.capacity, cfg.learning_rate, cfg.r1, cfg.group, cfg.ema_halflife_images

    assert said("paper256", 256, 64) == (8, 16384, 0.0025, 1.0, 8, 20_000)
    assert said("paper512", 512, 64) == (8, 32768, 0.0025, 0.5, 8, 20_000)
    assert said("paper1024", 1024, 32) == (8, 32768, 0.002, 2.0, 4, 10_000)
    assert said("cifar", 32, 64) == (2, 32768, 0.0025, 0.01, 32, 500_000)
    assert said("auto", 256, 16) == (2, 16384, 0.0025, 0.0002 * 256**2 / 16, 4, 5_000)
    assert said("auto", 1024, 4) == (2, 32768, 0.002, 0.0002 * 1024**2 / 4, 4, 1_250)
    cifar = stylegan2.complete(stylegan2.Config(32, preset="cifar"))
    assert (cifar.path_length, cifar.style_mixing, cifar.discriminator) == (0, 0, "plain")
    assert stylegan2.complete(stylegan2.Config(64, latent_dim=100)).latent_dim == 100  # what is given is kept
    assert stylegan2.complete(cifar) == cifar


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256, 512, 1024])
def test_shapes_at_every_size(size):
    cfg = stylegan2.Config(size, channels=1, preset="small")
    state = jax.eval_shape(lambda key: stylegan2.init(key, cfg), KEY)
    z, images = jax.ShapeDtypeStruct((2, 64), jnp.float32), jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32)
    drawn = jax.eval_shape(lambda s, z: stylegan2.sample(stylegan2.generator(s, cfg), z, cfg), state, z)
    logits = jax.eval_shape(lambda s, x: stylegan2.discriminate(s, x, cfg), state, images)
    assert drawn.shape == images.shape and logits.shape == (2,)


def of_noise(names):
    read = lambda k: {"image": np.zeros((16, 16, 3), np.uint8), "label": np.int32(0)}  # noqa: E731
    return {"real": Source("noise", (16, 16, 3), np.dtype(np.uint8), 8, names, read)}


def test_settle_takes_channels_and_classes_from_the_data():
    cfg = stylegan2.Config(16, conditional=True, preset="small")
    settled = stylegan2.settle(cfg, of_noise(("a", "b", "c")))
    assert (settled.channels, settled.classes, settled.latent_dim, settled.r1) == (3, 3, 64, None)
    assert stylegan2.settle(dataclasses.replace(cfg, conditional=False), of_noise(None)).classes is None
    with pytest.raises(UserError, match="conditional needs pictures in classes, and noise has none"):
        stylegan2.settle(cfg, of_noise(None))
    with pytest.raises(UserError, match="classes must be as many as noise has, 3, got 2"):
        stylegan2.settle(dataclasses.replace(cfg, classes=2), of_noise(("a", "b", "c")))


# ---------------------------------------------------------------------------------------------------------------------
# Properties


def test_demodulation_brings_the_variance_back_to_one():
    """Of inputs of variance one, whatever the styles; without it the variance is what the styles say."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 64, 64, 32)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 32, 16)), jnp.float32)
    style = jnp.asarray(rng.uniform(0.1, 10, (4, 32)) * np.array([[1e-2], [1], [10], [100]]), jnp.float32)
    y = stylegan2.modulated(x, kernel, style, TINY)
    np.testing.assert_allclose(np.asarray(y)[:, 1:-1, 1:-1].var((1, 2)), 1, rtol=0.2)
    assert abs(np.asarray(y)[:, 1:-1, 1:-1].var() - 1) < 0.02
    np.testing.assert_allclose(y, stylegan2.modulated(x, kernel, 7 * style, TINY), rtol=1e-3, atol=1e-4)
    raw = stylegan2.modulated(x, kernel, style, TINY, demodulate=False)
    np.testing.assert_allclose(np.asarray(raw).var((1, 2, 3))[3] / np.asarray(raw).var((1, 2, 3))[2], 100, rtol=0.5)


@pytest.mark.parametrize("n", [4, 64, 512])
@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_learning_rates_are_equalised(n, rate):
    """Whatever the width, outputs have the inputs' variance, and a step of the same length in every weight changes
    outputs by as much, times the rate."""
    layer, x = stylegan2.Dense(200, TINY, rate=rate), np.random.default_rng(1).normal(size=(500, n)).astype(np.float32)
    params = layer.init(KEY, x)
    np.testing.assert_allclose(np.asarray(layer.apply(params, x)).std(), 1, rtol=0.1)
    kernel = params["params"]["kernel"]
    np.testing.assert_allclose(np.asarray(kernel).std(), 1 / rate, rtol=0.15)
    step = np.sign(np.random.default_rng(2).normal(size=kernel.shape)).astype(np.float32)
    after = {"params": params["params"] | {"kernel": kernel + step}}
    change = np.asarray(layer.apply(after, x)) - np.asarray(layer.apply(params, x))
    np.testing.assert_allclose(change.std(), rate, rtol=0.1)


def test_the_optimizers_constants_are_those_of_lazy_steps():
    """Of Adam's first steps along a constant gradient each has the length of the corrected rate."""
    cfg = dataclasses.replace(TINY, learning_rate=0.01, beta1=0.0)
    for which, interval in (("generator", 4), ("discriminator", 16)):
        made = stylegan2.optimizer(cfg, which)
        updates, opt_state = made.update(jnp.float32(3.0), made.init(jnp.float32(0)))
        np.testing.assert_allclose(updates, -0.01 * interval / (interval + 1), rtol=1e-5)
        _, opt_state = made.update(jnp.float32(0.0), opt_state)
        decay = 0.99 ** (interval / (interval + 1))
        np.testing.assert_allclose(opt_state[0].nu, 9 * (1 - decay) * decay, rtol=1e-4)


def test_the_filters_are_those_of_their_definitions(x64):
    """[1, 3, 3, 1] / 8 in both dimensions, against sums written out."""
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 3))
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64

    def filtered(x, before, after):
        x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
        h, w = x.shape[1] - 3, x.shape[2] - 3
        return sum(taps[i, j] * x[:, i : i + h, j : j + w] for i in range(4) for j in range(4))

    np.testing.assert_allclose(resampling.reduce(jnp.asarray(x)), filtered(x, 1, 1)[:, ::2, ::2], atol=1e-14)
    wide = np.zeros((2, 12, 16, 3))
    wide[:, ::2, ::2] = x
    np.testing.assert_allclose(resampling.enlarge(jnp.asarray(x)), 4 * filtered(wide, 2, 1), atol=1e-14)
    np.testing.assert_allclose(resampling.blur(jnp.asarray(x), 2, 3.0), 3 * filtered(x, 2, 2), atol=1e-14)


@pytest.mark.parametrize("transposed", [False, True])
def test_resampling_convolutions_have_the_same_derivatives_everywhere(x64, transposed):
    """As on GPUs and CPUs, and as XLA differentiates them: values, gradients and theirs."""
    rng = np.random.default_rng(0)
    x, kernel = jnp.asarray(rng.normal(size=(2, 8, 8, 3))), jnp.asarray(rng.normal(size=(3, 3, 3, 5)))
    run = resampling.double_and_convolve if transposed else resampling.convolve_and_halve

    def everything(platform):
        def value(x, kernel):
            return jnp.sum(jnp.sin(run(x, kernel, platform)))

        def slope(x, kernel):
            by_x, by_kernel = jax.grad(value, (0, 1))(x, kernel)
            return jnp.sum(by_x**2) + jnp.sum(jnp.sin(by_kernel))

        return jax.jit(jax.value_and_grad(slope, (0, 1)))(x, kernel)

    expected = jax.tree.leaves(everything("xla"))
    with layers.compiling_for("gpu"):
        on_gpu = everything("auto")
    for found in (jax.tree.leaves(everything("cpu")), jax.tree.leaves(on_gpu)):
        for a, e in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("convolution", ["cpu", "xla"])
def test_resampling_convolutions_are_each_others_transposes(x64, convolution):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 8, 8, 3)), rng.normal(size=(2, 4, 4, 5))
    kernel = rng.normal(size=(3, 3, 3, 5))
    down = resampling.convolve_and_halve(jnp.asarray(x), jnp.asarray(kernel), convolution)
    up = resampling.double_and_convolve(jnp.asarray(y), jnp.asarray(kernel.swapaxes(2, 3)), convolution)
    np.testing.assert_allclose(4 * np.vdot(down, y), np.vdot(x, up), rtol=1e-12)


def test_minibatch_deviation_is_that_of_groups():
    """The closed form for one value of a picture: neighbours in groups of two, of pictures far apart or the same."""
    x = np.zeros((6, 4, 4, 1), np.float32)
    x[:, ...] = np.array([0, 2, 5, 5, -1, 1], np.float32)[:, None, None, None]
    found = stylegan2.minibatch_deviation(jnp.asarray(x), 2)
    np.testing.assert_allclose(found, [1, 1, 1e-4, 1e-4, 1, 1], rtol=1e-4)
    np.testing.assert_allclose(stylegan2.minibatch_deviation(jnp.asarray(x), 1), 1e-4, rtol=1e-5)
    # As many as divide the batch: 6 is asked for, 5 is not a divisor.
    np.testing.assert_allclose(stylegan2.minibatch_deviation(jnp.asarray(x), 100), x[:, 0, 0, 0].std(), rtol=1e-5)
    expected = [x[:3].std()] * 3 + [x[3:].std()] * 3
    np.testing.assert_allclose(stylegan2.minibatch_deviation(jnp.asarray(x), 5), expected, rtol=1e-5)


@pytest.mark.parametrize("group, devices", [(4, 8), (4, 4), (2, 8), (8, 4), (16, 8), (3, 8)])
def test_minibatch_deviation_is_the_same_on_many_devices(group, devices):
    """Groups within a device's part, and across devices; gradients too."""
    x = np.random.default_rng(0).normal(size=(16, 4, 4, 2)).astype(np.float32)
    g = np.random.default_rng(1).normal(size=16).astype(np.float32)

    def both(x, g, axis_name=None):
        found, back = jax.vjp(lambda x: stylegan2.minibatch_deviation(x, group, axis_name), x)
        return found, back(g)[0]

    mapped = jax.pmap(lambda x, g: both(x, g, "batch"), "batch", devices=jax.devices()[:devices])
    parts = mapped(x.reshape(devices, -1, 4, 4, 2), g.reshape(devices, -1))
    for expected, found in zip(jax.jit(both)(x, g), parts, strict=True):
        np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)


def test_half_of_a_batch():
    assert [stylegan2.half_of(b, None) for b in (1, 2, 5, 8)] == [1, 1, 2, 4]
    assert stylegan2.half_of(2, "batch") == 1
    with pytest.raises(ValueError, match=r"path_length needs an even number of pictures on each device.*got 3"):
        stylegan2.half_of(3, "batch")


def test_styles_are_mixed_from_a_place_on():
    cfg = dataclasses.replace(TINY, style_mixing=0.5)
    run = jax.jit(lambda key: stylegan2.draw(key, 2, cfg)["cut"])
    cuts = np.array([run(jax.random.fold_in(KEY, i)) for i in range(300)])
    np.testing.assert_array_equal(cuts[:, 0], cuts[:, 1])  # the same in all of a step's pictures
    cuts = cuts[:, 0]
    kept = (cuts == cfg.styles).mean()
    assert abs(kept - 0.5) < 4 * 0.5 / math.sqrt(300)
    assert set(cuts) == set(range(1, cfg.styles + 1))
    state = a_state(cfg)
    drawn = stylegan2.draw(KEY, 2, cfg) | {"cut": jnp.int32([3, 3])}
    ws, w = stylegan2.make(state.gen.params, drawn, None, cfg)
    one, other = (stylegan2.map_styles(state.gen.params, drawn[n], None, cfg) for n in ("latents", "others"))
    np.testing.assert_allclose(ws[:, :3], np.repeat(one[:, None], 3, 1), rtol=1e-6)
    np.testing.assert_allclose(ws[:, 3:], np.repeat(other[:, None], cfg.styles - 3, 1), rtol=1e-6)
    np.testing.assert_allclose(w, one, rtol=1e-6)  # of the first latents alone


def test_the_average_style_is_a_moving_mean():
    state = a_state(TINY)
    means = [np.full(6, value, np.float32) for value in (1.0, 2.0, 3.0)]
    for mean in means:
        state = stylegan2.remember(state, jnp.stack([mean - 1, mean + 1]), None)
    expected = 0.005 * (0.995**2 * 1 + 0.995 * 2 + 3)
    np.testing.assert_allclose(state.w_avg, expected, rtol=1e-4)


def test_the_ramp_of_the_average():
    """The half-life is at most a twentieth of the images before the step: the closed form, and the first is a copy."""
    average, seen = jnp.float32(0.0), 0
    expected = 0.0
    for i in range(6):
        average = layers.ema(average, jnp.float32(i), 50.0, 32, jnp.float32(seen))
        decay = 0.5 ** (32 / min(50.0, 0.05 * seen)) if seen else 0.0
        expected = decay * expected + (1 - decay) * i
        seen += 320
        np.testing.assert_allclose(average, expected, rtol=1e-5)
    assert 0 < expected < 5


def test_noise_changes_pictures_and_its_strength_begins_at_0():
    state = jax.eval_shape(lambda key: stylegan2.init(key, TINY), KEY)
    assert stylegan2.noise_shapes(TINY) == jax.tree.map(lambda x: x.shape, state.noise)
    state = a_state(TINY)
    z = stylegan2.requests(KEY, 3, TINY)
    drawn = {
        noise: np.asarray(stylegan2.sample(stylegan2.generator(state, TINY), z, dataclasses.replace(TINY, noise=noise)))
        for noise in ("const", "random", "none")
    }
    assert min(np.abs(drawn[a] - drawn[b]).max() for a, b in [("const", "random"), ("const", "none")]) > 0.01
    # Maps of each picture's own, whatever the settings say: those of samples in the last one alone.
    own = jax.tree.map(lambda x: np.stack([0 * x, 0 * x, x]), state.noise)
    silent = dataclasses.replace(TINY, noise="none")
    given = np.asarray(stylegan2.sample(stylegan2.generator(state, TINY) | {"noise": own}, z, silent))
    np.testing.assert_allclose(given[:2], drawn["none"][:2], atol=1e-6)
    np.testing.assert_allclose(given[2], drawn["const"][2], atol=1e-6)
    still = jax.tree_util.tree_map_with_path(
        lambda path, x: np.zeros_like(x) if path[-1].key == "noise_strength" else x, state.ema
    )
    quiet = stylegan2.generator(state.replace(ema=still), TINY)
    np.testing.assert_allclose(
        stylegan2.sample(quiet, z, TINY), stylegan2.sample(quiet, z, dataclasses.replace(TINY, noise="none")), atol=1e-6
    )


# ---------------------------------------------------------------------------------------------------------------------
# Sampling and seeing inside


def test_truncation_draws_styles_towards_their_average():
    state = a_state(TINY)
    state = state.replace(w_avg=np.linspace(-1, 1, 6).astype(np.float32))
    variables, z = stylegan2.generator(state, TINY), stylegan2.requests(KEY, 4, TINY)
    full = np.asarray(stylegan2.to_w(variables, z, TINY))
    assert full.shape == (4, TINY.styles, 6) and (full == full[:, :1]).all()
    half, none = (stylegan2.to_w(variables, z, dataclasses.replace(TINY, truncation=psi)) for psi in (0.5, 0.0))
    np.testing.assert_allclose(half, (full + state.w_avg) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(none, np.broadcast_to(state.w_avg, full.shape), atol=1e-6)
    expected = stylegan2.sample(variables, z, TINY)
    for styles in (full, full[:, 0]):
        np.testing.assert_allclose(stylegan2.synthesize(variables, styles, TINY), expected, atol=1e-5)


def test_styles_of_two_are_mixed():
    variables = stylegan2.generator(a_state(TINY), TINY)
    a, b = stylegan2.requests(KEY, 2, TINY), stylegan2.requests(jax.random.key(9), 2, TINY)
    for chosen, expected in (([], a), (range(TINY.styles), b)):
        found = stylegan2.mix(variables, a, b, TINY, chosen)
        np.testing.assert_allclose(found, stylegan2.sample(variables, expected, TINY), atol=1e-5)
    some = stylegan2.mix(variables, a, b, TINY, [0, 1])
    w = np.concatenate([stylegan2.to_w(variables, b, TINY)[:, :2], stylegan2.to_w(variables, a, TINY)[:, 2:]], 1)
    np.testing.assert_allclose(some, stylegan2.synthesize(variables, jnp.asarray(w), TINY), atol=1e-5)
    with pytest.raises(ValueError, match=r"layers must be from 0 to 5, got 6"):
        stylegan2.mix(variables, a, b, TINY, [6])


def test_classes_change_pictures_and_are_asked_for_in_turn():
    cfg = dataclasses.replace(TINY, conditional=True, classes=3)
    variables = stylegan2.generator(a_state(cfg), cfg)
    asked = stylegan2.requests(KEY, 7, cfg)
    np.testing.assert_array_equal(asked["label"], [0, 1, 2, 0, 1, 2, 0])
    same = {"latents": jnp.repeat(asked["latents"][:1], 7, 0), "label": asked["label"]}
    drawn = np.asarray(stylegan2.sample(variables, same, cfg))
    np.testing.assert_allclose(drawn[0], drawn[3], atol=1e-5)
    assert np.abs(drawn[0] - drawn[1]).max() > 0.01
    weights = stylegan2.class_weights(asked["label"], cfg)
    np.testing.assert_array_equal(weights, np.eye(3)[[0, 1, 2, 0, 1, 2, 0]])
    np.testing.assert_allclose(stylegan2.sample(variables, same | {"label": weights}, cfg), drawn, atol=1e-5)
    half = stylegan2.sample(variables, same | {"label": jnp.full((7, 3), 0.5)}, cfg)  # between classes
    assert min(np.abs(half[0] - drawn[i]).max() for i in range(3)) > 0.01
    np.testing.assert_allclose(  # latents alone: the classes in turn
        stylegan2.sample(variables, same["latents"], cfg), drawn, atol=1e-5
    )


@pytest.mark.parametrize("conditional", [False, True])
def test_seeing_inside(conditional):
    cfg = dataclasses.replace(TINY, conditional=conditional, classes=3 if conditional else None)
    state = a_state(cfg)
    variables, asked = stylegan2.generator(state, cfg), stylegan2.requests(KEY, 3, cfg)
    assert stylegan2.first_layer(variables, cfg).shape == (6, 6)
    hidden = stylegan2.activations(variables, asked, cfg)
    assert {name: x.shape for name, x in hidden.items()} == {
        "4x4": (3, 4, 4, 8),
        "8x8": (3, 8, 8, 8),
        "16x16": (3, 16, 16, 4),
    }
    images = pictures(0, 4)
    logits = stylegan2.discriminate(state, images, cfg)
    assert logits.shape == (4,)
    np.testing.assert_allclose(logits[1:3], stylegan2.discriminate(state, images[1:3], cfg), rtol=1e-4, atol=1e-4)


def test_watch_says_what_looks_like_collapse():
    rng = np.random.default_rng(0)
    real = {"real": {"image": rng.normal(size=(8, 4, 4, 3))}}
    numbers, warning = stylegan2.watch({"augment_p": 0.3}, rng.normal(size=(8, 4, 4, 3)), real)
    assert warning is None and 0.5 < numbers["diversity"] < 2 and numbers["augment_p"] == 0.3
    _, warning = stylegan2.watch({}, np.zeros((8, 4, 4, 3)), real)
    assert warning is not None and "too much alike" in warning
    _, warning = stylegan2.watch({"augment_p": 0.9}, rng.normal(size=(8, 4, 4, 3)), real)
    assert warning is not None and "by heart" in warning


# ---------------------------------------------------------------------------------------------------------------------
# Half precision


def test_the_finest_levels_compute_in_bfloat16():
    cfg = stylegan2.Config(256, dtype="bfloat16")
    assert [size for size in cfg.levels if cfg.level_dtype(size) == jnp.bfloat16] == [32, 64, 128, 256]
    assert stylegan2.Config(16, dtype="bfloat16").level_dtype(4) == jnp.float32  # never the coarsest
    assert all(stylegan2.Config(256).level_dtype(size) == jnp.float32 for size in cfg.levels)
    assert cfg.clamp == 256 and stylegan2.Config(256).clamp is None


def test_bfloat16_stays_near_float32():
    half = dataclasses.replace(TINY, dtype="bfloat16")
    state = a_state(TINY)
    z, images = stylegan2.requests(KEY, 4, TINY), pictures(0, 4)
    variables = stylegan2.generator(state, TINY)
    ws, noise = stylegan2.to_w(variables, z, TINY), stylegan2.draw_noise(KEY, 4, TINY)
    drawn = [np.asarray(stylegan2.paint(state.gen.params, ws, noise, cfg)) for cfg in (TINY, half)]
    logits = [np.asarray(stylegan2.judge(state.disc.params, images, None, cfg, None)) for cfg in (TINY, half)]
    for one, other in (drawn, logits):
        assert other.dtype == np.float32
        assert 0 < distance(other, one) < 0.03  # 8 bits through a dozen layers


@pytest.mark.slow
def test_a_step_in_bfloat16_stays_near_one_in_float32():
    """With both penalties and every augmentation, in the form that GPUs have."""
    cfg = dataclasses.replace(TINY, augment_policy=EVERYTHING, augment_p=0.5, r1=1.0, ema_halflife_images=20.0)
    state, batch = a_state(cfg), {"real": {"image": pictures(0, BATCH)}}
    found = []
    with layers.compiling_for("gpu"):
        for dtype in ("float32", "bfloat16"):
            used = dataclasses.replace(cfg, dtype=dtype)
            step = jax.jit(lambda state, batch, used=used: stylegan2.train_step(state, batch, KEY, used))
            after, metrics = step(state, batch)
            assert all(np.isfinite(x).all() for x in jax.tree.leaves((after, metrics)))
            assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves((after, metrics)))
            found.append([metrics[name] for name in ("loss/gen", "loss/disc", "penalty/r1", "path_length")])
    np.testing.assert_allclose(found[1], found[0], rtol=0.1)
    assert found[0] != found[1]


def test_large_weights_and_styles_do_not_leave_bfloat16s_precision():
    """Normalised before they are multiplied: styles 1e12 and weights 1e10 times as large give the same."""
    cfg = dataclasses.replace(TINY, dtype="bfloat16")
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 4)), jnp.bfloat16)
    kernel, style = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 3, 4, 5), (2, 4)))
    expected = stylegan2.modulated(x, kernel, style, cfg)
    found = stylegan2.modulated(x, kernel * 1e10, style * 1e12, cfg)
    np.testing.assert_allclose(found.astype(jnp.float32), expected.astype(jnp.float32), rtol=2e-2, atol=2e-2)


def test_clamping():
    x = jnp.asarray([-1e4, -1.0, 1.0, 1e4])
    np.testing.assert_allclose(stylegan2.activated(x, 256.0), [-256, -0.2 * math.sqrt(2), math.sqrt(2), 256], rtol=1e-6)
    half = math.sqrt(0.5)
    np.testing.assert_allclose(stylegan2.activated(x, 256.0, half), [-256 * half, -0.2, 1, 256 * half], rtol=1e-6)


@pytest.mark.slow
def test_the_benchmark_times_what_agrees(torch, tmp_path, monkeypatch):
    script = load_script("bench/stylegan2")
    bench = script.Bench(16, 64, 4, batch_size=4, rounds=2, steps=2, threads=1, json=tmp_path / "stylegan2.json")
    record = script.main(bench)
    assert json.loads(bench.json.read_text())["ratio"] == record["ratio"] > 0
    assert {name: len(times) for name, times in record["seconds"].items()} == {"ours": 2, "grouped": 2, "scaled": 2}
    monkeypatch.setattr(losses, "generator_non_saturating", lambda logits: -logits)
    with pytest.raises(UserError, match="loss/gen of the first step is"):
        script.main(dataclasses.replace(bench, batch_size=6))
