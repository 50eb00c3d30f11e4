"""Values, names and paths of a run folder as one reads them in a page or a table."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import numpy as np

ARCHIVES = (".npz", ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".h5", ".hdf5")  # what a path may lead into
# An absolute path within a text, as far as its last part: "/home/ann/" of "there is no /home/ann/a.png".
FOLDERS = re.compile(r"""(?<![\w.~/\\-])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'"<>|]+[/\\])+""")
WHOLE = re.compile(r"(?:~|[A-Za-z]:)?[/\\][^\n]*")


def is_number(value: Any) -> TypeGuard[float]:
    """Finite, no larger than a float can be, and not a bool."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def worded(value: Any) -> str:
    """A setting or a figure as one reads it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={worded(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(worded, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float) and is_number(value):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def thinned(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))]


def short(text: str) -> str:
    """A text in which absolute paths are no more than their last part: a page may be shown to anybody.

    Of a path into an archive, "/data/photos.zip/train", the archive's name stays too.
    """
    if not WHOLE.fullmatch(text):
        return FOLDERS.sub("", text)
    parts = PurePosixPath(text.replace("\\", "/")).parts
    into = next((i for i, part in enumerate(parts) if part.lower().endswith(ARCHIVES)), len(parts) - 1)
    return "/".join(parts[into:]).strip("/") or text


def shortened(value: Any) -> Any:
    """JSON with all of its texts `short`, the names of its parts too."""
    if isinstance(value, Mapping):
        return {short(str(name)): shortened(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(part) for part in value]
    return short(value) if isinstance(value, str) else value


def told_apart(paths: Sequence[Path | str]) -> list[str] | None:
    """As few last parts of the paths as tell them apart; None where two are the same."""
    parts = [Path(path).parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]).strip("/") for part in parts]
        if len(set(names)) == len(names):
            return names
    return None
