"""Images too large for one piece: cut into tiles that come one after the other, or into rows that devices share.

What a loss of features needs of an image is sums over places: products of channels, squared differences. `sum_over`
adds them up over tiles, and its gradient goes over the tiles a second time, so that only one tile's features are ever
held. A loss of such a sum

    loss(sum_over(function, image, args, canvas))

is then differentiated exactly, in two passes: one for the sums and, once it is known what each is worth, one for the
pixels. A tile is seen in a window with a margin, the halo, as wide as features reach.

Rows need no code of their own but equal shares: under `jit` the compiler lets neighbours exchange their borders.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Canvas:
    """An image in the upper left corner of an array that can be cut into equal parts; hashable."""

    extent: tuple[int, int]  # of the image in pixels
    shape: tuple[int, int]  # of the array
    tile: tuple[int, int]  # what the array is cut into; its shape, if it is not
    halo: int = 0  # pixels round each tile that its features depend on
    mesh: Mesh | None = None  # devices that share the rows, on an axis "rows"

    @property
    def tiled(self) -> bool:
        return self.tile != self.shape

    @property
    def padded(self) -> tuple[int, int] | None:
        """The extent, where the array is larger."""
        return None if self.shape == self.extent else self.extent

    def put(self, array: Any, shape: Sequence[int] | None = None, axis: int = 0) -> jax.Array:
        """Something of the image's extent, padded with zeros to the array's shape, on the devices it belongs to.

        shape: (rows, columns) to pad to instead, for features. axis: which one has the rows; the columns are the next.
        """
        widths = [(0, 0)] * array.ndim
        for i, side in enumerate(shape or self.shape, start=axis):
            widths[i] = (0, side - array.shape[i])
        array = np.pad(np.asarray(array), widths)
        if self.mesh is None:
            return jnp.asarray(array)
        sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * axis, "rows"))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def share(self, tree: Any) -> Any:
        """Within `jit`: what has the array's rows, (..., h, w, c), lies on the devices as they do."""

        def share(x):
            if self.mesh is None or x.shape[-3:-1] != self.shape:
                return x
            sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * (x.ndim - 3), "rows"))
            return lax.with_sharding_constraint(x, sharding)

        return jax.tree.map(share, tree)

    def share_now(self, tree: Any) -> Any:
        """As `share`, outside `jit`."""
        return tree if self.mesh is None else jax.jit(self.share)(tree)

    def clear(self, x: jax.Array) -> jax.Array:
        """Zeros outside the extent of an array (h, w, c)."""
        if self.padded is None:
            return x
        row, column = (lax.broadcasted_iota(jnp.int32, x.shape, axis) for axis in (0, 1))
        return jnp.where((row < self.extent[0]) & (column < self.extent[1]), x, 0)

    def crop(self, array: Any) -> np.ndarray:
        """The image in an array (h, w, c) or (b, h, w, c)."""
        if isinstance(array, jax.Array) and not array.is_fully_addressable:  # other processes have rows of it
            assert self.mesh is not None
            array = _gathered(self.mesh)(array)
        return np.asarray(array)[..., : self.extent[0], : self.extent[1], :]


