"""`ganstyle evaluate WHAT`: the flags are the fields of three dataclasses."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from ganstyle_jax.commands import flags


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure how good a run's pictures, or any images, are. `ganstyle evaluate --help` lists the settings."""

    what: tyro.conf.Positional[Path]  # run folder, or images: a folder, .zip, .tar or .npz


def run(args: list[str]) -> None:
    from ganstyle_jax.judge import evaluate, pairs
    from ganstyle_jax.look import measure

    what = tyro.conf.arg(metavar="WHAT", help="run folder, or images: a folder, .zip, .tar or .npz")
    chosen = flags.parse(
        "ganstyle evaluate",
        "Measure how good WHAT is: the pictures that a run draws, or any images.",
        args,
        what=Annotated[tyro.conf.Positional[Path], what],
        options=measure.Options(),
        settings=evaluate.Settings(),
        pairs=pairs.Settings(),
    )
    flags.use_cache()
    if chosen.pairs.pairs is not None:
        record = pairs.run(chosen.what, chosen.options.reference, chosen.pairs, chosen.settings)
        table = pairs.table
    else:
        record = measure.run(chosen.what, chosen.options, chosen.settings)
        table = measure.table
    print(json.dumps(record, indent=1) if chosen.options.json else table(record))
