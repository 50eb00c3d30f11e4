"""The table of what `ganstyle evaluate` found, and the protocols behind it: only like is compared with like."""

from collections.abc import Callable, Sequence
from typing import Any

from ganstyle_jax.look import page
from ganstyle_jax.look.page import Block, Cell, Heading, Note, Row, Section, Text
from ganstyle_jax.look.report.folder import Run
from ganstyle_jax.look.words import is_number, worded
from ganstyle_jax.loop import runs

# Which way a metric is better; others are not judged.
BETTER: dict[str, Callable] = {
    **dict.fromkeys(("fid", "kid", "sliced_wasserstein", "ms_ssim", "lpips", "art_fid", "cfsd"), min),
    **dict.fromkeys(("glyphs_unreadable", "glyphs_kl", "glyphs_total_variation"), min),
    **dict.fromkeys(
        ("inception_score", "precision", "recall", "density", "coverage", "psnr", "psnr_y", "ssim", "ssim_y"), max
    ),
    "glyphs_covered": max,
}
ARROWS = {min: " ↓", max: " ↑", None: ""}
SPREADS = ("_spread", "_std")  # of a metric, under its name with this ending

Record = tuple[Run, dict[str, Any], dict[str, Any]]  # a line of evaluations.jsonl, and its protocol


def better(metric: str) -> Callable | None:
    """min or max, whichever is better; None where that is not known."""
    return BETTER.get(metric, min if metric.startswith("sliced_wasserstein_") else None)


def evaluations(trained: Sequence[Run]) -> Section | None:
    """The table of metrics, curves where a run was evaluated more than once, and the protocols behind them."""
    records = [(run, record, runs.protocol_of(record)) for run in trained for record in run.evaluations]
    if not records:
        return None
    protocols: list[dict[str, Any]] = []
    for _, _, protocol in records:
        if protocol not in protocols:
            protocols.append(protocol)
    protocols.sort(key=lambda one: -sum(one == other for _, _, other in records))  # the most common one first
    names = list(dict.fromkeys(name for _, record, _ in records for name in record["metrics"]))
    names = [name for name in names if not any(name == other + end for other in names for end in SPREADS)]
    about = "Arrows say which way is better, and the best value of each metric is marked."
    if len(protocols) > 1:
        about += (
            " Not all rows were measured by the same protocol, and figures of different protocols must not be compared:"
            " the best is chosen within a protocol, and curves are those of protocol A."
        )
    drawn = [
        page.chart(name, {run.name: _points(run, name, protocols[0]) for run in trained})
        for name in names
        if any(len(run.evaluations) > 1 for run in trained)
    ]
    table = _table(records, names, protocols)
    return page.section("Metrics", Text(about, soft=True), table, page.charts(drawn), _told(protocols))


def _points(run: Run, name: str, protocol: dict[str, Any]) -> list[tuple[float, Any]]:
    return [(e["step"], e["metrics"].get(name)) for e in run.evaluations if runs.protocol_of(e) == protocol]


def _letter(place: int) -> str:
    return chr(65 + place) if place < 26 else str(place + 1)


def _table(records: Sequence[Record], names: Sequence[str], protocols: Sequence[dict[str, Any]]) -> page.Table:
    several = len(protocols) > 1
    best = {(name, i): best_of(name, records, protocol) for name in names for i, protocol in enumerate(protocols)}
    head = [Cell("run"), Cell("step", looks="number")]
    head += [Cell(name + ARROWS[better(name)], looks="number") for name in names]
    head += [Cell("protocol")] if several else []
    rows = []
    for run, record, protocol in records:
        i, metrics = protocols.index(protocol), record["metrics"]
        cells = [Cell(run.name, header=True), Cell(worded(record["step"]), looks="number")]
        for name in names:
            spread = next((metrics[name + end] for end in SPREADS if is_number(metrics.get(name + end))), None)
            text = "–" if metrics.get(name) is None else worded(metrics[name])  # noqa: RUF001  (a dash for nothing)
            text += "" if spread is None else f" ± {spread:.2g}"
            marked = best[name, i] is not None and metrics.get(name) == best[name, i]
            cells.append(Cell(text, looks="number", best=marked))
        cells += [Cell(_letter(i) + (", not comparable with A" if i else ""))] if several else []
        rows.append(Row(tuple(cells), "other" if i else ""))
    return page.Table(tuple(head), tuple(rows), "Metrics")


def _told(protocols: Sequence[dict[str, Any]]) -> list[Block]:
    """Each protocol, with what differs from the first one marked."""
    found: list[Block] = []
    for i, protocol in enumerate(protocols):
        first = protocols[0]
        items = {
            name: (worded(protocol.get(name, "not given")), protocol.get(name, ...) != first.get(name, ...))
            for name in sorted(protocol | first)
        }
        found.append(Heading(f"Protocol {_letter(i)}" if len(protocols) > 1 else "Protocol"))
        found.append(page.Settings(items) if items else Note("None was recorded."))
    return found


def best_of(name: str, records: Sequence[Record], protocol: dict) -> float | None:
    """The best value of a metric among records of this protocol; None where there is nothing to choose from."""
    values = [record["metrics"].get(name) for _, record, of in records if of == protocol]
    values = [value for value in values if is_number(value)]
    choose = better(name)
    return choose(values) if choose is not None and len(values) > 1 else None
