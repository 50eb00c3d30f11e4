"""The network of fast style transfer against PyTorch's, forward and backward, and what must hold of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganstyle_jax.nn import image_transform, layers
from ganstyle_jax.nn.image_transform import ImageTransform

pytestmark = pytest.mark.usefixtures("quick_compile")
TRANSFORM = ImageTransform(width=4, blocks=2, styles=3)
STYLES = np.array([[1.0, 0, 0], [0.2, 0.5, 0.3]])


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def weights(transform, dtype):
    """Random in all parts, so that no bias, scale or shift is without effect."""
    params = transform.init(jax.random.key(1), dtype)
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, [x + 0.1 * draw(i, *x.shape).astype(dtype) for i, x in enumerate(leaves)])


def assert_close(actual, expected, tolerance):
    """Norm-wise for each array."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert a.shape == e.shape
        error = np.linalg.norm(a - e)
        assert error <= tolerance * np.linalg.norm(e), f"{jax.tree_util.keystr(path)}: {error}"


def in_torch(torch, transform, params, images, style):
    from torch_image_transform import TransformerNet

    net = TransformerNet(params, transform.blocks, transform.upsampling)
    dtype = net.out.kernel.dtype
    x = torch.tensor(images.transpose(0, 3, 1, 2), dtype=dtype)
    return net, net(x, torch.tensor(style, dtype=dtype)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
@pytest.mark.parametrize("size", [(16, 20), (19, 26)])
def test_pictures_are_pytorchs(torch, upsampling, size):
    transform = ImageTransform(4, 2, 3, upsampling)
    images = np.tanh(draw(0, 2, *size, 3))
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-10)):
        with jax.enable_x64(dtype == "float64"):
            params = weights(transform, dtype)
            found = jax.jit(transform.apply)(params, jnp.asarray(images, dtype), jnp.asarray(STYLES, dtype))
            assert found.dtype == dtype and found.shape == images.shape
            expected = in_torch(torch, transform, params, images, STYLES)[1].detach().numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
def test_gradients_are_pytorchs(torch, x64, upsampling, platform):
    """By every weight, as they are written for CPUs and as XLA makes them of the plain convolutions."""
    transform = ImageTransform(4, 1, 3, upsampling)
    params, images, weight = weights(transform, "float64"), np.tanh(draw(0, 2, 18, 16, 3)), draw(1, 2, 18, 16, 3)

    def loss(params):
        return jnp.sum(weight * transform.apply(params, images, jnp.asarray(STYLES)))

    with layers.compiling_for(platform):
        found = jax.jit(jax.grad(loss))(params)
    net, painted = in_torch(torch, transform, params, images, STYLES)
    (painted * torch.tensor(weight)).sum().backward()
    expected = net.tree(lambda parameter: parameter.grad)
    assert_close(transform.trained(found), transform.trained(expected), 1e-10)
    # What has no effect: there both gradients are rounding errors.
    silent = jax.tree.map(lambda f, kept: f if kept is None else 0 * f, found, _kept(transform, found), is_leaf=_leaf)
    assert 0 < max(np.abs(x).max() for x in jax.tree.leaves(silent)) < 1e-10


def _leaf(x):
    return x is None


def _kept(transform, params):
    """The tree of all weights with None in the place of those that are not trained."""

    def fill(whole, part):
        return {k: fill(v, part.get(k, {})) if isinstance(v, dict) else part.get(k) for k, v in whole.items()}

    return fill(params, transform.trained(params))


@pytest.mark.parametrize("name", ["reduce", "enlarge", "transposed"])
def test_convolutions_of_cells_are_what_they_stand_for(x64, name):
    """Against the plain forms: a strided convolution, repetition and a convolution, a dilated one."""
    x, kernel = draw(0, 2, 6, 8, 3), draw(1, 3, 3, 3, 5)

    def plain(x, kernel):
        if name == "transposed":
            return jax.lax.conv_transpose(x, kernel[::-1, ::-1], (2, 2), ((1, 2), (1, 2)))
        x = x if name == "reduce" else x.repeat(2, 1).repeat(2, 2)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        strides = (2, 2) if name == "reduce" else (1, 1)
        return jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    function = getattr(image_transform, name)
    weight = draw(2, *plain(x, kernel).shape)

    def derivatives(convolve):
        convolve = jax.jit(convolve)
        value, pull_back = jax.vjp(convolve, jnp.asarray(x), jnp.asarray(kernel))
        return value, pull_back(jnp.asarray(weight))

    assert_close(derivatives(function), derivatives(plain), 1e-13)


