"""DCGAN against PyTorch, step by step, and every option of its Config.

Steps are run without `jit` where they can be: operations compiled one by one are shared between options, which a
compiled step never is.
"""

import dataclasses
import re
import typing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ganstyle_jax.gan import convert, dcgan
from ganstyle_jax.nn import layers, losses

pytestmark = pytest.mark.usefixtures("quick_compile")

TINY = dcgan.Config(image_size=16, channels=3, width=2, latent_dim=4, ema_halflife_images=8.0)
PARITY = dcgan.Config(image_size=32, channels=3, width=4, latent_dim=8, dtype="float64")
BATCH = 4
KEY = jax.random.key(3)

jitted_step = jax.jit(dcgan.train_step, static_argnames=("cfg", "axis_name"))


def pictures(seed, n, cfg):
    """(n, s, s, c) in (-1, 1), of the dtype that `cfg` computes its weights in."""
    shape = (n, cfg.image_size, cfg.image_size, cfg.channels or 3)
    return np.tanh(np.random.default_rng(seed).normal(size=shape)).astype(np.dtype(cfg.param_dtype))


def first_latents(key, n, cfg):
    """The latents that a training step with one discriminator update draws from its key."""
    key_disc = jax.random.fold_in(jax.random.split(key)[0], 0)
    return np.asarray(jax.random.normal(jax.random.fold_in(key_disc, 0), (n, cfg.latent_dim), cfg.param_dtype))


def filled(cfg, low=0.01, high=0.03):
    """A state whose numbers are all known to be other than 0, made without compiling anything."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or any(getattr(k, "name", "") == "opt_state" for k in path):
            return np.zeros(leaf.shape, leaf.dtype)
        sign = 1 if getattr(path[-1], "key", "") in ("scale", "var") else rng.choice([-1, 1], leaf.shape)
        return (sign * rng.uniform(low, high, leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(lambda key: dcgan.init(key, cfg), KEY))


def train(cfg, steps, step=dcgan.train_step):
    """All states, the initial one first, and the metrics of each step."""
    states, metrics = [dcgan.init(jax.random.key(1), cfg)], []
    for i in range(steps):
        batch = {"real": {"image": pictures(i, BATCH * cfg.discriminator_steps, cfg)}}
        state, values = step(states[-1], batch, jax.random.fold_in(KEY, i), cfg)
        states.append(state)
        metrics.append(values)
    return states, metrics


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree)))


def difference(a, b):
    """|a - b| / |b| of two trees of weights."""
    return norm(jax.tree.map(lambda x, y: np.asarray(x, np.float64) - np.asarray(y, np.float64), a, b)) / norm(b)


def floats(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


@pytest.fixture(scope="module")
def default(quick_compile):
    """Three steps with the defaults."""
    return train(TINY, 3)


@pytest.fixture(scope="module")
def reference(torch):
    """(cfg, state) -> the two PyTorch networks with the state's weights, of its dtype."""
    import torch_dcgan

    def networks(cfg, state):
        c = cfg.channels or 3
        gen = torch_dcgan.Generator(cfg.image_size, c, cfg.latent_dim, cfg.width)
        disc = torch_dcgan.Discriminator(cfg.image_size, c, cfg.width)
        for network, weights in (
            (gen, convert.generator_to_torch(state.gen.variables, cfg)),
            (disc, convert.discriminator_to_torch(state.disc.variables, cfg)),
        ):
            network.to(torch.float64 if cfg.dtype == "float64" else torch.float32)
            network.load_state_dict({name: torch.tensor(np.array(value)) for name, value in weights.items()})
        return gen, disc

    return networks


