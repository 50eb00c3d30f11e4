"""What `--data` names, opened: one set of pictures for each source that a method wants, each in an order of its own."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ganstyle_jax import data
from ganstyle_jax.contract import Method
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop.settings import Loop


def parse(words: Sequence[str], method: Method, cfg: Any) -> str | dict[str, str] | None:
    """`photos` or `a=horses b=zebras` of a command line as `named` takes it; None for no words."""
    wanted = method.sources(cfg)
    pairs = [word.partition("=") for word in words]
    if words and all(equals and name in wanted for name, equals, _ in pairs):
        found = {name: spec for name, _, spec in pairs}
        if len(found) < len(words):
            raise UserError(f"--data names a source twice: {' '.join(words)}")
        return found
    named_wrongly = len(words) == 1 and pairs[0][1] and pairs[0][0].isidentifier() and not Path(words[0]).exists()
    if len(words) > 1 or (named_wrongly and pairs[0][0] not in wanted):
        raise UserError(f"{_wishes(method, wanted)}, got --data {' '.join(words)}")
    return words[0] if words else None


def named(given: Any, method: Method, cfg: Any) -> dict[str, Any]:
    """{source: what was given for it} in the order of the method's sources. UserError where some lack or are too many.

    given: a source as `data.open_source` takes it where the method has one, {name: source} where it has several, None
    where it has none; where it has two, one place may hold both, see `data.sides`.
    """
    wanted = method.sources(cfg)
    if isinstance(given, Mapping):
        if set(given) != set(wanted):
            raise UserError(f"{_wishes(method, wanted)}, got {', '.join(map(str, given)) or 'none'}")
        return {name: given[name] for name in wanted}
    if given is None and not wanted:
        return {}
    if len(wanted) == 2 and isinstance(given, str | Path) and (both := data.sides(given)):
        return dict(zip(wanted, both, strict=True))
    if given is None or len(wanted) != 1:
        raise UserError(f"{_wishes(method, wanted)}, got {'none' if given is None else given}")
    return {next(iter(wanted)): given}


def _wishes(method: Method, wanted: Mapping[str, Any]) -> str:
    if not wanted:
        return f"{method.name} needs no data"
    if len(wanted) == 1:
        return f"{method.name} learns from one set of pictures: give --data SOURCE"
    flags = " ".join(f"{name}=SOURCE" for name in wanted)
    one = ", or one folder or archive that has trainA and trainB" if len(wanted) == 2 else ""
    return f"{method.name} learns from {len(wanted)} sets of pictures: give --data {flags}{one}"


def opened(given: Mapping[str, Any], method: Method, cfg: Any, seed: int) -> dict[str, data.Source]:
    """The sources, open, as the method wants them."""
    found = {}
    for name, wanted in method.sources(cfg).items():
        source = given[name]
        if not isinstance(source, data.Source):
            source = data.open_source(source, wanted.size, wanted.channels, seed)
        height, width, channels = source.image_shape
        size = wanted.shape
        if (height, width) != size or wanted.channels not in (None, channels):
            raise UserError(
                f"{method.name} wants pictures of {size[1]} x {size[0]} pixels and {wanted.channels or 'any'} channels "
                f"as {name}, and those of {source.name} have {width} x {height} and {channels}"
            )
        found[name] = source
    return found


def described(given: Mapping[str, Any]) -> str | dict[str, str]:
    """What run.json says of them: a text where there is one source, {source: text} otherwise."""

    def text(source: Any) -> str:
        if isinstance(source, data.Source):
            return source.name
        return str(source) if isinstance(source, str | Path) else "array"

    texts = {name: text(source) for name, source in given.items()}
    return next(iter(texts.values())) if len(texts) == 1 else texts


def batched(found: Mapping[str, data.Source], method: Method, cfg: Any, loop: Loop) -> dict[str, data.Batches]:
    """The batches of each source; several have orders of their own, made from the seed and their names."""
    share = jax.process_index(), jax.process_count()
    wanted = method.sources(cfg)
    return {
        name: data.Batches(
            source, loop.batch_size * wanted[name].batches, _seed(loop.seed, name, len(found)), *share, loop.workers
        )
        for name, source in found.items()
    }


def _seed(seed: int, name: str, count: int) -> int:
    return seed if count == 1 else seed + (zlib.crc32(name.encode()) << 32)
