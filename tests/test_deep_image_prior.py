"""Deep Image Prior: a whole step as PyTorch takes it, what is measured, when it stops, and going on bit for bit."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import load_script

from ganstyle_jax.io.files import UserError
from ganstyle_jax.restore import deep_image_prior as prior
from ganstyle_jax.restore import early_stopping, lanczos
from ganstyle_jax.restore.deep_image_prior import PRESETS, Config, preset
from ganstyle_jax.restore.hourglass import Hourglass

pytestmark = pytest.mark.usefixtures("quick_compile")
SMALL = Config(channels=(4, 6), skip=(2, 0), depth=3, window=4, patience=1000, steps=40)


def picture(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)).astype(dtype)


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def run(key, measured, cfg, steps, **given):
    state = prior.init(key, measured, cfg, **given)
    return prior.advance(state, measured, cfg, steps, **given)


# ---------------------------------------------------------------------------------------------------------------------
# As PyTorch


def flat(params):
    return {name[2:-2].replace("']['", "/"): x for name, x in leaves(params).items()}


CASES = {
    "denoise": {},
    "super-resolve": {"scale": 2, "tv_weight": 0.1},
    "text": {"skip": (3, 5)},
    "hole": {"skip": (0, 0)},
    "flash": {"upsampling": ("nearest", "bilinear")},
}


@pytest.mark.parametrize("task", CASES)
def test_a_whole_step_as_pytorch_takes_it(task, torch, x64):
    """Two steps of Adam from copied weights, with the noise of the input given: each weight within 1e-10."""
    import torch_deep_image_prior as reference

    cfg = preset(task, CASES[task].get("scale", 4), Config(channels=(4, 6), dtype="float64", **CASES[task]))
    factor = cfg.scale if task == "super-resolve" else None
    h, w = 20, 24
    size = (h // (factor or 1), w // (factor or 1))
    measured, mask, guide = picture(1, *size, dtype=float), None, None
    if task in prior.MASKED:
        mask = (np.random.default_rng(2).uniform(size=(h, w)) < 0.6).astype(float)
    if cfg.input == "guide":
        guide = picture(3, h, w, dtype=float)
    given = prior._given(measured, cfg, mask, guide, None)
    network = prior.network_of(cfg, 3)
    params = network.init(jax.random.key(0), jnp.float64)
    # Other scales and shifts than 1 and 0, which would hide what they do.
    params = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(x.size).normal(size=x.shape), params)
    theirs = reference.Network(
        **{name: getattr(cfg, name) for name in prior.NETWORK if name != "upsampling"}, upsampling=cfg.upsampling
    ).double()
    theirs.load(jax.tree.map(np.asarray, params))
    optimizer = torch.optim.Adam(theirs.parameters(), lr=cfg.learning_rate)
    tensor = lambda x: None if x is None else torch.tensor(np.array(x)).permute(2, 0, 1)[None]  # noqa: E731
    z = prior.make_input(jax.random.key_data(jax.random.key(1)), cfg, (h, w, 3), given.get("guide"))
    ours = prior.optimizer(cfg).init(params), params
    step = jax.jit(partial(prior.step_of, cfg=cfg, shape=(h, w, 3)))
    for i in range(2):
        noisy = z + 0.03 * np.random.default_rng(i).normal(size=z.shape)
        params, state, value, made = step(ours[1], ours[0], noisy, given)
        ours = state, params
        optimizer.zero_grad()
        found = theirs(tensor(noisy[0]))[:, :, :h, :w]
        mask_there = tensor(given.get("mask"))
        loss = reference.loss(found, tensor(given["measured"]), mask_there, factor, cfg.tv_weight)
        loss.backward()
        optimizer.step()
        np.testing.assert_allclose(made, found[0].permute(1, 2, 0).detach(), rtol=0, atol=1e-10)
        np.testing.assert_allclose(value, loss.item(), rtol=1e-10)
        mine = flat(params)
        assert mine.keys() == theirs.values().keys()
        for name, wanted in theirs.values().items():
            np.testing.assert_allclose(mine[name], wanted, rtol=0, atol=1e-10, err_msg=f"{name}, step {i}")


def test_the_papers_networks():
    """By the number of weights of the authors' networks, less the biases that BatchNorm takes away."""

    def count(task):
        cfg = preset(task)
        shapes = jax.eval_shape(prior.network_of(cfg, 3).init, jax.random.key(0))
        biases = sum(shape[3] for name, shape in prior.network_of(cfg, 3).shapes.items() if name != "out")
        return sum(x.size for x in jax.tree.leaves(shapes)) + biases

    # What the notebooks print: 2,217,831 for F16 and x4.
    assert count("denoise") == count("super-resolve") == 2217831
    assert preset("hole").channels == (16, 32, 64, 128, 128, 128)


