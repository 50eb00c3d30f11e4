"""Networks as StyleGAN2-ADA, StyleGAN3 and what grew of them pickle them whole, read without executing anything.

Such a file (`network-snapshot-000000.pkl`) is a plain pickle of {"G": ..., "D": ..., "G_ema": ...}. Each network, and
each module in it, is a call of `torch_utils.persistence._reconstruct_persistent_obj` with one dictionary: the source
code of its class, which loading it there executes; the class's name; and its `__dict__`, which holds parameters,
buffers and modules by name, and the arguments that it was made with. Tensors are there by storages which are files of
PyTorch's older layout in bytes.

Here the source is passed over and what remains are names, numbers and arrays. The unpickler is torch_pickle.py's, with
these few names and opcodes more.

R3GAN's files are the same, but for networks that are pickled as objects of their classes, by name. Where a reader names
these classes they are read, too: an object of one is its name and its `__dict__`, and no class is looked up.
"""

import dataclasses
import io
import mmap
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ganstyle_jax.features import torch_pickle
from ganstyle_jax.features.torch_files import read_legacy
from ganstyle_jax.features.torch_pickle import FileError, Storage, Unpickler, no_storages
from ganstyle_jax.io.files import UserError

VERSION = 6  # of torch_utils.persistence, the only one that has been
DEPTH, MODULES = 16, 10_000  # of modules in modules, and of all: far more than any network's


@dataclasses.dataclass(frozen=True)
class Network:
    """What a pickled module holds, those within it included."""

    kind: str  # the name of its class, such as "Generator"
    arguments: Mapping[str, Any]  # by name, that it was made with: numbers, texts, dictionaries of such
    arrays: dict[str, np.ndarray]  # parameters and buffers, "synthesis.b4.conv1.weight" and so on


@dataclasses.dataclass(frozen=True)
class _Module:
    kind: str
    state: dict


@dataclasses.dataclass(frozen=True)
class _Class:
    """Stands for a class that the reader of a file has named."""

    name: str


class _EasyDict:
    """The class of that name, whose objects are dictionaries: here they become plain ones."""


def _reconstruct(meta: Any) -> _Module:
    if type(meta) is not dict or meta.get("type") != "class" or type(meta.get("class_name")) is not str:
        raise FileError("is damaged: a network in it has no class; nothing in it was executed")
    if meta.get("version") != VERSION:
        raise FileError(f"is of version {str(meta.get('version'))[:20]} of torch_utils.persistence; {VERSION} is read")
    if type(meta.get("state")) is not dict:
        raise FileError("is damaged: a network in it has no state; nothing in it was executed")
    return _Module(meta["class_name"], meta["state"])


def _storage(content: Any) -> Storage:
    if type(content) is not bytes:
        raise FileError("is damaged: a storage must be bytes; nothing in it was executed")
    storage = read_legacy(io.BytesIO(content), len(content))
    if not isinstance(storage, Storage):
        raise FileError("is damaged: a storage holds something else; nothing in it was executed")
    return storage


def _dtype(code: Any, *_: object) -> np.dtype:
    if type(code) is not str or code not in ("f8", "f4", "i8", "i4", "b1"):
        raise FileError(f"has a number of the type {str(code)[:20]!r}; f8, f4, i8, i4 and b1 are accepted")
    return np.dtype(code)


def _scalar(dtype: Any, content: Any) -> float | int | bool:
    if not isinstance(dtype, np.dtype) or type(content) is not bytes or len(content) != dtype.itemsize:
        raise FileError("is damaged: a number has no valid type and bytes; nothing in it was executed")
    return np.frombuffer(content, dtype)[0].item()  # little-endian, as wherever these files are made


def _set(items: Any = ()) -> list:
    if type(items) not in (list, tuple):
        raise FileError("is damaged: a set must be made from a list; nothing in it was executed")
    return list(items)


