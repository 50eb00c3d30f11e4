"""How much memory the optimisation of an image takes, before it is begun, and what to do where there is too little.

An estimate: most of it are features, kept for the gradient, and the images that L-BFGS remembers. It is made to lie
above what XLA reports for its programs on CPUs, where it was measured (tests/test_memory.py), mostly by a tenth to a
half; the programs for other devices may need other numbers of copies.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ganstyle_jax.features.vgg import VGG, Network, prepare
from ganstyle_jax.io.files import gigabytes
from ganstyle_jax.nn.tiles import Canvas
from ganstyle_jax.style import places
from ganstyle_jax.style.config import Config, fitted_shape
from ganstyle_jax.style.targets import canvas_of, of_image

TILES = (2048, 1024, 512, 256)  # pixels, tried in this order: large ones waste less on their halos
FEW = 3  # pairs that L-BFGS can do with
PIXEL = 12  # bytes of a pixel, three float32


class DoesNotFitError(Exception):
    """The image cannot be made with this memory, not even in tiles; the message says what would help."""


# ---------------------------------------------------------------------------------------------------------------------
# What is needed


def needed(
    network: Network,
    cfg: Config,
    shape: tuple[int, int],
    rows: int = 1,
    regions: int = 0,
    together: bool = False,
) -> int:
    """Bytes on each device for one image of (h, w) pixels.

    rows: devices that share the image. regions: how many content masks there are. together: whether it is one of
    several in a program. Raises ValueError for an image that cannot be cut so.
    """
    mesh = Mesh(np.asarray(jax.devices()[:rows]), ("rows",)) if rows > 1 else None
    canvas = canvas_of(shape, network, cfg, mesh)
    network = of_image(network, cfg)
    image = PIXEL * canvas.shape[0] * canvas.shape[1]
    # CPUs compute in float32, and so keep both where features are to have fewer bits.
    width = 2 if network.dtype == "bfloat16" and not on_cpu() else 4
    per_pixel = features_of_pixel(network, cfg.layers)
    of_pixel = {name: width * count for name, count in per_pixel.items()}
    lbfgs = cfg.optimizer == "lbfgs"

    state = image / rows * images_kept(cfg)
    images = image / rows * ((18 if lbfgs else 5) + (8 if on_cpu() else 0))  # of gradients, and those on the host
    content = image / PIXEL / rows * 2 * sum(of_pixel[layer] for layer in cfg.content_layers)
    masks = image / PIXEL / rows * 6 * max(regions, int(canvas.tiled or rows > 1))
    kernels = sum(x.size for x in jax.tree.leaves(_params(network)))
    weights = kernels * (10 if network.dtype == "bfloat16" else 8)  # as they are, and as they are laid out anew

    gradient = _gradient(network, cfg, of_pixel, canvas, regions, together) * _seen(canvas, rows)
    # The styles' moments need no gradient, but their pictures may be larger; how wide they are is not known here.
    side = max(1, round(max(shape) * cfg.style_scale))
    style = 1.7 * sum(of_pixel.values()) * _seen(canvas_of((side, side), network, cfg, mesh), rows)
    further = places.needed(cfg, canvas.shape, per_pixel, channels_of(network, cfg.layers), regions) / rows
    return round(state + images + content + masks + weights + further + max(gradient, style))


def images_kept(cfg: Config) -> int:
    """How many images the optimizer's state is as large as; Adam keeps that of the last size too."""
    return (2 * cfg.memory + 6 if cfg.optimizer == "lbfgs" else 8) + bool(cfg.averaging)


def _gradient(
    network: Network, cfg: Config, of_pixel: dict[str, float], canvas: Canvas, regions: int, together: bool
) -> float:
    """Bytes of a pixel at the worst moment of a gradient: features, what is being derived, and copies with borders."""
    # The factors are measured: what XLA copies, and when, follows from no rule that one could write down here.
    if isinstance(network, VGG):
        copies = 2.9 + 0.6 * (network.padding != "zeros") + 3.5 * (network.ceil_mode and not canvas.tiled)
    else:
        copies = 9.5  # gradients of strided convolutions, of windows that overlap, and of joined channels
    if together and cfg.optimizer == "lbfgs":
        copies *= 2.2  # generous: measured with line searches side by side, and now they come in turn
    features = sum(of_pixel.values())
    if network.remat and not on_cpu():  # which on CPUs changes nothing: the compiler finds out that it is all the same
        blocks: dict[str, list[float]] = {}
        for name, x in of_pixel.items():
            blocks.setdefault(name.split("_")[0], []).append(x)
        features = max(map(sum, blocks.values())) + sum(block[-1] for block in blocks.values()) / copies
    masked = max(of_pixel[layer] for layer in cfg.style_layers)
    return copies * features + 2 * masked * max(0, regions - (not canvas.tiled))


def _seen(canvas: Canvas, rows: int) -> float:
    """Pixels whose features a device holds at once."""
    if not canvas.tiled:
        return canvas.shape[0] * canvas.shape[1] / rows
    sides = [min(side, part + 2 * canvas.halo) for side, part in zip(canvas.shape, canvas.tile, strict=True)]
    return sides[0] * sides[1]


