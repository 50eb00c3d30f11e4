"""`ganstyle train METHOD`: the flags are the fields of the loop's and of the method's dataclasses."""

import dataclasses
import sys
from typing import Annotated, Any

import tyro

from ganstyle_jax.builtin import OR_FILE
from ganstyle_jax.commands import flags
from ganstyle_jax.io.files import UserError

DATA = (
    "images: a folder, .zip or .tar of image files (nested folders are classes), an .npz or IDX file, tfds:NAME, or "
    "glyphs, which needs no files; NAME=IMAGES for each where the method learns from several, or for two a folder or "
    "archive that has trainA and trainB"
)


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a method on images. `ganstyle train METHOD --help` lists its settings."""

    method: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=OR_FILE)]
    settings: tyro.conf.Positional[tuple[str, ...]] = ()  # --data SOURCE and the method's settings


def run(command: Train) -> None:
    train(command.method, list(command.settings))


def train(
    name: str,
    args: list[str],
    data: tuple[str, ...] = (),
    loop: Any = None,
    config: Any = None,
    prog: str | None = None,
    description: str | None = None,
) -> None:
    """data, loop, config: defaults of the flags; without data the flag is required where the method needs some."""
    from ganstyle_jax import contract
    from ganstyle_jax.loop import processes
    from ganstyle_jax.loop.settings import Loop

    method = contract.find(name)
    own = {field.name for part in (Loop, processes.Processes) for field in dataclasses.fields(part)} | {"data"}
    if taken := sorted(own & {field.name for field in dataclasses.fields(method.config)}):
        raise UserError(
            f"Config of {name} has the field {', '.join(taken)}, which is a flag of ganstyle train itself: give it "
            "another name"
        )
    chosen = flags.parse(
        prog or f"ganstyle train {name}",
        description or _summary(method.module),
        args,
        data=(Annotated[tuple[str, ...], tyro.conf.arg(help=DATA)], data),
        loop=loop or Loop(),
        processes=processes.Processes(),
        config=config or method.config(),
    )
    flags.use_cache()
    from ganstyle_jax.loop import sources
    from ganstyle_jax.loop import train as training

    given = sources.parse(chosen.data, method, chosen.config)
    processes.join(chosen.processes)
    with processes.leaving_together():
        training.run(method, chosen.config, given, chosen.loop)


def experiment(name: str, description: str | None, data: str | tuple[str, ...], loop: Any, config: Any) -> None:
    """All that a script in experiments/ does: `ganstyle train NAME` with defaults and a description of its own.

    data: the source, or NAME=SOURCE for each where there are several.
    """
    data = (data,) if isinstance(data, str) else data
    with flags.errors_for_people():
        train(name, sys.argv[1:], data, loop, config, sys.argv[0], description)


def _summary(module: Any) -> str:
    """The first paragraph of the method's file."""
    return (module.__doc__ or f"Trains {module.__name__}.").split("\n\n")[0].replace("\n", " ")
