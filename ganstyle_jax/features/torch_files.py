"""PyTorch's files read without PyTorch and without executing what they contain: see torch_pickle.py.

Both layouts are read: the zip archive of PyTorch 1.6 and later (`data.pkl`, `byteorder` and a member `data/N` for each
storage) and the older sequence of five pickles followed by the storages (see `torch/serialization.py`). What is written
has the first one, see torch_writing.py.
"""

import io
import mmap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax.features.state_dicts import find_state_dict as find_state_dict
from ganstyle_jax.features.torch_pickle import (
    FileError,
    Storage,
    Unpickler,
    is_count,
    no_storages,
    parse_storage_id,
    same_dtype,
)
from ganstyle_jax.features.torch_writing import write_state_dict as write_state_dict
from ganstyle_jax.features.torch_writing import write_weights as write_weights
from ganstyle_jax.features.zip_files import open_archive
from ganstyle_jax.io.files import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_PLAIN = (str, bytes, int, float, type(None), np.dtype, np.ndarray)


def read_state_dict(path: Path | str) -> dict[Any, Any]:
    """What `torch.save` wrote to `path`: nested dicts, lists, tuples, numbers and strings, tensors as numpy arrays.

    Arrays keep the tensor's dtype (bfloat16 is `ml_dtypes.bfloat16`), shape and strides, and are writable; tensors that
    shared a storage share memory. CUDA tensors are read like any other; `requires_grad`, hooks and attributes are
    dropped. `find_state_dict` picks the weights out of the result.

    Raises UserError for a file that is missing, cut off or not PyTorch's, or that asks for a Python object which no
    state dict needs (a whole model, for example). Nothing that the file contains is executed.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size, head = file.seek(0, 2), (file.seek(0), file.read(512))[1]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the path of a PyTorch file (.pth, .pt)") from error
    try:
        if head[:4] == b"PK\x03\x04":
            tree = _read_zip(path, size)
        elif head[:1] == b"\x80":
            tree = _read_legacy(path, size)
        else:
            raise FileError(_describe_foreign(head))
        if type(tree) is not dict:
            raise FileError(f"holds a {type(tree).__name__}, not a dict; save model.state_dict() with torch.save")
        _check_plain(tree)
    except FileError as refusal:
        raise UserError(f"{path} {str(refusal)[:500]}") from None  # names in the file may be of any length
    except MemoryError as error:  # no file makes this take much more than its own size
        raise UserError(f"{path} has {size:,} bytes, for which this machine has too little memory") from error
    # A damaged pickle can fail in as many ways as there are opcodes, and all of them mean the same to the reader.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is cut off or damaged ({reason}); download or save it again") from error
    return tree


def _read_zip(path: Path, size: int) -> Any:
    with open_archive(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        roots = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(roots) != 1:
            raise FileError("is a zip archive, but not one that torch.save wrote: it has no data.pkl")
        root = roots[0]
        if f"{root}constants.pkl" in members:
            raise FileError(
                "is a TorchScript program, not a state dict; load it with PyTorch and save its state_dict()"
            )
        remaining = size

        def read(name: str) -> bytes:
            nonlocal remaining
            info = members.get(root + name)
            if info is None:
                raise FileError(f"lacks its part {name!r}; download or save it again")
            # torch.save never compresses. So, and with every byte counted, no archive unpacks to more than its size.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > remaining:
                raise FileError(
                    f"has a part {name!r} that is compressed or larger than the file; write it with torch.save"
                )
            remaining -= info.file_size
            return archive.read(info)

        byteorder = read("byteorder") if f"{root}byteorder" in members else b"little"
        if byteorder not in (b"little", b"big"):
            raise FileError(f"has the byte order {byteorder[:20]!r}; 'little' and 'big' are accepted")
        storages: dict[str, Storage] = {}

        def load_storage(pid: tuple) -> Storage:
            dtype, key, numel = parse_storage_id(pid, fields=5)
            if key not in storages:
                content = read(f"data/{key}")
                if len(content) != numel * dtype.itemsize:
                    raise FileError(f"has {len(content)} bytes in storage {key!r} where it promises {numel} of {dtype}")
                data = np.frombuffer(content, np.uint8).copy()  # writable
                storages[key] = Storage(dtype, _make_native(data, dtype, byteorder.decode()), size)
            return same_dtype(storages[key], dtype, key)

        return Unpickler(io.BytesIO(read("data.pkl")), load_storage).load()


def _read_legacy(path: Path, size: int) -> Any:
    # A map, and not the file itself: read(n) of a map is bounded by what is there, whatever n a hostile file gives.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return read_legacy(content, size)


def read_legacy(content: Any, size: int) -> Any:
    """What is in the older layout, from a map or bytes of `size` in memory that are read as a file. FileError."""
    if Unpickler(content, no_storages).load() != _LEGACY_MAGIC:
        raise FileError("is a pickle, but not one that torch.save wrote; nothing in it was executed")
    protocol = Unpickler(content, no_storages).load()
    if protocol != _LEGACY_PROTOCOL:
        raise FileError(f"has the protocol version {str(protocol)[:20]}; {_LEGACY_PROTOCOL} is accepted")
    Unpickler(content, no_storages).load()  # sizes of C types where it was written, not used by storages
    storages: dict[str, Storage] = {}
    remaining = size

    def load_storage(pid: tuple) -> Storage:
        nonlocal remaining
        dtype, key, numel = parse_storage_id(pid, fields=6)
        if key not in storages:
            remaining -= numel * dtype.itemsize
            if remaining < 0:
                raise FileError(f"is cut off or damaged: it promises more than its {size} bytes; download it again")
            storages[key] = Storage(dtype, np.zeros(numel * dtype.itemsize, np.uint8), size)  # filled below
        storage = same_dtype(storages[key], dtype, key)
        if pid[5] is None:
            return storage
        _, start, length = pid[5]  # a part of a storage, as PyTorch before 0.4 could save
        if not (is_count(start) and is_count(length) and start + length <= numel):
            raise FileError("has a part of a storage that reaches past its end; download or save it again")
        part = storage.data[start * dtype.itemsize : (start + length) * dtype.itemsize]
        return Storage(dtype, part, size)

    tree = Unpickler(content, load_storage).load()
    keys = Unpickler(content, no_storages).load()
    if type(keys) is not list or sorted(map(str, keys)) != sorted(storages):
        raise FileError("is damaged: its list of storages is not the one that its tensors use; download it again")
    for key in keys:
        storage = storages[key]
        numel = int.from_bytes(content.read(8), "little")
        if numel * storage.dtype.itemsize != storage.data.size or content.tell() + storage.data.size > size:
            raise FileError(f"is cut off or damaged in storage {key!r}; download or save it again")
        storage.data[:] = np.frombuffer(content.read(storage.data.size), np.uint8)
        _make_native(storage.data, storage.dtype, "little")  # legacy files are always little-endian
    return tree


def _describe_foreign(head: bytes) -> str:
    if not head:
        return "is empty; download or save it again"
    if head[257:262] == b"ustar":
        return "has the tar layout of PyTorch before 0.1.10; load it with PyTorch and save its state_dict() again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights; fetch the file itself with `git lfs pull`"
    if head.lstrip()[:1] == b"<":
        return "is a web page, not PyTorch weights; the download probably failed, fetch the file itself"
    if not head.translate(None, bytes(range(32, 127)) + b"\t\r\n"):
        return f"is text, not PyTorch weights, and begins {head[:40].decode()!r}; give a file that torch.save wrote"
    return f"is not a PyTorch file, its first bytes are {head[:8]!r}; give a file that torch.save wrote"


def _make_native(data: np.ndarray, dtype: np.dtype, byteorder: str) -> np.ndarray:
    """The same (bytes,) uint8, changed to this machine's byte order."""
    if dtype == np.bool_:
        np.minimum(data, 1, out=data)  # numpy's bool must be 0 or 1, a byte of a file may be anything
    elif byteorder != _MACHINE_BYTEORDER and dtype.itemsize > 1:
        data.view(f"u{dtype.itemsize}").byteswap(inplace=True)
    return data


_MACHINE_BYTEORDER = "little" if np.dtype("<i4").isnative else "big"


def _check_plain(tree: object) -> None:
    """Raises when something other than data is left, such as a storage that no tensor was made from."""
    waiting, seen = [tree], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, _PLAIN):
            continue
        if type(item) not in (dict, list, tuple):
            raise FileError(
                f"holds a {type(item).__name__.strip('_')} outside a tensor; save model.state_dict() instead"
            )
        if id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)  # pyright: ignore[reportArgumentType]