@pytest.fixture
def full_compile(quick_compile):
    """XLA with all optimisations, as in use."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def to_torch(torch, images):
    return torch.tensor(np.asarray(images).transpose(0, 3, 1, 2).copy())


def assert_same_weights(cfg, state, gen, disc, tolerance):
    """Norm-wise, tensor by tensor, parameters and running statistics."""
    for ours, theirs in (
        (convert.generator_to_torch(state.gen.variables, cfg), gen),
        (convert.discriminator_to_torch(state.disc.variables, cfg), disc),
    ):
        assert set(ours) == set(theirs.state_dict())
        for name, value in theirs.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                expected = value.numpy()
                assert np.linalg.norm(ours[name] - expected) <= tolerance * np.linalg.norm(expected), name


# ---------------------------------------------------------------------------------------------------------------------
# Config and networks


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"image_size": 48}, "image_size must be a power of two from 16 to 256, got 48"),
        ({"image_size": 8}, "got 8"),
        ({"image_size": 512}, "got 512"),
        ({"image_size": 0}, "got 0"),
        ({"image_size": -64}, "got -64"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"generator_steps": 0}, "generator_steps must be at least 1, got 0"),
        ({"discriminator_steps": -1}, "discriminator_steps must be at least 1, got -1"),
        ({"clip_norm": -1.0}, "clip_norm must not be negative, got -1.0"),
        ({"generator_learning_rate": -1.0}, "generator_learning_rate must not be negative, got -1.0"),
        ({"beta1": 1.0}, "beta1 must be at least 0 and below 1, got 1.0"),
        ({"loss": "best"}, "loss must be non_saturating or minimax or .*, got 'best'"),
        ({"dtype": "float16"}, "dtype must be float32 or bfloat16 or float64, got 'float16'"),
        ({"r1": -0.5}, "r1 must not be negative, got -0.5"),
        ({"r2": -0.5}, "r2 must not be negative, got -0.5"),
        ({"gradient_penalty": -10.0}, "gradient_penalty must not be negative, got -10.0"),
        ({"instance_noise": -0.1}, "instance_noise must not be negative, got -0.1"),
        ({"ema_halflife_images": -1.0}, "ema_halflife_images must not be negative, got -1.0"),
        ({"generator_schedule": "linear"}, "schedule_steps >= 1, got 0"),
        ({"discriminator_schedule": "cosine"}, "schedule_steps >= 1, got 0"),
        ({"augment": "color,flip"}, "list of color, translation, cutout, got 'flip'"),
    ],
)
def test_config_names_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        dcgan.Config(**wrong)


def test_config_offers_the_losses_that_exist():
    assert set(typing.get_args(typing.get_type_hints(dcgan.Config)["loss"])) == set(losses.GENERATOR)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
def test_shapes_at_every_size(size, channels):
    cfg = dcgan.Config(size, channels=channels)
    state = jax.eval_shape(lambda key: dcgan.init(key, cfg), KEY)
    z, images = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((5, 100), (5, size, size, channels)))
    gen, disc = state.gen, state.disc
    fake, _ = jax.eval_shape(partial(dcgan.apply, dcgan.Generator(cfg)), gen.params, gen.batch_stats, z)
    logits, _ = jax.eval_shape(partial(dcgan.apply, dcgan.Discriminator(cfg)), disc.params, disc.batch_stats, images)
    sample = jax.eval_shape(lambda s, z: dcgan.sample(dcgan.generator(s, cfg), z, cfg), state, z)
    assert fake.shape == sample.shape == images.shape
    assert logits.shape == (5,)


def test_layers_of_the_default():
    """The paper's figure 1: 4x4x1024 there, half of it here, as in the common example."""
    cfg = dcgan.Config()
    state = jax.eval_shape(lambda key: dcgan.init(key, cfg), KEY)
    assert cfg.hidden_channels == [512, 256, 128, 64]
    shapes = jax.tree.map(lambda leaf: leaf.shape, state.gen.params)
    assert shapes == {
        "project": (4, 4, 100, 512),
        "norm0": {"scale": (512,), "bias": (512,)},
        "double1": {"kernel": (4, 4, 512, 256)},
        "norm1": {"scale": (256,), "bias": (256,)},
        "double2": {"kernel": (4, 4, 256, 128)},
        "norm2": {"scale": (128,), "bias": (128,)},
        "double3": {"kernel": (4, 4, 128, 64)},
        "norm3": {"scale": (64,), "bias": (64,)},
        "double4": {"kernel": (4, 4, 64, 3)},
    }
    shapes = jax.tree.map(lambda leaf: leaf.shape, state.disc.params)
    assert shapes == {
        "halve0": {"kernel": (4, 4, 3, 64)},
        "halve1": {"kernel": (4, 4, 64, 128)},
        "norm1": {"scale": (128,), "bias": (128,)},
        "halve2": {"kernel": (4, 4, 128, 256)},
        "norm2": {"scale": (256,), "bias": (256,)},
        "halve3": {"kernel": (4, 4, 256, 512)},
        "norm3": {"scale": (512,), "bias": (512,)},
        "judge": (4, 4, 512, 1),
    }
    # What the common example's networks are known to count.
    assert sum(leaf.size for leaf in jax.tree.leaves(state.gen.params)) == 3_576_704
    assert sum(leaf.size for leaf in jax.tree.leaves(state.disc.params)) == 2_765_568


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
def test_as_many_parameters_as_pytorch(torch, size):
    import torch_dcgan

    cfg = dcgan.Config(size, channels=1, width=2, latent_dim=7)
    state = jax.eval_shape(lambda key: dcgan.init(key, cfg), KEY)
    gen, disc = torch_dcgan.Generator(size, 1, 7, 2), torch_dcgan.Discriminator(size, 1, 2)
    for ours, theirs in ((state.gen.params, gen), (state.disc.params, disc)):
        assert sum(leaf.size for leaf in jax.tree.leaves(ours)) == sum(p.numel() for p in theirs.parameters())


