"""The file beside a picture in which the work on it is kept while it is under way, so that `--resume` goes on with it.

OUT.state.safetensors holds the arrays of a `deep_image_prior.State`; its metadata say of which pictures and settings it
is, and the lines of the trace. Of several pictures, one that is done leaves a file without arrays until all are done.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax.contract import to_json
from ganstyle_jax.io.files import UserError, atomic_path, first_line
from ganstyle_jax.loop.checkpoints import digest
from ganstyle_jax.restoration.reading import Piece
from ganstyle_jax.restore.deep_image_prior import Config

EVERY = 60.0  # seconds from one write to the next,
SHARE = 0.05  # or as many more as it takes for this share of the time to be spent on writing
FORMAT = "ganstyle restoration 1"


@dataclasses.dataclass(frozen=True)
class Found:
    """What an earlier command has left."""

    arrays: Mapping[str, np.ndarray]  # none where the picture is done
    lines: list[dict[str, Any]]  # of the trace
    seconds: float  # that were spent on it

    @property
    def done(self) -> bool:
        return not self.arrays


def identity(piece: Piece, seed: int, cfg: Config) -> dict[str, str]:
    """What the bits of a result follow from, in the words for one that differs."""
    return {
        "another picture": digest(piece.measured),
        "another mask": digest(piece.mask),
        "another picture with flash": digest(piece.guide),
        "another seed": str(seed),
        "config": json.dumps(to_json(cfg)),
    }


class Keeper:
    """Writes what is left of the work on one picture: about every minute, and at once when it is to stop."""

    def __init__(self, path: Path, of: dict[str, str]):
        self.path, self.of = path, of
        self.next = time.monotonic() + EVERY

    @property
    def due(self) -> bool:
        return time.monotonic() >= self.next

    def found(self) -> Found | None:
        """What there is to go on from. UserError for what is damaged, or left by other work."""
        if not self.path.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError("it does not say of what it is")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dict
            words = differences(json.loads(metadata["of"]), self.of)
            lines, seconds = json.loads(metadata["lines"]), float(metadata["seconds"])
            if not isinstance(lines, list) or not all(isinstance(line, dict) and "step" in line for line in lines):
                raise ValueError("its trace makes no sense")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self.refusal(error) from None
        if words:
            raise UserError(
                f"{self.path} was left by other work, with {', '.join(words)}: give what it was made with, or remove "
                "it to begin anew"
            )
        return Found(arrays, lines, seconds)

    def refusal(self, error: Exception) -> UserError:
        why = first_line(error)
        return UserError(f"{self.path} is no state that can be gone on from ({why}): remove it to begin anew")

    def keep(self, arrays: Mapping[str, np.ndarray], lines: list[dict[str, Any]], seconds: float) -> None:
        """arrays: of a state; none where the picture is done."""
        from safetensors.numpy import save_file

        began = time.monotonic()
        metadata = {"format": FORMAT, "of": json.dumps(self.of), "lines": json.dumps(lines), "seconds": str(seconds)}
        with atomic_path(self.path) as temporary:
            save_file({name: np.array(x, order="C") for name, x in arrays.items()}, temporary, metadata)
        ended = time.monotonic()
        self.next = ended + max(EVERY, (ended - began) / SHARE)


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """In what the work differs, in words."""
    words = [name for name in now if name != "config" and before[name] != now[name]]
    old, new = json.loads(before["config"]), json.loads(now["config"])
    return words + [f"{name} {old.get(name)} instead of {new[name]}" for name in new if old.get(name) != new[name]]
