"""`ganstyle apply RUN_OR_MODEL INPUT ... -o OUT`: what a trained model makes of the user's own pictures and films."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ganstyle_jax.commands import flags
from ganstyle_jax.io.files import UserError

DESCRIPTION = """Give pictures, folders of them or a film of your own to a trained model: a run folder, a model file or
the name of a model that ships.

  ganstyle apply runs/fast-style photo.jpg -o painted.png
  ganstyle apply runs/fast-style photos/ -o painted              each of a folder
  ganstyle apply runs/fast-style clip.mp4 -o painted.mp4 --smooth 0.5
  ganstyle apply --model NAME photo.jpg -o painted.png           a model that ships with the package

`ganstyle apply RUN_OR_MODEL --help` lists the flags that its method has besides, such as styles.
"""


@dataclasses.dataclass(frozen=True)
class Apply:
    """Give pictures or films of your own to a trained model. `ganstyle apply RUN_OR_MODEL --help` lists its flags."""

    # run folder, model file or name of a model that ships, unless --model says it; then pictures, folders of them, or
    # one film
    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUN_OR_MODEL] INPUT [INPUT ...]")]
    # picture or film to write, or a folder where there are several inputs
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("applied.png")
    model: Path | None = None  # run folder, model file or name of a model that ships; by default the first of the files
    step: int | Literal["best"] | None = None  # of a run's checkpoints, or the best; by default the newest
    title: str | None = None  # which of the pictures that the method makes; by default the one it is judged by
    # how large pictures are painted: whole; in strips with the exact statistics of the whole; in strips with those of a
    # thumbnail, which takes the least memory and is not quite the same; auto: whole where there is memory for it, else
    # in strips
    large: Literal["auto", "whole", "strips", "thumbnail"] = "auto"
    # films: share of what the frame before showed, moved along the optical flow and mixed in where it can be trusted,
    # from 0 to below 1, such as 0.6; against flicker
    smooth: float = 0.0
    devices: int | None = None  # how many devices to use; by default all


@dataclasses.dataclass(frozen=True)
class Colours:
    """What is kept of the input's colours. Methods may have a flag of that name themselves, for what they do better."""

    # luma keeps the input's chroma, coral and histogram give the result its mean colour and covariance, or its
    # histogram in each channel
    preserve_colors: Literal["none", "luma", "coral", "histogram"] = "none"


def run(args: list[str]) -> None:
    named = _model_in(args)
    method = None if named is None else _method_of(named)
    parts: dict[str, Any] = {"colours": Colours()}
    if method is not None and hasattr(method, "ApplySettings"):
        parts["method"] = method.ApplySettings()
        if hasattr(parts["method"], "preserve_colors"):
            del parts["colours"]
    chosen = flags.parse("ganstyle apply", DESCRIPTION, args, apply=Apply, **parts)
    command = chosen.apply
    given = command.files
    if command.model is None:
        if not given:
            raise UserError("give a run folder or a model, and after it pictures, or folders of them")
        command = dataclasses.replace(command, model=given[0], files=given[1:])
    if not command.files:
        raise UserError(f"give pictures, or folders of them, after {'the run folder' if given else '--model'}")
    if not 0 <= command.smooth < 1:
        raise UserError(f"--smooth must be from 0 to below 1, got {command.smooth:g}")
    apply(command, getattr(chosen, "method", None), getattr(chosen, "colours", Colours()).preserve_colors)


def _model_in(args: list[str]) -> str | None:
    """The model that is meant, before anything is known of what flags there are: --model's, or the first argument."""
    for i, arg in enumerate(args):
        if arg == "--model" and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith("--model="):
            return arg.removeprefix("--model=")
    return args[0] if args and not args[0].startswith("-") else None


