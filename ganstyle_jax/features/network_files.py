"""Files of a network and its weights: read in any layout, written in our own."""

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from ganstyle_jax.features import array_files, layouts, networks
from ganstyle_jax.features.layouts import Arrays, Convolution, Found
from ganstyle_jax.features.networks import Network
from ganstyle_jax.features.vgg import Params
from ganstyle_jax.io.files import UserError, atomic_path, first_line


def read(path: Path | str) -> tuple[Network, Params]:
    """The network that a file holds and its weights, float32. UserError where there is none."""
    path = Path(path)
    contents = array_files.read(path)
    found: dict[str, tuple[Network, Mapping[str, Convolution]]] = {}
    for name, arrays in contents.dicts.items():
        try:
            network = _of_arrays(arrays, contents.metadata)
            if network is not None:
                layouts.check(*network)
                found[name] = network
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is laid out like a network that is known, but {first_line(error)}") from error
    if len(found) > 1:
        raise UserError(f"{path} holds several networks, {', '.join(found)}; save one of them by itself")
    if not found:
        held = [name for arrays in contents.dicts.values() for name in arrays]
        raise UserError(
            f"{path} holds no network that is known; it has {', '.join(name[:60] for name in held[:4])} ...; accepted "
            f"are {layouts.KNOWN}"
        )
    ((network, params),) = found.values()
    # Not `jnp.asarray`, which compiles a program for each shape: in JAX 0.10 a third of a second for a VGG.
    return network, {
        layer: {k: jax.device_put(np.asarray(x, np.float32)) for k, x in of.items()} for layer, of in params.items()
    }


def write(path: Path | str, network: Network, params: Params, dtype: type = np.float32) -> None:
    """Writes .safetensors with the architecture in its metadata."""
    from safetensors.numpy import save_file

    arrays = {f"{layer}/{k}": np.ascontiguousarray(x, dtype) for layer, of in params.items() for k, x in of.items()}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, {"architecture": json.dumps(networks.architecture_of(network))})


def _of_arrays(arrays: Arrays, metadata: Mapping[str, str]) -> Found:
    if "architecture" not in metadata:
        return layouts.recognise(arrays)
    architecture = array_files.parse_json(metadata["architecture"], "its architecture")
    params: dict[str, Convolution] = {}
    for name, array in arrays.items():  # "conv1_1/kernel"
        layer, _, part = name.partition("/")
        params.setdefault(layer, {})[part] = array
    return networks.from_architecture(architecture), params