@functools.cache
def _gathered(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def whole(extent: Sequence[int]) -> Canvas:
    """In one piece."""
    shape = (extent[0], extent[1])
    return Canvas(shape, shape, shape)


def by_rows(extent: Sequence[int], edge: int, mesh: Mesh) -> Canvas:
    """Equal numbers of rows, multiples of `edge`, on each device."""
    shape = (_round_up(extent[0], edge * mesh.size), extent[1])
    return Canvas((extent[0], extent[1]), shape, shape, mesh=mesh)


def by_tiles(extent: Sequence[int], edge: int, tile: int, reach: int) -> Canvas:
    """Tiles as equal as may be, with sides of at most `tile` and multiples of `edge`; reach: of features, in pixels."""
    sides = []
    for side in extent[:2]:
        count = -(-side // max(tile // edge * edge, edge))
        sides.append(_round_up(side, count * edge) // count)
    shape = [_round_up(side, part) for side, part in zip(extent, sides, strict=False)]
    return Canvas((extent[0], extent[1]), (shape[0], shape[1]), (sides[0], sides[1]), _round_up(reach, edge))


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a window lies in an image, and a tile in the window: pixels down and across, traced integers (2,)."""

    window: jax.Array
    tile: jax.Array
    canvas: Canvas

    def extent(self) -> tuple[jax.Array, jax.Array]:
        """How far the image goes in the window; more than the window is, where it goes on."""
        return self.canvas.extent[0] - self.window[0], self.canvas.extent[1] - self.window[1]

    def cut(self, array: jax.Array, window: jax.Array, stride: int) -> jax.Array:
        """The part of an image's features (..., h', w', c) that belongs to the window (h, w, 3)."""
        shape = (*array.shape[:-3], window.shape[0] // stride, window.shape[1] // stride, array.shape[-1])
        return lax.dynamic_slice(array, (*[0] * (array.ndim - 3), *self.window // stride, 0), shape)

    def mask(self, array: jax.Array, window: jax.Array, stride: int) -> jax.Array:
        """As `cut`, with zeros outside the tile."""
        part = self.cut(array, window, stride)
        for axis in (0, 1):
            index = lax.broadcasted_iota(jnp.int32, part.shape, part.ndim - 3 + axis) - self.tile[axis] // stride
            part = jnp.where((index >= 0) & (index < self.canvas.tile[axis] // stride), part, 0)
        return part


def _plan(canvas: Canvas) -> tuple[tuple[int, int], tuple[jax.Array, jax.Array]]:
    """The shape of all windows; the corners of windows in the image and of tiles in their windows, (n, 2) each."""
    sides = [min(side, part + 2 * canvas.halo) for side, part in zip(canvas.shape, canvas.tile, strict=True)]
    corners = np.mgrid[0 : canvas.shape[0] : canvas.tile[0], 0 : canvas.shape[1] : canvas.tile[1]].reshape(2, -1).T
    # At the image's borders the window is moved inwards: there the halo is what the network itself adds round images.
    windows = np.clip(corners - canvas.halo, 0, np.array(canvas.shape) - sides)
    return (sides[0], sides[1]), (jnp.asarray(windows), jnp.asarray(corners - windows))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def sum_over(function: Callable[[jax.Array, Place, Any], Any], image: jax.Array, args: Any, canvas: Canvas) -> Any:
    """The sum of function(window, place, args) over the tiles of an image (h, w, c), a tree of arrays.

    function: of a window (h', w', c) and where it lies. It must count its tile only, and what it counts may depend on
    pixels up to the canvas's halo away. args: a tree of arrays. Differentiable with respect to the image alone: a
    gradient by args raises ValueError.
    """
    shape, places = _plan(canvas)

    def one(corners):
        window = lax.dynamic_slice(image, (*corners[0], 0), (*shape, image.shape[2]))
        return function(window, Place(corners[0], corners[1], canvas), args)

    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, jax.tree.map(lambda x: x[0], places))
    )
    return lax.scan(lambda total, corners: (jax.tree.map(jnp.add, total, one(corners)), None), zeros, places)[0]


def _sum_over_forward(function, image, args, canvas):
    if any(x.perturbed for x in jax.tree.leaves(args, is_leaf=_is_primal)):
        raise ValueError("a sum over tiles can be differentiated by the image alone, not by args: see tiles.sum_over")
    image, args = jax.tree.map(lambda x: x.value, (image, args), is_leaf=_is_primal)
    return sum_over(function, image, args, canvas), (image, args)


def _is_primal(x):
    return hasattr(x, "perturbed")


def _instantiated(cotangent: Any) -> Any:
    x: Any = cotangent
    return jnp.zeros(x.shape, x.dtype) if isinstance(cotangent, SymbolicZero) else x


def _sum_over_backward(function, canvas, residuals, cotangent):
    image, args = residuals
    cotangent = jax.tree.map(_instantiated, cotangent, is_leaf=lambda x: isinstance(x, SymbolicZero))
    shape, places = _plan(canvas)

    def add(gradient, corners):
        at = (*corners[0], 0)
        window = lax.dynamic_slice(image, at, (*shape, image.shape[2]))
        _, pull = jax.vjp(lambda window: function(window, Place(corners[0], corners[1], canvas), args), window)
        before = lax.dynamic_slice(gradient, at, window.shape)
        return lax.dynamic_update_slice(gradient, before + pull(cotangent)[0], at), None

    gradient, _ = lax.scan(add, jnp.zeros_like(image), places)
    return gradient, jax.tree.map(jnp.zeros_like, args)


sum_over.defvjp(_sum_over_forward, _sum_over_backward, symbolic_zeros=True)


def map_over(
    function: Callable[[jax.Array, Place], dict[str, jax.Array]], image: jax.Array, canvas: Canvas
) -> dict[str, jax.Array]:
    """The features of an image (h, w, c) by name, (h / stride, w / stride, c'), from those of its windows.

    function: of a window and where it lies. For a gradient it is computed again, window by window.
    """
    shape, places = _plan(canvas)

    @jax.checkpoint
    def one(corners):
        window = lax.dynamic_slice(image, (*corners[0], 0), (*shape, image.shape[2]))
        parts = {}
        for name, x in function(window, Place(corners[0], corners[1], canvas)).items():
            stride = shape[0] // x.shape[0]
            sides = [side // stride for side in canvas.tile]
            parts[name] = lax.dynamic_slice(x, (*corners[1] // stride, 0), (*sides, x.shape[2]))
        return parts

    found = {}
    for name, parts in lax.map(one, places).items():
        _, h, w, c = parts.shape
        rows, columns = (side // part for side, part in zip(canvas.shape, canvas.tile, strict=True))
        found[name] = parts.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)
    return found
