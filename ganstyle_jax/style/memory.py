"""How much memory the optimisation of an image takes, before it is begun, and what to do where there is too little.

An estimate, within about a third of what XLA reports for the compiled program on a CPU: most of it are features, kept
for the gradient, and the images that L-BFGS remembers.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from ganstyle_jax.style import gatys
from ganstyle_jax.vgg import VGG, Network

TILES = (2048, 1024, 512, 256)  # pixels, tried in this order: large ones waste less on their halos
COPIES = 2.5  # of all features in the middle of a gradient: features, what is being derived, and borders
COPIES_REMAT = 1.3  # the same where they are computed again
IMAGES = 14  # of the image's size, that every optimizer needs with all losses


class DoesNotFitError(Exception):
    """The image cannot be made with this memory, not even in tiles; the message says what would help."""


def needed(network: Network, cfg: gatys.Config, shape: tuple[int, int], rows: int = 1) -> int:
    """Bytes on each device for one image of (h, w) pixels, shared by rows among so many."""
    canvas = gatys.canvas_of(shape, network, cfg)
    window = [canvas.shape[0] / rows, canvas.shape[1]]
    if canvas.tiled:
        window = [min(side, part + 2 * canvas.halo) for side, part in zip(canvas.shape, canvas.tile, strict=True)]
    # Features for each pixel, by those of a small image.
    small = jax.ShapeDtypeStruct((1, 256, 256, 3), np.float32)
    params = jax.eval_shape(network.init, jax.random.key(0))
    names = network.names[: max(map(network.names.index, cfg.layers)) + 1]
    names = [name for name in names if not name.startswith(("conv", "pool"))]
    taps: dict[str, Any] = jax.eval_shape(lambda p, x: network.apply(p, x, names), params, small)
    of_pixel = {name: x.size * x.dtype.itemsize / 256**2 for name, x in taps.items()}
    copies = COPIES_REMAT if network.remat else COPIES
    features = copies * sum(of_pixel.values()) * window[0] * window[1]
    pixels = canvas.shape[0] / rows * canvas.shape[1]
    remembered = 2 * cfg.memory if cfg.optimizer == "lbfgs" else 0
    content = sum(of_pixel.get(layer, 0) for layer in cfg.content_layers) * pixels
    weights = sum(x.size * 4 for x in jax.tree.leaves(params))
    return round(features + content + 12 * pixels * (IMAGES + remembered) + weights)


def available(device: jax.Device) -> int:
    """Bytes that are free on a device, or of the host's memory for CPUs."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    import psutil

    return psutil.virtual_memory().available


def fit(
    network: Network, cfg: gatys.Config, shape: tuple[int, int], limit: int, rows: int = 1
) -> tuple[gatys.Config, int]:
    """The configuration, in tiles if it must be, and how many such images fit into `limit` bytes at once.

    Raises DoesNotFitError.
    """
    tried = [cfg]
    if not cfg.tile and rows == 1 and isinstance(network, VGG):
        tried += [dataclasses.replace(cfg, tile=tile) for tile in TILES if tile < max(shape)]
    for attempt in tried:
        if (need := needed(network, attempt, shape, rows)) <= limit:
            return attempt, limit // need
    advice = []
    adam = dataclasses.replace(tried[-1], optimizer="adam")
    if cfg.optimizer == "lbfgs":
        short = dataclasses.replace(tried[-1], memory=3)
        for option, other in (("--memory 3", short), ("--optimizer adam", adam)):
            advice.append(f"{option} would need {_gigabytes(needed(network, other, shape, rows))}")
    size = max(shape)
    while size > 64 and needed(network, adam, gatys.fitted_shape(shape, size), rows) > limit:
        size = size * 3 // 4
    advice.append(f"--size {size} with --optimizer adam would fit")
    if rows == 1 and len(jax.devices()) > 1:
        advice.append("--parallel rows shares it among devices")
    raise DoesNotFitError(
        f"{shape[1]} x {shape[0]} pixels need about {_gigabytes(need)} of memory{' in tiles' if tried[-1].tile else ''} "
        f"and {_gigabytes(limit)} are free: {'; '.join(advice)}"
    )


def _gigabytes(n: int) -> str:
    return f"{n / 1e9:.3g} GB"
