"""Super-resolution with a pixel loss and with a feature loss, on Set5, beside bicubic enlargement.

Paper: Johnson, Alahi & Fei-Fei 2016 (arXiv:1603.08155), section 4.2: 288-pixel patches of 10,000 pictures of MS-COCO,
    batches of 4, 200,000 steps, a network of 64 channels with BatchNorm, features relu2_2 of VGG-16. Its figure 8,
    Set5, x4: bicubic 28.43 dB and 0.8114, pixel loss 28.40 and 0.8205, feature loss 27.09 and 0.7680.
Data: 1,000 pictures of 256 pixels, one of each ImageNet class; Set5, which training never sees. Both for research only.
Hardware and time: 4 minutes on one CPU core (Intel Xeon).
Expected: experiments/results/super_resolution.json. Set5: bicubic 28.43 dB, 0.8113 and distance 2.72, pixel loss
    30.24 dB, 0.8546 and 2.07, feature loss 29.30 dB, 0.8224 and 2.14. By relu2_2 alone, as in the paper, the feature
    loss does not reach bicubic's distance in 500 steps: there the compact network has no head, which would make its
    features VGG-19's. With --scale 8 (super_resolution_x8.json): 24.40 dB and 4.73, 25.45 and 4.33, 24.71 and 4.78.
Command: python experiments/super_resolution.py

Scaled down: 32 channels, all work at the small size (--upsampling shuffle), 48-pixel patches. Training with a feature
loss begins with the weights of the pixel loss. Measured as published figures are: 8-bit pictures, PSNR and SSIM of the
luma without a border of as many pixels as the factor. The distance is LPIPS (Zhang et al. 2018) with all channels
counting alike, for its weights belong to trunks that are not in the data folder, of SqueezeNet as Keras has it, which
had no part in training: the features of the feature loss come from a VGG.
"""

import dataclasses
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from ganstyle_jax.commands import flags
from ganstyle_jax.features import weights
from ganstyle_jax.io import images, pictures, sheet
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge.metrics import lpips, similarity
from ganstyle_jax.loop import runs, train
from ganstyle_jax.restore import bicubic, super_resolution

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine

METRICS = ("psnr_y", "ssim_y", "distance")
BICUBIC, PIXEL, FEATURE = "bicubic", "pixel loss", "feature loss"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained and measured."""

    data: Path = machine.ROOT / ".." / "shared" / "data"  # folder with datasets/, restoration/ and weights/
    source: str | None = None  # pictures to learn from; by default those of 256 pixels in --data
    scale: int = 4  # 4, of which Set5 has small pictures, or another, whose small ones are made here
    width: int = 32  # channels
    blocks: int = 3  # residual blocks
    image_size: int = 256
    patch: int = 48
    upsampling: str = "shuffle"
    layers: tuple[str, ...] = ("relu1_1", "relu2_1", "relu3_1")  # of the feature loss, those with VGG-19's channels
    pixel_weight: float = 0.0  # of the pixel loss beside it
    learning_rate: float = 2e-3
    batch_size: int = 16
    steps: int = 2_500
    feature_steps: int = 600  # more, with the feature loss
    feature_learning_rate: float = 5e-4
    devices: int | None = None  # by default all
    seed: int = 0
    folder: Path = Path("runs/super_resolution")  # for the runs, the pictures and the strip
    json: Path | None = Path("super_resolution.json")  # record; a bare name goes into experiments/results/


def main(settings: Settings) -> dict[str, Any]:
    flags.use_cache()
    source = settings.source or str(settings.data / "datasets" / "imagenet_sample_1000_256px.zip")
    made = settings.folder / f"x{settings.scale}"
    pixel, feature = configs(settings)
    train.run(super_resolution, pixel, source, loop(settings, made / "pixel", settings.steps))
    begin = {"init_from": made / "pixel"} if not (made / "feature").exists() else {}
    train.run(super_resolution, feature, source, loop(settings, made / "feature", settings.feature_steps, **begin))
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "flax", "optax", "numpy")),
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if not isinstance(v, Path)},
        "rows": [],
    }
    ways = {PIXEL: runs.load(made / "pixel"), FEATURE: runs.load(made / "feature")}
    images.save_png(made / "set5.png", strip(evaluate(settings, ways, record["rows"])))
    free = [enlarged(ways, small) | {"truth": truth} for _, small, truth in others(settings)]
    if free:
        images.save_png(made / "strip.png", strip(free))
    record["means"] = means(record["rows"])
    print(table(record["means"]))
    print(f"\nPictures are in {made}: set5.png, and strip.png of those that anybody may hand on")
    if settings.json is not None:
        print(f"The record is in {machine.write_record(settings.json, record)}")
    return record


def configs(settings: Settings) -> tuple[super_resolution.Config, super_resolution.Config]:
    """With a pixel loss and with a feature loss."""
    given = ("scale", "width", "blocks", "image_size", "patch", "upsampling", "learning_rate")
    pixel = super_resolution.Config(
        **{name: getattr(settings, name) for name in given}, schedule="cosine", schedule_steps=settings.steps
    )
    feature = dataclasses.replace(
        pixel,
        loss="feature",
        layers=settings.layers,
        pixel_weight=settings.pixel_weight,
        learning_rate=settings.feature_learning_rate,
        schedule_steps=settings.feature_steps,
    )
    return pixel, feature


def loop(settings: Settings, folder: Path, steps: int, **more: Any) -> train.Loop:
    return train.Loop(
        folder,
        steps=steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
        devices=settings.devices,
        resume="auto",
        sample_every=steps,
        checkpoint_every=max(steps // 6, 1),
        keep_checkpoints=1,
        **more,
    )


Pair = tuple[str, np.ndarray, np.ndarray]  # name, small and truth, both uint8


def set5(settings: Settings) -> list[Pair]:
    """The files of the set where it has this factor, else with small ones made from its large pictures."""
    folder = settings.data / "restoration" / "Set5"
    files = sorted((folder / f"image_SRF_{settings.scale}").glob("*_HR.png"))
    found = []
    for path in files:
        small = pictures.read_picture(path.with_name(path.name.replace("_HR", "_LR")))
        found.append((path.stem, images.to_uint8(small), images.to_uint8(pictures.read_picture(path))))
    found = found or [made_small(path, settings.scale) for path in sorted((folder / "image_SRF_2").glob("*_HR.png"))]
    if not found:
        raise UserError(f"there are no pictures *_HR.png in {folder}: give the folder around restoration/ by --data")
    return found


def others(settings: Settings) -> list[Pair]:
    """Pictures that may be handed on, unlike Set5's, as far as they are there."""
    paths = (settings.data / "restoration" / name for name in ("zebra_GT.png", "F16_GT.png"))
    return [made_small(path, settings.scale) for path in paths if path.is_file()]


