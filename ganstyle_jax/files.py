"""Errors meant for people, and files that are either whole or absent."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
