"""Which classes are made, how often, and where they lie among the latents, as far as neighbours tell."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax.look.explain import projections
from ganstyle_jax.look.explain.sections import FAKE, REAL, Picture, Section, figure

CLUSTERS = 8  # that stand in for classes where there are none
DRAWN = 300  # latents that are drawn

# ---------------------------------------------------------------------------------------------------------------------
# What is computed


@dataclasses.dataclass(frozen=True)
class Told:
    """Classes of n real and m made-up pictures."""

    real: np.ndarray  # (n,)
    fake: np.ndarray  # (m,) of the nearest real ones
    names: tuple[str, ...]
    right: float | None  # share of the real ones that are told right in the same way; None: the classes are clusters

    @property
    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        """How often each class occurs among the real ones and among the made-up ones, (classes,) each."""
        real, fake = (np.bincount(kind, minlength=len(self.names)) / len(kind) for kind in (self.real, self.fake))
        return real, fake

    @property
    def errors(self) -> tuple[np.ndarray, np.ndarray]:
        """One standard error of each share, as of a sample."""
        pairs = zip(self.shares, (self.real, self.fake), strict=True)
        real, fake = (np.sqrt(share * (1 - share) / len(kind)) for share, kind in pairs)
        return real, fake

    @property
    def rare(self) -> list[str]:
        """The classes that are made less than half as often as they occur."""
        real, fake = self.shares
        return [str(name) for name, r, f in zip(self.names, real, fake, strict=True) if f < r / 2]


def told(real: np.ndarray, fake: np.ndarray, labels: np.ndarray | None, names: Sequence[str], seed: int) -> Told:
    """Points (n, d) and (m, d): by the labels (n,) of the real ones or, without any, by clusters of them."""
    if labels is not None:
        right = float((projections.nearest_classes(real, labels) == labels).mean())
        return Told(labels, projections.nearest_classes(real, labels, fake), tuple(map(str, names)), right)
    from scipy.cluster.vq import kmeans2

    clusters = min(CLUSTERS, len(real) // 4)
    begin = np.random.default_rng(seed).choice(len(real), clusters, replace=False)
    labels = np.asarray(kmeans2(real, real[begin], minit="matrix")[1], int)
    found = projections.nearest_classes(real, labels, fake)
    return Told(labels, found, tuple(str(i + 1) for i in range(clusters)), None)


@dataclasses.dataclass(frozen=True)
class Discriminant:
    """Fisher's discriminant of latents by class, fitted on one half of them and tried on the other."""

    fitted: int  # latents that it was fitted on
    latents: np.ndarray  # (k, d) the others
    classes: np.ndarray  # (k,) theirs
    directions: np.ndarray  # (j, d)
    right: float  # share of the others whose class it tells
    chance: float  # share that naming the commonest class would

    @property
    def usable(self) -> np.ndarray:
        return np.unique(self.classes)


def discriminant(latents: np.ndarray, classes: np.ndarray) -> Discriminant | None:
    """Of latents (n, d) and their classes (n,); None where there are too few of too few classes."""
    half = len(latents) // 2
    usable = np.flatnonzero(np.bincount(classes[:half]) >= 5)
    if len(usable) < 3 or latents.shape[1] < 2:
        return None
    inside = np.isin(classes, usable)
    first = np.arange(len(latents)) < half
    train, train_classes = latents[first & inside], classes[first & inside]
    test, test_classes = latents[~first & inside], classes[~first & inside]
    if len(test) < 8:
        return None
    axes = projections.discriminant_directions(train, train_classes, min(len(usable) - 1, latents.shape[1]))
    means = np.stack([(train @ axes.T)[train_classes == k].mean(0) for k in usable])
    guess = usable[projections.squared_distances(test @ axes.T, means).argmin(1)]
    chance = max(np.mean(test_classes == k) for k in usable)
    right = float((guess == test_classes).mean())
    return Discriminant(len(train), test, test_classes, axes, right, float(chance))


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn


def colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["tab10" if count <= 10 else "tab20"](i % 20) for i in range(count)]


def plain(name: str) -> str:
    """The name of a class without what matplotlib takes for mathematics."""
    return str(name).replace("$", r"\$")


