"""PyTorch state dicts, read and written without PyTorch and without executing what a file contains.

A `.pth` file is a pickle, and an ordinary unpickler runs whatever code the file names. This one has two short lists
instead: the opcodes of `_OPCODES`, none of which makes an object of a class or sets an attribute, and the names of
`_GLOBALS`, each standing for a function of this module; nothing is imported for a file. PyTorch's `weights_only=True`
follows the same idea.

Both layouts are read: the zip archive of PyTorch 1.6 and later (`data.pkl`, `byteorder` and a member `data/N` for each
storage) and the older sequence of five pickles followed by the storages (see `torch/serialization.py`).
"""

import collections
import dataclasses
import io
import math
import mmap
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from ganstyle_jax.files import UserError, atomic_path

_STORAGE_DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_STORAGE_NAMES = {dtype: name for name, dtype in _STORAGE_DTYPES.items()}
_PythonPickler: Any = pickle._Pickler  # Any, since their methods are not in the type stubs
_PythonUnpickler: Any = pickle._Unpickler
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
            raise _FileError(_describe_foreign(head))
        if type(tree) is not dict:
            raise _FileError(f"holds a {type(tree).__name__}, not a dict; save model.state_dict() with torch.save")
        _check_plain(tree)
    except _FileError as refusal:
        raise UserError(f"{path} {refusal}") from None
    except MemoryError:
        raise  # no file makes this read more than its own size, so it is the machine that is too small
    # A damaged pickle can fail in as many ways as there are opcodes, and all of them mean the same to the reader.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is cut off or damaged ({reason}); download or save it again") from error
    return tree


def find_state_dict(tree: Mapping[Any, Any], key: str | None = None) -> dict[str, np.ndarray]:
    """The one dict of arrays in `tree`, whatever it is wrapped in: {"state_dict": ...}, {"model": ...}, {"netG": ...}.

    The outermost one is taken, so an optimizer's moments do not compete with the weights. `key` names one where there
    are several, as in {"netG": ..., "netD": ...}; keys of nested dicts are joined by "/". The prefix "module.", which
    DataParallel puts before every name, is removed. Raises UserError for none, and for several without a `key`.
    """
    level: list[tuple[str, Mapping[Any, Any]]] = [("", tree)]
    found: dict[str, Mapping[Any, Any]] = {}
    for _ in range(5):  # wrappings are shallow; the bound also ends the search in a dict that contains itself
        here = {name: item for name, item in level if _is_state_dict(item)}
        found.update({name: item for name, item in here.items() if name not in found})
        if (key is None and found) or key in found:
            break
        if sum(len(item) for _, item in level) > 100_000:  # a file of one dict, referred to many times over
            break
        level = [
            (f"{name}/{inner}".lstrip("/"), value)
            for name, item in level
            for inner, value in item.items()
            if isinstance(value, Mapping)
        ]
    listed = ", ".join(repr(name) for name in sorted(found)[:20])
    if key is not None:
        if key not in found:
            raise UserError(f"the file has no state dict {key!r}; it has: {listed or 'none at all'}")
        state = found[key]
    elif len(found) == 1:
        state = next(iter(found.values()))
    elif found:
        raise UserError(f"the file holds several state dicts, name one of them: {listed}")
    else:
        keys = ", ".join(repr(inner)[:60] for inner in list(tree)[:20]) or "nothing"
        raise UserError(f"no dict of tensors in the file, which holds: {keys}; save model.state_dict() with torch.save")
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name[len(prefix) :]: value for name, value in state.items()}


def _is_state_dict(item: Mapping[Any, Any]) -> bool:
    return bool(item) and all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in item.items())


class _FileError(Exception):
    """Why a file was not read; completed to a sentence by the path before it."""


@dataclasses.dataclass(frozen=True)
class _StorageType:
    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    data: np.ndarray  # (bytes,) uint8: the buffer that tensors are views of
    file_size: int  # bytes, which no tensor may exceed: one of stride 0 could claim any size


