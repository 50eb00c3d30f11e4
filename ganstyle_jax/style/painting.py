"""Paintings that are made on the spot, brush stroke by brush stroke: a night over hills, and a meadow in dabs.

    picture = painting(512)                     # the night
    picture = painting(512, subject="meadow")

The quick start takes the manner of it, so that no picture has to be shipped or fetched. Four things make it a painting:
strokes follow a flow, as the hand follows what it paints (Haeberli 1990; Hertzmann 1998); they are laid from back to
front and from broad to fine; each is streaked by the bristles of a brush loaded with two colours; and paint lies thick,
so that its ridges catch the light.

Lengths are shares of the picture's height, y points down, and no draw depends on the size in pixels: a larger painting
is the same one, finer.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

WIDTH = 1.25  # of the picture, for a height of 1
POINTS = 10  # of a stroke's curve
BRISTLE = 0.0018  # half the width of a streak
GROUND = (0.16, 0.13, 0.20)  # colour of the bare canvas
LIGHT = (-0.6, -0.8)  # where it falls from: (x, y) in the plane of the canvas
MOON = (0.97, 0.235)
# Whirls of the night air: x, y, radius, and how strongly and which way it turns.
WHIRLS = ((0.50, 0.30, 0.20, 1.0), (0.235, 0.13, 0.11, 0.75), (0.76, 0.475, 0.11, -0.7), (*MOON, 0.19, 0.8))
STARS = ((0.07, 0.17, 0.021), (0.37, 0.06, 0.017), (0.66, 0.09, 0.023), (0.76, 0.28, 0.014), (1.17, 0.07, 0.020))
STARS += ((0.25, 0.42, 0.018), (0.56, 0.53, 0.015), (1.17, 0.42, 0.021), (0.93, 0.52, 0.014))
LIGHTS = (*STARS, (*MOON, 0.055))

SKY = ("#0b1b4d", "#12307f", "#1c4fae", "#2f7cc9", "#73b4d8", "#c5dfd4", "#2458b8", "#0f2668")
GLOW = ("#fffbe0", "#ffe989", "#f8d24e", "#dfe09a", "#a5d3b5", "#62aecf", "#2c74c0")
MOONLIGHT = ("#ffd447", "#f7a823", "#f08c1d", "#ffe27a")
FAR = ("#1d2f6f", "#2f4a98", "#4a58a8", "#27407f", "#5b7fb4")
NEAR = ("#0f3f4a", "#1c6257", "#2f7d55", "#5b9a4b", "#134a55")
FIELD = ("#b5651d", "#d9902b", "#efb83f", "#f6d873", "#c8772a", "#8a4a1c", "#a8a03a")
TREE = ("#07161c", "#0d2a26", "#17402c", "#2a5a2f", "#3b2a1c", "#0a1f2b")

# Of the meadow, which is painted in dabs: no strokes that flow, no darks, and colours that meet in the eye alone.
HAZE = ("#fbe3c0", "#f6c8a8", "#cfe3dc", "#a9d2dc", "#f9efd6", "#e9b7a8", "#8fc3cf")
WOOD = ("#2f6f73", "#4c8c6a", "#6b62a3", "#86a85a", "#3d5f94", "#a7b84f")
GRASS = ("#8fae3c", "#c2c545", "#5f9a4c", "#e6d25a", "#3f8a66", "#d9a441")
POPPIES = ("#d8331f", "#f05a28", "#b81f3a", "#f7834a")

Values = np.ndarray
Field = Callable[[Values, Values], Values]


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the motif: where it is, which way its strokes run, and the colours they have."""

    inside: Field  # (x, y) -> bool: where strokes may begin
    angle: Field  # (x, y) -> direction of a stroke there, in radians
    tone: Field  # (x, y) -> 0 to 1 along the palette
    palette: tuple[str, ...]
    passes: tuple[tuple[float, float, int], ...]  # (width, length, number of strokes), from broad to fine
    spread: float = 0.07  # of the tone, from stroke to stroke