def test_weights_begin_as_pytorchs():
    """Uniform within 1 / sqrt(inputs): the largest and the deviation of many."""
    params = Hourglass(8, (32,), (0,), upsampling=("nearest",)).init(jax.random.key(0))
    kernel = np.asarray(params["scale1"]["up"]["kernel"])
    bound = (3 * 3 * 32) ** -0.5
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.02)


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_lanczos_kernel_is_the_papers(factor):
    """By the formula, pixel by pixel; and it adds to 1."""

    def value(d):
        return 2 * np.sin(np.pi * d) * np.sin(np.pi * d / 2) / (np.pi * d) ** 2

    wanted = np.array([value((i + 0.5 - 2 * factor) / factor) for i in range(4 * factor)])
    found = lanczos.kernel(factor)
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=1e-15)
    np.testing.assert_allclose(found.sum(), 1, atol=1e-15)
    np.testing.assert_allclose(found, found[::-1], atol=1e-15)


def test_lanczos_shrinks_as_written_out(x64):
    image = np.random.default_rng(0).normal(size=(12, 16, 2))
    kernel = np.outer(lanczos.kernel(4), lanczos.kernel(4))
    padded = np.pad(image, ((6, 6), (6, 6), (0, 0)), mode="edge")
    wanted = np.empty((3, 4, 2))
    for i in range(3):
        for j in range(4):
            wanted[i, j] = np.einsum("pq,pqc->c", kernel, padded[4 * i : 4 * i + 16, 4 * j : 4 * j + 16])
    np.testing.assert_allclose(lanczos.shrink(jnp.asarray(image), 4), wanted, atol=1e-12)
    flat = lanczos.shrink(jnp.full((16, 16, 1), 0.3), 8)
    np.testing.assert_allclose(flat, 0.3, atol=1e-12)


def test_lanczos_refuses_sides_that_it_does_not_divide():
    with pytest.raises(ValueError, match=r"multiples of an even factor, got 10 x 12 and 4"):
        lanczos.shrink(jnp.zeros((10, 12, 3)), 4)


def test_total_variation_in_closed_form():
    """A ramp of 0.1 to the right and 0.2 down: the gradient's length is the same everywhere."""
    ramp = 0.1 * np.arange(5)[None, :, None] + 0.2 * np.arange(4)[:, None, None]
    np.testing.assert_allclose(prior.total_variation(jnp.asarray(ramp)), (0.01 + 0.04) ** 0.5, rtol=1e-5)


