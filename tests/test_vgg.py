"""Feature networks against PyTorch: every tap, gradients by the image, and the convolution and poolings beneath them.

Networks meant to be like a publisher's get what the publisher says they take, made in the reference and not by the
network's own map of colours.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ganstyle_jax.features import image_layers, vgg, weights
from ganstyle_jax.features.vgg import FIRES, VGG, SqueezeNet
from ganstyle_jax.nn import layers

pytestmark = pytest.mark.usefixtures("quick_compile")

PLATFORMS = ("cpu", "xla")
TOLERANCE = 1e-4  # largest error over largest value: float32 sums in another order


def picture(height, width, batch=1, seed=0):
    """Smooth colours with noise, (b, h, w, 3) float32 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 16
    waves = np.sin(np.stack([x, y, x + y], -1) + rng.uniform(0, 6, (batch, 1, 1, 3)))
    return np.clip(0.7 * waves + 0.3 * rng.normal(size=waves.shape), -1, 1).astype(np.float32)


def random_params(network, seed=0):
    """He et al. 2015, as `network.init` without its compilation, and with biases that matter."""
    rng = np.random.default_rng(seed)

    def fill(x):
        size = (2 / np.prod(x.shape[:-1])) ** 0.5 if x.ndim == 4 else 0.2
        return jnp.asarray(size * rng.normal(size=x.shape), jnp.float32)

    params = jax.tree.map(fill, jax.eval_shape(network.init, jax.random.key(0)))
    return params | {"input": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}}


def assert_close(actual, expected, tolerance=TOLERANCE):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def taps_and_gradient(network, params, images, platform="auto", names=None):
    """All taps, and the gradient by the images of the sum of their squares, each over its own mean square."""
    network = dataclasses.replace(network, platform=platform)

    def loss(images, params):
        taps = network.apply(params, images, names or network.names)
        return sum(jnp.sum(x**2) / lax.stop_gradient(jnp.mean(x**2)) for x in taps.values()), taps

    gradient, taps = jax.jit(jax.grad(loss, has_aux=True))(images, params)
    return taps, gradient


def assert_parity(network, params, images, platform, leaf, expected):
    """Taps and gradient of PyTorch's, where `leaf` holds the images."""
    taps, gradient = taps_and_gradient(network, params, images, platform)
    assert taps.keys() == expected.keys()
    for tap, x in expected.items():
        assert_close(taps[tap], x.detach().numpy().transpose(0, 2, 3, 1))
    sum((x**2).sum() / (x**2).mean().detach() for x in expected.values()).backward()
    assert_close(gradient, leaf.grad.numpy())


# ---------------------------------------------------------------------------------------------------------------------
# References


def to_torch(torch, images):
    """(b, h, w, 3) in [-1, 1] to (b, 3, h, w) in [0, 1], and the leaf whose gradient is the images'."""
    leaf = torch.tensor(images, requires_grad=True)
    return leaf, (leaf.permute(0, 3, 1, 2) + 1) / 2


def caffe_input(torch, unit):
    return 255 * unit.flip(1) - torch.tensor([103.939, 116.779, 123.68])[:, None, None]


def torchvision_input(torch, unit):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (unit - mean[:, None, None]) / std[:, None, None]


def torch_vgg(torch, x, blocks, padding="zeros", first_padding=None, pooling="max", ceil_mode=False):
    """All taps; blocks: [[(kernel (out, in, 3, 3), bias), ...], ...]."""
    functional, taps = torch.nn.functional, {}
    for i, block in enumerate(blocks, start=1):
        if i > 1:
            down = functional.max_pool2d if pooling == "max" else lambda *a, **k: 2 * functional.avg_pool2d(*a, **k)
            x = taps[f"pool{i - 1}"] = down(x, 2, ceil_mode=ceil_mode)
        for j, (kernel, bias) in enumerate(block, start=1):
            mode = first_padding if first_padding and not taps else padding
            x = functional.pad(x, (1, 1, 1, 1), mode={"zeros": "constant"}.get(mode, mode))
            x = taps[f"conv{i}_{j}"] = functional.conv2d(x, kernel, bias)
            x = taps[f"relu{i}_{j}"] = functional.relu(x)
    return taps