def test_weights_begin_as_the_paper_says(default):
    state = default[0][0]
    for network in (state.gen, state.disc):
        for path, leaf in jax.tree_util.tree_leaves_with_path(network.params):
            name, leaf = jax.tree_util.keystr(path), np.asarray(leaf)
            if "bias" in name:
                assert (leaf == 0).all()
            else:
                mean = 1 if "scale" in name else 0
                assert abs(leaf.mean() - mean) < 4 * 0.02 / np.sqrt(leaf.size), name
                assert abs(leaf.std() - 0.02) < 4 * 0.02 / np.sqrt(2 * leaf.size), name
        assert all((leaf == 0).all() for leaf in floats(network.opt_state))
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.gen.params)


# ---------------------------------------------------------------------------------------------------------------------
# Parity with PyTorch


@pytest.mark.parametrize("convolution", ["cpu", "xla"])
def test_outputs_match_pytorch_in_float32(full_compile, torch, reference, convolution):
    """64 pixels, in training and in evaluation, with statistics that are not those of a new network."""
    cfg = dcgan.Config(64, channels=3, width=4, latent_dim=16, convolution=convolution)
    state = filled(cfg, 0.1, 0.5)
    gen, disc = reference(cfg, state)
    z, images = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32), pictures(0, 3, cfg)
    for train in (False, True):  # in this order, because PyTorch's training mode moves its statistics
        gen.train(train)
        disc.train(train)
        run = jax.jit(lambda m, v, x, on=train: m.apply(v, x, on, mutable=["batch_stats"])[0], static_argnums=0)
        fake = run(dcgan.Generator(cfg), state.gen.variables, z)
        logits = run(dcgan.Discriminator(cfg), state.disc.variables, images)
        with torch.no_grad():
            theirs_fake = gen(torch.tensor(z)).numpy().transpose(0, 2, 3, 1)
            theirs_logits = disc(to_torch(torch, images)).numpy()
        assert fake.dtype == logits.dtype == np.float32
        assert theirs_fake.std() > 0.1 and theirs_logits.std() > 1e-3  # something to compare
        np.testing.assert_allclose(fake, theirs_fake, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(logits, theirs_logits, rtol=1e-5, atol=1e-5)


def test_first_losses_match_pytorch_in_float32(torch, reference, default):
    import torch_dcgan

    states, metrics = default
    gen, disc = reference(TINY, states[0])
    optimizers = torch_dcgan.adam(gen), torch_dcgan.adam(disc)
    for i, ours in enumerate(metrics):
        images = to_torch(torch, pictures(i, BATCH, TINY))
        z = torch.tensor(first_latents(jax.random.fold_in(KEY, i), BATCH, TINY))
        with torch.no_grad():  # evaluates in training mode: BatchNorm's running statistics are put back
            before = [{k: v.clone() for k, v in network.state_dict().items()} for network in (gen, disc)]
            real_logits, fake_logits = disc(images).numpy(), disc(gen(z)).numpy()
            for network, saved in zip((gen, disc), before, strict=True):
                network.load_state_dict(saved)
        d_loss, g_loss = torch_dcgan.train_step(gen, disc, *optimizers, images, z)
        # One step's rounding is 1e-6; Adam magnifies it where a gradient is nearly 0, by its learning rate at most.
        np.testing.assert_allclose(ours["loss/disc"], d_loss.item(), rtol=2e-4)
        np.testing.assert_allclose(ours["loss/gen"], g_loss.item(), rtol=2e-4)
        np.testing.assert_allclose(ours["logit/real"], real_logits.mean(), atol=2e-4)
        np.testing.assert_allclose(ours["logit/fake"], fake_logits.mean(), atol=2e-4)
        assert ours["accuracy/real"] == (real_logits > 0).mean()
        assert ours["accuracy/fake"] == (fake_logits <= 0).mean()


@pytest.mark.slow
@pytest.mark.parametrize("convolution, platform", [("cpu", "cpu"), ("xla", "cpu"), ("auto", "gpu"), ("auto", "tpu")])
def test_twenty_steps_match_pytorch_in_float64(x64, full_compile, torch, reference, convolution, platform):
    """Also the step as other platforms have it: both batches in one pass, derivatives of their own."""
    import torch_dcgan

    cfg = dataclasses.replace(PARITY, convolution=convolution)
    state = filled(cfg)
    compiled = jax.jit(lambda *arguments: dcgan.train_step(*arguments, cfg))  # anew for each platform
    gen, disc = reference(cfg, state)
    optimizers = torch_dcgan.adam(gen), torch_dcgan.adam(disc)
    for i in range(20):
        images, key = pictures(i, BATCH, cfg), jax.random.fold_in(KEY, i)
        z = first_latents(key, BATCH, cfg)
        with layers.compiling_for(platform):
            state, metrics = compiled(state, {"real": {"image": images}}, key)
        d_loss, g_loss = torch_dcgan.train_step(
            gen, disc, *optimizers, to_torch(torch, images), torch.tensor(np.array(z))
        )
        np.testing.assert_allclose(metrics["loss/disc"], d_loss.item(), rtol=1e-10)
        np.testing.assert_allclose(metrics["loss/gen"], g_loss.item(), rtol=1e-10)
    assert_same_weights(cfg, state, gen, disc, 1e-10)
    assert state.step == 20


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"r1": 3.0}, {"gradient_penalty": 10.0, "loss": "wasserstein"}])
def test_a_step_of_other_platforms_is_the_same(x64, options):
    """Second derivatives included; one device, and two by pmap."""
    cfg = dataclasses.replace(PARITY, **options)
    state, images = filled(cfg), pictures(0, BATCH, cfg)

    def after_a_step(platform):
        with layers.compiling_for(platform):
            return jax.jit(lambda state: dcgan.train_step(state, {"real": {"image": images}}, KEY, cfg))(state)

    def on_devices(state, images):
        return dcgan.train_step(state, {"real": {"image": images}}, KEY, cfg, "batch")

    (expected, metrics), (found, found_metrics) = after_a_step("cpu"), after_a_step("gpu")
    with layers.compiling_for("gpu"):
        shards = images.reshape(2, -1, *images.shape[1:])
        mapped, _ = jax.pmap(on_devices, "batch", in_axes=(None, 0), devices=jax.devices()[:2])(state, shards)
    for way in (found, jax.tree.map(lambda x: x[0], mapped)):
        for a, e in zip(jax.tree.leaves(way), jax.tree.leaves(expected), strict=True):
            assert np.linalg.norm(a - e) <= 1e-9 * np.linalg.norm(e)
    for name, value in metrics.items():
        np.testing.assert_allclose(found_metrics[name], value, rtol=1e-10)