def painting(size: int, seed: int = 0, subject: Literal["night", "meadow"] = "night") -> np.ndarray:
    """(4/5 size, size, 3) float32 in [-1, 1]. seed: of the strokes; a subject's motif is always the same.

    Raises ValueError for fewer than 16 pixels.
    """
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    rng = np.random.default_rng(seed)
    canvas = Canvas(size, rng)
    for part in {"night": night, "meadow": meadow}[subject]():
        for width, length, count in part.passes:
            paint(canvas, part, width, length, count, rng)
    if subject == "night":
        lights(canvas, rng)
    return canvas.lit()


def night() -> list[Part]:
    """From back to front."""
    return [
        Part(
            lambda x, y: y < far_ridge(x) + 0.04,
            lambda x, y: np.arctan2(*air(x, y)[::-1]),
            lambda x, y: 0.5 + 0.5 * np.sin(air_line(x, y)),
            SKY,
            ((0.075, 0.26, 420), (0.042, 0.17, 1100), (0.022, 0.12, 1500)),
            0.06,
        ),
        Part(
            lambda x, y: (y > far_ridge(x)) & (y < near_ridge(x) + 0.04),
            lambda x, y: slope(far_ridge, x) + 0.25 * np.sin(9 * x + 20 * y),
            lambda x, y: 0.5 + 0.45 * np.sin(24 * (y - far_ridge(x)) + 7 * x),
            FAR,
            ((0.045, 0.16, 190), (0.024, 0.10, 420)),
        ),
        Part(
            lambda x, y: (y > near_ridge(x)) & (y < field_edge(x) + 0.04),
            lambda x, y: slope(near_ridge, x) + 0.5 * np.sin(12 * x - 14 * y),
            lambda x, y: 0.5 + 0.45 * np.sin(30 * (y - near_ridge(x)) - 9 * x),
            NEAR,
            ((0.045, 0.13, 190), (0.024, 0.09, 420)),
        ),
        Part(
            lambda x, y: y > field_edge(x),
            lambda x, y: np.arctan2(0.68 - y, 1.42 - x) + 0.30 * np.sin(13 * x + 5 * y),
            lambda x, y: 0.5 + 0.5 * np.sin(36 * np.arctan2(y - 0.68, 1.42 - x) + 3 * x),
            FIELD,
            ((0.055, 0.17, 260), (0.030, 0.12, 480), (0.017, 0.08, 700)),
            0.12,
        ),
        Part(
            lambda x, y: in_tree(x, y),
            lambda x, y: -np.pi / 2 + 0.5 * np.sin(17 * y + 30 * x),
            lambda x, y: 0.5 + 0.5 * np.sin(55 * (x - tree_axis(y))),
            TREE,
            ((0.040, 0.16, 130), (0.021, 0.12, 330)),
            0.12,
        ),
    ]


