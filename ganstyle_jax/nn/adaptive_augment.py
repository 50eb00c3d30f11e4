"""Adaptive discriminator augmentation (Karras et al. 2020, arXiv:2006.06676).

All that a discriminator sees, real and generated, goes through transformations of which each is applied with
probability p to each picture by itself. As long as p < 1 leaves enough pictures alone, the generator is not taught to
make augmented ones; p follows how far the discriminator has learned the real pictures by heart (`adjusted`).

The transformations are those of the paper's appendix B, in its order and with its distributions: blit (mirrored, turned
by right angles, moved by whole pixels), geometry (scaled, turned, scaled along one axis, moved), color (brightness,
contrast, luma flip, hue, saturation), filter (four bands of frequencies made stronger or weaker), noise and cutout.
`draw` makes all random numbers, as values of each picture, and `transform` is a pure function of them. It is linear in
the pictures, but for the constants that brightness and noise add, and can be differentiated as often as one likes.

Differs from the authors' code: beyond its borders a picture is mirrored again and again, where they mirror it once by
as much as the batch's farthest picture asks for, and take zeros beyond; what is seen differs only where a picture
becomes smaller than a third, and by the filter's last taps near the borders of one that becomes smaller. In exchange a
picture's transformation does not depend on its neighbours in the batch.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ganstyle_jax.nn import layers

POLICIES = ("blit", "geometry", "color", "filter", "noise", "cutout")
TRANSLATION = 0.125  # of the side: the farthest of whole pixels, and the standard deviation of any
SCALE = 0.2  # standard deviation of log2 of scales, the same in both directions and along one axis
BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5, 1.0  # standard deviations, of the latter two of log2
BAND = 1.0  # standard deviation of log2 of what a band of frequencies is multiplied with
NOISE = 0.1  # standard deviation of the standard deviation of noise
CUT = 0.5  # side of what is cut out, of the picture's
# Wavelets by whose low-pass filters pictures are enlarged and told apart by frequency (Daubechies 1992, chapter 8).
SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)  # of natural pictures in the four bands, on average


def check_policy(policy: str) -> tuple[str, ...]:
    """Splits "blit,geometry,color"; raises ValueError naming an unknown part."""
    parts = tuple(part for part in policy.split(",") if part)
    for part in parts:
        if part not in POLICIES:
            raise ValueError(f"augment_policy must be a comma-separated list of {', '.join(POLICIES)}, got {part!r}")
    return parts


def augment(key: jax.Array, images: jax.Array, p: jax.Array, policy: str, axis_name: str | None = None) -> jax.Array:
    """Each transformation of the policy with probability p: (b, s, s, c) in [-1, 1] to the same shape; p: ().

    Colours may leave [-1, 1].
    """
    return transform(images, draw(key, images.shape, p, policy, images.dtype, axis_name))


def adjusted(p: jax.Array, sign: jax.Array, target: float, images: int, speed_images: float) -> jax.Array:
    """p after `images` real pictures of whose logits the signs are `sign` on average, () in [-1, 1] (section 3.2).

    It grows if sign is above the target, else it falls, from 0 to 1 in `speed_images`; never below 0.
    """
    return jnp.maximum(p + jnp.sign(sign - target) * (images / speed_images), 0).astype(p.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn


def draw(
    key: jax.Array, shape: tuple[int, ...], p: jax.Array, policy: str, dtype=jnp.float32, axis_name: str | None = None
) -> dict[str, jax.Array]:
    """Random numbers for pictures of shape (b, s, s, c), by name (b, ...); what is not applied has no effect.

    blit: "mirrored" 0 or 1, "quarters" 0 to 3, "pixels" (b, 2) whole numbers, x and y. geometry: "scale", "before" and
    "after" (radians), "stretch", "moved" (b, 2) pixels. color: "brightness", "contrast", "flipped" 0 or 1, "hue"
    (radians), "saturation". filter: "bands" (b, 4). noise: "noise" (b, s, s, c). cutout: "size" and "centre" (b, 2), of
    the side.
    """
    parts, (b, side, _, _) = check_policy(policy), shape
    names = iter(range(100))  # each draw has its own key, whatever else is drawn

    def numbers(kind, *more: int) -> jax.Array:
        k = jax.random.fold_in(key, next(names))
        return layers.global_draw(lambda s: kind(k, tuple(s), dtype), (b, *more), axis_name)

    def normal(*more: int) -> jax.Array:
        return numbers(jax.random.normal, *more)

    def uniform(*more: int) -> jax.Array:
        return numbers(jax.random.uniform, *more)

    def sometimes(values: jax.Array, otherwise: float, probability=p) -> jax.Array:
        """values (b, ...), each picture's with that probability."""
        chosen = uniform() < probability
        return jnp.where(chosen.reshape(b, *(1,) * (values.ndim - 1)), values, jnp.asarray(otherwise, dtype))

    found = {}
    for i, part in enumerate(POLICIES):
        names = iter(range(100 * i, 100 * i + 100))
        if part not in parts:
            continue
        if part == "blit":
            found["mirrored"] = sometimes(jnp.floor(2 * uniform()), 0)
            found["quarters"] = sometimes(jnp.floor(4 * uniform()), 0)
            found["pixels"] = jnp.round(sometimes((2 * uniform(2) - 1) * TRANSLATION, 0) * side)
        elif part == "geometry":
            turned = 1 - jnp.sqrt(jnp.clip(1 - p, 0, 1))  # so that one of two turns, or both, have probability p
            found["scale"] = sometimes(jnp.exp2(normal() * SCALE), 1)
            found["before"] = sometimes((2 * uniform() - 1) * math.pi, 0, turned)
            found["stretch"] = sometimes(jnp.exp2(normal() * SCALE), 1)
            found["after"] = sometimes((2 * uniform() - 1) * math.pi, 0, turned)
            found["moved"] = sometimes(normal(2) * TRANSLATION, 0) * side
        elif part == "color":
            found["brightness"] = sometimes(normal() * BRIGHTNESS, 0)
            found["contrast"] = sometimes(jnp.exp2(normal() * CONTRAST), 1)
            found["flipped"] = sometimes(jnp.floor(2 * uniform()), 0)
            found["hue"] = sometimes((2 * uniform() - 1) * math.pi, 0)
            found["saturation"] = sometimes(jnp.exp2(normal() * SATURATION), 1)
        elif part == "filter":
            found["bands"] = jnp.stack([sometimes(jnp.exp2(normal() * BAND), 1) for _ in POWER], 1)
        elif part == "noise":
            stddev = sometimes(jnp.abs(normal()) * NOISE, 0)
            found["noise"] = stddev[:, None, None, None] * normal(*shape[1:])
        else:
            found["size"] = sometimes(jnp.full((b,), CUT, dtype), 0)
            found["centre"] = uniform(2)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What is done with it