def test_the_usual_example_with_sigmoid_and_bce_is_the_same_training(x64, full_compile, torch, reference):
    """Its loop, spelled as it is commonly: labels 1 and 0, BCELoss of a Sigmoid, a backward pass for each half."""
    import torch_dcgan

    cfg = dataclasses.replace(PARITY, convolution="cpu")
    state = filled(cfg)
    gen, disc = reference(cfg, state)
    optimizer_gen, optimizer_disc = torch_dcgan.adam(gen), torch_dcgan.adam(disc)
    criterion = torch.nn.BCELoss()
    ones, zeros = torch.ones(BATCH, dtype=torch.float64), torch.zeros(BATCH, dtype=torch.float64)
    for i in range(3):
        images, key = pictures(i, BATCH, cfg), jax.random.fold_in(KEY, i)
        z = torch.tensor(first_latents(key, BATCH, cfg))
        state, metrics = jitted_step(state, {"real": {"image": images}}, key, cfg)

        disc.zero_grad()
        error_real = criterion(torch.sigmoid(disc(to_torch(torch, images))), ones)
        error_real.backward()
        fake = gen(z)
        error_fake = criterion(torch.sigmoid(disc(fake.detach())), zeros)
        error_fake.backward()
        optimizer_disc.step()
        gen.zero_grad()
        error_gen = criterion(torch.sigmoid(disc(fake)), ones)
        error_gen.backward()
        optimizer_gen.step()

        np.testing.assert_allclose(metrics["loss/disc"], (error_real + error_fake).item(), rtol=1e-10)
        np.testing.assert_allclose(metrics["loss/gen"], error_gen.item(), rtol=1e-10)
    assert_same_weights(cfg, state, gen, disc, 1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# Options


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "minimax"},
        {"loss": "least_squares"},
        {"loss": "hinge"},
        {"loss": "wasserstein"},
        {"r1": 10.0},
        {"r2": 10.0},
        {"gradient_penalty": 10.0},
        {"augment": "color"},
        {"augment": "translation"},
        {"augment": "cutout"},
        {"augment": "color,translation,cutout"},
        {"instance_noise": 0.1},
        {"clip_norm": 0.1},
        {"generator_schedule": "linear", "discriminator_schedule": "linear", "schedule_steps": 2},
        {"generator_schedule": "cosine", "discriminator_schedule": "cosine", "schedule_steps": 2},
        {"generator_learning_rate": 1e-4, "discriminator_learning_rate": 4e-4},
        {"beta1": 0.0},
        {"beta2": 0.9},
        {"generator_steps": 2},
        {"discriminator_steps": 2},
        {"dtype": "bfloat16"},
    ],
    ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items()),
)
def test_every_option_trains_and_makes_a_difference(default, options):
    """After two steps, because Adam's first hardly sees how long a gradient is, and a schedule begins at 1."""
    cfg = dataclasses.replace(TINY, **options)
    # In bfloat16 no operation has been compiled before, and compiling the whole step is quicker.
    states, metrics = train(cfg, 2, jitted_step if cfg.dtype == "bfloat16" else dcgan.train_step)
    assert all(np.isfinite(leaf).all() for leaf in floats((states[-1], metrics)))
    assert all(leaf.dtype == jnp.float32 for leaf in floats((states[-1], metrics)))
    before, after = default[0][0], default[0][2]
    moved = difference(after.gen.params, before.gen.params), difference(after.disc.params, before.disc.params)
    # More than rounding: at least 0.1 % of the way that training went.
    assert difference(states[-1].gen.params, after.gen.params) > 1e-3 * moved[0]
    if options != {"loss": "minimax"}:  # the discriminator's loss is the same, and the generator's first step nearly so
        assert difference(states[-1].disc.params, after.disc.params) > 1e-3 * moved[1]


