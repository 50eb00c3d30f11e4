"""What the compiled steps are fed with: chunks of rows, a row for each step, from every source of the method.

A set of up to 1 GiB lives on the device, and a chunk holds indices into it; others stream, and it holds their images.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ganstyle_jax import contract, data
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import processes
from ganstyle_jax.loop.settings import Loop
from ganstyle_jax.loop.step import by_batch, everywhere

RESIDENT_BYTES = 1 << 30  # sets up to this size, all together, live on the device
CHUNK_BYTES = 64 << 20  # of streamed images in one dispatch


class Feed:
    """Chunks of `rows` batches for `advance`, {source: {name: (rows, batch, ...)}}."""

    def __init__(self, batches: Mapping[str, data.Batches], loop: Loop, mesh: jax.sharding.Mesh):
        self.batches, self.loop, self.mesh = dict(batches), loop, mesh
        self.resident: set[str] = set()
        self.stored: dict[str, dict[str, np.ndarray]] = {}  # the resident sets, on the host
        room, streamed = RESIDENT_BYTES, 0
        for name, of in self.batches.items():
            source = of.source
            example = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in _arrays(source).values())
            if loop.data_on_device == "yes" and source.size is None:
                raise UserError(f"{source.name} is unlimited and cannot live on the device: use --data-on-device auto")
            # Several processes each read their share of the data and no more, unless they are told otherwise.
            fits = source.size is not None and source.size * example <= room and not processes.several()
            if loop.data_on_device == "yes" or (loop.data_on_device == "auto" and fits):
                self.resident.add(name)
                room -= (source.size or 0) * example
            else:
                streamed += example * of.batch_size
        most = loop.steps_per_dispatch
        self.rows = max(1, min(most, CHUNK_BYTES // streamed)) if streamed else most

    def load(self) -> dict:
        """The resident sets, on all devices."""
        self.stored = {name: self.batches[name].load() for name in self.batches if name in self.resident}
        kept = {
            name: {key: arrays[key] for key in _arrays(self.batches[name].source)}
            for name, arrays in self.stored.items()
        }
        return jax.tree.map(lambda x: processes.put(x, everywhere(self.mesh)), kept)

    def stream(self, start: int, stop: int) -> "_Chunks":
        return _Chunks(self, start, stop)

    def examples(self, n: int) -> contract.Examples:
        """The first n of each source in the order of training, read when they are looked up; after `load`."""
        return contract.examples_of({name: of.source for name, of in self.batches.items()}, n, self.loop.seed)

    def abstract(self) -> tuple[dict, dict]:
        """Shapes of what `load` and the chunks give."""
        stored, chunk = {}, {}
        spec = jax.ShapeDtypeStruct
        for name, of in self.batches.items():
            rows = (self.rows, of.batch_size)
            if self.loop.parallel == "pmap":
                rows = (self.rows, self.mesh.size, of.batch_size // self.mesh.size)
            arrays = _arrays(of.source)
            if name in self.resident:
                stored[name] = {key: spec((of.source.size, *shape), dtype) for key, (shape, dtype) in arrays.items()}
                chunk[name] = {"index": spec(rows, np.int32)}
            else:
                chunk[name] = {key: spec((*rows, *shape), dtype) for key, (shape, dtype) in arrays.items()}
        return stored, chunk

    def report(self) -> list[str]:
        """A sentence for each source with corrupt images."""
        return [said for of in self.batches.values() if (said := of.report()) is not None]


def _arrays(source: data.Source) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of what training sees of an example."""
    labels = {} if source.label_names is None else {"label": ((), np.dtype(np.int32))}
    return {"image": (source.image_shape, source.dtype), **labels, **source.others}


class _Chunks:
    """An open `Feed`: called with (step, count) in order, it gives the chunk for `advance`."""

    def __init__(self, feed: Feed, start: int, stop: int):
        self.feed = feed
        self.streams: dict[str, Iterator] = {
            name: iter(of.stream(start, stop)) for name, of in feed.batches.items() if name not in feed.resident
        }

    def __enter__(self) -> "_Chunks":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self.streams.values():
            stream.close()  # type: ignore[attr-defined]

    def __call__(self, step: int, count: int) -> dict:
        return {name: self._of_source(name, step, count) for name in self.feed.batches}

    def _of_source(self, name: str, step: int, count: int) -> dict:
        feed, of = self.feed, self.feed.batches[name]
        if name in feed.resident:
            batches = [{"index": of.indices(step + i).astype(np.int32)} for i in range(count)]
        else:
            wanted = _arrays(of.source)
            batches = [next(self.streams[name]) for _ in range(count)]
            batches = [{key: batch[key] for key in wanted} for batch in batches]
        chunk = {}
        for key, first in batches[0].items():
            rows = np.zeros((feed.rows, *first.shape), first.dtype)
            for i, batch in enumerate(batches):
                rows[i] = batch[key]
            chunk[key] = rows
        if feed.loop.parallel == "pmap":  # which takes what this process has
            here = len(feed.mesh.local_devices)
            return {key: x.reshape(feed.rows, here, x.shape[1] // here, *x.shape[2:]) for key, x in chunk.items()}
        return processes.joined(chunk, by_batch(feed.mesh))
