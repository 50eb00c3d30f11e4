"""A method in a Python file of the user's own, which may import its neighbours: the modules beside it.

Each such file is loaded as part of a package of its own, whose name nobody else has. An `import helper` in it, or in
one of its neighbours, at the top or inside a function, is answered from its own folder first, as Python does for a
script, but with this package's `helper`: two runs whose neighbours have the same names and other contents live side by
side.
"""

import ast
import builtins
import hashlib
import importlib
import importlib.machinery
import importlib.util
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from ganstyle_jax.io.files import UserError, first_line

PREFIX = "ganstyle_method_"
_lock = threading.RLock()


def load_file(path: Path | str) -> ModuleType:
    """The module of a Python file, which may import its neighbours; the same one as long as none of them changes.

    UserError naming file, line and reason where it cannot be imported, whatever it raises.
    """
    path = Path(path).absolute()
    files = files_of(path)
    contents = "".join(f"{name} {sha256(file)}\n" for name, file in files.items())
    package = PREFIX + hashlib.sha256(f"{path}\n{contents}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    name = f"{package}.{path.stem.replace('.', '_')}"
    with _lock:
        if name in sys.modules:
            return sys.modules[name]
        try:
            return _execute(path, package, name)
        except KeyboardInterrupt:
            _forget(package)
            raise
        except BaseException as error:  # SystemExit among them, which a script may raise
            _forget(package)
            raise UserError(_told(path, error)) from error


def files_of(path: Path) -> dict[str, Path]:
    """The file and the neighbours that it imports, directly or not, {"my_gan.py": ..., "nets/blocks.py": ...}.

    The file itself comes first, names are relative to its folder. Of a package all modules are taken. UserError if the
    file cannot be read.
    """
    path = Path(path).absolute()
    try:
        path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error
    folder = path.parent
    found: dict[str, Path] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        name = file.relative_to(folder).as_posix()
        if name in found:
            continue
        found[name] = file
        for imported in sorted(_imported(file)):
            waiting += _neighbour(folder, imported)
    rest = sorted((name, file) for name, file in found.items() if file != path)
    return {path.name: path, **dict(rest)}


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error


# ---------------------------------------------------------------------------------------------------------------------
# What is a neighbour


def _imported(file: Path) -> set[str]:
    """The first parts of the names that a file imports, anywhere in it; none where it is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return set()  # loading it says what is wrong
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module.partition(".")[0]} if node.module else {alias.name for alias in node.names}
    return names


def _neighbour(folder: Path, name: str) -> list[Path]:
    """The files of a module or package beside the method; none where Python would take another one for it."""
    if not _is_neighbour(folder, name):
        return []
    package = folder / name
    if (package / "__init__.py").is_file() or not (folder / f"{name}.py").is_file():
        return sorted(file for file in package.rglob("*.py") if file.is_file() and not _hidden(file, folder))
    return [folder / f"{name}.py"]


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in file.relative_to(folder).parts)


def _is_neighbour(folder: Path, name: str) -> bool:
    """As for a script: what lies beside it goes before what is installed, but a folder without __init__.py after it."""
    if name == "ganstyle_jax" or name in sys.builtin_module_names or not name.isidentifier():
        return False
    if (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file():
        return True
    if not (folder / name).is_dir() or name in sys.modules or name in sys.stdlib_module_names:
        return False
    try:
        installed = importlib.machinery.PathFinder.find_spec(name)
    except (ImportError, ValueError):
        installed = None
    return installed is None and any((folder / name).rglob("*.py"))


# ---------------------------------------------------------------------------------------------------------------------
# Importing


class _Loader(importlib.machinery.SourceFileLoader):
    """Executes a module with `import` statements that know its neighbours."""

    def exec_module(self, module: ModuleType) -> None:
        package, _, _ = module.__name__.partition(".")
        module.__dict__["__builtins__"] = vars(builtins) | {"__import__": _importer(package)}
        super().exec_module(module)

    def get_code(self, fullname: str) -> CodeType:
        """Compiled from the file as it is: Python's cache would lie in a run folder, and counts in whole seconds."""
        return self.source_to_code(self.get_data(self.path), self.path)


class _Finder:
    """Finds the neighbours, which are modules of the method's package, as files of its folder."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if not name.startswith(PREFIX) or path is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def _importer(package: str) -> Any:
    """`__import__` as it is called for the import statements of a method and its neighbours."""

    def find(
        name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
    ) -> ModuleType:
        folder = Path(sys.modules[package].__path__[0])
        if level or not _is_neighbour(folder, name.partition(".")[0]):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        found = builtins.__import__(f"{package}.{name}", globals, locals, fromlist or (), 0)
        # Without names to take from it, an import statement binds the first part of the name.
        return found if fromlist else sys.modules[f"{package}.{name.partition('.')[0]}"]

    return find


def _execute(path: Path, package: str, name: str) -> ModuleType:
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
    importlib.invalidate_caches()  # files that were written a moment ago
    parent = ModuleType(package)
    parent.__path__ = [str(path.parent)]
    sys.modules[package] = parent
    spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


def _told(path: Path, error: BaseException) -> str:
    """What went wrong, in which file and line: the last line of the user's own that was under way."""
    file, line = path, None
    if isinstance(error, SyntaxError) and error.filename:
        file, line, reason = Path(error.filename), error.lineno, error.msg
    else:
        reason = first_line(error) if str(error).strip() else ""
        trace = error.__traceback__
        while trace is not None:
            if str(trace.tb_frame.f_globals.get("__name__")).startswith(PREFIX):
                file, line = Path(trace.tb_frame.f_code.co_filename), trace.tb_lineno
            trace = trace.tb_next
    kind = type(error).__name__
    where = f"{file}, line {line}" if line else str(file)
    hint = ""
    if isinstance(error, ModuleNotFoundError):
        hint = f". A method may import what is installed, and the modules in {path.parent}"
    return re.sub(rf"{PREFIX}[0-9a-f]{{16}}\.?", "", f"{where}: {kind}{f': {reason}' if reason else ''}{hint}")
