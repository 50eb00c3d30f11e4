"""DCGAN on classes: against PyTorch step by step, and what is asked of labels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganstyle_jax.data import Source
from ganstyle_jax.gan import convert, dcgan
from ganstyle_jax.io.files import UserError
from ganstyle_jax.nn import layers

pytestmark = pytest.mark.usefixtures("quick_compile")

TINY = dcgan.Config(image_size=16, channels=3, width=2, latent_dim=4, conditional=True, classes=3)
KEY = jax.random.key(3)
BATCH = 4


def pictures(seed, n, cfg=TINY):
    shape = (n, cfg.image_size, cfg.image_size, cfg.channels)
    return np.tanh(np.random.default_rng(seed).normal(size=shape)).astype(np.dtype(cfg.param_dtype))


def labels_of(seed, n, cfg=TINY):
    return np.random.default_rng(50 + seed).integers(0, cfg.classes, n).astype(np.int32)


def filled(cfg):
    """A state whose numbers are all known to be other than 0, made without compiling anything."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or any(getattr(k, "name", "") == "opt_state" for k in path):
            return np.zeros(leaf.shape, leaf.dtype)
        sign = 1 if getattr(path[-1], "key", "") in ("scale", "var") else rng.choice([-1, 1], leaf.shape)
        return (sign * rng.uniform(0.01, 0.03, leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(lambda key: dcgan.init(key, cfg), KEY))


def as_torch(cfg, state):
    """State dicts of the two reference networks: the converters' of all that is common, and the embedding."""
    plain = dataclasses.replace(cfg, conditional=False, classes=None)
    gen = convert.generator_to_torch(state.gen.variables, plain)
    disc = convert.discriminator_to_torch(state.disc.variables, plain)
    judge = np.asarray(state.disc.params["embedding"]).transpose(0, 3, 1, 2)  # (classes, c, h, w)
    disc["embedding.weight"] = judge.reshape(cfg.classes, -1)
    return gen, disc


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("r1", [0.0, 5.0])
def test_five_steps_match_pytorch_in_float64(x64, torch, platform, r1):
    """Also the step as GPUs have it: both batches in one pass, each with its labels."""
    import torch_dcgan

    cfg = dataclasses.replace(TINY, width=4, latent_dim=6, dtype="float64", r1=r1)
    state = filled(cfg)
    networks = (
        torch_dcgan.ConditionalGenerator(cfg.classes, 16, 3, 6, 4),
        torch_dcgan.ConditionalDiscriminator(cfg.classes, 16, 3, 4),
    )
    for network, weights in zip(networks, as_torch(cfg, state), strict=True):
        network.double().load_state_dict({name: torch.tensor(np.array(value)) for name, value in weights.items()})
    optimizers = [torch_dcgan.adam(network) for network in networks]
    step = jax.jit(lambda *arguments: dcgan.train_step(*arguments, cfg))
    for i in range(5):
        images, label, key = pictures(i, BATCH, cfg), labels_of(i, BATCH), jax.random.fold_in(KEY, i)
        key_disc = jax.random.fold_in(jax.random.split(key)[0], 0)
        z = jax.random.normal(jax.random.fold_in(key_disc, 0), (BATCH, cfg.latent_dim), cfg.param_dtype)
        with layers.compiling_for(platform):
            state, metrics = step(state, {"real": {"image": images, "label": label}}, key)
        theirs = torch.tensor(images.transpose(0, 3, 1, 2).copy())
        losses = torch_dcgan.conditional_step(
            *networks, *optimizers, theirs, torch.tensor(np.array(z)), torch.tensor(label.astype(np.int64)), r1
        )
        for name, loss in zip(("loss/disc", "loss/gen"), losses, strict=True):
            np.testing.assert_allclose(metrics[name], loss.item(), rtol=1e-9)
    for ours, theirs in zip(as_torch(cfg, state), networks, strict=True):
        assert set(ours) == set(theirs.state_dict())
        for name, value in theirs.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                expected = value.numpy()
                assert np.linalg.norm(ours[name] - expected) <= 1e-9 * np.linalg.norm(expected), name


def test_generated_pictures_are_asked_for_in_the_classes_of_the_real_ones(monkeypatch):
    """Of each discriminator update its own, and of the generator's updates those of the last one."""
    seen = {"disc": [], "gen": []}
    real_generate, real_update = dcgan.generate_for_training, dcgan.update_discriminator

    def generate(gen, key, b, cfg, axis_name, label):
        seen["gen"].append(np.asarray(label))
        return real_generate(gen, key, b, cfg, axis_name, label=label)

    def update(disc, real, fake, key, step, cfg, axis_name, label):
        seen["disc"].append((np.asarray(real), np.asarray(label)))
        return real_update(disc, real, fake, key, step, cfg, axis_name, label=label)

    monkeypatch.setattr(dcgan, "generate_for_training", generate)
    monkeypatch.setattr(dcgan, "update_discriminator", update)
    cfg = dataclasses.replace(TINY, discriminator_steps=2, generator_steps=2)
    images, label = pictures(0, 2 * BATCH), labels_of(0, 2 * BATCH)
    dcgan.train_step(filled(cfg), {"real": {"image": images, "label": label}}, KEY, cfg)
    of = {image.tobytes(): number for image, number in zip(images, label, strict=True)}
    for real, given in seen["disc"]:
        assert [of[image.tobytes()] for image in real] == given.tolist()
    asked = [given.tolist() for _, given in seen["disc"]]
    assert len(asked) == 2 and [x.tolist() for x in seen["gen"]] == [*asked, asked[-1]]


# ---------------------------------------------------------------------------------------------------------------------
# Config and data


def source(names):
    return Source("pictures", (16, 16, 3), np.dtype(np.uint8), 9, names, lambda i: {})


def test_there_are_as_many_classes_as_the_data_has():
    new = dataclasses.replace(TINY, classes=None, channels=None)
    assert dcgan.settle(new, {"real": source(("a", "b", "c"))}) == TINY
    assert dcgan.settle(TINY, {"real": source(("a", "b", "c"))}) == TINY
    plain = dcgan.Config(image_size=16)
    assert dcgan.settle(plain, {"real": source(("a", "b"))}).classes is None
    with pytest.raises(UserError, match="conditional needs pictures in classes, and pictures has none: give a folder"):
        dcgan.settle(new, {"real": source(None)})
    with pytest.raises(UserError, match="classes must be as many as pictures has, 2, got 3"):
        dcgan.settle(TINY, {"real": source(("a", "b"))})


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"classes": 3}, "classes go with conditional, which is off, got 3"),
        ({"conditional": True, "classes": 0}, "classes must be at least 1, got 0"),
    ],
)
def test_config_names_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        dcgan.Config(**wrong)


