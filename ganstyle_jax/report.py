"""`ganstyle report`: one HTML file that shows runs, alone or side by side, and opens in any browser without a network.

What it shows of a training run: settings, curves, collapse, evaluations, a slider through the sample grids, a walk
through latent space, the training images nearest to samples, and what `ganstyle explain` left. Of a run of `ganstyle
stylize --run-dir`: the pictures, a slider through the optimisation, and the loss by term and by layer.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from ganstyle_jax import __version__, data, images, page, runs
from ganstyle_jax.files import UserError, atomic_path, first_line
from ganstyle_jax.metrics import memorisation
from ganstyle_jax.metrics.memorisation import Memorisation
from ganstyle_jax.page import Html, Page, is_number, join, note, paragraph, tag, worded

# Bytes of the page for the pictures of a kind, over all runs; together below some 20 MB.
SAMPLE_BYTES, WALK_BYTES, NEAREST_BYTES = 7_000_000, 4_000_000, 1_500_000
STYLE_BYTES, EXPLAIN_BYTES = 5_000_000, 3_000_000
MOST_GRIDS = 40  # sample grids of a run; of more, evenly chosen ones are shown
WALKS, STOPS, FRAMES = 8, 6, 10  # walks side by side; latents that each passes through; pictures from one to the next
PROBES, SHOWN = 256, 16  # samples looked for among the training images, and those of them that are shown

# Which way a metric is better; others are not judged.
BETTER: dict[str, Callable] = {
    **dict.fromkeys(("fid", "kid", "sliced_wasserstein", "ms_ssim", "lpips", "art_fid", "cfsd"), min),
    **dict.fromkeys(("glyphs_unreadable", "glyphs_kl", "glyphs_total_variation"), min),
    **dict.fromkeys(("inception_score", "precision", "recall", "density", "coverage", "psnr", "psnr_y", "ssim"), max),
    "glyphs_covered": max,
}
ARROWS = {min: " ↓", max: " ↑", None: ""}
SPREADS = ("_spread", "_std")  # of a metric, under its name with this ending


def write(folders: Sequence[Path], out: Path, training_images: int = 5000) -> Path:
    """Writes the report of these run folders and returns its path. Raises UserError for what is no run folder.

    training_images: how many of a run's training images are looked through for those nearest to its samples; 0 leaves
    that out. What else a run lacks, such as a checkpoint, is said in the page.
    """
    if not folders:
        raise UserError("no run is given: name at least one run folder")
    if training_images < 0:
        raise UserError(f"--training-images must be 0 or more, got {training_images}")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out must end in .html, got {out}")
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the name of a file")
    found = [read(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]
    made = Page()
    body = render(found, made, training_images)
    with atomic_path(out) as path:
        made.write(path, f"Report: {', '.join(run.name for run in found)}", body)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run folder holds in words and numbers."""

    folder: Path
    name: str
    description: dict[str, Any]  # run.json
    lines: list[dict[str, Any]]  # metrics.jsonl
    evaluations: list[dict[str, Any]]  # evaluations.jsonl

    @property
    def is_style(self) -> bool:
        return self.description["method"] == "gatys"

    @property
    def step(self) -> int:
        """How far it has come."""
        return max((line["step"] for line in self.lines), default=0)

    @property
    def settings(self) -> dict[str, Any]:
        """All of run.json that was chosen, by name."""
        told = {"method": self.description["method"], "data": self.description["data"]}
        return told | self.description["config"] | {k: v for k, v in self.description["loop"].items() if k != "run_dir"}

    def points(self, name: str) -> list[tuple[float, Any]]:
        """A metric's values by step."""
        return [(line["step"], line[name]) for line in self.lines if name in line]


