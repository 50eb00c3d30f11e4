"""Fréchet distance of generated MNIST digits in the features of a LeNet.

This is FID (Heusel et al. 2017, arXiv:1706.08500, eq. 6) with a network that knows digits in the place of Inception.

    python experiments/lenet_fd.py samples.npz        # prints JSON, in ten seconds on one CPU core

The network is `weights/mnist_lenet.pth` (csinva/gan-vae-pretrained-pytorch, MIT): convolutions c1, c3, c5, 5x5 without
padding, each followed by ReLU and the first two by 2x2 max pooling, then the linear layers f6 and f7. The features are
the 84 outputs of f6 after its ReLU; f7 gives the logits of the ten digits.

Protocol: samples against the 10,000 images of the MNIST test set, both with 32 pixels a side as uint8. The test set is
resized from 28 pixels as `ganstyle_jax.data` resizes the training set, since the samples look like what the generator
was shown; the network was trained on padded images, yet is right more often on resized ones (99.1 % against 98.6 % of
the test set). The distance falls with the number of samples, so compare 10,000 with 10,000. The first 10,000 training
images, treated the same way, give the orientation value 1.27; twelve random draws of 10,000 training images, which a
perfect generator would be like, gave 1.01 +- 0.07 (standard deviation), so smaller differences mean nothing.

The digits are counted as `ganstyle_jax.judge.metrics.modes` counts classes. A sample is readable if its likeliest digit
has at least the probability that all but 1 in 200 images of the test set have.
"""

import dataclasses
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from ganstyle_jax.data import open_source
from ganstyle_jax.features.torch_files import find_state_dict, read_state_dict
from ganstyle_jax.io.files import UserError
from ganstyle_jax.io.images import to_uint8
from ganstyle_jax.judge.metrics import distances, modes