def torch_squeezenet(torch, x, convolutions, ceil_mode):
    """All taps; convolutions: {"conv1": (kernel, bias), "fire2/squeeze1x1": ..., "fire2/expand1x1": ..., ...}."""
    functional, taps = torch.nn.functional, {}
    x = taps["conv1"] = functional.conv2d(x, *convolutions["conv1"], stride=2)
    x = taps["relu1"] = functional.relu(x)
    for i in range(1, 10):
        if i > 1:
            squeezed = functional.relu(functional.conv2d(x, *convolutions[f"fire{i}/squeeze1x1"]))
            left = functional.conv2d(squeezed, *convolutions[f"fire{i}/expand1x1"])
            right = functional.conv2d(squeezed, *convolutions[f"fire{i}/expand3x3"], padding=1)
            x = taps[f"fire{i}"] = functional.relu(torch.cat([left, right], 1))
        if i in (1, 3, 5):
            x = taps[f"pool{i}"] = functional.max_pool2d(x, 3, 2, ceil_mode=ceil_mode)
    return taps


def random_state(torch, shapes, seed=0):
    """A state dict of convolutions, He et al. 2015, with biases that matter; shapes: (out, in, size) by name."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, (features, before, size) in shapes.items():
        kernel = torch.randn(features, before, size, size, generator=generator)
        state[f"{name}.weight"] = kernel * (2 / (before * size**2)) ** 0.5
        state[f"{name}.bias"] = 0.2 * torch.randn(features, generator=generator)
    return state


def torchvision_shapes(channels):
    """torchvision's names: a convolution and its ReLU count one each, a pooling one."""
    shapes, number, before = {}, 0, 3
    for block in channels:
        for features in block:
            shapes[f"features.{number}"] = features, before, 3
            number, before = number + 2, features
        number += 1
    return shapes


def in_blocks(state, names, channels):
    convolutions = iter([(state[f"{name}.weight"], state[f"{name}.bias"]) for name in names])
    return [list(itertools.islice(convolutions, len(block))) for block in channels]


# ---------------------------------------------------------------------------------------------------------------------
# Networks as their publishers give them out


@pytest.mark.parametrize("platform", PLATFORMS)
def test_vgg19_of_caffe(data_dir, torch, platform):
    path = data_dir / "weights/vgg19_block1_to_block3.npz"
    network, params = weights.read(path)
    with np.load(path) as file:
        state = {name: torch.tensor(array) for name, array in file.items()}
    blocks = [
        [
            (state[f"block{i}_conv{j}_kernel"].permute(3, 2, 0, 1), state[f"block{i}_conv{j}_bias"])
            for j in range(1, n + 1)
        ]
        for i, n in ((1, 2), (2, 2), (3, 4))
    ]
    images = picture(45, 38)
    leaf, unit = to_torch(torch, images)
    expected = torch_vgg(torch, caffe_input(torch, unit), blocks)
    assert_parity(network, params, images, platform, leaf, expected)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_distilled_vgg19(data_dir, torch, platform):
    path = data_dir / "weights/vgg19_16x_distilled/5SE.pth"
    network, params = weights.read(path)
    assert network == weights.PUBLISHED["vgg19-distilled"].network
    state = torch.load(path, map_location="cpu", weights_only=True)["model"]
    names = [f"conv{i}{j}" for i, n in enumerate((2, 2, 4, 4, 1), start=1) for j in range(1, n + 1)]
    images = picture(37, 50)
    leaf, unit = to_torch(torch, images)
    x = torch.nn.functional.conv2d(unit, state["conv0.weight"], state["conv0.bias"])
    expected = torch_vgg(torch, x, in_blocks(state, names, network.channels), padding="reflect")
    assert_parity(network, params, images, platform, leaf, expected)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_normalised_vgg19(data_dir, torch, platform):
    path = data_dir / "weights/vgg19_normalised/vgg_r31.pth"
    network, params = weights.read(path)
    state = torch.load(path, weights_only=True)
    images = picture(29, 34)
    leaf, unit = to_torch(torch, images)
    x = torch.nn.functional.conv2d(unit, state["conv1.weight"], state["conv1.bias"])
    blocks = in_blocks(state, [f"conv{i}" for i in range(2, 7)], [2 * [0], 2 * [0], [0]])
    expected = torch_vgg(torch, x, blocks, padding="reflect")
    assert_parity(network, params, images, platform, leaf, expected)


