"""`ganstyle sample`: pictures of a trained run, or a walk between them."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ganstyle_jax.commands import flags
from ganstyle_jax.io.files import UserError, atomic_path


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draw pictures from a trained run."""

    run: tyro.conf.Positional[Path]  # run folder
    out: Path = Path("samples")  # .png: one grid; .npz: array `images`, uint8 (n, h, w, c); else a folder of PNGs
    count: int = 64  # pictures
    # of a conditional run: which classes to draw, by name or number; one after the other, in a grid a column for each
    classes: Annotated[tuple[str, ...], tyro.conf.arg(name="class", metavar="NAME|NUMBER [...]")] = ()
    step: int | Literal["best"] | None = None  # of the checkpoint to draw from, or the best; by default the newest
    seed: int = 0  # decides the latents
    batch_norm: Literal["standing", "running", "batch"] | None = None  # the generator's statistics; None: as trained
    # of styles: how far from their average, 1 as they are, 0 all alike; nearer is better drawn and less varied
    truncation: float | None = None
    # of styles: a table in which each row's picture has these layers' styles from each column's: coarse (up to 8
    # pixels), middle (16 and 32), fine (the rest), or numbers such as 0-3,6
    mix: Annotated[str | None, tyro.conf.arg(metavar="LAYERS")] = None
    interpolate: bool = False  # a walk from latent to latent instead: walk.gif and strip.png in the folder --out
    stops: int = 6  # latents that the walk passes through before it is back at the first
    frames: int = 12  # pictures from one of them to the next
    fps: int = 20  # pictures per second of the GIF


def run(command: Sample) -> None:
    for name, least in (("count", 1), ("stops", 2), ("frames", 1)):
        if getattr(command, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(command, name)}")
    if not 1 <= command.fps <= 50:
        raise UserError(f"--fps must be from 1 to 50, got {command.fps}")
    if not 0 <= command.seed < 2**32:
        raise UserError(f"--seed must be from 0 to {2**32 - 1}, got {command.seed}")
    if command.out.suffix.lower() not in ("", ".png", ".npz"):
        raise UserError(f"--out must end in .png or .npz or be a folder, got {command.out}")
    if command.interpolate and command.out.suffix:
        raise UserError(f"--interpolate writes two files: --out must be a folder, got {command.out}")
    if command.mix is not None and (command.interpolate or command.out.suffix.lower() != ".png"):
        raise UserError(f"--mix makes one table: --out must end in .png, without --interpolate, got {command.out}")
    if not command.interpolate and not command.out.suffix:
        ours = {f"{i:06d}.png" for i in range(command.count)}
        if others := sorted(path.name for path in command.out.glob("*.png") if path.name not in ours):
            raise UserError(
                f"{command.out} holds {len(others)} other pictures, such as {others[0]}, which would be taken for this "
                "sample's: choose another --out, or empty it"
            )
    flags.use_cache()
    import jax
    import numpy as np

    from ganstyle_jax import contract
    from ganstyle_jax.io import images, sheet
    from ganstyle_jax.look import walks
    from ganstyle_jax.loop import runs

    overrides: dict[str, Any] = {} if command.batch_norm is None else {"batch_norm": command.batch_norm}
    if command.truncation is not None:
        overrides["truncation"] = command.truncation
    run = runs.load(command.run, command.step, **overrides)
    key = jax.random.key(command.seed)
    classes = [run.label_of(name) for name in command.classes]
    if command.mix is not None:
        side = max(1, round(command.count**0.5))
        layers = layers_of(command.mix, run)
        images.save_png(command.out, mixed(run, key, side, classes, layers))
        print(f"{side} x {side} pictures with the styles of two, in layers {command.mix}, in {command.out}")
        return
    if command.interpolate:
        requests = contract.in_classes(run.requests(key, command.stops), classes)
        stops = contract.latents_of(requests)
        if stops is None:
            raise UserError(
                f"--interpolate walks between latents, and {run.method.name} is asked for pictures otherwise"
            )
        way = walks.walk(stops, command.frames - 1).astype(stops.dtype)
        asked = contract.with_latents(requests, way)
        if isinstance(asked, Mapping) and "label" in asked and len(classes) != 1:
            asked = {**asked, "label": _labels_between(run, requests["label"], command.frames, bool(classes))}
        frames = run.pictures(run.draw(asked))
        images.save_gif(command.out / "walk.gif", frames, command.fps)
        # A row for each stop: the way from it to the next.
        images.save_png(command.out / "strip.png", images.grid(frames, columns=command.frames))
        print(f"a walk of {len(frames)} pictures in {command.out / 'walk.gif'} and {command.out / 'strip.png'}")
        return
    drawn = run.sheet(key, command.count, classes=classes)
    pictures = run.pictures(drawn)
    if command.out.is_file():
        print(f"{command.out} is replaced", file=sys.stderr)
    if command.out.suffix.lower() == ".npz":
        with atomic_path(command.out) as path:
            np.savez_compressed(path, images=images.to_uint8(pictures))
    elif command.out.suffix.lower() == ".png":
        requests = contract.in_classes(run.requests(key, command.count), classes)
        images.save_png(command.out, sheet.of(drawn, contract.columns_of(requests)))
    else:
        for i, picture in enumerate(pictures):
            images.save_png(command.out / f"{i:06d}.png", picture)
    print(f"{command.count} pictures of step {run.step} in {command.out}")