def read(folder: Path | str, name: str) -> Run:
    """Raises UserError where there is no run, or a file of it cannot be read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"there is no run folder {folder}: give one that ganstyle train or ganstyle stylize --run-dir left"
        )
    description = runs.read(folder)
    lines = [line for line in runs.read_lines(folder / "metrics.jsonl") if is_number(line.get("step"))]
    records = [record for record in runs.read_lines(folder / "evaluations.jsonl") if is_number(record.get("step"))]
    records = [r | {"metrics": runs.numbers_of(r)} for r in records if isinstance(r.get("metrics"), dict)]
    return Run(folder, name, description, lines, records)


def names_of(folders: Sequence[Path]) -> list[str]:
    """As few last parts of the paths as tell them apart. Raises UserError for a run that is given twice."""
    parts = [Path(folder).resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"a run is given twice: {', '.join(map(str, folders))}")


def read_picture(path: Path) -> np.ndarray:
    """A picture of a run folder, (h, w, 3) uint8. Raises UserError."""
    try:
        with Image.open(path) as file:
            return np.asarray(file.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"there is no picture {path}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no picture that can be read: {first_line(error)}") from error


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """The files NNNNNN.png of a folder, by rising number."""
    return sorted((int(path.stem), path) for path in folder.glob("*.png") if path.stem.isdigit())


# ---------------------------------------------------------------------------------------------------------------------
# The page


def render(found: Sequence[Run], made: Page, training_images: int) -> Html:
    """The body of the page."""
    trained = [run for run in found if not run.is_style]
    styled = [run for run in found if run.is_style]
    parts = [collapses(trained)]
    if trained:
        parts += [evaluations(trained, made), curves(trained, made), samples(trained, made)]
        parts += drawn(trained, made, training_images)
    if styled:
        parts += [style_pictures(styled, made), on_the_way(styled, made), style_curves(styled, made)]
    parts += [explanations(found, made), settings(found, made), versions(found, made)]
    without = "Curves and sliders need JavaScript, which is off; the last pictures and all tables are here."
    now = time.strftime("%Y-%m-%d %H:%M")
    return join(
        tag("header", heading(found), made.contents()),
        tag("noscript", note(without)),
        tag("main", parts, id="content"),
        tag("footer", paragraph(f"Written {now} by ganstyle_jax {__version__}. Everything is in this one file.")),
    )


def heading(found: Sequence[Run]) -> Html:
    if len(found) == 1:
        items = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts(found[0]).items()]
        about = paragraph(summary(found[0]), soft=True)
        return join(tag("h1", found[0].name), about, tag("dl", items, class_="facts"))
    said = {"method", "data", "image_size", "styles", "size", "out"}  # by `summary`, or of no interest here
    differing = [name for name in differing_settings(found) if name not in said][:4]
    items = []
    for i, run in enumerate(found):
        words = ", ".join(f"{name.replace('_', ' ')} {worded(run.settings.get(name))}" for name in differing)
        swatch = tag("span", class_="swatch", style=f"background:var(--c{i % 8})")
        lines = [paragraph(summary(run)), paragraph(words) if words else None]
        items.append(tag("div", tag("dt", swatch, run.name), tag("dd", lines, class_="small")))
    return join(tag("h1", f"{len(found)} runs side by side"), tag("dl", items, class_="facts wide"))


def summary(run: Run) -> str:
    """One line."""
    config, loop = run.description["config"], run.description["loop"]
    if run.is_style:
        styles = ", ".join(Path(style).stem for style in loop.get("styles", []))
        return f"{Path(run.description['data']).stem} in the manner of {styles}, {config.get('size')} pixels"
    side = f", {config['image_size']} pixels" if "image_size" in config else ""
    return f"{run.description['method']} on {run.description['data']}{side}, step {run.step:,}"


def facts(run: Run) -> dict[str, str]:
    """What one wants to know first."""
    last: dict[str, Any] = {}
    for line in run.lines:
        last |= line
    loop, config = run.description["loop"], run.description["config"]
    if run.is_style:
        told = {"Evaluations": run.step, "Loss": last.get("loss"), "Seconds": last.get("seconds")}
        told |= {"Features": loop.get("features"), "Optimizer": config.get("optimizer")}
    else:
        rates = [rate for _, rate in run.points("images_per_second") if is_number(rate)]
        steps, batch = loop.get("steps"), loop.get("batch_size")
        told = {"Steps": f"{run.step:,} of {steps:,}" if isinstance(steps, int) else run.step}
        told |= {"Images seen": run.step * batch if isinstance(batch, int) else None}
        told |= {"Images a second": round(float(np.median(rates))) if rates else None}
        told |= {
            "Loss": config.get("loss"),
            "Seed": loop.get("seed"),
            "Diversity, of the data's": last.get("diversity"),
        }
    return {name: worded(value) for name, value in told.items() if value is not None}


def collapses(trained: Sequence[Run]) -> Html | None:
    """What training warned of, in each run."""
    parts = []
    for run in trained:
        warned = [line for line in run.lines if line.get("warning")]
        if not warned:
            continue
        first, last = warned[0]["step"], warned[-1]["step"]
        when = f"step {first:,}" if first == last else f"{len(warned)} times from step {first:,} to {last:,}"
        over = (
            " Later grids were better." if last < max((step for step, _ in run.points("diversity")), default=0) else ""
        )
        parts.append(paragraph(tag("strong", f"{run.name}, {when}: "), f"{warned[-1]['warning']}.{over}"))
    return tag("div", tag("h2", "Warning of collapse"), parts, class_="alarm") if parts else None


# ---------------------------------------------------------------------------------------------------------------------
# Evaluations


def better(metric: str) -> Callable | None:
    """min or max, whichever is better; None where that is not known."""
    return BETTER.get(metric, min if metric.startswith("sliced_wasserstein_") else None)


def evaluations(trained: Sequence[Run], made: Page) -> Html | None:
    """The table of metrics, curves where a run was evaluated more than once, and the protocols behind them."""
    records = [(run, record, runs.protocol_of(record)) for run in trained for record in run.evaluations]
    if not records:
        return None
    protocols: list[dict[str, Any]] = []
    for _, _, protocol in records:
        if protocol not in protocols:
            protocols.append(protocol)
    protocols.sort(key=lambda one: -sum(one == other for _, _, other in records))  # the most common one first
    letters = [chr(65 + i) if i < 26 else str(i + 1) for i in range(len(protocols))]
    names = list(dict.fromkeys(name for _, record, _ in records for name in record["metrics"]))
    names = [name for name in names if not any(name == other + end for other in names for end in SPREADS)]
    best = {(name, i): best_of(name, records, protocol) for name in names for i, protocol in enumerate(protocols)}
    several = len(protocols) > 1
    head = [tag("th", "run"), tag("th", "step", class_="number")]
    head += [tag("th", name + ARROWS[better(name)], class_="number") for name in names]
    head += [tag("th", "protocol")] if several else []
    rows = []
    for run, record, protocol in records:
        i, metrics = protocols.index(protocol), record["metrics"]
        cells = [tag("th", run.name), tag("td", worded(record["step"]), class_="number")]
        for name in names:
            spread = next((metrics[name + end] for end in SPREADS if is_number(metrics.get(name + end))), None)
            text = "–" if metrics.get(name) is None else worded(metrics[name])  # noqa: RUF001  (a dash for nothing)
            text += "" if spread is None else f" ± {spread:.2g}"
            marked = best[name, i] is not None and metrics.get(name) == best[name, i]
            unseen = tag("span", " (best)", class_="unseen") if marked else None
            cells.append(tag("td", text, unseen, class_="number best" if marked else "number"))
        if several:
            cells.append(tag("td", letters[i] + (", not comparable with A" if i else "")))
        rows.append(tag("tr", cells, class_="other" if i else None))
    about = "Arrows say which way is better, and the best value of each metric is marked."
    if several:
        about += (
            " Not all rows were measured by the same protocol, and figures of different protocols must not be compared:"
            " the best is chosen within a protocol, and curves are those of protocol A."
        )
    curves_of = [
        made.chart(
            name,
            {r.name: [(e["step"], e["metrics"].get(name)) for e in r.evaluations if runs.protocol_of(e) == protocols[0]]
             for r in trained},
        )
        for name in names
        if any(len(run.evaluations) > 1 for run in trained)
    ]  # fmt: skip
    told = []
    for letter, protocol in zip(letters, protocols, strict=True):
        first = protocols[0]
        items = {
            name: (worded(protocol.get(name, "not given")), protocol.get(name, ...) != first.get(name, ...))
            for name in sorted(protocol | first)
        }
        told.append(tag("h3", f"Protocol {letter}" if several else "Protocol"))
        told.append(page.settings_list(items) if items else note("None was recorded."))
    return made.section(
        "Metrics", paragraph(about, soft=True), page.table(head, rows, "Metrics"), page.charts(curves_of), told
    )


def best_of(name: str, records: Sequence[tuple[Run, dict[str, Any], dict[str, Any]]], protocol: dict) -> float | None:
    """The best value of a metric among records of this protocol; None where there is nothing to choose from."""
    values = [record["metrics"].get(name) for _, record, of in records if of == protocol]
    values = [value for value in values if is_number(value)]
    choose = better(name)
    return choose(values) if choose is not None and len(values) > 1 else None


# ---------------------------------------------------------------------------------------------------------------------
# Curves


def curves(trained: Sequence[Run], made: Page) -> Html:
    """Of one run related metrics in one chart; of several runs a chart for each metric."""
    names = {name for run in trained for line in run.lines for name, value in line.items() if is_number(value)}
    names = sorted(names - {"step"}, key=_order)
    if not names:
        return made.section("Curves", note("Nothing was logged yet."))
    marks = [
        (line["step"], f"{run.name}, step {line['step']}: warning of collapse", "alarm-line")
        for run in trained
        for line in run.lines
        if line.get("warning")
    ]
    found = []
    if len(trained) == 1:
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(name.split("/")[0], []).append(name)
        for group, members in groups.items():
            series = {plain(name.removeprefix(f"{group}/")): trained[0].points(name) for name in members}
            found.append(made.chart(plain(group), series, marks=marks))
    else:
        found = [
            made.chart(plain(name), {run.name: run.points(name) for run in trained}, marks=marks) for name in names
        ]
    about = (
        "Each point is the mean since the one before. Point at a curve, or focus it and use the arrow keys, to read "
        "its values; a name switches its line off and on."
    )
    about += " Dotted vertical lines are warnings of collapse." if marks else ""
    return made.section("Curves", paragraph(about, soft=True), page.charts(found))


def plain(name: str) -> str:
    return name.replace("_", " ")


def _order(name: str) -> tuple[int, str]:
    first = ("loss", "diversity", "accuracy", "logit")
    group = name.split("/")[0]
    return first.index(group) if group in first else len(first) + (group == "images_per_second"), name


# ---------------------------------------------------------------------------------------------------------------------
# Samples


def samples(trained: Sequence[Run], made: Page) -> Html:
    """The sample grids of all runs under one slider."""
    notes, grids, dropped = [], {}, 0
    for run in trained:
        files = numbered(run.folder / "samples")
        chosen = page.thinned(files, MOST_GRIDS)
        dropped += len(files) - len(chosen)
        grids[run.name] = {}
        for step, path in chosen:
            try:
                picture = read_picture(path)
            except UserError as error:
                notes.append(note(f"Left out: {error}."))
                continue
            grids[run.name][step] = page.encode(picture, SAMPLE_BYTES / len(trained) / len(chosen))
        if not files:
            notes.append(note(f"{run.name} holds no sample grids yet."))
    if dropped:
        notes.append(note(f"{dropped} more grids are in the run folders: at most {MOST_GRIDS} of each run are shown."))
    about = "All grids of a run are drawn from the same latents, so that one can follow a picture."
    about += " A run without a grid of the chosen step shows the last one before it." if len(trained) > 1 else ""
    shown = side_by_side(grids, "step {:,}", "Samples of", "Step")
    return made.section("Samples", paragraph(about, soft=True) if shown else None, shown, notes)


def side_by_side(pictures: dict[str, dict[int, page.Picture]], label: str, alt: str, what: str) -> Html | None:
    """A film of several runs, by name and step, with one slider over all steps. label: of a step, to be formatted."""
    steps = sorted({step for of in pictures.values() for step in of})
    labels = [label.format(step) for step in steps]
    columns = []
    for name, of in pictures.items():
        placed = [(steps.index(step), of[step]) for step in sorted(of)]
        if placed:
            columns.append(page.frames(placed, labels, f"{alt} {name}", name if len(pictures) > 1 else ""))
    return page.film(labels, columns, what) if columns else None


def drawn(trained: Sequence[Run], made: Page, training_images: int) -> list[Html]:
    """What is drawn for the report from the newest checkpoint of each run: walks, and samples with their neighbours."""
    walks, copies, walk_notes, copy_notes = [], [], [], []
    for run in trained:
        try:
            loaded = runs.load(run.folder)
        except (UserError, OSError) as error:
            walk_notes.append(note(f"{run.name}: nothing can be drawn, because {first_line(error)}."))
            continue
        print(f"{run.name}: drawing from the checkpoint of step {loaded.step}", file=sys.stderr, flush=True)
        walks.append((run, loaded.step, walk(loaded, WALK_BYTES / len(trained))))
        if not training_images:
            continue
        try:
            copies.append((run, neighbours(run, loaded, training_images)))
        except (UserError, ValueError, OSError, data.CorruptImage) as error:
            copy_notes.append(note(f"{run.name}: the training images were not looked through: {first_line(error)}"))
    labels = [f"latent {i // FRAMES + 1} + {i % FRAMES / FRAMES:.1f}" for i in range(STOPS * FRAMES)]
    columns = [
        page.frames(
            list(enumerate(pictures)),
            labels,
            f"Walk through the latents of {run.name}",
            f"{run.name}, checkpoint of step {step:,}",
        )
        for run, step, pictures in walks
    ]
    about = (
        "Each cell goes from latent to latent, by spherical interpolation, and back to the first. Of a good generator "
        "every picture on the way is a sample of its own; jumps, or blends of two pictures, speak of one that knows "
        "its training images by heart."
    )
    shown = [paragraph(about, soft=True), page.film(labels, columns, "Place on the walk", fps=12)] if columns else []
    return [
        made.section("Latent walk", shown, walk_notes),
        made.section("Nearest training images", nearest(copies, made) if copies else [], copy_notes),
    ]


def walk(loaded: runs.LoadedRun, budget: float) -> list[page.Picture]:
    """The frames of several walks side by side, in so many bytes together."""
    across = WALKS if loaded.cfg.image_size < 128 else WALKS // 2
    latents = np.asarray(loaded.method.latents(jax.random.key(1), STOPS * across, loaded.cfg))
    path = images.walk(latents.reshape(STOPS, across, *latents.shape[1:]), FRAMES - 1).astype(latents.dtype)
    pictures = loaded.decode(path.reshape(-1, *latents.shape[1:]))
    grids = [images.grid(frame, columns=across // 2) for frame in pictures.reshape(-1, across, *pictures.shape[1:])]
    return [page.encode(grid, budget / len(grids)) for grid in grids]


def neighbours(run: Run, loaded: runs.LoadedRun, training_images: int) -> Memorisation:
    """New samples, looked for among the run's training images. Raises what `memorisation.check` does and UserError."""
    seed = run.description["loop"].get("seed", 0)
    source = data.open_source(run.description["data"], loaded.cfg.image_size, loaded.cfg.channels, seed)
    return memorisation.check(loaded.sample(jax.random.key(2), PROBES), source, training_images, shown=SHOWN)


