"""The order in which images are seen, as batches: a function of the seed and the step alone."""

import functools
import math
import os
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from ganstyle_jax.data.source import CorruptImage, Source, log
from ganstyle_jax.io.files import UserError, listed


class Batches:
    """Global batch t, a function of (seed, t) alone, whatever the number of processes, devices and workers.

    Position p = t * batch_size + j of the endless sequence shows image permutation[p % size] of epoch p // size: each
    image once per epoch, batches run on across the ends of epochs, nothing is dropped. Of n processes, k gets the
    contiguous part [k * batch_size / n, (k + 1) * batch_size / n) of each batch. An unlimited source shows image p.

    A corrupt image is replaced by the next good one in the epoch's order, so that nothing else moves; it is named once
    in a warning and kept in `skipped`, {name: reason}. More than one and more than 1 % of them raise UserError.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        workers: int | None = None,
    ):
        """workers: threads that read and decode; by default one for each core, at most 16."""
        if batch_size < 1 or batch_size % process_count:
            raise UserError(
                f"batch_size must be positive and a multiple of the {process_count} processes, got {batch_size}."
            )
        if not 0 <= process_index < process_count:
            raise UserError(f"process_index must be in 0..{process_count - 1}, got {process_index}.")
        if workers is not None and workers < 1:
            raise UserError(f"workers must be a number of threads from 1 up, got {workers}.")
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.process_index, self.process_count = process_index, process_count
        self.workers = workers or min(16, _cores())
        self.skipped: dict[str, str] = {}
        self._corrupt: set[int] = set()
        self._lock = threading.Lock()
        # Two, because threads work on both sides of an epoch's end.
        self._order = functools.lru_cache(maxsize=2)(functools.partial(permutation, seed, source.size or 0))

    def indices(self, step: int) -> np.ndarray:
        """This process's share of global batch `step`, (batch_size / process_count,) int64.

        Images known to be corrupt, which are all of them after `load`, are replaced already.
        """
        positions = self._positions(step)
        size = self.source.size
        if size is None:
            return positions
        epochs, places = np.divmod(positions, size)
        result = np.empty_like(positions)
        for epoch in np.unique(epochs):
            result[epochs == epoch] = self._order(int(epoch))[places[epochs == epoch]]
        if self._corrupt:
            for j in np.flatnonzero(np.isin(result, list(self._corrupt))):
                result[j] = next(self._candidates(int(positions[j])))
        return result

    def stream(self, start: int, stop: int) -> Generator[dict[str, np.ndarray], None, None]:
        """This process's shares of batches start..stop-1, read ahead by `workers` threads.

        {"image": (batch_size / process_count, h, w, c), "label": (batch_size / process_count,), ...} in the source's
        dtypes. At most `workers` batches wait in memory. Closing the iterator stops the threads.
        """
        return threaded(self._batch, start, stop, self.workers)

    def load(self, progress: bool = True) -> dict[str, np.ndarray]:
        """The whole source, {"image": (n, h, w, c), "label": (n,)}, for `indices` to choose from.

        For sets small enough for memory. Corrupt images stay zero; from then on `indices` avoids them, so that
        load()["image"][indices(t)] is what `stream` gives. progress: show a bar, if it takes over a second.
        """
        size = self.source.size
        if size is None:
            raise UserError(f"{self.source.name} is unlimited and cannot be loaded as a whole: stream it.")
        arrays: dict[str, np.ndarray] = {}
        chunk = 64

        def part(k: int) -> list[tuple[int, dict[str, np.ndarray]]]:
            examples = ((i, self._read(i)) for i in range(k * chunk, min((k + 1) * chunk, size)))
            return [(i, example) for i, example in examples if example is not None]

        from tqdm import tqdm

        with tqdm(total=size, desc="decoding", unit="image", disable=not progress, delay=1, leave=False) as bar:
            for examples in threaded(part, 0, -(-size // chunk), self.workers):
                for i, example in examples:
                    for key, value in example.items():
                        if key not in arrays:
                            arrays[key] = _zeros((size, *value.shape), value.dtype, self.source.name)
                        arrays[key][i] = value
                bar.update(chunk)
        if not arrays:
            raise UserError(f"No image of {self.source.name} can be read ({self._examples()}): repair the files.")
        return arrays

    def report(self) -> str | None:
        """One sentence on the corrupt images met so far; None if there were none."""
        if not self._corrupt:
            return None
        count = len(self._corrupt)
        what = "1 corrupt image was" if count == 1 else f"{count} corrupt images were"
        return f"{what} replaced by others: {self._examples()}."

    def _positions(self, step: int) -> np.ndarray:
        share = self.batch_size // self.process_count
        return step * self.batch_size + self.process_index * share + np.arange(share, dtype=np.int64)

    def _candidates(self, position: int) -> Iterator[int]:
        """The image of a position and those to replace it with, in order, without known corrupt ones."""
        size = self.source.size
        if size is None:
            yield position
            return
        epoch, place = divmod(position, size)
        order = self._order(epoch)
        for k in range(size):
            index = int(order[(place + k) % size])
            if index not in self._corrupt:
                yield index

    def _batch(self, step: int) -> dict[str, np.ndarray]:
        examples = [self._example(int(position)) for position in self._positions(step)]
        return {key: np.stack([example[key] for example in examples]) for key in examples[0]}

    def _example(self, position: int) -> dict[str, np.ndarray]:
        for index in self._candidates(position):
            example = self._read(index)
            if example is not None:
                return example
        raise UserError(f"No image of {self.source.name} can be read ({self._examples()}): repair the files.")

    def _read(self, index: int) -> dict[str, np.ndarray] | None:
        """None for a corrupt image, which is noted."""
        try:
            return self.source.read(index)
        except CorruptImage as error:
            with self._lock:
                if index not in self._corrupt:
                    self._corrupt.add(index)
                    self.skipped[error.name] = error.reason
                    log.warning("%s is corrupt (%s) and is replaced by another image", error.name, error.reason)
                count, size = len(self._corrupt), self.source.size
            if size is None or count > max(1, 0.01 * size):
                raise UserError(
                    f"{count} of the {size or 'unlimited'} images of {self.source.name} are corrupt, more than the 1 % "
                    f"accepted ({self._examples()}): repair or delete them."
                ) from error
            return None

    def _examples(self) -> str:
        return listed([f"{name} ({reason})" for name, reason in list(self.skipped.items())], most=3)


def permutation(seed: int, size: int, epoch: int) -> np.ndarray:
    """Order of `size` images in one epoch, (size,) int64, uniform over all orders.

    Sorts raw Philox output keyed by (seed, epoch): Generator.permutation may change between NumPy versions (NEP 19).
    """
    bits = np.random.Philox(key=((epoch % 2**64) << 64) | (seed % 2**64)).random_raw(size)
    return np.argsort(bits, kind="stable")


def threaded(function: Callable[[int], Any], start: int, stop: int, workers: int) -> Generator[Any, None, None]:
    """function(start), ..., function(stop - 1) in order, computed ahead by Grain's threads."""
    import grain

    if start >= stop:
        return
    dataset = grain.MapDataset.range(start, stop).map(function)
    iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers)))
    try:
        yield from iterator
    finally:
        iterator.close()  # drops what waits; threads end with the item in hand


def _zeros(shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
    try:
        return np.zeros(shape, dtype)
    except MemoryError as error:
        raise UserError(
            f"{name} takes {math.prod(shape) * dtype.itemsize / 1e9:.1f} GB and does not fit into memory as a whole: "
            "stream it, or take a smaller image_size."
        ) from error


def _cores() -> int:
    """Cores this process may use, which in a container or a job are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
