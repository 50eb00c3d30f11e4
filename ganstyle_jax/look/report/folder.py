"""What a run folder holds, read for a report: nothing in it is trusted, and nothing of it is written.

A file that is damaged as a whole is a UserError or a note of one sentence; a part of one that makes no sense is passed
over. Texts come without the folders that lead to them, since a report may be shown to anybody.
"""

import dataclasses
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ganstyle_jax import builtin, contract
from ganstyle_jax.io.files import UserError, first_line
from ganstyle_jax.look.words import is_number, short, shortened, told_apart
from ganstyle_jax.loop import runs

LARGEST_FILE = 64 << 20  # bytes of explain.json, which holds texts


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run folder holds in words and numbers."""

    folder: Path
    name: str
    description: dict[str, Any]  # run.json
    lines: list[dict[str, Any]]  # metrics.jsonl; "step" is a number
    evaluations: list[dict[str, Any]]  # evaluations.jsonl; "step" is a number, "metrics" holds numbers alone

    @property
    def method(self) -> str:
        return self.description["method"]

    @property
    def is_trained(self) -> bool:
        """Whether a network was trained, and not one picture optimised."""
        return contract.trains(self.method)

    @property
    def kind(self) -> Literal["training", "stylised", "restored"]:
        """The name of the module that lays it out."""
        if self.is_trained:
            return "training"
        return "restored" if ".restore." in builtin.OPTIMISED[self.method] else "stylised"

    @property
    def data(self) -> str | dict[str, str]:
        return self.description["data"]

    @property
    def config(self) -> dict[str, Any]:
        return self.description["config"]

    @property
    def loop(self) -> dict[str, Any]:
        return self.description["loop"]

    @property
    def step(self) -> int:
        """How far it has come."""
        return int(max((line["step"] for line in self.lines), default=0))

    @property
    def settings(self) -> dict[str, Any]:
        """All of run.json that was chosen, by name, as it is written there."""
        told = {"method": self.method, "data": self.data}
        return told | self.config | {k: v for k, v in self.loop.items() if k != "run_dir"}

    def points(self, name: str) -> list[tuple[float, Any]]:
        """A metric's values by step."""
        return [(line["step"], line[name]) for line in self.lines if name in line]

    def told(self, error: BaseException | str) -> str:
        """What an error says, without where the run is on this machine."""
        text = error if isinstance(error, str) else first_line(error)
        for folder in (self.folder, self.folder.absolute(), self.folder.resolve()):
            text = text.replace(f"{folder}/", "").replace(str(folder), self.name) if len(folder.parts) > 1 else text
        for spec in [self.data] if isinstance(self.data, str) else self.data.values():
            text = text.replace(spec, short(spec)) if spec else text
        return short(f" {text}")[1:]  # a space: it is a sentence even where it begins with a path


def read(folder: Path | str, name: str) -> Run:
    """Raises UserError where there is no run, or a file of it cannot be read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"there is no run folder {folder}: give one that ganstyle train left, or --run-dir of ganstyle stylize or "
            "ganstyle restore"
        )
    description = runs.read(folder)
    lines = [shortened(line) for line in runs.read_lines(folder / "metrics.jsonl") if is_number(line.get("step"))]
    records = [record for record in runs.read_lines(folder / "evaluations.jsonl") if is_number(record.get("step"))]
    records = [shortened(record) for record in records if isinstance(record.get("metrics"), dict)]
    records = [r | {"metrics": {k: v for k, v in r["metrics"].items() if is_number(v)}} for r in records]
    return Run(folder, name, description, lines, records)


def names_of(folders: Sequence[Path]) -> list[str]:
    """As few last parts of the paths as tell them apart. Raises UserError for a run that is given twice."""
    names = told_apart([Path(folder).resolve() for folder in folders])
    if names is None:
        raise UserError(f"a run is given twice: {', '.join(map(str, folders))}")
    return names


def read_picture(path: Path) -> np.ndarray:
    """A picture of a run folder, (h, w, 3) uint8. Raises UserError."""
    if not path.is_file():
        raise UserError(f"there is no picture {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is much too large is refused below
            with Image.open(path) as file:
                return np.asarray(file.convert("RGB"))
    except Exception as error:  # decoders raise whatever they come across, struct.error and IndexError among it
        raise UserError(f"{path} is no picture that can be read: {first_line(error)}") from error


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """The files NNNNNN.png of a folder, by rising number; none where there is no folder."""
    files = folder.glob("*.png") if folder.is_dir() else ()
    return sorted((int(path.stem), path) for path in files if re.fullmatch(r"[0-9]{1,15}", path.stem))


def explanation(run: Run) -> list[dict[str, Any]]:
    """The sections of explain/explain.json, [{"title", "text", "pictures": [{"file", "caption"}]}]; [] without one.

    What in it is no section or no picture is passed over. UserError where the file as a whole cannot be read.
    """
    path = run.folder / "explain" / "explain.json"
    if not path.exists():
        return []
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE >> 20} MiB")
        told = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told, dict) or not isinstance(told.get("sections"), list):
            raise ValueError('it has no list of "sections"')
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"explain/explain.json cannot be read ({run.told(error)}): run ganstyle explain again"
        ) from None
    found = []
    for section in told["sections"]:
        if not isinstance(section, dict):
            continue
        pictures = section.get("pictures")
        pictures = [p for p in pictures if isinstance(p, dict)] if isinstance(pictures, list) else []
        words = {name: run.told(str(section.get(name, ""))) for name in ("title", "text")}
        kept = [{name: str(p.get(name, "")) for name in ("file", "caption")} for p in pictures]
        found.append({**words, "pictures": [p | {"caption": run.told(p["caption"])} for p in kept]})
    return found


def explained_picture(run: Run, file: str) -> np.ndarray:
    """A picture that explain.json names. UserError for one that cannot be read or is none of the folder's."""
    folder = run.folder / "explain"
    try:
        path = (folder / file).resolve()
        if folder.resolve() not in path.parents:
            raise UserError(f"{file} lies outside {run.name}/explain")
    except (OSError, ValueError, RuntimeError) as error:  # a name with a NUL, a link to itself
        raise UserError(f"{file[:100]!r} is no name of a file: {run.told(error)}") from None
    return read_picture(path)
