"""Weights of feature networks, in the layouts in which publishers give them out.

    network, params = read("vgg19-dcbb9e9d.pth")

A network's layout is recognised by the names and shapes in the file, never by the file's name, and nothing that a file
contains is executed.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax import torch_files
from ganstyle_jax.files import UserError, atomic_path
from ganstyle_jax.vgg import VGG, Params

IMAGENET_MEAN, IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # RGB in [0, 1]
CAFFE_MEAN = np.array([103.939, 116.779, 123.68])  # BGR in [0, 255]
BLOCKS = {13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}  # convolutions in the blocks of VGG-16 and VGG-19


def read(path: Path | str) -> tuple[VGG, Params]:
    """The network that a file holds and its weights, float32. UserError where there is none."""
    path = Path(path)
    arrays, metadata = _read_arrays(path)
    try:
        if "architecture" in metadata:
            return _read_own(arrays, json.loads(metadata["architecture"]))
        for layout in (_torchvision, _keras, _distilled, _normalised):
            if (found := layout(arrays)) is not None:
                kernel, convolutions, blocks, padding = found
                return _assemble(kernel, convolutions, blocks, padding)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is laid out like a network that is known, but: {error}") from error
    raise UserError(
        f"{path} holds no network that is known: {', '.join(list(arrays)[:6])} ...; accepted are VGG-16 and VGG-19 of "
        "torchvision (.pth), Keras or Caffe (.h5, .npz), the normalised and the distilled VGG-19 (.pth), and "
        ".safetensors that ganstyle wrote"
    )


def write(path: Path | str, network: VGG, params: Params, dtype: type = np.float32) -> None:
    """Writes .safetensors with the architecture in its metadata."""
    from safetensors.numpy import save_file

    arrays = {f"{layer}/{name}": np.asarray(x, dtype) for layer, of in params.items() for name, x in of.items()}
    architecture = {name: getattr(network, name) for name in ("channels", "padding", "first_padding", "pooling")}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, {"architecture": json.dumps(architecture)})


def _read_arrays(path: Path) -> tuple[Mapping[str, np.ndarray], dict[str, str]]:
    """All arrays of a file by name, and what else it says."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "numpy") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file), {}
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the weights in {path}: {reason}") from error
    return torch_files.find_state_dict(torch_files.read_state_dict(path)), {}


def _read_own(arrays: Mapping[str, np.ndarray], architecture: dict) -> tuple[VGG, Params]:
    channels = tuple(map(tuple, architecture.pop("channels")))
    params: Params = {}
    for name, array in arrays.items():
        layer, _, kind = name.partition("/")
        params.setdefault(layer, {})[kind] = jnp.asarray(array, jnp.float32)
    network = VGG(channels, **architecture)
    expected = jax.eval_shape(network.init, jax.random.key(0))
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, expected):
        raise ValueError("its weights do not have the shapes of its architecture")
    return network, params


# Each layout: (affine map of the colours, [(kernel HWIO, bias)], convolutions in each block, padding), or None.


def _torchvision(arrays: Mapping[str, np.ndarray]):
    names = sorted((k for k in arrays if re.fullmatch(r"features\.\d+\.weight", k)), key=lambda k: int(k.split(".")[1]))
    if len(names) not in BLOCKS:
        return None
    kernel = np.diag(0.5 / IMAGENET_STD), (0.5 - IMAGENET_MEAN) / IMAGENET_STD
    return kernel, [_from_torch(arrays, name) for name in names], BLOCKS[len(names)], "zeros"


def _keras(arrays: Mapping[str, np.ndarray]):
    pattern = r"(?:.*/)?block(\d)_conv(\d)(?:_W(?:_1)?:0|_kernel|/kernel:0)"
    found = sorted((int(m[1]), int(m[2]), name) for name in arrays if (m := re.fullmatch(pattern, name)))
    if not found:
        return None
    bias = [re.sub(r"_W(?=(_1)?:0$)", "_b", name).replace("kernel", "bias") for *_, name in found]
    convolutions = [(arrays[name], arrays[b]) for (*_, name), b in zip(found, bias, strict=True)]
    blocks = tuple(sum(block == i for block, *_ in found) for i in range(1, found[-1][0] + 1))
    return (127.5 * np.eye(3)[::-1], 127.5 - CAFFE_MEAN), convolutions, blocks, "zeros"


def _distilled(arrays: Mapping[str, np.ndarray]):
    found = sorted((m[1], m[2], name) for name in arrays if (m := re.fullmatch(r"conv(\d)(\d)\.weight", name)))
    if not found or "conv0.weight" not in arrays:
        return None
    blocks = tuple(sum(block == str(i) for block, *_ in found) for i in range(1, int(found[-1][0]) + 1))
    return _unit(arrays, "conv0.weight"), [_from_torch(arrays, name) for *_, name in found], blocks, "reflect"


def _normalised(arrays: Mapping[str, np.ndarray]):
    """A sequence of convolutions, the first 1x1, with numbers for names: "conv1.weight" or "0.weight"."""
    found = sorted((int(m[1]), name) for name in arrays if (m := re.fullmatch(r"(?:conv)?(\d+)\.weight", name)))
    if not found or arrays[found[0][1]].shape != (3, 3, 1, 1):
        return None
    convolutions = [_from_torch(arrays, name) for _, name in found[1:]]
    blocks, left = [], len(convolutions)
    for size in BLOCKS[16]:
        blocks.append(min(size, left))
        left -= blocks[-1]
    return _unit(arrays, found[0][1]), convolutions, tuple(b for b in blocks if b), "reflect"


def _from_torch(arrays: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    return arrays[name].transpose(2, 3, 1, 0), arrays[name.replace("weight", "bias")]


def _unit(arrays: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """A 1x1 convolution of RGB in [0, 1], as a map of RGB in [-1, 1]."""
    kernel, bias = arrays[name][:, :, 0, 0].T, arrays[name.replace("weight", "bias")]
    return kernel / 2, bias + kernel.sum(0) / 2


def _assemble(colours, convolutions, blocks, padding) -> tuple[VGG, Params]:
    params = {"input": {"kernel": colours[0], "bias": colours[1]}}
    before, channels, remaining = 3, [], iter(convolutions)
    for i, size in enumerate(blocks, start=1):
        for j in range(1, size + 1):
            kernel, bias = next(remaining)
            if kernel.shape[:3] != (3, 3, before) or bias.shape != kernel.shape[3:]:
                raise ValueError(f"conv{i}_{j} has the shape {kernel.shape}, which does not follow {before} channels")
            params[f"conv{i}_{j}"] = {"kernel": kernel, "bias": bias}
            before = kernel.shape[3]
        channels.append(tuple(params[f"conv{i}_{j}"]["bias"].shape[0] for j in range(1, size + 1)))
    network = VGG(tuple(channels), padding=padding)
    return network, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
