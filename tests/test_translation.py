"""The networks of CycleGAN and pix2pix against PyTorch's, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganstyle_jax.nn import layers, translation
from ganstyle_jax.nn.translation import PatchDiscriminator, ResNetGenerator, UNetGenerator

pytestmark = pytest.mark.usefixtures("quick_compile")


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def weights(network, dtype="float64"):
    """Random in all parts, and not small, so that nothing is without effect."""
    leaves, tree = jax.tree.flatten(network.init(jax.random.key(1), dtype))
    return jax.tree.unflatten(tree, [(x + 0.1 * draw(i, *x.shape)).astype(dtype) for i, x in enumerate(leaves)])


def assert_close(actual, expected, tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        error = np.linalg.norm(np.asarray(a) - e)
        assert error <= tolerance * np.linalg.norm(e), f"{jax.tree_util.keystr(path)}: {error}"


def in_torch(network):
    import torch_cyclegan as reference

    if isinstance(network, ResNetGenerator):
        return reference.resnet(network.width, network.blocks, network.upsampling, network.padding, network.affine)
    if isinstance(network, UNetGenerator):
        return reference.unet(network.width, network.depth, network.affine)
    return reference.discriminator(network.width, network.halvings, network.inputs, network.affine)


NETWORKS = [
    pytest.param(ResNetGenerator(4, 2), (16, 20), id="resnet"),
    pytest.param(ResNetGenerator(4, 1, affine=True), (20, 16), id="resnet-affine"),
    pytest.param(ResNetGenerator(4, 1, "nearest", affine=True), (16, 20), id="resnet-nearest"),
    pytest.param(ResNetGenerator(2, 2, "nearest", "zero", affine=True), (16, 16), id="resnet-zero"),
    pytest.param(UNetGenerator(2, 5), (32, 64), id="unet"),
    pytest.param(UNetGenerator(2, 4, affine=True), (16, 16), id="unet-affine"),
    pytest.param(PatchDiscriminator(4), (32, 40), id="patches"),
    pytest.param(PatchDiscriminator(4, 2, affine=True, inputs=6), (16, 24), id="patches-of-pairs"),
]


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("network, size", NETWORKS)
def test_networks_and_their_gradients_are_pytorchs(torch, x64, network, size, platform):
    """By every weight and by the picture, as they are written for CPUs and as XLA makes them of plain convolutions."""
    import torch_cyclegan as reference

    params, images = weights(network), np.tanh(draw(0, 2, *size, network.inputs))
    net = reference.load(in_torch(network), params)
    x = reference.nchw(images).requires_grad_()
    y = net(x)
    weight = draw(1, *reference.nhwc(y).shape)
    (y * reference.nchw(weight)).sum().backward()

    def loss(params, images):
        made = network.apply(params, images)
        return jnp.sum(weight * made), made

    with layers.compiling_for(platform):
        (_, made), found = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, jnp.asarray(images))
    np.testing.assert_allclose(made, reference.nhwc(y), rtol=0, atol=1e-10)
    assert_close(found[0], reference.tree(net, params, lambda parameter: parameter.grad), 1e-10)
    assert_close(found[1], reference.nhwc(x.grad), 1e-10)


def test_the_published_sizes():
    """The common implementation's: 11.378 M, 54.410 M and 2.765 M with biases that have no effect; 30x30 patches."""
    generator, unet, judge = ResNetGenerator(), UNetGenerator(), PatchDiscriminator()
    count = lambda network: sum(np.prod(shape) for shape in network.shapes.values())  # noqa: E731
    biases = lambda network: sum(shape[3] for shape in network.shapes.values())  # noqa: E731
    assert [count(network) + biases(network) for network in (generator, unet, judge)] == [11378179, 54409603, 2764737]
    key = jax.random.key(0)
    for network, side in ((generator, 256), (unet, 256), (judge, 30)):
        made = jax.eval_shape(
            lambda key, network=network: network.apply(network.init(key), jnp.zeros((1, 256, 256, 3))), key
        )
        assert made.shape[1:3] == (side, side)
    assert unet.dropped == ("up8", "up7", "up6") and list(unet.shapes)[7:9] == ["down8", "up8"]


def test_a_patch_is_70_pixels_wide():
    judge = PatchDiscriminator(2)
    params = jax.tree.map(jnp.ones_like, judge.init(jax.random.key(0)))

    def linear(images):
        """What one logit sees, without normalisation, through which it sees everything."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(translation, "_normal", lambda x, weights: x)
            return judge.apply(params, images)[0, 8, 8, 0]

    seen = np.asarray(jax.jit(jax.grad(linear))(jnp.zeros((1, 152, 152, 3))))[0, :, :, 0] != 0
    assert (seen.any(1).sum(), seen.any(0).sum()) == (70, 70)


@pytest.mark.parametrize("network", [ResNetGenerator(2, 1), UNetGenerator(2, 4)])
def test_any_size_is_reflected_and_cropped(network):
    params, images = weights(network, "float32"), np.tanh(draw(0, 1, 19, 26, 3)).astype(np.float32)
    made = jax.jit(network.apply)(params, images)
    assert made.shape == images.shape and made.dtype == np.float32 and np.abs(made).max() <= 1
    whole = np.pad(images, ((0, 0), (0, -19 % network.multiple), (0, -26 % network.multiple), (0, 0)), mode="reflect")
    np.testing.assert_allclose(made, jax.jit(network.apply)(params, whole)[:, :19, :26], atol=1e-6)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    "upsampling, padding", [("transposed", "reflect"), ("nearest", "reflect"), ("nearest", "zero")]
)
def test_what_is_not_made_has_no_effect(x64, upsampling, padding, affine):
    network = ResNetGenerator(2, 2, upsampling, padding, affine=affine)
    params, images = weights(network), np.tanh(draw(0, 1, 16, 16, 3))
    shapes = network.shapes

    def whole(params, above=""):
        if "kernel" not in params:
            return {name: whole(part, f"{above}{name}/") for name, part in params.items()}
        names = ("bias", "shift") if "scale" in params else ("bias",)
        return {name: draw(3, shapes[above[:-1]][3]) for name in names} | params

    added = len(jax.tree.leaves(whole(params))) - len(jax.tree.leaves(params))
    shifts = {("nearest", "reflect"): 2, ("nearest", "zero"): 1}.get((upsampling, padding), 0) if affine else 0
    assert added == 9 + shifts
    apply = jax.jit(network.apply)
    np.testing.assert_allclose(apply(whole(params), images), apply(params, images), rtol=0, atol=1e-12)


def test_bad_settings():
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        ResNetGenerator(width=0)
    with pytest.raises(ValueError, match="padding must be reflect or zero, got 'replicate'"):
        ResNetGenerator(padding="replicate")
    with pytest.raises(ValueError, match="blocks must not be negative, got -1"):
        ResNetGenerator(blocks=-1)
    with pytest.raises(ValueError, match="depth must be at least 2, got 1"):
        UNetGenerator(depth=1)
    network = ResNetGenerator(2, 1)
    with pytest.raises(ValueError, match="at least 16 pixels on each side, got 15x40"):
        jax.eval_shape(network.apply, weights(network, "float32"), jnp.zeros((1, 15, 40, 3)))
