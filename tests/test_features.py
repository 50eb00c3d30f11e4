"""Features for the metrics: resizing against Pillow, PyTorch and TensorFlow's rule; networks, streams, statistics."""

import hashlib
import itertools
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_inception
import test_vgg
from PIL import Image

from ganstyle_jax import data
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.features.inception import InceptionV3
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge import features, networks, resizing, sets, statistics
from ganstyle_jax.judge.metrics import distances

pytestmark = pytest.mark.usefixtures("quick_compile")

SIZES = [((32, 32), (299, 299)), ((64, 48), (40, 75)), ((300, 298), (299, 299)), ((200, 7), (5, 9)), ((1, 2), (3, 5))]
SMALL = vgg.VGG(((4, 5), (6,), (7,)))


def bytes_of(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def small(tmp_path):
    """A file of a small VGG's random weights, and those."""
    params = test_vgg.random_params(SMALL)
    weights.write(tmp_path / "small.safetensors", SMALL, params)
    return str(tmp_path / "small.safetensors"), params


# ---------------------------------------------------------------------------------------------------------------------
# Resizing, of values up to 255 within 1e-5 of that


def assert_resized(images, size, mode, expected):
    for found in (resizing.resize(images, size, mode), resizing.resize(jnp.asarray(images), size, mode)):
        assert found.dtype == np.float32 and found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=255e-5)


@pytest.mark.parametrize("before, after", SIZES)
def test_clean_is_pillows(before, after):
    images = bytes_of(2, *before, 3)
    bands = [[Image.fromarray(band.astype(np.float32)) for band in np.moveaxis(image, -1, 0)] for image in images]
    expected = [[np.asarray(band.resize(after[::-1], Image.Resampling.BICUBIC)) for band in row] for row in bands]
    expected = np.moveaxis(np.array(expected), 1, -1)
    assert_resized(images, after, "clean", expected.clip(0, 255))  # as clean-fid does


def test_clean_keeps_the_range_of_bytes_and_of_floats():
    """At an edge bicubic goes beyond black and white, where published figures have nothing."""
    drawing = np.where(np.random.default_rng(0).random((2, 28, 28, 1)) < 0.2, 255, 0).astype(np.uint8)
    for images in (drawing, jnp.asarray(drawing)):
        as_bytes = np.asarray(resizing.resize(images, (299, 299), "clean"))
        as_floats = np.asarray(resizing.resize(data.to_float(images), (299, 299), "clean"))
        assert (as_bytes.min(), as_bytes.max(), as_floats.min(), as_floats.max()) == (0, 255, -1, 1)
        np.testing.assert_allclose(as_floats, as_bytes / 127.5 - 1, atol=1e-5)