def test_what_a_mask_hides_has_no_effect():
    """On the loss and its gradient; and what it shows has."""
    cfg = preset("inpaint", cfg=Config(task="inpaint"))
    mask = np.zeros((6, 5), np.float32)
    mask[2:4] = 1
    shown, made = picture(0, 6, 5), jnp.asarray(picture(1, 6, 5) / 2 + 0.5)
    other = np.where(mask[..., None] == 1, shown, 0.7)
    loss = jax.value_and_grad(lambda x, y: prior.loss_of(x, prior._given(y, cfg, mask, None, None), cfg))
    (value, gradient), (again, _) = loss(made, shown), loss(made, other)
    assert value == again and not np.asarray(gradient)[mask == 0].any() and np.asarray(gradient)[mask == 1].any()
    assert loss(made, -shown)[0] != value
    mean = np.mean(((np.asarray(made) - (shown + 1) / 2) * mask[..., None]) ** 2)  # over hidden pixels too
    np.testing.assert_allclose(value, mean, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# When it stops


def plain_wmv(pictures, window, patience):
    """Wang et al. 2023, algorithm 1: (variances, step of the lowest, step at which it stops), steps from 0."""
    queue, lowest, best, waited, variances = [], np.inf, None, 0, []
    for k, x in enumerate(pictures):
        queue = [*queue, x][-window:]
        if len(queue) < window:
            variances.append(np.nan)
            continue
        variances.append(np.mean([np.mean((x - np.mean(queue, 0)) ** 2) for x in queue]))
        if variances[-1] < lowest:
            lowest, best, waited = variances[-1], k, 0
        else:
            waited += 1
        if waited >= patience:
            return variances, best, k
    return variances, best, None


def plain_emv(pictures, window, patience, alpha):
    """Algorithm 2: the moving mean and variance of West 1979, looked at after `window` steps."""
    mean, variance, lowest, best, waited, variances = pictures[0], 0.0, np.inf, None, 0, []
    for k, x in enumerate(pictures):
        if k:
            change = x - mean
            mean = np.clip(mean + alpha * change, 0, 1)
            variance = (1 - alpha) * (variance + alpha * np.mean(change**2))
        if k <= window:
            variances.append(np.nan)
            continue
        variances.append(variance)
        if variance < lowest:
            lowest, best, waited = variance, k, 0
        else:
            waited += 1
        if waited >= patience:
            return variances, best, k
    return variances, best, None


def sequence(kind, count=160):
    """Pictures that settle and then begin to move: as noise is fitted, in two dips, or that never settle."""
    rng = np.random.default_rng(3)
    k = np.arange(count)
    amount = {
        "one dip": 0.01 + 0.3 * np.exp(-k / 15) + 0.002 * np.maximum(k - 70, 0),
        "two dips": 0.05 + 0.04 * np.cos(k / 15) - 0.0002 * k,
        "settles": 0.3 * np.exp(-k / 30),
    }[kind]
    drift = np.linspace(0, 0.2, count)[:, None, None, None] * rng.uniform(size=(3, 4, 1))
    return np.clip(0.5 + drift + amount[:, None, None, None] * rng.normal(size=(count, 3, 4, 3)), 0, 1)


@pytest.mark.parametrize("kind", ["one dip", "two dips", "settles"])
@pytest.mark.parametrize("stopping", ["wmv", "emv"])
def test_it_stops_where_the_papers_algorithm_does(kind, stopping, x64):
    window, patience = 11, 30
    pictures = sequence(kind)
    first = early_stopping.begin(jnp.asarray(pictures[0]), stopping, window)

    def one(watch, kx):
        watch, variance = early_stopping.look(watch, *kx, kx[1], stopping, window, patience, 0.1)
        return watch, (variance, watch.stopped)

    watch, (found, stops) = jax.jit(lambda x: jax.lax.scan(one, first, (jnp.arange(len(x)), x)))(pictures)
    plain = plain_wmv(pictures, window, patience) if stopping == "wmv" else plain_emv(pictures, window, patience, 0.1)
    variances, best, stop = plain
    np.testing.assert_allclose(found[: len(variances)], variances, rtol=1e-9)
    assert np.isnan(found[len(variances) :]).all() and best is not None
    assert (stop is None) == (kind == "settles")  # the sequences are what they say
    assert not stops[:stop].any() if stop is None else stops[stop:].all() and not stops[:stop].any()
    assert int(watch.best_step) == best + 1
    np.testing.assert_array_equal(watch.best, pictures[best])


def test_a_variance_in_float32_keeps_its_digits():
    """Pictures that all but stand still, after a beginning that did not: nothing of it is left in the sums."""
    rng = np.random.default_rng(0)
    pictures = 0.5 + np.r_[np.full(60, 0.3), np.full(141, 1e-4)][:, None, None, None] * rng.normal(size=(201, 8, 8, 3))
    pictures = pictures.astype(np.float32)
    first = early_stopping.begin(jnp.asarray(pictures[0]), "wmv", 50)

    def one(watch, kx):
        return early_stopping.look(watch, *kx, kx[1], "wmv", 50, 1000, 0.1)

    _, found = jax.jit(lambda x: jax.lax.scan(one, first, (jnp.arange(len(x)), x)))(pictures)
    wanted, _, _ = plain_wmv(pictures.astype(float), 50, 1000)
    np.testing.assert_allclose(found[150:], wanted[150:], rtol=1e-3)


def test_fixed_steps_keep_the_last_picture_and_the_average():
    noisy = picture(0, 20, 24)
    cfg = dataclasses.replace(SMALL, stopping="steps", steps=6)
    state, trace = run(jax.random.key(0), noisy, cfg, 100)
    assert int(state.step) == 6 and prior.stopped(state) and len(trace["loss"]) == 6
    assert np.isnan(trace["variance"]).all() and not np.asarray(trace["stopped"]).any()
    np.testing.assert_array_equal(state.watch.best, state.average)
    assert np.abs(np.asarray(state.average - state.picture)).max() > 1e-3
    np.testing.assert_array_equal(prior.restored(state, cfg), prior.latest(state, cfg))
    found = prior.restored(state, cfg)
    assert found.shape == (20, 24, 3) and found.dtype == np.float32 and np.abs(found).max() <= 1
    again, trace = prior.advance(state, noisy, cfg, 5)
    assert int(again.step) == 6 and len(trace["loss"]) == 0


def test_a_run_stops_by_itself():
    """With a patience of 1 at the first rise of the variance; the picture is that of the lowest before."""
    noisy, cfg = picture(0, 20, 24), dataclasses.replace(SMALL, window=3, patience=1, averaging=0.0, learning_rate=0.1)
    state, trace = run(jax.random.key(0), noisy, cfg, 40)
    variances = np.asarray(trace["variance"])[:, 0]
    assert prior.stopped(state) and len(variances) == int(state.step) < 40
    assert np.asarray(trace["stopped"])[:, 0].tolist() == [False] * (len(variances) - 1) + [True]
    assert (np.diff(variances[2:-1]) < 0).all() and variances[-1] >= variances[-2]
    assert int(state.watch.best_step[0]) == len(variances) - 1
    assert np.abs(np.asarray(state.picture - state.watch.best)).max() > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Going on, restarts, many pictures, many devices


@pytest.mark.parametrize("stopping", ["wmv", "emv"])
def test_going_on_from_a_file_is_bit_for_bit(stopping, tmp_path):
    noisy, cfg = picture(0, 20, 24), dataclasses.replace(SMALL, stopping=stopping)
    whole, trace = run(jax.random.key(0), noisy, cfg, 9)
    half, first = run(jax.random.key(0), noisy, cfg, 5)
    np.savez(tmp_path / "state.npz", **prior.arrays_of(half))
    with np.load(tmp_path / "state.npz") as file:
        again = prior.state_of(dict(file), prior.init(jax.random.key(7), noisy, cfg))
    resumed, second = prior.advance(again, noisy, cfg, 4)
    assert_same(resumed, whole)
    assert_same({k: np.concatenate([first[k], second[k]]) for k in trace}, trace)


def test_arrays_of_another_state_are_refused():
    state = prior.init(jax.random.key(0), picture(0, 20, 24), SMALL)
    arrays = prior.arrays_of(state) | {".picture": np.zeros((1, 4, 4, 3), np.float32)}
    with pytest.raises(ValueError, match=r"\.picture must be \(1, 20, 24, 3\) float32, got \(1, 4, 4, 3\) float32"):
        prior.state_of(arrays, state)


def part_of(state, index):
    """One of the leading axis, as if it were by itself."""
    shared = ("step", "limit")
    own = {name: value for name, value in vars(state).items() if name not in shared}
    own = jax.tree.map(lambda x: x[index], own)
    return jax.tree.map(jnp.array, state.replace(**own))  # copies: a state is used up


@pytest.mark.parametrize("restarts", [2, prior.TOGETHER + 1])
def test_restarts_are_what_they_are_by_themselves(restarts, x64):
    """Side by side and one after the other; in float64, because Adam's first steps are of full length by any sign."""
    noisy = picture(0, 20, 24, dtype=float)
    alone = dataclasses.replace(SMALL, dtype="float64", averaging=0.0)
    cfg = dataclasses.replace(alone, restarts=restarts)
    first = prior.init(jax.random.key(0), noisy, cfg)
    parts = [part_of(first, slice(r, r + 1)) for r in (0, restarts - 1)]
    together, trace = prior.advance(first, noisy, cfg, 3)
    assert np.abs(np.diff(np.asarray(trace["loss"]), axis=1)).min() > 0  # each is another
    for r, part in zip((0, restarts - 1), parts, strict=True):
        own, _ = prior.advance(part, noisy, alone, 3)
        np.testing.assert_allclose(own.picture[0], together.picture[r], atol=1e-10)
    mean = 2 * np.asarray(together.watch.best).mean(0) - 1
    np.testing.assert_allclose(prior.restored(together, cfg), mean, atol=1e-6)


def test_side_by_side_in_one_program_is_the_same(x64, monkeypatch):
    """What accelerators run, whose networks are stacked."""
    noisy = picture(0, 20, 24, dtype=float)
    cfg = dataclasses.replace(SMALL, dtype="float64", restarts=2)
    here, trace = run(jax.random.key(0), noisy, cfg, 6)
    monkeypatch.setattr(prior, "on_cpu", lambda platform: False)
    jax.clear_caches()
    there, their_trace = run(jax.random.key(0), noisy, cfg, 6)
    jax.clear_caches()
    np.testing.assert_allclose(here.picture, there.picture, atol=1e-9)
    np.testing.assert_allclose(trace["variance"], their_trace["variance"], rtol=1e-6)


def test_eight_devices_give_what_one_gives(x64):
    noisy = picture(0, 8, 20, 24, dtype=float)
    cfg = dataclasses.replace(SMALL, dtype="float64", window=3, patience=2, learning_rate=0.1)
    one, trace = run(jax.random.key(0), noisy, cfg, 12)
    first = prior.init(jax.random.key(0), noisy, cfg)
    eight, their_trace = prior.advance(first, noisy, cfg, 12, devices=jax.devices()[:8])
    assert len(eight.picture.sharding.device_set) == 8
    assert int(one.step) == int(eight.step)
    np.testing.assert_array_equal(one.watch.best_step, eight.watch.best_step)
    np.testing.assert_allclose(prior.restored(one, cfg), prior.restored(eight, cfg), atol=1e-6)
    np.testing.assert_allclose(trace["loss"], their_trace["loss"], rtol=1e-7)
    alone, _ = run(jax.random.fold_in(jax.random.key(0), 5), noisy[5], cfg, 12)
    np.testing.assert_allclose(prior.restored(alone, cfg), prior.restored(eight, cfg)[5], atol=1e-6)


def test_pictures_that_the_devices_do_not_divide_are_refused():
    noisy = picture(0, 3, 20, 24)
    state = prior.init(jax.random.key(0), noisy, SMALL)
    with pytest.raises(UserError, match=r"3 pictures cannot be dealt out among 2 devices: take a multiple"):
        prior.advance(state, noisy, SMALL, 1, devices=jax.devices()[:2])


# ---------------------------------------------------------------------------------------------------------------------
# Tasks


def test_an_operator_of_ones_own_measures():
    """The mean of the colours, of a picture of another shape: the loss falls, and its picture has that mean."""
    grey = np.broadcast_to(np.linspace(-0.9, 0.9, 24, dtype=np.float32), (20, 24))
    cfg = dataclasses.replace(SMALL, stopping="steps", averaging=0.0, learning_rate=0.05)
    state = prior.init(jax.random.key(0), grey, cfg, operator=colourless, shape=(20, 24, 3))
    state, trace = prior.advance(state, grey, cfg, 40, operator=colourless)
    made = prior.restored(state, cfg)
    assert made.shape == (20, 24, 3)
    losses = np.asarray(trace["loss"])[:, 0]
    assert losses[-1] < 0.5 * losses[0]
    found = np.mean((made.mean(-1) - grey) ** 2) / 4
    assert found < losses[-5:].max() * 1.1


def colourless(picture):
    return picture.mean(-1)


@pytest.mark.parametrize("task", PRESETS)
def test_every_preset_is_a_network_that_makes_a_picture(task):
    cfg = preset(task, 8)
    assert preset(task, 8, cfg) == cfg  # complete
    shape = (40, 72, 3) if task != "super-resolve" else (5, 9, 3)
    measured = np.zeros(shape, np.float32)
    mask = np.eye(40, 72, dtype=np.float32) if task in prior.MASKED else None
    guide = measured if task == "flash" else None
    state = jax.eval_shape(lambda key: prior.init(key, measured, cfg, mask, guide), jax.random.key(0))
    assert state.picture.shape == (1, 40, 72, 3)
    height, width = prior.network_of(cfg, 3).canvas(40, 72)
    assert height % 2 ** len(cfg.channels) == width % 2 ** len(cfg.channels) == 0
    z = jax.ShapeDtypeStruct((1, height, width, cfg.depth), np.float32)
    params = jax.eval_shape(prior.network_of(cfg, 3).init, jax.random.key(0))
    made = jax.eval_shape(partial(prior.make_picture, cfg=cfg, shape=(40, 72, 3)), params, z)
    assert made.shape == (40, 72, 3)


def test_presets_are_the_papers_and_may_be_changed():
    denoise, eight = preset("denoise", cfg=Config(stopping="steps")), preset("super-resolve", 8)
    assert (denoise.steps, denoise.averaging, denoise.input_noise, denoise.depth) == (3000, 0.99, 1 / 30, 32)
    assert (eight.steps, eight.input_noise, eight.scale) == (5000, 0.05, 8)  # and the patience
    assert preset("super-resolve", 4, Config(steps=7)).steps == 7
    fewer = preset("region", cfg=Config(channels=(8, 8), skip=(2,)))
    assert (fewer.skip, fewer.upsampling, fewer.depth) == ((2, 2), ("nearest",) * 2, 2)
    assert preset("region", cfg=Config(input="noise")).depth == 32
    assert preset("flash").learning_rate == 0.1


def test_the_meshgrid_says_where_a_pixel_is():
    cfg = preset("region", cfg=Config(channels=(4,)))
    z = np.asarray(prior.make_input(None, cfg, (8, 6, 3)))
    assert z.shape == (1, 8, 6, 2)
    np.testing.assert_allclose(z[0, 3, 4], [4 / 5, 3 / 7], rtol=1e-6)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"task": "dream"}, r"task must be one of denoise, jpeg, .*, got 'dream'"),
        ({"scale": 3}, r"scale must be one of 2, 4, 8, got 3"),
        ({"stopping": "late"}, r"stopping must be one of wmv, emv, steps, got 'late'"),
        ({"window": 1}, r"window must be at least 2, got 1"),
        ({"restarts": 0}, r"restarts must be at least 1, got 0"),
        ({"averaging": 1.0}, r"averaging must be at least 0 and less than 1, got 1.0"),
        ({"forgetting": 1.0}, r"forgetting must be between 0 and 1, got 1.0"),
        ({"learning_rate": 0.0}, r"learning_rate must be a positive number, got 0.0"),
        ({"tv_weight": -1.0}, r"tv_weight must be a number that is not negative, got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Config(**values)


def test_networks_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"skip must be of as many scales as channels, 2, got \(1, 2, 3\)"):
        preset("denoise", cfg=Config(channels=(4, 4), skip=(1, 2, 3)))
    with pytest.raises(ValueError, match=r"kernel_down must be odd and at least 3, got 4"):
        preset("denoise", cfg=Config(kernel_down=4))


