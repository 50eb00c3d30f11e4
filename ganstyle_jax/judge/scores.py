"""Which of two checkpoints is better: one number of a metric, its direction, and what may be compared with what."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Score:
    """What tells two generators apart by a metric, made so that neither noise nor one picture again and again wins."""

    better: Literal["lower", "higher"]
    number: Callable[[Mapping[str, Any]], float]  # of a record's metrics


def _harmonic_mean(a: float, b: float) -> float:
    """Of two shares; near the smaller of them, so that none makes up for the other."""
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


SCORES: dict[str, Score] = {
    "fid": Score("lower", lambda found: found["fid"]),
    "kid": Score("lower", lambda found: found["kid"]),
    "inception_score": Score("higher", lambda found: found["inception_score"]),
    # F1: noise that covers everything has a recall of 1, one good picture a precision of 1.
    "precision_recall": Score("higher", lambda found: _harmonic_mean(found["precision"], found["recall"])),
    # A density above 1 says that samples crowd where real images are dense, which is no merit.
    "density_coverage": Score("higher", lambda found: _harmonic_mean(min(found["density"], 1.0), found["coverage"])),
    "sliced_wasserstein": Score("lower", lambda found: found["sliced_wasserstein"]),
    # Pairs of samples are to be as like one another as pairs of real images: those of noise are like nothing.
    "ms_ssim": Score("lower", lambda found: abs(found["ms_ssim"] - found["ms_ssim_of_real"])),
    # Readable, and of all characters: a total variation of 0 is that of real shares.
    "glyphs": Score(
        "higher",
        lambda found: _harmonic_mean(1 - found["glyphs_unreadable"], 1 - found["glyphs_total_variation"]),
    ),
}


def score(metric: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of its step's merit: "score", the lower, the better, and "score_of", the metric."""
    of = SCORES[metric]
    return {"score": of.number(metrics) * (1 if of.better == "lower" else -1), "score_of": metric}


def best(records: Iterable[Any]) -> int | None:
    """The step with the lowest score among the records that compare with the newest; None where none has a score.

    Comparable are scores of one metric by one protocol: network, resizing, counts, source, the generator's weights.
    What was measured in another way before a run was resumed does not count. Records that are none are passed over; of
    one step the last record counts, and of equal scores the earliest step.
    """
    scored = [record for record in records if _is_scored(record)]
    if not scored:
        return None
    newest = _way(scored[-1])
    found = {record["step"]: record["score"] for record in scored if _way(record) == newest}
    return min(found, key=lambda step: found[step])


def protocol_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What two records must share for their figures to be compared, {"real.count": 5} for {"real": {"count": 5}}."""

    def flat(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        parts = [flat(x, f"{prefix}{name}.") if isinstance(x, dict) else {prefix + name: x} for name, x in tree.items()]
        return {name: value for part in parts for name, value in part.items()}

    protocol = record.get("protocol")
    told = flat(protocol, "") if isinstance(protocol, dict) else {}
    return {name: value for name, value in told.items() if name not in ("seed", "fake.source")}


def _way(record: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    metrics = record.get("metrics")
    first = next(iter(metrics), None) if isinstance(metrics, dict) else None  # which version 0.1.0 did not name
    return record.get("score_of", first), protocol_of(record)


def _is_scored(record: Any) -> bool:
    if not isinstance(record, Mapping):
        return False
    value: Any = record.get("score")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and isinstance(record.get("step"), int)