def test_normalised_vgg19_of_adain(torch, tmp_path):
    """The layout of the encoder of AdaIN, which pools rounding up; narrower than the published one."""
    channels = ((4, 5), (6, 7), (8,) * 4, (9,) * 4, (9,) * 4)
    names = ["0", *map(str, (2, 5, 9, 12, 16, 19, 22, 25, 29, 32, 35, 38, 42, 45, 48, 51))]
    widths = [3, *itertools.chain(*channels)]
    shapes = {name: (w, b, 3) for name, w, b in zip(names, widths, [3, *widths], strict=False)}
    state = random_state(torch, shapes | {"0": (3, 3, 1)})
    torch.save(state, tmp_path / "vgg.pth")
    network, params = weights.read(tmp_path / "vgg.pth")
    assert network == VGG(channels, padding="reflect", ceil_mode=True)
    images = picture(37, 51)
    leaf, unit = to_torch(torch, images)
    x = torch.nn.functional.conv2d(unit, state["0.weight"], state["0.bias"])
    expected = torch_vgg(torch, x, in_blocks(state, names[1:], channels), padding="reflect", ceil_mode=True)
    assert_parity(network, params, images, "auto", leaf, expected)


@pytest.mark.parametrize(
    "network, is_zip, platform",
    [
        (vgg.VGG16, False, "xla"),
        pytest.param(vgg.VGG19, True, "cpu", marks=pytest.mark.slow),
        pytest.param(vgg.VGG16, True, "cpu", marks=pytest.mark.slow),
        pytest.param(vgg.VGG19, False, "xla", marks=pytest.mark.slow),
    ],
    ids=["vgg16-legacy-xla", "vgg19-zip-cpu", "vgg16-zip-cpu", "vgg19-legacy-xla"],
)
def test_whole_vgg_of_torchvision(torch, tmp_path, network, is_zip, platform):
    shapes = torchvision_shapes(network.channels)
    state = random_state(torch, shapes)
    classifier = {f"classifier.{i}.{part}": torch.ones(2, 2) for i in (0, 3, 6) for part in ("weight", "bias")}
    torch.save(state | classifier, tmp_path / "weights", _use_new_zipfile_serialization=is_zip)
    found, params = weights.read(tmp_path / "weights")
    (tmp_path / "weights").unlink()
    assert found == network
    images = picture(33, 42)
    leaf, unit = to_torch(torch, images)
    expected = torch_vgg(torch, torchvision_input(torch, unit), in_blocks(state, shapes, network.channels))
    if platform == "cpu":
        params = vgg.prepare(network, params)
        assert sum("winograd" in layer for layer in params.values()) == sum(map(len, network.channels[2:]))
    assert_parity(network, params, images, platform, leaf, expected)


@pytest.mark.parametrize("platform, side", [("cpu", (51, 64)), ("xla", (58, 49))])  # of which the pools leave a rest
def test_squeezenet_of_torchvision(torch, tmp_path, platform, side):
    shapes, before = {"features.0": (64, 3, 3)}, 64
    for number, (squeezed, expanded) in zip((3, 4, 6, 7, 9, 10, 11, 12), FIRES.values(), strict=True):
        shapes[f"features.{number}.squeeze"] = squeezed, before, 1
        shapes[f"features.{number}.expand1x1"] = expanded, squeezed, 1
        shapes[f"features.{number}.expand3x3"] = expanded, squeezed, 3
        before = 2 * expanded
    state = random_state(torch, shapes | {"classifier.1": (10, 512, 1)})
    torch.save(state, tmp_path / "squeezenet.pth")
    network, params = weights.read(tmp_path / "squeezenet.pth")
    assert network == SqueezeNet()
    convolutions = {"conv1": (state["features.0.weight"], state["features.0.bias"])}
    for number, fire in zip((3, 4, 6, 7, 9, 10, 11, 12), FIRES, strict=True):
        for part, name in (("squeeze", "squeeze1x1"), ("expand1x1", "expand1x1"), ("expand3x3", "expand3x3")):
            layer = f"features.{number}.{part}"
            convolutions[f"{fire}/{name}"] = state[f"{layer}.weight"], state[f"{layer}.bias"]
    images = picture(*side)
    leaf, unit = to_torch(torch, images)
    expected = torch_squeezenet(torch, torchvision_input(torch, unit), convolutions, ceil_mode=True)
    assert_parity(network, params, images, platform, leaf, expected)