def transform(images: jax.Array, draws: dict[str, jax.Array]) -> jax.Array:
    """Pictures (b, s, s, c), transformed by what `draw` has given, in the paper's order."""
    if "mirrored" in draws or "scale" in draws:
        images = warp(images, geometry(draws))
    if "brightness" in draws:
        images = recolor(images, colors(draws, images.shape[3]))
    if "bands" in draws:
        images = equalize(images, draws["bands"])
    if "noise" in draws:
        images = images + draws["noise"]
    if "size" in draws:
        images = cut_out(images, draws["size"], draws["centre"])
    return images


def geometry(draws: dict[str, jax.Array]) -> jax.Array:
    """(b, 3, 3): where a pixel of the result is found in the picture, (x, y, 1) in pixels from its centre."""
    matrix = None
    if "mirrored" in draws:
        quarters = draws["quarters"]
        cosine = (quarters == 0).astype(quarters.dtype) - (quarters == 2)
        sine = (quarters == 1).astype(quarters.dtype) - (quarters == 3)
        matrix = _scaling(1 - 2 * draws["mirrored"], 1)
        matrix = _product(matrix, _turning(cosine, sine), _moving(-draws["pixels"]))
    if "scale" in draws:
        scale, stretch = draws["scale"], draws["stretch"]
        before, after = (_turning(jnp.cos(draws[name]), jnp.sin(draws[name])) for name in ("before", "after"))
        general = _product(_scaling(1 / scale, 1 / scale), before, _scaling(1 / stretch, stretch), after)
        general = _product(general, _moving(-draws["moved"]))
        matrix = general if matrix is None else _product(matrix, general)
    assert matrix is not None
    return matrix


