"""How much a painted film flickers, against the same frames painted each by itself.

Papers: Ruder, Dosovitskiy & Brox 2016 (arXiv:1604.08610), whose method it is; Lai et al. 2018 (arXiv:1808.00449), whose
    warping error it is: the mean square of what a result differs by from the one before, moved along the flow, where
    the same is in sight.
Data: none; the clip is drawn on the spot, a textured ground that pans and a textured disc that crosses it, so that the
    flow, and what it uncovers, are known exactly. The painting is the quick start's.
Hardware and time: two CPU cores, about 5 minutes.
Expected: experiments/results/video_flicker.json and .png; the film's warping error at most half of that by frame.
Command: python experiments/video_flicker.py

"alone" has every frame painted from itself with the settings of a picture; "film" is what `ganstyle stylize` does.
"carried" is the film without its temporal term, where frames only begin with the one before. "input" is the clip
itself, whose error is that of moving pixels between pixels. A film that is blurred does not flicker either: therefore
errors of style and content, and sharpness (mean steepness in grey levels a pixel), stand beside it. "flows" has the
accuracy of those that were to choose from.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from scipy import ndimage

from ganstyle_jax.commands import flags
from ganstyle_jax.control import Control
from ganstyle_jax.data.fitting import to_float
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.io import images
from ganstyle_jax.style import flow, gatys, losses, painting
from ganstyle_jax.stylize import clip as films
from ganstyle_jax.stylize.orders import Settings as FilmSettings

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine

GROUND, DISC = (-2.3, -0.7), (3.1, -1.4)  # how they move from frame to frame, (x, y) in pixels


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    size: int = 192  # pixels, of the longer side
    frames: int = 10
    features: str = "compact"
    config: gatys.Config = dataclasses.field(default_factory=lambda: gatys.Config(smallest=96))
    frame_steps: int = FilmSettings().frame_steps
    compare_flows: bool = True
    json: Path | None = Path("video_flicker.json")  # the record; a bare name goes into experiments/results/
    strip: Path | None = Path("video_flicker.png")  # frames below one another, by way


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A clip whose motion is known."""

    frames: list[np.ndarray]  # (h, w, 3) float32 in [-1, 1]
    flows: list[np.ndarray]  # (h, w, 2), from each frame but the first to the one before it
    seen: list[np.ndarray]  # (h, w) bool, what of those frames was in sight in the one before


def drawn(count: int, height: int, width: int, seed: int = 0) -> Drawn:
    """A ground that pans and a disc that crosses it, both textured."""
    rng = np.random.default_rng(seed)
    ground, disc = _texture(rng, 2 * height, 2 * width), _texture(rng, height, width) * 0.8 + (0.25, 0.05, -0.2)
    rows, columns = np.mgrid[:height, :width].astype(float)
    found, insides = Drawn([], [], []), []
    for i in range(count):
        middle = 0.35 * width + DISC[0] * i, 0.6 * height + DISC[1] * i
        inside = np.clip(0.2 * min(height, width) + 0.5 - np.hypot(columns - middle[0], rows - middle[1]), 0, 1)
        behind = _moved(ground, columns - GROUND[0] * i, rows - GROUND[1] * i)
        before = _moved(disc, columns - middle[0], rows - middle[1])
        found.frames.append(np.clip(behind + (before - behind) * inside[..., None], -1, 1).astype(np.float32))
        insides.append(inside > 0.5)
        if i:
            back = -np.where(insides[i][..., None], DISC, GROUND).astype(np.float32)
            x, y = columns + back[..., 0], rows + back[..., 1]
            within = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
            was = insides[i - 1][_near(y, height), _near(x, width)]
            found.flows.append(back)
            found.seen.append(within & (was == insides[i]))
    return found


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise of four scales, without seams."""
    total = np.zeros((height, width, 3))
    for scale in (1.5, 4, 10, 24):
        noise = ndimage.gaussian_filter(rng.normal(size=total.shape), (scale, scale, 0), mode="wrap")
        total += 0.18 * noise / noise.std()
    return np.clip(total, -1, 1)


def _moved(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Its colours at these places, between pixels by cubic splines."""
    bands = [ndimage.map_coordinates(band, (y, x), order=3, mode="grid-wrap") for band in np.moveaxis(picture, -1, 0)]
    return np.stack(bands, axis=-1)


def _near(x: np.ndarray, size: int) -> np.ndarray:
    return np.clip(np.rint(x).astype(int), 0, size - 1)


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


def flicker(pictures: list[np.ndarray], clip: Drawn) -> dict[str, float]:
    """Of results (h, w, 3) in [-1, 1]: the warping error by the known flow, and its root in levels of 256."""
    squares, changes = [], []
    for i, (back, seen) in enumerate(zip(clip.flows, clip.seen, strict=True)):
        # Not at the disc's rim, where a pixel is of both.
        inner: Any = ndimage.binary_erosion(seen & ~_rim(back), iterations=2, border_value=1)
        change = pictures[i + 1] - flow.warp(pictures[i], back)
        squares.append((change[inner] ** 2).mean())
        changes.append(np.abs(change[inner]).mean())
    error = float(np.mean(squares))
    return {
        "warping_error": error,
        "warping_error_levels": error**0.5 * 127.5,
        "flicker_levels": float(np.mean(changes)) * 127.5,
    }


def _rim(back: np.ndarray) -> np.ndarray:
    """(h, w) bool, where the flow changes."""
    down, across = (np.abs(np.gradient(back, axis=axis)).sum(-1) for axis in (0, 1))
    return down + across > 0