WHITE, HALF = np.ones((6, 5), np.float32), np.eye(6, 5, dtype=np.float32)


@pytest.mark.parametrize(
    "task, measured, mask, guide, message",
    [
        ("inpaint", picture(0, 6, 5), None, None, r"inpaint needs a mask of the picture's size"),
        ("inpaint", picture(0, 6, 5), WHITE[:3], None, r"must have the picture's size 6x5, got 3x5: scale or crop it"),
        ("inpaint", picture(0, 6, 5), 0 * WHITE, None, r"the mask is all black, so that nothing of the picture is kn"),
        ("inpaint", picture(0, 6, 5), WHITE, None, r"the mask is all white, so that there is nothing to fill in"),
        ("inpaint", picture(0, 6, 5), 255 * HALF, None, r"from 0 to 1, got 0 to 255: divide bytes by 255"),
        ("denoise", np.zeros((6, 5, 4)), None, None, r"pictures must be \(h, w, 3\) .*, got \(6, 5, 4\)"),
        ("flash", picture(0, 6, 5), None, None, r"flash needs a guide, the picture with flash"),
        ("flash", picture(0, 6, 5), None, picture(0, 5, 6), r"the picture's size 6x5, got 5x6: scale or crop it"),
    ],
)
def test_what_a_task_lacks_is_said(task, measured, mask, guide, message):
    with pytest.raises(UserError, match=message):
        prior.init(jax.random.key(0), measured, Config(task=task), mask, guide)


