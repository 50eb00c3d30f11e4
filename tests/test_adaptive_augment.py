"""Adaptive augmentation: each transformation against PyTorch in float64 with the same numbers, and what it keeps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from ganstyle_jax.nn import adaptive_augment as ada

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(7)
ALL = ",".join(ada.POLICIES)
SIDE = 16


def pictures(n, side=SIDE, channels=3, dtype=np.float64, seed=0):
    """Noise that is a little smooth, in [-1, 1]."""
    noise = np.random.default_rng(seed).normal(size=(n, side, side, channels))
    return np.tanh(noise + np.roll(noise, 1, 1)).astype(dtype)


def nothing(n, side=SIDE, channels=3):
    """Draws that have no effect, to be changed one by one."""
    found = ada.draw(KEY, (n, side, side, channels), jnp.float64(0), ALL, jnp.float64)
    return {name: np.array(x) for name, x in found.items()}


def only(draws, *names):
    return {name: jnp.asarray(draws[name]) for name in names}


BLIT, GEOMETRY = ("mirrored", "quarters", "pixels"), ("scale", "before", "stretch", "after", "moved")
COLOR = ("brightness", "contrast", "flipped", "hue", "saturation")
ONE_BY_ONE = {
    "mirrored": [0, 1, 1],
    "quarters": [1, 2, 3],
    "pixels": [[2, -1], [0, 5], [-7, 3]],
    "scale": [0.6, 1.3, 2.2],
    "before": [0.3, -2.0, 3.0],
    "stretch": [0.7, 1.2, 1.9],
    "after": [1.1, -0.2, 2.5],
    "moved": [[1.5, -0.3], [4.2, 0], [-0.1, -9.7]],
    "brightness": [0.3, -0.5, 0.01],
    "contrast": [0.5, 1.5, 2.5],
    "flipped": [1, 0, 1],
    "hue": [0.5, -3.0, 2.0],
    "saturation": [0.2, 1.7, 0.0],
    "bands": [[0.3, 1, 1, 1], [1, 2.5, 1, 0.4], [3.0, 0.5, 2.0, 1.5]],
    "size": [0.5, 0.25, 1.0],
}


def part_of(name):
    """The names that are given together with one."""
    for group in (BLIT, GEOMETRY, COLOR, ("size", "centre")):
        if name in group:
            return group
    return (name,)


@pytest.fixture(scope="module")
def reference(torch):
    import torch_stylegan2

    def run(images, draws):
        tensors = torch_stylegan2.tensors({name: np.array(x) for name, x in draws.items()}, grad=False)
        found = torch_stylegan2.transform(torch_stylegan2.to_nchw(images), tensors, ada.SYM2, ada.SYM6)
        return found.numpy().transpose(0, 2, 3, 1)

    return run


# ---------------------------------------------------------------------------------------------------------------------
# Against PyTorch


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_each_matches_pytorch(x64, reference, name, channels):
    x, draws = pictures(3, channels=channels), nothing(3, channels=channels)
    draws[name] = np.asarray(ONE_BY_ONE[name], np.float64)
    draws = only(draws, *part_of(name))
    ours = ada.transform(jnp.asarray(x), draws)
    np.testing.assert_allclose(ours, reference(x, draws), atol=1e-11)
    if not (channels == 1 and name in ("hue", "saturation")):
        assert np.abs(ours - x).max() > 0.01  # it does something


@pytest.mark.parametrize("side, channels", [(16, 3), (32, 1), (32, 3)])
def test_all_together_match_pytorch(x64, reference, side, channels):
    shape = (6, side, side, channels)
    x = pictures(6, side, channels)
    draws = ada.draw(KEY, shape, jnp.float64(0.9), ALL, jnp.float64)
    assert set(draws) == {*BLIT, *GEOMETRY, *COLOR, "bands", "noise", "size", "centre"}
    np.testing.assert_allclose(ada.transform(jnp.asarray(x), draws), reference(x, draws), atol=1e-11)


def test_margins_as_the_authors_compute_them_show_the_same(x64, torch):
    """Mirrored once, by what the farthest corner of the batch and the filter ask for: so what does not shrink is the
    same to the last bit but a few, and of what shrinks a little the filter's last taps at the border differ."""
    import torch_stylegan2

    x, draws = pictures(4), nothing(4)
    draws["mirrored"], draws["pixels"] = np.array([0.0, 1, 0, 1]), np.array([[1.0, 2], [0, 0], [-1, 0], [0, 1]])
    draws["before"], draws["moved"] = np.array([0.0, 0.2, 0, 0]), np.array([[0.3, 0.1], [0, 0], [0, 0.5], [0, 0]])

    def both(draws):
        draws = only(draws, *BLIT, *GEOMETRY)
        found = torch_stylegan2.inverse(torch_stylegan2.tensors(jax.tree.map(np.array, draws), grad=False))
        half = (SIDE - 1) / 2
        corners = torch.tensor([[-half, half, half, -half], [-half, -half, half, half], [1, 1, 1, 1]]).double()
        seen = (found @ corners)[:, :2].transpose(0, 1).flatten(1)
        margins = torch.cat([-seen, seen]).max(1).values + 6 - half
        margins = margins.clamp(0, SIDE - 1).ceil().int().tolist()
        theirs = torch_stylegan2.warp(
            torch_stylegan2.to_nchw(x), found, torch.tensor(ada.SYM6, dtype=torch.float64), margins
        )
        return np.asarray(ada.transform(jnp.asarray(x), draws)), theirs.numpy().transpose(0, 2, 3, 1)

    ours, theirs = both(draws | {"scale": np.array([1, 1.2, 1.5, 2])})
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    ours, theirs = both(draws | {"scale": np.array([0.75, 0.8, 0.9, 1])})
    assert np.abs(ours - theirs).max() < 0.05 and np.abs(ours - theirs).mean() < 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# What is kept