def sharpness(pictures: list[np.ndarray]) -> float:
    steep = [np.abs(np.diff(picture, axis=axis)).mean() for picture in pictures for axis in (0, 1)]
    return float(np.mean(steep)) * 127.5


def errors_of(
    pictures: list[np.ndarray],
    contents: list[np.ndarray],
    style: np.ndarray,
    cfg: gatys.Config,
    network: vgg.Network,
    params: weights.Params,
) -> dict[str, float]:
    """Relative errors of style (of Gram matrices, the layers' mean) and of content, the mean over all frames."""

    @jax.jit
    def taps(picture):
        return {layer: x[0] for layer, x in network.apply(params, picture[None], cfg.layers).items()}

    def errors(picture, content):
        made, wanted = taps(picture), taps(content)
        style = [losses.relative_error(losses.gram_matrix(made[x]), grams[x]) for x in cfg.style_layers]
        return float(np.mean(style)), float(
            np.mean([losses.relative_error(made[x], wanted[x]) for x in cfg.content_layers])
        )

    grams = {layer: losses.gram_matrix(x) for layer, x in taps(style).items()}
    found = np.mean([errors(*pair) for pair in zip(pictures, contents, strict=True)], axis=0)
    return {"style": float(found[0]), "content": float(found[1])}


def flow_errors(clip: Drawn) -> dict[str, Any]:
    """Of the flows that were to choose from, in pixels, where the same is in sight; seconds for one."""
    import cv2
    from skimage.registration import optical_flow_ilk, optical_flow_tvl1

    def grey(picture: np.ndarray) -> np.ndarray:
        return ((picture @ images.LUMA + 1) / 2).astype(np.float32)

    def preset(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        pair = [np.ascontiguousarray(np.rint(255 * grey(picture)).astype(np.uint8)) for picture in (first, second)]
        return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*pair, None)  # pyright: ignore[reportCallIssue, reportArgumentType]

    ways: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "DIS to single pixels": flow.flow,
        "DIS medium": preset,
        "TV-L1": lambda a, b: np.stack(optical_flow_tvl1(grey(a), grey(b))[::-1], axis=-1),
        "ILK": lambda a, b: np.stack(optical_flow_ilk(grey(a), grey(b))[::-1], axis=-1),
    }
    found = {}
    for name, way in ways.items():
        errors, seconds = [], []
        for i, (back, seen) in enumerate(zip(clip.flows[:3], clip.seen, strict=False)):
            then = time.perf_counter()
            error = np.linalg.norm(way(clip.frames[i + 1], clip.frames[i]) - back, axis=-1)
            seconds.append(time.perf_counter() - then)
            errors.append(error[seen])
        error = np.concatenate(errors)
        found[name] = {
            "mean": float(error.mean()),
            "median": float(np.median(error)),
            "above_one_pixel": float((error > 1).mean()),
            "seconds": float(np.median(seconds)),
        }
    return found


def paint(clip: Drawn, painter: films.Painter, alone: bool) -> list[np.ndarray]:
    """The results of all frames, of 8 bits as those of a film are."""
    made: list[np.ndarray] = []
    for i, content in enumerate(clip.frames):
        start = None if alone or not i else films.carried(content, (clip.frames[i - 1], made[-1]))
        result = painter(content, start)
        assert result is not None
        made.append(to_float(images.to_uint8(result)))
        print(".", end="", flush=True)
    print()
    return made


def main(settings: Settings) -> None:
    flags.use_cache()
    clip = drawn(settings.frames, settings.size * 3 // 4, settings.size)
    style = painting.painting(settings.size)
    cfg = dataclasses.replace(settings.config, size=settings.size)
    network, params = weights.load_for_style(settings.features)
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "numpy")),
        "frames": settings.frames,
        "config": dataclasses.asdict(cfg),
        "frame_steps": settings.frame_steps,
        "ways": {"input": flicker(clip.frames, clip) | {"sharpness": sharpness(clip.frames)}},
    }
    shown = {"input": clip.frames}
    ways = {
        "alone": (True, cfg),
        "carried": (False, dataclasses.replace(cfg, temporal_weight=0.0)),
        "film": (False, cfg),
    }
    for name, (alone, config) in ways.items():
        options = FilmSettings(frame_steps=settings.frame_steps)
        painter = films.Painter(config, network, params, options, [style], None, Control())
        then = time.perf_counter()
        shown[name] = paint(clip, painter, alone)
        seconds = (time.perf_counter() - then) / len(clip.frames)
        record["ways"][name] = flicker(shown[name], clip) | {
            "sharpness": sharpness(shown[name]),
            "seconds_a_frame": seconds,
        }
        record["ways"][name] |= errors_of(shown[name], clip.frames, style, cfg, network, params)
        print(name, record["ways"][name], flush=True)
    if settings.compare_flows:
        record["flows"] = flow_errors(clip)
        print(record["flows"])
    ratio = record["ways"]["film"]["warping_error"] / record["ways"]["alone"]["warping_error"]
    record["film_over_alone"] = ratio
    print(f"warping error of the film over that of frames alone: {ratio:.3f}")
    if settings.json is not None:
        machine.write_record(settings.json, record)
    if settings.strip is not None:
        every = max(1, settings.frames // 4)
        rows = [picture for pictures in shown.values() for picture in pictures[::every][:5]]
        images.save_grid(machine.place(settings.strip), np.stack(rows), columns=len(rows) // len(shown))


if __name__ == "__main__":
    main(tyro.cli(Settings))
