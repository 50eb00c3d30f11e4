"""`ganstyle report`: one HTML file that shows runs, alone or side by side, and opens in any browser without a network.

What it shows of a training run: settings, curves, collapse, evaluations, a slider through the sample grids, a walk
through latent space, the training images nearest to samples, and what `ganstyle explain` left. Of a run of `ganstyle
stylize --run-dir`: the pictures, a slider through the optimisation, and the loss by term and by layer.

report.html beside this file holds the page around it: style, charts and sliders, in plain CSS and JavaScript.
"""

import base64
import dataclasses
import io
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from ganstyle_jax import __version__, data, images, memorisation, runs
from ganstyle_jax.files import UserError, atomic_path, first_line

# Bytes of the page for the pictures of a kind, over all runs; together below some 20 MB.
SAMPLE_BYTES, WALK_BYTES, NEAREST_BYTES, STYLE_BYTES, EXPLAIN_BYTES = 7_000_000, 4_000_000, 1_500_000, 5_000_000, 3_000_000
MOST_GRIDS = 40  # sample grids of a run; of more, evenly chosen ones are shown
MOST_POINTS = 1500  # of a curve
LONGEST_SIDE = 1200  # pixels of a picture in the page
LOSSLESS_BYTES = 48_000  # a picture that takes no more without loss is stored so
WALKS, STOPS, FRAMES = 8, 6, 10  # walks side by side; latents that each passes through; pictures from one to the next
PROBES, SHOWN = 256, 16  # samples looked for among the training images, and those of them that are shown

# Which way a metric is better, by the beginning of its name; others are not judged.
BETTER = {
    **dict.fromkeys(("fid", "kid", "frechet", "sliced_wasserstein", "swd", "ms_ssim", "lpips", "artfid"), min),
    **dict.fromkeys(("cfsd", "unreadable"), min),
    **dict.fromkeys(("inception_score", "precision", "recall", "density", "coverage", "psnr", "ssim"), max),
    **dict.fromkeys(("modes", "class_coverage", "balance"), max),
}
SPREADS = ("_spread", "_std")  # of a metric, under its name with this ending
INCOMPARABLE_ANYWAY = ("seed", "fake.source")  # of a protocol: what may differ between records that are compared


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
    page = Page()
    body = render(found, page, training_images)
    title = f"Report: {', '.join(run.name for run in found)}"
    template = resources.files("ganstyle_jax").joinpath("report.html").read_text(encoding="utf-8")
    # No "<" or "&" in the script: whatever a run is called, it cannot end there.
    charts = json.dumps(page.charts, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
    filled = {"title": escape(title), "body": body, "charts": charts}
    text = re.sub(r"\{\{(title|body|charts)\}\}", lambda match: filled[match[1]], template)
    with atomic_path(out) as path:
        path.write_text(text, encoding="utf-8")
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


def read(folder: Path | str, name: str) -> Run:
    """Raises UserError where there is no run, or a file of it cannot be read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}: give one that ganstyle train or ganstyle stylize --run-dir left")
    description = runs.read(folder)
    lines = [line for line in read_lines(folder / "metrics.jsonl") if is_number(line.get("step"))]
    evaluations = [
        record
        for record in read_lines(folder / "evaluations.jsonl")
        if is_number(record.get("step")) and isinstance(record.get("metrics"), dict)
    ]
    return Run(folder, name, description, lines, evaluations)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, none where there is no file; a line cut off by a kill is passed over."""
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict)]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def names_of(folders: Sequence[Path]) -> list[str]:
    """As few last parts of the paths as tell them apart."""
    parts = [Path(folder).resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"a run is given twice: {', '.join(map(str, folders))}")


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def data_uri(picture: np.ndarray, budget: float) -> str:
    """(h, w, c) uint8, or float in [-1, 1], as a WebP picture in a data URI of about `budget` bytes at most.

    Without loss where that is small, else of quality 85, else in fewer pixels.
    """
    file = Image.fromarray(_rgb(picture))
    if max(file.size) > LONGEST_SIDE:
        file.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    encoded = b""
    if file.width * file.height <= 20 * LOSSLESS_BYTES:
        encoded = _webp(file, lossless=True)
    if not 0 < len(encoded) * 4 / 3 <= min(budget, LOSSLESS_BYTES):
        encoded = _webp(file, quality=85)
        while len(encoded) * 4 / 3 > budget and min(file.size) > 32:
            scale = max(0.5, min(0.9, (budget / (len(encoded) * 4 / 3)) ** 0.5))
            file = file.resize((round(file.width * scale), round(file.height * scale)), Image.Resampling.LANCZOS)
            encoded = _webp(file, quality=80)
    return "data:image/webp;base64," + base64.b64encode(encoded).decode()


