"""What is drawn for a report from the newest checkpoint of each run: walks, and samples with their neighbours."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ganstyle_jax import contract, data
from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge.metrics import memorisation
from ganstyle_jax.judge.metrics.memorisation import Memorisation
from ganstyle_jax.look import judged, page
from ganstyle_jax.look import walks as latent_walks
from ganstyle_jax.look.page import Block, Column, Film, Heading, Note, Section, Text
from ganstyle_jax.look.report.folder import Run
from ganstyle_jax.look.words import is_number, thinned
from ganstyle_jax.loop import runs

WALK_BYTES, NEAREST_BYTES = 4_000_000, 1_500_000  # of the page for pictures of a kind, over all runs
WALKS, STOPS, FRAMES = 8, 6, 10  # walks side by side; latents that each passes through; pictures from one to the next
PROBES, SHOWN = 256, 16  # samples looked for among the training images, and those of them that are shown


@dataclasses.dataclass(frozen=True)
class Titles:
    """The titles of the pictures that a method makes for one request, and how wide each of these is."""

    names: tuple[str, ...]
    widths: tuple[int, ...]  # pixels

    def over(self, width: int, padding: int = 2) -> tuple[str, ...]:
        """What stands over a grid of so many pixels: the titles, once for each request in a row."""
        row = sum(self.widths) + padding * len(self.widths)
        return self.names * max(1, round((width + padding) / row))


@dataclasses.dataclass(frozen=True)
class Drawn:
    sections: list[Section | None]
    titles: dict[str, Titles]  # by run, of those whose pictures have titles


def from_checkpoints(trained: Sequence[Run], training_images: int) -> Drawn:
    """Walks through latents, and samples beside the nearest of so many training images; notes where one cannot be."""
    walks, copies, titles = [], [], {}
    walk_notes, copy_notes = [], []
    for run in trained:
        try:
            loaded = runs.load(run.folder)
            print(f"{run.name}: drawing from the checkpoint of step {loaded.step}", file=sys.stderr, flush=True)
            first = loaded.draw(loaded.requests(jax.random.key(1), 1))
            frames = walk(loaded, WALK_BYTES / len(trained))
        except Exception as error:  # a method is anybody's code, and its settings may be of another version
            walk_notes.append(Note(f"{run.name}: nothing can be drawn, because {run.told(error)}."))
            continue
        if isinstance(first, Mapping):
            widths = tuple(int(pictures.shape[2]) for pictures in first.values())
            titles[run.name] = Titles(tuple(map(str, first)), widths)
        if frames is None:
            walk_notes.append(Note(f"{run.name}: there is no walk, since what it makes pictures of is no vectors."))
        else:
            walks.append((run, loaded.step, frames))
        if not training_images or judged.source_of(loaded) is None:
            continue
        try:
            copies.append((run, neighbours(run, loaded, training_images)))
        except (UserError, ValueError, OSError, data.CorruptImage) as error:
            text = f"{run.name}: the training images were not looked through: {run.told(error)}"
            copy_notes.append(Note(text))
    near = [nearest(copies) if copies else [], copy_notes]
    sections = [_walks(walks, walk_notes), page.section("Nearest training images", *near)]
    return Drawn(sections, titles)


def _walks(walks: Sequence[tuple[Run, int, list[page.Picture]]], notes: Sequence[Note]) -> Section | None:
    labels = tuple(f"latent {i // FRAMES + 1} + {i % FRAMES / FRAMES:.1f}" for i in range(STOPS * FRAMES))
    columns = tuple(
        Column(
            tuple(enumerate(pictures)),
            f"Walk through the latents of {run.name}",
            f"{run.name}, checkpoint of step {step:,}",
        )
        for run, step, pictures in walks
    )
    about = (
        "Each cell goes from latent to latent, by spherical interpolation, and back to the first. Of a good generator "
        "every picture on the way is a sample of its own; jumps, or blends of two pictures, speak of one that knows "
        "its training images by heart."
    )
    film = Film(labels, columns, "Place on the walk", fps=12) if columns else None
    return page.section("Latent walk", Text(about, soft=True) if film else None, film, notes)


def walk(loaded: runs.LoadedRun, budget: float) -> list[page.Picture] | None:
    """The frames of several walks side by side, in so many bytes together; None where there are no latents.

    What else is asked for, such as classes, stays the same along each walk.
    """
    asked = loaded.requests(jax.random.key(1), STOPS * WALKS)
    latents = contract.latents_of(asked)
    if latents is None:
        return None
    first = judged.pictures_of(loaded, jax.tree.map(lambda x: x[:1], asked))
    across = WALKS if max(first.shape[1:3]) < 128 else WALKS // 2
    latents = latents[: STOPS * across]
    path = latent_walks.walk(latents.reshape(STOPS, across, -1), FRAMES - 1).astype(latents.dtype)
    beside = jax.tree.map(lambda x: np.tile(x[:across], (len(path), *[1] * (x.ndim - 1))), asked)
    pictures = judged.pictures_of(loaded, contract.with_latents(beside, path.reshape(-1, latents.shape[1])))
    grids = [images.grid(frame, columns=across // 2) for frame in pictures.reshape(-1, across, *pictures.shape[1:])]
    return [page.encode(grid, budget / len(grids)) for grid in grids]


# ---------------------------------------------------------------------------------------------------------------------
# Training images


def neighbours(run: Run, loaded: runs.LoadedRun, training_images: int) -> Memorisation:
    """New samples, looked for among the run's training images. Raises what `memorisation.check` does and UserError."""
    seed = run.loop.get("seed", 0)
    source = judged.open_source(loaded, int(seed) if is_number(seed) else 0)
    samples = judged.pictures_of(loaded, loaded.requests(jax.random.key(2), PROBES))
    return memorisation.check(samples, source, training_images, shown=SHOWN)


