"""LPIPS and AlexNet against PyTorch: the published heads on random trunks, and the heads of random values elsewhere."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_vgg

from ganstyle_jax.features import alexnet, torch_files, weights
from ganstyle_jax.features.vgg import VGG, VGG16
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge.metrics import lpips

SHIFT, SCALE = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])  # as LPIPS states them
ALEX = {"features.0": (64, 3, 11), "features.3": (192, 64, 5), "features.6": (384, 192, 3)}
ALEX |= {"features.8": (256, 384, 3), "features.10": (256, 256, 3)}
SQUEEZE = {"features.0": (64, 3, 3)}
for _number, _before, _squeezed, _expanded in (
    *((3, 64, 16, 64), (4, 128, 16, 64), (6, 128, 32, 128), (7, 256, 32, 128)),
    *((9, 256, 48, 192), (10, 384, 48, 192), (11, 384, 64, 256), (12, 512, 64, 256)),
):
    SQUEEZE |= {
        f"features.{_number}.squeeze": (_squeezed, _before, 1),
        f"features.{_number}.expand1x1": (_expanded, _squeezed, 1),
        f"features.{_number}.expand3x3": (_expanded, _squeezed, 3),
    }
SHAPES = {"alex": ALEX, "vgg": test_vgg.torchvision_shapes(VGG16.channels), "squeeze": SQUEEZE}
WIDTHS = {
    "alex": (64, 192, 384, 256, 256),
    "vgg": (64, 128, 256, 512, 512),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
}

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GANSTYLE_HOME", str(tmp_path / "home"))


def write_trunk(torch, path, kind, seed=0):
    state = test_vgg.random_state(torch, SHAPES[kind], seed)
    torch_files.write_state_dict(path, {name: x.numpy() for name, x in state.items()})
    return state


def write_heads(path, kind, seed=0):
    rng = np.random.default_rng(seed)
    heads = {
        f"lin{i}.model.1.weight": rng.uniform(0, 1, (1, c, 1, 1)).astype(np.float32) for i, c in enumerate(WIDTHS[kind])
    }
    torch_files.write_state_dict(path, heads)
    return path


@pytest.fixture
def heads_of(request, tmp_path):
    """A function from kind to a file of heads: the published one, or random ones where there are no test data."""
    try:
        folder = request.getfixturevalue("data_dir") / "weights" / "lpips_v0.1"
    except pytest.skip.Exception:
        return lambda kind: write_heads(tmp_path / "heads.pth", kind)
    return lambda kind: folder / f"{kind}.pth"


def torch_taps(torch, kind, state, x):
    """What LPIPS taps, of images that are normalised already."""
    functional = torch.nn.functional

    def conv(name, x, **options):
        return functional.relu(functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options))

    if kind == "alex":
        x1 = conv("features.0", x, stride=4, padding=2)
        x2 = conv("features.3", functional.max_pool2d(x1, 3, 2), padding=2)
        x3 = conv("features.6", functional.max_pool2d(x2, 3, 2), padding=1)
        x4 = conv("features.8", x3, padding=1)
        return [x1, x2, x3, x4, conv("features.10", x4, padding=1)]
    taps = []
    if kind == "vgg":
        for name in SHAPES["vgg"]:
            number = int(name.split(".")[1])
            if number in (5, 10, 17, 24):
                taps.append(x)
                x = functional.max_pool2d(x, 2)
            x = conv(name, x, padding=1)
        return [*taps, x]
    x = conv("features.0", x, stride=2)
    taps.append(x)
    for number in range(2, 13):
        if number in (2, 5, 8):
            x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
            continue
        squeezed = conv(f"features.{number}.squeeze", x)
        parts = [
            conv(f"features.{number}.expand1x1", squeezed),
            conv(f"features.{number}.expand3x3", squeezed, padding=1),
        ]
        x = torch.cat(parts, 1)
        if number in (4, 7, 9, 10, 11, 12):
            taps.append(x)
    return taps


def torch_lpips(torch, kind, state, heads, a, b):
    """In float64, by the formula, with LPIPS' own shift and scale."""
    state = {name: x.double() for name, x in state.items()}
    of = []
    for x in (a, b):
        x = torch.tensor((x.astype(np.float64) - SHIFT) / SCALE).permute(0, 3, 1, 2)
        of.append([t / (t.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for t in torch_taps(torch, kind, state, x)])
    total = 0
    for i, (x, y) in enumerate(zip(*of, strict=True)):
        total = total + ((x - y) ** 2 * torch.tensor(heads[f"lin{i}.model.1.weight"]).double()).sum(1).mean((1, 2))
    return total.numpy()


@pytest.mark.parametrize(
    "kind, sizes",
    [
        ("alex", [(64, 64), (63, 90), (31, 31)]),
        ("vgg", [(33, 40), (16, 16)]),
        ("squeeze", [(64, 64), (63, 50), (17, 17)]),
    ],
)
def test_lpips_equals_torch(torch, tmp_path, heads_of, kind, sizes):
    state = write_trunk(torch, tmp_path / "trunk.pth", kind)
    path = heads_of(kind)
    measure = lpips.load(kind, tmp_path / "trunk.pth", path)
    heads = torch.load(path, "cpu", weights_only=True)
    heads = {name: x.numpy() for name, x in heads.items()}
    for height, width in sizes:
        a = test_vgg.picture(height, width, batch=2)
        b = np.clip(a + 0.3 * test_vgg.picture(height, width, batch=2, seed=1), -1, 1)
        expected = torch_lpips(torch, kind, state, heads, a, b)
        assert expected.min() > 1e-4
        np.testing.assert_allclose(measure(a, b), expected, rtol=1e-5)
        np.testing.assert_allclose(measure(b, a), measure(a, b), rtol=1e-6)
        np.testing.assert_array_equal(measure(a, a), 0)


def test_scaling_of_lpips_is_imagenets():
    """Exactly: (x - shift) / scale is the map of colours that torchvision's networks begin with here."""
    colours = weights.IMAGENET_INPUT
    np.testing.assert_allclose(np.diag(1 / SCALE), colours["kernel"], rtol=1e-12)
    np.testing.assert_allclose(-SHIFT / SCALE, colours["bias"], rtol=1e-12)


def test_gradient_is_finite_and_right(torch, tmp_path):
    """Of equal pictures too, and where a pixel's features are all 0, at which a plain root has no derivative."""
    write_trunk(torch, tmp_path / "trunk.pth", "alex")
    measure = lpips.load("alex", tmp_path / "trunk.pth", write_heads(tmp_path / "heads.pth", "alex"))
    a, b = test_vgg.picture(31, 31), test_vgg.picture(31, 31, seed=1)
    gradient = jax.grad(lambda x: measure(x, b).sum())(jnp.asarray(a))
    step = 0.02 * gradient / jnp.linalg.norm(gradient)
    difference = (measure(a + step, b) - measure(a - step, b)).sum() / 2
    assert float((gradient * step).sum()) == pytest.approx(float(difference), rel=0.02)
    assert np.isfinite(jax.grad(lambda x: measure(x, a).sum())(jnp.asarray(a))).all()
    dead = dataclasses.replace(
        measure, params=measure.params | {"conv3": jax.tree.map(jnp.zeros_like, measure.params["conv3"])}
    )
    assert np.isfinite(jax.grad(lambda x: dead(x, b).sum())(jnp.asarray(a))).all()


def test_grey_pictures_are_three_equal_colours(torch, tmp_path):
    write_trunk(torch, tmp_path / "trunk.pth", "alex")
    measure = lpips.load("alex", tmp_path / "trunk.pth", write_heads(tmp_path / "heads.pth", "alex"))
    a, b = test_vgg.picture(31, 31)[..., :1], test_vgg.picture(31, 31, seed=1)[..., :1]
    np.testing.assert_allclose(measure(a, b), measure(a.repeat(3, 3), b.repeat(3, 3)), rtol=1e-6)


def test_home_folder(torch, tmp_path):
    """Imported once, by the names of the list, which say what to fetch."""
    with pytest.raises(UserError, match="run `ganstyle weights fetch squeezenet`"):
        lpips.load("squeeze")
    write_trunk(torch, tmp_path / "trunk.pth", "squeeze")
    weights.import_file(tmp_path / "trunk.pth", "squeezenet")
    with pytest.raises(UserError, match="run `ganstyle weights fetch lpips-squeeze`"):
        lpips.load("squeeze")
    path = write_heads(tmp_path / "heads.pth", "squeeze")
    weights.import_file(path, "lpips-squeeze")
    kept = lpips.load("squeeze")
    for found, expected in zip(kept.heads, torch_files.read_state_dict(path).values(), strict=True):
        np.testing.assert_array_equal(found, expected.ravel())


def test_published_heads(data_dir):
    """The files that are here are those of the list, and LPIPS of weights that are 0 or more is a distance."""
    from ganstyle_jax.features import download

    for kind in lpips.VARIANTS:
        path, published = data_dir / "weights" / "lpips_v0.1" / f"{kind}.pth", weights.PUBLISHED[f"lpips-{kind}"]
        assert published.size == path.stat().st_size and published.is_file_of(download.digests(path))
        network, arrays = weights.read(path)
        assert network == published.network and list(arrays) == [f"lin{i}" for i in range(len(WIDTHS[kind]))]
        assert "kB" in weights.describe(f"lpips-{kind}")


def test_refusals(torch, tmp_path):
    trunk, heads = tmp_path / "trunk.pth", write_heads(tmp_path / "heads.pth", "alex")
    write_trunk(torch, trunk, "alex")
    with pytest.raises(UserError, match="has the networks alex, vgg, squeeze, and 'vgg19' is not among them"):
        lpips.load("vgg19")
    with pytest.raises(UserError, match="trained with alexnet of torchvision, and compact is another network"):
        lpips.load("alex", "compact", heads)
    with pytest.raises(UserError, match="needs heads of 64, 192, 384, 256, 256 channels"):
        lpips.load("alex", trunk, write_heads(tmp_path / "squeeze.pth", "squeeze"))
    with pytest.raises(UserError, match="is LpipsHeads, which style transfer cannot compare by"):
        weights.load_for_style(heads)
    # The Caffe authors' weights in torchvision's layout take other colours.
    params = {layer: {k: np.asarray(x) for k, x in of.items()} for layer, of in weights.read(trunk)[1].items()}
    params["input"] = {k: np.asarray(x, np.float32) for k, x in weights.CAFFE_INPUT.items()}
    weights.write(tmp_path / "caffe", alexnet.AlexNet(), params)
    with pytest.raises(UserError, match="is another network"):
        lpips.load("alex", tmp_path / "caffe", heads)
    measure = lpips.load("alex", trunk, heads)
    with pytest.raises(UserError, match=r"one shape.* these are \(1, 31, 31, 3\) and \(1, 31, 32, 3\)"):
        measure(np.zeros((1, 31, 31, 3)), np.zeros((1, 31, 32, 3)))
    with pytest.raises(UserError, match=r"takes pictures of 31 pixels and more, and these are \(30, 64\)"):
        measure(np.zeros((1, 30, 64, 3)), np.zeros((1, 30, 64, 3)))
    state = torch_files.read_state_dict(heads)
    for change, said in (
        (np.zeros((64,), np.float32), r"lin0.model.1.weight has the shape \(64,\), not"),
        (np.full((1, 64, 1, 1), -1, np.float32), "lin0.model.1.weight has values below 0"),
        (np.full((1, 64, 1, 1), np.nan, np.float32), "lin0 has values that are not finite"),
    ):
        torch_files.write_state_dict(tmp_path / "bad.pth", state | {"lin0.model.1.weight": change})
        with pytest.raises(UserError, match=said):
            lpips.load("alex", trunk, tmp_path / "bad.pth")


# ---------------------------------------------------------------------------------------------------------------------
# AlexNet


def test_alexnet_equals_torch(torch, tmp_path):
    state = write_trunk(torch, tmp_path / "w.pth", "alex")
    network, params = weights.read(tmp_path / "w.pth")
    assert network == alexnet.AlexNet()
    images = test_vgg.picture(70, 95, batch=2)
    _, unit = test_vgg.to_torch(torch, images)
    expected = torch_taps(torch, "alex", state, test_vgg.torchvision_input(torch, unit))
    found = jax.jit(lambda images: network.apply(params, images, alexnet.TAPS))(images)
    for tap, x in zip(alexnet.TAPS, expected, strict=True):
        test_vgg.assert_close(found[tap], x.detach().numpy().transpose(0, 2, 3, 1))
    half = dataclasses.replace(network, dtype="bfloat16").apply(params, images, ("pool1",))["pool1"]
    assert half.dtype == jnp.bfloat16


def test_alexnets_smallest_side():
    network = alexnet.AlexNet()
    for taps in (("conv1",), ("relu1",), ("pool1",), ("relu2",), ("pool2",), ("relu5",)):
        needed = network.smallest_side(taps)
        params = jax.eval_shape(network.init, jax.random.key(0))

        def sides(size, taps=taps, params=params):
            images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
            return jax.eval_shape(lambda p, x: network.apply(p, x, taps), params, images)[taps[0]].shape[1]

        assert sides(needed) == 1
        with contextlib.suppress(ValueError, TypeError):  # which refuse windows that do not fit
            assert sides(needed - 1) < 1


def test_own_files_of_alexnet(torch, tmp_path):
    write_trunk(torch, tmp_path / "w.pth", "alex")
    network, params = weights.read(tmp_path / "w.pth")
    weights.write(tmp_path / "own", network, params)
    found, read = weights.read(tmp_path / "own")
    assert found == network
    jax.tree.map(np.testing.assert_array_equal, read, params)
    with pytest.raises(UserError, match="which style transfer cannot compare by"):
        weights.load_for_style(tmp_path / "own")
    with pytest.raises(ValueError, match="no layer 'relu6'; it has conv1, relu1, pool1"):
        network.apply(params, np.zeros((1, 64, 64, 3)), ("relu6",))
    assert isinstance(VGG16, VGG) and network.names[-1] == "relu5"