def test_an_operator_needs_a_shape():
    with pytest.raises(UserError, match=r"needs the shape of the picture that is sought: give shape=\(h, w, c\)"):
        prior.init(jax.random.key(0), np.zeros((4, 4)), SMALL, operator=colourless)


@pytest.mark.slow
def test_a_noisy_photograph_is_restored(data_dir):
    """64 pixels of F16 with noise of 25 of 255: 3 dB or more above the noisy picture, stopped without the truth."""
    from ganstyle_jax.io.pictures import read_picture

    truth = read_picture(data_dir / "restoration" / "F16_GT.png")[160:224, 120:184]
    noise = np.random.default_rng(0).normal(scale=2 * 25 / 255, size=truth.shape)
    noisy = np.clip(truth + noise, -1, 1).astype(np.float32)
    cfg = Config(channels=(16, 16, 16), skip=(4,), depth=8, patience=200, steps=800)
    state, _ = run(jax.random.key(0), noisy, cfg, 800)

    def psnr(x):
        return 10 * np.log10(4 / np.mean((x - truth) ** 2))

    assert psnr(prior.restored(state, cfg)) > psnr(noisy) + 3


# ---------------------------------------------------------------------------------------------------------------------
# Experiment and benchmark


@pytest.mark.slow
def test_the_experiment_goes_on_where_it_was(data_dir, tmp_path, monkeypatch, capsys):
    script = load_script("deep_image_prior")
    settings = script.Settings(
        names=("vase",),
        data=data_dir,
        scale_down=16,
        share=0.002,
        channels=4,
        every=4,
        save_every=4,
        folder=tmp_path / "runs",
        json=tmp_path / "record.json",
    )
    monkeypatch.setattr(script.flags, "use_cache", lambda: None)
    (row,) = script.main(settings)["rows"]
    assert (row["task"], row["shape"], row["steps"]) == ("region", "20x20", 10)
    assert row["gap"] >= 0 and (tmp_path / "runs" / "vase" / "restored.png").is_file()
    capsys.readouterr()
    assert script.main(settings)["rows"] == [row]  # from the state that was kept, at its end
    assert " steps, " not in capsys.readouterr().err
    with pytest.raises(UserError, match=r"is of other settings: take another --folder, or remove it"):
        script.main(dataclasses.replace(settings, seed=1))


