"""What PyTorch pickles, unpickled without executing what a file contains, and within a budget of memory.

An ordinary unpickler runs whatever code a file names. This one has two short lists instead: the opcodes of `_OPCODES`,
none of which makes an object of a class or sets an attribute, and the names of `_GLOBALS`, each standing for a function
of this module; nothing is imported for a file. PyTorch's `weights_only=True` follows the same idea.

Of few bytes much can be made, since what is remembered can be used any number of times. So every opcode is charged, as
are the bytes that it reads and what a function makes of its arguments, before it happens.
"""

import dataclasses
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

BUDGET = 192 << 20  # bytes for all that is not a storage: a million numbers, or ten thousand tensors several times over
OPCODE_COST = 128  # bytes that the dearest of them takes, with its place in the memo
ITEM_COST = 128  # bytes for each item that a function is given
BYTE_COST = 5  # bytes for a byte that is read: itself, and a character of up to four
LARGEST = 2**128  # of sizes and strides, which are multiplied; what is too large for the file is found later

STORAGE_DTYPES = {
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


class FileError(Exception):
    """Why a file was not read; completed to a sentence by the path before it."""


@dataclasses.dataclass(frozen=True)
class StorageType:
    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    dtype: np.dtype
    data: np.ndarray  # (bytes,) uint8: the buffer that tensors are views of
    file_size: int  # bytes, which no tensor may exceed: one of stride 0 could claim any size


def no_storages(pid: object) -> Any:
    """For pickles that have no tensors."""
    raise FileError("is damaged: it has a tensor where a header belongs; download or save it again")


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def parse_storage_id(pid: Any, fields: int) -> tuple[np.dtype, str, int]:
    """dtype, key and number of elements from ("storage", type, key, device, elements[, view]); any device will do."""
    if type(pid) is tuple and pid[:1] == ("module",):
        raise FileError(_WHOLE_MODEL)
    if type(pid) is not tuple or len(pid) != fields or type(pid[0]) is not str or pid[0] != "storage":
        raise FileError("is damaged: it refers to something that is not a storage; nothing in it was executed")
    kind, key, numel = pid[1], pid[2], pid[4]
    if not isinstance(kind, StorageType) or type(key) is not str or not is_count(numel):
        raise FileError("is damaged: a storage has no valid type, key and size; nothing in it was executed")
    return STORAGE_DTYPES[kind.name], key, numel


def same_dtype(storage: Storage, dtype: np.dtype, key: str) -> Storage:
    if storage.dtype != dtype:
        raise FileError(f"reads storage {key!r} both as {storage.dtype} and as {dtype}; save it with torch.save again")
    return storage


# The functions that a file's names stand for. Their arguments come from the file, so each checks what it uses.


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    if type(items) not in (list, tuple):
        raise FileError("is damaged: an OrderedDict must be made from pairs; nothing in it was executed")
    made: dict[Any, Any] = {}
    for key, value in items:
        _set_item(made, key, value)
    return made


def _set_item(target: Any, key: Any, value: Any) -> None:
    if type(target) is not dict:
        raise FileError("is damaged: it sets an item of something that is not a dict; nothing in it was executed")
    if not isinstance(key, str | int | float | None):  # hashing deeply nested tuples can overflow the C stack
        raise FileError(f"has a dict with a key of type {type(key).__name__}; strings and numbers are accepted")
    target[key] = value


def _size(sizes: Any) -> tuple[int, ...]:
    if type(sizes) not in (list, tuple):
        raise FileError("is damaged: a torch.Size must be a list of numbers; nothing in it was executed")
    return tuple(sizes)


def _device(*_: object) -> str:
    return "cpu"


def _encode(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise FileError("is damaged: bytes must be latin1 text; nothing in it was executed")
    return text.encode("latin1")  # how pickle protocol 2 writes bytes


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    """A view of `storage`; offset and strides count elements. The bounds are checked here, and again by numpy."""
    if not isinstance(storage, Storage):
        raise FileError("is damaged: a tensor has no storage; nothing in it was executed")
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
        raise FileError("is damaged: a tensor's size and stride must be tuples of one length")
    if len(size) > 64:
        raise FileError(f"is damaged: a tensor of {len(size)} dimensions; 64 are accepted")
    if not all(map(is_count, (offset, *size, *stride))):
        raise FileError("is damaged: a tensor's offset, size and stride must be whole numbers from 0 up")
    if len(rest) > 2 and rest[2]:
        raise FileError("has a tensor with lazy negation or conjugation; save tensor.resolve_neg().resolve_conj()")
    itemsize = storage.dtype.itemsize
    numel, available = math.prod(size), len(storage.data) // itemsize
    if numel == 0:
        return np.empty(size, storage.dtype)
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= available:
        raise FileError(
            f"has a tensor of size {size}, stride {stride} and offset {offset} that reaches past its storage of"
            f" {available} elements; download or save it again"
        )
    if numel * itemsize > storage.file_size:
        raise FileError(f"has a tensor expanded to {size}, larger than the file; save tensor.contiguous()")
    strides = tuple(step * itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True))
    return np.ndarray(size, storage.dtype, buffer=storage.data.data, offset=offset * itemsize, strides=strides)


def _rebuild_parameter(data: Any, *_: object) -> Any:
    return data


def _rebuild_from_type(function: Any, _type: object, args: Any, _state: object) -> Any:
    if not any(function is known for known in (_rebuild_tensor, _rebuild_parameter)):
        raise FileError("has a tensor that is made in an unknown way; nothing in it was executed")
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
    **{(module, name): StorageType(name) for module in ("torch", "torch.cuda") for name in STORAGE_DTYPES},
    **{("torch", str(dtype)): dtype for dtype in STORAGE_DTYPES.values()},
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


_PythonUnpickler: Any = pickle._Unpickler  # Any, since its methods are not in the type stubs


class Unpickler(_PythonUnpickler):
    """A machine that knows `_OPCODES` and `_GLOBALS` only.

    The one in Python, not the faster one in C: its opcodes can be left out, and its memo is a dict, where the C one
    allocates an array as long as the largest index that a file names.
    """

    dispatch: ClassVar = {}  # filled below
    names: ClassVar = _GLOBALS

    def __init__(self, file: Any, load_storage: Callable[[Any], Storage], more: int = 0):
        super().__init__(_Charged(file, self.spend), encoding="utf-8")  # of Python 2's strings, as in torch.load
        self.load_storage = load_storage
        self.left = BUDGET + more

    def spend(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise FileError(
                "describes far more objects than a state dict has, so it was not read to its end; save "
                "model.state_dict() by itself"
            )

    def persistent_load(self, pid: Any) -> Storage:
        return self.load_storage(pid)

    def find_class(self, module: str, name: str) -> Any:
        if type(module) is str and type(name) is str and (module, name) in self.names:
            return self.names[module, name]
        if str(module).startswith(("torch.nn.modules.", "torchvision.models.")):
            raise FileError(_WHOLE_MODEL)
        wanted = repr(f"{str(module)[:100]}.{name}"[:100])
        raise FileError(
            f"asks for the Python object {wanted}, which a state dict does not need, and was not executed; if it is a"
            " whole model or a training checkpoint, load it with PyTorch where you trust it and save model.state_dict()"
        )

    def load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if not any(function is known for known in self.names.values()) or type(args) is not tuple:
            raise FileError("is damaged: it calls something that is not a function; nothing in it was executed")
        for arg in args:
            if isinstance(arg, (str, bytes)):
                self.spend(len(arg))
            elif isinstance(arg, (tuple, list, dict)):
                self.spend(ITEM_COST * len(arg))
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


class _Charged:
    """A file of which every byte that is read is charged."""

    def __init__(self, file: Any, spend: Callable[[int], None]):
        self.file, self.spend = file, spend

    def read(self, n: int) -> bytes:
        content = self.file.read(n)
        self.spend(BYTE_COST * len(content))
        return content

    def readline(self) -> bytes:
        content = self.file.readline()
        self.spend(BYTE_COST * len(content))
        return content


def _charged(load: Callable[[Unpickler], None]) -> Callable[[Unpickler], None]:
    def charged(unpickler: Unpickler) -> None:
        unpickler.spend(OPCODE_COST)
        load(unpickler)

    return charged


def dispatch_of(opcodes: Sequence[str], unpickler: Any, own: tuple[str, ...]) -> dict[int, Callable[[Any], None]]:
    """What to do at each of these opcodes, charged for: Python's own way, or that of the class `unpickler`."""
    codes = {name: getattr(pickle, name)[0] for name in opcodes}
    return {
        code: _charged(getattr(unpickler, f"load_{name.lower()}") if name in own else _PythonUnpickler.dispatch[code])
        for name, code in codes.items()
    }


Unpickler.dispatch |= dispatch_of(_OPCODES, Unpickler, ("REDUCE", "BUILD", "SETITEM", "SETITEMS"))