def _read_zip(path: Path, size: int) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        roots = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(roots) != 1:
            raise _FileError("is a zip archive, but not one that torch.save wrote: it has no data.pkl")
        root = roots[0]
        if f"{root}constants.pkl" in members:
            raise _FileError(
                "is a TorchScript program, not a state dict; load it with PyTorch and save its state_dict()"
            )
        remaining = size

        def read(name: str) -> bytes:
            nonlocal remaining
            info = members.get(root + name)
            if info is None:
                raise _FileError(f"lacks its part {name!r}; download or save it again")
            # torch.save never compresses. So, and with every byte counted, no archive unpacks to more than its size.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > remaining:
                raise _FileError(
                    f"has a part {name!r} that is compressed or larger than the file; write it with torch.save"
                )
            remaining -= info.file_size
            return archive.read(info)

        byteorder = read("byteorder") if f"{root}byteorder" in members else b"little"
        if byteorder not in (b"little", b"big"):
            raise _FileError(f"has the byte order {byteorder[:20]!r}; 'little' and 'big' are accepted")
        storages: dict[str, _Storage] = {}

        def load_storage(pid: tuple) -> _Storage:
            dtype, key, numel = _parse_storage_id(pid, fields=5)
            if key not in storages:
                content = read(f"data/{key}")
                if len(content) != numel * dtype.itemsize:
                    raise _FileError(
                        f"has {len(content)} bytes in storage {key!r} where it promises {numel} of {dtype}"
                    )
                storages[key] = _Storage(dtype, _native_bytes(content, dtype, byteorder.decode()), size)
            return _same_dtype(storages[key], dtype, key)

        return _Unpickler(io.BytesIO(read("data.pkl")), load_storage).load()


def _read_legacy(path: Path, size: int) -> Any:
    # A map, and not the file itself: read(n) of a map is bounded by what is there, whatever n a hostile file gives.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if _Unpickler(content, _no_storages).load() != _LEGACY_MAGIC:
            raise _FileError("is a pickle, but not one that torch.save wrote; nothing in it was executed")
        protocol = _Unpickler(content, _no_storages).load()
        if protocol != _LEGACY_PROTOCOL:
            raise _FileError(f"has the protocol version {str(protocol)[:20]}; {_LEGACY_PROTOCOL} is accepted")
        _Unpickler(content, _no_storages).load()  # sizes of C types where it was written, not used by storages
        storages: dict[str, _Storage] = {}
        remaining = size

        def load_storage(pid: tuple) -> _Storage:
            nonlocal remaining
            dtype, key, numel = _parse_storage_id(pid, fields=6)
            if key not in storages:
                remaining -= numel * dtype.itemsize
                if remaining < 0:
                    raise _FileError(
                        f"is cut off or damaged: it promises more than its {size} bytes; download it again"
                    )
                storages[key] = _Storage(dtype, np.zeros(numel * dtype.itemsize, np.uint8), size)  # filled below
            storage = _same_dtype(storages[key], dtype, key)
            if pid[5] is None:
                return storage
            _, start, length = pid[5]  # a part of a storage, as PyTorch before 0.4 could save
            if not (_is_count(start) and _is_count(length) and start + length <= numel):
                raise _FileError("has a part of a storage that reaches past its end; download or save it again")
            part = storage.data[start * dtype.itemsize : (start + length) * dtype.itemsize]
            return _Storage(dtype, part, size)

        tree = _Unpickler(content, load_storage).load()
        keys = _Unpickler(content, _no_storages).load()
        if type(keys) is not list or sorted(map(str, keys)) != sorted(storages):
            raise _FileError("is damaged: its list of storages is not the one that its tensors use; download it again")
        for key in keys:
            storage = storages[key]
            numel = int.from_bytes(content.read(8), "little")
            data = content.read(storage.data.size)
            if numel * storage.dtype.itemsize != storage.data.size or len(data) != storage.data.size:
                raise _FileError(f"is cut off or damaged in storage {key!r}; download or save it again")
            storage.data[:] = _native_bytes(data, storage.dtype, "little")  # legacy files are always little-endian
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