def _labels_between(run: Any, labels: Any, frames: int, chosen: bool) -> Any:
    """For each frame of a walk weights of the classes, from stop to stop; the first stop's class for methods without.

    chosen: whether these classes were asked for, so that a walk in one of them alone would not do. UserError then.
    """
    from ganstyle_jax.look import walks

    if run.method.has("class_weights"):
        return walks.blend(labels, run.cfg.classes, frames - 1)
    if chosen:
        raise UserError(f"{run.method.name} knows nothing between its classes: give --interpolate one --class")
    return labels[:1].repeat(len(labels) * frames, 0)


def layers_of(said: str, run: Any) -> tuple[int, ...]:
    """The layers that --mix names. UserError for others, and for a method without styles."""
    if not run.method.has("mix"):
        raise UserError(f"--mix is for styles, which {run.method.name} has none of")
    count = run.cfg.styles
    named = {"coarse": range(4), "middle": range(4, 8), "fine": range(8, count)}
    try:
        if said in named:
            layers = named[said]
        else:
            ends = [[int(end) for end in part.split("-")] for part in said.split(",")]
            layers = [i for first, *last in ends for i in range(first, (last or [first])[0] + 1)]
            if any(len(part) > 2 for part in ends):
                raise ValueError
    except ValueError:
        raise UserError(f"--mix must be coarse, middle, fine or layers such as 0-3,6, got {said!r}") from None
    layers = tuple(i for i in layers if i < count) if said in named else tuple(layers)
    if not layers or not all(0 <= i < count for i in layers):
        raise UserError(f"--mix {said} names no layers of this run: it has 0 to {count - 1}")
    return layers


def mixed(run: Any, key: Any, side: int, classes: list[int], layers: tuple[int, ...]) -> Any:
    """The table of --mix as one picture: above and at the left what is mixed, elsewhere each with each."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ganstyle_jax import contract
    from ganstyle_jax.io import images

    requests = contract.in_classes(run.requests(key, 2 * side), classes)
    rows, columns = (jax.tree.map(lambda x, part=part: x[part], requests) for part in (np.s_[:side], np.s_[side:]))
    draw = jax.jit(lambda a, b: run.method.module.mix(run.variables, a, b, run.cfg, layers))
    with run.precision():
        above = run.pictures(run.draw(columns))
        table = [np.concatenate([np.ones_like(above[:1]), above])]
        for i, picture in enumerate(run.pictures(run.draw(rows))):
            row = jax.tree.map(lambda x, i=i: jnp.repeat(x[i : i + 1], side, 0), rows)
            table.append(np.concatenate([picture[None], np.asarray(draw(row, columns))]))
    return images.grid(np.concatenate(table), columns=side + 1)