@pytest.mark.parametrize("before, after", SIZES)
def test_legacy_torch_is_pytorchs(torch, before, after):
    images = bytes_of(2, *before, 3).astype(np.float32)
    resized = torch.nn.functional.interpolate(
        torch.tensor(images).permute(0, 3, 1, 2), size=after, mode="bilinear", align_corners=False
    )
    assert_resized(images, after, "legacy-torch", resized.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("before, after", SIZES)
def test_legacy_tf_is_tensorflows(before, after):
    """By the rule of TensorFlow 1's ResizeBilinear: pixel i is taken at i * before / after."""

    def at(old, new):
        place = np.arange(new, dtype=np.float32) * (np.float32(old) / np.float32(new))
        low = np.floor(place).astype(int)
        return low, np.minimum(np.ceil(place).astype(int), old - 1), place - low

    images = bytes_of(2, *before, 3).astype(np.float32)
    top, bottom, down = at(before[0], after[0])
    left, right, across = at(before[1], after[1])
    across, down = across[:, None], down[:, None, None]
    upper = images[:, top][:, :, left] + (images[:, top][:, :, right] - images[:, top][:, :, left]) * across
    lower = images[:, bottom][:, :, left] + (images[:, bottom][:, :, right] - images[:, bottom][:, :, left]) * across
    assert_resized(images, after, "legacy-tf", upper + (lower - upper) * down)


@pytest.mark.parametrize("mode", ["clean", "legacy-tf", "legacy-torch"])
def test_resizing_keeps_what_is_constant_or_of_that_size(mode):
    for before, after in itertools.product((1, 2, 7, 32), (1, 3, 7, 299)):
        np.testing.assert_allclose(resizing.resize_matrix(before, after, mode).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(resizing.resize_matrix(9, 9, mode), np.eye(9), atol=1e-6)
    image = bytes_of(9, 9, 3)
    np.testing.assert_array_equal(resizing.resize(image, (9, 9), mode), image)


def test_none_does_not_resize():
    with pytest.raises(ValueError, match="images of 9 x 8 pixels are not to be resized, and not 9 x 9"):
        resizing.resize(bytes_of(9, 8, 3), (9, 9), "none")
    with pytest.raises(ValueError, match="must be one of clean, legacy-tf, legacy-torch, none, got 'cubic'"):
        resizing.resize(bytes_of(9, 8, 3), (9, 9), "cubic")


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def test_a_file_of_weights(small):
    """Taps averaged over the picture and side by side; by default the last ReLU of the third block."""
    path, params = small
    images = bytes_of(3, 20, 16, 3)
    taps = SMALL.apply(params, data.to_float(jnp.asarray(images)), ("relu1_2", "relu3_1"))
    network = networks.feature_network(f"{path}:relu1_2+relu3_1")
    found, logits = features.extract(network, [images])
    assert (network.name, network.dim, network.size) == ("small.safetensors:relu1_2+relu3_1", 12, None)
    assert network.resize == "none" and logits is None
    expected = np.concatenate([taps["relu1_2"].mean((1, 2)), taps["relu3_1"].mean((1, 2))], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert networks.feature_network(path).name == "small.safetensors:relu3_1"


def test_resized_to_a_size(small):
    """Bytes are resized before anything else, without rounding."""
    images = bytes_of(2, 20, 16, 3)
    network = networks.feature_network(f"{small[0]}:relu2_1@32", "legacy-torch")
    assert (network.size, network.resize) == (32, "legacy-torch")
    resized = resizing.resize(data.to_float(images), (32, 32), "legacy-torch")
    expected = SMALL.apply(small[1], resized, ("relu2_1",))["relu2_1"].mean((1, 2))
    np.testing.assert_allclose(features.extract(network, [images])[0], expected, rtol=1e-5, atol=1e-6)
    assert networks.feature_network(f"{small[0]}@32").resize == "clean"
    assert networks.feature_network(f"{small[0]}@32", "none").size is None


def test_digest_is_of_the_weights_and_not_of_the_file(small, tmp_path):
    path, params = small
    weights.write(tmp_path / "again.safetensors", SMALL, dict(reversed(params.items())))
    (tmp_path / "named.safetensors").write_bytes((tmp_path / "again.safetensors").read_bytes())
    digests = {networks.feature_network(f"{tmp_path}/{name}.safetensors").digest for name in ("again", "named")}
    assert digests == {networks.feature_network(path).digest} and len(digests.pop()) == 64
    other = params | {"conv3_1": {**params["conv3_1"], "bias": params["conv3_1"]["bias"] + 1e-6}}
    weights.write(tmp_path / "other.safetensors", SMALL, other)
    other = networks.feature_network(str(tmp_path / "other.safetensors"))
    assert other.digest != networks.feature_network(path).digest


def test_compact():
    network = networks.feature_network("compact")
    found, _ = features.extract(network, [bytes_of(4, 32, 32, 3)])
    assert network.name == "compact:relu2_1+relu3_1+relu4_1+relu5_1" and found.shape == (4, network.dim) == (4, 592)
    assert (found.std(0) > 0).all()


def test_vgg19_block_3(data_dir):
    """The authors' VGG-19 to its third block, of CIFAR-10, against the network itself and its plain convolution."""
    path = data_dir / "weights" / "vgg19_block1_to_block3.npz"
    network = networks.feature_network(f"{path}:relu3_4")
    images = next(iter(sets.images_from(str(data_dir / "datasets/cifar10_train_jpg.zip"), network, count=4)))
    found, _ = features.extract(network, [images], devices=jax.devices()[:1])
    vgg19, params = weights.read(path)
    expected = jax.jit(lambda x: vgg19.apply(params, x, ("relu3_4",))["relu3_4"].mean((1, 2)))(data.to_float(images))
    assert images.shape == (4, 32, 32, 3) and found.shape == (4, 256)
    test_vgg.assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("mode", [None, "clean", "legacy-tf", "legacy-torch"])
def test_what_inception_receives(monkeypatch, tmp_path, mode):
    """What its layers receive: 299 px, and bytes mapped as the published numbers of that mode had them."""

    def apply(self, params, images, taps):
        assert images.shape[1:] == (299, 299, 3)
        outputs = {"pool3": images.mean((1, 2)), "logits_unbiased": images[:, 0, 0]}
        return {tap: outputs[tap] for tap in taps}

    monkeypatch.setattr(InceptionV3, "apply", apply)
    monkeypatch.setattr(weights, "load", lambda name: (InceptionV3(), {"fc": {"bias": np.zeros(1, np.float32)}}))
    network = networks.feature_network("inception", mode)
    assert (network.name, network.resize, network.size) == ("inception:pool3", mode or "clean", 299)
    bytes_ = np.broadcast_to(np.array([0, 128, 255], np.uint8), (2, 32, 32, 3))
    found, logits = features.extract(network, [bytes_])
    expected = [-1, 0, 127 / 128] if mode != "legacy-torch" else [-1, 1 / 255, 1]
    np.testing.assert_allclose(found, [expected] * 2, atol=1e-5)
    np.testing.assert_allclose(logits, [expected] * 2, atol=1e-5)


@pytest.mark.slow
def test_pytorch_fids_features(torch, tmp_path):
    """From bytes of CIFAR's size to pool3 as pytorch-fid computes it, with random weights in its published layout."""
    state, images = test_inception.random_state(torch), bytes_of(2, 32, 32, 3)
    torch.save(state, tmp_path / "pt_inception.pth")
    network = networks.feature_network(str(tmp_path / "pt_inception.pth"), "legacy-torch")
    found, logits = features.extract(network, [images], devices=jax.devices()[:1])
    unit = torch.tensor(images).permute(0, 3, 1, 2) / 255
    resized = torch.nn.functional.interpolate(unit, size=(299, 299), mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = test_inception.torch_inception(torch, state, 2 * resized - 1)["pool3"].numpy()
    test_vgg.assert_close(found, expected)
    test_vgg.assert_close(logits, expected @ state["fc.weight"].numpy().T)


def test_default(monkeypatch, tmp_path):
    monkeypatch.setenv("GANSTYLE_HOME", str(tmp_path))
    assert networks.default() == "compact"
    with pytest.raises(UserError, match="run `ganstyle weights fetch inception-fid`"):
        networks.feature_network("inception")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "inception-fid.safetensors").touch()
    assert networks.default() == "inception"


def test_users_function(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import jax.numpy as jnp\nimport numpy as np\n"
        "def means(images):\n    return images.mean((1, 2))\n"
        "def flat(images):\n    return images.reshape(len(images), -1)\n"
        "def whole(images):\n    return images\n"
        "def host(images):\n    return np.asarray(images).mean((1, 2))\n"
    )
    network, images = networks.feature_network(f"{path}:means"), bytes_of(5, 8, 6, 3)
    np.testing.assert_allclose(features.extract(network, [images])[0], images.mean((1, 2)) / 127.5 - 1, atol=1e-6)
    assert network.name == "mine.py:means" and network.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert network.dim is None
    assert features.extract(networks.feature_network(f"{path}:flat@4"), [images])[0].shape == (5, 48)
    for spec, said in (
        (f"{path}:whole", r"gives features of shape \(8, 8, 6, 3\) for 8 images; \(b, d\) is needed"),
        (f"{path}:host", "mine.py:host cannot be compiled .* make it of jax.numpy"),
    ):
        with pytest.raises(UserError, match=said):
            features.extract(networks.feature_network(spec), [images])
    for spec, said in (
        (f"{path}:nothing", "has no function 'nothing'"),
        (f"{path}", "has no function ''"),
        (f"{tmp_path}/other.py:means", "there is no file .*other.py; features are inception, compact"),
    ):
        with pytest.raises(UserError, match=said):
            networks.feature_network(spec)
    path.write_text("1 / 0")
    with pytest.raises(UserError, match=r"mine.py cannot be run: division by zero"):
        networks.feature_network(f"{path}:means")


def test_networks_that_are_not(small):
    for spec, mode, said in (
        ("huge", None, "there are no weights huge"),
        (f"{small[0]}:relu4_1", None, "the network has no layer 'relu4_1'; it has conv1_1"),
        (small[0], "cubic", "resize must be one of clean, legacy-tf, legacy-torch, none, got 'cubic'"),
        (small[0], "clean", "say to how many pixels clean is to resize: .*small.safetensors@64"),
        (f"{small[0]}@3", None, "needs images of 4 pixels or more, and @3 is fewer"),
        (f"{small[0]}@0", None, "0 pixels"),
    ):
        with pytest.raises(UserError, match=said):
            networks.feature_network(spec, mode)
    with pytest.raises(UserError, match=r"needs images of 4 pixels or more, and these have 3 x 9: resize them"):
        features.extract(networks.feature_network(small[0]), [bytes_of(2, 3, 9, 3)])


# ---------------------------------------------------------------------------------------------------------------------
# Streams


def test_batches_and_devices_change_nothing(small):
    """Any lengths of batches, any number of devices, a last batch that is filled up; in order."""
    network, images = networks.feature_network(small[0]), bytes_of(21, 12, 12, 3)
    expected, _ = features.extract(network, [images], batch_size=21, devices=jax.devices()[:1])
    for lengths, size, count in (((21,), 8, 8), ((5, 1, 9, 6), 4, 1), ((1,) * 21, 5, 3), ((0, 21), 64, 8)):
        batches = np.split(images, np.cumsum(lengths)[:-1])
        found, _ = features.extract(network, batches, batch_size=size, devices=jax.devices()[:count])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_one_program_on_all_devices(small):
    network = networks.feature_network(small[0])
    parts = [part for part, _ in features.stream(network, [bytes_of(21, 12, 12, 3)], batch_size=8)]
    assert [len(part) for part in parts] == [8, 8, 5] and network.compute._cache_size() == 1
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    images = jax.device_put(bytes_of(8, 12, 12, 3), jax.NamedSharding(mesh, jax.P("data")))
    text = network.compute.lower(network.params, images).compile().as_text()
    assert "u8[1,12,12,3]" in text and not re.search("all-(gather|reduce|to-all)", text)


def test_reading_is_two_batches_ahead_and_no_more(small):
    read = []

    def batches():
        for i in range(10):
            read.append(i)
            yield bytes_of(8, 12, 12, 3, seed=i)

    stream = features.stream(networks.feature_network(small[0]), batches(), batch_size=8)
    next(stream)
    assert len(read) == 2
    next(stream)
    assert len(read) == 3


def test_moments_are_those_of_the_features(small):
    network, images = networks.feature_network(small[0]), bytes_of(40, 12, 12, 3)
    found, expected = features.moments(network, [images], batch_size=16), features.extract(network, [images])[0]
    assert found.count == 40
    np.testing.assert_allclose(found.mean, expected.mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(expected.astype(np.float64).T), rtol=1e-4, atol=1e-9)


def test_grey_and_float_images(small):
    network, grey = networks.feature_network(small[0]), bytes_of(3, 12, 12, 1)
    expected, _ = features.extract(network, [np.repeat(grey, 3, axis=-1)])
    for images in (grey, data.to_float(grey)):
        np.testing.assert_allclose(features.extract(network, [images])[0], expected, rtol=1e-5, atol=1e-6)


def test_features_that_are_not_finite(small):
    images = data.to_float(bytes_of(20, 12, 12, 3))
    images[[13, 17], 0, 0] = np.nan
    with pytest.raises(UserError, match="not finite for 1 of the images 8 to 15, the first of them 13: are the images"):
        features.extract(networks.feature_network(small[0]), [images], batch_size=8)
    for function in (features.extract, features.moments):
        with pytest.raises(UserError, match="there is no image"):
            function(networks.feature_network(small[0]), [])


# ---------------------------------------------------------------------------------------------------------------------
# Images


def joined(images):
    return np.concatenate(list(images))


@pytest.fixture
def folder(tmp_path):
    """Ten pictures, of which the last two are of other sizes."""
    for i in range(10):
        shape = {8: (9, 14), 9: (20, 20)}.get(i, (12, 10))
        Image.fromarray(bytes_of(*shape, 3, seed=i)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_images_keep_their_size_and_are_not_cropped(small, folder, tmp_path):
    network = networks.feature_network(small[0])
    for i in (8, 9):
        (folder / f"{i}.png").unlink()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for i in range(8):
            archive.write(folder / f"{i}.png", f"{i}.png")
    expected = np.stack([bytes_of(12, 10, 3, seed=i) for i in range(8)])
    for spec in (folder, tmp_path / "images.zip"):
        images = sets.images_from(str(spec), network)
        assert len(images) == 8
        for _ in range(2):  # as often as needed
            np.testing.assert_array_equal(joined(images), expected)
    assert joined(sets.images_from(str(folder), network, image_size=6)).shape == (8, 6, 6, 3)  # as training has


def test_images_of_several_sizes(small, folder):
    """Each is resized by itself, as it would be in a batch of its own."""
    with pytest.raises(UserError, match=r"has images of 12 x 10 and of 9 x 14 pixels, and .* takes them as they are"):
        joined(sets.images_from(str(folder), networks.feature_network(small[0])))
    network = networks.feature_network(f"{small[0]}@16")
    found, _ = features.extract(network, sets.images_from(str(folder), network))
    for i in range(10):
        picture = np.asarray(Image.open(folder / f"{i}.png"))
        np.testing.assert_allclose(found[i], features.extract(network, [picture[None]])[0][0], rtol=1e-4, atol=1e-5)


def test_arrays(small, tmp_path):
    network, pictures = networks.feature_network(small[0]), bytes_of(40, 12, 12, 3)
    np.savez(tmp_path / "run.npz", samples=pictures, labels=np.zeros(40, int))
    np.savez(tmp_path / "grey.npz", images=pictures[..., 0])
    for images in (str(tmp_path / "run.npz"), pictures, data.open_source(str(tmp_path / "run.npz"), 12)):
        np.testing.assert_array_equal(joined(sets.images_from(images, network)), pictures)
    np.testing.assert_array_equal(joined(sets.images_from(str(tmp_path / "grey.npz"), network)), pictures[..., :1])
    assert joined(sets.images_from("glyphs:grey", network, image_size=16, count=33)).shape == (33, 16, 16, 1)


def test_some_of_the_images(small):
    """Drawn by the seed, without replacement."""
    network, pictures = networks.feature_network(small[0]), np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    first, again, other = (
        joined(sets.images_from(pictures, network, count=15, seed=seed)).ravel().tolist() for seed in (0, 0, 1)
    )
    assert first == again != other and len(set(first)) == 15 and max(first) > 20


def test_images_that_are_not_there(small, folder):
    network = networks.feature_network(small[0])
    for images, options, said in (
        (bytes_of(4, 8, 8, 3), {"count": 5}, "array has 4 images, and 5 were asked for"),
        (bytes_of(4, 8, 8, 3), {"count": 0}, "array has 4 images, and 0 were asked for"),
        (bytes_of(4, 8, 8, 2), {}, r"images have the shape \(4, 8, 8, 2\) and dtype uint8"),
        (np.zeros((4, 8, 8, 3)), {}, "dtype float64"),
        ("glyphs", {}, "Glyphs are drawn at any size: give one"),
        ("glyphs", {"image_size": 16}, "has no end: say how many"),
        ("nothing.zip", {}, "No file or folder 'nothing.zip'"),
    ):
        with pytest.raises(UserError, match=said):
            sets.images_from(images, network, **options)
    (folder / "5.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cannot be read \(5.png: not an image that Pillow knows\): repair or remove"):
        joined(sets.images_from(str(folder), network))


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def gaussian_of(dim, count=30):
    return distances.gaussian(np.random.default_rng(0).normal(size=(count, dim)))


def test_statistics(small, tmp_path):
    """As pytorch-fid reads them, and back."""
    network, gaussian, path = networks.feature_network(small[0]), gaussian_of(7), tmp_path / "reference.npz"
    statistics.save_statistics(path, gaussian, network, "photos.zip")
    with np.load(path) as file:
        np.testing.assert_array_equal(file["mu"][:], gaussian.mean)
        np.testing.assert_array_equal(file["sigma"][:], gaussian.covariance)
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
    found, about = statistics.load_statistics(path, network)
    np.testing.assert_array_equal(found.covariance, gaussian.covariance)
    assert found.count == 30
    assert about == {
        **{"count": 30, "features": "small.safetensors:relu3_1", "weights": network.digest, "resize": "none"},
        "source": "photos.zip",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reference.npz", "small.safetensors"]


def test_statistics_of_pytorch_fid(small, tmp_path):
    gaussian = gaussian_of(7)
    np.savez(tmp_path / "theirs.npz", mu=gaussian.mean, sigma=gaussian.covariance)
    found, about = statistics.load_statistics(tmp_path / "theirs.npz", networks.feature_network(small[0]))
    assert found.count is None and set(about.values()) == {"unknown"}
    np.testing.assert_array_equal(found.mean, gaussian.mean)


def test_statistics_of_another_network(small, tmp_path):
    network, path = networks.feature_network(f"{small[0]}@16"), tmp_path / "reference.npz"
    statistics.save_statistics(path, gaussian_of(6), networks.feature_network(f"{small[0]}:relu2_1@16"))
    with pytest.raises(UserError, match=r"has the statistics of 6 features, and small.safetensors:relu3_1 gives 7"):
        statistics.load_statistics(path, network)
    weights.write(tmp_path / "small.safetensors", SMALL, test_vgg.random_params(SMALL, seed=1))
    for spec, mode, said in (
        (f"{small[0]}@16", None, "was made with weights [0-9a-f]{64}, and small.safetensors:relu3_1 has"),
        (f"{small[0]}:relu3_1@16", "legacy-tf", "was made with"),
    ):
        statistics.save_statistics(path, gaussian_of(7), networks.feature_network(spec, mode))
        with pytest.raises(UserError, match=said):
            statistics.load_statistics(path, network)
    statistics.save_statistics(path, gaussian_of(7), network)
    other = networks.feature_network(f"{small[0]}@16", "legacy-tf")
    with pytest.raises(UserError, match="was made with"):
        statistics.load_statistics(path, other)


def test_files_that_hold_no_statistics(small, tmp_path):
    network = networks.feature_network(small[0])
    np.savez(tmp_path / "images.npz", images=np.zeros(3))
    np.savez(tmp_path / "objects.npz", mu=np.array([{}], object), sigma=np.zeros(3))
    np.savez(tmp_path / "shapes.npz", mu=np.zeros(7), sigma=np.zeros((6, 6)))
    np.savez(tmp_path / "nan.npz", mu=np.full(7, np.nan), sigma=np.zeros((7, 7)))
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("mu")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "shapes.npz").read_bytes()[:300])
    for name, said in (
        ("images.npz", "has images: a .npz with mu and sigma is needed"),
        ("objects.npz", "holds no statistics"),
        ("shapes.npz", "do not belong together"),
        ("nan.npz", "not finite"),
        ("array.npy", "one array alone"),
        ("text.npz", "holds no statistics"),
        ("cut.npz", "holds no statistics"),
        ("nothing.npz", "cannot read the statistics .* No such file"),
    ):
        with pytest.raises(UserError, match=said):
            statistics.load_statistics(tmp_path / name, network)


def test_statistics_of_clean_resizing_that_did_not_clip(small, tmp_path):
    """Earlier versions wrote them, without the word on colours."""
    network, path = networks.feature_network(f"{small[0]}@16"), tmp_path / "reference.npz"
    statistics.save_statistics(path, gaussian_of(7), network)
    with np.load(path) as file:
        earlier = {name: array for name, array in file.items() if name != "colours"}
        assert str(file["colours"]) == "sRGB"
    np.savez(path, **earlier)
    with pytest.raises(UserError, match="made by an earlier version, whose clean resizing did not clip: measure the"):
        statistics.load_statistics(path, network)
    np.savez(path, **(earlier | {"resize": np.array("legacy-tf")}))  # as always
    statistics.load_statistics(path, networks.feature_network(f"{small[0]}@16", "legacy-tf"))


def test_files_that_would_fill_the_memory_or_hold_no_numbers(small, tmp_path, monkeypatch):
    network, gaussian = networks.feature_network(small[0]), gaussian_of(7)
    np.savez_compressed(tmp_path / "bomb.npz", mu=gaussian.mean, sigma=gaussian.covariance, more=np.zeros(1 << 20))
    assert (tmp_path / "bomb.npz").stat().st_size < 20_000
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "MAX_BYTES", 1 << 20)
        with pytest.raises(UserError, match=r"bomb.npz unpacks to 0.0 GiB, and at most 0 GiB are read"):
            statistics.load_statistics(tmp_path / "bomb.npz", network)
    np.savez(tmp_path / "texts.npz", mu=np.array(["a"] * 7), sigma=np.eye(7))
    np.savez(tmp_path / "count.npz", mu=gaussian.mean, sigma=gaussian.covariance, count=np.array("many"))
    with pytest.raises(UserError, match="has a mu of <U1 and a sigma of float64, and no numbers"):
        statistics.load_statistics(tmp_path / "texts.npz", network)
    assert statistics.load_statistics(tmp_path / "count.npz", network)[0].count is None