def test_bfloat16_computes_in_bfloat16_and_stays_near_float32(default):
    cfg = dataclasses.replace(TINY, dtype="bfloat16")
    _, metrics = train(cfg, 1, jitted_step)
    for name in ("loss/disc", "loss/gen"):
        assert metrics[0][name] != default[1][0][name]
        np.testing.assert_allclose(metrics[0][name], default[1][0][name], rtol=2e-2)  # 8 bits through five layers
    for platform, dtype in (("gpu", "bf16["), ("tpu", "bf16["), ("cpu", "f32[")):  # rounded after each, on CPUs
        with layers.compiling_for(platform):
            text = str(jax.make_jaxpr(lambda s, b: dcgan.train_step(s, b, KEY, cfg))(
                dcgan.init(KEY, cfg), {"real": {"image": pictures(0, BATCH, cfg)}}
            ))  # fmt: skip
        convolutions = [line for line in text.splitlines() if "conv_general_dilated[" in line]
        assert convolutions and all(dtype in line for line in convolutions)


def test_float64_is_float64_throughout(x64):
    cfg = dataclasses.replace(TINY, dtype="float64")
    state = jax.eval_shape(lambda key: dcgan.init(key, cfg), KEY)
    images = jax.ShapeDtypeStruct((BATCH, 16, 16, 3), jnp.float32)  # what the data give
    after, metrics = jax.eval_shape(lambda s, x: dcgan.train_step(s, {"real": {"image": x}}, KEY, cfg), state, images)
    sample = jax.eval_shape(lambda s: dcgan.sample(dcgan.generator(s, cfg), dcgan.requests(KEY, 2, cfg), cfg), state)
    assert {leaf.dtype for leaf in floats((state, after, metrics, sample))} == {jnp.dtype(jnp.float64)}


