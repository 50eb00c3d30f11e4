"""Stop, pause, go on: how whoever waits for a long piece of work steers it, and how it tells what it is doing.

    control = Control(listeners=[print])
    threading.Thread(target=train.run, args=(method, cfg, "glyphs", loop), kwargs={"control": control}).start()
    control.pause(); control.go_on(); control.stop()

`train.run` and style transfer take one. Its methods may be called from any thread and from a signal's handler; the work
looks at it between two dispatches, saves what it has, and then obeys. Events are told in the work's own thread, in
order; an exception in a listener ends the work. The progress bar, the journal of a run and the handler of signals are
listeners and callers like any other.
"""

import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Advanced:
    """So much of the work is done. Told about once a second."""

    done: int  # training steps, or evaluations of an image
    total: int


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Numbers of a training step (means since the last line of the log), or losses of an image.

    With them what looking at the pictures of that step has shown, see Watched; "warning" is a text.
    """

    step: int
    values: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What the pictures are like by now: (n, h, w, c) float32 in [-1, 1], or several such by title."""

    step: int
    pictures: np.ndarray | dict[str, np.ndarray]
    columns: int | None = None  # of the grid that shows them best, where that is known


@dataclasses.dataclass(frozen=True)
class Watched:
    """What looking at the pictures has shown: numbers, and what a person should look at."""

    step: int
    numbers: dict[str, float]
    warning: str | None


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A record of judge/evaluate.py's."""

    step: int
    record: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Saved:
    """What was done up to this step is copied, and is being written; it counts once it is whole."""

    step: int
    path: Path


@dataclasses.dataclass(frozen=True)
class Done:
    """The work has ended: all of it, or as much as there was time for until it was stopped."""

    step: int
    stopped: bool


Event = Advanced | Metrics | Pictures | Watched | Evaluated | Saved | Done


class Control:
    """Carries wishes to a piece of work, and its events back; safe to use from any thread."""

    def __init__(self, listeners: Sequence[Callable[[Event], None]] = ()):
        self.listeners = list(listeners)
        self.signal = 0  # number of the signal that asked to stop, if one did
        self._stopping = threading.Event()
        self._going = threading.Event()
        self._going.set()

    def stop(self, number: int = 0) -> None:
        """Asks the work to save and end. number: of the signal that wants it, which decides the exit status."""
        self.signal = self.signal or number
        self._stopping.set()
        self._going.set()  # what is paused has to hear of it

    def pause(self) -> None:
        """Asks the work to save and wait."""
        if not self._stopping.is_set():
            self._going.clear()

    def go_on(self) -> None:
        """Ends a pause."""
        self._going.set()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def paused(self) -> bool:
        return not self._going.is_set()

    def wait(self, seconds: float | None = None) -> None:
        """Returns when no pause is asked for (any more), at the latest after so many seconds."""
        self._going.wait(seconds)

    @contextlib.contextmanager
    def heard_by(self, *listeners: Callable[[Event], None]) -> Iterator[None]:
        """Within it these listen too, before those that came earlier."""
        before = list(self.listeners)
        self.listeners[:0] = listeners
        try:
            yield
        finally:
            self.listeners[:] = before

    def tell(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)


# What schedulers and terminals send: SIGTERM and SIGINT everywhere, SIGUSR1 and SIGUSR2 by Slurm's and LSF's warnings
# of a time limit, SIGHUP when a terminal or a connection is closed.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)


@contextlib.contextmanager
def heeding_signals(control: Control, doing: str = "finishing what is under way, then saving") -> Iterator[None]:
    """Within it a signal stops the work by `control` instead of ending the program at once; the second one ends it.

    Does nothing outside the main thread: whoever started the thread handles signals, and calls `control.stop`. What
    ignores a signal, as `nohup` does SIGHUP, goes on ignoring it.
    """

    def note(number: int, frame: object) -> None:
        if control.signal:
            raise KeyboardInterrupt  # asked twice: stop now
        control.stop(number)
        print(f"{signal.Signals(number).name} received: {doing}", file=sys.stderr, flush=True)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