@pytest.mark.parametrize("platform, side", [("cpu", (51, 64)), ("xla", (58, 49))])
def test_squeezenet_of_keras(data_dir, torch, platform, side):
    import h5py

    path = data_dir / "weights/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"
    network, params = weights.read(path)
    assert network == SqueezeNet(ceil_mode=False)
    convolutions = {}
    with h5py.File(path) as file:
        for layer in file.attrs["layer_names"].astype(str):
            group = file[layer]
            if len(names := group.attrs["weight_names"].astype(str)):
                kernel, bias = (torch.tensor(group[name][()]) for name in names)
                convolutions[layer] = kernel.permute(3, 2, 0, 1), bias
    images = picture(*side)
    leaf, unit = to_torch(torch, images)
    expected = torch_squeezenet(torch, caffe_input(torch, unit), convolutions, ceil_mode=False)
    assert_parity(network, params, images, platform, leaf, expected)


# ---------------------------------------------------------------------------------------------------------------------
# Options

SMALL = VGG(((4, 5), (6,), (7, 8)))


@pytest.mark.parametrize(
    "options, side",
    [
        ({}, (11, 9)),
        ({"padding": "reflect"}, (8, 13)),
        ({"padding": "replicate", "pooling": "average"}, (9, 12)),
        ({"first_padding": "reflect", "pooling": "average", "ceil_mode": True}, (11, 9)),
        ({"padding": "reflect", "first_padding": "zeros", "ceil_mode": True}, (9, 10)),
    ],
    ids=str,
)
def test_padding_and_pooling(torch, options, side):
    network = dataclasses.replace(SMALL, **options)
    params = random_params(network)
    blocks = [
        [[torch.tensor(np.asarray(params[f"conv{i}_{j}"][part])) for part in ("kernel", "bias")] for j in range(1, n)]
        for i, n in ((1, 3), (2, 2), (3, 3))
    ]
    blocks = [[(kernel.permute(3, 2, 0, 1), bias) for kernel, bias in block] for block in blocks]
    images = picture(*side, batch=2)
    leaf, unit = to_torch(torch, images)
    expected = torch_vgg(torch, 2 * unit - 1, blocks, **options)
    assert_parity(network, params, images, "auto", leaf, expected)


NETWORKS = [SMALL, dataclasses.replace(SMALL, padding="reflect", pooling="average"), SqueezeNet()]
NETWORK_IDS = ["vgg", "vgg-average", "squeezenet"]


@pytest.mark.parametrize("network", NETWORKS, ids=NETWORK_IDS)
def test_rematerialisation_and_bfloat16(network):
    """The one changes nothing, the other no more than 8 bits do over some layers."""
    params, images, names = random_params(network), picture(20, 23), network.names[:5]
    taps, gradient = taps_and_gradient(network, params, images, names=names)
    again = taps_and_gradient(dataclasses.replace(network, remat=True), params, images, names=names)
    half = taps_and_gradient(dataclasses.replace(network, dtype="bfloat16"), params, images, names=names)
    assert_close(again[1], gradient, 1e-6)
    assert half[1].dtype == jnp.float32 and jnp.isfinite(half[1]).all()
    for tap in names:
        assert_close(again[0][tap], taps[tap], 1e-6)
        assert half[0][tap].dtype == jnp.bfloat16
        assert_close(half[0][tap].astype(jnp.float32), taps[tap], 0.03)


def test_colours_are_mapped_in_full_precision():
    """In bfloat16 too: 255 steps of a colour remain 255 values less a mean, to the last of 8 bits."""
    images = jnp.linspace(-1, 1, 256)[:, None] * jnp.ones(3)
    params = {"kernel": 127.5 * jnp.eye(3), "bias": jnp.full(3, 127.5 - 120)}
    mapped = image_layers.map_colours(images, params, "bfloat16")
    np.testing.assert_allclose(mapped[:, 0].astype(jnp.float32), jnp.arange(256) - 120, atol=1e-3)


@pytest.mark.parametrize("network", [*NETWORKS, SqueezeNet(ceil_mode=False)], ids=[*NETWORK_IDS, "squeezenet-keras"])
def test_smallest_side(network):
    params = jax.eval_shape(network.init, jax.random.key(0))

    def values(tap, side):
        image = jax.ShapeDtypeStruct((1, side, 70, 3), jnp.float32)
        return jax.eval_shape(functools.partial(network.apply, taps=(tap,)), params, image)[tap].size

    for tap in network.names:
        side = network.smallest_side([tap])
        assert values(tap, side) > 0
        if network.padding == "zeros" and network.pooling == "max" and side > 1:
            with pytest.raises((ValueError, TypeError, AssertionError)):
                assert values(tap, side - 1) > 0
    assert network.smallest_side(network.names) == max(network.smallest_side([tap]) for tap in network.names)
    assert network.smallest_side([]) == 1


