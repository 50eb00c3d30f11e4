"""`ganstyle report`: one HTML file that shows runs, alone or side by side, and opens in any browser without a network.

training.py lays out a run that trained a network, with evaluations.py and drawn.py; stylised.py one of `ganstyle
stylize --run-dir`, which optimised a picture; restored.py one of `ganstyle restore --run-dir`; layout.py what they have
in common. folder.py reads run folders, and ../page.py and ../templates make HTML of it all.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from ganstyle_jax import __version__
from ganstyle_jax.io.files import UserError, atomic_path
from ganstyle_jax.look import page
from ganstyle_jax.look.page import Page
from ganstyle_jax.look.report import folder, layout, restored, stylised, training


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
    found = [folder.read(path, name) for path, name in zip(folders, folder.names_of(folders), strict=True)]
    made = lay_out(found, training_images)
    with atomic_path(out) as path:
        page.write(path, made)
    return out


def lay_out(found: Sequence[folder.Run], training_images: int) -> Page:
    """The page of these runs."""
    trained = [run for run in found if run.is_trained]
    styled = [run for run in found if run.kind == "stylised"]
    mended = [run for run in found if run.kind == "restored"]
    sections = training.sections(trained, training_images) if trained else []
    sections += stylised.sections(styled) if styled else []
    sections += restored.sections(mended) if mended else []
    sections += [layout.explanations(found), layout.settings(found), layout.versions(found)]
    alone = len(found) == 1
    now = time.strftime("%Y-%m-%d %H:%M")
    return Page(
        title=f"Report: {', '.join(run.name for run in found)}",
        heading=found[0].name if alone else f"{len(found)} runs side by side",
        about=layout.kind_of(found[0]).summary(found[0]) if alone else "",
        facts=layout.facts(found),
        alarms=training.warnings(trained),
        sections=tuple(section for section in sections if section is not None),
        footer=f"Written {now} by ganstyle_jax {__version__}. Everything is in this one file.",
    )