def test_converters_refuse_classes():
    state = filled(TINY)
    for convert_one, variables in (
        (convert.generator_to_torch, state.gen.variables),
        (convert.discriminator_to_torch, state.disc.variables),
    ):
        with pytest.raises(UserError, match="conditional, and the common example's networks know of no classes"):
            convert_one(variables, TINY)


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


def test_requests_have_their_classes_in_turn():
    asked = dcgan.requests(KEY, 7, TINY)
    np.testing.assert_array_equal(asked["label"], [0, 1, 2, 0, 1, 2, 0])
    assert asked["label"].dtype == jnp.int32
    plain = dataclasses.replace(TINY, conditional=False, classes=None)
    np.testing.assert_array_equal(asked["latents"], dcgan.requests(KEY, 7, plain))


@pytest.mark.parametrize("classes", [3, 100])
def test_standing_statistics_are_of_all_classes(classes, monkeypatch):
    """A hundred do not fit into one of the sixteen batches."""
    seen = []
    real = dcgan.apply

    def apply(module, params, batch_stats, z, label):
        seen.append(np.asarray(label))
        return real(module, params, batch_stats, z, label=label)

    monkeypatch.setattr(dcgan, "apply", apply)
    monkeypatch.setattr(
        dcgan.lax, "fori_loop", lambda low, high, body, x: [x := body(i, x) for i in range(low, high)][-1]
    )
    cfg = dataclasses.replace(TINY, classes=classes)
    state = filled(cfg)
    found = dcgan.generator(state, cfg)["batch_stats"]
    counts = np.bincount(np.concatenate(seen), minlength=classes)
    assert counts.sum() == 1024 and counts.max() - counts.min() <= 1
    # The mean over the batches of each batch's own mean, before the first BatchNorm.
    means = []
    for i, label in enumerate(seen):
        z = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (64, cfg.latent_dim))
        both = np.concatenate([z, np.eye(classes)[label]], 1)
        means.append(np.einsum("bz,hwzc->bhwc", both, np.asarray(state.ema["project"])).mean((0, 1, 2)))
    np.testing.assert_allclose(found["norm0"]["mean"], np.mean(means, 0), rtol=1e-4, atol=1e-6)


def test_weights_of_classes_stand_for_labels():
    variables = dcgan.generator(dcgan.init(KEY, TINY), TINY)
    asked = dcgan.requests(KEY, 3, TINY)
    images = dcgan.sample(variables, asked, TINY)
    weights = asked | {"label": jnp.eye(3)}
    np.testing.assert_allclose(dcgan.sample(variables, weights, TINY), images, atol=1e-6)
    between = dcgan.sample(variables, asked | {"label": jnp.full((3, 3), 1 / 3)}, TINY)
    assert np.abs(between - images).max() > 1e-3
    one = {"latents": asked["latents"][:1].repeat(3, 0), "label": jnp.arange(3)}
    assert len({np.asarray(image).tobytes() for image in dcgan.sample(variables, one, TINY)}) == 3


def test_the_discriminator_without_a_label_is_the_mean_over_all_classes():
    state, images = filled(TINY), pictures(1, 5)
    module = dcgan.Discriminator(TINY)
    each = [module.apply(state.disc.variables, images, train=False, label=jnp.full(5, k)) for k in range(3)]
    assert np.abs(each[0] - each[1]).max() > 1e-4
    np.testing.assert_allclose(dcgan.discriminate(state, images, TINY), np.mean(each, 0), rtol=1e-4, atol=1e-6)


def test_what_is_looked_at_inside():
    state = filled(TINY)
    variables = {"params": state.ema, "batch_stats": state.gen.batch_stats}
    assert dcgan.first_layer(variables, TINY).shape == (4, 16 * TINY.hidden_channels[0])
    rows = np.moveaxis(np.asarray(state.ema["project"]), 2, 0)
    np.testing.assert_array_equal(dcgan.first_layer(variables, TINY), rows[:4].reshape(4, -1))  # those of z
    hidden = dcgan.activations(variables, dcgan.requests(KEY, 2, TINY), TINY)
    assert {name: x.shape for name, x in hidden.items()} == {"4x4": (2, 4, 4, 4), "8x8": (2, 8, 8, 2)}