def test_smallest_side_of_reflected_networks():
    assert dataclasses.replace(SMALL, padding="reflect").smallest_side(["relu3_1"]) == 8
    assert dataclasses.replace(SMALL, padding="reflect", ceil_mode=True).smallest_side(["relu3_1"]) == 5
    assert dataclasses.replace(SMALL, first_padding="reflect").smallest_side(["relu1_1"]) == 2
    assert dataclasses.replace(SMALL, ceil_mode=True).smallest_side(["relu3_1", "pool2"]) == 1
    assert SqueezeNet(padding="reflect").smallest_side(["fire3"]) == 9


def test_init():
    params = jax.jit(SMALL.init)(jax.random.key(0))
    assert params["conv3_2"]["kernel"].shape == (3, 3, 7, 8) and not params["conv3_2"]["bias"].any()
    wide = jax.jit(VGG(((64, 64),)).init)(jax.random.key(0))["conv1_2"]["kernel"]
    assert abs(float(wide.std()) - (2 / (9 * 64)) ** 0.5) < 2e-3


def test_names_and_unknown_taps():
    assert SMALL.names[:6] == ["conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1", "conv2_1"]
    assert SMALL.names[-1] == "relu3_2"
    assert SqueezeNet().names[:4] == ["conv1", "relu1", "pool1", "fire2"] and SqueezeNet().names[-1] == "fire9"
    for network in (SMALL, SqueezeNet()):
        with pytest.raises(ValueError, match=f"no layer 'relu9_9'; it has conv1.*{network.names[-1]}"):
            network.apply({}, jnp.zeros((1, 8, 8, 3)), ("relu9_9",))


