"""What a timing belongs to: hardware, versions, command and date, and the file that all of it is kept in.

Standard library alone, apart from `write_record`: the PyTorch worker imports this file too, from an interpreter that
may have little else installed.
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"


def describe() -> dict[str, Any]:
    """Command line, UTC date, commit and machine, to begin a record with."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": hardware(),
    }


def hardware() -> dict[str, Any]:
    """The machine; what cannot be found out is None. load_average says how busy it was with other work."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gib": memory_gib(),
        "gpus": gpus(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or None


def memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def gpus() -> list[str]:
    """Name, driver version and memory of each NVIDIA GPU, by nvidia-smi; empty without one."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return [line for line in _output(query).splitlines() if line]


def commit() -> str | None:
    """The commit of this checkout, "-dirty" where tracked files differ from it; None outside of git."""
    return _output(["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty"]) or None


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by their places: {"a2b/down1/kernel": ..}."""
    if not isinstance(tree, dict):
        return {name: tree}
    return {k: v for part, x in tree.items() for k, v in flat(x, f"{name}/{part}" if name else part).items()}


def quartiles(x: Sequence[float]) -> list[float]:
    """The first and the third."""
    cuts = statistics.quantiles(x, n=4, method="inclusive") if len(x) > 1 else [x[0]] * 3
    return [cuts[0], cuts[2]]


def seconds(duration: float) -> float:
    """A duration for a record, to four digits: so nothing is so short that it is told as 0."""
    return float(f"{duration:.4g}")


def peak_bytes() -> int:
    """What this process had at most in memory so far."""
    try:  # what getrusage says counts, on Linux, the process that started this one
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Versions of Python and of the packages in this interpreter, None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def write_record(path: Path, record: dict[str, Any]) -> Path:
    """Writes the record as JSON and returns where: a bare name goes into experiments/results/."""
    return write_text(path, json.dumps(record, indent=1) + "\n")


def write_text(path: Path, text: str) -> Path:
    """As `write_record`."""
    from ganstyle_jax.io.files import atomic_path

    with atomic_path(place(path)) as temporary:
        temporary.write_text(text)
    return place(path)


def place(path: Path) -> Path:
    """Where a record goes: a bare name into experiments/results/."""
    return path if path.parent != Path(".") else RESULTS / path


def _output(command: list[str]) -> str:
    """What a command prints; "" if it is missing, fails or hangs."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


OURS = "ours"


def compare(medians: dict[str, float]) -> dict:
    """The fastest contestant of PyTorch, and our time as a multiple of its time."""
    best = min((name for name in medians if name != OURS), key=medians.__getitem__)
    return {"best_torch": best, "ratio": medians[OURS] / medians[best]}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def end(process: subprocess.Popen) -> None:
    """Ends a worker process that reads its stdin until that is closed; by force where that takes more than 10 s."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()  # which ends the compiler processes of torch.compile with it
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
