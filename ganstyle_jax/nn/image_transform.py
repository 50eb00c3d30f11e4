"""The network that paints a picture anew in one forward pass (Johnson, Alahi & Fei-Fei 2016, arXiv:1603.08155).

    transform = ImageTransform(width=16, styles=3)
    params = transform.init(jax.random.key(0))
    painted = transform.apply(params, images, style)                   # (b, h, w, 3) in [-1, 1], (b, 3)

Differs from the paper, as the authors' later code and the common PyTorch example do: instance normalisation in the
place of BatchNorm (Ulyanov et al. 2016, arXiv:1607.08022), convolutions padded by reflection throughout, residual
blocks that keep the size, and nearest enlargement before a convolution in the place of a transposed one (Odena et al.
2016), which leaves no checkerboard. One network holds many styles by conditional instance normalisation: scales and
shifts of their own for each, blended by weights (Dumoulin, Shlens & Kudlur 2017, arXiv:1610.07629, section 2.2).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from ganstyle_jax.nn import cpu
from ganstyle_jax.nn.convolutions import FEW, on_cpu
from ganstyle_jax.nn.norm import instance_norm

Params = dict[str, dict]  # {layer: {"kernel", "bias", "scale", "shift"}}, or of a block {"first": .., "second": ..}
Normalise = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Upsampling = Literal["nearest", "transposed"]
Output = Literal["tanh", "clip"]
Padding = Literal["reflect", "zero"]
SMALLEST = 16  # pixels of a side: reflection at a quarter of the size needs more than one


def layer_of(params: Mapping[str, Any], name: str) -> Any:
    """What a tree holds for a layer, "down1", or for a half of a block, "block1/first"."""
    block, _, half = name.partition("/")
    return params[block][half] if half else params[block]


def put_layer(params: dict[str, Any], name: str, weights: Any) -> None:
    """Puts it where `layer_of` finds it."""
    block, _, half = name.partition("/")
    if half:
        params.setdefault(block, {})[half] = weights
    else:
        params[block] = weights


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """Layers, in order: down1 (9x9), down2, down3 (3x3, stride 2), block1.., up1, up2 (3x3, twice the size), out (9x9).

    All but the last are followed by instance normalisation and ReLU; a block is two, without the second ReLU, and adds
    its input. Hashable, so static for `jit`; its weights are a tree of arrays, see `init`.
    """

    width: int = 32  # channels at full size; twice as many at half of it, four times at a quarter
    blocks: int = 5  # residual blocks
    styles: int = 1  # of conditional instance normalisation
    upsampling: Upsampling = "nearest"  # before a convolution; "transposed": as in the paper
    output: Output = "tanh"  # what takes colours to [-1, 1]; "clip": for networks that were trained without tanh

    def __post_init__(self):
        for name in ("width", "styles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.blocks < 0:
            raise ValueError(f"blocks must not be negative, got {self.blocks}")
        for name, choices in (("upsampling", get_args(Upsampling)), ("output", get_args(Output))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be {' or '.join(choices)}, got {getattr(self, name)!r}")

    @property
    def shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Of kernels, (rows, columns, in, out), by the names of layers in their order; "block1/first" in block1."""
        w = self.width
        shapes = {"down1": (9, 9, 3, w), "down2": (3, 3, w, 2 * w), "down3": (3, 3, 2 * w, 4 * w)}
        for i in range(1, self.blocks + 1):
            shapes |= {f"block{i}/{half}": (3, 3, 4 * w, 4 * w) for half in ("first", "second")}
        return shapes | {"up1": (3, 3, 4 * w, 2 * w), "up2": (3, 3, 2 * w, w), "out": (9, 9, w, 3)}

    def init(self, key: jax.Array, dtype=jnp.float32) -> Params:
        """Random weights (LeCun et al. 1998: variance 1 / inputs), biases of 0, every style's scales 1 and shifts 0.

        {"down1": {"kernel": (9, 9, 3, w), "bias": (w,), "scale": (styles, w), "shift": (styles, w)}, ..., "block1":
        {"first": {...}, "second": {...}}, ..., "out": {"kernel": (9, 9, w, 3), "bias": (3,)}}. The kernels of a
        transposed convolution are PyTorch's up to the order of axes: y[2i + u - 1, 2j + v - 1] += x[i, j] k[u, v].
        """
        params: Params = {}
        for i, (name, shape) in enumerate(self.shapes.items()):
            rows, columns, before, after = shape
            kernel = jax.random.normal(jax.random.fold_in(key, i), shape, dtype) / (rows * columns * before) ** 0.5
            layer = {"kernel": kernel, "bias": jnp.zeros(after, dtype)}
            if name != "out":
                layer["scale"] = jnp.ones((self.styles, after), dtype)
                layer["shift"] = jnp.zeros((self.styles, after), dtype)
            put_layer(params, name, layer)
        return params

    def trained(self, params: Params) -> Params:
        """Without what has no effect, and whose gradient would be rounding errors: see `whole`.

        A normalisation takes away every constant before it: biases and, where no zeros are padded in between, the
        shifts of what blocks add.
        """

        def part(weights, silent):
            return {name: x for name, x in weights.items() if "scale" not in weights or name not in silent}

        kept = {}
        for name, layer in params.items():
            if "second" in layer:
                shift = ("shift",) if self.upsampling == "nearest" else ()
                kept[name] = {
                    "first": part(layer["first"], ("bias",)),
                    "second": part(layer["second"], ("bias", *shift)),
                }
            else:
                kept[name] = part(layer, ("bias",))
        return kept

    def whole(self, trained: Params) -> Params:
        """Zeros in the place of what `trained` leaves out, of these weights' own type."""

        def part(weights):
            if "kernel" not in weights:
                return {half: part(layer) for half, layer in weights.items()}
            kernel = weights["kernel"]
            bias = jnp.zeros(kernel.shape[3], kernel.dtype)
            if "scale" not in weights:
                return {"bias": bias} | weights
            return {"bias": bias, "shift": jnp.zeros_like(weights["scale"])} | weights

        return {name: part(layer) for name, layer in trained.items()}

    def apply(
        self,
        params: Params,
        images: jax.Array,
        style: jax.Array | None = None,
        normalise: Normalise = instance_norm,
        clip: bool = True,
    ) -> jax.Array:
        """Images (b, h, w, 3) in [-1, 1], of any sides from 16 pixels up, to images of the same shape and range.

        style: (b, styles) weights that sum to 1, by which scales and shifts are blended; by default the first style's.
        normalise: what is called, in the order of the layers, in the place of `instance_norm`, such as one that takes
        statistics of more than this image. clip: of "clip"; training without it has a gradient beyond the range too.

        The image is padded by reflection to multiples of 4 and the result is cropped. ValueError for a smaller one.
        """
        b, h, w, _ = images.shape
        if h < SMALLEST or w < SMALLEST:  # and not the smaller one: symbols of `jax.export` are not compared
            raise ValueError(f"an image must have at least {SMALLEST} pixels on each side, got {h}x{w}")

        def layer(name, x, weights, convolve):
            with jax.named_scope(name):
                return layer_in_place(x, weights, convolve)

        def layer_in_place(x, weights, convolve):
            x = convolve(x, weights["kernel"]) + weights["bias"]
            if style is None:
                scale, shift = (jnp.broadcast_to(weights[name][:1], (b, x.shape[-1])) for name in ("scale", "shift"))
            else:
                blend = style.astype(x.dtype)
                scale, shift = (jnp.matmul(blend, weights[name], precision="highest") for name in ("scale", "shift"))
            return normalise(x, scale, shift)

        up = {"nearest": enlarge, "transposed": transposed}[self.upsampling]
        x = images.astype(params["out"]["kernel"].dtype)
        x = jnp.pad(x, ((0, 0), (0, -h % 4), (0, -w % 4), (0, 0)), mode="reflect")
        x = jax.nn.relu(layer("down1", x, params["down1"], same))
        for name in ("down2", "down3"):
            x = jax.nn.relu(layer(name, x, params[name], reduce))
        for i in range(1, self.blocks + 1):
            block = params[f"block{i}"]
            inner = jax.nn.relu(layer(f"block{i}/first", x, block["first"], same))
            x = x + layer(f"block{i}/second", inner, block["second"], same)
        for name in ("up1", "up2"):
            x = jax.nn.relu(layer(name, x, params[name], up))
        x = (same(x, params["out"]["kernel"]) + params["out"]["bias"])[:, :h, :w]
        if self.output == "tanh":
            return jnp.tanh(x)
        return jnp.clip(x, -1, 1) if clip else x