@pytest.mark.parametrize("network", [SMALL, SqueezeNet()], ids=["vgg", "squeezenet"])
def test_no_further_than_the_last_tap(network):
    """Weights beyond it are not needed."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    first = {name: params[name] for name in ("input", "conv1", "conv1_1", "conv1_2") if name in params}
    taps = functools.partial(network.apply, taps=("pool1", network.names[0]))
    found = jax.eval_shape(taps, first, jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32))
    assert found.keys() == {"pool1", network.names[0]}


# ---------------------------------------------------------------------------------------------------------------------
# Images that end before their arrays, and arrays that end before their images

TINY = VGG(((4, 4), (6,), (8,)))
PADDINGS = ("zeros", "reflect", "replicate")


def cropped(network, taps, extent):
    """Each tap's values of an image of that extent, (b, h, w, c)."""

    def size(side, tap):
        return -(-side // network.stride(tap)) if network.ceil_mode else side // network.stride(tap)

    return {tap: x[:, : size(extent[0], tap), : size(extent[1], tap)] for tap, x in taps.items()}


@functools.partial(jax.jit, static_argnames=("network", "crop", "static"))
def padded_taps_and_gradient(network, params, images, crop, static=None, traced=(None, None)):
    """All taps, whole, and the gradient by the images of the cropped ones' squares.

    The extent is `static` and, where that is None, `traced`.
    """
    extent = static and tuple(t if s is None else s for s, t in zip(static, traced, strict=True))

    def loss(images):
        taps = network.apply(params, images, network.names, extent)
        return sum(jnp.sum(x**2) for x in cropped(network, taps, crop).values()), taps

    gradient, taps = jax.grad(loss, has_aux=True)(images)
    return taps, gradient


@functools.partial(jax.jit, static_argnames=("network", "static"))
def all_taps(network, params, images, static=None, traced=(None, None)):
    """All taps, whole, of an image of the extent `static` and, where that is None, `traced`."""
    extent = static and tuple(t if s is None else s for s, t in zip(static, traced, strict=True))
    return network.apply(params, images, network.names, extent)


@st.composite
def networks(draw):
    return dataclasses.replace(
        TINY,
        padding=draw(st.sampled_from(PADDINGS)),
        first_padding=draw(st.sampled_from((None, *PADDINGS))),
        pooling=draw(st.sampled_from(("max", "average"))),
        ceil_mode=draw(st.booleans()),
        remat=draw(st.booleans()),
    )


@pytest.mark.slow
@settings(max_examples=8)
@given(networks(), *[st.tuples(st.integers(0, 7), st.integers(0, 6), st.booleans())] * 2, st.integers(0, 99))
def test_image_within_a_larger_array(network, rows, columns, seed):
    """Rows and columns: how many more than the network needs, how many of padding, whether traced."""
    least, sides = network.smallest_side(network.names), (rows, columns)
    extent = tuple(least + further for further, _, _ in sides)
    params, images = random_params(network, seed), picture(*extent, batch=2, seed=seed)
    expected, expected_gradient = padded_taps_and_gradient(network, params, images, extent)

    beyond = [(0, 0), *[(0, padding) for _, padding, _ in sides], (0, 0)]
    inside = np.pad(np.ones_like(images, bool), beyond)
    images = np.where(inside, np.pad(images, beyond), np.float32(np.nan))  # which is in all that depends on it
    static = tuple(None if is_traced else side for side, (_, _, is_traced) in zip(extent, sides, strict=True))
    taps, gradient = padded_taps_and_gradient(network, params, images, extent, static, extent)
    for tap, x in cropped(network, taps, extent).items():
        assert_close(x, expected[tap], 1e-5)
        assert jnp.isfinite(taps[tap]).all()
    assert_close(gradient[inside], expected_gradient.ravel(), 1e-5)
    assert not gradient[~inside].any()


@pytest.mark.parametrize("is_traced", [False, True], ids=["static", "traced"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_array_within_a_larger_image(padding, is_traced):
    """Where the array ends first it is padded as ever; the image's own features begin `reach` before."""
    network = dataclasses.replace(TINY, padding=padding, ceil_mode=True)
    params, images = random_params(network), picture(41, 21)
    whole, alone = all_taps(network, params, images), all_taps(network, params, images[:, :27])
    part = np.pad(images[:, :27], [(0, 0), (0, 0), (0, 3), (0, 0)])
    static = (None, None) if is_traced else (41, 21)
    taps = all_taps(network, params, part, static, (41, 21))
    for tap, x in cropped(network, taps, (27, 21)).items():
        assert_close(x, alone[tap], 1e-5)
        unaffected = (27 - network.reach([tap])) // network.stride(tap)
        assert unaffected > 3
        assert_close(x[:, :unaffected], whole[tap][:, :unaffected], 1e-5)


@pytest.mark.parametrize("padding", PADDINGS)
def test_extent_of_the_array_costs_nothing(padding):
    """On each axis for itself, and in each block: 13 and 12 rows are 6 after the first."""
    network = dataclasses.replace(TINY, padding=padding)
    params, image = jax.eval_shape(network.init, jax.random.key(0)), jax.ShapeDtypeStruct((1, 13, 16, 3), jnp.float32)

    def masks(extent):
        apply = functools.partial(network.apply, taps=network.names, extent=extent)
        return str(jax.make_jaxpr(apply)(params, image)).count("= iota[")

    assert masks(None) == masks((13, 16)) == masks((14, 17)) == 0
    assert masks((12, 16)) == masks((13, 15)) // 2 == 2  # convolutions, of the first block and of all


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": "reflect", "remat": True}, {"padding": "replicate", "pooling": "average", "ceil_mode": True}],
    ids=str,
)
def test_devices_that_share_the_rows(options):
    """They give what one gives and tell their neighbours a few rows, where these divide evenly throughout."""
    network = dataclasses.replace(TINY, platform="xla", **options)
    params, extent, images = random_params(network), (57, 18), picture(64, 20)
    expected = padded_taps_and_gradient(network, params, images, extent, (None, None), extent)

    mesh = Mesh(np.array(jax.devices()), ("rows",))
    everywhere, by_rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, "rows"))
    operands = jax.device_put(params, everywhere), jax.device_put(images, by_rows), jax.device_put(extent, everywhere)

    def shared(params, images, extent):
        return padded_taps_and_gradient(network, params, images, (57, 18), (None, None), extent)

    program = jax.jit(shared).lower(*operands).compile()
    found = program(*operands)
    close(found, expected, 1e-5)
    assert {x.sharding.spec for x in jax.tree.leaves(found)} == {by_rows.spec}
    text = program.as_text()
    assert "collective-permute" in text
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all", "reduce-scatter"))


