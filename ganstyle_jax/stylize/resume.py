"""The file beside a picture in which the work on it is kept, so that `--resume` goes on where it was ended.

OUT.state.safetensors holds the arrays of a `gatys.State`; its metadata say of which pictures, features and settings it
is, and what the journal had noted. A picture that is done leaves one without arrays, until the whole command is done.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax.control import Control
from ganstyle_jax.io.files import UserError, atomic_path, first_line
from ganstyle_jax.loop.checkpoints import digest
from ganstyle_jax.style import gatys
from ganstyle_jax.style.config import OPTIONAL, TURNED, Config
from ganstyle_jax.stylize.orders import Order

EVERY = 30.0  # seconds from one write to the next: a state of 512 pixels takes 110 MB, and half a second
FORMAT = "ganstyle state 1"


@dataclasses.dataclass(frozen=True)
class Found:
    """What an earlier command has left."""

    arrays: Mapping[str, np.ndarray]  # none where the picture is done
    notes: dict[str, Any]  # of the journal
    turned: bool  # whether weights or rates are others now
    tile: int  # which memory had decided on

    @property
    def done(self) -> bool:
        return not self.arrays


def path_of(order: Order) -> Path:
    return order.out.with_name(f"{order.out.stem}.state.safetensors")


def identity(job: gatys.Job, features: str, seed: int, cfg: Config) -> dict[str, str]:
    """What the bits of a picture follow from, in the words for one that differs. features: a digest."""
    masks = (job.content_masks, job.style_masks, None if job.opaque is None else [job.opaque])
    return {
        "another content picture": digest(job.content),
        "other style pictures": digest(list(job.styles)),
        "other masks": digest([None if of is None else list(of) for of in masks]),
        "another first image": digest(job.init_image),
        "other weights or layers of the styles": digest([repr(job.style_weights), repr(job.style_layers)]),
        "other features": features,
        "another seed": str(seed),
        "config": json.dumps(dataclasses.asdict(cfg)),
    }


class Keeper:
    """Writes what is left of the work on one picture: about every half minute, and at once when it is to stop."""

    def __init__(self, path: Path, of: dict[str, str], control: Control, tile: int):
        self.path, self.of, self.control, self.tile = path, of, control, tile
        self.notes: Any = dict  # gives what the journal has noted by then
        self.written = time.monotonic()

    def found(self, allow_changes: bool) -> Found | None:
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
            before, notes, tile = json.loads(metadata["of"]), json.loads(metadata["notes"]), int(metadata["tile"])
            differences, turned = differ(before, self.of, allow_changes)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self.refusal(error) from None
        if differences:
            raise UserError(
                f"{self.path} was left by other work, with {', '.join(differences)}: give what it was made with, or "
                "remove it to begin anew; --allow-changes goes on with other weights and rates"
            )
        return Found(arrays, notes, turned, tile)

    def refusal(self, error: Exception) -> UserError:
        why = first_line(error)
        return UserError(f"{self.path} is no state that can be gone on from ({why}): remove it to begin anew")

    def keep(self, state: gatys.State) -> None:
        """For `gatys.stylize`."""
        if self.control.stopping or time.monotonic() - self.written > EVERY:
            self._write(gatys.arrays_of(state))

    def finish(self) -> None:
        """The picture is done."""
        self._write({})

    def _write(self, arrays: dict[str, np.ndarray]) -> None:
        from safetensors.numpy import save_file

        metadata = {"format": FORMAT, "of": json.dumps(self.of), "notes": json.dumps(self.notes())}
        metadata["tile"] = str(self.tile)
        with atomic_path(self.path) as temporary:
            save_file({name: np.array(x, order="C") for name, x in arrays.items()}, temporary, metadata)
        self.written = time.monotonic()


@contextlib.contextmanager
def in_words(keeper: Keeper | None) -> Iterator[None]:
    """What a state is refused for once it is taken apart is a UserError too."""
    try:
        yield
    except gatys.StateError as error:
        assert keeper is not None
        raise keeper.refusal(error) from error


def differ(before: dict[str, str], now: dict[str, str], allow_changes: bool) -> tuple[list[str], bool]:
    """In what the work differs, in words; whether it does in weights or rates, where they may be changed."""
    words = [name for name in now if name != "config" and before[name] != now[name]]
    old, new = json.loads(before["config"]), json.loads(now["config"])
    changed = [name for name in new if old.get(name) != new[name] and name != "tile"]  # memory decides on tiles
    # A part of the program that was left away is another program.
    other = [name for name in OPTIONAL if bool(old.get(name)) != bool(new[name])]
    turned = [name for name in changed if allow_changes and name in TURNED and name not in other]
    words += [f"{name} {old.get(name)} instead of {new[name]}" for name in changed if name not in turned]
    return words, bool(turned)
