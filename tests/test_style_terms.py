"""Terms of style and content one by one: by hand, by what leaves them unchanged, and against PyTorch in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganstyle_jax.style import histogram, losses, similarity

pytestmark = pytest.mark.usefixtures("quick_compile")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def moments_of(features):
    """Means and products of (h, w, c), of one region."""
    return losses.means(losses.moments(features), np.array([features[..., 0].size]))


def mean_std(features, style):
    return losses.mean_std_error(moments_of(features), moments_of(style))[0]


def histogram_of(features, style):
    features, style = (x.reshape(-1, x.shape[-1]) for x in (features, style))
    return histogram.histogram_error(features, histogram.quantiles(style, count=len(style)))


def patches(features, style):
    return similarity.patches_error(*(x.reshape(-1, x.shape[-1]) for x in (features, style)), chunk=7)


def self_similarity(features, content):
    return similarity.self_similarity_error(*(x.reshape(-1, x.shape[-1]) for x in (features, content)))


def laplacian(image, content):
    return losses.laplacian_error(image, content, 2)


TERMS = {
    "mean_std": mean_std,
    "histogram": histogram_of,
    "patches": patches,
    "self_similarity": self_similarity,
    "laplacian": laplacian,
}
SLOPES = {name: jax.jit(jax.value_and_grad(term)) for name, term in TERMS.items()}
OF_STYLE = ["mean_std", "histogram", "patches"]  # which do not know where things are


# ---------------------------------------------------------------------------------------------------------------------
# All of them


@pytest.mark.parametrize("name", TERMS)
def test_what_is_equal_is_not_apart(name):
    picture = jnp.asarray(draw(9, 8, 3), jnp.float32)
    value, gradient = SLOPES[name](picture, picture)
    assert value.dtype == gradient.dtype == jnp.float32 and value.shape == ()
    np.testing.assert_allclose(value, 0, atol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", TERMS)
def test_many_at_once_are_each_alone(name):
    pictures, others = (jnp.asarray(draw(3, 9, 8, 3, seed=seed), jnp.float32) for seed in (0, 1))
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(TERMS[name])))(pictures, others)
    alone = [SLOPES[name](*pair) for pair in zip(pictures, others, strict=True)]
    np.testing.assert_allclose(value, [one[0] for one in alone], rtol=1e-5)
    np.testing.assert_allclose(gradient, np.stack([one[1] for one in alone]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_black_and_flat_pictures_have_finite_losses_and_gradients(name):
    black, flat, noise = jnp.zeros((9, 8, 3)), jnp.full((9, 8, 3), 0.5), jnp.asarray(draw(9, 8, 3), jnp.float32)
    for pair in [(black, noise), (noise, black), (flat, noise), (noise, flat), (black, black), (flat, black)]:
        value, gradient = SLOPES[name](*pair)
        assert np.isfinite(value) and np.isfinite(gradient).all(), pair
        assert value >= 0


@pytest.mark.parametrize("name", TERMS)
def test_bfloat16_is_summed_in_float32(name):
    pictures = [jnp.asarray(draw(9, 8, 3, seed=seed), jnp.bfloat16) for seed in (0, 1)]
    value, _ = SLOPES[name](*pictures)
    # laplacian is of images, which are never in fewer bits than float32
    assert value.dtype == (jnp.bfloat16 if name == "laplacian" else jnp.float32)
    assert value > 0.01


@pytest.mark.parametrize("name", OF_STYLE)
@given(seed=st.integers(0, 100), height=st.sampled_from([1, 3]))
def test_styles_do_not_know_where_things_are(name, seed, height):
    with jax.enable_x64(True):
        places, style = draw(12, 3, seed=seed), draw(4, 5, 3, seed=seed + 1)
        shuffled = np.random.default_rng(seed).permutation(places)
        as_it_is, moved = (
            TERMS[name](jnp.asarray(x.reshape(-1, 2, 3)), jnp.asarray(style)) for x in (places, shuffled)
        )
        np.testing.assert_allclose(moved, as_it_is, rtol=1e-12)
        # and of a style, however often it is repeated and in whatever order, nothing is apart
        again = np.random.default_rng(seed).permutation(np.concatenate([style.reshape(-1, 3)] * height))
        assert SLOPES[name](jnp.asarray(again.reshape(-1, 4, 3)), style)[0] < (
            1e-12 if name != "histogram" or height == 1 else 0.1  # between the levels of two tables it is interpolated
        )


@pytest.mark.parametrize("name", ["mean_std", "histogram", "patches", "self_similarity"])
@given(scale=st.floats(0.01, 100), seed=st.integers(0, 10))
def test_the_scale_of_a_networks_features_does_not_matter(name, scale, seed):
    with jax.enable_x64(True):
        picture, other = (jnp.asarray(draw(4, 5, 3, seed=seed + i)) for i in (0, 1))
        value, scaled = SLOPES[name](picture, other)[0], SLOPES[name](scale * picture, scale * other)[0]
        np.testing.assert_allclose(scaled, value, rtol=1e-9)
        if name in ("patches", "self_similarity"):  # angles do not change with either alone
            np.testing.assert_allclose(SLOPES[name](scale * picture, other)[0], value, rtol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Against PyTorch, in whose words each is written down anew


def torch_mean_std(torch, x, y):
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    size = (y**2).mean(0).sum()
    eps = 1e-5 * size / y.shape[-1]

    def stats(x):
        return x.mean(0), (x.var(0, unbiased=False) + eps).sqrt()

    (mean, std), (mean_y, std_y) = stats(x), stats(y)
    return ((mean - mean_y).square().sum() + (std - std_y).square().sum()) / size


def torch_histogram(torch, x, y):
    """Sorted against the quantiles at as many levels, a channel at a time."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    levels = (np.arange(len(x)) + 0.5) / len(x)
    known = (np.arange(len(y)) + 0.5) / len(y)
    total = 0
    for channel in range(x.shape[-1]):
        wanted = np.interp(levels, known, np.sort(y[:, channel].numpy()))
        total = total + (x[:, channel].sort().values - torch.from_numpy(wanted)).square().mean()
    return total / y.square().mean(0).sum()