@pytest.mark.parametrize("policy", [*ada.POLICIES, ALL])
def test_of_probability_0_nothing_is_left(policy):
    x = pictures(4, dtype=np.float32)
    y = ada.augment(KEY, jnp.asarray(x), jnp.float32(0), policy)
    np.testing.assert_allclose(y, x, atol=3e-6)
    assert y.dtype == jnp.float32


def test_of_probability_0_nothing_is_left_in_float64(x64):
    x = pictures(4, 32)
    np.testing.assert_allclose(ada.augment(KEY, jnp.asarray(x), jnp.float64(0), ALL), x, atol=1e-11)


def blitted(x, mirrored, quarters, right, down):
    """(s, s, c), mirrored, turned and moved by hand."""
    x = np.rot90(x[:, ::-1] if mirrored else x, quarters)
    padded = np.pad(x, ((8, 8), (8, 8), (0, 0)), mode="reflect")
    return padded[8 - down : 8 - down + len(x), 8 - right : 8 - right + len(x)]


@pytest.mark.parametrize("moves", [(0, 0), (3, 0), (0, -2), (-5, 7)])
def test_blit_moves_whole_pixels(x64, moves):
    x, draws = pictures(2), nothing(2)
    draws["pixels"] = np.array([moves, moves], np.float64)
    y = ada.transform(jnp.asarray(x), only(draws, *BLIT))
    np.testing.assert_allclose(y, [blitted(picture, 0, 0, *moves) for picture in x], atol=1e-10)


@pytest.mark.parametrize("mirrored, quarters", [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)])
def test_blit_mirrors_and_turns(x64, mirrored, quarters):
    """Nearly: the middle of the filter is not that of a pixel, so that what is mirrored lies a fifth of one off."""
    at = np.linspace(0, 1, 32)
    x = np.stack([np.cos(3 * at[:, None] + 5 * at), np.sin(7 * at[:, None]) * at, at[:, None] ** 2 + 0 * at], -1)
    draws = nothing(1, 32)
    draws["mirrored"], draws["quarters"], draws["pixels"] = (
        np.array([mirrored]),
        np.array([quarters]),
        np.array([[3, -2]]),
    )
    y = ada.transform(jnp.asarray(x[None]), {name: jnp.asarray(draws[name], float) for name in BLIT})[0]
    np.testing.assert_allclose(y, blitted(x, mirrored, quarters, 3, -2), atol=0.05)
    others = [blitted(x, m, q, 3, -2) for m in (0, 1) for q in range(4) if (m, q) != (mirrored, quarters)]
    assert min(np.abs(y - other).max() for other in others) > 0.3


@pytest.mark.parametrize("names", [("before",), ("scale",), ("stretch",), ("mirrored",), ("quarters",)])
def test_geometry_is_undone_by_its_inverse(x64, names):
    """As matrices: turned back, scaled back, mirrored again."""
    draws = nothing(3)
    there, back = dict(draws), dict(draws)
    for name in names:
        there[name] = np.asarray(ONE_BY_ONE[name], np.float64)
        inverse = {"before": lambda v: -v, "mirrored": lambda v: v, "quarters": lambda v: (4 - v) % 4}
        back[name] = inverse.get(name, lambda v: 1 / v)(there[name])
    product = jnp.matmul(*(ada.geometry(only(d, *BLIT, *GEOMETRY)) for d in (there, back)))
    np.testing.assert_allclose(product, np.eye(3)[None].repeat(3, 0), atol=1e-12)