def test_noises_are_as_strong_as_they_say():
    script, grey = load_script("deep_image_prior"), np.zeros((200, 200, 3), np.float32)

    def deviation(kind, level):
        return (script.with_noise(grey, kind, level, np.random.default_rng(0)) / 2).std()

    np.testing.assert_allclose(deviation("gaussian", 0.1), 0.1, rtol=0.02)
    np.testing.assert_allclose(deviation("speckle", 0.2), 0.1, rtol=0.02)  # of 0.2 of a half
    np.testing.assert_allclose(deviation("shot", 50), (0.5 / 50) ** 0.5, rtol=0.02)
    np.testing.assert_allclose(deviation("impulse", 0.16), 0.5 * 0.16**0.5, rtol=0.02)


@pytest.mark.slow
def test_the_benchmark_compares_what_agrees(torch, tmp_path):
    bench = load_script("bench/deep_image_prior")
    settings = bench.Bench(
        sizes=(64,), channels=4, scales=2, rounds=1, round_seconds=0.0, restarts=2, json=tmp_path / "record.json"
    )
    record = bench.main(settings)
    (result,) = record["results"]
    assert record["exact_parity"]["gradients"] < 1e-9 and result["ratio"] > 0 and result["side_by_side"] > 0
    with pytest.raises(UserError, match=r"loss differs by 1 from PyTorch's, more than 0.5: not timed"):
        bench.parity_errors({"loss": 1.0}, {"loss": 2.0}, {"loss": 0.5})
