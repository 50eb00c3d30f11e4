"""StyleGAN2 against PyTorch in float64, part by part and step by step, and the properties that it is named for."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganstyle_jax.data import Source
from ganstyle_jax.gan import stylegan2
from ganstyle_jax.io.files import UserError
from ganstyle_jax.nn import adaptive_augment, layers, resampling

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
            cut = {"cut": found.pop("cut")} if "cut" in found else {}
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