def nearest(copies: Sequence[tuple[Run, Memorisation]], made: Page) -> list[Html]:
    """What to look for; of each run the samples nearest to a training image, and the distances of all."""
    parts = [
        paragraph(
            tag("strong", "What to look for: "),
            "had the generator copied its training images, samples (left of the line) and their nearest training "
            "images (right of it) would be the same pictures, and the curve of the samples' distances would lie to the "
            "left of that of real images and begin near 0. New pictures as good as real ones have a curve like theirs; "
            "worse ones lie to the right of it.",
        )
    ]
    for run, found in copies:
        first, real = found.sample_distances, found.real_distances
        partly = found.total is not None and found.total > found.compared
        of = f"{found.compared:,} of {found.total:,}" if partly else f"{found.compared:,}"
        parts += [
            tag("h3", run.name) if len(copies) > 1 else Html(),
            paragraph(
                f"Among {of} training images the nearest one to each of {len(first)} samples lies at a median distance "
                f"of {np.median(first):.3f}, the smallest is {first.min():.3f}. From real images to the nearest other "
                f"one the median is {np.median(real):.3f} and the smallest {real.min():.3f}. ",
                tag("strong", f"{memorisation.share_too_near(found):.1%} of the samples"),
                " are nearer to a training image than the nearest 1 % of real images are to another one; of new "
                "pictures as good as real ones about 1 % are.",
                " A copy of an image that was not looked through would not show." if partly else None,
            ),
        ]
        series: dict[str, list[tuple[float, Any]]] = {"samples": ranks(first), "real images": ranks(real)}
        parts.append(page.charts([made.chart("Share whose nearest is within", series, x="distance in features")]))
        count, each = found.distances.shape
        about = (
            f"The {count} samples nearest to a training image, the most suspicious first, with their nearest {each}. "
            "Below: the distance in features of the compact network, and the root mean square difference of pixels in "
            "grey levels of 255."
        )
        budget = NEAREST_BYTES / len(copies) / count / (1 + each)
        rows = [tag("li", neighbour_row(found, i, budget)) for i in range(count)]
        parts += [paragraph(about, soft=True), tag("ul", rows, class_="neighbours")]
    return parts