class PersistentUnpickler(Unpickler):
    """`Unpickler` with what such files need besides: no class is made, no source is compiled."""

    names: ClassVar = torch_pickle._GLOBALS | {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _reconstruct,
        ("torch.storage", "_load_from_bytes"): _storage,
        ("dnnlib.util", "EasyDict"): _EasyDict,
        ("numpy", "dtype"): _dtype,
        **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
        **{(module, "set"): _set for module in ("builtins", "__builtin__")},
    }
    dispatch: ClassVar = {}  # filled below
    classes: Collection[tuple[str, str]] = ()  # (module, name) of those whose objects are read

    def find_class(self, module: str, name: str) -> Any:
        return _Class(name) if (module, name) in self.classes else super().find_class(module, name)

    def load_reduce(self) -> None:
        if self.stack[-2] is _EasyDict:
            raise FileError("is damaged: it makes a dictionary in an unknown way; nothing in it was executed")
        super().load_reduce()

    def load_newobj(self) -> None:
        arguments, made = self.stack.pop(), self.stack.pop()
        if arguments != () or not (made is _EasyDict or isinstance(made, _Class)):
            raise FileError("asks for an object of a class, which no network needs, and was not executed")
        self.stack.append(_Module(made.name, {}) if isinstance(made, _Class) else {})

    def load_build(self) -> None:
        state, made = self.stack[-1], self.stack[-2]
        super().load_build()
        if isinstance(made, _Module):
            if type(state) is not dict:
                raise FileError("is damaged: a network in it has no state; nothing in it was executed")
            made.state.update(state)

    def load_empty_set(self) -> None:
        self.stack.append([])

    def load_additems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not list:
            raise FileError("is damaged: it adds to something that is not a set; nothing in it was executed")
        self.stack[-1].extend(items)


_OWN = ("REDUCE", "NEWOBJ", "BUILD", "EMPTY_SET", "ADDITEMS")
PersistentUnpickler.dispatch |= Unpickler.dispatch | torch_pickle.dispatch_of(_OWN, PersistentUnpickler, _OWN)


def is_persistent(path: Path | str) -> bool:
    """Whether the file is a pickle that names `torch_utils.persistence`; False where it cannot be read."""
    return mentions(path, ["torch_utils.persistence"])


def mentions(path: Path | str, names: Collection[str]) -> bool:
    """Whether the file is a pickle with one of these names at its beginning; False where it cannot be read."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content[:1] == pickle.PROTO and any(content.find(x.encode(), 0, 1 << 20) >= 0 for x in names)
    except (OSError, ValueError):
        return False


def read_networks(path: Path | str, classes: Collection[tuple[str, str]] = ()) -> dict[str, Network]:
    """The networks of a file by name, such as "G", "D" and "G_ema". UserError for any other file.

    classes: (module, name) of those that networks may be pickled as objects of, which then have no arguments.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # Of tensors every byte is read once, remembered once as bytes and once as a storage.
            unpickler = PersistentUnpickler(content, no_storages, more=8 * len(content))
            unpickler.classes = frozenset(classes)
            tree = unpickler.load()
        if type(tree) is not dict:
            raise FileError(f"holds a {type(tree).__name__.strip('_')}, where a dictionary of networks was expected")
        networks = {name: _flat(of) for name, of in tree.items() if isinstance(of, _Module) and type(name) is str}
        if not networks:
            raise FileError("holds no network as StyleGAN2-ADA and StyleGAN3 pickle them")
    except FileError as refusal:
        raise UserError(f"{path} {str(refusal)[:500]}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the path of a pickled network (.pkl)") from error
    except MemoryError as error:
        raise UserError(f"{path} is too large for this machine's memory") from error
    except Exception as error:  # a damaged pickle can fail in as many ways as there are opcodes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is cut off or damaged ({reason}); download or save it again") from error
    return networks


def _flat(module: _Module) -> Network:
    """A network with the arrays of all modules in it."""
    arrays: dict[str, np.ndarray] = {}
    left = MODULES

    def add(module: _Module, prefix: str, depth: int) -> None:
        nonlocal left
        left -= 1
        if depth > DEPTH or left < 0:
            raise FileError(f"has modules in modules without end: {DEPTH} levels and {MODULES:,} in all are accepted")
        for kind in ("_parameters", "_buffers"):
            for name, value in _dict_of(module, kind).items():
                if value is None:
                    continue
                if not isinstance(value, np.ndarray):
                    raise FileError(f"is damaged: {prefix}{str(name)[:60]} is no tensor; nothing in it was executed")
                arrays[f"{prefix}{name}"] = value
        for name, within in _dict_of(module, "_modules").items():
            if within is None:
                continue
            if not isinstance(within, _Module):
                raise FileError(f"is damaged: {prefix}{str(name)[:60]} is no module; nothing in it was executed")
            add(within, f"{prefix}{name}.", depth + 1)

    add(module, "", 0)
    return Network(module.kind, _dict_of(module, "_init_kwargs"), arrays)


def _dict_of(module: _Module, name: str) -> dict:
    value = module.state.get(name, {})
    if type(value) is not dict:
        raise FileError(f"is damaged: {name} of a {module.kind[:60]} is no dictionary; nothing in it was executed")
    return value
