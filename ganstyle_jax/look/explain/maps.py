"""Real and made-up pictures on one map: their features by principal components and by t-SNE."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ganstyle_jax.look.explain import classes, projections
from ganstyle_jax.look.explain.sections import FAKE, REAL, Picture, Section, bare, figure, thumbnails
from ganstyle_jax.look.explain.subject import Settings, Subject

TITLE = "Real and made-up pictures on one map"
COMPONENTS = 50  # of the features, in which neighbours are looked for

# ---------------------------------------------------------------------------------------------------------------------
# What is computed


@dataclasses.dataclass(frozen=True)
class Points:
    """n real pictures and after them m made-up ones, as points."""

    points: np.ndarray  # (n + m, k) principal components of the features
    shares: np.ndarray  # (k,) of the spread
    real: int  # n

    @property
    def either(self) -> tuple[np.ndarray, np.ndarray]:
        return self.points[: self.real], self.points[self.real :]


def points_of(real: np.ndarray, fake: np.ndarray) -> Points:
    """Of pictures (n, h, w, c) and (m, h, w, c)."""
    features = np.concatenate([projections.features_of(real), projections.features_of(fake)])
    points, shares = projections.principal_components(features, min(COMPONENTS, len(features) - 1))
    return Points(points, shares, len(real))


def balanced(found: Points, count: int) -> np.ndarray:
    """Places of as many real as made-up points, at most `count` of either, (2 * k,): first the real ones."""
    n, m = map(len, found.either)
    either = min(count, n, m)
    return np.concatenate([np.arange(either), n + np.arange(either)])


def apart(points: np.ndarray, is_real: np.ndarray) -> float:
    """The share of points (n, d) whose nearest neighbour is of their own kind (Lopez-Paz & Oquab 2017)."""
    kinds = is_real.astype(int)
    return float((projections.nearest_classes(points, kinds, neighbours=1) == kinds).mean())


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn


def draw_thumbnails(file: Path, places: np.ndarray, pictures: Sequence[np.ndarray], is_real: np.ndarray) -> None:
    """Pictures (h, w, c) at their places (n, 2), in an order that prefers neither kind."""
    order = np.random.default_rng(0).permutation(len(places))
    with figure(file, 1, 1, 6.2) as (_, axes):
        colours = [REAL if is_real[i] else FAKE for i in order]
        thumbnails(axes[0, 0], places[order], np.stack([pictures[i] for i in order]), colours, zoom=0.062)
        axes[0, 0].set_xlabel("first principal component")
        axes[0, 0].set_ylabel("second principal component")
        bare(axes[0, 0])


def draw_classes(file: Path, sheet: np.ndarray, of: np.ndarray, is_real: np.ndarray, names: Sequence[str]) -> None:
    """Points of the sheet (n, 2) in the colours of their classes, each named on its middlemost real point, if any."""
    shown = np.unique(of)
    with figure(file, 1, 1, 6.6) as (drawing, axes):
        axis = axes[0, 0]
        for colour, k in zip(classes.colours(len(shown)), shown, strict=True):
            here = of == k
            axis.scatter(*sheet[here & is_real].T, s=22, color=colour, alpha=0.55, linewidths=0, label=names[int(k)])
            axis.scatter(*sheet[here & ~is_real].T, s=26, marker="x", color=colour, linewidths=1.3)
            inside = sheet[here & is_real] if (here & is_real).any() else sheet[here]
            centre = inside[np.median(projections.squared_distances(inside, inside), axis=1).argmin()]
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": colour, "alpha": 0.85}
            axis.annotate(classes.plain(names[int(k)]), centre, ha="center", va="center", weight="bold", bbox=box)
        axis.scatter([], [], s=22, color="black", alpha=0.55, linewidths=0, label="real")
        axis.scatter([], [], s=26, marker="x", color="black", linewidths=1.3, label="made up")
        handles, texts = axis.get_legend_handles_labels()
        drawing.legend(handles[-2:], texts[-2:], loc="outside upper center", ncols=2, frameon=False)
        axis.set_xticks([])
        axis.set_yticks([])


# ---------------------------------------------------------------------------------------------------------------------
# What is said


def sections(subject: Subject, out: Path, settings: Settings) -> list[Section]:
    """The map, which classes are made and, where there are latents, where the classes lie among them."""
    if subject.real is None:
        return [Section(TITLE, f"The map needs the real pictures, which are not to be had: {subject.absent}.")]
    real, fake = subject.real, subject.make(settings.drawn)
    found = points_of(real, fake)
    told = classes.told(*found.either, subject.labels, subject.names, settings.seed)
    kept = balanced(found, settings.count)
    is_real, places = kept < len(real), found.points[kept]
    sheet, _ = projections.tsne(places, min(30.0, (len(kept) - 2) / 3))
    pictures = [real[i] if i < len(real) else fake[i - len(real)] for i in kept]
    draw_thumbnails(out / "map-pca.png", places[:, :2], pictures, is_real)
    every = np.concatenate([told.real, told.fake])
    draw_classes(out / "map-tsne.png", sheet, every[kept], is_real, told.names)
    shown = Picture("map-pca.png", PCA_CAPTION), Picture("map-tsne.png", TSNE_CAPTION)
    section = Section(TITLE, text_of(found.shares, apart(places, is_real)), shown)
    return [section, *classes.sections(told, subject.latents, out)]


PCA_CAPTION = "Principal components of the features. Blue frames: real pictures; orange: made up."
TSNE_CAPTION = "t-SNE of the same features, coloured by class. Dots: real pictures; crosses: made up."


def text_of(shares: np.ndarray, own_kind: float) -> str:
    return (
        "Each picture is described by the features that the package's compact network has at relu3_1 (4,096 "
        "numbers), and these are laid out in two dimensions: first by principal components, of which the two shown "
        f"hold {shares[:2].sum():.0%} of the spread, then by t-SNE (van der Maaten & Hinton 2008), which keeps "
        "neighbours together and nothing else, so that the distances between its groups and their sizes mean "
        f"nothing. The nearest neighbour of {own_kind:.0%} of the pictures is of their own kind, real or made up: 50% "
        "would mean that these features cannot tell the two apart, 100% that no made-up picture passes (Lopez-Paz & "
        "Oquab 2017). Where the kinds mix, a group without crosses is a mode that the generator misses, as far as "
        "these features tell."
    )
