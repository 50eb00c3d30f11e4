"""Named arrays out of every kind of file in which weights are given out.

`.pth` of PyTorch, `.safetensors`, the index of a model cut into several of these, Keras' `.h5` and `.npz`. The first
bytes tell which it is, never the file's name. Nothing that a file contains is executed, and what it promises is looked
at before it is read: a file takes no more than a few times its own size.
"""

import dataclasses
import json
import math
import os.path
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax.features import torch_files
from ganstyle_jax.features.state_dicts import StateDict, find_state_dicts, nothing_in, plain_names
from ganstyle_jax.features.zip_files import open_archive
from ganstyle_jax.io.files import UserError, first_line

SLACK = 128 << 20  # bytes that compressed arrays may have beyond twice the size of their file
INDEX_SIZE = 16 << 20  # bytes
NUMBERS = "fiu"  # kinds of dtype; text and objects beside the weights are passed over


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds."""

    dicts: dict[str, StateDict]  # by where they are in a checkpoint, {"netG": ..., "netD": ...}; alone, by ""
    metadata: Mapping[str, str]  # what a .safetensors file says of itself


class _FileError(Exception):
    """Why a file is not read; completed to a sentence by the path before it."""


def read(path: Path | str) -> Contents:
    """Everything in a file that may be weights, at least one array. UserError where there is nothing, and why."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size, head = file.seek(0, 2), (file.seek(0), file.read(16))[1]
    except OSError as error:
        raise UserError(f"cannot read the weights in {path}: {error.strerror}") from error
    try:
        return _read(path, size, head)
    except _FileError as refusal:
        raise UserError(f"{path} {str(refusal)[:500]}") from None
    except MemoryError as error:
        raise UserError(f"{path} has {size:,} bytes, for which this machine has too little memory") from error


def _read(path: Path, size: int, head: bytes) -> Contents:
    metadata: Mapping[str, str] = {}
    if path.name.endswith(".index.json") or re.match(rb'\{\s*"', head):
        dicts = {"": _read_shards(path, size)}
    elif head.startswith(b"\x89HDF"):
        dicts = {"": _guarded(_read_hdf5, path, size)}
    elif head.startswith(b"PK") and _guarded(_is_npz, path, size):
        dicts = {"": _guarded(_read_npz, path, size)}
    elif head[:1] != b"\x80" and (head[8:9] == b"{" or (path.suffix == ".safetensors" and head)):
        _refuse_one_shard(path)
        arrays, metadata = _read_safetensors(path)
        dicts = {"": plain_names(arrays)}
    else:
        tree = torch_files.read_state_dict(path)
        dicts = find_state_dicts(tree)
        if not dicts:
            raise UserError(f"{path}: {nothing_in(tree)}")
        _refuse_shared(dicts, size)
    if not any(dicts.values()):
        raise _FileError("holds no arrays of numbers")
    return Contents(dicts, metadata)


def _refuse_shared(dicts: Mapping[str, StateDict], size: int) -> None:
    """Tensors that share memory take it many times over when they are converted."""
    total = sum(array.nbytes for arrays in dicts.values() for array in arrays.values())
    if total > 4 * size + SLACK:
        raise _FileError(f"has tensors of {total:,} bytes that share memory, more than four times its size")


def _guarded(reader: Any, path: Path, size: int) -> Any:
    """What a reader of a format gives; every format has errors of its own for a file that is cut off or damaged."""
    try:
        return reader(path, size)
    except (_FileError, MemoryError):
        raise
    except Exception as error:
        raise _FileError(f"is cut off or damaged ({first_line(error)}); fetch it again") from error


def _read_safetensors(path: Path) -> tuple[StateDict, Mapping[str, str]]:
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except MemoryError:
        raise
    except Exception as error:  # as above; numpy has errors of its own for types that it lacks
        raise _FileError(
            f"is not a sound .safetensors file: it is cut off or damaged ({first_line(error)}); fetch it again"
        ) from error


