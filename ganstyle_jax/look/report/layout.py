"""What reports of every kind of run have in common: heading, what `ganstyle explain` left, settings and versions."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ganstyle_jax.io.files import UserError
from ganstyle_jax.look import page
from ganstyle_jax.look.page import Block, Cell, Column, Fact, Figure, Film, Heading, Note, Row, Section, Text
from ganstyle_jax.look.report import folder
from ganstyle_jax.look.report.folder import Run
from ganstyle_jax.look.words import short, shortened, told_apart, worded

EXPLAIN_BYTES = 3_000_000  # of the page for the pictures of `ganstyle explain`, over all runs


def kind_of(run: Run) -> ModuleType:
    """The module that lays out runs of this kind, by its `summary`, `facts`, `defaults` and `sections`."""
    return importlib.import_module(f"ganstyle_jax.look.report.{run.kind}")


def facts(found: Sequence[Run]) -> tuple[Fact, ...]:
    """Below the heading: of one run what one wants to know first, of several what tells them apart."""
    if len(found) == 1:
        told = {name: value for name, value in kind_of(found[0]).facts(found[0]).items() if value is not None}
        return tuple(Fact(name, short(worded(value))) for name, value in told.items())
    said = {"method", "data", "image_size", "styles", "size", "out"}  # by `summary`, or of no interest here
    differing = [name for name in differing_settings(found) if name not in said][:4]
    told = []
    for run in found:
        same_kind = [other.name for other in found if other.kind == run.kind]  # that share its charts
        chosen = {name: run.settings[name] for name in differing if name in run.settings}
        words = ", ".join(f"{short(name).replace('_', ' ')} {setting(value)}" for name, value in chosen.items())
        lines = (kind_of(run).summary(run), *([words] if words else []))
        told.append(Fact(run.name, lines=lines, place=same_kind.index(run.name)))
    return tuple(told)


def side_by_side(
    pictures: dict[str, dict[int, page.Picture]],
    label: str,
    alt: str,
    what: str,
    titles: dict[str, tuple[str, ...]] | None = None,
) -> Film | None:
    """A film of several runs, by name and step, with one slider over all steps. label: of a step, to be formatted."""
    steps = sorted({step for of in pictures.values() for step in of})
    labels = tuple(label.format(step) for step in steps)
    columns = []
    for name, of in pictures.items():
        placed = tuple((steps.index(step), of[step]) for step in sorted(of))
        if placed:
            caption = name if len(pictures) > 1 else ""
            columns.append(Column(placed, f"{alt} {name}", caption, (titles or {}).get(name, ())))
    return Film(labels, tuple(columns), what) if columns else None


def explanations(found: Sequence[Run]) -> Section | None:
    """What `ganstyle explain` left in the folder explain of each run."""
    told, blocks = [], []
    for run in found:
        try:
            told.append((run, folder.explanation(run)))
        except UserError as error:
            blocks.append(Note(f"{run.name}: {error}."))
    budget = EXPLAIN_BYTES / max(1, sum(len(section["pictures"]) for _, sections in told for section in sections))
    for run, sections in told:
        for section in sections:
            blocks.append(Heading(f"{run.name}: {section['title']}" if len(found) > 1 else section["title"]))
            blocks += [Text(text) for text in section["text"].split("\n\n") if text.strip()]
            shown = tuple(explained(run, entry, budget) for entry in section["pictures"])
            blocks += [page.Figures(shown)] if shown else []
    return page.section("Seeing inside", blocks)


def explained(run: Run, entry: dict[str, str], budget: float) -> Figure | Note:
    """One picture with its caption; a note for a file that is not there or is none of the folder's."""
    try:
        picture = page.encode(folder.explained_picture(run, entry["file"]), budget, "no")
    except UserError as error:
        return Note(f"Left out: {run.told(error)}.")
    return Figure(picture, entry["caption"] or "Explanation", entry["caption"])


# ---------------------------------------------------------------------------------------------------------------------
# Settings and versions


def setting(value: Any) -> str:
    """A setting's value in words, without where a file is on this machine."""
    return worded(shortened(value))


def differing_settings(found: Sequence[Run]) -> list[str]:
    """Names of the settings that are not the same in all runs."""
    names = dict.fromkeys(name for run in found for name in run.settings)
    return [name for name in names if len({repr(run.settings.get(name)) for run in found}) > 1]


def apart(values: Sequence[Any]) -> list[str]:
    """Values of a setting that differs, in words: of paths that end alike, as much as tells them apart."""
    words = [setting(value) for value in values]
    if len(set(words)) == len({repr(value) for value in values}):
        return words
    if all(isinstance(value, str) and Path(value).is_absolute() for value in values):
        names = told_apart(list(dict.fromkeys(values))) or words
        told = dict(zip(dict.fromkeys(values), names, strict=False))
        return [told[value] for value in values]
    return words


def settings(found: Sequence[Run]) -> Section | None:
    """Of several runs first what they differ in; of all what is not as it is by default."""
    differing = differing_settings(found)
    blocks: list[Block] = []
    if differing:
        head = (Cell("setting"), *(Cell(run.name) for run in found))
        rows = []
        for name in differing:
            told = apart([run.settings[name] for run in found if name in run.settings])
            # Runs of different methods have different settings.
            cells = (Cell(told.pop(0), looks="marked") if name in run.settings else Cell("") for run in found)
            rows.append(Row((Cell(short(name), header=True), *cells)))
        blocks.append(page.Table(head, tuple(rows), "Settings that differ"))
    elif len(found) > 1:
        blocks.append(Note("The runs have the same settings."))
    shared = {name: value for name, value in found[0].settings.items() if name not in differing}
    defaults = kind_of(found[0]).defaults(found[0])
    items = {short(k): (setting(v), k in defaults and defaults[k] != v) for k, v in shared.items()}
    marked = [Text("Marked is what is not the default.", soft=True)] if defaults else []
    listed = (*marked, page.Settings(items))
    if len(found) > 1:
        listed = (page.Details(f"{len(shared)} settings that all have in common", listed),)
    return page.section("Settings", blocks, listed)


def versions(found: Sequence[Run]) -> Section | None:
    """What the runs were made by and on."""
    told = []
    for run in found:
        devices = run.description.get("devices")
        devices = [str(device) for device in devices] if isinstance(devices, list) else []
        counted = [f"{devices.count(device)} x {device}" for device in dict.fromkeys(devices)]
        of = run.description.get("versions")
        of = {str(k): str(v) for k, v in of.items()} if isinstance(of, dict) else {}
        told.append(of | {"devices": worded(counted), "processes": worded(run.description.get("processes"))})
    rows = []
    for name in dict.fromkeys(name for of in told for name in of):
        values = [short(of.get(name, "none")) for of in told]
        cells = (Cell(short(name), header=True), *(Cell(value, looks="wide") for value in values))
        rows.append(Row(cells, "changed" if len(set(values)) > 1 else ""))
    head = (Cell("package"), *(Cell(run.name) for run in found))
    return page.section("Versions and devices", page.Table(head, tuple(rows), "Versions and devices"))
