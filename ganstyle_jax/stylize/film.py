"""Frames that are put aside until a film is made of them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax.io import video


class Film:
    """Frames (h, w, 3) uint8 of one shape, kept in a file without a name beside the film that is to be.

    Not in memory, which a hundred large frames would fill. The file goes with this object, whatever happens.
    """

    def __init__(self, beside: Path):
        self._file: Any = tempfile.TemporaryFile(dir=beside.parent)  # noqa: SIM115, it outlives this function
        self._shape: tuple[int, ...] = ()
        self.count = 0

    def add(self, frame: np.ndarray) -> None:
        assert frame.dtype == np.uint8 and self._shape in ((), frame.shape), (frame.dtype, frame.shape, self._shape)
        self._shape = frame.shape
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(frame).data)
        self.count += 1

    def frames(self) -> Iterator[np.ndarray]:
        size = int(np.prod(self._shape))
        for i in range(self.count):
            self._file.seek(i * size)
            yield np.frombuffer(self._file.read(size), np.uint8).reshape(self._shape)

    def write(self, path: Path, fps: float) -> None:
        video.write_video(path, self.frames(), fps=fps)

    def close(self) -> None:
        self._file.close()