def _webp(file: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    file.save(buffer, "WEBP", method=4, **options)
    return buffer.getvalue()


def _rgb(picture: np.ndarray) -> np.ndarray:
    if picture.dtype != np.uint8:
        picture = images.to_uint8(picture)
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))


def read_file(path: Path) -> np.ndarray:
    """A picture file of the run folder, (h, w, 3) uint8. Raises UserError."""
    try:
        with Image.open(path) as file:
            return np.asarray(file.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no picture that can be read: {first_line(error)}") from error


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """The files NNNNNN.png of a folder, by rising number."""
    return sorted((int(path.stem), path) for path in folder.glob("*.png") if path.stem.isdigit())


def thinned(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))]


# ---------------------------------------------------------------------------------------------------------------------
# The page


class Page:
    """What the sections of a page share: the charts, and which sections there are."""

    def __init__(self):
        self.charts: list[dict[str, Any]] = []
        self.sections: list[tuple[str, str]] = []  # (id, title)

    def section(self, title: str, *parts: str) -> str:
        """A part of the page that its contents point to; nothing without parts."""
        if not any(parts):
            return ""
        name = re.sub(r"[^a-z]+", "-", title.lower()).strip("-")
        self.sections.append((name, title))
        return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(title)}</h2>{"".join(parts)}</section>'

    def chart(
        self,
        title: str,
        series: dict[str, list[tuple[float, float]]],
        x: str = "step",
        marks: Sequence[tuple[float, str, str]] = (),
        log: bool = False,
    ) -> str:
        """A line chart of points (x, y) by name; marks: (x, text, class of the line)."""
        kept = [{"name": name, "points": _points(points)} for name, points in series.items()]
        kept = [of for of in kept if of["points"]]
        if not kept:
            return ""
        self.charts.append({"title": title, "x": x, "log": log, "marks": list(marks), "series": kept})
        return (
            f'<figure class="chart" data-chart="{len(self.charts) - 1}"><header><h3>{escape(title)}</h3><output aria-live="polite">'
            '</output><label><input type="checkbox"> logarithmic</label></header><div class="plot"></div>'
            '<ul class="legend"></ul></figure>'
        )