def neighbour_row(found: Memorisation, i: int, budget: float) -> list[Html]:
    cells = [tag("span", page.image(page.encode(found.samples[i], budget), "Sample"), "sample")]
    triples = zip(found.neighbours[i], found.distances[i], found.pixel_distances[i], strict=True)
    for picture, distance, levels in triples:
        shown = page.image(page.encode(picture, budget), f"Training image at distance {distance:.3f}")
        cells.append(tag("span", shown, tag("span", f"{distance:.3f}"), tag("span", f"{levels:.0f} levels")))
    return cells


def ranks(distances: np.ndarray) -> list[tuple[float, Any]]:
    """The empirical distribution: (distance, share of all that are at most as large)."""
    ordered = np.sort(distances)
    points = [(float(f"{distance:.4g}"), (i + 1) / len(ordered)) for i, distance in enumerate(ordered)]
    return page.thinned(points, 200)


def explanations(found: Sequence[Run], made: Page) -> Html:
    """What `ganstyle explain` left in the folder explain of each run."""
    told = []
    for run in found:
        path = run.folder / "explain" / "explain.json"
        if not path.exists():
            continue
        try:
            sections = json.loads(path.read_text(encoding="utf-8"))["sections"]
            count = sum(len(section.get("pictures", [])) for section in sections)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({first_line(error)}): run ganstyle explain again") from error
        told.append((run, sections, count))
    budget = EXPLAIN_BYTES / max(1, sum(count for _, _, count in told))
    parts = []
    for run, sections, _ in told:
        for section in sections:
            title = str(section.get("title", ""))
            parts.append(tag("h3", f"{run.name}: {title}" if len(found) > 1 else title))
            parts += [paragraph(text) for text in str(section.get("text", "")).split("\n\n") if text.strip()]
            shown = [explained(run.folder / "explain", entry, budget) for entry in section.get("pictures", [])]
            parts.append(tag("div", shown, class_="plates") if shown else None)
    return made.section("Seeing inside", parts)


