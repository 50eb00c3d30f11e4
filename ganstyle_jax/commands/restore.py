"""`ganstyle restore IMAGE ...`: the flags are the fields of two dataclasses."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from ganstyle_jax.commands import flags

DESCRIPTION = """Restore damaged pictures by a network that has learned from none (Deep Image Prior): take noise away,
fill in holes, enlarge, smooth what JPEG has left.

  ganstyle restore noisy.png -o clean.png
  ganstyle restore old.jpg --task inpaint --mask scratches.png -o whole.png   the mask is white where old.jpg is sound
  ganstyle restore small.png --task super-resolve --scale 4 -o large.png
  ganstyle restore photo.jpg --task jpeg --run-dir runs/photo -o better.png   then ganstyle report runs/photo

It stops by itself where the picture is likely to be best; a work that was ended goes on with --resume. Masks are white
where the picture is known and black where it is to be filled in. `ganstyle restore --task inpaint --help` tells what
the settings are for that task.
"""


@dataclasses.dataclass(frozen=True)
class Restore:
    """Restore damaged pictures: noise, holes, low resolution, JPEG. `ganstyle restore --help` lists the settings."""

    images: tyro.conf.Positional[tuple[Path, ...]]  # damaged pictures, or folders of them


def run(args: list[str]) -> None:
    from ganstyle_jax import restoration
    from ganstyle_jax.restore import deep_image_prior

    images = tyro.conf.arg(metavar="IMAGE [IMAGE ...]", help="damaged picture, several, or folders of them")
    config, preset = preset_of(args, deep_image_prior)
    chosen = flags.parse(
        "ganstyle restore",
        DESCRIPTION + preset,
        args,
        images=Annotated[tyro.conf.Positional[tuple[Path, ...]], images],
        settings=restoration.Settings(),
        config=config,
    )
    flags.use_cache()
    restoration.run(chosen.images, chosen.config, chosen.settings)


def preset_of(args: list[str], method: Any) -> tuple[Any, str]:
    """The task that the arguments name, which decides on what is left open, and a paragraph of what that is."""
    default = method.Config()
    task, scale = said(args, "--task") or default.task, said(args, "--scale") or default.scale
    try:
        complete = method.preset(task, int(scale))
    except (KeyError, ValueError):  # the parser says what is wrong with them
        return default, ""
    found = {
        f.name: getattr(complete, f.name) for f in dataclasses.fields(complete) if getattr(default, f.name) is None
    }
    words = {name: " ".join(map(str, x)) if isinstance(x, tuple) else f"{x}" for name, x in found.items()}
    listed = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in words.items())
    return method.Config(task=task, scale=int(scale)), f"\nWhat is left open is, for the task {task}:\n\n  {listed}\n"


def said(args: list[str], flag: str) -> str | None:
    """The value of a flag, before it is known which others there are."""
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"{flag}="):
            return arg.removeprefix(f"{flag}=")
    return None
