"""`ganstyle report`: runs in one HTML file."""

import dataclasses
from pathlib import Path

import tyro

from ganstyle_jax.commands import flags


@dataclasses.dataclass(frozen=True)
class Report:
    """Write one HTML file that shows runs, alone or side by side, and opens in any browser without a network.

    RUN is a folder that `ganstyle train` left, or `--run-dir` of `ganstyle stylize` or `ganstyle restore`.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]  # run folders
    out: Path | None = None  # file to write; by default report.html in the folder of a single run, or here
    training_images: int = 5000  # how many to look through for those nearest to samples; 0 leaves that out


def run(command: Report) -> None:
    flags.use_cache()
    from ganstyle_jax.look import report as reporting

    default = command.runs[0] / "report.html" if len(command.runs) == 1 else Path("report.html")
    written = reporting.write(command.runs, command.out or default, command.training_images)
    print(f"{written}: {written.stat().st_size / 1e6:.1f} MB")
