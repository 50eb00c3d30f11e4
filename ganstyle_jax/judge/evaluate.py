"""How good generated images are, and what training asks of it every so often; see also look/measure.py.

    network = network_of(settings)
    real = look(*images_of("photos.zip", network, settings.real_count), network, settings)
    fake = look(*images_of("samples.npz", network, settings.count), network, settings)
    record = compare(real, fake, network, settings)      # {"metrics": ..., "protocol": ..., "versions": ...}

A figure means nothing without the way in which it was found, so that none goes without it: the record's "protocol" has
the network and the SHA-256 sum of its weights, how images were resized, how many there were and from where, which
weights and statistics of the generator drew them, and the seed. Figures of different protocol cannot be compared.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax

from ganstyle_jax import contract
from ganstyle_jax.control import Control
from ganstyle_jax.data import Source
from ganstyle_jax.judge import scores
from ganstyle_jax.judge.compare import compare, spelled, what_to_read
from ganstyle_jax.judge.drawn import drawn_by, examples_of, source_named
from ganstyle_jax.judge.seen import Seen, look, look_at_source
from ganstyle_jax.judge.sets import images_from, images_of
from ganstyle_jax.judge.settings import Metric, Settings, network_of

# What is used from here elsewhere, wherever in this folder it is defined.
__all__ = [
    "Interrupted",
    "Metric",
    "Settings",
    "compare",
    "drawn_by",
    "images_from",
    "images_of",
    "in_training",
    "look",
]
__all__ += ["look_at_source", "network_of", "spelled", "what_to_read"]

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------------------
# In training


class Interrupted(Exception):  # noqa: N818  (no error: somebody asked for it)
    """An evaluation was given up because the run is to stop."""


def in_training(
    method: contract.Method | ModuleType,
    cfg: Any,
    data: str | Source | Mapping[str, Any],
    settings: Settings,
    mesh: jax.sharding.Mesh,
    constants: Any = (),
    control: Control | None = None,
) -> Callable[[int, Any], dict[str, Any]]:
    """A function of step and state that gives the record, with a "score": the lower, the better, see scores.py.

    data: the run's, a source or {name: source}, as text or open. Real images are looked at once. Of several
    processes each computes all of it, so that none waits for another. A process alone raises Interrupted soon after
    `control` is asked to stop, since a long evaluation would outlast the time that is left for saving.
    """
    method = contract.of(method)
    network = network_of(settings)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    source = method.judged(cfg)[1]
    wanted, reference = method.sources(cfg)[source], source_named(data, source)
    examples = examples_of(method, cfg, data, settings.seed)
    told: set[str] = set()

    def heed() -> None:
        if control is not None and control.stopping and jax.process_count() == 1:
            raise Interrupted

    @functools.cache
    def real() -> Seen:
        if isinstance(reference, Source):
            shown = images_of(reference, network, settings.real_count, settings.seed, wanted.size)
            return look(*shown, network, settings, heed)
        return look_at_source(str(reference), network, settings, wanted.size, wanted.channels, heed)

    def assess(step: int, state: Any) -> dict[str, Any]:
        heed()
        shown, about = drawn_by(
            method, cfg, state, settings.count, settings.seed, everywhere, constants, examples=examples
        )
        about |= what_to_read(real().about["source"], settings)
        record = compare(real(), look(shown, about, network, settings, heed), network, settings, heed)
        for warning in record.get("warnings", ()):
            if warning not in told:
                log.warning(warning)
            told.add(warning)
        return {"step": step} | scores.score(settings.metrics[0], record["metrics"]) | record

    return assess