@functools.lru_cache(maxsize=64)
def features_of_pixel(network: Network, layers: tuple[str, ...]) -> dict[str, float]:
    """How many features there are for each pixel of an image, up to the last of these layers, in all that is kept."""
    side = 256  # of an image small enough and large enough to tell
    names = network.names[: max(map(network.names.index, layers)) + 1]
    names = [name for name in names if name in layers or not name.startswith(("conv", "pool"))]
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    taps: Any = jax.eval_shape(lambda params, x: network.apply(params, x, names), _params(network), image)
    return {name: x.size / side**2 for name, x in taps.items()}


@functools.lru_cache(maxsize=64)
def channels_of(network: Network, layers: tuple[str, ...]) -> dict[str, int]:
    """How many features a place of each layer has."""
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), np.float32)
    taps: Any = jax.eval_shape(lambda params, x: network.apply(params, x, layers), _params(network), image)
    return {name: x.shape[-1] for name, x in taps.items()}


@functools.lru_cache(maxsize=64)
def _params(network: Network) -> Any:
    return jax.eval_shape(lambda key: prepare(network, network.init(key)), jax.random.key(0))


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


# ---------------------------------------------------------------------------------------------------------------------
# What there is


def available(devices: Sequence[Any]) -> int:
    """Bytes that are free on each of these devices; CPUs share the host's."""
    if devices[0].platform == "cpu":
        return free_on_host() // len(devices)
    stats = [device.memory_stats() or {} for device in devices]
    return min(of["bytes_limit"] - of.get("bytes_in_use", 0) if "bytes_limit" in of else free_on_host() for of in stats)


def free_on_host() -> int:
    """Bytes, less where a container or a job of a cluster may not have all of the machine's."""
    import psutil

    return int(
        min(psutil.virtual_memory().available, free_in_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))
    )


def free_in_groups(membership: Path, root: Path) -> float:
    """What Linux' control groups (version 2) leave to this process, infinity where they set no limit."""
    free = math.inf
    try:
        name = next(line[3:] for line in membership.read_text().splitlines() if line.startswith("0::"))
        group = root / name.strip("/")
        for folder in (group, *group.parents[: len(group.parts) - len(root.parts)]):
            limit = folder / "memory.max"
            if limit.exists() and (most := limit.read_text().strip()) != "max":
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / "memory.current").read_text()) - int(stat["inactive_file"])  # which can be dropped
                free = min(free, max(0, int(most) - used))
    except (OSError, StopIteration, ValueError, KeyError):
        pass  # other systems, older kernels: no limit is known
    return free


# ---------------------------------------------------------------------------------------------------------------------
# What to do


def fit(
    network: Network, cfg: Config, shape: tuple[int, int], limit: int, rows: int = 1, regions: int = 0
) -> tuple[Config, int]:
    """The configuration, in tiles if it must be, and how many such images fit into `limit` bytes of a device at once.

    Raises DoesNotFitError, and ValueError for an image that cannot be cut as it is asked for.
    """

    def need(cfg: Config, shape: tuple[int, int] = shape, together: bool = False) -> int:
        return needed(network, cfg, shape, rows, regions, together)

    def fitting(cfg: Config, shape: tuple[int, int] = shape) -> Config | None:
        return next((one for one in _ways(network, cfg, shape, rows) if need(one, shape) <= limit), None)

    if found := fitting(cfg):
        return found, max(1, limit // need(found, together=True))

    last, adam = _ways(network, cfg, shape, rows)[-1], dataclasses.replace(cfg, optimizer="adam")
    options = []
    if cfg.tile > TILES[-1]:
        options.append((f"--tile {TILES[-1]}", dataclasses.replace(cfg, tile=TILES[-1])))
    if cfg.optimizer == "lbfgs":
        options.append((f"--memory {FEW}", dataclasses.replace(last, memory=min(FEW, cfg.memory))))
        options.append(("--optimizer adam", dataclasses.replace(last, optimizer="adam")))
    advice = [f"{option} needs {gigabytes(need(other))}" for option, other in options if need(other) <= limit]
    sizes = {"": cfg, " with --optimizer adam": adam} if adam != cfg and fitting(adam) is None else {"": cfg}
    for option, other in sizes.items():
        if size := _largest(lambda size, other=other: fitting(other, fitted_shape(shape, size)), max(shape)):
            advice.append(f"--size {size}{option} fits")
    raise DoesNotFitError(
        f"{shape[1]} x {shape[0]} pixels need about {gigabytes(need(last))} of memory"
        f"{f' in tiles of {last.tile}' if last.tile else ''}, and {gigabytes(limit)} are free: "
        f"{'; '.join(advice) or 'even a small picture does not fit'}"
    )


def _ways(network: Network, cfg: Config, shape: tuple[int, int], rows: int) -> list[Config]:
    """As asked for and, where that is in one piece, in tiles, from the fastest to what needs the least memory."""
    if cfg.tile or cfg.tileable or rows > 1 or not isinstance(network, VGG):
        return [cfg]
    return [cfg] + [dataclasses.replace(cfg, tile=tile) for tile in TILES if tile < max(shape)]


def _largest(fits: Callable[[int], Any], below: int) -> int:
    """The largest size below this one that fits, 0 if there is none."""
    low = 0
    while below - low > 1:
        middle = (low + below) // 2
        low, below = (middle, below) if fits(middle) else (low, middle)
    return low
