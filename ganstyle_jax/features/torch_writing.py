"""State dicts written for PyTorch, without PyTorch."""

import collections
import dataclasses
import io
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ganstyle_jax.features.torch_pickle import STORAGE_DTYPES
from ganstyle_jax.io.files import UserError, atomic_path

_STORAGE_NAMES = {dtype: name for name, dtype in STORAGE_DTYPES.items()}
_PythonPickler: Any = pickle._Pickler  # Any, since its methods are not in the type stubs


def write_weights(path: Path, state: Mapping[str, Any]) -> None:
    """Writes arrays by the file's ending: .safetensors as that, all else as `write_state_dict`."""
    if path.suffix != ".safetensors":
        write_state_dict(path, state)
        return
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        save_file({name: np.array(value, order="C") for name, value in state.items()}, temporary)


def write_state_dict(path: Path | str, state: Mapping[str, Any]) -> None:
    """Writes arrays (numpy or jax) so that `torch.load(path, weights_only=True)` reads an OrderedDict of tensors.

    The layout is PyTorch's zip archive (1.6 and later). The same arrays give the same bytes. Arrays that share memory
    are written apart. Raises UserError for a key that is not a string and a dtype that PyTorch's storages lack.
    """
    tensors = collections.OrderedDict()
    arrays = []
    for name, value in state.items():
        array = np.asarray(value)
        dtype = array.dtype.newbyteorder("=")
        if type(name) is not str or dtype not in _STORAGE_NAMES:
            accepted = ", ".join(str(dtype) for dtype in _STORAGE_NAMES)
            raise UserError(
                f"cannot save {name!r} of dtype {dtype} for PyTorch; strings are accepted as names, and {accepted}"
            )
        tensors[name] = _Tensor(str(len(arrays)), _STORAGE_NAMES[dtype], array.shape)
        arrays.append(array.astype(dtype.newbyteorder("<"), copy=False))
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(tensors)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:

        def write(name: str, content: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(f"archive/{name}", date_time=(1980, 1, 1, 0, 0, 0)), content)

        write("data.pkl", pickled.getvalue())
        write("byteorder", b"little")
        for number, array in enumerate(arrays):
            write(f"data/{number}", array.tobytes())
        write("version", b"3\n")


@dataclasses.dataclass(frozen=True)
class _Tensor:
    key: str
    storage: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _StorageReference:
    tensor: _Tensor


@dataclasses.dataclass(frozen=True)
class _TorchName:
    module: str
    name: str


_REBUILD = _TorchName("torch._utils", "_rebuild_tensor_v2")
_STORAGE_TYPES = {name: _TorchName("torch", name) for name in STORAGE_DTYPES}


class _Pickler(_PythonPickler):
    """Writes the names of PyTorch's functions without importing them, as only the pickler in Python lets one do."""

    dispatch: ClassVar = dict(_PythonPickler.dispatch)

    def persistent_id(self, obj: Any) -> tuple | None:
        if not isinstance(obj, _StorageReference):
            return None
        tensor = obj.tensor
        return ("storage", _STORAGE_TYPES[tensor.storage], tensor.key, "cpu", math.prod(tensor.shape))

    def save_torch_name(self, obj: _TorchName) -> None:
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        self.memoize(obj)

    def save_tensor(self, obj: _Tensor) -> None:
        strides = tuple(math.prod(obj.shape[axis + 1 :]) for axis in range(len(obj.shape)))
        self.save(_REBUILD)
        no_gradient, no_hooks = False, collections.OrderedDict()
        self.save((_StorageReference(obj), 0, obj.shape, strides, no_gradient, no_hooks))
        self.write(pickle.REDUCE)
        self.memoize(obj)

    dispatch[_TorchName] = save_torch_name
    dispatch[_Tensor] = save_tensor