def explained(folder: Path, entry: dict[str, Any], budget: float) -> Html:
    """One picture with its caption; a note for a file that is not there or is none of the folder's."""
    path, caption = folder / str(entry.get("file")), str(entry.get("caption", ""))
    try:
        if folder.resolve() not in path.resolve().parents:
            raise UserError(f"{path} lies outside {folder}")
        picture = page.image(page.encode(read_picture(path), budget, "no"), caption or "Explanation")
    except UserError as error:
        return note(f"Left out: {error}.")
    return tag("figure", picture, tag("figcaption", caption))


# ---------------------------------------------------------------------------------------------------------------------
# Style transfer


def style_pictures(styled: Sequence[Run], made: Page) -> Html:
    """Content, styles and result of each run."""
    parts = []
    for run in styled:
        count = len(run.description["loop"].get("styles", [])) or 1
        styles = {f"style-{i}": f"Style {i}" if count > 1 else "Style" for i in range(1, count + 1)}
        shown = []
        for name, title in {"content": "Content", **styles, "result": "Result"}.items():
            path = run.folder / f"{name}.png"
            if path.exists():
                budget = STYLE_BYTES / 3 / len(styled) / (count + 2)
                picture = page.image(page.encode(read_picture(path), budget, "smoothly"), f"{title} of {run.name}")
                shown.append(tag("figure", picture, tag("figcaption", title)))
            else:
                shown.append(note("There is no result yet." if name == "result" else f"There is no {path}."))
        parts += [tag("h3", run.name) if len(styled) > 1 else None, tag("div", shown, class_="pictures low")]
    return made.section("Pictures", parts)


