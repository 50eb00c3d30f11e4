"""The report of a picture that was restored: before and after, the way there, loss and variance, where it stopped."""

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

PICTURE_BYTES = 6_000_000  # of the page for pictures, over all runs
MOST_PICTURES = 40  # of those on the way; of more, evenly chosen ones are shown
BEFORE = {"known": "What was known", "given": "Given"}  # the first that is there is what the result is laid over
BESIDE = {"given": "Given", "mask": "Mask", "guide": "With flash", "truth": "Truth", "result": "Result"}


def summary(run: Run) -> str:
    """One line."""
    name = PurePath(run.data).stem if isinstance(run.data, str) else layout.setting(run.data)
    scale = f" {short(worded(run.config.get('scale')))} times" if run.config.get("task") == "super-resolve" else ""
    return f"{name}, {short(worded(run.config.get('task')))}{scale}"


def facts(run: Run) -> dict[str, Any]:
    """What one wants to know first."""
    last: dict[str, Any] = {}
    for line in run.lines:
        last |= line
    told = {"Steps": run.step, "Picture of step": _steps_in_words(run), "Loss": last.get("loss")}
    for name, title in {"psnr_given": "PSNR before", "psnr_chosen": "PSNR after"}.items():
        told[title] = f"{last[name]:.2f} dB" if is_number(last.get(name)) else None
    return told | {"Seconds": last.get("seconds")}


def defaults(run: Run) -> dict[str, Any]:
    """What settings of this task are if nothing is said, as JSON has them."""
    from ganstyle_jax import restoration

    module, config = contract.module_of(run.method), run.config
    try:
        cfg = module.preset(config.get("task"), config.get("scale"))
    except (KeyError, TypeError, ValueError, UserError):
        cfg = module.Config()
    return contract.to_json(cfg) | contract.to_json(restoration.Settings())


def sections(mended: Sequence[Run]) -> list[Section | None]:
    return [before_and_after(mended), pictures(mended), on_the_way(mended), curves(mended)]


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def before_and_after(mended: Sequence[Run]) -> Section | None:
    """The result of each run over what went in, with a slider."""
    blocks: list[Block] = []
    for run in mended:
        blocks += [Heading(run.name)] if len(mended) > 1 else []
        try:
            blocks.append(_split(run, PICTURE_BYTES / 3 / len(mended) / 2))
        except UserError as error:
            blocks.append(Note(f"Left out: {run.told(error)}."))
    return page.section("Before and after", blocks)


def _split(run: Run, budget: float) -> Block:
    files = {name: run.folder / f"{name}.png" for name in (*BEFORE, "result")}
    if not files["result"].exists():
        return Note("There is no result yet.")
    name = next((name for name in BEFORE if files[name].exists()), "given")
    after = read_picture(files["result"])
    before = _as_large(read_picture(files[name]), after.shape)
    pictures = [page.encode(picture, budget, "smoothly") for picture in (before, after)]
    alts = (f"{BEFORE[name]} of {run.name}", f"{run.name} restored")
    hidden = "What the mask hid is grey on the left." if name == "known" else ""
    return page.Split(
        pictures[0], pictures[1], alts, (BEFORE[name], "Restored"), "Where the restored picture begins", hidden
    )


def _as_large(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """In as many pixels as the result, each as it is: what was small is seen to have been."""
    if picture.shape == shape:
        return picture
    return np.asarray(Image.fromarray(picture).resize((shape[1], shape[0]), Image.Resampling.NEAREST))


def pictures(mended: Sequence[Run]) -> Section | None:
    """What each run was given, and its result."""
    blocks: list[Block] = []
    for run in mended:
        budget = PICTURE_BYTES / 3 / len(mended) / len(BESIDE)
        there = {name: title for name, title in BESIDE.items() if (run.folder / f"{name}.png").exists()}
        shown = tuple(_picture(run, name, title, budget) for name, title in there.items())
        blocks += [Heading(run.name)] if len(mended) > 1 else []
        blocks.append(page.Figures(shown, "pictures low") if shown else Note("The run holds no pictures yet."))
    return page.section("Pictures", blocks)


def _picture(run: Run, name: str, title: str, budget: float) -> Figure | Note:
    try:
        return Figure(
            page.encode(read_picture(run.folder / f"{name}.png"), budget, "smoothly"), f"{title} of {run.name}", title
        )
    except UserError as error:
        return Note(f"Left out: {run.told(error)}.")


def on_the_way(mended: Sequence[Run]) -> Section | None:
    """The picture of each run while the network learned it."""
    found, notes = {}, []
    for run in mended:
        files = thinned(numbered(run.folder / "steps"), MOST_PICTURES)
        budget = PICTURE_BYTES / 3 / len(mended) / max(1, len(files))
        found[run.name] = {}
        for step, path in files:
            try:
                found[run.name][step] = page.encode(read_picture(path), budget, "smoothly")
            except UserError as error:
                notes.append(Note(f"Left out: {run.told(error)}."))
    about = (
        "The network finds what is natural in the picture first, and fits the damage later. These are its pictures by "
        "then, and not those that would have been chosen."
    )
    shown = layout.side_by_side(found, "{:,} steps", "The picture of", "Steps")
    return page.section("On the way", [Text(about, soft=True), shown] if shown else None, notes)


# ---------------------------------------------------------------------------------------------------------------------
# Curves


def curves(mended: Sequence[Run]) -> Section | None:
    """Loss, variance and, where the truth is known, PSNR, with the steps at which the picture was chosen."""
    several = len(mended) > 1
    marks = [] if several else _marks(mended[0])
    found = []
    for name, title in {"loss": "Loss", "variance": "Moving variance"}.items():
        series: dict[str, list[tuple[float, Any]]] = {}
        for run in mended:
            parts = [name] if several else _parts(run, name) or [name]
            series |= {run.name if several else part: run.points(part) for part in parts}
        found.append(page.chart(title, series, "steps", marks, log=True))
    quality: dict[str, list[tuple[float, Any]]] = {}
    for run in mended:
        of = f" of {run.name}" if several else ""
        quality[f"by then{of}"] = run.points("psnr")
        quality[f"as it would be chosen{of}"] = run.points("psnr_chosen")
    found.append(page.chart("PSNR, dB", quality, "steps", marks))
    drawn = page.charts(found)
    if drawn is None:
        return page.section("Curves", Note("No step was done yet."))
    about = (
        "The variance is that of the last pictures. Where it is least the network has the natural picture, and has not "
        "yet begun to follow the damage: that picture is chosen, without knowledge of the truth. "
    )
    about += "" if several else "Dotted lines are at the steps that were chosen."
    return page.section("Curves", Text(about, soft=True), drawn)


def _parts(run: Run, name: str) -> list[str]:
    """The metric of each restart, by number; none where there is one alone."""
    names = {key for line in run.lines for key in line if key.startswith(f"{name}/")}
    return sorted(names, key=lambda key: (len(key), key))


def _chosen(run: Run) -> list[float]:
    """The steps of the least variance, one for each restart."""
    steps = []
    for name in _parts(run, "variance") or ["variance"]:
        if points := [(value, step) for step, value in run.points(name) if is_number(value)]:
            steps.append(min(points)[1])
    return steps


def _steps_in_words(run: Run) -> str | None:
    steps = _chosen(run)
    if not steps or run.config.get("stopping") == "steps":
        return None
    least, most = int(min(steps)), int(max(steps))
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _marks(run: Run) -> list[tuple[float, str, str]]:
    return [(step, f"the least variance, at step {int(step):,}", "alarm-line") for step in _chosen(run)]