def made_small(path: Path, scale: int) -> Pair:
    truth = pictures.read_picture(path)
    height, width = (side // scale * scale for side in truth.shape[:2])
    truth = truth[:height, :width]
    small = np.asarray(bicubic.shrink(jnp.asarray(truth[None]), scale))[0]
    return path.stem, images.to_uint8(small), images.to_uint8(truth)


def distance(settings: Settings) -> lpips.Lpips:
    """As LPIPS of SqueezeNet, with every channel counting alike."""
    file = "squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"
    network, params = weights.load_for_style(settings.data / "weights" / file)
    taps = lpips.VARIANTS["squeeze"].taps
    found = jax.eval_shape(lambda: network.apply(params, jnp.zeros((1, 64, 64, 3)), taps))
    return lpips.Lpips("squeeze", network, params, tuple(jnp.ones(found[tap].shape[-1]) for tap in taps))


def enlarged(ways: dict[str, runs.LoadedRun], small: np.ndarray) -> dict[str, np.ndarray]:
    """{way: picture (h, w, 3) uint8} of a small one."""
    requests = super_resolution.requests_of(small[None] / np.float32(127.5) - 1, ways[PIXEL].cfg)
    drawn = {title: run.draw(requests, batch_size=1) for title, run in ways.items()}
    results = {BICUBIC: drawn[PIXEL]["bicubic"]} | {title: of["result"] for title, of in drawn.items()}
    return {title: images.to_uint8(picture[0]) for title, picture in results.items()}


def evaluate(
    settings: Settings, ways: dict[str, runs.LoadedRun], rows: list[dict[str, Any]]
) -> list[dict[str, np.ndarray]]:
    """Measures each picture of Set5 by each way, into `rows`; returns {way: picture}, as `enlarged`, of each."""
    measure = distance(settings)
    measures: dict[str, Any] = {
        "psnr_y": lambda a, b: similarity.psnr_y(a, b, settings.scale),
        "ssim_y": lambda a, b: similarity.ssim_y(a, b, settings.scale),
        "distance": lambda a, b: measure(*(x / np.float32(127.5) - 1 for x in (a, b))),
    }
    shown = []
    for name, small, truth in set5(settings):
        results = enlarged(ways, small)
        for title, picture in results.items():
            found = {metric: float(of(picture[None], truth[None])[0]) for metric, of in measures.items()}
            rows.append({"picture": name, "way": title} | found)
            machine.say(f"{name}, {title}: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()))
        shown.append(results | {"truth": truth})
    return shown


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    ways = dict.fromkeys(row["way"] for row in rows)
    return {way: {name: fmean(row[name] for row in rows if row["way"] == way) for name in METRICS} for way in ways}


def table(means: dict[str, dict[str, float]]) -> str:
    """In Markdown."""
    lines = [["", "PSNR of Y, dB", "SSIM of Y", "distance"], ["---"] * 4]
    for way, of in means.items():
        lines.append([way, f"{of['psnr_y']:.2f}", f"{of['ssim_y']:.4f}", f"{of['distance']:.3f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def strip(shown: list[dict[str, np.ndarray]], side: int = 128) -> np.ndarray:
    """The most detailed square of each picture by each way, side by side and twice as large, pixel by pixel."""
    columns: dict[str, list[np.ndarray]] = {title: [] for title in shown[0]}
    for of in shown:
        y, x = busiest(of["truth"], side)
        for title, picture in of.items():
            square = picture[y : y + side, x : x + side].repeat(2, 0).repeat(2, 1)
            columns[title].append(square / np.float32(127.5) - 1)
    return sheet.of({title: np.stack(squares) for title, squares in columns.items()}, columns=1)


def busiest(picture: np.ndarray, side: int) -> tuple[int, int]:
    """Top and left of the square in which neighbouring pixels differ most, among squares half a side apart."""
    height, width = picture.shape[:2]
    side = min(side, height, width)
    grey = picture.mean(2)
    change = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    places = [(y, x) for y in range(0, height - side + 1, side // 2) for x in range(0, width - side + 1, side // 2)]
    return max(places, key=lambda place: change[place[0] : place[0] + side, place[1] : place[1] + side].sum())


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