def test_a_turned_constant_is_the_constant(x64):
    """Mirrored borders have no darkness behind them, and the filters keep the mean."""
    draws = ada.draw(KEY, (8, SIDE, SIDE, 3), jnp.float64(1), "blit,geometry,filter", jnp.float64)
    x = np.full((8, SIDE, SIDE, 3), 0.7)
    moved = ada.transform(jnp.asarray(x), {name: draws[name] for name in (*BLIT, *GEOMETRY)})
    np.testing.assert_allclose(moved, x, atol=1e-9)


def test_luma_flip_is_its_own_inverse_and_hue_turns_around(x64):
    draws = nothing(3)
    draws["flipped"] = np.ones(3)
    flip = ada.colors(only(draws, *COLOR), 3)
    np.testing.assert_allclose(flip @ flip, np.eye(4)[None].repeat(3, 0), atol=1e-12)
    grey = np.full((3, 4, 4, 3), 0.3)
    np.testing.assert_allclose(ada.recolor(jnp.asarray(grey), flip), -grey, atol=1e-12)
    draws = nothing(3)
    draws["hue"] = np.full(3, 2 * math.pi / 3)
    turn = ada.colors(only(draws, *COLOR), 3)
    np.testing.assert_allclose(turn @ turn @ turn, np.eye(4)[None].repeat(3, 0), atol=1e-12)
    np.testing.assert_allclose(ada.recolor(jnp.asarray(grey), turn), grey, atol=1e-12)
    red = np.zeros((3, 1, 1, 3))
    red[..., 0] = 1
    np.testing.assert_allclose(ada.recolor(jnp.asarray(red), turn)[0, 0, 0], [0, 1, 0], atol=1e-12)  # to green
    draws = nothing(3)
    draws["saturation"] = np.zeros(3)
    plain = ada.recolor(jnp.asarray(pictures(3)), ada.colors(only(draws, *COLOR), 3))
    np.testing.assert_allclose(plain, pictures(3).mean(-1, keepdims=True).repeat(3, -1), atol=1e-12)


