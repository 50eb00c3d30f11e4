"""`ganstyle collect`: many runs in one table."""

import dataclasses
import json
from pathlib import Path

import tyro

from ganstyle_jax.io.files import atomic_path


@dataclasses.dataclass(frozen=True)
class Collect:
    """Put runs into one table: what they differ in, and the mean and spread over seeds of what they logged last."""

    folders: tyro.conf.Positional[tuple[Path, ...]]  # run folders, or folders of them at any depth
    json: Path | None = None  # file to write the same to
    force: bool = False  # put figures side by side that were found in different ways


def run(command: Collect) -> None:
    from ganstyle_jax.look import collect as collection

    rows = collection.collect(command.folders, command.force)
    if command.json is not None:
        with atomic_path(command.json) as path:
            path.write_text(json.dumps(collection.record(rows), indent=1) + "\n")
    print(collection.table(rows))
