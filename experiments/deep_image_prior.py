"""Deep Image Prior on the pictures of its paper, and how well it stops by itself on four kinds of noise.

Paper: Ulyanov, Vedaldi & Lempitsky 2018 (arXiv:1711.10925): F16 with noise of 25 of 255 (3,000 steps), text on kate
    (6,001), a hole in vase (5,001) and in library (3,001), Set5 x4 (2,000 each). Early stopping: Wang et al. 2023
    (arXiv:2112.06074), five noises of which four are here, three levels.
Data: the authors' pictures and Set5, in restoration/ of the data folder. For research only.
Hardware and time: at 256 pixels a step is 115 billion operations, half a second on two CPU cores, so that 3,000 are
    half an hour, and minutes on a GPU; F16 at its 512 pixels takes four times as long. The noises, as below, took 25
    minutes on one core.
Expected: see "Restoration without training" in docs/measured.md: F16 at 128 pixels 28.9 dB at its best and 22.5 after
    the paper's 3,000 steps, PyTorch within 0.2 dB of it; a gap of 0.23 dB over 24 noisy pictures. Full size: not run.
Command: python experiments/deep_image_prior.py --part paper
    python experiments/deep_image_prior.py --part paper --names F16 library --scale-down 4 [--torch]
    python experiments/deep_image_prior.py --part noises --side 96 --channels 64 --most 2500 --patience 500

By the paper's protocol: fixed steps, the running mean where the paper has one, PSNR of all pixels in RGB; of Set5, of
the luma without a border of 4 pixels. Pictures are not cropped to multiples of 32, as the authors' code does.
`--part noises` stops by itself, and tells the gap between its PSNR and the best on the way. Scaled down: --scale-down
shrinks the pictures first, --share takes a part of the steps, --channels makes the networks narrow. Stopped, it goes on
where it was: states and curves lie in --folder. `--torch` restores by PyTorch, at equal steps.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from ganstyle_jax.commands import flags
from ganstyle_jax.io import files, images, pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge.metrics import similarity
from ganstyle_jax.restore import bicubic
from ganstyle_jax.restore import deep_image_prior as prior

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine

SIGMA = 25 / 255  # of F16's noise, in [0, 1]
INPAINTED: dict[str, prior.Task] = {"kate": "text", "vase": "region", "library": "hole"}
# Hendrycks & Dietterich 2019's (arXiv:1903.12261) severities 2, 3 and 4, which Wang et al. take.
NOISES = {
    "gaussian": (0.12, 0.18, 0.26),
    "shot": (25.0, 12.0, 5.0),
    "impulse": (0.06, 0.09, 0.17),
    "speckle": (0.2, 0.35, 0.45),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is restored."""

    part: Literal["paper", "noises"] = "paper"
    names: tuple[str, ...] = ()  # such as F16, kate, vase, library, Set5_1; by default all
    data: Path = machine.ROOT / ".." / "shared" / "data"  # folder with restoration/
    scale_down: int = 1  # times as small pictures, of paper
    share: float = 1.0  # of the paper's steps
    side: int = 128  # pixels of the squares that noises are added to
    most: int = 5000  # steps where it stops by itself
    stopping: Literal["wmv", "emv"] = "wmv"  # of noises
    patience: int = 1000
    channels: int | None = None  # of each scale, by default the paper's
    restarts: int = 1
    every: int = 10  # steps between looks at the PSNR
    save_every: int = 100  # steps
    seed: int = 0
    torch: bool = False  # the same in PyTorch, from the same weights and input; it does not go on where it was
    folder: Path = Path("runs/deep_image_prior")  # for states, curves and pictures
    json: Path | None = Path("deep_image_prior.json")  # record; a bare name goes into experiments/results/


@dataclasses.dataclass(frozen=True)
class Work:
    """One picture to restore."""

    name: str
    cfg: prior.Config
    measured: np.ndarray  # (h, w, 3) in [-1, 1]
    truth: np.ndarray  # of the restored picture's shape
    mask: np.ndarray | None = None
    border: int | None = None  # PSNR of the luma without so many pixels around; None: of all in RGB


