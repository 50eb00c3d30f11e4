"""Errors meant for people, and files that are either whole or absent."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class UserError(Exception):
    """What a user can put right: one or two sentences that name the value received, what is accepted and what to do.

    The command line prints it without a traceback and exits with status 1.
    """


def cache_dir() -> Path:
    """$GANSTYLE_HOME, by default ganstyle_jax in the user's cache folder."""
    if "GANSTYLE_HOME" in os.environ:
        return Path(os.environ["GANSTYLE_HOME"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ganstyle_jax"


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path beside `path`, renamed to `path` when the block ends and removed when it raises.

    The suffix is kept, since writers choose the format by it. Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # the rename must not reach the disk before the bytes do
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def first_line(error: BaseException) -> str:
    """What an error says, in at most one line of 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def listed(names: Sequence[Any], most: int = 8) -> str:
    """As in "a, b and 3 more"."""
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def largest(stored: int, times: int) -> int:
    """How many bytes a compressed file, or a part of one, of `stored` bytes may become: 256 MB, or so many times more.

    What unpacks to more than the best of its kind was made to fill the memory.
    """
    return max(1 << 28, times * stored)


def gigabytes(n: float) -> str:
    return f"{n / 1e9:.3g} GB"
