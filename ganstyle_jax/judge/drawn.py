"""The pictures that a method's generator draws, as a set of images to measure; see contract.py for what a method is."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from ganstyle_jax import contract, data
from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge.sets import OTHER_SEED, Images, open_source, size_in_words

BATCH = 64  # pictures of one call of `sample`


def drawn_by(
    method: contract.Method | ModuleType,
    cfg: Any,
    state: Any,
    count: int,
    seed: int = 0,
    sharding: Any = None,
    constants: Any = (),
    examples: Callable[[int], Mapping[str, Any]] | None = None,
) -> tuple[Images, dict[str, Any]]:
    """`count` pictures of a generator, those that `method.judged` names, and what a protocol says of them.

    Its config names the weights and the statistics that it draws with. examples: for a method whose requests are made
    of pictures, what gives so many of each source, see `examples_of`; where a source has fewer than `count`, so many
    are drawn. Drawing raises UserError for pictures that are not finite.
    """
    method = contract.of(method)
    title, source = method.judged(cfg)
    given = examples or (lambda n: Examples(method, cfg, None, n, seed))
    key = jax.random.key(seed)
    looked_at: dict[str, int | None] = {}
    if examples is not None:
        method.requests(key, BATCH, cfg, probe := given(BATCH))
        looked_at = getattr(probe, "looked_at", {})
        count = min([count, *(size for size in looked_at.values() if size is not None)])
    make, draw = _programs(sharding)

    def batches() -> Iterator[np.ndarray]:
        variables = make(method, state, cfg, constants)
        # Whole parts of requests of their own, the last of which nobody sees: with BatchNorm by the batch, or draws
        # inside `sample`, copies in their places would change the pictures beside them.
        asked = -(-count // BATCH) * BATCH
        requests = jax.tree.map(np.asarray, method.requests(key, asked, cfg, given(asked)))
        left = count
        for drawn in contract.in_parts(lambda part: draw(method, variables, part, cfg), requests, BATCH):
            pictures = contract.column(drawn, title)[:left]
            left -= len(pictures)
            if not np.isfinite(pictures).all():
                raise UserError("the generator draws values that are not finite: take an earlier --step")
            yield images.to_uint8(pictures)

    how = {name: contract.to_json(getattr(cfg, name)) for name in ("weights", "batch_norm") if hasattr(cfg, name)}
    how |= {} if title is None else {"title": title}
    how |= {"examples": sorted(looked_at)} if looked_at else {}
    size = size_in_words(method.sources(cfg)[source].size)
    return Images("generator", count, batches), {"source": "generator", "count": count, "image_size": size} | how


def labels_drawn(
    method: contract.Method | ModuleType,
    cfg: Any,
    count: int,
    seed: int = 0,
    examples: Callable[[int], Mapping[str, Any]] | None = None,
) -> np.ndarray:
    """The labels (count,) that `drawn_by` asks for its pictures by. UserError where the method has no classes."""
    method = contract.of(method)
    given = examples or (lambda n: Examples(method, cfg, None, n, seed))
    asked = -(-count // BATCH) * BATCH
    requests = method.requests(jax.random.key(seed), asked, cfg, given(asked))
    if not isinstance(requests, Mapping) or "label" not in requests:
        raise UserError(f"--per-class is for a run that is conditional, and this one of {method.name} is not")
    return np.asarray(requests["label"])[:count]


@functools.lru_cache(maxsize=8)
def _programs(sharding: Any) -> tuple[Callable, Callable]:
    """(make, draw), compiled once for all generators of a method and config."""
    make = jax.jit(_variables, static_argnums=(0, 2), out_shardings=sharding)
    return make, jax.jit(_pictures, static_argnums=(0, 3), out_shardings=sharding)


def _variables(method: contract.Method, state: Any, cfg: Any, constants: Any) -> Any:
    return method.generator(state, cfg, constants)


def _pictures(method: contract.Method, variables: Any, requests: Any, cfg: Any) -> Any:
    return method.sample(variables, requests, cfg)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures that requests are made of


def examples_of(method: contract.Method, cfg: Any, given: Any, seed: int = 0) -> Callable[[int], "Examples"]:
    """For `drawn_by`: what gives n pictures of each source of a method.

    given: a source as `ganstyle train --data` takes it, or an open one, or several, {name: source}.
    """
    return lambda n: Examples(method, cfg, given, n, seed)


class Examples(Mapping[str, dict[str, np.ndarray]]):
    """{source: {"image": (n, h, w, c) float32 in [-1, 1], ...}}, read when they are looked up.

    Chosen by the seed; where a source has fewer than n, they come again from the first. Raises UserError.
    """

    def __init__(self, method: contract.Method, cfg: Any, given: Any, n: int, seed: int):
        self.method, self.wanted, self.given, self.n, self.seed = method, method.sources(cfg), given, n, seed
        self.looked_at: dict[str, int | None] = {}  # how many there are in each source that was looked up
        self._read: dict[str, dict[str, np.ndarray]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.wanted)

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        wanted = self.wanted[name]  # KeyError, as a mapping's
        if name in self._read:
            return self._read[name]
        source = source_named(self.given, name)
        if source is None:
            raise UserError(f"{self.method.name} draws of pictures of the source {name}, and none are given")
        if not isinstance(source, data.Source):
            source = open_source(str(source), wanted.size, wanted.channels, seed=(OTHER_SEED - self.seed) % 2**32)
        self.looked_at[name] = source.size
        if source.size is None:
            order = np.arange(self.n)
        else:
            order = data.permutation(self.seed, source.size, 0)[np.arange(self.n) % source.size]
        self._read[name] = _stacked(source, order)
        return self._read[name]


def source_named(given: Any, name: str) -> Any:
    """That of several sources, {name: source}, or the only one there is; None where it is not among them."""
    return given.get(name) if isinstance(given, Mapping) else given


def _stacked(source: data.Source, order: np.ndarray) -> dict[str, np.ndarray]:
    chunk = 32

    def load(k: int) -> list[dict[str, np.ndarray]]:
        try:
            return [source[int(i)] for i in order[k * chunk : (k + 1) * chunk]]
        except data.CorruptImage as error:
            raise UserError(f"{source.name} has an image that cannot be read ({error}): repair or remove it") from error

    parts = list(data.threaded(load, 0, -(-len(order) // chunk), min(16, os.cpu_count() or 1)))
    examples = [example for part in parts for example in part]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