def torch_patches(torch, x, y):
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    return (1 - torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=-1)).min(1).values.mean()


def torch_self_similarity(torch, x, y):
    def likeness(x):
        x = torch.nn.functional.normalize(x.reshape(-1, x.shape[-1]), dim=-1)
        distance = 1 - x @ x.T
        return distance / distance.sum(0, keepdim=True)

    return (likeness(x) - likeness(y)).abs().sum(0).mean()


def torch_laplacian(torch, x, y):
    kernel = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]], dtype=torch.float64).expand(3, 1, 3, 3)

    def edges(x):
        return torch.nn.functional.conv2d(torch.nn.functional.avg_pool2d(x.permute(2, 0, 1)[None], 2), kernel, groups=3)

    return (edges(x) - edges(y)).square().sum() / edges(y).square().sum()


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("shape, other", [((9, 8), (9, 8)), ((6, 7), (5, 11)), ((13, 12), (4, 4))])
def test_values_and_gradients_are_those_of_pytorch(x64, torch, name, shape, other):
    other = shape if name in ("self_similarity", "laplacian") else other  # which compare place by place
    picture, style = draw(*shape, 3), 0.5 + draw(*other, 3, seed=1)
    value, gradient = SLOPES[name](jnp.asarray(picture), jnp.asarray(style))
    leaf = torch.from_numpy(picture).requires_grad_()
    expected = globals()[f"torch_{name}"](torch, leaf, torch.from_numpy(style))
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-10)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-10, atol=1e-10 * abs(leaf.grad.numpy()).max())


# ---------------------------------------------------------------------------------------------------------------------
# Means and standard deviations


def test_mean_and_std_by_hand(x64):
    """Channels (1, 3) and (0, 0) against (4, 4) and (0, 2): means 2, 0 and 4, 1; deviations 1, 0 and 0, 1."""
    found, style = jnp.array([[[1.0, 0], [3, 0]]]), jnp.array([[[4.0, 0], [4, 2]]])
    expected = ((2 - 4) ** 2 + (0 - 1) ** 2 + (1 - 0) ** 2 + (0 - 1) ** 2) / (16 + 2)
    error = losses.mean_std_error(*(jax.tree.map(lambda x: x[0], moments_of(x)) for x in (found, style)), eps=1e-15)
    np.testing.assert_allclose(error, expected, rtol=1e-6)
    np.testing.assert_allclose(losses.variance(moments_of(found)), [[1, 0]])