def _method_of(name: str) -> Any:
    """The module of a run's or a model's method. UserError where there is no such."""
    from ganstyle_jax import contract
    from ganstyle_jax.loop import models

    place = models.place_of(name)
    if place.is_file():
        return contract.find(models.described(place)["method"]).module
    from ganstyle_jax.loop import folder

    description = folder.read(place)
    return folder.method_of(place, description).module if contract.trains(description["method"]) else None


def apply(command: Apply, options: Any = None, preserve_colors: str = "none") -> None:
    """Paints what is asked for. options: of the method's ApplySettings, by default as they are."""
    flags.use_cache()
    import jax
    from tqdm import tqdm

    from ganstyle_jax.control import Control, heeding_signals
    from ganstyle_jax.forward.painter import Painter
    from ganstyle_jax.loop import models
    from ganstyle_jax.loop.devices import devices_or_sentence

    devices_or_sentence()
    devices = jax.local_devices()
    if command.devices is not None and not 1 <= command.devices <= len(devices):
        raise UserError(f"--devices must be from 1 to the {len(devices)} that are here, got {command.devices}")
    films = [path for path in command.files if _looks_like_a_film(path, command.out)]
    if films and len(command.files) > 1:
        raise UserError(f"{films[0]} is a film, and films are painted one by one: give it alone")
    places = {}
    if not films:
        from ganstyle_jax.forward import folders

        places = folders.placed(command.files, command.out)
        if command.smooth:
            raise UserError("--smooth is for films: leave it out")
    assert command.model is not None
    model = models.load(command.model, command.step)
    painter = Painter(model, options, command.title, command.large, devices[: command.devices])
    control, began, failed = Control(), time.perf_counter(), []

    def bar(total: int | None, unit: str = "picture", **more: Any) -> Any:
        return tqdm(total=total, unit=unit, delay=1, disable=not sys.stderr.isatty(), **more)

    def finish(result: Any, content: Any) -> Any:
        return kept(result, content, preserve_colors)

    with heeding_signals(control, "leaving what is under way, keeping what is complete"):
        if films:
            from ganstyle_jax.forward import clip

            unit = "frames"
            done, damage = clip.paint(
                films[0], command.out, painter, finish, command.smooth, control, lambda n: bar(n, "frame")
            )
            for what in damage:
                print(f"{films[0]} is damaged: {what}", file=sys.stderr)
        else:
            unit = "pictures"
            with bar(len(places), bar_format="{l_bar}{bar}| {n:.3g}/{total_fmt} [{elapsed}<{remaining}]") as progress:
                done = folders.paint_all(places, painter, finish, control, failed, progress.update)
    if control.stopping:
        print(f"{command.out}: stopped after {done} {unit}", file=sys.stderr)
        raise SystemExit(128 + control.signal)
    seconds = time.perf_counter() - began
    if failed:
        raise UserError("; ".join(failed))
    where = command.out if done == 1 or films else f"{done} {unit} in {command.out}"
    print(f"{model.title} applied: {where}, {f'{done} frames, ' if films else ''}{done / seconds:.3g} {unit}/s")


def kept(result: Any, content: Any, how: str) -> Any:
    """The result (h', w', 3) with the colours of the content (h, w, 3), see `Colours`."""
    if how == "none":
        return result
    import numpy as np

    from ganstyle_jax.io.pictures import rgb
    from ganstyle_jax.style import colours

    way = {"luma": colours.with_colours_of, "coral": colours.match_linear, "histogram": colours.match_histograms}[how]
    return np.clip(way(rgb(result), content), -1, 1)


def _looks_like_a_film(path: Path, out: Path) -> bool:
    """Whether `clip` is to look at it, which is not imported for a picture."""
    from ganstyle_jax.io import folders

    suffix = path.suffix.lower()
    if path.is_dir() or (suffix in folders.SUFFIXES and suffix != ".gif") or suffix in folders.HEIC_SUFFIXES:
        return False
    from ganstyle_jax.forward import clip

    return clip.is_film(path, out)