def test_losses_are_those_of_the_tables(default):
    """One discriminator update by each loss, from the logits of the networks at hand."""
    disc = default[0][1].disc
    real, fake = pictures(0, BATCH, TINY), pictures(1, BATCH, TINY)
    real_logits, statistics = dcgan.apply(dcgan.Discriminator(TINY), disc.params, disc.batch_stats, real)
    fake_logits, statistics = dcgan.apply(dcgan.Discriminator(TINY), disc.params, statistics, fake)
    for name, loss in losses.DISCRIMINATOR.items():
        cfg = dataclasses.replace(TINY, loss=name)
        updated, metrics = dcgan.update_discriminator(disc, real, fake, KEY, 0, cfg, None)
        np.testing.assert_allclose(metrics["loss/disc"], loss(real_logits, fake_logits).mean(), rtol=1e-5, atol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, updated.batch_stats, statistics)  # of real, then generated images


@pytest.mark.parametrize("option, weight", [("r1", 3.0), ("r2", 5.0), ("gradient_penalty", 10.0)])
def test_penalties_have_their_weights_and_their_images(default, option, weight):
    disc = default[0][1].disc
    real, fake = pictures(0, BATCH, TINY), 0.5 * pictures(1, BATCH, TINY)
    cfg = dataclasses.replace(TINY, **{option: weight})
    _, with_penalty = dcgan.update_discriminator(disc, real, fake, KEY, 0, cfg, None)
    _, without = dcgan.update_discriminator(disc, real, fake, KEY, 0, TINY, None)

    mix = jax.random.uniform(jax.random.fold_in(KEY, 3), (BATCH, 1, 1, 1))
    images = {"r1": real, "r2": fake, "gradient_penalty": mix * real + (1 - mix) * fake}[option]
    critic = partial(dcgan.apply, dcgan.Discriminator(TINY), disc.params, disc.batch_stats)
    gradient = jax.grad(lambda x: critic(x)[0].sum())(images)
    norms = np.linalg.norm(np.asarray(gradient).reshape(BATCH, -1), axis=1)
    expected = weight * np.mean((norms - 1) ** 2) if option == "gradient_penalty" else weight / 2 * np.mean(norms**2)
    assert expected > 1e-5
    np.testing.assert_allclose(with_penalty["loss/disc"] - without["loss/disc"], expected, rtol=1e-3, atol=1e-6)


def test_all_that_the_discriminator_sees_is_distorted(default, monkeypatch):
    """Real and generated images in its own update, and generated ones in the generator's; each with its own key."""
    seen = []

    def distort(key, images, step, cfg, axis_name):
        jax.debug.callback(lambda images: seen.append((tuple(jax.random.key_data(key).tolist()), images)), images)
        return jnp.zeros_like(images)  # the networks must then get to see zeros, and nothing else

    monkeypatch.setattr(dcgan, "distort", distort)
    state, images = default[0][0], pictures(0, BATCH, TINY)
    _, metrics = dcgan.train_step(state, {"real": {"image": images}}, KEY, TINY)
    jax.effects_barrier()
    z = first_latents(KEY, BATCH, TINY)
    fake, _ = dcgan.apply(dcgan.Generator(TINY), state.gen.params, state.gen.batch_stats, z)
    assert len(seen) == len({key for key, _ in seen}) == 3
    np.testing.assert_array_equal(seen[0][1], images)
    np.testing.assert_allclose(seen[1][1], fake, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen[2][1], fake, rtol=1e-5, atol=1e-6)
    assert metrics["logit/real"] == metrics["logit/fake"] == 0


def test_instance_noise_fades():
    cfg = dataclasses.replace(TINY, instance_noise=0.5, instance_noise_steps=100)
    images = pictures(0, 64, TINY)
    for step, stddev in ((0, 0.5), (50, 0.25), (99, 0.005)):
        noise = dcgan.distort(KEY, images, jnp.int32(step), cfg, None) - images
        np.testing.assert_allclose(noise.std(), stddev, rtol=4 / np.sqrt(2 * images.size))
    for step in (100, 1000):
        np.testing.assert_array_equal(dcgan.distort(KEY, images, jnp.int32(step), cfg, None), images)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_reach_zero_after_schedule_steps(schedule):
    """Counted in training steps, though each has two and three updates."""
    cfg = dataclasses.replace(
        TINY,
        generator_schedule=schedule,
        discriminator_schedule=schedule,
        schedule_steps=2,
        generator_steps=2,
        discriminator_steps=3,
    )
    states, _ = train(cfg, 4)
    for name in ("gen", "disc"):
        params = [getattr(state, name).params for state in states]
        moved = [difference(params[i + 1], params[i]) for i in range(4)]
        assert moved[0] > moved[1] > 0
        assert moved[2] == moved[3] == 0


