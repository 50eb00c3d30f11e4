"""Training for so much processor time, for experiments that compare methods whose steps cost differently."""

import time
from typing import Any

from ganstyle_jax import contract
from ganstyle_jax.control import Advanced, Control, Event
from ganstyle_jax.loop import train


class Budget:
    """Processor time from when it is first asked for: compiling does not count, nor does a pause."""

    def __init__(self, seconds: float):
        self.seconds, self.spent = seconds, 0.0
        self.began: float | None = None

    def is_spent(self) -> bool:
        now = time.process_time()
        self.began = now if self.began is None else self.began
        self.spent = now - self.began
        return self.spent > self.seconds


def train_for(minutes: float, method: contract.Method, cfg: Any, source: str, loop: train.Loop) -> float | None:
    """Trains a run, or goes on with it, until its steps are done or the time after its first one is spent.

    Returns the seconds of processor time that the whole run took, or None if it went on, when they are not known.
    """
    assert loop.run_dir is not None
    control, budget = Control(), Budget(60 * minutes)
    goes_on = (loop.run_dir / "checkpoints").exists()

    def within_budget(event: Event) -> None:
        if isinstance(event, Advanced) and budget.is_spent():
            control.stop()

    with control.heard_by(within_budget):
        train.run(method, cfg, source, loop, control=control)
    return None if goes_on else round(budget.spent, 1)