def test_mean_and_std_of_regions_are_each_its_own(x64):
    features, style = jnp.asarray(draw(4, 6, 3)), jnp.asarray(draw(5, 5, 3, seed=1))
    left = (np.arange(6) < 2).astype(float) * np.ones((4, 1))
    regions = np.stack([left, 1 - left])[..., None]
    found = losses.means(losses.moments(features, jnp.asarray(regions)), regions.sum((1, 2, 3)))
    target = jax.tree.map(lambda x: jnp.concatenate([x, x]), moments_of(style))
    expected = [mean_std(features[:, :2], style), mean_std(features[:, 2:], style)]
    np.testing.assert_allclose(losses.mean_std_error(found, target), expected, rtol=1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# Histograms


ASCENDING = jax.jit(histogram.ascending)


def test_ranks_take_the_styles_values():
    features, style = jnp.array([[3.0, 0], [1, 0], [2, 9]]), jnp.array([[10.0, 5], [30, 6], [20, 7]])
    table = histogram.quantiles(style, count=3)
    np.testing.assert_array_equal(table, [[10, 5], [20, 6], [30, 7]])
    np.testing.assert_array_equal(histogram.remapped(features, table), [[30, 5], [10, 6], [20, 7]])
    error = histogram.histogram_error(features, table)
    squares = (27**2 + 9**2 + 18**2) + (5**2 + 6**2 + 2**2)
    np.testing.assert_allclose(error, squares / (100 + 400 + 900 + 25 + 36 + 49), rtol=1e-6)


def test_quantiles_between_values():
    values = jnp.array([[4.0], [0], [2], [6]])
    np.testing.assert_allclose(histogram.quantiles(values, count=2)[:, 0], [1, 5])  # at 1/4 and 3/4
    np.testing.assert_allclose(histogram.quantiles(values, count=8)[:, 0], [0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6])
    np.testing.assert_array_equal(histogram.quantiles(values[:1], count=3)[:, 0], [4, 4, 4])


@jax.jit
def error_and_table(values, weights):
    """Of the histogram error from what is one larger, and 9 quantiles."""
    table = histogram.quantiles(values, weights, 9)
    return histogram.histogram_error(values, table + 1, weights), table


@pytest.mark.parametrize("n", [1, 2, 9, 30])
def test_equal_weights_are_none(x64, n):
    values = jnp.asarray(draw(n, 2))
    error, table = error_and_table(values, None)
    weighted, same = error_and_table(values, jnp.full(n, 0.3))
    np.testing.assert_allclose(same, table, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(weighted, error, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 12])
def test_what_weighs_nothing_is_not_there(x64, n):
    values, others = draw(n, 2), 5 * draw(7, 2, seed=1)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(n + 7)
        mixed, weights = np.concatenate([values, others])[order], np.repeat([1.0, 0.0], [n, 7])[order]
        for found, expected in zip(error_and_table(mixed, weights), error_and_table(values, None), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_a_weight_of_two_is_a_place_taken_twice(x64):
    values, table = jnp.array([[1.0], [5.0], [9.0]]), jnp.array([[0.0], [1], [2], [3]])
    twice = histogram.histogram_error(jnp.array([[1.0], [5], [9], [9]]), table)
    weighted = histogram.histogram_error(values, table, jnp.array([1.0, 1, 2]))
    # The two nines together are compared with the middle of what each would be.
    assert abs(twice - weighted) < 0.02 * twice


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e6))
def test_order_is_that_of_sorting(seed, scale):
    """To the digits that are kept: what is out of order differs by less than a millionth of the range."""
    values = (scale * np.random.default_rng(seed).normal(size=(300, 2))).astype(np.float32)
    values[::3] = 0  # as after a ReLU
    order = np.asarray(ASCENDING(values))
    assert (np.sort(order, axis=0) == np.arange(300)[:, None]).all()
    found = np.take_along_axis(values, order, axis=0)
    np.testing.assert_allclose(found, np.sort(values, axis=0), atol=1e-6 * np.ptp(values))
    with jax.enable_x64(True):
        exact = ASCENDING(values.astype(np.float64))
        np.testing.assert_array_equal(exact, np.argsort(values, axis=0, kind="stable"))