def test_a_style_that_is_none_is_the_first_and_blends_lie_between():
    params, images = weights(TRANSFORM, "float32"), np.tanh(draw(0, 1, 16, 16, 3)).astype(np.float32)
    apply = jax.jit(functools.partial(TRANSFORM.apply, params, images))
    np.testing.assert_allclose(apply(), apply(jnp.eye(3)[:1]), atol=2e-5)  # another program
    assert np.abs(apply() - apply(jnp.eye(3)[1:2])).max() > 0.01
    # Every picture has its own style.
    both = TRANSFORM.apply(params, images.repeat(2, 0), jnp.eye(3)[1:])
    np.testing.assert_allclose(both[1:], apply(jnp.eye(3)[2:]), atol=2e-5)


def test_instance_norm_makes_mean_and_deviation(x64):
    x, scale, shift = draw(0, 2, 5, 7, 3), draw(1, 2, 3), draw(2, 2, 3)
    y = layers.instance_norm(100 * x + 7, scale, shift)
    np.testing.assert_allclose(y.mean((1, 2)), shift, atol=1e-12)
    np.testing.assert_allclose(y.std((1, 2)), np.abs(scale), rtol=1e-7)  # but for epsilon


def test_statistics_can_be_anothers():
    params, images = weights(TRANSFORM, "float32"), np.tanh(draw(0, 1, 16, 20, 3)).astype(np.float32)
    seen = []

    def normalise(x, scale, shift):
        seen.append(x.shape[1:])
        return layers.instance_norm(x, scale, shift)

    np.testing.assert_array_equal(TRANSFORM.apply(params, images, normalise=normalise), TRANSFORM.apply(params, images))
    quarter = (4, 5, 16)
    assert seen == [(16, 20, 4), (8, 10, 8), quarter, *[quarter] * 4, (8, 10, 8), (16, 20, 4)]


def test_without_tanh():
    transform = ImageTransform(4, 1, output="clip")
    params, images = weights(transform, "float32"), np.tanh(draw(0, 1, 16, 16, 3)).astype(np.float32)
    params["out"]["kernel"] *= 3
    free = transform.apply(params, images, clip=False)
    assert np.abs(free).max() > 1
    np.testing.assert_array_equal(transform.apply(params, images), np.clip(free, -1, 1))
    tanh = ImageTransform(4, 1).apply(params, images)
    np.testing.assert_allclose(tanh, np.tanh(free), atol=1e-6)


@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
def test_what_is_not_trained_has_no_effect(x64, upsampling):
    transform = ImageTransform(4, 2, 3, upsampling)
    params, images = weights(transform, "float64"), np.tanh(draw(0, 1, 16, 20, 3))
    apply = jax.jit(transform.apply)
    trained = transform.trained(params)
    whole = transform.whole(trained)
    assert jax.tree.map(jnp.shape, whole) == jax.tree.map(jnp.shape, params)
    # "second" of a block, 4w channels: its bias and, where no zeros are padded after it, its shifts
    removed = sum(x.size for x in jax.tree.leaves(params)) - sum(x.size for x in jax.tree.leaves(trained))
    assert removed == 4 + 8 + 16 + 4 * 16 + 8 + 4 + (2 * 3 * 16 if upsampling == "nearest" else 0)
    np.testing.assert_allclose(apply(whole, images), apply(params, images), rtol=0, atol=1e-12)


def test_bad_settings():
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        ImageTransform(width=0)
    with pytest.raises(ValueError, match="upsampling must be nearest or transposed, got 'linear'"):
        ImageTransform(upsampling="linear")
    with pytest.raises(ValueError, match="at least 16 pixels on each side, got 15x40"):
        jax.eval_shape(TRANSFORM.apply, weights(TRANSFORM, "float32"), jnp.zeros((1, 15, 40, 3)))
