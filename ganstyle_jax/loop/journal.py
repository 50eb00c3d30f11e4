"""Who listens to a run: the journal in its folder (metrics, TensorBoard, sample grids), and the person at the terminal.

Of several processes only the first one's listen.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ganstyle_jax.control import Advanced, Evaluated, Event, Metrics, Pictures, Watched
from ganstyle_jax.io import images, sheet
from ganstyle_jax.io.files import atomic_path
from ganstyle_jax.loop import runs


class Journal:
    """Writes what a run tells into its folder. A log that cannot be written ends the run, but for TensorBoard's."""

    def __init__(self, run_dir: Path, step: int):
        self.run_dir, self.step, self.logged = run_dir, step, step
        self.metrics = run_dir / "metrics.jsonl"
        self.tensorboard: Any = None
        drop_lines_after(self.metrics, step)
        drop_lines_after(run_dir / "evaluations.jsonl", step)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Metrics):
            self._line(event.step, event.values)
            self._to_tensorboard(event.step, {k: v for k, v in event.values.items() if not isinstance(v, str)})
        elif isinstance(event, Pictures):
            picture = sheet.of(event.pictures, event.columns)
            images.save_png(self.run_dir / "samples" / f"{event.step:06d}.png", picture)
            self._to_tensorboard(event.step, {"samples": picture})
        elif isinstance(event, Watched):
            if event.step != self.logged:  # else they stand in that line
                warning = {} if event.warning is None else {"warning": event.warning}
                self._line(event.step, event.numbers | warning)
                self._to_tensorboard(event.step, event.numbers)
        elif isinstance(event, Evaluated):
            runs.add_evaluation(self.run_dir, event.record)
            numbers = runs.numbers_of(event.record)
            self._to_tensorboard(event.step, {f"evaluation/{name}": value for name, value in numbers.items()})

    def close(self) -> None:
        if self.tensorboard is not None:
            with contextlib.suppress(OSError):  # a full disk has been reported already
                self.tensorboard.close()

    def _line(self, step: int, values: dict[str, Any]) -> None:
        with open(self.metrics, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.logged = step

    def _to_tensorboard(self, step: int, values: dict[str, Any]) -> None:
        """Appends scalars and pictures, (h, w, c) uint8, to the event file."""
        # Imported after the first step, because it is slow. Not tensorboardX's SummaryWriter: it writes in a thread of
        # its own, which dies on a full disk without a word, and the run then waits for ever at its full queue.
        with without("torch"):
            from tensorboardX import summary
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        if self.tensorboard is None:
            (self.run_dir / "tensorboard").mkdir(parents=True, exist_ok=True)
            self.tensorboard = EventsWriter(str(self.run_dir / "tensorboard" / "events"))
            start = SessionLog(status=SessionLog.START)  # hides what an earlier process logged past this step
            self.tensorboard.write_event(Event(wall_time=time.time(), step=self.step + 1, session_log=start))
        for name, value in values.items():
            image = isinstance(value, np.ndarray)
            entry = summary.image(name, value, dataformats="HWC") if image else summary.scalar(name, value)
            self.tensorboard.write_event(Event(wall_time=time.time(), step=step, summary=entry))
        self.tensorboard.flush()


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Within it a package that is not imported yet counts as not installed.

    tensorboardX imports PyTorch wherever it is, for what nobody asks of it here, and that takes 2 to 5 seconds.
    """
    absent = name not in sys.modules
    if absent:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            del sys.modules[name]


QUIET = 30.0  # seconds between lines where output goes to a file


class Terminal:
    """Tells the person at the terminal: a bar where there is one, a line now and then where output goes to a file."""

    def __init__(
        self, run_dir: Path, steps: int, step: int, started: float, progress: Literal["auto", "bar", "lines", "none"]
    ):
        from tqdm import tqdm

        self.run_dir, self.started, self.step, self.steps = run_dir, started, step, steps
        self.first = True
        self.warned = False
        self.spoken = 0.0
        self.numbers = ""
        auto = "bar" if sys.stderr.isatty() else "lines"
        self.how = auto if progress == "auto" else progress
        shown = {"unit": "step", "dynamic_ncols": True, "smoothing": 0.1, "disable": self.how != "bar"}
        # "compiling" until the first step is done
        self.bar = tqdm(desc="compiling", total=steps, initial=step, **shown)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Advanced):
            if self.first:
                self.first = False
                self.bar.set_description_str("")
                self.say(f"first training step after {time.perf_counter() - self.started:.1f} s")
            self.bar.update(event.done - self.step)
            self.step = event.done
        elif isinstance(event, Metrics):
            losses = " ".join(f"{name} {v:.3g}" for name, v in event.values.items() if name.startswith("loss"))
            self.numbers = f"{losses} {event.values.get('images_per_second', 0):.0f} images/s"
            self.bar.set_postfix_str(self.numbers)
            now = time.perf_counter()
            if self.how == "lines" and (now - self.spoken > QUIET or event.step == self.steps):
                self.spoken = now
                self.say(f"step {event.step} of {self.steps}: {self.numbers}")
        elif isinstance(event, Watched):
            if event.warning is not None and not self.warned:  # said again only after it was over
                self.say(f"warning at step {event.step}: {event.warning}")
            self.warned = event.warning is not None
        elif isinstance(event, Evaluated):
            numbers = runs.numbers_of(event.record)
            found = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            self.say(f"step {event.step}: {found}; best so far: step {runs.best_step(self.run_dir)}")

    def say(self, text: str) -> None:
        if self.how != "none":
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()


def drop_lines_after(path: Path, step: int) -> None:
    """Removes from a metrics.jsonl the lines of steps that will be done again, and a line cut off by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept))
