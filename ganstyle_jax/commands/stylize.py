"""`ganstyle stylize CONTENT STYLE ...`: the flags are the fields of two dataclasses."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ganstyle_jax.commands import flags


@dataclasses.dataclass(frozen=True)
class Stylize:
    """Paint a picture in the manner of others. `ganstyle stylize --help` lists the settings."""

    content: tyro.conf.Positional[Path]  # picture, or a folder of them
    styles: tyro.conf.Positional[tuple[Path, ...]]  # pictures whose manner to take, or folders of them


def run(args: list[str]) -> None:
    from ganstyle_jax import stylize as program
    from ganstyle_jax.loop import processes
    from ganstyle_jax.style import gatys
    from ganstyle_jax.stylize import clip

    content = tyro.conf.arg(metavar="CONTENT", help="picture to be painted, a folder of them, or a film")
    styles = tyro.conf.arg(
        metavar="STYLE [STYLE ...]", help="picture in whose manner, several to be blended, or one folder of them"
    )
    chosen = flags.parse(
        "ganstyle stylize",
        "Paint CONTENT in the manner of the pictures STYLE.",
        args,
        content=Annotated[tyro.conf.Positional[Path], content],
        styles=Annotated[tyro.conf.Positional[tuple[Path, ...]], styles],
        settings=program.Settings(),
        processes=processes.Processes(),
        config=gatys.Config(),
    )
    flags.use_cache()
    processes.join(chosen.processes)
    with processes.leaving_together():
        make = clip.run if clip.is_film(chosen.content, chosen.settings.out) else program.run
        make(chosen.content, chosen.styles, chosen.config, chosen.settings)
