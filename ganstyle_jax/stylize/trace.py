"""What `ganstyle stylize --trace` writes of a picture: settings, and loss, time and memory after each step."""

import dataclasses
import json
import resource
import time
from pathlib import Path
from typing import Any

from ganstyle_jax.io.files import atomic_path
from ganstyle_jax.style import gatys
from ganstyle_jax.stylize.orders import Order, Settings
from ganstyle_jax.stylize.run_folder import plain


class Trace:
    """The steps of one picture, over all sizes."""

    def __init__(self):
        self.started = time.perf_counter()
        self.steps: list[dict[str, Any]] = []
        self.resets: dict[tuple[int, int], int] = {}  # failed line searches by size
        self.before = 0  # evaluations at earlier sizes

    @property
    def evaluations(self) -> int:
        return self.steps[-1]["evaluations"] if self.steps else 0

    def add(self, told: gatys.Progress) -> list[dict[str, Any]]:
        """Notes the steps since the last call, and returns them; none where the picture waits for the others."""
        new: list[dict[str, Any]] = []
        if told.shape not in self.resets:
            self.before = self.evaluations
            if told.terms_at == 1:  # at the beginning of a size, before its first step
                new.append(self._at(1, told, sum(told.terms.values())) | {"terms": told.terms})
        self.resets[told.shape] = told.resets
        new += [self._at(evaluations, told, loss) for evaluations, loss in told.losses]
        self.steps += new
        self.steps[-1] |= {
            "resets": told.resets,
            "seconds": round(time.perf_counter() - self.started, 3),
            "memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }
        if told.terms_at == told.evaluations:  # of this very moment
            self.steps[-1]["terms"] = told.terms
        return new

    def notes(self) -> dict[str, Any]:
        """All of it, for JSON; `restore` undoes it."""
        resets = [[*shape, count] for shape, count in self.resets.items()]
        seconds = time.perf_counter() - self.started
        return {"steps": self.steps, "resets": resets, "before": self.before, "seconds": seconds}

    def restore(self, notes: dict[str, Any]) -> None:
        self.steps, self.before = list(notes["steps"]), notes["before"]
        self.resets = {(height, width): count for height, width, count in notes["resets"]}
        self.started = time.perf_counter() - notes["seconds"]

    def _at(self, evaluations: int, told: gatys.Progress, loss: float) -> dict[str, Any]:
        height, width = told.shape
        return {"evaluations": self.before + evaluations, "size": [width, height], "loss": loss}

    def write(self, path: Path, order: Order, cfg: gatys.Config, settings: Settings) -> None:
        trace = {
            "content": str(order.content),
            "styles": [str(style) for style in order.styles],
            "config": dataclasses.asdict(cfg),
            "settings": plain(dataclasses.asdict(settings)),
            "steps": self.steps,
        }
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(trace, indent=1) + "\n")

    def summary(self) -> str:
        """For the person at the terminal."""
        if not self.steps:  # --steps 1: the one evaluation tells where to go, and there it ends
            return "no step"
        last, failed = self.steps[-1], sum(self.resets.values())
        totals: dict[str, float] = {}
        for name, value in last.get("terms", {"loss": last["loss"]}).items():
            kind = name.split("/")[0]
            totals[kind] = totals.get(kind, 0.0) + value
        parts = ", ".join(f"{kind} {total:.4f}" for kind, total in totals.items())
        failures = f", line search failed {failed} times" if failed else ""
        return f"{parts} after {last['evaluations']} evaluations{failures}"