def warp(images: jax.Array, matrix: jax.Array) -> jax.Array:
    """Pictures (b, s, s, c) seen through (b, 3, 3) of `geometry`, mirrored at their borders.

    They are enlarged twofold by the low-pass filter of an orthogonal wavelet, read between their pixels bilinearly, and
    reduced by the same filter. A matrix that moves whole pixels gives these pixels; one that mirrors or turns them by
    right angles does but for a fifth of a pixel, since the filter is not symmetric, as in the authors' code.
    """
    side, dtype = images.shape[1], images.dtype
    enlarging, reducing = (jnp.asarray(m, dtype) for m in _resampling(side))
    canvas = jnp.einsum("yi,bijc,xj->byxc", enlarging, images, enlarging, precision="highest")
    period = 4 * (side - 1)
    # Pixels of the result, twice enlarged and with what the filter takes around them, from the centre.
    at = (jnp.arange(2 * (side + 6), dtype=dtype) + 0.5 - (side + 6)) / 2 + 0.25
    x, y = at[None, None, :], at[None, :, None]
    m = matrix[:, :, :, None, None]
    places = [2 * (m[:, i, 0] * x + m[:, i, 1] * y + m[:, i, 2]) - 0.5 + side - 0.5 for i in (1, 0)]  # rows, columns
    floors = [jnp.floor(place) for place in places]
    rows, columns = (jnp.mod(floor, period).astype(jnp.int32) for floor in floors)

    def read(canvas: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        return lax.dynamic_slice(canvas, (row, column, jnp.zeros_like(row)), (2, 2, canvas.shape[2]))

    four = jax.vmap(jax.vmap(jax.vmap(read, (None, 0, 0)), (None, 0, 0)))(canvas, rows, columns)
    down, right = (place - floor for place, floor in zip(places, floors, strict=True))
    weights = jnp.stack([1 - down, down], -1)[..., :, None] * jnp.stack([1 - right, right], -1)[..., None, :]
    seen = jnp.sum(four * weights[..., None], (3, 4))
    return jnp.einsum("iy,byxc,jx->bijc", reducing, seen, reducing, precision="highest")


def colors(draws: dict[str, jax.Array], channels: int) -> jax.Array:
    """(b, 4, 4), to be multiplied with (red, green, blue, 1); of pictures in grey neither hue nor saturation."""
    brightness, contrast, dtype = draws["brightness"], draws["contrast"], draws["brightness"].dtype
    one = jnp.eye(4, dtype=dtype)
    grey = jnp.asarray(np.outer([1, 1, 1, 0], [1, 1, 1, 0]) / 3, dtype)  # projects onto the axis of grey
    toward = jnp.asarray([1, 1, 1, 0], dtype)[:, None] * jnp.asarray([0, 0, 0, 1], dtype)
    matrix = one + brightness[:, None, None] * toward
    scale = jnp.asarray([1, 1, 1, 0], dtype)
    matrix = _product(one * (contrast[:, None] * scale + (1 - scale))[:, None, :], matrix)
    matrix = _product(one - 2 * grey * draws["flipped"][:, None, None], matrix)
    if channels > 1:
        hue, saturation = draws["hue"][:, None, None], draws["saturation"][:, None, None]
        across = np.zeros((4, 4))
        across[:3, :3] = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)  # x -> axis of grey times x
        turning = jnp.cos(hue) * (one - grey) + grey + jnp.sin(hue) * jnp.asarray(across, dtype)
        # The last row and column belong to the constant 1, which no rotation touches.
        last = jnp.asarray(np.diag([0, 0, 0, 1.0]), dtype)
        turning = turning + (1 - jnp.cos(hue)) * last
        matrix = _product(turning, matrix)
        matrix = _product(grey + (one - grey) * saturation + last * (1 - saturation), matrix)
    return matrix


def recolor(images: jax.Array, matrix: jax.Array) -> jax.Array:
    """Each pixel of (b, h, w, 3) by (b, 4, 4); of (b, h, w, 1) by what the matrix makes of grey, on average."""
    if images.shape[3] == 1:
        row = matrix[:, :3].mean(1)
        return images * row[:, :3].sum(1)[:, None, None, None] + row[:, 3][:, None, None, None]
    turned = jnp.einsum("bdc,bhwc->bhwd", matrix[:, :3, :3], images, precision="highest")
    return turned + matrix[:, None, None, :3, 3]


