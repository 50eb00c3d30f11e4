"""`ganstyle texture`: pictures of nothing but a manner (Gatys, Ecker & Bethge 2015, arXiv:1505.07376).

    run([Path("bricks.jpg")], Texture(out=Path("wall.png"), tileable=True))

Style transfer without content: from noise of the sample's colours, coarse to fine, to a picture whose features have the
sample's statistics. What the sample shows is there again, in other places.
"""

import dataclasses
import functools
import math
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro

from ganstyle_jax.control import Control, heeding_signals
from ganstyle_jax.features import vgg
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style import gatys
from ganstyle_jax.stylize import opaque, orders
from ganstyle_jax.stylize.orders import Order
from ganstyle_jax.stylize.program import Whole, fit, load_network, make
from ganstyle_jax.stylize.reading import Kind, Piece, read_opaque, read_picture


@dataclasses.dataclass(frozen=True)
class Texture:
    """What is to be made, and how."""

    # what to write: .png, .jpg, .webp, or .tif with 16 bits; with --count 3 OUT-1.png, OUT-2.png and OUT-3.png
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("texture.png")
    size: int = 512  # pixels of its sides
    shape: tuple[int, int] | None = None  # height and width in pixels, instead of --size
    tileable: bool = False  # it repeats without a seam; its sides become the nearest multiples of 16
    count: int = 1  # how many, each from other noise
    seed: int = 0  # of the noise: other numbers give other textures; the next of --count has the next number
    # pixels of the longer side in which SAMPLE is seen: more makes what it shows larger; by default its own, at most
    # the texture's
    sample_size: int | None = None
    sample_weights: tuple[float, ...] = ()  # how much each SAMPLE counts; by default all the same
    features: str = "compact"  # network to compare by: a name that `ganstyle weights list` shows, or a file of weights
    # layers of the network to compare by: deep ones for large shapes, the first for colour and grain
    layers: tuple[str, ...] = gatys.STYLE_LAYERS
    loss: Literal["gram", "wasserstein"] = "wasserstein"  # of Gram matrices, or of means and covariances as Gaussians
    tv_weight: float = 0.0  # of total variation, which smooths
    steps: int = 60  # evaluations of loss and gradient at each size from coarse to fine
    smallest: int = 64  # longer side of the first size in pixels
    factor: float = 2.0  # from one size to the next
    batch: int = 4  # textures that a device makes at once, fewer where memory is short

    def __post_init__(self):
        if isinstance(self.out, str):  # from a notebook
            object.__setattr__(self, "out", Path(self.out))
        for name, least, most in (("count", 1, 10_000), ("batch", 1, math.inf), ("seed", 0, 2**32 - 1 - self.count)):
            if not least <= getattr(self, name) <= most:
                accepted = f"at least {least}" if most == math.inf else f"from {least} to {most}"
                raise ValueError(f"--{name} must be {accepted}, got {getattr(self, name)}")
        if min(self.sides) < 1:
            raise ValueError(f"a texture has at least 1 x 1 pixels, got {self.sides[0]} x {self.sides[1]}")
        if self.sample_size is not None and self.sample_size < 1:
            raise ValueError(f"--sample-size must be at least 1, got {self.sample_size}")
        if not self.layers:
            raise ValueError("--layers must name at least one layer, such as relu1_1")
        self.config(1.0)  # checks the rest

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width as they are asked for."""
        return self.shape or (self.size, self.size)

    @property
    def files(self) -> list[Path]:
        if self.count == 1:
            return [self.out]
        digits = len(str(self.count))
        return [self.out.with_stem(f"{self.out.stem}-{i:0{digits}d}") for i in range(1, self.count + 1)]

    def config(self, style_scale: float) -> gatys.Config:
        return gatys.Config(
            size=max(self.sides),
            style_scale=style_scale,
            content_weight=0.0,
            content_layers=(),
            style_layers=self.layers,
            style_loss=self.loss,
            tv_weight=self.tv_weight,
            steps=self.steps,
            smallest=self.smallest,
            factor=self.factor,
            init="style",
            tileable=self.tileable,
        )


def run(samples: Sequence[Path | str] | Path | str, texture: Texture, control: Control | None = None) -> list[Path]:
    """Makes textures in the manner of the samples, blended, and returns the files written. Raises UserError.

    control: as in `program.run`.
    """
    control = Control() if control is None else control
    files = tuple(map(Path, (samples,) if isinstance(samples, (str, Path)) else samples))
    settings = orders.Settings(
        out=texture.out, features=texture.features, style_weights=texture.sample_weights, batch=texture.batch
    )
    if not files:
        raise UserError("no sample is given: name at least one picture of the texture that is wanted")
    if missing := [str(path) for path in files if not path.exists()]:
        raise UserError(f"there is no picture {' and no '.join(missing)}")
    cfg = texture.config(1.0)
    made = [Order(files[0], files, out) for out in texture.files]
    orders.check_numbers(settings, len(files), cfg)
    orders.check_destination(texture.out, cfg)
    orders.check_files(made, set(files), settings)
    seen = [read_opaque(sample, read_picture) for sample in files]
    styles, alphas = [picture for picture, _ in seen], [alpha for _, alpha in seen]
    own = max(max(style.shape[:2]) for style in styles)
    cfg = texture.config((texture.sample_size or min(own, cfg.size)) / cfg.size)
    network, params = load_network(cfg, settings)
    shapes = shapes_of(texture, cfg, network)
    teams = [jax.local_devices()]
    fitted, together = fit(network, cfg, Kind(shapes[-1], transparent=False), len(made), settings, teams)
    piece = functools.partial(
        piece_of, styles=styles, masks=opaque.masks_with_alpha(styles, None, alphas), shapes=shapes, cfg=fitted
    )
    whole = Whole(control, len(made), sum(fitted.steps_at(max(shape)) for shape in shapes))
    with heeding_signals(control, "keeping what there is of the texture"):
        for first in range(0, len(made), together):
            batch = range(first, min(first + together, len(made)))
            pieces = [piece(made[i], texture.seed + i, texture.sample_weights) for i in batch]
            part = whole.part(len(pieces), threading.Event())
            whole.written += make(pieces, network, params, fitted, settings, teams[0], 0, part)
            if whole.stopped:
                break
    if whole.stopped and control.signal:
        raise SystemExit(128 + control.signal)
    return whole.written


def shapes_of(texture: Texture, cfg: gatys.Config, network: vgg.Network) -> list[tuple[int, int]]:
    """(h, w) from coarse to fine; says where the last differs from what was asked for. UserError for too small ones."""
    try:
        shapes = gatys.shapes_of(texture.sides, cfg, network)
    except ValueError as error:
        raise UserError(str(error)) from error
    if shapes[-1] != texture.sides:
        (height, width), (asked_height, asked_width) = shapes[-1], texture.sides
        print(
            f"{width} x {height} pixels instead of {asked_width} x {asked_height}: a texture that repeats without a "
            "seam has multiples of what the network's layers take together",
            file=sys.stderr,
        )
    return shapes


def piece_of(
    order: Order,
    seed: int,
    weights: Sequence[float],
    styles: Sequence[np.ndarray],
    masks: Sequence[np.ndarray] | None,
    shapes: Sequence[tuple[int, int]],
    cfg: gatys.Config,
) -> Piece:
    """What `make` makes: a picture without content, begun with noise of its own."""
    empty = np.zeros((*shapes[-1], 3), np.float32)
    job = gatys.Job(empty, styles, weights or None, style_masks=masks)
    noise = gatys.first_image(jax.random.key(seed), np.zeros((*shapes[0], 3)), job.styles, job, cfg)
    return Piece(order, empty, dataclasses.replace(job, init_image=noise))