DATA = Path(os.environ.get("GANSTYLE_TEST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
IMAGE_SIZE = 32
REAL_IMAGES = 10_000  # the whole test set, and as many of the training set
UNREADABLE_REAL = 0.005  # share of the test set below the threshold
CHUNK = 250  # images at a time: 20 MB of patches


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What the LeNet says about n images."""

    features: np.ndarray  # (n, 84) float64, f6 after its ReLU
    probabilities: np.ndarray  # (n, 10) float64


@functools.cache
def load_lenet(path: Path = DATA / "weights" / "mnist_lenet.pth") -> dict[str, np.ndarray]:
    """The ten float32 tensors of the file in PyTorch's layout, (out, in, h, w) and (out, in). Raises UserError."""
    return find_state_dict(read_state_dict(path))


def features(images: Any, lenet: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """(n, 84) float64: f6 after its ReLU, of images (n, 32, 32[, 1]), uint8 or float in [-1, 1]. Raises UserError."""
    return classify(images, lenet).features


def classify(images: Any, lenet: dict[str, np.ndarray] | None = None) -> Outputs:
    """Features and probabilities of images (n, 32, 32[, 1]), uint8 or float in [-1, 1]. Raises UserError."""
    lenet = load_lenet() if lenet is None else lenet
    images = _as_uint8(images)
    parts = [_forward(images[i : i + CHUNK], lenet) for i in range(0, len(images), CHUNK)]
    hidden, logits = (np.concatenate(part).astype(np.float64) for part in zip(*parts, strict=True))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Outputs(hidden, exponentials / exponentials.sum(axis=1, keepdims=True))


def _forward(images: np.ndarray, lenet: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, 32, 32, 1) -> the hidden layer (n, 84) and the logits (n, 10), float32."""
    x = images.astype(np.float32) / 255  # the range that the network was trained on
    x = _max_pool(_relu(_convolve(x, lenet, "convnet.c1")))
    x = _max_pool(_relu(_convolve(x, lenet, "convnet.c3")))
    x = _relu(_convolve(x, lenet, "convnet.c5"))[:, 0, 0]
    hidden = _relu(x @ lenet["fc.f6.weight"].T + lenet["fc.f6.bias"])
    return hidden, hidden @ lenet["fc.f7.weight"].T + lenet["fc.f7.bias"]


def _convolve(x: np.ndarray, lenet: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Cross-correlation without padding, (n, h, w, c) -> (n, h - 4, w - 4, d)."""
    kernel = lenet[f"{name}.weight"]
    patches = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(1, 2))  # (n, h - 4, w - 4, c, 5, 5)
    return np.tensordot(patches, kernel, axes=((3, 4, 5), (1, 2, 3))) + lenet[f"{name}.bias"]


def _max_pool(x: np.ndarray) -> np.ndarray:
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _as_uint8(images: Any) -> np.ndarray:
    """(n, 32, 32, 1) uint8: both sides of the distance have 8 bits, as if the samples had been saved as pictures."""
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 1) or not len(images):
        raise UserError(
            f"The samples have shape {images.shape}, and (n, {IMAGE_SIZE}, {IMAGE_SIZE}, 1) is accepted: generate grey"
            f" images of {IMAGE_SIZE} pixels."
        )
    if images.dtype == np.uint8:
        return images
    try:
        pixels = to_uint8(images)
    except ValueError as error:
        raise UserError(f"The samples are no images ({error}): save uint8, or floats in [-1, 1].") from error
    low, high = float(images.min()), float(images.max())
    if low < -1.01 or high > 1.01:  # clipping would hide a wrong range, such as floats in [0, 255]
        raise UserError(f"The samples have values from {low:g} to {high:g}: save uint8, or floats in [-1, 1].")
    return pixels


def frechet_distance(features1: np.ndarray, features2: np.ndarray) -> float:
    """Between the Gaussians fitted to two sets of features (n, d) and (m, d); at least 0, in float64.

    Raises UserError for fewer than two images, whose covariance is undefined.
    """
    features1, features2 = np.asarray(features1, np.float64), np.asarray(features2, np.float64)
    if features1.ndim != 2 or features1.shape[1:] != features2.shape[1:] or min(len(features1), len(features2)) < 2:
        raise UserError(
            f"Features have shapes {features1.shape} and {features2.shape}: give (n, d) and (m, d) with n, m >= 2."
        )
    return distances.frechet_distance(distances.gaussian(features1), distances.gaussian(features2))


@functools.cache
def real(split: str, data: Path = DATA) -> Outputs:
    """The LeNet's outputs for the first 10,000 images of "x_train" or "x_test", resized to 32 pixels."""
    return classify(real_images(split, data), load_lenet(data / "weights" / "mnist_lenet.pth"))


def real_images(split: str, data: Path = DATA) -> np.ndarray:
    """The first 10,000 images of "x_train" or "x_test", (10000, 32, 32, 1) uint8, as a generator is trained on them."""
    source = open_source(str(data / "datasets" / "mnist.npz" / split), IMAGE_SIZE, channels=1)
    return np.stack([source.read(i)["image"] for i in range(REAL_IMAGES)])


@functools.cache
def known(data: Path = DATA) -> modes.Accuracy:
    """How well the LeNet reads the test set."""
    source = open_source(str(data / "datasets" / "mnist.npz" / "x_test"), IMAGE_SIZE, channels=1)
    labels = np.array([source.read(i)["label"] for i in range(REAL_IMAGES)])
    probabilities = real("x_test", data).probabilities
    return modes.accuracy(probabilities, labels, float(np.quantile(probabilities.max(axis=1), UNREADABLE_REAL)))


def evaluate(samples: Any, data: Path = DATA) -> dict[str, Any]:
    """Numbers for samples (n, 32, 32[, 1]), uint8 or float in [-1, 1]; under "real", those for 10,000 training images.

    lenet_fd: Fréchet distance to the test set. mean_top_probability: of the digit that the LeNet finds likeliest.
    digit_shares: of the ten digits by that choice. rarest_digit_share: the smallest of them; 0 is a lost mode, 0.09 is
    what the data have. modes: digits that are there, balance and unreadable samples, see metrics/modes.py, against the
    digits of the test set and with the LeNet's accuracy on it. `data` holds weights/mnist_lenet.pth and
    datasets/mnist.npz. Raises UserError.
    """
    outputs = classify(samples, load_lenet(data / "weights" / "mnist_lenet.pth"))
    test, accuracy = real("x_test", data), known(data)
    return {**_numbers(outputs, test, accuracy), "real": _numbers(real("x_train", data), test, accuracy)}


def _numbers(outputs: Outputs, test: Outputs, accuracy: modes.Accuracy) -> dict[str, Any]:
    digits = outputs.probabilities.argmax(axis=1)
    shares = np.bincount(digits, minlength=10) / len(digits)
    return {
        "images": len(digits),
        "lenet_fd": frechet_distance(outputs.features, test.features),
        "mean_top_probability": float(outputs.probabilities.max(axis=1).mean()),
        "digit_shares": shares.tolist(),
        "rarest_digit_share": float(shares.min()),
        "modes": modes.modes(outputs.probabilities, accuracy.counts / accuracy.images, accuracy).as_dict(),
    }


def main(samples: tyro.conf.Positional[Path], data: Path = DATA) -> None:
    """Prints the numbers of `evaluate` as JSON.

    Args:
        samples: .npz file with one array of images, (n, 32, 32, 1), uint8 or float in [-1, 1].
        data: folder with weights/mnist_lenet.pth and datasets/mnist.npz.
    """
    print(json.dumps(evaluate(load_samples(samples), data), indent=2))


def load_samples(path: Path) -> np.ndarray:
    """The array "images" or "samples" of an .npz file, or its only one. Raises UserError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(file.files)
            known = [name for name in ("images", "samples") if name in names] or names
            if len(known) == 1:
                return file[known[0]]
    except Exception as error:  # damaged archives fail in many ways
        raise UserError(f"Cannot read {path} ({error}): give an .npz file of images.") from error
    raise UserError(f"{path} holds the arrays {', '.join(names) or 'none'}: call the one with the images 'images'.")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except UserError as error:
        sys.exit(str(error))