def draw_balance(file: Path, found: Told) -> None:
    shown = np.flatnonzero(sum(found.shares))
    with figure(file, 1, 1, 3.2) as (_, axes):
        axis, places = axes[0, 0], np.arange(len(shown))
        kinds = zip((-0.2, 0.2), found.shares, found.errors, (REAL, FAKE), ("real", "made up"), strict=True)
        for shift, share, error, colour, label in kinds:
            axis.bar(places + shift, 100 * share[shown], 0.4, color=colour, label=label)
            bars = {"fmt": "none", "ecolor": "black", "elinewidth": 1}
            axis.errorbar(places + shift, 100 * share[shown], 100 * error[shown], **bars)
        labels = [plain(found.names[k][:12]) for k in shown]
        axis.set_xticks(places, labels, rotation=0 if len(shown) <= 12 else 90)
        axis.set_ylabel("share, %")
        axis.legend(frameon=False, ncols=2)


def draw_latents(file: Path, found: Discriminant, names: Sequence[str]) -> None:
    usable = found.usable
    palette = dict(zip(usable, colours(len(usable)), strict=True))
    views = {
        "principal components": projections.principal_components(found.latents)[0],
        "Fisher's discriminant": found.latents @ found.directions[:2].T,
    }
    with figure(file, 1, 2, 3.5) as (_, axes):
        for axis, (title, places) in zip(axes[0], views.items(), strict=True):
            for place, k in zip(places[:DRAWN], found.classes[:DRAWN], strict=True):
                look = {"ha": "center", "va": "center", "fontsize": 9, "weight": "bold"}
                axis.text(*place, plain(names[int(k)][:2]), color=palette[k], **look)
            low, high = places[:DRAWN].min(0) - 0.3, places[:DRAWN].max(0) + 0.3
            axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), title=title, xticks=[], yticks=[])


# ---------------------------------------------------------------------------------------------------------------------
# What is said


def sections(found: Told, latents: np.ndarray | None, out: Path) -> list[Section]:
    """latents: of the made-up pictures, the first of (n, d), or None."""
    draw_balance(out / "balance.png", found)
    shown = Picture("balance.png", BALANCE_CAPTION)
    sections = [Section("Which classes are made, and how often", balance_text(found), (shown,))]
    fitted = None if latents is None else discriminant(latents[: len(found.fake)], found.fake)
    if fitted is not None:
        draw_latents(out / "map-latents.png", fitted, found.names)
        caption = f"{min(len(fitted.latents), DRAWN)} latents by class. Their places are on a scale of sigma."
        picture = Picture("map-latents.png", caption)
        sections.append(Section("Where the classes lie among the latents", latents_text(fitted), (picture,)))
    return sections


BALANCE_CAPTION = "How often each class occurs. The thin bars are one standard error of the sample."


def balance_text(found: Told) -> str:
    if found.right is not None:
        text = (
            "A made-up picture counts as of the class that most of its 5 nearest real ones have, by the features of "
            f"the map; of {len(found.real)} real pictures told the same way by the others {found.right:.1%} come out "
            "right, so that errors of the reading are in the shares too. "
        )
    else:
        text = (
            f"These data have no classes; {len(found.names)} clusters of the real pictures (k-means) stand in for "
            "them, and a made-up picture counts as of the cluster that most of its 5 nearest real ones belong to. "
        )
    if found.rare:
        text += f"Made less than half as often as they occur in the data: {', '.join(found.rare)}."
    else:
        text += "No class is made less than half as often as it occurs in the data."
    return text + (
        " A class that is made often need not be made well, and a made-up picture that is nothing at all is counted "
        "as something."
    )


def latents_text(found: Discriminant) -> str:
    return (
        "Each mark is a latent, written as the class of the picture that it becomes. Latents are drawn from one "
        "round cloud, so that their principal components (left) show nothing of the classes; Fisher's discriminant "
        f"(right) looks for the plane in which the classes lie farthest apart, and was fitted on {found.fitted} "
        f"latents that are not shown. By its {len(found.directions)} directions it tells the classes of "
        f"{len(found.latents)} others right in {found.right:.0%} of the cases, where always naming the commonest would "
        f"in {found.chance:.0%}: as far as it does better, the class is a matter of straight directions among the "
        "latents. What it cannot tell may still be there, in a curved way."
    )