def equalize(images: jax.Array, bands: jax.Array) -> jax.Array:
    """Four bands of frequencies, from the lowest, times (b, 4), with the power of a natural picture kept."""
    side, dtype = images.shape[1], images.dtype
    power = jnp.asarray(POWER, dtype)
    # The bands come in turn, and after each of them power is made what it was.
    kept = lax.rsqrt(1 + power * (bands**2 - 1))  # of a picture in which one band is multiplied: powers sum to 1
    gains = bands * kept.prod(1, keepdims=True)
    rows = jnp.einsum("bn,nij->bij", gains, jnp.asarray(_bands(side), dtype), precision="highest")
    return jnp.einsum("byi,bijc,bxj->byxc", rows, images, rows, precision="highest")


def cut_out(images: jax.Array, size: jax.Array, centre: jax.Array) -> jax.Array:
    """A square of that size (b,) around (x, y) (b, 2), of the picture's side, set to 0 where it lies in the picture."""
    at = (jnp.arange(images.shape[1], dtype=images.dtype) + 0.5) / images.shape[1]
    inside = jnp.abs(at[None, None] - centre[:, :, None]) < size[:, None, None] / 2  # (b, 2, s)
    return jnp.where((inside[:, 1, :, None] & inside[:, 0, None, :])[..., None], 0, images)


# ---------------------------------------------------------------------------------------------------------------------
# Matrices


def _product(*matrices: jax.Array) -> jax.Array:
    return functools.reduce(functools.partial(jnp.matmul, precision="highest"), matrices)


def _matrix(rows: list[list]) -> jax.Array:
    values = jnp.broadcast_arrays(*(jnp.asarray(x) for row in rows for x in row))
    return jnp.stack(values, -1).reshape(*values[0].shape, len(rows), len(rows[0]))


def _scaling(x, y) -> jax.Array:
    return _matrix([[x, 0, 0], [0, y, 0], [0, 0, 1]])


def _turning(cosine: jax.Array, sine: jax.Array) -> jax.Array:
    return _matrix([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


def _moving(by: jax.Array) -> jax.Array:
    return _matrix([[1, 0, by[:, 0]], [0, 1, by[:, 1]], [0, 0, 1]])


def mirrored(index: np.ndarray, side: int) -> np.ndarray:
    """The pixel of 0 to side - 1 that is seen at each index, of a picture that is mirrored at its borders endlessly."""
    index = np.mod(index, 2 * side - 2)
    return np.minimum(index, 2 * side - 2 - index)


@functools.cache
def _resampling(side: int) -> tuple[np.ndarray, np.ndarray]:
    """(4 side - 3, side): a row enlarged twofold and mirrored, its first value again at the end; (side, 2 side + 12).

    Enlarged, y[n] is 2 sum over k of f[11 - k] u[n + k - 6], u[2i] being x[i] and 0 in between; reduced,
    y[i] = sum over k of f[k] x[2i + k + 1].
    """
    taps = np.array(SYM6) / np.sum(SYM6)
    enlarging, reducing = np.zeros((4 * side - 3, side)), np.zeros((side, 2 * side + 12))
    for n in range(4 * side - 3):
        for k in range(12):
            if (n + k) % 2 == 0:
                enlarging[n, mirrored(np.array((n + k - 6) // 2), side)] += 2 * taps[11 - k]
    for i in range(side):
        reducing[i, 2 * i + 1 : 2 * i + 13] = taps
    return enlarging, reducing


def filter_bank() -> np.ndarray:
    """(4, 43): filters of the four bands, from the lowest, which sum to one that changes nothing (appendix B)."""
    low = np.array(SYM2)
    high = low * (-1) ** np.arange(4)
    low, high = (np.convolve(f, f[::-1]) / 2 for f in (low, high))
    filters = [np.ones(1)]  # of as many bands as there are by now
    for _ in range(3):
        spread = []
        for taps in filters:  # each for half of the frequencies that it was for
            zeros = np.zeros(2 * len(taps) - 1)
            zeros[::2] = taps
            spread.append(np.convolve(zeros, low))
        rest = np.zeros(len(spread[0]))
        rest[len(rest) // 2 - 3 : len(rest) // 2 + 4] = high
        filters = [*spread, rest]
    return np.stack(filters)


@functools.cache
def _bands(side: int) -> np.ndarray:
    """(4, side, side): what each filter makes of a row that is mirrored at its ends."""
    bank = filter_bank()
    found, half = np.zeros((4, side, side)), bank.shape[1] // 2
    for i in range(side):
        for k in range(bank.shape[1]):
            found[:, i, mirrored(np.array(i + k - half), side)] += bank[:, k]
    return found