def on_the_way(styled: Sequence[Run], made: Page) -> Html:
    """The picture of each run while it was optimised."""
    found = {}
    for run in styled:
        files = page.thinned(numbered(run.folder / "steps"), MOST_GRIDS)
        budget = STYLE_BYTES * 2 / 3 / len(styled) / max(1, len(files))
        found[run.name] = {
            step: page.encode(enlarged(read_picture(path), run), budget, "smoothly") for step, path in files
        }
    about = "The optimisation goes from small pictures to large ones, each of which begins with the one before."
    shown = side_by_side(found, "{:,} evaluations", "The picture of", "Evaluations")
    return made.section("On the way", [paragraph(about, soft=True), shown] if shown else None)


def enlarged(picture: np.ndarray, run: Run) -> np.ndarray:
    """A picture of an early size in as many pixels as the last one, or the page would jump."""
    size = run.description["config"].get("size", max(picture.shape))
    scale = min(size, page.LONGEST_SIDE) / max(picture.shape)
    shape = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    return np.asarray(Image.fromarray(picture).resize(shape, Image.Resampling.BICUBIC))


def style_curves(styled: Sequence[Run], made: Page) -> Html:
    """The loss, and for each run its terms, and content and style by layer."""
    x, several = "evaluations", len(styled) > 1
    whole = {run.name if several else "loss": run.points("loss") for run in styled}
    found = [made.chart("Loss", whole, x, [] if several else sizes(styled[0]), log=True)]
    for run in styled:
        of = f" of {run.name}" if several else ""
        layers = list(dict.fromkeys(k for line in run.lines for k in line if k.startswith(("content/", "style/"))))
        terms: dict[str, list[tuple[float, Any]]] = {}
        for line in run.lines:
            for term in ("content", "style", "tv", "range"):
                values = [v for name, v in line.items() if name.split("/")[0] == term and is_number(v)]
                if values:
                    terms.setdefault(term, []).append((line["step"], sum(values)))
        found.append(made.chart(f"Terms of the loss{of}", terms, x, sizes(run), log=True))
        found.append(made.chart(f"By layer{of}", {name: run.points(name) for name in layers}, x, sizes(run), log=True))
    if not any(found):
        return made.section("Losses", note("No step was done yet."))
    about = (
        "All terms are weighted, so that they add up to the loss. Dotted lines are where a larger picture begins: it "
        "has finer detail to match, so that its loss begins higher."
    )
    return made.section("Losses", paragraph(about, soft=True), page.charts(found))