def _points(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    finite = [(x, float(f"{y:.6g}")) for x, y in points if is_number(x) and is_number(y)]
    return thinned(sorted(dict(finite).items()), MOST_POINTS)  # what was logged last of a step counts


def film(labels: Sequence[str], columns: Sequence[str], least: int, fps: float = 3, what: str = "Step") -> str:
    """A slider with a place for each label, and figures by `frames` that follow it."""
    last = len(labels) - 1
    return (
        f'<div class="film" data-labels="{escape(json.dumps(list(labels)))}" data-fps="{fps:g}"><div class="controls">'
        f'<button type="button">Play</button><input type="range" min="0" max="{last}" value="{last}" step="1" '
        f'aria-label="{escape(what)} (arrow keys move it)"><output aria-live="polite">{escape(labels[last])}</output></div>'
        f'<div class="stage" style="--least:{least}px">{"".join(columns)}</div></div>'
    )


def frames(pictures: Sequence[tuple[int, np.ndarray]], labels: Sequence[str], alt: str, name: str, budget: float) -> str:
    """One column of a film: pictures with their places on the slider, the last of them to be seen without scripts."""
    parts = []
    for place, picture in pictures:
        hidden = "" if place == pictures[-1][0] else " hidden"
        parts.append(f'{image(picture, f"{alt}, {labels[place]}", budget / len(pictures), f" data-at={place}{hidden}")}')
    return f'<figure>{"".join(parts)}<figcaption>{escape(name)}{" · " if name else ""}<span class="at">{escape(labels[pictures[-1][0]])}</span></figcaption></figure>'


def image(picture: np.ndarray, alt: str, budget: float, more: str = "") -> str:
    """An img element; small pictures are enlarged by a whole number, so that their pixels stay square."""
    height, width = picture.shape[:2]
    scale = max(1, 480 // max(width, height))
    small = ' class="small-pixels"' if scale > 1 else ""
    if max(height, width) > LONGEST_SIDE:
        scale = LONGEST_SIDE / max(height, width)
    size = f'width="{round(width * scale)}" height="{round(height * scale)}"'
    return f'<img src="{data_uri(picture, budget)}" alt="{escape(alt)}" {size}{small} decoding="sync"{more}>'


def table(head: Sequence[str], rows: Sequence[str], label: str) -> str:
    """In a box of its own, which scrolls; head and rows are HTML cells."""
    return (
        f'<div class="box" tabindex="0" role="region" aria-label="{escape(label)}"><table><thead><tr>{"".join(head)}</tr>'
        f'</thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def number(value: Any) -> str:
    if not is_number(value):
        return "–" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def render(found: Sequence[Run], page: Page, training_images: int) -> str:
    """The body of the page."""
    trained = [run for run in found if not run.is_style]
    styled = [run for run in found if run.is_style]
    parts = [collapses(trained)]
    if trained:
        parts += [
            evaluations(trained, page),
            curves(trained, page),
            samples(trained, page),
            *drawn(trained, page, training_images),
            explanations(trained, page),
        ]
    if styled:
        parts += [style_pictures(styled, page), style_curves(styled, page), explanations(styled, page)]
    parts += [settings(found, page), versions(found, page)]
    contents = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title in page.sections)
    return (
        f'<header>{heading(found)}<nav aria-label="Contents"><ul>{contents}</ul></nav></header>'
        "<noscript><p class='note'>Curves and sliders need JavaScript, which is off; the last pictures and all tables are "
        f"here.</p></noscript><main id=content>{''.join(parts)}</main>"
        f"<footer><p>Written {time.strftime('%Y-%m-%d %H:%M')} by ganstyle_jax {__version__}. Everything is in this one file."
        "</p></footer>"
    )


def heading(found: Sequence[Run]) -> str:
    if len(found) > 1:
        title = f"<h1>{len(found)} runs side by side</h1>"
        items = [
            f'<div><dt><span class="swatch" style="background:var(--c{i % 8})"></span>{escape(run.name)}</dt>'
            f'<dd class="small">{escape(summary(run))}</dd></div>'
            for i, run in enumerate(found)
        ]
        return f'{title}<dl class="facts">{"".join(items)}</dl>'
    (run,) = found
    items = [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts(run).items()]
    title = f"<h1>{escape(run.name)}</h1><p class=soft>{escape(summary(run))}</p>"
    return f'{title}<dl class="facts">{"".join(items)}</dl>'


def summary(run: Run) -> str:
    """One line."""
    config, loop = run.description["config"], run.description["loop"]
    if run.is_style:
        styles = ", ".join(Path(style).stem for style in loop.get("styles", []))
        return f"{Path(run.description['data']).stem} in the manner of {styles}, {config.get('size')} px"
    side = f", {config['image_size']} px" if "image_size" in config else ""
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
        rates = [line["images_per_second"] for line in run.lines if is_number(line.get("images_per_second"))]
        batch = loop.get("batch_size")
        told = {"Steps": f"{run.step:,} of {loop['steps']:,}" if is_number(loop.get("steps")) else run.step}
        told |= {"Images seen": run.step * batch if isinstance(batch, int) else None}
        told |= {"Images a second": round(float(np.median(rates))) if rates else None}
        told |= {"Loss": config.get("loss"), "Seed": loop.get("seed")}
        told |= {"Diversity, of the data's": last.get("diversity")}
    return {name: number(value) for name, value in told.items() if value is not None}


def collapses(trained: Sequence[Run]) -> str:
    """The warnings of runs, each kind once with its steps."""
    parts = []
    for run in trained:
        warned = [(line["step"], str(line["warning"])) for line in run.lines if line.get("warning")]
        if warned:
            first, last, text = warned[0][0], warned[-1][0], warned[-1][1]
            when = f"step {first:,}" if first == last else f"{len(warned)} times from step {first:,} to {last:,}"
            over = "" if last >= max((s for s, _ in numbered(run.folder / "samples")), default=0) else " It was over later."
            parts.append(f"<p><strong>{escape(run.name)}, {when}:</strong> {escape(text)}.{over}</p>")
    return f'<div class="alarm" role="note"><p><strong>Warning of collapse</strong></p>{"".join(parts)}</div>' if parts else ""


# ---------------------------------------------------------------------------------------------------------------------
# Evaluations


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"real": {"count": 5}} to {"real.count": 5}."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def protocol_of(record: dict[str, Any]) -> dict[str, Any]:
    """All that two records must share for their metrics to be compared."""
    protocol = record.get("protocol")
    told = flat(protocol) if isinstance(protocol, dict) else {}
    return {name: value for name, value in told.items() if name not in INCOMPARABLE_ANYWAY}


def better(metric: str) -> Callable | None:
    """min or max, whichever is better; None where that is not known."""
    stem = max((name for name in BETTER if metric.startswith(name)), key=len, default=None)
    return BETTER[stem] if stem else None


def evaluations(trained: Sequence[Run], page: Page) -> str:
    """The table of metrics, with the protocols behind it, and curves where there are several records of a run."""
    records = [(run, record) for run in trained for record in run.evaluations]
    if not records:
        return ""
    protocols: list[dict[str, Any]] = []  # the most common one first
    for _, record in records:
        if protocol_of(record) not in protocols:
            protocols.append(protocol_of(record))
    protocols.sort(key=lambda protocol: -sum(protocol_of(record) == protocol for _, record in records))
    names = list(dict.fromkeys(name for _, record in records for name in record["metrics"]))
    names = [name for name in names if not any(name.endswith(end) and name.removesuffix(end) in names for end in SPREADS)]
    letter = {i: chr(65 + i) if i < 26 else str(i + 1) for i in range(len(protocols))}
    best = {}
    for name in names:
        for i, protocol in enumerate(protocols):
            values = [record["metrics"].get(name) for _, record in records if protocol_of(record) == protocol]
            values = [value for value in values if is_number(value)]
            choose = better(name)
            if choose is not None and len(values) > 1:
                best[name, i] = choose(values)
    arrows = {min: " ↓", max: " ↑", None: ""}
    head = ["<th>run</th><th class=number>step</th>"]
    head += [f"<th class=number>{escape(name)}{arrows[better(name)]}</th>" for name in names]
    head += ["<th>protocol</th>"] if len(protocols) > 1 else []
    rows = []
    for run, record in records:
        i = protocols.index(protocol_of(record))
        cells = [f"<th>{escape(run.name)}</th><td class=number>{record['step']:,}</td>"]
        for name in names:
            value = record["metrics"].get(name)
            spread = next((record["metrics"][name + end] for end in SPREADS if name + end in record["metrics"]), None)
            text = escape(number(value)) + (f" ± {spread:.2g}" if is_number(spread) else "")
            mark = is_number(value) and best.get((name, i)) == value
            cells.append(f'<td class="number{" best" if mark else ""}">{text}{"<span class=unseen> (best)</span>" if mark else ""}</td>')
        if len(protocols) > 1:
            cells.append(f"<td>{letter[i]}{', not comparable with A' if i else ''}</td>")
        rows.append(f"<tr{' class=other' if i else ''}>{''.join(cells)}</tr>")
    told = []
    for i, protocol in enumerate(protocols):
        items = "".join(
            f'<li{" class=changed" if i and protocol.get(k, ...) != protocols[0].get(k, ...) else ""}><span>{escape(k)}</span>'
            f"<span>{escape(number(protocol.get(k, '(not given)')))}</span></li>"
            for k in sorted(protocol | (protocols[0] if i else {}))
        )
        title = f"Protocol {letter[i]}" if len(protocols) > 1 else "Protocol"
        told.append(f"<h3>{title}</h3>" + (f"<ul class=settings>{items}</ul>" if items else note("None was recorded.")))
    charts = [
        page.chart(
            name,
            {
                run.name: [(r["step"], r["metrics"].get(name)) for r in run.evaluations if protocol_of(r) == protocols[0]]
                for run in trained
            },
        )
        for name in names
        if any(len(run.evaluations) > 1 for run in trained)
    ]
    intro = "<p class=soft>Arrows say which way is better; the best value of each metric is marked."
    if len(protocols) > 1:
        intro += (
            " The rows were measured by different protocols, and figures of different protocols must not be compared: "
            "the best is chosen, and curves are drawn, within a protocol."
        )
    body = [intro + "</p>", table(head, rows, "Metrics"), f"<div class=charts>{''.join(charts)}</div>", *told]
    return page.section("Metrics", *body)


# ---------------------------------------------------------------------------------------------------------------------
# Curves


def curves(trained: Sequence[Run], page: Page) -> str:
    """Of one run related metrics in one chart; of several runs a chart for each metric."""
    names = list(dict.fromkeys(name for run in trained for line in run.lines for name in line))
    names = [name for name in names if any(is_number(line.get(name)) for run in trained for line in run.lines)]
    names = sorted((name for name in names if name != "step"), key=_order)
    if not names:
        return page.section("Curves", note("Nothing was logged yet."))
    marks = [
        (line["step"], f"{run.name}, step {line['step']}: warning of collapse", "note-line")
        for run in trained
        for line in run.lines
        if line.get("warning")
    ]

    def points(run: Run, name: str) -> list[tuple[float, float]]:
        return [(line["step"], line[name]) for line in run.lines if name in line]

    charts = []
    if len(trained) == 1:
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(name.split("/")[0], []).append(name)
        for group, members in groups.items():
            short = {name: name.removeprefix(f"{group}/") for name in members}
            series = {short[name]: points(trained[0], name) for name in members}
            charts.append(page.chart(group.replace("_", " "), series, marks=marks))
    else:
        for name in names:
            charts.append(page.chart(name.replace("_", " "), {run.name: points(run, name) for run in trained}, marks=marks))
    about = (
        "<p class=soft>Each point is the mean since the last one. Point at a curve, or focus it and use the arrow keys, to "
        "read values; a name switches its line off and on."
    )
    about += " Dotted vertical lines are warnings of collapse.</p>" if marks else "</p>"
    return page.section("Curves", about, f"<div class=charts>{''.join(charts)}</div>")


def _order(name: str) -> tuple[int, str]:
    first = ("loss", "diversity", "accuracy", "logit")
    group = name.split("/")[0]
    place = first.index(group) if group in first else len(first) + (group in ("images_per_second", "seconds"))
    return place, name


# ---------------------------------------------------------------------------------------------------------------------
# Samples


def samples(trained: Sequence[Run], page: Page) -> str:
    """The sample grids of all runs under one slider."""
    notes, grids, dropped = [], {}, 0
    for run in trained:
        files = numbered(run.folder / "samples")
        chosen = thinned(files, MOST_GRIDS)
        dropped += len(files) - len(chosen)
        grids[run.name] = {}
        for step, path in chosen:
            try:
                grids[run.name][step] = read_file(path)
            except UserError as error:
                notes.append(note(f"Left out: {error}."))
        if not files:
            notes.append(note(f"{run.name} holds no sample grids yet."))
    with_grids = {name: of for name, of in grids.items() if of}
    if not with_grids:
        return page.section("Samples", *notes)
    if dropped:
        notes.append(note(f"{dropped} more grids are in the run folders: at most {MOST_GRIDS} of each run are shown."))
    steps = sorted({step for of in with_grids.values() for step in of})
    labels = [f"step {step:,}" for step in steps]
    columns = [
        frames(
            [(steps.index(step), of[step]) for step in sorted(of)],
            labels,
            f"Samples of {name}",
            name if len(trained) > 1 else "",
            SAMPLE_BYTES / len(with_grids),
        )
        for name, of in with_grids.items()
    ]
    about = "<p class=soft>All grids of a run are drawn from the same latents, so that one can follow a picture."
    about += " A run without a grid of that step shows its last one before.</p>" if len(with_grids) > 1 else "</p>"
    return page.section("Samples", about, film(labels, columns, least=300), *notes)


def drawn(trained: Sequence[Run], page: Page, training_images: int) -> list[str]:
    """What is drawn for the report from the newest checkpoint of each run: walks, and samples with their neighbours."""
    walks, copies, walk_notes, copy_notes = [], [], [], []
    labels = [f"latent {i // FRAMES + 1} + {i % FRAMES}/{FRAMES}" for i in range(STOPS * FRAMES)]
    for run in trained:
        try:
            loaded = runs.load(run.folder)
        except (UserError, OSError) as error:
            walk_notes.append(note(f"{run.name}: no pictures can be drawn, because {error}."))
            continue
        tell(f"{run.name}: drawing from the checkpoint of step {loaded.step}")
        walks.append((run, loaded.step, walk(loaded)))
        if not training_images:
            continue
        try:
            copies.append((run, neighbours(run, loaded, training_images)))
        except (UserError, ValueError, OSError, data.CorruptImage) as error:
            copy_notes.append(note(f"{run.name}: the training images could not be looked through: {first_line(error)}"))
    columns = [
        frames(
            list(enumerate(pictures)),
            labels,
            f"Walk through the latents of {run.name}",
            f"{run.name}, checkpoint of step {step:,}",
            WALK_BYTES / len(walks),
        )
        for run, step, pictures in walks
    ]
    about = (
        f"<p class=soft>Each cell goes from latent to latent, by spherical interpolation, and back to the first. Of a good "
        "generator every picture on the way is a sample of its own; jumps, or blends of two pictures, speak of one that "
        "knows its training images by heart.</p>"
    )
    shown = film(labels, columns, least=300, fps=12, what="Place on the walk") if columns else ""
    return [
        page.section("Latent walk", about if columns else "", shown, *walk_notes),
        page.section("Nearest training images", *(nearest(copies, page) if copies else []), *copy_notes),
    ]


def walk(loaded: runs.LoadedRun) -> list[np.ndarray]:
    """The frames of several walks side by side, each (h, w, c) float32 in [-1, 1]."""
    across = WALKS if loaded.cfg.image_size < 128 else WALKS // 2
    latents = np.asarray(loaded.method.latents(jax.random.key(1), STOPS * across, loaded.cfg))
    path = images.walk(latents.reshape(STOPS, across, *latents.shape[1:]), FRAMES - 1).astype(latents.dtype)
    pictures = loaded.decode(path.reshape(-1, *latents.shape[1:]))
    return [images.grid(frame, columns=across // 2) for frame in pictures.reshape(-1, across, *pictures.shape[1:])]


def neighbours(run: Run, loaded: runs.LoadedRun, training_images: int) -> memorisation.Memorisation:
    loop = run.description["loop"]
    seed = loop.get("seed", 0)
    source = data.open_source(run.description["data"], loaded.cfg.image_size, loaded.cfg.channels, seed)
    fakes = loaded.sample(jax.random.key(2), PROBES)
    return memorisation.check(fakes, source, training_images)


def nearest(copies: Sequence[tuple[Run, memorisation.Memorisation]], page: Page) -> list[str]:
    """What to look for; of each run the samples nearest to a training image, and the distances of all."""
    parts = [
        "<p><strong>What to look for:</strong> if the generator copied its training images, samples (left of the line) and "
        "their nearest training images (right of it) would be the same picture, and the samples’ curve of distances would "
        "lie to the left of the real images’, beginning near 0. New pictures of the same kind have a curve like that of "
        "real images, or lie to the right of it while they are worse than real ones.</p>"
    ]
    for run, found in copies:
        share = memorisation.share_too_near(found)
        of = f"of {found.total:,} " if found.total is not None and found.total > found.compared else ""
        order = np.argsort(found.distances[:, 0], kind="stable")[:SHOWN]
        title = f"<h3>{escape(run.name)}</h3>" if len(copies) > 1 else ""
        parts.append(
            f"{title}<p>Looked through: {found.compared:,} {of}training images for {len(found.samples)} samples. Distance to the "
            f"nearest: median {np.median(found.distances[:, 0]):.3f}, smallest {found.distances[:, 0].min():.3f}; of "
            f"real images to the nearest other one: median {np.median(found.real_distances):.3f}, smallest "
            f"{found.real_distances.min():.3f}. <strong>{share:.1%} of the samples</strong> are nearer to a training image "
            "than the nearest 1% of real images are to another one; about 1% is what new pictures of the same kind have."
            + (" A copy of an image that was not looked through would not show." if of else "")
            + "</p>"
        )
        series = {"samples": ranks(found.distances[:, 0]), "real images": ranks(found.real_distances)}
        chart = page.chart("Share with a nearest training image within", series, x="distance in features")
        items = []
        budget = NEAREST_BYTES / len(copies) / (SHOWN * (1 + found.neighbours.shape[1]))
        for i in order:
            cells = [f"<span>{image(found.samples[i], 'Sample', budget)}sample</span>"]
            for j in range(found.neighbours.shape[1]):
                alt = f"Training image at distance {found.distances[i, j]:.3f}"
                cells.append(
                    f"<span>{image(found.neighbours[i, j], alt, budget)}{found.distances[i, j]:.3f}<br>"
                    f"{found.pixel_distances[i, j]:.0f} grey</span>"
                )
            items.append(f"<li>{''.join(cells)}</li>")
        parts.append(
            f"<div class=charts>{chart}</div><p class=soft>The {len(order)} samples nearest to a training image, the most "
            "suspicious first, each with its nearest four: the distance in features of the compact network, and below it "
            f"the root mean square difference of pixels in grey levels of 255.</p><ul class=neighbours>{''.join(items)}</ul>"
        )
    return parts


def ranks(distances: np.ndarray) -> list[tuple[float, float]]:
    """The empirical distribution: (distance, share of all that are at most as large)."""
    ordered = np.sort(distances)
    points = [(float(f"{d:.4g}"), (i + 1) / len(ordered)) for i, d in enumerate(ordered)]
    return [(max(0.0, points[0][0] * 0.98), 0.0), *thinned(points, 200)]


def explanations(found: Sequence[Run], page: Page) -> str:
    """What `ganstyle explain` left in the folder explain."""
    told = {}
    for run in found:
        path = run.folder / "explain" / "explain.json"
        if not path.exists():
            continue
        try:
            told[run.name] = path.parent, json.loads(path.read_text(encoding="utf-8"))["sections"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read: write it again with ganstyle explain ({first_line(error)})") from error
    count = sum(len(section.get("pictures", [])) for _, sections in told.values() for section in sections)
    parts = []
    for name, (folder, sections) in told.items():
        parts.append(f"<h3>{escape(name)}</h3>" if len(found) > 1 else "")
        for section in sections:
            parts.append(f"<h3>{escape(str(section.get('title', '')))}</h3>")
            paragraphs = str(section.get("text", "")).split("\n\n")
            parts += [f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs if paragraph.strip()]
            shown = []
            for entry in section.get("pictures", []):
                path = (folder / str(entry.get("file"))).resolve()
                caption = str(entry.get("caption", ""))
                try:
                    if folder.resolve() not in path.parents:
                        raise UserError(f"{path} lies outside {folder}")
                    picture = image(read_file(path), caption or "Explanation", EXPLAIN_BYTES / count)
                    shown.append(f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>")
                except UserError as error:
                    shown.append(note(f"Left out: {error}."))
            parts.append(f"<div class=pictures>{''.join(shown)}</div>" if shown else "")
    return page.section("Seeing inside", *parts)


# ---------------------------------------------------------------------------------------------------------------------
# Style transfer


def style_pictures(styled: Sequence[Run], page: Page) -> str:
    """Content, styles and result of each run, and all of them on the way."""
    parts, ways = [], {}
    budget = STYLE_BYTES / 3 / len(styled)
    for run in styled:
        given = [("content", "Content")]
        count = len(run.description["loop"].get("styles", [])) or 1
        given += [(f"style-{i}", f"Style {i}" if count > 1 else "Style") for i in range(1, count + 1)]
        given += [("result", "Result")]
        figures = []
        for name, title in given:
            path = run.folder / f"{name}.png"
            if path.exists():
                picture = image(read_file(path), f"{title} of {run.name}", budget / len(given))
                figures.append(f"<figure>{picture}<figcaption>{title}</figcaption></figure>")
            else:
                missing = "The run has not ended yet: there is no result." if name == "result" else f"There is no {path}."
                figures.append(note(missing))
        title = f"<h3>{escape(run.name)}</h3>" if len(styled) > 1 else ""
        parts.append(f"{title}<div class=pictures>{''.join(figures)}</div>")
        if steps := thinned(numbered(run.folder / "steps"), MOST_GRIDS):
            ways[run.name] = {step: enlarged(read_file(path), run) for step, path in steps}
    pictures = page.section("Pictures", *parts)
    if not ways:
        return pictures
    evaluations = sorted({step for of in ways.values() for step in of})
    labels = [f"{step:,} evaluations" for step in evaluations]
    columns = [
        frames(
            [(evaluations.index(step), of[step]) for step in sorted(of)],
            labels,
            f"The picture of {name}",
            name if len(styled) > 1 else "",
            STYLE_BYTES * 2 / 3 / len(ways),
        )
        for name, of in ways.items()
    ]
    about = "<p class=soft>The optimisation goes from small pictures to large ones, each of which begins with the one before.</p>"
    return pictures + page.section("On the way", about, film(labels, columns, least=300, what="Evaluations"))


def enlarged(picture: np.ndarray, run: Run) -> np.ndarray:
    """A picture of an early size in the pixels of the last one, or the slider would make the page jump."""
    size = run.description["config"].get("size", max(picture.shape))
    scale = min(size, LONGEST_SIDE) / max(picture.shape)
    height, width = round(picture.shape[0] * scale), round(picture.shape[1] * scale)
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def style_curves(styled: Sequence[Run], page: Page) -> str:
    """The loss, in its terms and by layer."""

    def points(run: Run, name: str) -> list[tuple[float, float]]:
        return [(line["step"], line[name]) for line in run.lines if is_number(line.get(name))]

    def marks(run: Run) -> list[tuple[float, str, str]]:
        found, before = [], None
        for line in run.lines:
            size = line.get("size")
            if size != before and isinstance(size, list) and len(size) == 2:
                found.append((line["step"], f"from here on {size[0]} x {size[1]} pixels", "quiet-line"))
            before = size
        return found

    charts = [page.chart("Loss", {run.name: points(run, "loss") for run in styled}, "evaluations", log=True)]
    if len(styled) == 1:
        charts = [page.chart("Loss", {"loss": points(styled[0], "loss")}, "evaluations", marks(styled[0]), log=True)]
    for run in styled:
        suffix = f" of {run.name}" if len(styled) > 1 else ""
        names = list(dict.fromkeys(name for line in run.lines for name in line if name.startswith(("content/", "style/"))))
        terms: dict[str, list[tuple[float, float]]] = {}
        for line in run.lines:
            if not any(name in line for name in names):
                continue
            for term in ("content", "style", "tv", "range"):
                values = [v for name, v in line.items() if name.split("/")[0] == term and is_number(v)]
                if values:
                    terms.setdefault(term, []).append((line["step"], sum(values)))
        charts.append(page.chart(f"Terms of the loss{suffix}", terms, "evaluations", marks(run)))
        layers = {name: points(run, name) for name in names}
        charts.append(page.chart(f"By layer{suffix}", layers, "evaluations", marks(run)))
    if not any(charts):
        return page.section("Losses", note("No step was done yet."))
    about = (
        "<p class=soft>All terms are weighted, so that they add up to the loss. Dotted lines are where a larger picture "
        "begins: it has finer detail to match, and its loss starts anew.</p>"
    )
    return page.section("Losses", about, f"<div class=charts>{''.join(charts)}</div>")


# ---------------------------------------------------------------------------------------------------------------------
# Settings and versions


def settings_of(run: Run) -> dict[str, Any]:
    """All of run.json that was chosen, by name."""
    told = {"method": run.description["method"], "data": run.description["data"]}
    return told | run.description["config"] | {k: v for k, v in run.description["loop"].items() if k != "run_dir"}


def defaults_of(run: Run) -> dict[str, Any]:
    """What the settings are if nothing is said; of the package's own methods only."""
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


def worded(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(worded, value)) or "none"
    return {None: "none", True: "yes", False: "no"}.get(value) or str(value) if value is None or isinstance(value, bool) else str(value)


def settings(found: Sequence[Run], page: Page) -> str:
    """Of several runs first what they differ in; of all what is not as it is by default."""
    told = [settings_of(run) for run in found]
    names = list(dict.fromkeys(name for of in told for name in of))
    differing = [name for name in names if len({repr(of.get(name)) for of in told}) > 1]
    parts = []
    if len(found) > 1:
        head = ["<th>setting</th>", *(f"<th>{escape(run.name)}</th>" for run in found)]
        rows = [
            f"<tr><th>{escape(name)}</th>{''.join(f'<td class=wide><mark>{escape(worded(of.get(name)))}</mark></td>' for of in told)}</tr>"
            for name in differing
        ]
        parts.append(table(head, rows, "Settings that differ") if rows else note("The runs have the same settings."))
    shared = [name for name in names if name not in differing]
    defaults = defaults_of(found[0])
    items = [
        f'<li{" class=changed" if name in defaults and defaults[name] != told[0][name] else ""}><span>{escape(name)}</span>'
        f"<span>{escape(worded(told[0][name]))}</span></li>"
        for name in shared
    ]
    about = "<p class=soft>Marked is what differs from the default.</p>" if defaults else ""
    listed = f"{about}<ul class=settings>{''.join(items)}</ul>"
    if len(found) > 1:
        listed = f"<details><summary>{len(shared)} settings that all have in common</summary>{listed}</details>"
    return page.section("Settings", *parts, listed)


def versions(found: Sequence[Run], page: Page) -> str:
    """What the runs were made by and on."""
    told = []
    for run in found:
        devices = run.description.get("devices") or []
        counted = [f"{devices.count(device)} x {device}" for device in dict.fromkeys(map(str, devices))]
        versions = run.description.get("versions")
        of = {str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {}
        told.append(of | {"devices": ", ".join(counted), "processes": worded(run.description.get("processes"))})
    head = ["<th>package</th>", *(f"<th>{escape(run.name)}</th>" for run in found)]
    rows = []
    for name in dict.fromkeys(name for of in told for name in of):
        values = [of.get(name, "none") for of in told]
        mark = " class=changed" if len(set(values)) > 1 else ""
        rows.append(f"<tr{mark}><th>{escape(name)}</th>{''.join(f'<td class=wide>{escape(value)}</td>' for value in values)}</tr>")
    return page.section("Versions and devices", table(head, rows, "Versions and devices"))


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
