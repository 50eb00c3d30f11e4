"""StableHLO of what a model makes pictures with, by jax.export: for later versions of JAX, and other programs of XLA.

    program = jax.export.deserialize(bytearray(Path("sea.stablehlo").read_bytes()))
    painted = program.call(images, style)                    # (b, h, w, 3) in [-1, 1], (b, styles)

Weights lie within. One file serves CPUs, CUDA, ROCm and TPUs, so that no convolution is chosen by the machine that
exports.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax.io.files import UserError, first_line
from ganstyle_jax.loop.models import Model
from ganstyle_jax.nn.convolutions import compiling_for
from ganstyle_jax.nn.image_transform import SMALLEST, ImageTransform

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
LEAST = 2 * SMALLEST  # pixels of a side: the symbols must be seen to leave a reflection room at a quarter of the size


def of_network(network: ImageTransform, params: Any) -> bytes:
    """The program (images (b, h, w, 3), style (b, styles)) -> (b, h, w, 3), float32, of any b and of sides from 32."""
    batch, height, width = jax.export.symbolic_shape(
        "b, h, w", constraints=["b >= 1", f"h >= {LEAST}", f"w >= {LEAST}"]
    )

    def paint(images: jax.Array, style: jax.Array) -> jax.Array:
        # A reflection as wide as symbols say is not to be had of `jnp.pad`: it is gathered here, so that the network
        # sees whole multiples of 4 and has nothing to add.
        for axis in (1, 2):
            side = images.shape[axis]
            places = jnp.arange(4 * ((side + 3) // 4))
            images = jnp.take(images, jnp.minimum(places, 2 * (side - 1) - places), axis=axis)
        return network.apply(params, images, style)[:, :height, :width]

    shapes = ((batch, height, width, 3), (batch, network.styles))
    return _exported(paint, [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])


def of_requests(model: Model, requests: Any) -> bytes:
    """The program requests -> what the method's `sample` gives, of any number of requests of these shapes.

    requests: an example, leaves (n, ...). UserError for a method whose pictures cannot be made by any number.
    """
    (batch,) = jax.export.symbolic_shape("b")
    leaves = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *np.shape(x)[1:]), np.asarray(x).dtype), requests)
    try:
        with model.precision():
            return _exported(lambda given: model.method.sample(model.variables, given, model.cfg), [leaves])
    except UserError:
        raise
    except Exception as error:  # whatever the method does with the number of its requests
        raise UserError(
            f"{model.origin} cannot become StableHLO: {model.method.name} does not make any number of pictures alike "
            f"({first_line(error)})"
        ) from error


def _exported(function: Any, shapes: list[Any]) -> bytes:
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise UserError(
            "StableHLO is written with the package flatbuffers, which is not installed: pip install "
            "'ganstyle_jax[export]'"
        ) from None
    with compiling_for("tpu"):  # the plain convolutions
        made = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
    return bytes(made.serialize())