@pytest.mark.parametrize("padding", ["zeros", "reflect", pytest.param("replicate", marks=pytest.mark.slow)])
def test_prepared_weights_give_the_same_features(x64, padding):
    network = VGG(((4,), (128, 256), (128,)), padding, "reflect", dtype="float64", platform="cpu")
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), random_params(network))
    prepared = vgg.prepare(network, params)
    assert [name for name, layer in prepared.items() if "winograd" in layer] == ["conv2_2", "conv3_1"]
    assert vgg.prepare(network, prepared) == prepared  # and no more
    image = jnp.asarray(picture(13, 18), jnp.float64)

    def loss(image, params, extent):
        taps = network.apply(params, image, ("relu2_2", "conv3_1"), extent)
        return sum(jnp.sum(jnp.sin(x)) for x in taps.values())

    evaluate = jax.jit(jax.value_and_grad(loss), static_argnums=2)
    for extent in (None, (13, 16)):
        close(evaluate(image, prepared, extent), evaluate(image, params, extent), 1e-10)


def test_prepared_only_where_it_helps():
    wide = VGG(((128, 256),))
    params = random_params(wide)
    for options in ({"platform": "xla"}, {"dtype": "bfloat16"}):
        assert vgg.prepare(dataclasses.replace(wide, **options), params) is params
    squeezenet = SqueezeNet()
    params = random_params(squeezenet)
    assert vgg.prepare(squeezenet, params) == params


def test_stride_and_reach():
    """What one value depends on, by experiment: with weights, biases and colours above 0 no ReLU cuts anything off."""
    network, place = dataclasses.replace(TINY, pooling="average"), 5
    params, images = jax.tree.map(lambda x: jnp.abs(x) + 0.01, random_params(network)), abs(picture(48, 48)) + 0.01

    def apply(images):
        return network.apply(params, images, network.names)

    backward = jax.jit(lambda images, cotangents: jax.vjp(apply, images)[1](cotangents)[0])
    zeros = {tap: np.zeros(x.shape, np.float32) for tap, x in jax.eval_shape(apply, images).items()}
    for tap, x in zeros.items():
        one = x.copy()
        one[:, place, place] = 1
        gradient = np.asarray(backward(images, zeros | {tap: one}))
        stride, reach = network.stride(tap), network.reach([tap])
        expected = np.zeros((48, 48), bool)
        expected[(side := slice(place * stride - reach, (place + 1) * stride + reach)), side] = True
        np.testing.assert_array_equal((gradient != 0).any((0, 3)), expected)
    assert [network.stride(tap) for tap in ("conv1_1", "pool1", "relu2_1", "pool2", "relu3_1")] == [1, 2, 2, 4, 4]
    assert vgg.VGG19.reach(["relu5_1", "relu1_1"]) == 70 and vgg.VGG19.reach([]) == 0


def test_squeezenet_knows_no_extent():
    with pytest.raises(ValueError, match=r"without padding, that is extent=None, and not \(8, 8\)"):
        SqueezeNet().apply({}, jnp.zeros((1, 9, 9, 3)), ("conv1",), (8, 8))


# ---------------------------------------------------------------------------------------------------------------------
# The convolution and the poolings