# ---------------------------------------------------------------------------------------------------------------------
# Its convolutions
#
# All are made of one of stride 1, whose gradients are such convolutions again: XLA's own are slow on CPUs, see
# convolutions.py. What halves or doubles the picture is one of 2x2 cells: between the cells of the padded picture and
# the pixels of the smaller one it is a 2x2 convolution.


def same(x: jax.Array, kernel: jax.Array, padding: Padding = "reflect") -> jax.Array:
    """The size is kept: (b, h, w, c), (p, p, c, d) -> (b, h, w, d); p is odd."""
    return valid(padded(x, len(kernel) // 2, padding), kernel)


def reduce(x: jax.Array, kernel: jax.Array, padding: Padding = "reflect") -> jax.Array:
    """Stride 2, padded by half of the kernel: (b, h, w, c), (p, p, c, d) -> (b, h/2, w/2, d); h and w even, p odd."""
    x = padded(x, len(kernel) // 2, padding)
    return _cpu_strided(x, kernel) if on_cpu("auto") else _strided(x, kernel)


def enlarge(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Every pixel four times, then `same`, 16 multiplications for 36: (b, h, w, c), (3, 3, c, d) -> (b, 2h, 2w, d).

    In one dimension y[2i - 1] = (k0 + k1) x[i - 1] + k2 x[i] and y[2i] = k0 x[i - 1] + (k1 + k2) x[i]. What reflection
    finds beyond the border of the enlarged picture is the border's own pixel again.
    """
    for axis in (0, 1):
        k0, k1, k2 = jnp.moveaxis(kernel, 2 * axis, 0)
        kernel = jnp.stack([jnp.stack([k0 + k1, k2]), jnp.stack([k0, k1 + k2])])  # (pixel, tap, ..)
        kernel = jnp.moveaxis(kernel, (0, 1), (2 * axis, 2 * axis + 1))
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    return _to_pixels(x, kernel)[:, 1:-1, 1:-1]


def transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """PyTorch's ConvTranspose2d(c, d, 3, stride=2, padding=1, output_padding=1): as `enlarge`, of the same shapes.

    In one dimension y[2i] = k1 x[i] and y[2i + 1] = k2 x[i] + k0 x[i + 1], with x = 0 beyond the border.
    """
    for axis in (0, 1):
        k0, k1, k2 = jnp.moveaxis(kernel, 2 * axis, 0)
        kernel = jnp.stack([jnp.stack([k1, jnp.zeros_like(k1)]), jnp.stack([k2, k0])])
        kernel = jnp.moveaxis(kernel, (0, 1), (2 * axis, 2 * axis + 1))
    return _to_pixels(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), kernel)


def valid(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Nothing is padded: (b, h, w, c), (p, q, c, d) -> (b, h - p + 1, w - q + 1, d)."""
    return _cpu_valid(x, kernel) if on_cpu("auto") else _valid(x, kernel)


def _valid(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _valid_by_kernel(x: jax.Array, y: jax.Array) -> jax.Array:
    size = x.shape[1] - y.shape[1] + 1, x.shape[2] - y.shape[2] + 1
    return cpu.kernel_gradient(x, y, size)


def _valid_to_few(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_valid` of few channels d, which fill no vector: on CPUs many times faster for large kernels.

    Of many channels c each row sends its part to the p rows that see it, as p d channels, which are then added. Of
    fewer, four columns of the result come at once, by kernels that lie one column apart: a third more products, with 0.
    """
    (_, h, w, c), (p, q, _, d) = x.shape, kernel.shape
    height, width, together = h - p + 1, w - q + 1, 4
    if c >= 32:
        sent = cpu.convolve(x, kernel.transpose(1, 2, 0, 3).reshape(1, q, c, p * d))
        parts = [sent[:, u : u + height, :, u * d : (u + 1) * d] for u in range(p)]
        return functools.reduce(jnp.add, parts)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -width % together), (0, 0)))
    apart = [jnp.pad(kernel, ((0, 0), (i, together - 1 - i), (0, 0), (0, 0))) for i in range(together)]
    kernel = jnp.stack(apart, 3).reshape(p, q + together - 1, c, together * d)
    y = cpu.convolve(x, kernel, stride=(1, together))
    return y.reshape(*y.shape[:2], -1, d)[:, :, :width]


def _valid_forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _valid_to_few(x, kernel) if _to_few(kernel.shape) else cpu.convolve(x, kernel)


def _valid_by_x(y: jax.Array, kernel: jax.Array) -> jax.Array:
    """(b, h, w, d), (p, q, c, d) -> (b, h + p - 1, w + q - 1, c)."""
    p, q = kernel.shape[:2]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    if _to_few(turned.shape):
        return _valid_to_few(jnp.pad(y, ((0, 0), (p - 1, p - 1), (q - 1, q - 1), (0, 0))), turned)
    return cpu.convolve(y, turned, (p - 1, q - 1))


def _to_few(shape: tuple[int, ...]) -> bool:
    return shape[1] > 4 and shape[3] <= FEW


_cpu_valid, _cpu_valid_by_x, _ = cpu.with_derivatives(_valid_forward, _valid_by_x, _valid_by_kernel)


def _strided(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _strided_forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return cpu.convolve(x, kernel, stride=(2, 2))


def _strided_by_x(y: jax.Array, kernel: jax.Array) -> jax.Array:
    """(b, h, w, d), (p, p, c, d) -> (b, 2h + p - 1, 2w + p - 1, c): of odd p, so that the last row and column are 0.

    Pixels of even and of odd rows and columns meet each their own part of the kernel: four convolutions.
    """
    (b, h, w, _), (p, _, c, _) = y.shape, kernel.shape
    height, width = h + p // 2, w + p // 2  # of each of the four, the longest

    def part(r: int, s: int) -> jax.Array:
        taps = kernel[r::2, s::2]
        found = _cpu_valid_by_x(y, taps)
        return jnp.pad(found, ((0, 0), (0, height - found.shape[1]), (0, width - found.shape[2]), (0, 0)))

    rows = [jnp.stack([part(r, 0), part(r, 1)], 3) for r in (0, 1)]  # (b, height, width, 2, c)
    return jnp.stack(rows, 2).reshape(b, 2 * height, 2 * width, c)


def _strided_by_kernel(x: jax.Array, y: jax.Array) -> jax.Array:
    size = x.shape[1] - 2 * y.shape[1] + 1
    return cpu.kernel_gradient(x, y, (size, size), stride=2)


_cpu_strided, *_ = cpu.with_derivatives(_strided_forward, _strided_by_x, _strided_by_kernel)


def _to_pixels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(b, h, w, c), (row of pixel 2, tap 2, column of pixel 2, tap 2, c, d) -> (b, 2h - 2, 2w - 2, d)."""
    (b, h, w, c), d = x.shape, kernel.shape[-1]
    cells = valid(x, kernel.transpose(1, 3, 4, 0, 2, 5).reshape(2, 2, c, 4 * d))
    pixels = cells.reshape(b, h - 1, w - 1, 2, 2, d).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(b, 2 * h - 2, 2 * w - 2, d)


def padded(x: jax.Array, width: int, padding: Padding = "reflect") -> jax.Array:
    """(b, h, w, c) -> (b, h + 2 width, w + 2 width, c): reflected at its borders, or with zeros around."""
    mode = "reflect" if padding == "reflect" else "constant"
    return jnp.pad(x, ((0, 0), (width, width), (width, width), (0, 0)), mode=mode)