def sizes(run: Run) -> list[tuple[float, str, str]]:
    """Where pictures of another size begin, as marks of a chart."""
    found, before = [], None
    for line in run.lines:
        if isinstance(size := line.get("size"), list) and size != before:
            found.append((line["step"], f"from here on {' x '.join(map(str, size))} pixels", "quiet-line"))
            before = size
    return found[1:]


# ---------------------------------------------------------------------------------------------------------------------
# Settings and versions


def differing_settings(found: Sequence[Run]) -> list[str]:
    """Names of the settings that are not the same in all runs."""
    names = dict.fromkeys(name for run in found for name in run.settings)
    return [name for name in names if len({repr(run.settings.get(name)) for run in found}) > 1]


def defaults_of(run: Run) -> dict[str, Any]:
    """What settings are if nothing is said, as JSON has them; known of the package's own methods only."""
    from ganstyle_jax import stylize, train
    from ganstyle_jax.style import gatys

    if run.is_style:
        chosen = [gatys.Config(), stylize.Settings()]
    elif run.description["method"] in runs.BUILT_IN:
        chosen = [runs.find_method(run.description["method"]).Config(), train.Loop()]
    else:
        return {}
    merged = {name: value for of in chosen for name, value in dataclasses.asdict(of).items()}
    return json.loads(json.dumps(merged, default=str))


