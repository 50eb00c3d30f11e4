"""Two sets of pictures in one place: trainA and trainB, testA and testB, the layout of unpaired translation."""

from collections.abc import Iterable
from pathlib import Path

from ganstyle_jax.data.open import TAR_SUFFIXES, located
from ganstyle_jax.io import folders
from ganstyle_jax.io.files import UserError

PART = "train"  # where none is named


def sides(spec: str | Path) -> tuple[str, str] | None:
    """What `open_source` takes for each of the two sets in a folder or an archive; None for another layout.

    `pair.zip` is trainA and trainB, pair.zip/test is testA and testB; they may lie in a folder of the archive's, and be
    spelled in small letters. Raises UserError where one of the two has no pictures, or where there are several pairs.
    """
    path, inner = located(str(spec))
    try:
        if path.is_dir():
            return _found(folders.find(path).pictures, path, "", PART)
        if path.is_file():
            return _in_archive(path, inner)
        if path.parent.is_dir():  # a folder's test, say, beside which there may be anything: no look at all of it
            wanted = {f"{path.name}{side}".lower() for side in "ab"}
            beside = [child for child in path.parent.iterdir() if child.name.lower() in wanted and child.is_dir()]
            names = [f"{child.name}/{name}" for child in beside for name in folders.find(child).pictures]
            return _found(names, path.parent, "", path.name)
    except OSError:
        pass  # `open_source` says what is the matter
    return None


def _in_archive(path: Path, inner: str) -> tuple[str, str] | None:
    from ganstyle_jax.data import files

    name = path.name.lower()
    if name.endswith(".zip"):
        names = files.in_zip(path)[0]
    elif name.endswith(TAR_SUFFIXES):
        names = files.in_tar(path)[0]
    else:
        return None
    if not inner or any(name.startswith(inner + "/") for name in names):
        return _found(names, path, inner, PART)
    above, _, part = inner.rpartition("/")
    return _found(names, path, above, part)


def _found(names: Iterable[str], path: Path, inner: str, part: str) -> tuple[str, str] | None:
    """names: of pictures, paths below `path`, of which those below `inner` count. part: train or test, say."""
    wanted = [f"{part}{side}".lower() for side in "ab"]
    there: dict[tuple[str, ...], dict[str, str]] = {}
    begin = tuple(inner.split("/")) if inner else ()
    for name in names:
        parents = tuple(name.split("/")[:-1])
        if parents[: len(begin)] != begin:
            continue
        for depth, folder in enumerate(parents[len(begin) :], start=len(begin)):
            if folder.lower() in wanted:
                there.setdefault(parents[:depth], {})[folder.lower()] = folder
                break
    if not there:
        return None
    both = [above for above, pair in there.items() if len(pair) == 2]
    if not both:
        above, pair = next(iter(there.items()))
        (one,) = pair.values()
        other = f"{part}{'BA'[wanted.index(one.lower())]}"
        raise UserError(
            f"{'/'.join([str(path), *above])} has pictures in {one} and none in {other}: two sets are learned from, "
            "and each needs pictures"
        )
    if len(both) > 1:
        places = " and ".join("/".join([str(path), *above]) for above in sorted(both)[:2])
        raise UserError(f"{path} has {part}A and {part}B in {len(both)} places, {places}, ...: name one of them")
    (above,) = both
    first, second = ("/".join([str(path), *above, there[above][folder]]) for folder in wanted)
    return first, second