def test_many_places_are_sorted_well_enough():
    values = np.random.default_rng(0).normal(size=(70_000, 1)).astype(np.float32)
    found = np.take_along_axis(values, np.asarray(ASCENDING(values)), axis=0)
    np.testing.assert_allclose(found, np.sort(values, axis=0), atol=2**-14 * np.ptp(values))


# ---------------------------------------------------------------------------------------------------------------------
# Patches


def test_nearest_by_angle():
    style = jnp.array([[1.0, 0], [0, 1], [-3, -3]])
    features = jnp.array([[5.0, 1], [0.1, 0.2], [-1, -2], [0, -1]])
    np.testing.assert_array_equal(similarity.nearest(features, style), [0, 1, 2, 2])
    np.testing.assert_array_equal(similarity.nearest(features, style, jnp.array([1, 1, 0])), [0, 1, 0, 0])
    expected = [1 - 5 / 26**0.5, 1 - 2 / 5**0.5, 1 - 3 / 10**0.5, 1 - 1 / 2**0.5]
    np.testing.assert_allclose(similarity.patches_error(features, style), np.mean(expected), rtol=1e-6)
    weighted = similarity.patches_error(features, style, weights=jnp.array([0.0, 2, 0, 1]))
    np.testing.assert_allclose(weighted, (2 * expected[1] + expected[3]) / 3, rtol=1e-6)


@pytest.mark.parametrize("n, m, chunk", [(1, 20, 60), (50, 1, 7), (50, 20, 1), (49, 20, 7), (50, 20, 48)])
def test_chunks_change_nothing(n, m, chunk):
    features, style = draw(n, 4).astype(np.float32), draw(m, 4, seed=1).astype(np.float32)
    found = jax.jit(similarity.nearest, static_argnames="chunk")(features, style, chunk=chunk)
    assert found.dtype == jnp.int32 and found.shape == (n,)
    cosines = features @ style.T / np.linalg.norm(style, axis=1)
    np.testing.assert_array_equal(found, cosines.argmax(1))


