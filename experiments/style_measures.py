"""What style_judge.py measures of a stylised picture: by a network's features, by its colours, by its finest structure.

    judge = Judge("vgg19", *weights.load_for_style("vgg19-8bit"))
    content, style = judge.look(content_picture), judge.look(style_picture)
    judge.measure(judge.look(result), content, style)["gram"]["whole"]["relu4_1"]

Pictures are (h, w, 3) float32 in [-1, 1]. A result and its content have one shape; a style may have any.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax.features import vgg
from ganstyle_jax.features.vgg import Network, Params
from ganstyle_jax.io.images import LUMA
from ganstyle_jax.judge.metrics.distances import Gaussian, frechet_distance, gaussian

# Where styles are compared, and content: of SqueezeNet one tap at every stride and the last, and for the content the
# last of stride 8, which is the stride of relu4_2.
TAPS = {
    "VGG": (("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"), "relu4_2"),
    "SqueezeNet": (("relu1", "fire3", "fire5", "fire7", "fire9"), "fire5"),
}
BORDER = 16  # the border is 1 / BORDER of each side, at least one place
PLACES = ("whole", "borders", "middle")
LEVEL = 2 / 255  # of a colour with 8 bits
ALTERNATING = 4  # levels by which a pixel must stand out from both of its neighbours


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """A picture as a judge sees it."""

    features: dict[str, np.ndarray]  # (h', w', c) float32 of each tap

    @functools.cached_property
    def grams(self) -> dict[str, np.ndarray]:
        return {tap: _gram(x.reshape(-1, x.shape[-1])) for tap, x in self.features.items()}

    @functools.cached_property
    def gaussians(self) -> dict[str, Gaussian]:
        """Mean and covariance of the features over places."""
        return {tap: gaussian(x.reshape(-1, x.shape[-1])) for tap, x in self.features.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """A network to judge by."""

    name: str
    network: Network
    params: Params

    @property
    def style_taps(self) -> tuple[str, ...]:
        return TAPS[type(self.network).__name__][0]

    @property
    def content_tap(self) -> str:
        return TAPS[type(self.network).__name__][1]

    @property
    def smallest_side(self) -> int:
        return self.network.smallest_side((*self.style_taps, self.content_tap))

    @functools.cached_property
    def _apply(self) -> Any:
        taps = tuple(dict.fromkeys((*self.style_taps, self.content_tap)))
        params = vgg.prepare(self.network, self.params)
        apply = jax.jit(lambda params, images: self.network.apply(params, images, taps))
        return functools.partial(apply, params)

    def look(self, picture: np.ndarray) -> Seen:
        with jax.default_matmul_precision("highest"):
            found = self._apply(jnp.asarray(picture, jnp.float32)[None])
        return Seen({tap: np.asarray(x[0]) for tap, x in found.items()})

    def measure(self, result: Seen, content: Seen, style: Seen) -> dict[str, Any]:
        """How far the result is from the style and from the content; 0 where it is the same.

        "gram": {place: {tap: |G - G_s|^2 / |G_s|^2}}, where G is taken over the whole, the borders or the middle of the
        result and G_s over the whole style, which is what any part of the result is to look like. Features are those of
        the whole picture. None where no place is left. "content": {place: |F - F_c|^2 / |F_c|^2} at the content tap.
        "frechet": mean over the taps of the squared Fréchet distance of the features' Gaussians over places, relative
        to the style's mean square. "cosine": mean over the taps of 1 less the cosine of a place's features and the
        content's there, as LPIPS without its learned weights. "combined": (1 + cosine)(1 + frechet), which is built as
        ArtFID is and is not ArtFID: one picture and one style in the place of distributions, other networks.
        """
        gram: dict[str, dict[str, float | None]] = {place: {} for place in PLACES}
        for tap in self.style_taps:
            target = style.grams[tap]
            for place, features in parts(result.features[tap]).items():
                found = None if not len(features) else relative(_gram(features), target)
                gram[place][tap] = found
        found, target = (parts(seen.features[self.content_tap]) for seen in (result, content))
        frechet = float(np.mean([_frechet(result.gaussians[tap], style.gaussians[tap]) for tap in self.style_taps]))
        cosine = float(np.mean([_cosine(result.features[tap], content.features[tap]) for tap in self.style_taps]))
        return {
            "gram": gram,
            "content": {p: relative(found[p], target[p]) if len(found[p]) else None for p in PLACES},
            "frechet": frechet,
            "cosine": cosine,
            "combined": (1 + cosine) * (1 + frechet),
        }


def parts(features: np.ndarray) -> dict[str, np.ndarray]:
    """Features (h, w, c) of each of `PLACES`, (places, c). The border is at least one place wide."""
    height, width, channels = features.shape
    middle = np.zeros((height, width), bool)
    rows, columns = (max(1, round(side / BORDER)) for side in (height, width))
    middle[rows : height - rows, columns : width - columns] = True
    return {"whole": features.reshape(-1, channels), "borders": features[~middle], "middle": features[middle]}


def relative(found: np.ndarray, target: np.ndarray) -> float:
    """|found - target|^2 / |target|^2."""
    found, target = np.asarray(found, np.float64), np.asarray(target, np.float64)
    return float(((found - target) ** 2).sum() / max((target**2).sum(), 1e-12))


def _gram(features: np.ndarray) -> np.ndarray:
    return features.T @ features / len(features)


def _frechet(found: Gaussian, target: Gaussian) -> float:
    size = np.trace(target.covariance) + target.mean @ target.mean
    return frechet_distance(target, found) / max(float(size), 1e-12)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over places of 1 less the cosine; places without features equal each other and nothing else."""
    products, lengths = (a * b).sum(-1), np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    empty = (a * a).sum(-1) + (b * b).sum(-1) == 0
    cosines = np.where(empty, 1, products / np.maximum(lengths, 1e-20))
    return float(np.clip(1 - cosines, 0, None).mean())