def not_finite(array: np.ndarray, name: str) -> str | None:
    """Such as "its kernel holds 3 NaN" of values that float32 does not have; None where all are numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = array if array.dtype == np.float32 else array.astype(np.float32)
    if np.isfinite(values).all():
        return None
    nan = int(np.isnan(values).sum())
    infinite = int(np.isinf(values).sum())
    return f"{name} holds " + " and ".join(f"{n:,} {what}" for n, what in ((nan, "NaN"), (infinite, "infinite")) if n)


# ---------------------------------------------------------------------------------------------------------------------
# Models in several files


def _refuse_one_shard(path: Path) -> None:
    found = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})(\.\w+)", path.name)
    if found and int(found[2]) > 1:
        index = path.with_name(f"{found[1]}{found[3]}.index.json")
        raise _FileError(f"is one of {int(found[2])} parts of a model; give {index}, with all parts beside it")


def _read_shards(path: Path, size: int) -> StateDict:
    """What the index "model.safetensors.index.json" lists, from the files beside it."""
    if size > INDEX_SIZE:
        raise _FileError(f"has {size:,} bytes, where the index of a model in parts has at most {INDEX_SIZE:,}")
    try:
        places = parse_json(path.read_bytes(), "the list of its parts").get("weight_map")
    except ValueError as error:
        raise _FileError(f"is no index of a model in parts: {error}") from None
    if not isinstance(places, dict) or not places or not all(isinstance(part, str) for part in places.values()):
        raise _FileError('is no index of a model in parts: it has no "weight_map" of names and files')
    arrays: StateDict = {}
    for part in dict.fromkeys(places.values()):
        file = path.with_name(part) if Path(part).name == part and part not in ("", ".", "..") else None
        if file is None:
            raise _FileError(f"names the part {part[:100]!r}; a file's name without a folder is accepted")
        if not os.path.isfile(file):  # False for a name that no file can have, where Path's raises
            raise _FileError(f"lists the part {part[:100]}, which is not beside it; fetch that too")
        held = _read_part(file)
        wanted = [name for name, place in places.items() if place == part]
        if missing := [name for name in wanted if name not in held]:
            raise _FileError(f"says that {part} holds {missing[0][:100]}, which it does not; fetch both again")
        arrays |= {name: held[name] for name in wanted}
    return plain_names(arrays)


def _read_part(file: Path) -> StateDict:
    """One file of several, by the names that it has itself."""
    with open(file, "rb") as opened:
        is_torch = opened.read(2) in (b"PK", b"\x80\x02")
    if not is_torch:
        return _read_safetensors(file)[0]
    tree = torch_files.read_state_dict(file)
    arrays = {name: array for name, array in tree.items() if isinstance(array, np.ndarray)}
    _refuse_shared({"": arrays}, file.stat().st_size)
    return arrays


def parse_json(text: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object of a file that may be anything. ValueError beginning with `what` that is not one."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {first_line(error)}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {json.dumps(value)[:60]}, where a JSON object was expected")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# HDF5


def _read_hdf5(path: Path, size: int) -> StateDict:
    import h5py

    arrays: StateDict = {}
    left = 2 * size + SLACK

    def visit(name: str, item: Any) -> None:
        nonlocal left
        if not isinstance(item, h5py.Dataset) or item.shape is None or item.dtype.kind not in NUMBERS:
            return
        left -= math.prod(item.shape) * item.dtype.itemsize
        if left < 0:
            raise _FileError(f"has a dataset {name} of shape {item.shape}, far larger than the file")
        _check_layout(name, item, size)
        arrays[name] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return arrays


def _check_layout(name: str, item: Any, size: int) -> None:
    """Raises for a dataset that lies in other files, or whose parts are, or unpack to, more than they should be."""
    if item.external or item.is_virtual:
        raise _FileError(f"has a dataset {name} that lies in another file; save it whole")
    if item.chunks is None:  # nothing is packed
        return
    part = math.prod(item.chunks) * item.dtype.itemsize
    if part > SLACK:
        raise _FileError(f"has a dataset {name} in parts of {part:,} bytes, far larger than the file")
    settings = item.id.get_create_plist()
    filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
    if filters == []:
        return
    import h5py

    if filters not in ([h5py.h5z.FILTER_DEFLATE], [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE]):
        raise _FileError(f"has a dataset {name} that is not packed by gzip; save it without compression")
    for i in range(item.id.get_num_chunks()):
        # HDF5 unpacks as much as there is, whatever a part should have, so that is counted before.
        chunk = item.id.get_chunk_info(i)
        if chunk.size > size:
            raise _FileError(f"has a dataset {name} with a part that is larger than the file; fetch it again")
        mask, content = item.id.read_direct_chunk(chunk.chunk_offset)
        unpacked = zlib.decompressobj().decompress(content, part + 1) if not mask else content
        if len(unpacked) > part:
            raise _FileError(f"has a dataset {name} that unpacks to more than its parts hold; fetch it again")


# ---------------------------------------------------------------------------------------------------------------------
# NumPy


def _is_npz(path: Path, size: int) -> bool:
    with open_archive(path) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def _read_npz(path: Path, size: int) -> StateDict:
    arrays: StateDict = {}
    left = 2 * size + SLACK
    with open_archive(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                continue
            name = info.filename.removesuffix(".npy")
            left -= info.file_size
            if left < 0:
                raise _FileError(f"has arrays that unpack to far more than its {size:,} bytes")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _FileError(f"has an array {name} that is packed in another way than NumPy's; save it by np.savez")
            with archive.open(info) as file:
                array = _read_npy(file, name, info.file_size)
            if array is not None:
                arrays[name] = array
    return arrays


def _read_npy(file: Any, name: str, size: int) -> np.ndarray | None:
    """An array of numbers, exactly as large as it says; None for one of anything else, such as text."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in readers:
        return None  # names of fields in other alphabets, and no weights
    shape, fortran, dtype = readers[version](file)
    if dtype.kind not in NUMBERS:
        return None
    expected = math.prod(shape) * dtype.itemsize
    if file.tell() + expected != size or min(shape, default=0) < 0:
        raise _FileError(f"has an array {name} of shape {shape} and dtype {dtype} in {size:,} bytes; fetch it again")
    values = np.frombuffer(file.read(expected), dtype)
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)
