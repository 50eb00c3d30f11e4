"""The report of a picture that was optimised: content, styles and result, the way there, and the loss by term."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from ganstyle_jax import contract
from ganstyle_jax.io.files import UserError
from ganstyle_jax.look import page
from ganstyle_jax.look.page import Block, Figure, Heading, Note, Section, Text
from ganstyle_jax.look.report import layout
from ganstyle_jax.look.report.folder import Run, numbered, read_picture
from ganstyle_jax.look.words import is_number, short, thinned, worded

PICTURE_BYTES = 5_000_000  # of the page for pictures, over all runs
MOST_PICTURES = 40  # of those on the way; of more, evenly chosen ones are shown
TERMS = ("content", "style", "tv", "range")  # of the loss, as the log names them


def styles_of(run: Run) -> list[str]:
    styles = run.loop.get("styles")
    return [str(style) for style in styles] if isinstance(styles, list) else []


def summary(run: Run) -> str:
    """One line."""
    styles = ", ".join(PurePath(style).stem for style in styles_of(run)) or "no style"
    content = PurePath(run.data).stem if isinstance(run.data, str) else layout.setting(run.data)
    return f"{content} in the manner of {styles}, {short(worded(run.config.get('size')))} pixels"


def facts(run: Run) -> dict[str, Any]:
    """What one wants to know first."""
    last: dict[str, Any] = {}
    for line in run.lines:
        last |= line
    told = {"Evaluations": run.step, "Loss": last.get("loss"), "Seconds": last.get("seconds")}
    return told | {"Features": run.loop.get("features"), "Optimizer": run.config.get("optimizer")}


def defaults(run: Run) -> dict[str, Any]:
    """What settings are if nothing is said, as JSON has them."""
    from ganstyle_jax import stylize

    return contract.to_json(contract.module_of(run.method).Config()) | contract.to_json(stylize.Settings())


def sections(styled: Sequence[Run]) -> list[Section | None]:
    return [pictures(styled), on_the_way(styled), curves(styled)]


def pictures(styled: Sequence[Run]) -> Section | None:
    """Content, styles and result of each run."""
    blocks: list[Block] = []
    for run in styled:
        count = min(len(styles_of(run)), MOST_PICTURES) or 1
        styles = {f"style-{i}": f"Style {i}" if count > 1 else "Style" for i in range(1, count + 1)}
        budget = PICTURE_BYTES / 3 / len(styled) / (count + 2)
        names = {"content": "Content", **styles, "result": "Result"}
        shown = tuple(_picture(run, name, title, budget) for name, title in names.items())
        blocks += [Heading(run.name)] if len(styled) > 1 else []
        blocks.append(page.Figures(shown, "pictures low"))
    return page.section("Pictures", blocks)


def _picture(run: Run, name: str, title: str, budget: float) -> Figure | Note:
    path = run.folder / f"{name}.png"
    if not path.exists():
        return Note("There is no result yet." if name == "result" else f"There is no {path.name}.")
    try:
        return Figure(page.encode(read_picture(path), budget, "smoothly"), f"{title} of {run.name}", title)
    except UserError as error:
        return Note(f"Left out: {run.told(error)}.")


def on_the_way(styled: Sequence[Run]) -> Section | None:
    """The picture of each run while it was optimised."""
    found, notes = {}, []
    for run in styled:
        files = thinned(numbered(run.folder / "steps"), MOST_PICTURES)
        budget = PICTURE_BYTES * 2 / 3 / len(styled) / max(1, len(files))
        found[run.name] = {}
        for step, path in files:
            try:
                found[run.name][step] = page.encode(enlarged(read_picture(path), run), budget, "smoothly")
            except UserError as error:
                notes.append(Note(f"Left out: {run.told(error)}."))
    about = "The optimisation goes from small pictures to large ones, each of which begins with the one before."
    shown = layout.side_by_side(found, "{:,} evaluations", "The picture of", "Evaluations")
    return page.section("On the way", [Text(about, soft=True), shown] if shown else None, notes)


def enlarged(picture: np.ndarray, run: Run) -> np.ndarray:
    """A picture of an early size in as many pixels as the last one, or the page would jump."""
    size = run.config.get("size")
    size = size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else max(picture.shape)
    scale = min(size, page.LONGEST_SIDE) / max(picture.shape)
    shape = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    return np.asarray(Image.fromarray(picture).resize(shape, Image.Resampling.BICUBIC))


def curves(styled: Sequence[Run]) -> Section | None:
    """The loss, and for each run its terms, and content and style by layer."""
    x, several = "evaluations", len(styled) > 1
    whole = {run.name if several else "loss": run.points("loss") for run in styled}
    found = [page.chart("Loss", whole, x, [] if several else sizes(styled[0]), log=True)]
    for run in styled:
        of = f" of {run.name}" if several else ""
        layers = list(dict.fromkeys(k for line in run.lines for k in line if k.startswith(("content/", "style/"))))
        terms: dict[str, list[tuple[float, Any]]] = {}
        for line in run.lines:
            for term in TERMS:
                values = [v for name, v in line.items() if name.split("/")[0] == term and is_number(v)]
                if values:
                    terms.setdefault(term, []).append((line["step"], sum(values)))
        found.append(page.chart(f"Terms of the loss{of}", terms, x, sizes(run), log=True))
        found.append(page.chart(f"By layer{of}", {name: run.points(name) for name in layers}, x, sizes(run), log=True))
    drawn = page.charts(found)
    if drawn is None:
        return page.section("Losses", Note("No step was done yet."))
    about = (
        "All terms are weighted, so that they add up to the loss. Dotted lines are where a larger picture begins: it "
        "has finer detail to match, so that its loss begins higher."
    )
    return page.section("Losses", Text(about, soft=True), drawn)


def sizes(run: Run) -> list[tuple[float, str, str]]:
    """Where pictures of another size begin, as marks of a chart."""
    found, before = [], None
    for line in run.lines:
        if isinstance(size := line.get("size"), list) and size != before:
            found.append((line["step"], f"from here on {' x '.join(map(str, size))} pixels", "quiet-line"))
            before = size
    return found[1:]
