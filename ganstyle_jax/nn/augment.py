"""Differentiable augmentation (Zhao et al. 2020, arXiv:2006.10738) and instance noise for discriminators.

Both networks' updates see augmented pictures, real and generated alike, so that the generator is not taught to make
augmented ones. Every function maps (b, h, w, c) in [-1, 1] to the same shape and is differentiable in the images. At
the end what real pictures alone go through before a step: `crop` and `flip`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ganstyle_jax.nn import layers

POLICIES = ("color", "translation", "cutout")


def check_policy(policy: str) -> tuple[str, ...]:
    """Splits "color,translation,cutout"; raises ValueError naming an unknown part."""
    parts = tuple(part for part in policy.split(",") if part)
    for part in parts:
        if part not in POLICIES:
            raise ValueError(f"augment must be a comma-separated list of {', '.join(POLICIES)}, got {part!r}")
    return parts


def diff_augment(key: jax.Array, images: jax.Array, policy: str, axis_name: str | None = None) -> jax.Array:
    """The policy's parts in turn, each with its own draw per image."""
    return transform(images, draw(key, images.shape, policy, images.dtype, axis_name), policy)


def draw(
    key: jax.Array, shape: tuple[int, ...], policy: str, dtype=jnp.float32, axis_name: str | None = None
) -> tuple[jax.Array, ...]:
    """What each part of the policy draws for pictures of that shape, (b, numbers)."""
    drawing = {"color": draw_color, "translation": draw_translation, "cutout": draw_cutout}
    parts = enumerate(check_policy(policy))
    return tuple(drawing[part](jax.random.fold_in(key, i), shape, dtype, axis_name) for i, part in parts)


def transform(images: jax.Array, draws: tuple[jax.Array, ...], policy: str) -> jax.Array:
    """The policy's parts in turn, by what `draw` has given: a pure function of each picture and its numbers."""
    functions = {"color": color, "translation": translation, "cutout": cutout}
    for part, numbers in zip(check_policy(policy), draws, strict=True):
        images = functions[part](images, numbers)
    return images


def draw_color(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32, axis_name: str | None = None) -> jax.Array:
    """(b, 3), uniform in [0, 1)."""

    def uniform(s):
        return jax.random.uniform(key, (3, *s), dtype).swapaxes(0, 1)

    return layers.global_draw(uniform, shape[:1], axis_name)


def color(images: jax.Array, draws: jax.Array) -> jax.Array:
    """Brightness +-0.5, saturation x 0..2, contrast x 0.5..1.5, uniform."""
    brightness, saturation, contrast = (draws[:, i, None, None, None] for i in range(3))
    images = images + (brightness - 0.5)
    grey = images.mean(-1, keepdims=True)
    images = (images - grey) * (2 * saturation) + grey
    mean = images.mean((1, 2, 3), keepdims=True)
    return (images - mean) * (contrast + 0.5) + mean


def draw_translation(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32, axis_name: str | None = None):
    """(b, 2) int32, rows and columns, uniform up to 1/8 of the size both ways."""
    b, h, w, _ = shape
    return _offsets(key, b, (-(h // 8), -(w // 8)), (h // 8 + 1, w // 8 + 1), axis_name)


def translation(images: jax.Array, shifts: jax.Array) -> jax.Array:
    """Shift by up to 1/8 of the size, both ways, black (the value 0 of the paper's code: mid-grey here) moving in."""
    h, w = images.shape[1:3]
    rows = jnp.arange(h) + shifts[:, :1]  # (b, h): the row each output row shows
    columns = jnp.arange(w) + shifts[:, 1:]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))  # a border of zeros to point at
    rows, columns = jnp.clip(rows + 1, 0, h + 1), jnp.clip(columns + 1, 0, w + 1)
    return jax.vmap(lambda image, r, c: image[r[:, None], c[None, :]])(padded, rows, columns)


def draw_cutout(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32, axis_name: str | None = None) -> jax.Array:
    """(b, 2) int32, the row and column of a centre, uniform in the picture."""
    b, h, w, _ = shape
    return _offsets(key, b, (0, 0), (h + (1 - (h // 2) % 2), w + (1 - (w // 2) % 2)), axis_name)


def cutout(images: jax.Array, centres: jax.Array) -> jax.Array:
    """A square of half the size set to 0, centred anywhere in the picture, cut off at the edges."""
    h, w = images.shape[1:3]
    rows = jnp.arange(h) - (centres[:, :1] - h // 4)
    columns = jnp.arange(w) - (centres[:, 1:] - w // 4)
    inside = ((rows >= 0) & (rows < h // 2))[:, :, None] & ((columns >= 0) & (columns < w // 2))[:, None, :]
    return jnp.where(inside[..., None], 0, images)


def instance_noise(key: jax.Array, images: jax.Array, stddev: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Adds N(0, stddev^2) to every value (Sonderby et al. 2017, section 3.2)."""
    return images + stddev * layers.global_normal(key, images.shape, axis_name, images.dtype)


def _offsets(key, b: int, low: tuple[int, int], high: tuple[int, int], axis_name: str | None) -> jax.Array:
    """(b, 2) integers, uniform in [low, high)."""

    def draw(shape):
        keys = jax.random.split(key)
        return jnp.stack([jax.random.randint(k, shape, lo, hi) for k, lo, hi in zip(keys, low, high, strict=True)], 1)

    return layers.global_draw(draw, (b,), axis_name)


def crop(key: jax.Array, pictures: jax.Array, size: int, axis_name: str | None = None) -> jax.Array:
    """A random square of each picture, (b, h, w, c) -> (b, size, size, c)."""
    b, h, w, c = pictures.shape
    if (h, w) == (size, size):
        return pictures
    most = jnp.array([h - size + 1, w - size + 1])
    corners = layers.global_draw(lambda s: jax.random.randint(key, tuple(s), 0, most), (b, 2), axis_name)
    return jax.vmap(lambda picture, at: lax.dynamic_slice(picture, (at[0], at[1], 0), (size, size, c)))(
        pictures, corners
    )


def flip(key: jax.Array, pictures: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Each picture (b, h, w, c) mirrored, left for right, or not, with equal chances."""
    mirrored = layers.global_draw(lambda s: jax.random.bernoulli(key, 0.5, tuple(s)), (len(pictures),), axis_name)
    return jnp.where(mirrored[:, None, None, None], pictures[:, :, ::-1], pictures)
