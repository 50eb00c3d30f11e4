"""`ganstyle collect`: a table of many runs, with what they differ in and the mean and spread over their seeds."""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ganstyle_jax.io.files import UserError
from ganstyle_jax.look.words import is_number
from ganstyle_jax.loop import runs

# Of a run's settings, what says where and how it was done and not what it was.
CIRCUMSTANCES = (
    *("run_dir", "seed", "resume", "parallel", "shard_state", "devices", "steps_per_dispatch", "data_on_device"),
    *("out", "save_every", "animation", "trace", "workers", "log_every", "sample_every", "checkpoint_every"),
    *("keep_checkpoints", "keep_every", "evaluate_every", "evaluate_metrics", "evaluate_features", "evaluate_count"),
    *("stop_on_collapse", "profile", "dry_run"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs of the same method and settings with different seeds."""

    method: str
    settings: dict[str, Any]  # only those in which rows of this method differ
    runs: tuple[str, ...]  # folders
    steps: tuple[int, ...]  # how far each has come
    means: dict[str, float]  # of each metric's last value over the runs that have it
    spreads: dict[str, float]  # their standard deviations, NaN for a single run


def collect(folders: Sequence[Path], force: bool = False) -> list[Row]:
    """Rows of all runs in these folders, at any depth, with what they logged and how they were evaluated last.

    Raises UserError where there are none, and where they were evaluated in different ways, unless `force`.
    """
    if not folders:
        raise UserError("say in which folder the runs are, such as `ganstyle collect runs`")
    found = sorted({path.parent for folder in folders for path in Path(folder).rglob("run.json")})
    if not found:
        raise UserError(f"no runs in {', '.join(map(str, folders))}: a run's folder holds a run.json")
    described: dict[Path, tuple[str, dict]] = {}
    evaluated: dict[Path, dict] = {}
    logged: dict[Path, dict[str, float]] = {}
    damaged = []
    for folder in found:
        try:
            told, records, values = runs.read(folder), runs.evaluations(folder), last_values(folder)
        except UserError as error:
            damaged.append(str(error))
            continue
        described[folder], logged[folder] = settings_of(told), values
        if records:
            evaluated[folder] = records[-1]
    if not described:
        raise UserError(damaged[0])
    for error in damaged:
        print(f"Left out: {error}", file=sys.stderr)
    if not force:
        check_protocols(evaluated)
    for folder, record in evaluated.items():
        logged[folder] |= {f"evaluation/{name}": value for name, value in numbers(record["metrics"]).items()}
    methods = dict.fromkeys(method for method, _ in described.values())
    return [row for method in methods for row in _rows(method, described, logged)]


def _rows(method: str, described: dict[Path, tuple[str, dict]], logged: dict[Path, dict[str, float]]) -> list[Row]:
    """Those of one method: others have other settings."""
    of_method = {folder: settings for folder, (name, settings) in described.items() if name == method}
    names = sorted({name for settings in of_method.values() for name in settings})
    differing = [name for name in names if len({repr(s.get(name)) for s in of_method.values()}) > 1]
    groups: dict[str, list[Path]] = {}
    for folder, settings in of_method.items():
        groups.setdefault(repr([settings.get(name) for name in differing]), []).append(folder)
    return [
        _row(method, {name: of_method[of[0]].get(name) for name in differing}, of, logged) for of in groups.values()
    ]


def check_protocols(evaluated: dict[Path, dict]) -> None:
    """UserError where two records were not made in the same way, with what differs."""
    if not evaluated:
        return
    (first, *others) = [(folder, runs.protocol_of(record)) for folder, record in evaluated.items()]
    for folder, protocol in others:
        names = [name for name in sorted(protocol | first[1]) if protocol.get(name) != first[1].get(name)]
        if names:
            differences = "; ".join(f"{name} {first[1].get(name)!r} and {protocol.get(name)!r}" for name in names)
            raise UserError(
                f"{first[0]} and {folder} were evaluated in different ways ({differences}), so that their figures "
                "cannot be compared: evaluate them anew in the same way, or use --force"
            )


def settings_of(description: dict) -> tuple[str, dict[str, Any]]:
    """A run's method, and all else that decides its result but its seed."""
    loop = {name: value for name, value in description["loop"].items() if name not in CIRCUMSTANCES}
    data = description["data"]
    if isinstance(data, dict):  # of several sources, as one says it: horses=a zebras=b
        data = " ".join(f"{source}={spec}" for source, spec in data.items())
    return description["method"], {"data": data} | loop | description["config"]


def last_values(folder: Path) -> dict[str, float]:
    """The last value of everything in a run's log, "step" among them."""
    values: dict[str, float] = {"step": 0}
    for line in runs.read_lines(folder / "metrics.jsonl"):
        values |= numbers(line)
    return values if is_number(values["step"]) else values | {"step": 0}


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """Those that are numbers, NaN among them: it says that a run has diverged."""
    kept = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {name: value for name, value in kept.items() if isinstance(value, float) or is_number(value)}


def _row(method: str, settings: dict[str, Any], folders: list[Path], logged: dict[Path, dict[str, float]]) -> Row:
    values = [logged[folder] for folder in folders]
    means, spreads = {}, {}
    for name in dict.fromkeys(name for of in values for name in of if name != "step"):
        of_runs = [of[name] for of in values if name in of]
        finite = all(map(is_number, of_runs))
        means[name] = fmean(of_runs) if finite else math.nan
        spreads[name] = stdev(of_runs) if finite and len(of_runs) > 1 else math.nan
    return Row(method, settings, tuple(map(str, folders)), tuple(int(of["step"]) for of in values), means, spreads)


def table(rows: Sequence[Row]) -> str:
    """In Markdown, one line for each row; a table for each method where there are several."""
    methods = list(dict.fromkeys(row.method for row in rows))
    if len(methods) == 1:
        return _table(rows)
    return "\n\n".join(f"{name}\n\n{_table([row for row in rows if row.method == name])}" for name in methods)


def _table(rows: Sequence[Row]) -> str:
    settings = list(rows[0].settings)
    metrics = list(dict.fromkeys(name for row in rows for name in row.means))
    lines = [[*settings, "runs", "steps", *metrics]]
    for row in rows:
        low, high = min(row.steps), max(row.steps)
        cells = [str(row.settings[name]) for name in settings]
        cells += [str(len(row.runs)), str(low) if low == high else f"{low} to {high}"]
        lines.append(cells + [_value(row.means.get(name), row.spreads.get(name)) for name in metrics])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(map(cell, cells)) + " |" for cells in lines)


def cell(text: str) -> str:
    """Text that cannot end a cell of a table, or its line."""
    return " ".join(text.split()).replace("|", "\\|")


def _value(mean: float | None, spread: float | None) -> str:
    if mean is None or spread is None:
        return ""
    return f"{mean:.4g}" if math.isnan(spread) else f"{mean:.4g} ± {spread:.2g}"


def record(rows: Sequence[Row]) -> list[dict]:
    """For JSON, where there is no NaN."""
    plain = [dataclasses.asdict(row) for row in rows]
    for row in plain:
        for kind in ("means", "spreads"):
            row[kind] = {name: None if math.isnan(value) else value for name, value in row[kind].items()}
    return plain
