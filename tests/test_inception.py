"""InceptionV3 of FID against PyTorch: every block's features, through the published layout of its weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_vgg

from ganstyle_jax.features import inception, torch_files, weights
from ganstyle_jax.features.inception import InceptionV3
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style import gatys
from ganstyle_jax.stylize import program as stylize

pytestmark = pytest.mark.usefixtures("quick_compile")

TAPS = {"pool1": 64, "pool2": 192, "mixed6e": 768, "pool3": 2048, "logits": 1008}
PARTS = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")


# ---------------------------------------------------------------------------------------------------------------------
# The reference


def torch_blocks():
    """What each convolution of the published file takes and gives, (name, in, out, kernel, stride, padding).

    Written down a second time, from the layout of torchvision's `inception_v3`.
    """
    found = [
        ("Conv2d_1a_3x3", 3, 32, (3, 3), 2, (0, 0)),
        ("Conv2d_2a_3x3", 32, 32, (3, 3), 1, (0, 0)),
        ("Conv2d_2b_3x3", 32, 64, (3, 3), 1, (1, 1)),
        ("Conv2d_3b_1x1", 64, 80, (1, 1), 1, (0, 0)),
        ("Conv2d_4a_3x3", 80, 192, (3, 3), 1, (0, 0)),
    ]

    def add(block, *branches):
        found.extend((f"{block}.{name}", *rest) for name, *rest in branches)

    same = {
        (1, 1): (0, 0),
        (3, 3): (1, 1),
        (5, 5): (2, 2),
        (1, 7): (0, 3),
        (7, 1): (3, 0),
        (1, 3): (0, 1),
        (3, 1): (1, 0),
    }

    def conv(name, before, after, *size):
        return name, before, after, size, 1, same[size]

    def down(name, before, after):
        return name, before, after, (3, 3), 2, (0, 0)

    for letter, before, pooled in (("b", 192, 32), ("c", 256, 64), ("d", 288, 64)):
        add(
            f"Mixed_5{letter}",
            conv("branch1x1", before, 64, 1, 1),
            *(conv("branch5x5_1", before, 48, 1, 1), conv("branch5x5_2", 48, 64, 5, 5)),
            *(conv("branch3x3dbl_1", before, 64, 1, 1), conv("branch3x3dbl_2", 64, 96, 3, 3)),
            conv("branch3x3dbl_3", 96, 96, 3, 3),
            conv("branch_pool", before, pooled, 1, 1),
        )
    add(
        "Mixed_6a",
        down("branch3x3", 288, 384),
        *(conv("branch3x3dbl_1", 288, 64, 1, 1), conv("branch3x3dbl_2", 64, 96, 3, 3)),
        down("branch3x3dbl_3", 96, 96),
    )
    for letter, c in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
        add(
            f"Mixed_6{letter}",
            conv("branch1x1", 768, 192, 1, 1),
            *(conv("branch7x7_1", 768, c, 1, 1), conv("branch7x7_2", c, c, 1, 7), conv("branch7x7_3", c, 192, 7, 1)),
            *(conv("branch7x7dbl_1", 768, c, 1, 1), conv("branch7x7dbl_2", c, c, 7, 1)),
            *(conv("branch7x7dbl_3", c, c, 1, 7), conv("branch7x7dbl_4", c, c, 7, 1)),
            conv("branch7x7dbl_5", c, 192, 1, 7),
            conv("branch_pool", 768, 192, 1, 1),
        )
    add(
        "Mixed_7a",
        *(conv("branch3x3_1", 768, 192, 1, 1), down("branch3x3_2", 192, 320)),
        *(conv("branch7x7x3_1", 768, 192, 1, 1), conv("branch7x7x3_2", 192, 192, 1, 7)),
        *(conv("branch7x7x3_3", 192, 192, 7, 1), down("branch7x7x3_4", 192, 192)),
    )
    for letter, before in (("b", 1280), ("c", 2048)):
        add(
            f"Mixed_7{letter}",
            conv("branch1x1", before, 320, 1, 1),
            *(conv("branch3x3_1", before, 384, 1, 1), conv("branch3x3_2a", 384, 384, 1, 3)),
            conv("branch3x3_2b", 384, 384, 3, 1),
            *(conv("branch3x3dbl_1", before, 448, 1, 1), conv("branch3x3dbl_2", 448, 384, 3, 3)),
            *(conv("branch3x3dbl_3a", 384, 384, 1, 3), conv("branch3x3dbl_3b", 384, 384, 3, 1)),
            conv("branch_pool", before, 192, 1, 1),
        )
    return found


def random_state(torch, seed=0):
    """Weights of the published names whose normalisation matters, and whose features neither vanish nor grow."""
    generator, state = torch.Generator().manual_seed(seed), {}

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    for name, before, after, size, _, _ in torch_blocks():
        state[f"{name}.conv.weight"] = normal(after, before, *size) * (2 / (before * size[0] * size[1])) ** 0.5
        state[f"{name}.bn.weight"] = 1 + 0.2 * normal(after)
        state[f"{name}.bn.bias"] = 0.2 * normal(after)
        state[f"{name}.bn.running_mean"] = 0.2 * normal(after)
        state[f"{name}.bn.running_var"] = (0.5 * normal(after)).exp()
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)
    return state | {"fc.weight": normal(1008, 2048) / 2048**0.5, "fc.bias": 0.2 * normal(1008)}


def torch_inception(torch, state, x):
    """The taps of x (b, 3, h, w) in [-1, 1]."""
    functional = torch.nn.functional
    how = {name: (stride, padding) for name, _, _, _, stride, padding in torch_blocks()}

    def unit(x, name):
        x = functional.conv2d(x, state[f"{name}.conv.weight"], None, *how[name])
        moments = (state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.relu(functional.batch_norm(x, *moments, training=False, eps=1e-3))

    def row(x, *names):
        for name in names:
            x = unit(x, name)
        return x

    def average(x):
        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def branches(block, names):
        return [f"{block}.{name}" for name in names.split()]

    taps = {}
    x = row(x, "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3")
    x = taps["pool1"] = functional.max_pool2d(x, 3, 2)
    x = row(x, "Conv2d_3b_1x1", "Conv2d_4a_3x3")
    x = taps["pool2"] = functional.max_pool2d(x, 3, 2)
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        parts = [
            row(x, *branches(block, "branch1x1")),
            row(x, *branches(block, "branch5x5_1 branch5x5_2")),
            row(x, *branches(block, "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3")),
            row(average(x), *branches(block, "branch_pool")),
        ]
        x = torch.cat(parts, 1)
    parts = [
        row(x, *branches("Mixed_6a", "branch3x3")),
        row(x, *branches("Mixed_6a", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3")),
        functional.max_pool2d(x, 3, 2),
    ]
    x = torch.cat(parts, 1)
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        parts = [
            row(x, *branches(block, "branch1x1")),
            row(x, *branches(block, "branch7x7_1 branch7x7_2 branch7x7_3")),
            row(x, *(f"{block}.branch7x7dbl_{i}" for i in range(1, 6))),
            row(average(x), *branches(block, "branch_pool")),
        ]
        x = torch.cat(parts, 1)
    taps["mixed6e"] = x
    parts = [
        row(x, *branches("Mixed_7a", "branch3x3_1 branch3x3_2")),
        row(x, *(f"Mixed_7a.branch7x7x3_{i}" for i in range(1, 5))),
        functional.max_pool2d(x, 3, 2),
    ]
    x = torch.cat(parts, 1)
    for block in ("Mixed_7b", "Mixed_7c"):
        three, double = unit(x, f"{block}.branch3x3_1"), row(x, *branches(block, "branch3x3dbl_1 branch3x3dbl_2"))
        pooled = average(x) if block == "Mixed_7b" else functional.max_pool2d(x, 3, 1, 1)
        parts = [
            unit(x, f"{block}.branch1x1"),
            *(unit(three, f"{block}.branch3x3_2{i}") for i in "ab"),
            *(unit(double, f"{block}.branch3x3dbl_3{i}") for i in "ab"),
            unit(pooled, f"{block}.branch_pool"),
        ]
        x = torch.cat(parts, 1)
    taps["pool3"] = x.mean((2, 3))
    taps["logits"] = functional.linear(taps["pool3"], state["fc.weight"], state["fc.bias"])
    return taps


@pytest.fixture(scope="module")
def state(torch):
    return random_state(torch)


@pytest.fixture(scope="module")
def published(torch, state, tmp_path_factory):
    """A file of the published layout with random weights."""
    path = tmp_path_factory.mktemp("weights") / "pt_inception.pth"
    torch.save(state, path)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Parity


def test_parity(torch, state, published):
    """All four feature blocks and the logits at 299 px, and on a picture that is not square and halves unevenly."""
    network, params = weights.read(published)
    assert network == InceptionV3() == weights.PUBLISHED["inception-fid"].network
    apply = jax.jit(lambda params, images: network.apply(params, images, (*TAPS, "logits_unbiased")))
    for height, width, batch in ((299, 299, 2), (90, 131, 1)):
        images = test_vgg.picture(height, width, batch)
        with torch.no_grad():
            expected = torch_inception(torch, state, torch.tensor(images).permute(0, 3, 1, 2))
        taps = apply(params, images)
        for tap, x in expected.items():
            assert x.shape[1] == taps[tap].shape[-1] == TAPS[tap]
            test_vgg.assert_close(taps[tap], x.numpy().transpose(0, 2, 3, 1) if x.ndim == 4 else x.numpy())
            assert x.std() > 0.05  # there is something to compare
        unbiased = expected["pool3"].numpy() @ state["fc.weight"].numpy().T
        test_vgg.assert_close(taps["logits_unbiased"], unbiased)


def test_own_file(tmp_path, published):
    network, params = weights.read(published)
    weights.write(tmp_path / "own.safetensors", network, params)
    found, read = weights.read(tmp_path / "own.safetensors")
    assert found == network
    jax.tree.map(np.testing.assert_array_equal, read, params)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def refusal(path):
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        weights.read(path)
    return str(caught.value)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"AuxLogits.conv0.conv.weight": np.ones((128, 768, 1, 1))}, "torchvision's own InceptionV3 of 1000 classes"),
        ({"fc.weight": np.ones((1000, 2048)), "fc.bias": np.ones(1000)}, "run `ganstyle weights fetch inception-fid`"),
        ({"fc.bias": None}, "it lacks fc.bias"),
        ({"Mixed_7c.branch_pool.bn.running_var": None}, "it lacks Mixed_7c.branch_pool.bn.running_var"),
        ({"Mixed_7d.branch1x1.conv.weight": np.ones(3)}, "it has Mixed_7d.branch1x1.conv.weight too many"),
        ({"Conv2d_2a_3x3.conv.weight": np.ones((32, 32, 1, 1))}, "Conv2d_2a_3x3 has the shapes (32, 32, 1, 1)"),
        ({"Conv2d_2a_3x3.bn.bias": np.ones(5)}, "Conv2d_2a_3x3 has the shapes (32, 32, 3, 3), (32,), (5,)"),
        ({"Conv2d_2a_3x3.bn.running_var": -np.ones(32)}, "Conv2d_2a_3x3 has values that are not finite"),
        ({"fc.weight": np.ones((1001, 2048)), "fc.bias": np.ones(1001)}, "fc has a bias of shape (1001,)"),
    ],
    ids=["aux", "classes", "bias", "variance", "block", "kernel", "shift", "negative", "1001"],
)
def test_other_layouts(tmp_path, state, change, said):
    arrays = {k: x.numpy() for k, x in state.items() if not k.endswith("num_batches_tracked")} | change
    arrays = {k: np.asarray(x, np.float32) for k, x in arrays.items() if x is not None}
    torch_files.write_state_dict(tmp_path / "w.pth", arrays)
    assert said in refusal(tmp_path / "w.pth")


def test_network_refuses():
    network, image = InceptionV3(), np.zeros((1, 74, 80, 3), np.float32)
    with pytest.raises(ValueError, match="no layer 'mixed6'; it has pool1, pool2, mixed5b"):
        network.check(["mixed6"])
    with pytest.raises(ValueError, match=r"pool3 need images of 75 pixels or more, got shape \(1, 74, 80, 3\)"):
        network.apply({}, image, ("pool3",))


@pytest.mark.parametrize("tap", ["pool1", "pool2", "mixed5d", "mixed6a", "mixed6e", "mixed7a", "pool3"])
def test_smallest_side(tap):
    network = InceptionV3()
    side, params = network.smallest_side([tap]), jax.eval_shape(network.init, jax.random.key(0))

    def shape(side):
        image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        layer = "mixed7a" if tap == "pool3" else tap
        return jax.eval_shape(lambda p, x: InceptionV3.apply(network, p, x, (layer,))[layer], params, image).shape

    assert shape(side)[1] == 1 and side % 2 == 1
    assert shape(side + 16 * 4)[1] > 1
    with pytest.raises(ValueError, match="pixels or more"):
        shape(side - 1)


def test_means_leave_out_what_is_not_there():
    for height, width in ((1, 1), (1, 4), (5, 2), (4, 3)):
        x = np.random.default_rng(height).normal(size=(1, height, width, 2)).astype(np.float32)
        expected = [
            [x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((0, 1)) for j in range(width)]
            for i in range(height)
        ]
        np.testing.assert_allclose(jax.jit(inception._mean_3x3)(x)[0], expected, atol=1e-6)


def test_stylize_refuses_it(published):
    with pytest.raises(UserError, match="is InceptionV3, which style transfer cannot compare by"):
        stylize.load_network(gatys.Config(), stylize.Settings(features=str(published)))