def _no_storages(pid: object) -> Any:
    raise _FileError("is damaged: it has a tensor where a header belongs; download or save it again")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _parse_storage_id(pid: Any, fields: int) -> tuple[np.dtype, str, int]:
    """dtype, key and number of elements from ("storage", type, key, device, elements[, view]); any device will do."""
    if type(pid) is tuple and pid[:1] == ("module",):
        raise _FileError(_WHOLE_MODEL)
    if type(pid) is not tuple or len(pid) != fields or type(pid[0]) is not str or pid[0] != "storage":
        raise _FileError("is damaged: it refers to something that is not a storage; nothing in it was executed")
    kind, key, numel = pid[1], pid[2], pid[4]
    if not isinstance(kind, _StorageType) or type(key) is not str or not _is_count(numel):
        raise _FileError("is damaged: a storage has no valid type, key and size; nothing in it was executed")
    return _STORAGE_DTYPES[kind.name], key, numel


def _same_dtype(storage: _Storage, dtype: np.dtype, key: str) -> _Storage:
    if storage.dtype != dtype:
        raise _FileError(f"reads storage {key!r} both as {storage.dtype} and as {dtype}; save it with torch.save again")
    return storage


def _native_bytes(content: bytes, dtype: np.dtype, byteorder: str) -> np.ndarray:
    """(bytes,) uint8 in this machine's byte order, writable."""
    data = np.frombuffer(content, np.uint8).copy()
    if dtype == np.bool_:
        return (data != 0).view(np.uint8)  # numpy's bool must be 0 or 1, a byte of a file may be anything
    if byteorder != _MACHINE_BYTEORDER and dtype.itemsize > 1:
        data = data.reshape(-1, dtype.itemsize)[:, ::-1].reshape(-1)
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
            raise _FileError(
                f"holds a {type(item).__name__.strip('_')} outside a tensor; save model.state_dict() instead"
            )
        if id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)  # pyright: ignore[reportArgumentType]


# The functions that a file's names stand for. Their arguments come from the file, so each checks what it uses.


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    if type(items) not in (list, tuple):
        raise _FileError("is damaged: an OrderedDict must be made from pairs; nothing in it was executed")
    made: dict[Any, Any] = {}
    for key, value in items:
        _set_item(made, key, value)
    return made


def _set_item(target: Any, key: Any, value: Any) -> None:
    if type(target) is not dict:
        raise _FileError("is damaged: it sets an item of something that is not a dict; nothing in it was executed")
    if not isinstance(key, str | int | float | None):  # hashing deeply nested tuples can overflow the C stack
        raise _FileError(f"has a dict with a key of type {type(key).__name__}; strings and numbers are accepted")
    target[key] = value


def _size(sizes: Any) -> tuple[int, ...]:
    if type(sizes) not in (list, tuple):
        raise _FileError("is damaged: a torch.Size must be a list of numbers; nothing in it was executed")
    return tuple(sizes)


def _device(*_: object) -> str:
    return "cpu"