def draw(seed, *shape):
    """N(0, 1) in the current default precision."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.zeros(()).dtype)


def close(actual, expected, tolerance):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(a, e, tolerance)


def two_derivatives(operation, *operands):
    """Value, the gradient of a curved loss, and the gradient of the squared norm of that gradient."""

    by_all = range(len(operands))

    def loss(*operands):
        y = operation(*operands)
        return jnp.sum(jnp.tanh(y) * draw(9, *y.shape)), y

    def norm(*operands):
        gradients, y = jax.grad(loss, by_all, has_aux=True)(*operands)
        return sum(jnp.sum(g**2) for g in gradients), (y, gradients)

    second, (y, first) = jax.jit(jax.grad(norm, by_all, has_aux=True))(*operands)
    return y, first, second


def torch_two_derivatives(torch, operation, *operands):
    """The same; `operation` takes and gives channels last."""
    operands = [torch.tensor(np.asarray(x), requires_grad=True) for x in operands]
    y = operation(*operands)
    loss = (torch.tanh(y) * torch.tensor(np.asarray(draw(9, *y.shape)))).sum()
    first = torch.autograd.grad(loss, operands, create_graph=True)
    second = torch.autograd.grad(sum((g**2).sum() for g in first), operands)
    return tuple(jax.tree.map(lambda t: t.detach().numpy(), tree) for tree in (y, first, second))


CONVOLUTIONS = [  # b, h, w, c, d, size
    *((2, 5, 4, 3, 2, 3), (1, 1, 2, 17, 3, 3), (2, 6, 7, 5, 3, 1), (1, 7, 9, 2, 4, 5)),
    *((2, 5, 6, 3, 8, 3), (1, 3, 7, 4, 5, 5)),  # of few channels to many
]


@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_convolution_to_the_second_derivative(x64, torch, shape):
    b, h, w, c, d, size = shape
    x, k = draw(0, b, h, w, c), draw(1, size, size, c, d)

    def convolve(x, k):
        nchw = x.permute(0, 3, 1, 2)
        return torch.nn.functional.conv2d(nchw, k.permute(3, 2, 0, 1), padding=size // 2).permute(0, 2, 3, 1)

    expected = torch_two_derivatives(torch, convolve, x, k)
    for platform in PLATFORMS:
        close(two_derivatives(functools.partial(layers.conv, platform=platform), x, k), expected, 1e-12)
    if size == 3:
        winograd = lambda x, k: layers.winograd(x, layers.winograd_kernel(k))  # noqa: E731
        close(two_derivatives(winograd, x, k), expected, 1e-12)


def test_convolution_inside_loops_and_vmap(x64):
    x, k = draw(0, 2, 6, 5, 3), draw(1, 3, 3, 3, 3) / 5

    def loss(x, k, platform):
        loop = jax.lax.scan(lambda x, _: (jnp.tanh(layers.conv(x, k, platform)), None), x, None, length=3)[0]
        return jnp.sum(loop**2)

    gradients = [jax.jit(jax.grad(functools.partial(loss, platform=p), (0, 1)))(x, k) for p in PLATFORMS]
    close(gradients[0], gradients[1], 1e-12)
    many = jax.vmap(jax.grad(functools.partial(loss, platform="cpu")), (0, None))(x[:, None], k)
    close(many[:, 0], gradients[0][0], 1e-12)


def poolings(torch):
    functional = torch.nn.functional

    def wrap(pool):
        return lambda x: pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    return {
        "max": (layers.max_pool, wrap(lambda x: functional.max_pool2d(x, 2))),
        "max, ceil": (
            lambda x: image_layers.pool(x, "max", ceil_mode=True),
            wrap(lambda x: functional.max_pool2d(x, 2, ceil_mode=True)),
        ),
        "average": (lambda x: image_layers.pool(x, "average"), wrap(lambda x: 2 * functional.avg_pool2d(x, 2))),
        "3x3 max": (
            lambda x: image_layers.pool_3x3(x, "max", ceil_mode=False),
            wrap(lambda x: functional.max_pool2d(x, 3, 2)),
        ),
        "3x3 max, ceil": (
            lambda x: image_layers.pool_3x3(x, "max", ceil_mode=True),
            wrap(lambda x: functional.max_pool2d(x, 3, 2, ceil_mode=True)),
        ),
        "3x3 average": (
            lambda x: image_layers.pool_3x3(x, "average", ceil_mode=False),
            wrap(lambda x: 2 * functional.avg_pool2d(x, 3, 2)),
        ),
    }


@pytest.mark.parametrize("name", ["max", "max, ceil", "average", "3x3 max", "3x3 max, ceil", "3x3 average"])
def test_pooling_to_the_second_derivative(x64, torch, name):
    """Of equal values the first takes the gradient, as in PyTorch; after a ReLU whole windows are equal."""
    ours, theirs = poolings(torch)[name]
    for side in [(6, 5), (7, 8)]:
        distinct = draw(0, 1, *side, 3)
        x = jnp.concatenate([distinct, jnp.round(jax.nn.relu(distinct))])
        close(two_derivatives(ours, x), torch_two_derivatives(torch, theirs, x), 1e-12)


def test_max_pooling_of_equal_values(x64):
    """The first place of each window takes the gradient; of distinct values, those that the stock pooling chooses."""
    for pool, size in (
        (layers.max_pool, 2),
        (functools.partial(image_layers.pool_3x3, pooling="max", ceil_mode=False), 3),
    ):
        gradient = jax.jit(jax.grad(lambda x, pool=pool: pool(x).sum()))(jnp.zeros((1, 5, 5, 1)))[0, :, :, 0]
        np.testing.assert_array_equal(gradient, [[1, 0, 1, 0, 0], [0] * 5, [1, 0, 1, 0, 0], [0] * 5, [0] * 5])

        def stock(x, size=size):
            return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, 2, 2, 1), "VALID")

        x = draw(0, 2, 9, 12, 4)
        values = [jax.jit(jax.value_and_grad(lambda x, f=f: jnp.sum(jnp.sin(f(x)))))(x) for f in (pool, stock)]
        close(*values, 1e-14)