def main(settings: Settings) -> dict[str, Any]:
    flags.use_cache()
    works = {work.name: work for work in (papers(settings) if settings.part == "paper" else noises(settings))}
    if unknown := [name for name in settings.names if name not in works]:
        raise UserError(f"there is no picture {unknown[0]}: there are {', '.join(works)}")
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "optax", "numpy")),
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if not isinstance(v, Path)},
        "rows": [],
    }
    for name in settings.names or works:
        row = (restore_in_torch if settings.torch else restore)(works[name], settings)
        record["rows"].append(row)
        machine.say(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    record["mean"] = {
        key: fmean(row[key] for row in record["rows"]) for key in ("psnr_measured", "psnr", "psnr_best", "gap")
    }
    print(table(record["rows"]))
    if settings.json is not None:
        print(f"The record is in {machine.write_record(settings.json, record)}")
    return record


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def papers(settings: Settings) -> Iterator[Work]:
    folder = settings.data / "restoration"
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the folder around restoration/ by --data")
    truth = smaller(pictures.read_picture(folder / "F16_GT.png"), settings)
    noise = np.random.default_rng(settings.seed).normal(scale=2 * SIGMA, size=truth.shape)
    yield Work("F16", config("denoise", settings), np.clip(truth + noise, -1, 1).astype(np.float32), truth)
    for name, task in INPAINTED.items():
        truth = smaller(pictures.read_picture(folder / f"{name}.png"), settings)
        mask = smaller(pictures.read_picture(folder / f"{name}_mask.png"), settings).mean(-1)
        mask = (mask >= 1 - 1e-3).astype(np.float32)  # of a smaller one, what nothing hides
        yield Work(name, config(task, settings), truth * mask[..., None], truth, mask)
    for path in sorted((folder / "Set5" / "image_SRF_4").glob("*_HR.png")):
        truth = pictures.read_picture(path)
        small = pictures.read_picture(path.with_name(path.name.replace("_HR", "_LR")))
        if settings.scale_down > 1:
            truth = smaller(truth, settings, 4)
            small = np.asarray(bicubic.shrink(jnp.asarray(truth[None]), 4))[0]
        name = f"Set5_{int(path.name.split('_')[1])}"
        yield Work(name, config("super-resolve", settings), small, truth, border=4)


def noises(settings: Settings) -> Iterator[Work]:
    """Two squares of photographs, four noises at three levels of each."""
    squares = {}
    for name in ("F16_GT", "zebra_GT"):
        photo = pictures.read_picture(settings.data / "restoration" / f"{name}.png")
        top, left = ((side - settings.side) // 2 for side in photo.shape[:2])
        squares[name.removesuffix("_GT")] = photo[top : top + settings.side, left : left + settings.side]
    given: Any = {"steps": settings.most, "stopping": settings.stopping, "patience": settings.patience}
    cfg = dataclasses.replace(narrowed("denoise", settings), averaging=0.0, **given)  # the pictures that are watched
    for kind, levels in NOISES.items():
        for level in levels:
            for name, truth in squares.items():
                noisy = with_noise(truth, kind, level, np.random.default_rng(settings.seed))
                yield Work(f"{name}_{kind}_{level:g}", prior.preset("denoise", cfg=cfg), noisy, truth)


def with_noise(truth: np.ndarray, kind: str, level: float, rng: np.random.Generator) -> np.ndarray:
    """As ImageNet-C makes it, of a picture in [-1, 1]."""
    x = (truth.astype(np.float64) + 1) / 2
    if kind == "gaussian":
        x = x + rng.normal(scale=level, size=x.shape)
    elif kind == "shot":
        x = rng.poisson(x * level) / level
    elif kind == "impulse":
        drawn = rng.uniform(size=x.shape)
        x = np.where(drawn < level / 2, 0.0, np.where(drawn < level, 1.0, x))
    else:
        x = x + x * rng.normal(scale=level, size=x.shape)
    return (2 * np.clip(x, 0, 1) - 1).astype(np.float32)


def smaller(picture: np.ndarray, settings: Settings, multiple: int = 1) -> np.ndarray:
    factor = settings.scale_down
    if factor == 1:
        return picture
    height, width = (side // (factor * multiple) * factor * multiple for side in picture.shape[:2])
    return np.clip(np.asarray(bicubic.shrink(jnp.asarray(picture[None, :height, :width]), factor))[0], -1, 1)


def narrowed(task: prior.Task, settings: Settings) -> prior.Config:
    cfg = prior.Config(task=task, restarts=settings.restarts)
    if settings.channels is None:
        return cfg
    paper = prior.preset(task)
    assert paper.channels is not None and paper.skip is not None
    return dataclasses.replace(
        cfg,
        channels=tuple(min(c, settings.channels) for c in paper.channels),
        skip=tuple(min(c, settings.channels) for c in paper.skip),
    )


def config(task: prior.Task, settings: Settings) -> prior.Config:
    cfg = prior.preset(task, cfg=dataclasses.replace(narrowed(task, settings), stopping="steps"))
    assert cfg.steps is not None
    return dataclasses.replace(cfg, steps=max(1, round(settings.share * cfg.steps)))


# ---------------------------------------------------------------------------------------------------------------------
# Restoring


def restore(work: Work, settings: Settings) -> dict[str, Any]:
    """From where it stands to the end; the row of the record."""
    folder = settings.folder / work.name
    folder.mkdir(parents=True, exist_ok=True)
    state = prior.init(jax.random.key(settings.seed), work.measured, work.cfg, work.mask)
    curve: list[tuple[int, float]] = []  # (steps, PSNR of what would be returned then)
    described = json.dumps(dataclasses.asdict(work.cfg) | {"shape": list(work.truth.shape), "seed": settings.seed})
    if (folder / "state.npz").is_file():
        with np.load(folder / "state.npz") as file:
            arrays = dict(file)
        if str(arrays.pop("described")) != described:
            raise UserError(f"{folder} is of other settings: take another --folder, or remove it")
        curve = [(int(k), float(v)) for k, v in arrays.pop("curve").reshape(-1, 2)]
        state = prior.state_of(arrays, state)
    while not prior.stopped(state):
        state, _ = prior.advance(state, work.measured, work.cfg, settings.every, work.mask)
        curve.append((int(state.step), psnr(work, prior.latest(state, work.cfg))))
        if prior.stopped(state) or int(state.step) % settings.save_every < settings.every:
            with files.atomic_path(folder / "state.npz") as path:
                kept: Any = prior.arrays_of(state)
                np.savez(path, described=described, curve=np.array(curve), **kept)
            machine.say(f"{work.name}: {int(state.step)} of {work.cfg.steps} steps, {curve[-1][1]:.2f} dB")
    best_step = int(np.median(np.asarray(state.watch.best_step)))
    return row_of(work, prior.restored(state, work.cfg), curve, best_step, settings)


def restore_in_torch(work: Work, settings: Settings) -> dict[str, Any]:
    """The row of the record, of the fixed steps of PyTorch's side."""
    if work.cfg.stopping != "steps" or work.cfg.restarts > 1:
        raise UserError("--torch takes fixed steps and one network: give --part paper and no --restarts")
    import prior_torch  # here, because an environment may lack PyTorch

    state = prior.init(jax.random.key(settings.seed), work.measured, work.cfg, work.mask)
    params = jax.tree.map(lambda x: np.asarray(x[0]), state.params)
    z = np.asarray(prior.make_input(state.keys[0], work.cfg, work.truth.shape))
    curve: list[tuple[int, float]] = []

    def looked(step: int, picture: np.ndarray) -> None:
        curve.append((step, psnr(work, picture)))
        if step % settings.save_every < settings.every:
            machine.say(f"{work.name} in PyTorch: {step} of {work.cfg.steps} steps, {curve[-1][1]:.2f} dB")

    made = prior_torch.restore(params, z, work.measured, work.mask, work.cfg, looked, settings.every)
    return row_of(work, made, curve, curve[-1][0], settings)


def row_of(
    work: Work, made: np.ndarray, curve: list[tuple[int, float]], best_step: int, settings: Settings
) -> dict[str, Any]:
    """Of the record; its pictures go into the folder."""
    folder = settings.folder / work.name
    images.save_png(folder / "restored.png", made)
    images.save_png(folder / "measured.png", work.measured)
    first = work.measured
    if first.shape != work.truth.shape:
        first = np.asarray(bicubic.enlarge(jnp.asarray(first[None]), work.cfg.scale))[0]
    final, best = psnr(work, made), max([value for _, value in curve])
    return {
        "name": work.name,
        "side": "PyTorch" if settings.torch else "ours",
        "task": work.cfg.task,
        "shape": "x".join(map(str, work.truth.shape[:2])),
        "steps": curve[-1][0],
        "best_step": best_step,
        "psnr_measured": psnr(work, first),
        "psnr": final,
        "psnr_best": best,
        "gap": best - final,
    }


def psnr(work: Work, picture: np.ndarray) -> float:
    a, b = picture[None], work.truth[None]
    if work.border is None:
        return float(similarity.psnr(a, b)[0])
    return float(similarity.psnr_y(images.to_uint8(a), images.to_uint8(b), work.border)[0])


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [["picture", "pixels", "steps", "measured, dB", "restored, dB", "best on the way, dB"], ["---"] * 6]
    for row in rows:
        values = [f"{row[name]:.2f}" for name in ("psnr_measured", "psnr", "psnr_best")]
        lines.append([row["name"], row["shape"], str(row["steps"]), *values])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