def test_schedules_are_those_of_each_network():
    cfg = dataclasses.replace(TINY, generator_schedule="linear", schedule_steps=1)
    states, _ = train(cfg, 2)
    assert difference(states[2].gen.params, states[1].gen.params) == 0
    assert difference(states[2].disc.params, states[1].disc.params) > 0


def test_clip_norm_bounds_gradients(default):
    """Adam hides how long its gradients are; its first mean is (1 - beta1) times the first gradient."""

    def first_means(cfg):
        state = train(cfg, 1)[0][1]
        return [optax.tree_utils.tree_get(network.opt_state, "mu") for network in (state.gen, state.disc)]

    free = first_means(TINY)
    limit = 0.5 * min(norm(mean) for mean in free) / (1 - TINY.beta1)  # between nothing and what there is
    for mean, clipped in zip(free, first_means(dataclasses.replace(TINY, clip_norm=float(limit))), strict=True):
        np.testing.assert_allclose(norm(clipped), (1 - TINY.beta1) * limit, rtol=1e-5)
        factor = norm(clipped) / norm(mean)
        assert difference(clipped, jax.tree.map(lambda leaf, f=factor: f * leaf, mean)) < 1e-4  # the same direction
    for mean, unclipped in zip(free, first_means(dataclasses.replace(TINY, clip_norm=1e6)), strict=True):
        assert difference(unclipped, mean) < 1e-5  # what is short enough stays


def test_discriminator_steps_see_each_image_once(default, monkeypatch):
    seen = []

    def update_discriminator(disc, real, fake, key, step, cfg, axis_name):
        seen.append((tuple(jax.random.key_data(key).tolist()), np.asarray(real), np.asarray(fake)))
        return disc, {"loss/disc": jnp.float32(0)}

    monkeypatch.setattr(dcgan, "update_discriminator", update_discriminator)
    cfg = dataclasses.replace(TINY, discriminator_steps=3)
    assert dcgan.sources(cfg)["real"].batches == 3 and dcgan.sources(TINY)["real"].batches == 1
    images = pictures(0, 3 * BATCH, cfg)
    dcgan.train_step(default[0][0], {"real": {"image": images}}, KEY, cfg)
    assert [real.shape for _, real, _ in seen] == [fake.shape for _, _, fake in seen] == [(BATCH, 16, 16, 3)] * 3
    ours = sorted(image.tobytes() for _, real, _ in seen for image in real)
    assert ours == sorted(image.tobytes() for image in images)
    assert len({key for key, _, _ in seen}) == 3
    assert len({fake.tobytes() for _, _, fake in seen}) == 3  # and new generated ones in each


def test_ema_in_the_state_is_the_closed_form(default):
    states, _ = default
    keep = 0.5 ** (BATCH / TINY.ema_halflife_images)
    expected = jax.tree.map(
        lambda p0, p1, p2, p3: keep**3 * p0 + (1 - keep) * (keep**2 * p1 + keep * p2 + p3),
        *(state.gen.params for state in states),
    )
    assert difference(states[3].ema, expected) < 1e-6
    assert difference(states[3].ema, states[3].gen.params) > 1e-3  # it lags behind


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


def test_standing_statistics_are_means_over_batches(torch, reference, default):
    """PyTorch's BatchNorm with momentum None keeps the plain mean over batches."""
    state = default[0][3]
    variables = dcgan.generator(state, TINY)
    gen, _ = reference(TINY, state.replace(gen=state.gen.replace(params=state.ema)))
    for module in gen.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        for i in range(16):
            z = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (64, TINY.latent_dim))
            gen(torch.tensor(np.array(z)))
    expected = gen.state_dict()
    ours = convert.generator_to_torch(variables, TINY)
    for name in (name for name in ours if "running" in name):
        np.testing.assert_allclose(ours[name], expected[name].numpy(), rtol=1e-4, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], state.ema)

    gen.eval()
    z = dcgan.requests(KEY, 5, TINY)
    with torch.no_grad():
        images = gen(torch.tensor(np.array(z))).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(dcgan.sample(variables, z, TINY), images, rtol=1e-4, atol=1e-5)