def meadow() -> list[Part]:
    """From back to front."""
    return [
        Part(
            lambda x, y: y < far_ridge(x) - 0.10,
            lambda x, y: 0.35 * np.sin(6 * x + 11 * y),
            lambda x, y: 0.5 + 0.5 * np.sin(7 * y + 2.5 * np.sin(3.1 * x + 4 * y)),
            HAZE,
            ((0.075, 0.12, 420), (0.034, 0.046, 2300)),
            0.16,
        ),
        Part(
            lambda x, y: (y > far_ridge(x) - 0.16 - 0.05 * np.abs(np.sin(13 * x))) & (y < far_ridge(x) + 0.02),
            lambda x, y: -np.pi / 2 + 0.6 * np.sin(19 * x),
            lambda x, y: 0.5 + 0.5 * np.sin(13 * x + 16 * y),
            WOOD,
            ((0.050, 0.08, 240), (0.027, 0.040, 900)),
            0.20,
        ),
        Part(
            lambda x, y: y > far_ridge(x) - 0.02,
            lambda x, y: 0.5 * np.sin(5 * x + 9 * y),
            lambda x, y: 0.5 + 0.5 * np.sin(19 * (y - far_ridge(x)) + 4 * x),
            GRASS,
            ((0.065, 0.11, 300), (0.033, 0.050, 1500)),
            0.20,
        ),
        Part(
            lambda x, y: (y > far_ridge(x) + 0.03) & (np.sin(11 * x + 5 * y) + np.sin(23 * y - 6 * x) > 0.2),
            lambda x, y: 2 * np.sin(40 * x + 31 * y),
            lambda x, y: 0.5 + 0.5 * np.sin(9 * x - 7 * y),
            POPPIES,
            ((0.034, 0.040, 420),),
            0.25,
        ),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The motifs


def far_ridge(x: Values) -> Values:
    return 0.635 + 0.045 * np.sin(4.1 * x + 0.4) + 0.022 * np.sin(10.3 * x + 2.0)


def near_ridge(x: Values) -> Values:
    return 0.725 + 0.040 * np.sin(3.3 * x + 3.4) + 0.014 * np.sin(8.7 * x)


def field_edge(x: Values) -> Values:
    return 0.815 + 0.030 * np.sin(3.0 * x + 1.2)


def slope(ridge: Callable[[Values], Values], x: Values) -> Values:
    return np.arctan2(ridge(x + 0.01) - ridge(x - 0.01), 0.02)


def tree_axis(y: Values) -> Values:
    return 0.115 + 0.018 * np.sin(11 * y)


def in_tree(x: Values, y: Values) -> Values:
    up = np.clip((0.97 - y) / 0.72, 0, 1)  # 0 at the foot, 1 at the tip
    half = 0.075 * (1 - up) ** 0.7 * (0.75 + 0.25 * np.cos(23 * y)) * np.minimum(1, 0.35 + 3 * up)
    return (np.abs(x - tree_axis(y)) < half) & (y > 0.25) & (y < 0.99)


def air(x: Values, y: Values) -> tuple[Values, Values]:
    """Where the night air moves to: a breeze in waves, and whirls in it."""
    dx, dy = np.ones_like(x), 0.45 * np.cos(5.5 * x + 3 * y)
    for cx, cy, radius, turn in WHIRLS:
        rx, ry = (x - cx) / radius, (y - cy) / radius
        strength = 4.5 * turn * np.exp(-0.5 * (rx**2 + ry**2) / 0.8)
        dx, dy = dx - strength * ry - 0.12 * abs(strength) * rx, dy + strength * rx - 0.12 * abs(strength) * ry
    return dx, dy


def air_line(x: Values, y: Values) -> Values:
    """A number that changes across the air's way and hardly along it: bands of colour that follow the whirls."""
    line = 21 * y - 3.5 * np.sin(5.5 * x + 3 * y)
    for cx, cy, radius, turn in WHIRLS:
        r = np.hypot(x - cx, y - cy) / radius
        near = np.exp(-0.5 * r**2)
        line = line * (1 - near) + near * (9.5 * r + turn * np.arctan2(y - cy, x - cx))
    return line


# ---------------------------------------------------------------------------------------------------------------------
# Strokes


def paint(canvas: "Canvas", part: Part, width: float, length: float, count: int, rng: np.random.Generator) -> None:
    """So many strokes all over a part."""
    x, y = scattered(part.inside, count, rng)
    tone = part.tone(x, y) + part.spread * rng.standard_normal(len(x))
    first, second = (mixed(part.palette, tone + shift) for shift in (0, 0.16))
    if part.palette is SKY:
        first, second = (glowing(colours, x, y, rng) for colours in (first, second))
    curves = along(part.angle, x, y, length * rng.uniform(0.7, 1.25, len(x)))
    widths = width * rng.uniform(0.75, 1.2, len(x))
    for curve, wide, a, b in zip(curves, widths, first, second, strict=True):
        canvas.stroke(curve, wide, a, b, rng)


def lights(canvas: "Canvas", rng: np.random.Generator) -> None:
    """The moon and the stars: short thick strokes around a blot of light, paler and rarer outwards."""
    for cx, cy, radius in LIGHTS:
        for r, count, tone in ((2.9, 9, 0.72), (2.1, 9, 0.55), (1.4, 8, 0.36), (0.75, 6, 0.18), (0.1, 2, 0.0)):
            for angle in 2 * np.pi / count * (np.arange(count) + rng.uniform(-0.3, 0.3, count)):
                arc = rng.uniform(0.35, 0.75) if r > 0.5 else 3
                turn = angle + np.linspace(0, arc, POINTS)
                away = radius * (r * rng.uniform(0.88, 1.12) + np.linspace(0, 0.12 * r, POINTS))
                curve = np.stack([cx + away * np.cos(turn), cy + away * np.sin(turn)], 1)
                a, b = mixed(GLOW, tone + 0.06 * rng.standard_normal() + np.array([0, 0.12]))
                canvas.stroke(curve, radius * rng.uniform(0.45, 0.7), a, b, rng, thick=1.4)
    cx, cy, radius = LIGHTS[-1]
    for bulge in np.linspace(0.45, 1.05, 9):  # a crescent, between two arcs that meet at its horns
        turn = np.linspace(-1.25, 1.35, POINTS) + rng.uniform(-0.12, 0.12)
        curve = np.stack([cx + radius * (bulge * np.cos(turn) + 0.05), cy + radius * np.sin(turn)], 1)
        a, b = mixed(MOONLIGHT, rng.uniform(0, 1) + np.array([0, 0.3]))
        canvas.stroke(curve, radius * 0.26, a, b, rng, thick=2)


def scattered(inside: Field, count: int, rng: np.random.Generator) -> tuple[Values, Values]:
    """About so many places in a part, evenly and without order."""
    u, v = np.meshgrid(np.linspace(-0.03, WIDTH + 0.03, 101), np.linspace(-0.03, 1.03, 81))
    cell = np.sqrt(inside(u, v).mean() * (WIDTH + 0.06) * 1.06 / count)
    x, y = np.meshgrid(np.arange(-0.03, WIDTH + 0.03, cell), np.arange(-0.03, 1.03, cell))
    x, y = (a.ravel() + cell * rng.uniform(-0.6, 0.6, a.size) for a in (x, y))
    order = rng.permutation(np.flatnonzero(inside(x, y)))
    return x[order], y[order]


def along(angle: Field, x: Values, y: Values, length: Values) -> Values:
    """Curves (n, POINTS, 2) whose middles are at (x, y), each so long, along the directions."""
    step = length / (POINTS - 1)
    halves = []
    for way in (-1, 1):
        here, points = (x, y), []
        for _ in range(POINTS // 2):
            a = angle(*here)
            here = here[0] + way * step * np.cos(a), here[1] + way * step * np.sin(a)
            points.append(np.stack(here, -1))
        halves.append(points)
    return np.stack(halves[0][::-1] + halves[1], 1)


def mixed(palette: tuple[str, ...], tone: Values) -> Values:
    """Colours (n, 3) from 0 to 1 at places 0 to 1 along a palette; beyond its ends the way leads back."""
    colours = np.array([[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in palette]) / 255
    place = (1 - np.abs(1 - np.abs(tone) % 2)) * (len(colours) - 1)
    return np.stack([np.interp(place, np.arange(len(colours)), c) for c in colours.T], -1)


def glowing(colours: Values, x: Values, y: Values, rng: np.random.Generator) -> Values:
    """The sky's colours, lit up around the moon and the stars."""
    for cx, cy, radius in LIGHTS:
        r = np.hypot(x - cx, y - cy) / radius
        near = np.exp(-0.5 * (r / 2.2) ** 2)[:, None] * rng.uniform(0.5, 1, (len(x), 1))
        colours = colours + near * (mixed(GLOW, np.clip(0.22 * r, 0, 1)) - colours)
    return colours


class Canvas:
    """Paint that lies on a canvas: its colour, and how high it stands."""

    def __init__(self, size: int, rng: np.random.Generator):
        self.scale = size / WIDTH  # pixels of a height of 1
        h, w = round(self.scale), size
        self.colour = np.full((h, w, 3), GROUND, np.float32)
        self.height = np.zeros((h, w), np.float32)  # in shares of the picture's height
        # How much paint each bristle carries, evenly from 0 to 1, (along, across): long streaks, for all strokes.
        streaks = rng.standard_normal((512, 512))
        for axis, width in ((0, 48), (1, 2)):
            total = np.cumsum(np.concatenate([streaks, streaks.take(range(width), axis)], axis), axis)
            streaks = total.take(range(width, 512 + width), axis) - total.take(range(512), axis)
        ranks = np.argsort(np.argsort(streaks, None)).reshape(512, 512)
        self.bristles = (ranks / 512**2).astype(np.float32)

    def stroke(
        self, curve: Values, width: float, first: Values, second: Values, rng: np.random.Generator, thick: float = 1
    ) -> None:
        """Lays paint along a curve (POINTS, 2); its two colours lie side by side in it."""
        offset, swap, dry = rng.integers(0, 512, 2), rng.uniform() < 0.5, rng.uniform(0.12, 0.36)
        if swap:
            first, second = second, first
        curve, half = (curve * self.scale).astype(np.float32), max(width * self.scale / 2, 0.6)
        low = np.maximum(np.floor(curve.min(0) - half - 1).astype(int), 0)
        high = np.minimum(np.ceil(curve.max(0) + half + 2).astype(int), self.height.shape[::-1])
        if (low >= high).any():
            return
        x = np.arange(low[0], high[0], dtype=np.float32) + 0.5
        y = np.arange(low[1], high[1], dtype=np.float32)[:, None] + 0.5

        # The nearest place on the curve: how far along, 0 to 1, and how far to which side, in half widths.
        way = np.diff(curve, axis=0)
        squared = np.maximum((way**2).sum(1), 1e-6)
        rx, ry = x - curve[:-1, 0, None, None], y - curve[:-1, 1, None, None]
        wx, wy = way[:, 0, None, None], way[:, 1, None, None]
        t = np.clip((rx * wx + ry * wy) / squared[:, None, None], 0, 1)
        away = (rx - t * wx) ** 2 + (ry - t * wy) ** 2
        nearest = away.argmin(0)
        rows, columns = np.ogrid[: away.shape[1], : away.shape[2]]
        t, away = t[nearest, rows, columns], np.sqrt(away[nearest, rows, columns])
        side = way[nearest, 0] * (y - curve[nearest, 1]) - way[nearest, 1] * (x - curve[nearest, 0])
        u, v = (nearest + t) / (POINTS - 1), np.copysign(away, side) / half

        # Bristles are as wide at every size of picture.
        length = np.sqrt(squared).sum() / self.scale
        across = (offset[0] + v * (half / self.scale / BRISTLE)).astype(int) % 512
        bristle = self.bristles[(offset[1] + u * length * 300).astype(int) % 512, across]
        rim = np.clip((1 - 0.3 * np.abs(2 * u - 1) ** 3 - np.abs(v)) * half + 0.25 + 0.5 * bristle, 0, 1)
        worn = np.clip(6 * (bristle - 0.75 * (1 - (1 - u) / dry)), 0, 1)  # the brush runs dry at the end
        alpha = rim * np.where(u > 1 - dry, worn, 1)
        mix = np.clip(0.05 + 0.9 * v + 0.9 * bristle, 0, 1)[..., None]
        colour = (first + mix * (second - first)) * (0.86 + 0.28 * bristle[..., None])

        here = np.s_[low[1] : high[1], low[0] : high[0]]
        self.colour[here] += alpha[..., None] * (colour - self.colour[here])
        # Paint is pushed aside into ridges, and what lay there before shows through.
        body = thick * half / self.scale * (0.5 + 0.5 * bristle + 0.5 * np.minimum(np.abs(v), 1) ** 3)
        self.height[here] += alpha * (body - 0.65 * self.height[here])

    def lit(self) -> Values:
        """The picture (h, w, 3) float32 in [-1, 1]: light falls on the ridges of the paint from one side."""
        slope_y, slope_x = np.gradient(self.height * self.scale)
        facing: Values = np.clip(np.asarray(LIGHT[0] * slope_x + LIGHT[1] * slope_y), -1.2, 1.2)
        gloss = np.clip(facing - 0.45, 0, 1) ** 2
        colour = self.colour * (1 + 0.30 * facing[..., None]) + 0.16 * gloss[..., None]
        return (2 * np.clip(colour, 0, 1) - 1).astype(np.float32)