def test_all_similarities_are_never_held_at_once():
    """4,096 places against 4,096 would be 64 MB; both ways at most a quarter of it is held beside the features."""
    shapes = [jax.ShapeDtypeStruct((4096, 8), jnp.float32)] * 2
    compiled = jax.jit(jax.grad(lambda x, y: similarity.patches_error(x, y, chunk=256))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16e6


def test_cosine_distance_of_nothing():
    zero, one = jnp.zeros(3), jnp.array([0.0, 2, 0])
    np.testing.assert_allclose(
        [similarity.cosine_distance(*pair) for pair in [(zero, one), (zero, zero), (one, one), (one, -one)]],
        [0.5, 0, 0, 2],
    )
    assert (jax.grad(similarity.cosine_distance)(zero, one) == 0).all()


def test_hypercolumns_are_at_one_resolution():
    fine, coarse = jnp.arange(16.0).reshape(4, 4, 1), jnp.array([[[5.0, 1]]])
    found = similarity.hypercolumns([fine, coarse], (2, 2))
    assert found.shape == (2, 2, 3)
    np.testing.assert_array_equal(found[..., 1:], np.broadcast_to([5.0, 1], (2, 2, 2)))
    # Linear over twice the distance: weights 3/7, 3/7 and 1/7 of rows and columns at the border.
    weights = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    np.testing.assert_allclose(found[..., 0], weights @ fine[..., 0] @ weights.T, rtol=1e-5)
    both = similarity.hypercolumns([jnp.stack([fine, 2 * fine])], (2, 2))
    np.testing.assert_allclose(both[1], 2 * both[0], rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Self-similarity


def test_likeness_by_hand():
    """Of three places at right angles or opposite: distances 0, 1, 2 of pairs, columns divided by their sums."""
    features = jnp.array([[1.0, 0], [0, 2], [-3, 0]])
    distances = np.array([[0, 1, 2], [1, 0, 1], [2, 1, 0]])
    np.testing.assert_allclose(similarity.likeness(features), distances / distances.sum(0), atol=1e-6)
    turned = jnp.array([[0.0, 1], [5, 0], [0, -1]])
    np.testing.assert_allclose(similarity.self_similarity_error(features, turned), 0, atol=1e-6)
    other = np.array([[0, 2, 1], [2, 0, 1], [1, 1, 0]])  # distances of (1, 0), (-1, 0), (0, 1)
    expected = abs(distances / distances.sum(0) - other / other.sum(0)).sum() / 3
    other = jnp.array([[1.0, 0], [-1, 0], [0, 1]])
    np.testing.assert_allclose(similarity.self_similarity_error(features, other), expected, rtol=1e-6)


@settings(max_examples=10)
@given(seed=st.integers(0, 30))
def test_self_similarity_does_not_mind_a_turn_of_the_features(seed):
    """Another style may change every colour and feature, if it changes all places' alike."""
    with jax.enable_x64(True):
        content = draw(2, 5, 5, seed=seed)
        turn, _ = np.linalg.qr(draw(5, 5, seed=seed + 1))
        scales = np.random.default_rng(seed).uniform(0.1, 10, (2, 5, 1))
        error, _ = SLOPES["self_similarity"](scales * content @ turn, content)
        np.testing.assert_allclose(error, 0, atol=1e-12)


@given(h=st.integers(1, 70), w=st.integers(1, 70), most=st.integers(1, 300))
def test_regular_places(h, w, most):
    places = similarity.regular_places((h, w), most)
    assert places.dtype == np.int32 and 0 < len(places) <= most and len(set(places.tolist())) == len(places)
    assert places.min() >= 0 and places.max() < h * w
    if h * w <= most:
        np.testing.assert_array_equal(places, np.arange(h * w))
    rows = np.unique(places // w)
    assert abs(rows[0] - (h - 1 - rows[-1])) <= 1  # as far from the upper border as from the lower


def test_random_places_are_the_keys():
    one, same, other = (similarity.random_places(jax.random.key(seed), (20, 30), 50) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert len(set(np.asarray(one).tolist())) == 50 and one.dtype == jnp.int32 and (one != other).any()
    assert sorted(similarity.random_places(jax.random.key(0), (2, 3), 50).tolist()) == list(range(6))


# ---------------------------------------------------------------------------------------------------------------------
# Laplacian


def test_laplacian_by_hand():
    image = jnp.zeros((4, 4, 1)).at[1, 1].set(1.0)
    np.testing.assert_array_equal(
        losses.laplacian(image)[..., 0], [[0, 0, 0, 0], [0, 4, -1, 0], [0, -1, 0, 0], [0, 0, 0, 0]]
    )
    assert not losses.laplacian(image, 2).any()  # no place of 2 x 2 has four neighbours
    ramp = jnp.arange(8.0)[:, None, None] * jnp.ones((8, 8, 3))
    assert not losses.laplacian(ramp).any() and not losses.laplacian(ramp, 2).any()
    np.testing.assert_allclose(losses.laplacian_error(jnp.zeros((4, 4, 1)), image), 1)
    # What is flat has edges of FLAT's size, in the places that have neighbours.
    np.testing.assert_allclose(losses.laplacian_error(image, jnp.zeros((4, 4, 1))), 18 / (4 * losses.FLAT), rtol=1e-6)


@pytest.mark.parametrize("h, w, pool", [(1, 1, 1), (24, 24, 1), (13, 20, 2), (24, 11, 3), (19, 8, 4), (6, 20, 4)])
def test_laplacian_of_an_image_in_a_larger_array(h, w, pool):
    """The rest of the array, whatever it holds, counts for nothing and has no gradient."""
    image, content = draw(2, 24, 24, 3)
    slope = jax.jit(jax.value_and_grad(losses.laplacian_error), static_argnums=(2, 3))
    value, gradient = slope(image, content, pool, (h, w))
    np.testing.assert_allclose(value, slope(image[:h, :w], content[:h, :w], pool, None)[0], rtol=1e-5)
    assert not np.asarray(gradient)[h:].any() and not np.asarray(gradient)[:, w:].any()


@settings(max_examples=10)
@given(level=st.floats(-1, 1), seed=st.integers(0, 10))
def test_laplacian_does_not_know_how_bright_a_picture_is(level, seed):
    with jax.enable_x64(True):
        content = jnp.asarray(draw(12, 12, 3, seed=seed))
        np.testing.assert_allclose(SLOPES["laplacian"](content + level, content)[0], 0, atol=1e-20)