def test_standing_statistics_do_not_depend_on_the_running_ones(default):
    state = default[0][3]
    other = state.replace(gen=state.gen.replace(batch_stats=jax.tree.map(lambda x: 3 * x + 1, state.gen.batch_stats)))
    expected = dcgan.generator(state, TINY)
    assert difference(dcgan.generator(other, TINY), expected) < 1e-6
    assert difference(expected["batch_stats"], state.gen.batch_stats) > 0.1


def test_running_statistics(default):
    state, cfg = default[0][3], dataclasses.replace(TINY, batch_norm="running")
    variables = dcgan.generator(state, cfg)
    jax.tree.map(np.testing.assert_array_equal, variables, {"params": state.ema, "batch_stats": state.gen.batch_stats})
    z = dcgan.requests(KEY, 6, cfg)
    images = dcgan.sample(variables, z, cfg)
    np.testing.assert_array_equal(images, dcgan.Generator(cfg).apply(variables, z, train=False))
    np.testing.assert_allclose(images[:2], dcgan.sample(variables, z[:2], cfg), atol=1e-6)  # each by itself


def test_batch_statistics(default):
    state, cfg = default[0][3], dataclasses.replace(TINY, batch_norm="batch")
    variables = dcgan.generator(state, cfg)
    z = dcgan.requests(KEY, 6, cfg)
    images = dcgan.sample(variables, z, cfg)
    expected, _ = dcgan.apply(dcgan.Generator(cfg), state.ema, state.gen.batch_stats, z)
    np.testing.assert_array_equal(images, expected)
    assert np.abs(images[:2] - dcgan.sample(variables, z[:2], cfg)).max() > 1e-3  # on each other


def test_latents_are_standard_normal():
    z = dcgan.requests(KEY, 1000, dcgan.Config())
    assert z.shape == (1000, 100) and z.dtype == jnp.float32
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs(z.std() - 1) < 4 / np.sqrt(2 * z.size)


@pytest.mark.parametrize("batch_norm", ["standing", "running", "batch"])
def test_samples_come_from_the_weights_that_are_asked_for(batch_norm):
    cfg = dcgan.Config(image_size=16, width=4, latent_dim=8, batch_norm=batch_norm)
    state = dcgan.init(jax.random.key(0), cfg)
    state = state.replace(ema=jax.tree.map(lambda x: 2 * x, state.ema))
    for weights, expected in (("average", state.ema), ("last", state.gen.params)):
        found = dcgan.generator(state, dataclasses.replace(cfg, weights=weights))
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found["params"], expected))
    # The statistics are those of the weights: of twice the weights, twice the deviation before the first BatchNorm.
    if batch_norm == "standing":
        of = [dcgan.generator(state, dataclasses.replace(cfg, weights=w))["batch_stats"] for w in ("average", "last")]
        np.testing.assert_allclose(of[0]["norm0"]["var"], 4 * of[1]["norm0"]["var"], rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures that are no squares


@pytest.mark.parametrize("size, smallest", [((16, 32), (4, 8)), ((48, 32), (6, 4)), (32, (4, 4)), ((64, 64), (4, 4))])
def test_sizes(size, smallest):
    cfg = dcgan.Config(image_size=size, channels=1, width=2, latent_dim=3)
    shape = size if isinstance(size, tuple) else (size, size)
    assert cfg.smallest == smallest and dcgan.sources(cfg)["real"].size == size
    state = jax.eval_shape(lambda key: dcgan.init(key, cfg), KEY)
    assert state.gen.params["project"].shape[:2] == smallest == state.disc.params["judge"].shape[:2]
    batch = {"real": {"image": jax.ShapeDtypeStruct((2, *shape, 1), jnp.float32)}}
    after, _ = jax.eval_shape(lambda s, b: dcgan.train_step(s, b, KEY, cfg), state, batch)
    z = dcgan.requests(KEY, 2, cfg)
    assert jax.eval_shape(lambda s: dcgan.sample(dcgan.generator(s, cfg), z, cfg), after).shape == (2, *shape, 1)


@pytest.mark.parametrize(
    "size, message",
    [
        (28, "image_size must be a power of two from 16 to 256, got 28: take 32"),
        ((8, 64), "got 8: take 16"),
        ((512, 512), "got 512: take 256"),
        ((32, 50), "a longer side that is a multiple of 8, got 50: take 48"),
    ],
)
def test_sizes_that_do_not_fit_name_one_that_does(size, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dcgan.Config(image_size=size)
