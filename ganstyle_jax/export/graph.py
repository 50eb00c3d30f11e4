"""The ONNX graph of an ImageTransform, written from its weights: one file for pictures of any size.

    model = graph.build(network, params, {"steps": "40000"})
    onnx.save(model, "sea.onnx")

Inputs `image` (1, 3, h, w) float32 in [-1, 1], sides from 16 pixels up, and `style` (1, styles) float32, weights that
sum to 1; output `painted` (1, 3, h, w) float32 in [-1, 1]. Sizes that are no multiple of 4 are padded and cropped
within the graph, as ImageTransform does it.

Written for browsers, where few threads multiply: a layer is said in the steps that are fewest there, and gives the same
numbers up to rounding. Every padding is a node of its own, since WebGPU has had faults in convolutions whose padding
differs from side to side.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ganstyle_jax.io.files import UserError
from ganstyle_jax.nn.image_transform import ImageTransform

OPSET = 18  # of 2022: onnxruntime 1.14 and later
IR_VERSION = 8  # which goes with it; by default the package writes its newest, which older programs refuse
EPSILON = 1e-5  # of `instance_norm`
MOST_OUTPUTS = 7  # of a node: WebGPU promises 8 buffers, of which the input takes one


def package() -> Any:
    """The package `onnx`; UserError where it is missing."""
    try:
        import onnx
    except ImportError:
        raise UserError(
            "ONNX files are written by the package onnx, which is not installed: pip install 'ganstyle_jax[export]'"
        ) from None
    return onnx


def build(network: ImageTransform, params: Mapping[str, Any], metadata: Mapping[str, str]) -> Any:
    """The onnx.ModelProto. params: as `ImageTransform.init` gives them. UserError where the package is missing."""
    onnx = package()
    from onnx import TensorProto, helper

    graph = _Graph()
    normalise = graph.normalisations({name: _at(params, name) for name in network.shapes if name != "out"})
    double = {"nearest": graph.enlarge, "transposed": graph.transposed}[network.upsampling]

    def layer(x: str, name: str, convolve: Any, **options: Any) -> str:
        weights = _at(params, name)
        return normalise(convolve(x, _array(weights["kernel"]), _array(weights["bias"]), **options), name)

    sides = graph.add("Slice", graph.add("Shape", "image"), _whole([2]), _whole([4]))
    more = graph.add("Mod", graph.add("Neg", sides), _whole([4, 4]))  # pixels to the next multiple of 4
    x = graph.add("Pad", "image", graph.add("Concat", _whole([0] * 6), more, axis=0), mode="reflect")
    x = graph.add("Relu", layer(x, "down1", graph.same))
    for name in ("down2", "down3"):
        x = graph.add("Relu", layer(x, name, graph.same, stride=2))
    for i in range(1, network.blocks + 1):
        inner = graph.add("Relu", layer(x, f"block{i}/first", graph.same))
        x = graph.add("Add", x, layer(inner, f"block{i}/second", graph.same))
    for name in ("up1", "up2"):
        x = graph.add("Relu", layer(x, name, double))
    x = graph.same(x, _array(params["out"]["kernel"]), _array(params["out"]["bias"]))
    x = graph.add("Slice", x, _whole([0, 0]), sides, _whole([2, 3]))
    limits = (np.float32(-1), np.float32(1))
    x = graph.add("Tanh", x) if network.output == "tanh" else graph.add("Clip", x, *limits)
    graph.nodes[-1].output[0] = "painted"

    picture = [1, 3, "height", "width"]
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        graph.nodes,
        "ganstyle",
        [value("image", TensorProto.FLOAT, picture), value("style", TensorProto.FLOAT, [1, network.styles])],
        [value("painted", TensorProto.FLOAT, picture)],
        graph.constants,
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(made, opset_imports=opset, producer_name="ganstyle_jax", ir_version=IR_VERSION)
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and constants in their order; pictures are (1, c, h, w) and kernels (rows, columns, in, out)."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """A node; returns the name of its output, or a list of several. inputs: names, or arrays that are constants."""
        from onnx import helper, numpy_helper

        names = []
        for x in inputs:
            if not isinstance(x, str):
                self.constants.append(numpy_helper.from_array(np.asarray(x), f"constant{len(self.constants)}"))
                x = self.constants[-1].name
            names.append(x)
        made = [f"{kind.lower()}{len(self.nodes)}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, made, **attributes))
        return made[0] if outputs == 1 else made

    def normalisations(self, layers: Mapping[str, Mapping[str, Any]]) -> Any:
        """A function of a picture's name and a layer's, which normalises by the blend of the styles' numbers.

        The numbers of all layers are blended in one product, so that a GPU is asked for one small thing and not forty.
        """
        parts = {(name, part): _array(weights[part]) for name, weights in layers.items() for part in ("scale", "shift")}
        table = np.concatenate(list(parts.values()), axis=1)
        blended = self.add("Reshape", self.add("MatMul", "style", table), _whole([-1]))
        counts = [part.shape[1] for part in parts.values()]
        names = dict(zip(parts, self.split(blended, counts), strict=True))

        def normalise(x: str, name: str) -> str:
            return self.add("InstanceNormalization", x, names[name, "scale"], names[name, "shift"], epsilon=EPSILON)

        return normalise

    def split(self, x: str, counts: list[int]) -> list[str]:
        """A vector in parts of so many numbers; by way of larger ones, where one step would have too many outputs."""
        if len(counts) == 1:
            return [x]
        size = MOST_OUTPUTS ** max(0, math.ceil(math.log(len(counts), MOST_OUTPUTS) - 1e-9) - 1)
        groups = [counts[i : i + size] for i in range(0, len(counts), size)]
        parts = self.add("Split", x, _whole([sum(group) for group in groups]), outputs=len(groups), axis=0)
        return [name for part, group in zip(parts, groups, strict=True) for name in self.split(part, group)]

    def pad(self, x: str, above: int, below: int, mode: str) -> str:
        """By so many rows above and below, and as many columns on the left and the right."""
        return self.add("Pad", x, _whole([0, 0, above, above, 0, 0, below, below]), mode=mode)

    def convolve(self, x: str, kernel: np.ndarray, bias: np.ndarray, stride: int = 1) -> str:
        """Nothing is padded."""
        weights = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        return self.add("Conv", x, weights, bias, kernel_shape=kernel.shape[:2], strides=[stride, stride])

    def same(self, x: str, kernel: np.ndarray, bias: np.ndarray, stride: int = 1) -> str:
        """Padded by reflection."""
        width = len(kernel) // 2
        return self.convolve(self.pad(x, width, width, "reflect"), kernel, bias, stride)

    def enlarge(self, x: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        """Every pixel four times, then `same`: a convolution of 2x2 for each of the four; see image_transform.py."""
        kernel = _of_pixels(kernel, lambda k0, k1, k2: [[k0 + k1, k2], [k0, k1 + k2]])
        x = self._to_pixels(self.pad(x, 1, 1, "edge"), kernel, bias)
        return self.add("Slice", x, _whole([1, 1]), _whole([-1, -1]), _whole([2, 3]))

    def transposed(self, x: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        """PyTorch's ConvTranspose2d(c, d, 3, stride=2, padding=1, output_padding=1), in the same way."""
        kernel = _of_pixels(kernel, lambda k0, k1, k2: [[k1, 0 * k1], [k2, k0]])
        return self._to_pixels(self.pad(x, 0, 1, "constant"), kernel, bias)

    def _to_pixels(self, x: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        """kernel: (row of pixel 2, tap 2, column of pixel 2, tap 2, c, d)."""
        taps = kernel.transpose(1, 3, 4, 0, 2, 5)  # tap, tap, c, row, column, d
        cells = self.convolve(x, taps.reshape(2, 2, taps.shape[2], -1), np.tile(bias, 4))
        return self.add("DepthToSpace", cells, blocksize=2, mode="DCR")


def _of_pixels(kernel: np.ndarray, taps: Any) -> np.ndarray:
    """(3, 3, c, d) -> (2, 2, 2, 2, c, d): pixel and tap of rows, then of columns, as `taps` makes them of three."""
    for axis in (0, 2):
        kernel = np.stack([np.stack(pixel) for pixel in taps(*np.moveaxis(kernel, axis, 0))])
        kernel = np.moveaxis(kernel, (0, 1), (axis, axis + 1))
    return kernel


def _at(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Weights of a layer: "block1/first" lies in a block."""
    for part in name.split("/"):
        params = params[part]
    return params


def _array(x: Any) -> np.ndarray:
    return np.asarray(x, np.float32)


def _whole(numbers: list[int]) -> np.ndarray:
    return np.asarray(numbers, np.int64)
