"""The report of a run that trained a network: warnings, metrics, curves, sample grids, and what is drawn anew."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ganstyle_jax import builtin, contract
from ganstyle_jax.io.files import UserError
from ganstyle_jax.look import page
from ganstyle_jax.look.page import Note, Section, Text
from ganstyle_jax.look.report import drawn, layout
from ganstyle_jax.look.report.evaluations import evaluations
from ganstyle_jax.look.report.folder import Run, numbered, read_picture
from ganstyle_jax.look.words import is_number, short, thinned, worded

SAMPLE_BYTES = 7_000_000  # of the page for sample grids, over all runs
MOST_GRIDS = 40  # sample grids of a run; of more, evenly chosen ones are shown


def summary(run: Run) -> str:
    """One line."""
    side = f", {short(worded(run.config['image_size']))} pixels" if "image_size" in run.config else ""
    return f"{short(run.method)} on {layout.setting(run.data)}{side}, step {run.step:,}"


def facts(run: Run) -> dict[str, Any]:
    """What one wants to know first."""
    last: dict[str, Any] = {}
    for line in run.lines:
        last |= line
    rates = [rate for _, rate in run.points("images_per_second") if is_number(rate)]
    steps, batch = run.loop.get("steps"), run.loop.get("batch_size")
    told: dict[str, Any] = {"Steps": f"{run.step:,} of {steps:,}" if is_number(steps) else run.step}
    told |= {"Images seen": run.step * batch if is_number(batch) else None}
    told |= {"Images a second": round(float(np.median(rates))) if rates else None}
    told |= {"Loss": run.config.get("loss"), "Seed": run.loop.get("seed")}
    return told | {"Diversity, of the data's": last.get("diversity")}


def defaults(run: Run) -> dict[str, Any]:
    """What settings are if nothing is said, as JSON has them; known of the package's own methods only."""
    from ganstyle_jax.loop import train

    if run.method not in builtin.EVERY:
        return {}
    return contract.to_json(contract.module_of(run.method).Config()) | contract.to_json(train.Loop())


def sections(trained: Sequence[Run], training_images: int) -> list[Section | None]:
    anew = drawn.from_checkpoints(trained, training_images)
    return [
        evaluations(trained),
        curves(trained),
        samples(trained, anew.titles),
        *anew.sections,
    ]


def warnings(trained: Sequence[Run]) -> tuple[Text, ...]:
    """What training warned of, in each run."""
    found = []
    for run in trained:
        warned = [line for line in run.lines if line.get("warning")]
        if not warned:
            continue
        first, last = warned[0]["step"], warned[-1]["step"]
        when = f"step {first:,}" if first == last else f"{len(warned)} times from step {first:,} to {last:,}"
        later = any(step > last for step, _ in run.points("diversity"))
        over = " Later grids were better." if later else ""
        said = str(warned[-1]["warning"]).rstrip(".")
        found.append(Text(f"{said}.{over}", lead=f"{run.name}, {when}: "))
    return tuple(found)


# ---------------------------------------------------------------------------------------------------------------------
# Curves


def curves(trained: Sequence[Run]) -> Section | None:
    """Of one run related metrics in one chart; of several runs a chart for each metric."""
    names = {name for run in trained for line in run.lines for name, value in line.items() if is_number(value)}
    names = sorted(names - {"step"}, key=_order)
    if not names:
        return page.section("Curves", Note("Nothing was logged yet."))
    marks = [
        (line["step"], f"{run.name}, step {line['step']}: a warning", "alarm-line")
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
            found.append(page.chart(plain(group), series, marks=marks))
    else:
        found = [
            page.chart(plain(name), {run.name: run.points(name) for run in trained}, marks=marks) for name in names
        ]
    about = (
        "Each point is the mean since the one before. Point at a curve, or focus it and use the arrow keys, to read "
        "its values; a name switches its line off and on."
    )
    about += " Dotted vertical lines are warnings." if marks else ""
    return page.section("Curves", Text(about, soft=True), page.charts(found))


def plain(name: str) -> str:
    return name.replace("_", " ")


def _order(name: str) -> tuple[int, str]:
    first = ("loss", "diversity", "accuracy", "logit")
    group = name.split("/")[0]
    return first.index(group) if group in first else len(first) + (group == "images_per_second"), name


# ---------------------------------------------------------------------------------------------------------------------
# Samples


def samples(trained: Sequence[Run], titles: dict[str, drawn.Titles]) -> Section | None:
    """The sample grids of all runs under one slider. titles: by run, of methods whose pictures have some."""
    notes, dropped = [], 0
    grids: dict[str, dict[int, page.Picture]] = {}
    above: dict[str, tuple[str, ...]] = {}
    for run in trained:
        files = numbered(run.folder / "samples")
        chosen = thinned(files, MOST_GRIDS)
        dropped += len(files) - len(chosen)
        grids[run.name] = {}
        for step, path in chosen:
            try:
                picture = read_picture(path)
            except UserError as error:
                notes.append(Note(f"Left out: {run.told(error)}."))
                continue
            grids[run.name][step] = page.encode(picture, SAMPLE_BYTES / len(trained) / len(chosen))
            if run.name in titles:
                above[run.name] = titles[run.name].over(picture.shape[1])
        if not files:
            notes.append(Note(f"{run.name} holds no sample grids yet."))
    if dropped:
        notes.append(Note(f"{dropped} more grids are in the run folders: at most {MOST_GRIDS} of each run are shown."))
    about = "All grids of a run answer the same requests, so that one can follow a picture."
    about += " A run without a grid of the chosen step shows the last one before it." if len(trained) > 1 else ""
    shown = layout.side_by_side(grids, "step {:,}", "Samples of", "Step", above)
    return page.section("Samples", Text(about, soft=True) if shown else None, shown, notes)