def test_the_four_filters_sum_to_one_and_part_the_frequencies():
    bank = ada.filter_bank()
    assert bank.shape == (4, 43)
    impulse = np.zeros(43)
    impulse[21] = 1
    np.testing.assert_allclose(bank.sum(0), impulse, atol=1e-12)
    response = np.abs(np.fft.rfft(bank, 1024))  # of each, from frequency 0 to half a sample's
    np.testing.assert_allclose(response[:, 0], [1, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(response[:, -1], [0, 0, 0, 1], atol=1e-12)
    np.testing.assert_array_equal(response[:, [20, 96, 192, 400]].argmax(0), [0, 1, 2, 3])


def test_cutout_is_a_square_of_zeros(x64):
    x = np.ones((2, SIDE, SIDE, 1))
    y = ada.cut_out(jnp.asarray(x), jnp.asarray([0.5, 0.5]), jnp.asarray([[0.5, 0.25], [0.0, 1.0]]))
    for picture, (first, last) in zip(y[..., 0], [([0, 4], [7, 11]), ([12, 0], [15, 3])], strict=True):
        zeros = np.argwhere(np.asarray(picture) == 0)
        assert (*zeros.min(0), *zeros.max(0)) == (*first, *last)
        assert len(zeros) == np.prod(np.subtract(last, first) + 1)  # all of the square


# ---------------------------------------------------------------------------------------------------------------------
# Draws


def test_draws_have_the_papers_distributions():
    n = 4000
    some = ada.draw(KEY, (n, 64, 64, 1), jnp.float32(0.3), ALL)
    always = jax.tree.map(np.asarray, ada.draw(KEY, (n, 64, 64, 1), jnp.float32(1), ALL))
    untouched = {"scale": 1, "stretch": 1, "contrast": 1, "saturation": 1, "bands": 1}
    halves = {"mirrored": 0.15, "flipped": 0.15, "quarters": 0.225}  # a draw may also leave a picture as it is
    expected = dict.fromkeys(("pixels", "scale", "stretch", "moved", *COLOR, "bands", "size"), 0.3) | halves
    expected |= dict.fromkeys(("before", "after"), 1 - math.sqrt(0.7)) | {"pixels": 0.3}
    for name, rate in expected.items():
        values = np.asarray(some[name]).reshape(n, -1)[:, :1]
        touched = (values != untouched.get(name, 0)).mean()
        slack = 0.02 if name == "pixels" else 0  # of whole pixels 0 is one
        assert abs(touched - rate) < 4 * math.sqrt(rate * (1 - rate) / n) + slack, name
    either = (np.asarray(some["before"]) != 0) | (np.asarray(some["after"]) != 0)
    assert abs(either.mean() - 0.3) < 4 * math.sqrt(0.21 / n)
    deviations = {
        "scale": (np.log2, 0.2),
        "stretch": (np.log2, 0.2),
        "moved": (lambda x: x / 64, 0.125),
        "before": (lambda x: x / math.pi, 1 / math.sqrt(3)),
        "hue": (lambda x: x / math.pi, 1 / math.sqrt(3)),
        "pixels": (lambda x: x / 64, 0.125 / math.sqrt(3)),
        "brightness": (lambda x: x, 0.2),
        "contrast": (np.log2, 0.5),
        "saturation": (np.log2, 1.0),
        "bands": (np.log2, 1.0),
        "noise": (lambda x: x, 0.1),
        "centre": (lambda x: x, 1 / math.sqrt(12)),
    }
    for name, (of, stddev) in deviations.items():
        np.testing.assert_allclose(of(always[name]).std(), stddev, rtol=0.06, err_msg=name)
    for name, ends in {"pixels": (-8, 8), "quarters": (0, 3), "mirrored": (0, 1), "size": (0.5, 0.5)}.items():
        assert (always[name].min(), always[name].max()) == ends, name


def test_the_key_decides_and_every_picture_has_its_own_draw():
    x = np.repeat(pictures(1, dtype=np.float32), 16, axis=0)
    run = jax.jit(lambda key: ada.augment(key, x, jnp.float32(1), ALL))
    y = run(KEY)
    np.testing.assert_array_equal(y, run(KEY))
    assert not np.array_equal(y, run(jax.random.key(8)))
    assert len({np.asarray(picture).tobytes() for picture in y}) == 16


def test_a_part_draws_the_same_whatever_else_there_is():
    shape, p = (4, SIDE, SIDE, 3), jnp.float32(0.7)
    everything = ada.draw(KEY, shape, p, ALL)
    for part in ada.POLICIES:
        for name, values in ada.draw(KEY, shape, p, part).items():
            np.testing.assert_array_equal(values, everything[name])


def test_devices_draw_what_one_would():
    devices = jax.devices()[:8]
    x = pictures(16, dtype=np.float32)

    def everything(x, axis_name=None):
        return ada.augment(KEY, x, jnp.float32(0.5), ALL, axis_name)

    expected = jax.jit(everything)(x)
    sharded = jax.device_put(x, NamedSharding(Mesh(np.array(devices), ("batch",)), PartitionSpec("batch")))
    mapped = jax.pmap(lambda x: everything(x, "batch"), axis_name="batch", devices=devices)(
        x.reshape(8, 2, *x.shape[1:])
    )
    np.testing.assert_allclose(jax.jit(everything)(sharded), expected, atol=1e-5)
    np.testing.assert_allclose(mapped.reshape(x.shape), expected, atol=1e-5)


def test_gradients_by_finite_differences(x64):
    """Twice, as R1 needs it."""
    x = pictures(2, 8)
    weights = np.random.default_rng(1).normal(size=x.shape)
    draws = ada.draw(KEY, x.shape, jnp.float64(1), ALL, jnp.float64)

    def something(x):
        return jnp.sum(jnp.tanh(ada.transform(x, draws)) * weights)

    check_grads(jax.jit(something), (jnp.asarray(x),), order=2, modes=["rev"])


def test_a_transformation_is_linear_but_for_constants(x64):
    """<f(x) - f(0), g> = <x, gradient>."""
    x, g = pictures(3), pictures(3, seed=1)
    draws = ada.draw(KEY, x.shape, jnp.float64(1), ALL, jnp.float64)
    run = jax.jit(lambda x: ada.transform(x, draws))
    y, pull_back = jax.vjp(run, jnp.asarray(x))
    np.testing.assert_allclose(np.vdot(y - run(np.zeros_like(x)), g), np.vdot(x, pull_back(g)[0]), rtol=1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# The probability, and what is refused


def test_the_probability_follows_the_signs():
    p = jnp.float32(0.2)
    up, down = (ada.adjusted(p, jnp.float32(sign), 0.6, 256, 1000.0) for sign in (0.7, 0.5))
    np.testing.assert_allclose([up, down], [0.2 + 0.256, 0.0], rtol=1e-6)  # and never below 0
    assert ada.adjusted(p, jnp.float32(0.6), 0.6, 256, 1000.0) == p
    np.testing.assert_allclose(ada.adjusted(p, jnp.float32(0), 0.6, 100, 1000.0), 0.1, rtol=1e-6)


def test_policies():
    assert ada.check_policy(ALL) == ada.POLICIES and ada.check_policy("") == ()
    with pytest.raises(ValueError, match="list of blit, geometry, color, filter, noise, cutout, got 'flip'"):
        ada.check_policy("blit,flip")
