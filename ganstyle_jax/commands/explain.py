"""`ganstyle explain`: what a run has learned, in pictures and texts."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ganstyle_jax.commands import flags


@dataclasses.dataclass(frozen=True)
class Explain:
    """Show what a trained run has learned, or what style transfer compares: pictures and texts in a folder.

    `ganstyle explain RUN` leaves them in RUN/explain, and `ganstyle report RUN` shows them.
    """

    # a run folder of ganstyle train or ganstyle stylize --run-dir; or a content picture, a style picture and,
    # if it is not to be made, the result
    what: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN | CONTENT STYLE [RESULT]")]
    out: Path | None = None  # folder to write to; by default explain in the run folder, or in this one
    step: int | None = None  # of the checkpoint to explain; by default the newest
    seed: int = 0  # decides the latents and the noise
    features: str | None = None  # network of pictures, a name or a file of weights; by default compact
    size: int | None = None  # longer side of the pictures that are made to explain pictures; by default 144 pixels


def run(command: Explain) -> None:
    flags.use_cache()
    from ganstyle_jax.look import explain as explanation

    written = explanation.run_any(command.what, command.out, command.step, command.seed, command.features, command.size)
    print(f"explained in {written.parent}, with texts in {written}")