def _encode(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise _FileError("is damaged: bytes must be latin1 text; nothing in it was executed")
    return text.encode("latin1")  # how pickle protocol 2 writes bytes


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    """A view of `storage`; offset and strides count elements. The bounds are checked here, and again by numpy."""
    if not isinstance(storage, _Storage):
        raise _FileError("is damaged: a tensor has no storage; nothing in it was executed")
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
        raise _FileError("is damaged: a tensor's size and stride must be tuples of one length")
    if not all(map(_is_count, (offset, *size, *stride))):
        raise _FileError("is damaged: a tensor's offset, size and stride must be whole numbers from 0 up")
    if len(rest) > 2 and rest[2]:
        raise _FileError("has a tensor with lazy negation or conjugation; save tensor.resolve_neg().resolve_conj()")
    itemsize = storage.dtype.itemsize
    numel, available = math.prod(size), len(storage.data) // itemsize
    if numel == 0:
        return np.empty(size, storage.dtype)
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= available:
        raise _FileError(
            f"has a tensor of size {size}, stride {stride} and offset {offset} that reaches past its storage of"
            f" {available} elements; download or save it again"
        )
    if numel * itemsize > storage.file_size:
        raise _FileError(f"has a tensor expanded to {size}, larger than the file; save tensor.contiguous()")
    strides = tuple(step * itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True))
    return np.ndarray(size, storage.dtype, buffer=storage.data.data, offset=offset * itemsize, strides=strides)


def _rebuild_parameter(data: Any, *_: object) -> Any:
    return data


def _rebuild_from_type(function: Any, _type: object, args: Any, _state: object) -> Any:
    if not any(function is known for known in (_rebuild_tensor, _rebuild_parameter)):
        raise _FileError("has a tensor that is made in an unknown way; nothing in it was executed")
    return function(*args)


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("_codecs", "encode"): _encode,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch", "Tensor"): None,
    ("torch.nn.parameter", "Parameter"): None,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    **{(module, name): _StorageType(name) for module in ("torch", "torch.cuda") for name in _STORAGE_DTYPES},
    **{("torch", str(dtype)): dtype for dtype in _STORAGE_DTYPES.values()},
}
_WHOLE_MODEL = (
    "holds a whole model, not a state dict, and was not executed; load it with PyTorch where you trust it and save"
    " model.state_dict() instead"
)
# Left out, as no state dict needs them: INST, OBJ, NEWOBJ and NEWOBJ_EX (objects of a class), EXT1 to EXT4 (names from
# a process-wide table, past find_class), PERSID (references as text), BYTEARRAY8 and buffers, sets, protocol 0's text.
_OPCODES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT
    BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BINUNICODE SHORT_BINUNICODE BINUNICODE8
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS
    GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE
""".split()  # noqa: SIM905  a list of forty strings reads worse


class _Unpickler(_PythonUnpickler):
    """A machine that knows `_OPCODES` and `_GLOBALS` only.

    The one in Python, not the faster one in C: its opcodes can be left out, and its memo is a dict, where the C one
    allocates an array as long as the largest index that a file names.
    """

    dispatch: ClassVar = {getattr(pickle, op)[0]: _PythonUnpickler.dispatch[getattr(pickle, op)[0]] for op in _OPCODES}

    def __init__(self, file: Any, load_storage: Callable[[Any], _Storage]):
        super().__init__(file, encoding="utf-8")  # of Python 2's strings; torch.load has the same default
        self.load_storage = load_storage

    def persistent_load(self, pid: Any) -> _Storage:
        return self.load_storage(pid)

    def find_class(self, module: str, name: str) -> Any:
        if type(module) is str and type(name) is str and (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        if str(module).startswith(("torch.nn.modules.", "torchvision.models.")):
            raise _FileError(_WHOLE_MODEL)
        wanted = repr(f"{module}.{name}"[:100])
        raise _FileError(
            f"asks for the Python object {wanted}, which a state dict does not need, and was not executed; if it is a"
            " whole model or a training checkpoint, load it with PyTorch where you trust it and save model.state_dict()"
        )

    def load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if not any(function is known for known in _GLOBALS.values()) or type(args) is not tuple:
            raise _FileError("is damaged: it calls something that is not a function; nothing in it was executed")
        self.stack.append(function(*args))

    def load_build(self) -> None:
        self.stack.pop()  # attributes, such as `_metadata`: dropped, none is ever set

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set_item(self.stack[-1], key, value)

    def load_setitems(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            _set_item(self.stack[-1], key, value)

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems


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
_STORAGE_TYPES = {name: _TorchName("torch", name) for name in _STORAGE_DTYPES}


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