def settings(found: Sequence[Run], made: Page) -> Html:
    """Of several runs first what they differ in; of all what is not as it is by default."""
    differing = differing_settings(found)
    parts = []
    if differing:
        head = [tag("th", "setting"), *(tag("th", run.name) for run in found)]
        rows = [
            [tag("th", name), *(tag("td", tag("mark", worded(r.settings.get(name))), class_="wide") for r in found)]
            for name in differing
        ]
        parts.append(page.table(head, rows, "Settings that differ"))
    elif len(found) > 1:
        parts.append(note("The runs have the same settings."))
    shared = {name: value for name, value in found[0].settings.items() if name not in differing}
    defaults = defaults_of(found[0])
    items = {k: (worded(v), k in defaults and defaults[k] != v) for k, v in shared.items()}
    listed = [
        paragraph("Marked is what is not the default.", soft=True) if defaults else None,
        page.settings_list(items),
    ]
    if len(found) > 1:
        listed = tag("details", tag("summary", f"{len(shared)} settings that all have in common"), listed)
    return made.section("Settings", parts, listed)


def versions(found: Sequence[Run], made: Page) -> Html:
    """What the runs were made by and on."""
    told = []
    for run in found:
        devices = [str(device) for device in run.description.get("devices") or []]
        counted = [f"{devices.count(device)} x {device}" for device in dict.fromkeys(devices)]
        of = run.description.get("versions")
        of = {str(k): str(v) for k, v in of.items()} if isinstance(of, dict) else {}
        told.append(of | {"devices": worded(counted), "processes": worded(run.description.get("processes"))})
    rows = []
    for name in dict.fromkeys(name for of in told for name in of):
        values = [of.get(name, "none") for of in told]
        cells = [tag("th", name), *(tag("td", value, class_="wide") for value in values)]
        rows.append(tag("tr", cells, class_="changed" if len(set(values)) > 1 else None))
    head = [tag("th", "package"), *(tag("th", run.name) for run in found)]
    return made.section("Versions and devices", page.table(head, rows, "Versions and devices"))
