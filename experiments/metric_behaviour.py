"""How FID, KID, coverage and the classes answer to damage of known size: noise, blur and classes that are not there.

Paper: none; Heusel et al. 2017 (arXiv:1706.08500, figure 3) looked at FID under noise, blur and others.
Data: glyphs, drawn on the spot, in colour, 32 pixels; the real ones and the damaged ones share none.
Hardware and time: two CPU cores (Intel Xeon), about 4 minutes of their time; 15 minutes beside much other work.
Expected: experiments/results/metric_behaviour.json and docs/metric_behaviour.png. FID and KID rise at every step of
    every damage in both networks, but noise up to 0.1, which the reader was trained with, hardly moves its own. Two
    sets of 1,000, 5,000 and 10,000 real glyphs are 1.41, 0.27 and 0.14 apart by FID in the reader's features (noise of
    0.8: 31, 20 of 34 classes: 5.6), of 1,000 and 5,000 in the compact network's 0.23 and 0.05; KID is 0 within its
    spread. The classes found are exactly those that are there; coverage is within 0.005 of the share that is left.
Command: python experiments/metric_behaviour.py --plot docs/metric_behaviour.png

Features are those of the reader of glyphs (128 numbers) and, pooled over the picture, of the compact perceptual
network. Noise is Gaussian, in units of the range [-1, 1]; blur is a Gaussian of that many pixels. Classes are left out
from the generated side alone, by throwing their glyphs away, O with 0 and I with 1, which the reader does not tell
apart. "real" is how far two sets of real glyphs are apart: the bias of FID from the number of images. KID has none.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import trange

from ganstyle_jax import data
from ganstyle_jax.commands import flags
from ganstyle_jax.data import glyphs
from ganstyle_jax.features import glyph_reader
from ganstyle_jax.io.files import UserError, atomic_path
from ganstyle_jax.io.images import to_uint8
from ganstyle_jax.judge import features, networks, sets
from ganstyle_jax.judge.metrics import distances, modes

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine

IMAGE_SIZE = 32
NOISE = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)  # standard deviations
BLUR = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # pixels
KEPT = (34, 30, 20, 10, 5, 2)  # classes
REAL_SEED, OTHER_SEED = 2_000_001, 2_000_002


@dataclasses.dataclass(frozen=True)
class Settings:
    """How many images."""

    images: int = 10_000  # real ones, and as many others; half of them lose classes
    damaged: int = 1_000  # of the others, for each level of noise and blur
    subset_size: int = 500  # of KID
    json: Path | None = Path("metric_behaviour.json")  # file for the record; a bare name goes into experiments/results/
    plot: Path | None = None  # picture of the curves


def main(settings: Settings) -> None:
    flags.use_cache()
    real, other = draw(REAL_SEED, settings.images), draw(OTHER_SEED, settings.images)
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "numpy", "scipy")),
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if not isinstance(v, Path)},
    }
    half = settings.images // 2
    few = {name: x[:half] for name, x in other.items()}
    damaged_images = other["image"][: settings.damaged]
    for name, extract in {"reader": reader_features, "compact": compact_features}.items():
        n = settings.images if name == "reader" else half  # the compact network takes longer
        of_real, of_other = extract(real["image"][:n]), extract(other["image"][:n])
        record[name] = {
            "dimensions": of_real.shape[1],
            "real": real_against_real(of_real, of_other, settings.subset_size),
            "noise": with_damage(of_real, damaged_images, noisy, NOISE, extract, settings.subset_size),
            "blur": with_damage(of_real, damaged_images, blurred, BLUR, extract, settings.subset_size),
            "classes": fewer_classes(of_real, of_other[:half], classes_of(few), KEPT, settings.subset_size),
        }
    record["modes"] = found_classes(few, glyph_reader.read(few["image"]), known(real), KEPT)
    record["coverage"] = coverage(
        reader_features(real["image"][:half]), classes_of(real)[:half], reader_features(other["image"]), other
    )
    if settings.json is not None:
        machine.write_record(settings.json, record)
    if settings.plot is not None:
        plot(record, settings.plot)
    print(json.dumps(record, indent=1))


# ---------------------------------------------------------------------------------------------------------------------
# Images and features


def draw(seed: int, count: int) -> dict[str, np.ndarray]:
    """Glyphs in colour: "image" (n, 32, 32, 3) uint8, "label" and the other factors."""
    drawn = [glyphs.draw(seed, i, IMAGE_SIZE) for i in trange(count, desc="drawing", leave=False)]
    return {name: np.stack([example[name] for example in drawn]) for name in drawn[0]}


def noisy(images: np.ndarray, strength: float) -> np.ndarray:
    """uint8 -> uint8 with Gaussian noise of that standard deviation, of the range [-1, 1]."""
    noise = np.random.default_rng(0).standard_normal(images.shape, np.float32)
    return to_uint8(data.to_float(images) + np.float32(strength) * noise)


def blurred(images: np.ndarray, radius: float) -> np.ndarray:
    """uint8 -> uint8, by a Gaussian whose standard deviation is `radius` pixels."""
    from scipy.ndimage import gaussian_filter

    return to_uint8(gaussian_filter(data.to_float(images), (0, radius, radius, 0), mode="nearest"))


def classes_of(drawn: dict[str, np.ndarray]) -> np.ndarray:
    """(n,) the 34 classes that can be told apart."""
    return glyph_reader.class_labels(drawn["label"])


def reader_features(images: np.ndarray) -> np.ndarray:
    """(n, 128) float32."""
    return glyph_reader.read(images).features


def compact_features(images: np.ndarray) -> np.ndarray:
    """(n, 352) float32, of the compact perceptual network, averaged over the picture."""
    network = compact()
    return features.extract(network, sets.images_from(images, network))[0]


@functools.cache
def compact() -> networks.FeatureNetwork:
    return networks.feature_network("compact")


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def apart(real: np.ndarray, fake: np.ndarray, subset_size: int) -> dict[str, float]:
    """FID and KID of features; KID of 50 subsets, smaller where there are fewer images."""
    fid = distances.frechet_distance(distances.gaussian(real), distances.gaussian(fake))
    mean, spread = distances.kid(real, fake, subsets=50, subset_size=min(subset_size, len(real), len(fake)), seed=0)
    return {"fid": fid, "kid": mean, "kid_spread": spread}


def real_against_real(real: np.ndarray, other: np.ndarray, subset_size: int) -> list[dict[str, Any]]:
    """Two sets of N images of one kind, for N = 1,000, 5,000 and 10,000 or what there are; means over all pairs."""
    rows = []
    for n in sorted({min(n, len(real)) for n in (1_000, 5_000, 10_000)}):
        starts = range(0, len(real) - n + 1, n)
        found = [apart(real[i : i + n], other[i : i + n], subset_size) for i in starts]
        row: dict[str, Any] = {"images": n, "pairs": len(found)}
        row |= {name: float(np.mean([each[name] for each in found])) for name in found[0]}
        rows.append(row | {"fid_spread": float(np.std([each["fid"] for each in found]))})
    return rows


def with_damage(
    of_real: np.ndarray,
    images: np.ndarray,
    damage: Callable[[np.ndarray, float], np.ndarray],
    levels: tuple[float, ...],
    extract: Callable[[np.ndarray], np.ndarray],
    subset_size: int,
) -> list[dict[str, float]]:
    return [{"level": x} | apart(of_real, extract(damage(images, x)), subset_size) for x in levels]


def fewer_classes(
    of_real: np.ndarray, of_other: np.ndarray, labels: np.ndarray, kept: tuple[int, ...], subset_size: int
) -> list[dict[str, float]]:
    """FID and KID when classes are left out of the generated side."""
    return [{"classes": n} | apart(of_real, of_other[np.isin(labels, order()[:n])], subset_size) for n in kept]


def order() -> np.ndarray:
    """The classes in the order in which they are kept longest."""
    return np.random.default_rng(0).permutation(len(glyph_reader.CLASSES))


def known(real: dict[str, np.ndarray]) -> modes.Accuracy:
    """What the reader makes of real glyphs."""
    reading = glyph_reader.read(real["image"])
    return modes.accuracy(reading.probabilities, classes_of(real), reading.threshold)


def found_classes(
    drawn: dict[str, np.ndarray], reading: glyph_reader.Reading, real: modes.Accuracy, kept: tuple[int, ...]
) -> list[dict[str, Any]]:
    """What the reader says of the classes when some are left out."""
    labels, rows = classes_of(drawn), []
    for n in kept:
        there = np.isin(labels, order()[:n])
        found = modes.modes(reading.probabilities[there], glyph_reader.shares(), real, reading.characters)
        missing = {glyph_reader.CLASSES[i] for i in order()[n:]}
        rows.append({"kept": n, "exact": set(found.missing) == missing} | found.as_dict())
    return rows


def coverage(
    of_real: np.ndarray, real_labels: np.ndarray, of_other: np.ndarray, other: dict[str, np.ndarray]
) -> list[dict[str, float]]:
    """Density and coverage (Naeem et al. 2020, k = 5) when classes are left out of the generated side.

    Give twice as many generated images as real ones: images of the same kind then cover 1 - (1/3)^k = 0.996; with as
    many as real ones it is 1 - (1/2)^k = 0.969, which is more than 0.03 from 1 before anything is lost.
    """
    labels, rows = classes_of(other), []
    for n in KEPT:
        kept = order()[:n]
        density, covered = distances.density_coverage(of_real, of_other[np.isin(labels, kept)])
        share = float(np.isin(real_labels, kept).mean())
        rows.append({"classes": n, "share_kept": share, "coverage": covered, "density": density})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Picture


def plot(record: dict[str, Any], path: Path) -> None:
    """Distances over damage, each over its largest, with a glyph at each level; coverage over the share kept."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), layout="constrained")
    styles = {
        ("reader", "fid"): ("#1f5fa8", "-", "o", "FID, glyph reader"),
        ("reader", "kid"): ("#1f5fa8", "--", "s", "KID, glyph reader"),
        ("compact", "fid"): ("#c2571a", "-", "o", "FID, compact network"),
        ("compact", "kid"): ("#c2571a", "--", "s", "KID, compact network"),
    }
    panels = [
        ("noise", "level", "Noise", "standard deviation, range [-1, 1]"),
        ("blur", "level", "Blur", "radius in pixels"),
        ("classes", "classes", "Classes left out", "classes that are left, of 34"),
    ]
    for axis, (name, key, title, label) in zip(axes, panels, strict=False):
        for (network, statistic), (colour, line, marker, text) in styles.items():
            rows = record[network][name]
            y = np.array([row[statistic] for row in rows])
            axis.plot(range(len(rows)), y / y.max(), line, color=colour, marker=marker, markersize=4, label=text)
        axis.set_title(title)
        axis.set_xlabel(label)
        axis.set_xticks(range(len(rows)), [f"{row[key]:g}" for row in rows])
    for axis, name, damage in ((axes[0], "noise", noisy), (axes[1], "blur", blurred)):
        glyph = glyphs.draw(REAL_SEED, 11, IMAGE_SIZE)["image"][None]
        rows = record["reader"][name]
        for i, row in enumerate(rows):
            inset = axis.inset_axes((i - 0.42, 1.07, 0.84, 0.2), transform=axis.transData)
            inset.imshow(damage(glyph, row["level"])[0])
            inset.set_axis_off()
    axes[0].set_ylabel("distance from real glyphs, over its largest")
    axes[2].legend(loc="upper left", fontsize=8)
    shares = [row["share_kept"] for row in record["coverage"]]
    axes[3].plot([0, 1], [0, 1], color="0.7", linewidth=1, label="what should be")
    axes[3].plot(shares, [row["coverage"] for row in record["coverage"]], "o-", color="#2d7d46", label="coverage")
    found = [row["covered"] / row["classes"] for row in record["modes"]]
    there = [row["kept"] / row["classes"] for row in record["modes"]]
    axes[3].plot(there, found, "D", color="#7a3a8c", label="classes found")
    axes[3].set_title("Coverage")
    axes[3].set_xlabel("share of glyphs or classes that is left")
    axes[3].legend(loc="upper left", fontsize=8)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_ylim(-0.05, 1.3)  # room for the glyphs
        axis.set_yticks(np.linspace(0, 1, 6))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
