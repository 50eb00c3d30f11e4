"""`ganstyle project RUN PICTURE ...`: what a generator has to be asked for to draw pictures of one's own."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ganstyle_jax.commands import flags
from ganstyle_jax.io.files import UserError

DESCRIPTION = """Search for the latents of pictures of your own: what a trained generator is to be asked for, so that
it draws them. Several pictures are searched for at once.

  ganstyle project runs/stylegan2 me.jpg -o projected
  ganstyle project runs/stylegan2 faces/*.jpg -o projected --space w+

In the folder: for each picture NAME.png, what the generator draws; latents.npz with their latents in the order of the
pictures, and with --noise-maps their noise; comparison.png, the pictures above what was found; and projection.mp4, the
search.
"""
SHOWN = 8  # pictures side by side in the film


@dataclasses.dataclass(frozen=True)
class Project:
    """Search for the latents of pictures of your own. `ganstyle project --help` lists its flags."""

    model: tyro.conf.Positional[Path]  # run folder, model file or name of a model that ships
    pictures: tyro.conf.Positional[tuple[Path, ...]]  # to search for; their largest centre of the run's shape is taken
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("projected")  # folder to write into
    step: int | Literal["best"] | None = None  # of a run's checkpoints, or the best; by default the newest
    seed: int = 0  # decides what is begun with
    film: bool = True  # write projection.mp4
    fps: int = 20  # pictures per second of the film


def run(args: list[str]) -> None:
    from ganstyle_jax.forward import projection

    chosen = flags.parse("ganstyle project", DESCRIPTION, args, project=Project, settings=projection.Settings())
    project(chosen.project, chosen.settings)


def project(command: Project, settings: Any) -> None:
    """Searches, and writes what was found."""
    if not command.pictures:
        raise UserError("give pictures after the run folder or model")
    if not 1 <= command.fps <= 60:
        raise UserError(f"--fps must be from 1 to 60, got {command.fps}")
    names = [path.stem for path in command.pictures]
    if len(set(names)) < len(names) or set(names) & {"comparison"}:
        raise UserError("the pictures need names of their own, other than comparison: rename those that are alike")
    flags.use_cache()
    import jax
    import numpy as np
    from tqdm import tqdm

    from ganstyle_jax import contract
    from ganstyle_jax.data.fitting import fit_float
    from ganstyle_jax.forward import projection
    from ganstyle_jax.io import images, pictures, video
    from ganstyle_jax.io.files import atomic_path
    from ganstyle_jax.loop import models

    model = models.load(command.model, command.step)
    projection.space_of(model, settings)
    one = jax.eval_shape(
        lambda: contract.column(
            model.method.sample(model.variables, model.method.requests(jax.random.key(0), 1, model.cfg, {}), model.cfg)
        )
    )
    _, *shape, channels = one.shape
    size = (shape[0], shape[1])
    wanted = np.stack([fit_float(pictures.read_picture(path), size, channels) for path in command.pictures])
    frames: list[np.ndarray] = []
    every = max(1, settings.steps // 100)

    def keep(step: int, drawn: np.ndarray) -> None:
        bar.update(step - bar.n)
        if command.film:
            frames.append(side_by_side(wanted[:SHOWN], drawn[:SHOWN]))

    with tqdm(total=settings.steps, unit="step", delay=1, leave=False) as bar:
        found = projection.project(model, wanted, settings, command.seed, every, keep)
    if not np.isfinite(found.images).all():
        raise UserError("the search has diverged (NaN or infinity): use a lower --learning-rate")
    for name, image in zip(names, found.images, strict=True):
        images.save_png(command.out / f"{name}.png", image)
    kept = {"latents": found.latents} if found.requests is None else requests_by_name(found.requests)
    if found.noise is not None:
        paths = jax.tree_util.tree_leaves_with_path(found.noise)
        kept |= {"/".join(["noise", *(str(key.key) for key in path)]): x for path, x in paths}
    with atomic_path(command.out / "latents.npz") as path, open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **kept)
    images.save_png(command.out / "comparison.png", side_by_side(wanted, found.images))
    if command.film:
        video.write_video(command.out / "projection.mp4", frames, command.fps)
    for name, begun, distance, a, b in zip(names, found.begun, found.distances, found.images, wanted, strict=True):
        psnr = 10 * np.log10(4 / max(float(np.mean((a - b) ** 2)), 1e-12))
        print(f"{name}: distance {begun:.3f} at first, {distance:.3f} in the end; {psnr:.1f} dB")
    count = "1 picture is" if len(names) == 1 else f"{len(names)} pictures are"
    print(f"{count} in {command.out}, their latents in {command.out / 'latents.npz'}")


def side_by_side(above: Any, below: Any) -> Any:
    """Pictures (n, h, w, c) above others, (2 h + 2, n (w + 2), c) or so."""
    import numpy as np

    from ganstyle_jax.io import images

    return images.grid(np.concatenate([above, np.clip(below, -1, 1)]), columns=len(above))


def requests_by_name(requests: Any) -> dict[str, Any]:
    """As arrays of an .npz file."""
    import numpy as np

    found = requests if isinstance(requests, dict) else {"latents": requests}
    return {name: np.asarray(x) for name, x in found.items()}