def nearest(copies: Sequence[tuple[Run, Memorisation]]) -> list[Block | None]:
    """What to look for; of each run the samples nearest to a training image, and the distances of all."""
    about = (
        "had the generator copied its training images, samples (left of the line) and their nearest training images "
        "(right of it) would be the same pictures, and the curve of the samples' distances would lie to the left of "
        "that of real images and begin near 0. New pictures as good as real ones have a curve like theirs; worse ones "
        "lie to the right of it."
    )
    blocks: list[Block | None] = [Text(about, lead="What to look for: ")]
    for run, found in copies:
        first, real = found.sample_distances, found.real_distances
        partly = found.total is not None and found.total > found.compared
        of = f"{found.compared:,} of {found.total:,}" if partly else f"{found.compared:,}"
        blocks += [Heading(run.name)] if len(copies) > 1 else []
        near = (
            f"Among {of} training images the nearest one to each of {len(first)} samples lies at a median distance "
            f"of {np.median(first):.3f}, the smallest is {first.min():.3f}. From real images to the nearest other one "
            f"the median is {np.median(real):.3f} and the smallest {real.min():.3f}."
        )
        share = " are nearer to a training image than the nearest 1 % of real images are to another one; of new "
        share += "pictures as good as real ones about 1 % are."
        share += " A copy of an image that was not looked through would not show." if partly else ""
        blocks += [Text(near), Text(share, lead=f"{memorisation.share_too_near(found):.1%} of the samples")]
        series: dict[str, list[tuple[float, Any]]] = {"samples": ranks(first), "real images": ranks(real)}
        blocks.append(page.charts([page.chart("Share whose nearest is within", series, x="distance in features")]))
        count, each = found.distances.shape
        below = (
            f"The {count} samples nearest to a training image, the most suspicious first, with their nearest {each}. "
            "Below: the distance in features of the compact network, and the root mean square difference of pixels in "
            "grey levels of 255."
        )
        budget = NEAREST_BYTES / len(copies) / count / (1 + each)
        rows = tuple(_row(found, i, budget) for i in range(count))
        blocks += [Text(below, soft=True), page.Neighbours(rows)]
    return blocks


def _row(found: Memorisation, i: int, budget: float) -> tuple[tuple[page.Picture, str, tuple[str, ...]], ...]:
    cells: list[tuple[page.Picture, str, tuple[str, ...]]] = []
    cells.append((page.encode(found.samples[i], budget), "Sample", ("sample",)))
    triples = zip(found.neighbours[i], found.distances[i], found.pixel_distances[i], strict=True)
    for picture, distance, levels in triples:
        alt = f"Training image at distance {distance:.3f}"
        cells.append((page.encode(picture, budget), alt, (f"{distance:.3f}", f"{levels:.0f} levels")))
    return tuple(cells)


def ranks(distances: np.ndarray) -> list[tuple[float, Any]]:
    """The empirical distribution: (distance, share of all that are at most as large)."""
    ordered = np.sort(distances)
    points = [(float(f"{distance:.4g}"), (i + 1) / len(ordered)) for i, distance in enumerate(ordered)]
    return thinned(points, 200)
