"""`ganstyle explain`: pictures that show what a network has learned, with a text to each.

    explain.run(Path("runs/digits"))        # writes runs/digits/explain/*.png and runs/digits/explain/explain.json

Of a trained run: saliency.py, growth.py, directions.py, maps.py and classes.py, each with what is computed, what is
drawn and what is said, about the run that subject.py prepares. Of a picture made by style transfer: style.py.
projections.py lays points out in two dimensions, sections.py says what is written and how it is drawn.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from ganstyle_jax import contract
from ganstyle_jax.features import weights
from ganstyle_jax.io import pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.look.explain import directions, growth, maps, saliency, sections, style
from ganstyle_jax.look.explain.subject import Settings, Subject, prepare
from ganstyle_jax.loop import runs
from ganstyle_jax.style import gatys


def run(run_dir: Path, out: Path | None = None, step: int | None = None, settings: Settings | None = None) -> Path:
    """Explains a run folder of `ganstyle train` or of `ganstyle stylize --run-dir`; the path of explain.json.

    out: folder, by default `explain` in the run's. step: of the checkpoint, by default the newest. Raises UserError
    where there is no run, no checkpoint, or no picture yet.
    """
    description = runs.read(run_dir)
    out = run_dir / "explain" if out is None else out
    settings = settings or Settings()
    if not contract.trains(description["method"]):
        if not hasattr(contract.module_of(description["method"]), "stylize"):
            raise UserError(
                f"{run_dir} holds a restored picture, of which there is nothing to explain: see ganstyle report"
            )
        files = [run_dir / f"{name}.png" for name in ("content", "style-1", "result")]
        if missing := [str(file) for file in files if not file.is_file()]:
            raise UserError(f"there is no {', no '.join(missing)} yet: wait until ganstyle stylize is done")
        features = str(description["loop"].get("features", "compact"))
        return run_style(files, out, features, style.Settings(seed=settings.seed))
    subject = prepare(runs.load(run_dir, step), settings)
    return sections.write(out, trained_sections(subject, out, settings))


def trained_sections(subject: Subject, out: Path, settings: Settings) -> list[sections.Section]:
    """Draws all that this run's method offers into the folder; what it does not offer is left out, and that is said."""
    topics = [
        lambda: saliency.sections(subject, out, settings),
        lambda: growth.sections(subject, out),
        lambda: directions.sections(subject, out, settings),
        lambda: maps.sections(subject, out, settings),
    ]
    return [section for topic in tqdm(topics, "explaining", leave=False) for section in topic()]


def run_style(files: Sequence[Path], out: Path, features: str, settings: style.Settings) -> Path:
    """Explains a content picture, a style picture and, if it is among the files, the result; the path of explain.json.

    features: name or file of the network's weights. Raises UserError for files and networks that cannot be used.
    """
    network, params = weights.load_for_style(features)
    try:
        network.check(gatys.STYLE_LAYERS)
    except ValueError as error:
        raise UserError(f"{features} cannot be explained, only a network laid out like VGG can: {error}") from error
    read = [pictures.read_picture(file) for file in files]
    if len(read) == 2:
        cfg = gatys.Config(size=2 * settings.size)
        read.append(gatys.stylize(jax.random.key(settings.seed), read[0], [read[1]], cfg, network, params))
    content, painting, result = (np.asarray(picture, np.float32) for picture in read)
    return sections.write(out, style.explain_style(content, painting, result, network, params, out, settings, features))


def run_any(
    what: Sequence[Path], out: Path | None, step: int | None, seed: int, features: str | None, size: int | None
) -> Path:
    """What the command line does: a run folder, or two or three pictures. UserError for anything else."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed must be from 0 to {2**32 - 1}, got {seed}")
    if size is not None and not 32 <= size <= 1024:
        raise UserError(f"--size must be from 32 to 1024 pixels, got {size}")
    if len(what) == 1 and not what[0].is_file():
        if (features, size) != (None, None):
            raise UserError("--features and --size belong to pictures, and not to a run folder")
        return run(what[0], out, step, Settings(seed=seed))
    if len(what) not in (2, 3):
        given = " ".join(map(str, what)) or "nothing"
        raise UserError(
            f"ganstyle explain takes a run folder, or two or three pictures CONTENT STYLE [RESULT], got {given}"
        )
    if step is not None:
        raise UserError("--step belongs to a run folder, and not to pictures")
    settings = dataclasses.replace(style.Settings(seed=seed), **({} if size is None else {"size": size}))
    return run_style(what, out or Path("explain"), features or "compact", settings)
