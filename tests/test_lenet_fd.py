"""The Fréchet distance in closed form, and the LeNet against PyTorch and the test set's labels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import load_script

from ganstyle_jax.io.files import UserError

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "experiments" / "lenet_fd.py"
REQUIRED = os.environ.get("GANSTYLE_REQUIRE_DATA") == "1"


lenet_fd = load_script("lenet_fd")


@pytest.fixture(scope="session")
def mnist(data_dir) -> Path:
    """The data folder, if it has the two files that the script needs."""
    missing = [name for name in ("weights/mnist_lenet.pth", "datasets/mnist.npz") if not (data_dir / name).is_file()]
    if missing and REQUIRED:
        pytest.fail(f"{data_dir} lacks {missing}")
    if missing:
        pytest.skip(f"{data_dir} lacks {missing}")
    return data_dir


def gaussian(seed: int, n: int = 60, d: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def test_distance_to_itself_is_zero_and_to_a_shifted_copy_the_squared_shift():
    x, shift = gaussian(0), np.array([1.0, -2, 0, 0.5, 0])
    assert lenet_fd.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)  # eigenvalues of order 10, roots of 1e-15
    assert lenet_fd.frechet_distance(x, x + shift) == pytest.approx(5.25, abs=1e-6)
    assert lenet_fd.frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-6)


def test_distance_of_diagonal_gaussians():
    """Independent dimensions: the sum of (difference of means)^2 + (difference of standard deviations)^2."""
    signs = np.array([[a, b] for a in (-1, 1) for b in (-1, 1)]) * np.sqrt(3 / 4)  # unbiased covariance: identity
    first, second = signs * [1, 2] + [0, 1], signs * [4, 0.5] + [2, 1]
    assert lenet_fd.frechet_distance(first, second) == pytest.approx(2**2 + 3**2 + 1.5**2, rel=1e-12)


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(3, 40))
def test_distance_equals_the_formula_with_sqrtm(seed1, seed2, n):
    """Against the general matrix square root of S1 S2; n = 3 makes covariances singular."""
    linalg = pytest.importorskip("scipy.linalg", reason="scipy comes with jax and serves as the reference")
    x, y = gaussian(seed1, n), gaussian(seed2, n + 20)
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(s1 @ s2).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root)
    scale = np.trace(s1 + s2)
    # sqrtm loses half of the digits of a singular matrix.
    assert lenet_fd.frechet_distance(x, y) == pytest.approx(max(expected, 0), abs=1e-5 * scale, rel=1e-6)
    assert lenet_fd.frechet_distance(y, x) == pytest.approx(lenet_fd.frechet_distance(x, y), abs=1e-7 * scale)


@given(st.integers(0, 10_000))
def test_distance_ignores_rotation_and_scales_with_the_square(seed):
    x, y = gaussian(seed), gaussian(seed + 1)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0]
    distance = lenet_fd.frechet_distance(x, y)
    assert distance > 0
    assert lenet_fd.frechet_distance(x @ rotation, y @ rotation) == pytest.approx(distance, rel=1e-6)
    assert lenet_fd.frechet_distance(3 * x, 3 * y) == pytest.approx(9 * distance, rel=1e-6)


def test_distance_errors():
    with pytest.raises(UserError, match=r"shapes \(1, 5\) and \(60, 5\)"):
        lenet_fd.frechet_distance(gaussian(0, 1), gaussian(0))
    with pytest.raises(UserError, match=r"shapes \(60, 5\) and \(60, 4\)"):
        lenet_fd.frechet_distance(gaussian(0), gaussian(0, d=4))


def test_network_equals_torch(mnist):
    try:
        import torch
        import torch.nn.functional as F
    except ImportError:
        if REQUIRED:
            raise
        pytest.skip("needs PyTorch, the reference")
    torch.set_num_threads(1)
    path = mnist / "weights" / "mnist_lenet.pth"
    state = torch.load(path, weights_only=True)
    # More than one chunk, so that the seam between chunks is seen too.
    pixels = np.random.default_rng(0).integers(0, 256, (lenet_fd.CHUNK + 3, 32, 32, 1), dtype=np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255

    def layer(x, name):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"]).relu()

    x = F.max_pool2d(layer(x, "convnet.c1"), 2)
    x = F.max_pool2d(layer(x, "convnet.c3"), 2)
    x = layer(x, "convnet.c5").flatten(1)
    hidden = F.linear(x, state["fc.f6.weight"], state["fc.f6.bias"]).relu()
    probabilities = F.linear(hidden, state["fc.f7.weight"], state["fc.f7.bias"]).softmax(dim=1)

    got = lenet_fd.classify(pixels, lenet_fd.load_lenet(path))
    assert got.features.shape == (len(pixels), 84) and got.features.dtype == np.float64
    assert (got.features > 0).mean() > 0.1  # the comparison is not one of zeros
    np.testing.assert_allclose(got.features, hidden.numpy(), atol=1e-4)  # float32, sums in another order
    np.testing.assert_allclose(got.probabilities, probabilities.numpy(), atol=1e-5)
    floats = pixels.astype(np.float32)[..., 0] / 127.5 - 1
    np.testing.assert_array_equal(lenet_fd.features(floats, lenet_fd.load_lenet(path)), got.features)


def test_accuracy_on_the_test_set(mnist, capsys):
    """98.6 % on images padded to 32 pixels, as it was trained, and 99.1 % on resized ones, which the protocol uses."""
    lenet = lenet_fd.load_lenet(mnist / "weights" / "mnist_lenet.pth")
    with np.load(mnist / "datasets" / "mnist.npz") as file:
        images, labels = file["x_test"][:1000], file["y_test"][:1000]
    resized = lenet_fd.real_images("x_test", mnist)
    assert resized.shape == (10_000, 32, 32, 1) and resized.dtype == np.uint8
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    for name, pixels in (("padded", padded), ("resized", resized[:1000])):
        accuracy = (lenet_fd.classify(pixels, lenet).probabilities.argmax(axis=1) == labels).mean()
        with capsys.disabled():
            print(f" [LeNet on {name} images: {accuracy:.1%}]", end="")
        assert accuracy > 0.97


def test_command_on_real_and_spoiled_digits(mnist, tmp_path, capsys):
    """Training digits come close to the test set; the same digits with noise, and a single digit, do not."""
    train = lenet_fd.real_images("x_train", mnist)[:2000]
    np.savez(tmp_path / "train.npz", images=train)
    tyro.cli(lenet_fd.main, args=[str(tmp_path / "train.npz"), "--data", str(mnist)])
    good = json.loads(capsys.readouterr().out)
    assert good["images"] == 2000 and good["real"]["images"] == 10_000
    assert good["real"]["lenet_fd"] == pytest.approx(1.268, abs=0.01)  # the orientation value
    assert good["real"]["lenet_fd"] < good["lenet_fd"] < 6  # fewer images, larger distance
    assert sum(good["digit_shares"]) == pytest.approx(1)
    assert good["rarest_digit_share"] == min(good["digit_shares"]) > 0.07
    assert good["mean_top_probability"] > 0.98
    assert good["modes"]["covered"] == 10 and good["modes"]["real_accuracy"] == pytest.approx(0.991, abs=0.001)
    assert good["modes"]["real_unreadable"] == pytest.approx(0.005, abs=0.0002) and good["modes"]["unreadable"] < 0.02
    assert good["modes"]["kl"] < 5 * good["modes"]["kl_by_chance"]  # of 2,000 digits of another sample

    noise = np.random.default_rng(0).normal(size=train.shape) * 0.3
    noisy = lenet_fd.evaluate(np.clip(train / 127.5 - 1 + noise, -1, 1), mnist)
    assert noisy["lenet_fd"] > 2 * good["lenet_fd"]
    digits = lenet_fd.classify(train, lenet_fd.load_lenet(mnist / "weights" / "mnist_lenet.pth")).probabilities
    ones = lenet_fd.evaluate(train[digits.argmax(axis=1) == 1], mnist)
    assert ones["rarest_digit_share"] == 0 and ones["digit_shares"][1] == 1
    assert ones["lenet_fd"] > 10 * good["lenet_fd"]
    assert ones["modes"]["missing"] == list("023456789") and ones["modes"]["entropy"] == 0
    assert ones["modes"]["kl"] == pytest.approx(np.log(10_000 / 1135))  # there are 1,135 ones in the test set
    assert noisy["real"] == ones["real"] == good["real"]


def test_samples_that_are_refused(tmp_path):
    for samples, words in (
        (np.zeros((2, 28, 28, 1)), r"shape \(2, 28, 28, 1\)"),
        (np.zeros((2, 32, 32, 3), np.uint8), r"shape \(2, 32, 32, 3\)"),
        (np.zeros((0, 32, 32, 1), np.uint8), r"shape \(0, 32, 32, 1\)"),
        (np.full((2, 32, 32, 1), 255.0), "values from 255 to 255"),
        (np.full((2, 32, 32, 1), np.nan), "NaN"),
        (np.zeros((2, 32, 32, 1), np.int64), "int64"),
    ):
        with pytest.raises(UserError, match=words):
            lenet_fd.features(samples, lenet={})
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    with pytest.raises(UserError, match="the arrays a, b: call the one with the images 'images'"):
        lenet_fd.load_samples(tmp_path / "two.npz")
    np.savez(tmp_path / "one.npz", np.ones(3))
    np.testing.assert_array_equal(lenet_fd.load_samples(tmp_path / "one.npz"), np.ones(3))
    (tmp_path / "bad.npz").write_bytes(b"text")
    with pytest.raises(UserError, match=r"Cannot read .*bad\.npz"):
        lenet_fd.load_samples(tmp_path / "bad.npz")


def test_command_reports_errors_in_a_sentence(tmp_path):
    command = [sys.executable, SCRIPT, tmp_path / "absent.npz"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1 and not done.stdout
    assert "absent.npz" in done.stderr and "Traceback" not in done.stderr
