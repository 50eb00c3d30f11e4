"""Many pictures: read ahead by threads, those of one shape painted together, each result whole or absent."""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax.control import Control
from ganstyle_jax.forward.painter import Painter, Unsuited
from ganstyle_jax.io import folders, pictures
from ganstyle_jax.io.files import UserError

AHEAD = 4  # pictures that are read ahead
HELD = 1 << 25  # pixels, of pictures that wait for others of their shape, above which these wait no longer

Finish = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (result, content) to what is written


def placed(inputs: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Where each picture's result goes: `out` for one, else as it lies in the folder that was given, as PNG below it.

    UserError for what is not there, for results that would overwrite pictures or each other, and for places that
    cannot be written.
    """
    files = [file for path in inputs for file in (folders.pictures_in(path) if path.is_dir() else [path])]
    if missing := [str(path) for path in inputs if not path.exists()]:
        raise UserError(f"there is no {', '.join(missing)}: give pictures, or folders of them")
    if not files:
        raise UserError(f"no pictures in {', '.join(map(str, inputs))}")
    if len(files) == 1 and not inputs[0].is_dir():
        pictures.check_destination(out, pictures.PICTURE_SUFFIXES)
        found = {files[0]: out}
    elif out.suffix and not out.is_dir():
        raise UserError(f"several pictures go into a folder: --out must be one, got {out}")
    else:
        found = {file: out / f"{_name(file, inputs)}.png" for file in files}
    taken = {file.resolve() for file in files}
    if clash := {str(path) for path in found.values() if path.resolve() in taken}:
        raise UserError(f"{', '.join(sorted(clash))} would overwrite an input: choose another --out")
    twice = [str(path) for path, count in collections.Counter(found.values()).items() if count > 1]
    if twice:
        raise UserError(
            f"several inputs would become {', '.join(sorted(twice)[:3])}: their names differ by the suffix or the "
            "folder alone; apply to one after the other"
        )
    return found


def _name(file: Path, inputs: Sequence[Path]) -> Path:
    """Where in the folder a result goes: as the input lies in the folder that was given."""
    for path in inputs:
        if path.is_dir() and file.is_relative_to(path):
            return file.relative_to(path).with_suffix("")
    return Path(file.stem)


def paint_all(
    places: Mapping[Path, Path],
    painter: Painter,
    finish: Finish,
    control: Control,
    failed: list[str],
    tell: Callable[[float], Any],
) -> int:
    """Paints and writes them, and says how many were written. Ends early where control asks for it.

    failed: takes what is wrong with those that cannot be, in words. tell: hears of pictures done, and of parts of one.
    """
    written = 0
    for files, batch in batches(list(places), painter.batch_size, failed, tell):
        if control.stopping:
            break
        try:
            made = painter(batch, lambda share, files=files: tell(share * len(files)))
        except Unsuited as error:
            h, w = batch.shape[1:3]
            failed += [f"{file} of {w} x {h} pixels {error}" for file in files]
            tell(len(files))
            continue
        for file, result, content in zip(files, made, batch, strict=True):
            places[file].parent.mkdir(parents=True, exist_ok=True)
            pictures.write_picture(places[file], finish(result, content))
            written += 1
    return written


def batches(
    files: Sequence[Path], size: Callable[[Sequence[int]], int], failed: list[str], tell: Callable[[float], Any]
) -> Iterator[tuple[list[Path], np.ndarray]]:
    """(files, pictures (n, h, w, 3)) of one shape each; in the files' order where they all have one.

    failed: takes what is said of files that cannot be read. tell: hears of these too, which are done.
    """
    waiting: dict[tuple[int, ...], list[tuple[Path, np.ndarray]]] = {}

    def ready(shape: tuple[int, ...]) -> tuple[list[Path], np.ndarray]:
        group = waiting.pop(shape)
        return [file for file, _ in group], np.stack([picture for _, picture in group])

    for file, picture in _read_ahead(files):
        if isinstance(picture, UserError):
            failed.append(str(picture))
            tell(1)
            continue
        shape = picture.shape
        waiting.setdefault(shape, []).append((file, picture))
        if len(waiting[shape]) >= size(shape):
            yield ready(shape)
        while sum(len(group) * shape[0] * shape[1] for shape, group in waiting.items()) > HELD:
            yield ready(next(iter(waiting)))  # who waits longest
    while waiting:
        yield ready(next(iter(waiting)))


def _read_ahead(files: Sequence[Path]) -> Iterator[tuple[Path, Any]]:
    """Each file's picture, or the UserError of what is wrong with it."""
    if len(files) == 1:  # whose threads would only cost time
        yield files[0], _read(files[0])
        return
    with ThreadPoolExecutor(2) as pool:
        queue: collections.deque[tuple[Path, Future]] = collections.deque()
        try:
            for file in files:
                queue.append((file, pool.submit(_read, file)))
                if len(queue) > AHEAD:
                    first, future = queue.popleft()
                    yield first, future.result()
            while queue:
                first, future = queue.popleft()
                yield first, future.result()
        finally:
            for _, future in queue:
                future.cancel()


def _read(file: Path) -> Any:
    try:
        return pictures.read_picture(file)
    except UserError as error:
        return error