# ---------------------------------------------------------------------------------------------------------------------
# Without a network


def colours(result: np.ndarray, style: np.ndarray) -> dict[str, float]:
    """How far the colours are from the style's, and how many are lost.

    "distance": of Gaussians with the colours' means and covariances (2-Wasserstein), in levels of 8 bits. "mean": of
    the means alone. "spread": the standard deviation of all colours over the style's. "clipped_percent": of the values
    that are black or white in a channel, within half a level. "clipped_percent_style": the style's own.
    """
    found, target = (gaussian(picture.reshape(-1, 3)) for picture in (result, style))
    spread = np.trace(found.covariance) / max(float(np.trace(target.covariance)), 1e-12)
    return {
        "distance": math.sqrt(frechet_distance(target, found)) / LEVEL,
        "mean": float(np.linalg.norm(found.mean - target.mean)) / LEVEL,
        "spread": math.sqrt(spread),
        "clipped_percent": _clipped(result),
        "clipped_percent_style": _clipped(style),
    }


def _clipped(picture: np.ndarray) -> float:
    return float(100 * (np.abs(picture) > 1 - LEVEL / 2).mean())


def finest(picture: np.ndarray) -> dict[str, float]:
    """What hatching and banding are made of.

    "luma", "chroma": root mean square in levels of 8 bits of what lies in the top octave of frequencies, periods of 2
    to 4 pixels down or across; chroma is what colours differ from their brightness by. "luma_next", "chroma_next": in
    the octave below, periods of 4 to 8 pixels. "alternating_percent": of the pixels that are brighter or darker than
    both neighbours across, or than both down, by more than 4 levels.
    """
    luma = picture @ LUMA
    grey, colour = _octaves(luma[..., None]), _octaves(picture - luma[..., None])
    return {
        "luma": grey[0],
        "chroma": colour[0],
        "luma_next": grey[1],
        "chroma_next": colour[1],
        "alternating_percent": _alternating(luma),
    }


def _octaves(picture: np.ndarray) -> tuple[float, float]:
    """Root mean square of the two highest octaves, (h, w, c): of a picture faded out towards its ends."""
    height, width = picture.shape[:2]
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    power = np.abs(np.fft.fft2((picture - picture.mean((0, 1))) * window[..., None], axes=(0, 1))) ** 2
    power = power.mean(-1) / (height * width * (window**2).sum())
    frequency = np.maximum(np.abs(np.fft.fftfreq(height))[:, None], np.abs(np.fft.fftfreq(width)))
    top, below = frequency >= 1 / 4, (frequency >= 1 / 8) & (frequency < 1 / 4)
    highest, next_one = (float(np.sqrt(power[octave].sum())) / LEVEL for octave in (top, below))
    return highest, next_one


def _alternating(luma: np.ndarray) -> float:
    stands_out = np.zeros(luma.shape, bool)
    for picture, found in ((luma, stands_out), (luma.T, stands_out.T)):
        steps = np.diff(picture, axis=1)
        before, after = steps[:, :-1], steps[:, 1:]
        found[:, 1:-1] |= (before * after < 0) & (np.minimum(np.abs(before), np.abs(after)) > ALTERNATING * LEVEL)
    return float(100 * stands_out.mean())


def rounded(found: Any) -> Any:
    """Six digits of each number, for a record."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    return None if found is None else float(f"{found:.6g}")
