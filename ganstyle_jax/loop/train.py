"""The training loop: `run(method, cfg, data)` hides mesh, data, resume, logging, samples and checkpoints.

A method is a module as contract.py describes it, and knows nothing of devices but `axis_name`. Several steps go out in
one dispatch, and the host never waits for a single one: while the device computes, it prepares what comes next and logs
what came before. What is to be known of a run is told as events (control.py), which the journal in the run folder, the
person at the terminal and whoever else asks for them listen to.
"""

import contextlib
import dataclasses
import errno
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from ganstyle_jax import contract, programs
from ganstyle_jax.contract import Method
from ganstyle_jax.control import (
    Advanced,
    Control,
    Done,
    Evaluated,
    Event,
    Metrics,
    Pictures,
    Saved,
    Watched,
    heeding_signals,
)
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge import evaluate
from ganstyle_jax.loop import dry_run, processes, runs, sources
from ganstyle_jax.loop.checkpoints import Checkpoints, all_finite
from ganstyle_jax.loop.feed import Feed
from ganstyle_jax.loop.journal import Journal, Terminal
from ganstyle_jax.loop.lock import held
from ganstyle_jax.loop.settings import Loop
from ganstyle_jax.loop.step import abstract_state, everywhere, init_of, make_advance, make_mesh, shardings_of
from ganstyle_jax.nn import compiled

__all__ = ["Loop", "run"]

GRID = 64  # pictures in a sample grid
FEW = 100  # pictures of a source that are worth a word
ASKED = 1000  # in a ballot: to stop without a signal, which have numbers below


def run(
    method: ModuleType | Method,
    cfg: Any,
    data: Any = None,
    loop: Loop = Loop(),  # noqa: B008  (frozen)
    callback: Callable[[int, dict], None] | None = None,
    control: Control | None = None,
) -> Any:
    """Trains and returns the final state. Raises UserError for what a user can put right.

    method: a module, see contract.py. data: what `ganstyle train --data` takes, an open source or an array of images;
    {source: such} for a method that learns from several, None for one that needs none.
    callback(step, metrics) is called on every line of the log; an exception in it ends the run.
    control: stops, pauses and hears of events, see control.py. `control.stop()` saves a checkpoint and returns the
    state; in the main thread Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 save one and raise SystemExit(128 + number).
    """
    programs.keep()
    method, control = contract.of(method), control or Control()
    loop = dataclasses.replace(loop, run_dir=Path(loop.run_dir or Path("runs", Path(method.name).stem)))
    if loop.deterministic and "xla_gpu_deterministic_ops" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    started = time.perf_counter()
    owned = contextlib.nullcontext() if loop.dry_run else held(folder_of(loop), control.stop)
    with calling_back(callback, control), out_of_room_in_words(loop), runs.precision_of(cfg), owned:
        return _run(method, cfg, data, loop, control, started)


def _run(method: Method, cfg: Any, data: Any, loop: Loop, control: Control, started: float) -> Any:
    run_dir, mesh = folder_of(loop), make_mesh(loop)
    previous = runs.previous(run_dir, "auto" if loop.dry_run and loop.resume == "never" else loop.resume)
    processes.together("run folder checked")  # before the first one writes to it
    given = sources.named(data, method, cfg)
    found = sources.opened(given, method, cfg, loop.seed)
    for source in found.values():
        few = source.size is not None and source.size < FEW
        if source.opened or few:
            say(source.opened + few * f"{'; ' if source.opened else source.name + ': '}so few pictures teach little")
    cfg = method.settle(cfg, found)
    description = runs.describe(method, cfg, sources.described(given), loop, found)
    changes = (
        []
        if previous is None or loop.dry_run
        else runs.check_same(run_dir, previous, description, method, loop.allow_changes)
    )

    # Two independent streams: how the networks begin, and all that training draws.
    key_init, key_train = jax.random.split(jax.random.key(loop.seed))
    constants = jax.tree.map(lambda x: processes.put(x, everywhere(mesh)), method.constants(cfg))
    method.check_judged(cfg, constants)
    abstract = abstract_state(method, cfg, key_init, loop, mesh, constants)
    feed = Feed(sources.batched(found, method, cfg, loop), loop, mesh)
    advance = make_advance(method, cfg, key_train, loop, mesh, abstract, feed.rows)
    if loop.dry_run:
        print(dry_run.report(description, abstract, constants, advance, feed))
        return None

    if loop.parallel == "jit":  # from now on, while weights and data are made and read
        scalar = jax.ShapeDtypeStruct((), np.int32)
        shapes = (abstract, jax.tree.map(jax.typeof, constants), *feed.abstract(), scalar, scalar)
        advance = compiled.Ahead(advance, *shapes, within=functools.partial(runs.precision_of, cfg))

    checkpoints = Checkpoints(run_dir, loop.keep_checkpoints, loop.keep_every)
    restored = checkpoints.resume(abstract) if loop.resume != "never" else None
    if restored is not None:
        step, state = restored
        say(f"resuming {run_dir} at step {step}")
    elif loop.resume == "required":
        raise UserError(f"{run_dir} holds no checkpoint to resume; use --resume auto to begin where there is none")
    else:
        make = compiled.once(init_of(method, cfg), out_shardings=shardings_of(abstract))
        step, state = 0, make(key_init, constants)
        if loop.init_from is not None:
            state = runs.with_weights_of(loop.init_from, cfg, state)
    if step >= loop.steps:
        say(f"all {loop.steps} steps are done already (step {step}); samples and checkpoints are in {run_dir}")
        return state
    assess = None
    if loop.evaluate_every:
        assess = evaluate.in_training(method, cfg, given, loop.evaluation, mesh, constants, control)
    program = Program(method, cfg, loop, constants, feed, advance, assess)
    with heeding_signals(control):  # from before there is a run, so that whoever sees it may signal
        if processes.is_first():
            runs.write(run_dir, method, description)
            runs.record_changes(run_dir, step, changes)
        with told(loop, step, started, control):
            return Training(program, checkpoints, control, step, state, started).run()


def folder_of(loop: Loop) -> Path:
    assert loop.run_dir is not None
    return loop.run_dir


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run computes with."""

    method: Method
    cfg: Any
    loop: Loop
    constants: Any
    feed: Feed
    advance: Callable  # see step.make_advance
    assess: Callable[[int, Any], dict] | None  # (step, state) -> a record of how good its pictures are


@contextlib.contextmanager
def calling_back(callback: Callable[[int, dict], None] | None, control: Control) -> Iterator[None]:
    """Within it the callback listens."""

    def call_back(event: Event) -> None:
        if isinstance(event, Metrics) and callback is not None and processes.is_first():
            callback(event.step, {"step": event.step, **event.values})

    with control.heard_by(call_back):
        yield


@contextlib.contextmanager
def told(loop: Loop, step: int, started: float, control: Control) -> Iterator[None]:
    """Within it the run folder and the person at the terminal listen to what the run tells."""
    if not processes.is_first():
        yield
        return
    journal = Journal(folder_of(loop), step)
    terminal = Terminal(folder_of(loop), loop.steps, step, started, loop.progress)
    with contextlib.closing(journal), contextlib.closing(terminal), control.heard_by(journal, terminal):
        yield


class Training:
    """The loop itself: from a step to `loop.steps`, or as far as `control` lets it go."""

    def __init__(
        self, program: Program, checkpoints: Checkpoints, control: Control, step: int, state: Any, started: float
    ):
        method, cfg, feed = program.method, program.cfg, program.feed
        self.program, self.loop, self.feed, self.constants = program, program.loop, feed, program.constants
        self.checkpoints, self.control, self.step, self.state = checkpoints, control, step, state
        self.run_dir = folder_of(self.loop)
        self.stored = feed.load()
        self.examples = feed.examples(GRID)
        # Always the same requests, so that grids of different steps can be compared.
        requests = method.requests(jax.random.key(self.loop.seed), GRID, cfg, self.examples)
        self.requests = jax.tree.map(np.asarray, requests)
        whole = everywhere(feed.mesh)

        def draw(state: Any, constants: Any, requests: Any) -> Any:
            return method.sample(method.generator(state, cfg, constants), requests, cfg)

        # Compiled behind the first steps, which need neither.
        within = functools.partial(runs.precision_of, cfg)
        state_like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        drawn_from = state_like, self.constants, self.requests
        self.draw = compiled.Ahead(jax.jit(draw, out_shardings=whole), *drawn_from, within=within)
        self.finite = compiled.Ahead(jax.jit(all_finite, out_shardings=whole), state_like, within=within)
        self.meter = Meter(self.loop.batch_size, started)
        self.pending: tuple[int, int, dict] | None = None  # first step, steps and metrics of the dispatch under way
        self.means: dict[str, float] = {}  # of the last line of the log
        self.unlogged: Metrics | None = None  # of the last steps, if it is to be logged and is not yet
        self.alarms = 0  # sample grids in a row that were warned of
        self.last_saved = step
        self.pace = 1  # steps in a dispatch, so many that it takes about a second: signals and people want to be heard
        checkpoints.best = runs.best_step(self.run_dir)

    def run(self) -> Any:
        loop, profile, tracing = self.loop, self.loop.profile_range(), False
        votes = processes.agree(self._ballot, self.feed.mesh)
        with self.checkpoints, self.feed.stream(self.step, loop.steps) as chunks:
            if self.step and self._due(loop.evaluate_every) and not self._evaluated():
                self._evaluate()  # the run was stopped between a checkpoint and what was to be measured of it
            while self.step < loop.steps:
                stop, negative_pace, collapsed, paused = votes()
                if stop:
                    return self._stop(stop)
                if collapsed:
                    self._settle()
                    raise UserError(collapse_report(self.step, self.checkpoints, self.run_dir))
                if paused:
                    self._wait()
                    votes = processes.agree(self._ballot, self.feed.mesh)
                    continue
                count = self._count(-negative_pace)
                if self.step in profile and not tracing:
                    jax.profiler.start_trace(str(self.run_dir / "profile"))
                    tracing = True
                votes = processes.agree(self._ballot, self.feed.mesh)  # a dispatch ahead: nobody waits for it
                self._dispatch(chunks(self.step, count), count)
                if tracing and (self.step >= profile.stop or self.step == loop.steps):
                    self._settle()
                    jax.profiler.stop_trace()
                    tracing = False
                if self._due(loop.sample_every):
                    self._show()
                if self._due(loop.evaluate_every) or self._due(loop.checkpoint_every):
                    self._save()
                if self._due(loop.evaluate_every):
                    self._evaluate()
            self._settle()
            self.checkpoints.close()
        for sentence in self.feed.report():
            say(sentence)
        say(
            f"{loop.steps} steps done in {self.meter.elapsed():.0f} s; pictures: {self.run_dir / 'samples'}; "
            f"a page with all of it: ganstyle report {self.run_dir}"
        )
        self.control.tell(Done(self.step, stopped=False))
        return self.state

    def _ballot(self) -> list[int]:
        """What differs from process to process; all must stop together and do as many steps at a time."""
        stop = self.control.signal or (ASKED if self.control.stopping else 0)
        collapsed = self.loop.stop_on_collapse and self.alarms > 1
        return [stop, -self.pace, int(collapsed), int(self.control.paused)]

    def _due(self, every: int | None) -> bool:
        """Whether what happens every so many steps is to happen now."""
        return every is not None and (self.step % every == 0 or self.step == self.loop.steps)

    def _count(self, pace: int) -> int:
        """Steps of the next dispatch: up to the next step after which something is to be done."""
        loop, profile = self.loop, self.loop.profile_range()
        every = (loop.log_every, loop.sample_every, loop.checkpoint_every, loop.evaluate_every or loop.steps)
        ends = [self.step + pace, loop.steps, *((self.step // n + 1) * n for n in every)]
        ends += [edge for edge in (profile.start, profile.stop) if edge > self.step]
        return min(min(ends) - self.step, self.feed.rows)

    def _dispatch(self, chunk: dict, count: int) -> None:
        """Sends `count` steps to the devices, and waits for those before them."""
        arguments = (self.constants, self.stored, chunk, np.int32(self.step), np.int32(count))
        self.state, metrics = self.program.advance(self.state, *arguments)
        seconds = self._settle()
        if seconds:
            self.pace = max(1, int(1 / seconds))
        self.pending = (self.step, count, metrics)
        self.step += count

    def _settle(self) -> float:
        """Waits for the dispatch under way and tells of it; seconds that it took per step."""
        seconds = self._finish()
        self._log({})
        return seconds

    def _finish(self) -> float:
        if self.pending is None:
            return 0.0
        (first, count, metrics), self.pending = self.pending, None
        metrics = {name: np.asarray(values)[:count] for name, values in metrics.items()}
        check_finite(metrics, first, self.checkpoints, self.run_dir)
        seconds = self.meter.add(metrics, count)
        done = first + count
        self.control.tell(Advanced(done, self.loop.steps))
        if done % self.loop.log_every == 0 or done == self.loop.steps:
            self.means, rate = self.meter.means()
            self.unlogged = Metrics(done, {**self.means, "images_per_second": round(rate, 2)})
        return seconds / count

    def _log(self, seen: dict[str, Any]) -> None:
        """Tells the metrics of a step of the log once. seen: what looking at the pictures of that step has shown."""
        if self.unlogged is not None:
            line, self.unlogged = self.unlogged, None
            self.control.tell(Metrics(line.step, {**line.values, **seen}))

    def _show(self) -> None:
        """Draws the grid, and looks at it."""
        pictures = self.draw(self.state, self.constants, self.requests)
        self._finish()
        pictures = jax.tree.map(lambda x: np.asarray(x, np.float32), pictures)
        if not all(np.isfinite(part).all() for part in jax.tree.leaves(pictures)):
            raise UserError(not_finite("a sample", self.step, self.checkpoints, self.run_dir))
        numbers, warning = {}, None
        if processes.is_first():
            numbers, warning = self.program.method.watch(self.means, pictures, self.examples)
            self.alarms = 0 if warning is None else self.alarms + 1
        # In the line of the log of this step, if there is one, so that every step has one line.
        self._log({**numbers, **({} if warning is None else {"warning": warning})})
        self.control.tell(Pictures(self.step, pictures, contract.columns_of(self.requests)))
        if numbers or warning:
            self.control.tell(Watched(self.step, numbers, warning))

    def _save(self) -> None:
        self._settle()
        if self.step == self.last_saved:
            return
        if not self.finite(self.state):
            raise UserError(not_finite("the state", self.step, self.checkpoints, self.run_dir))
        self.checkpoints.save(self.step, self.state)
        self.last_saved = self.step
        self.control.tell(Saved(self.step, self.run_dir))

    def _evaluated(self) -> bool:
        return any(record["step"] == self.step for record in runs.evaluations(self.run_dir))

    def _evaluate(self) -> None:
        """Measures how good the pictures are, of a state that is saved already; a wish to stop interrupts it."""
        assess = self.program.assess
        assert assess is not None
        self._settle()
        with self.meter.paused():
            try:
                record = assess(self.step, self.state)
            except evaluate.Interrupted:
                return
        self.control.tell(Evaluated(self.step, record))
        self.checkpoints.best = runs.best_step(self.run_dir)

    def _wait(self) -> None:
        """A pause: saved, until it is over or half a second has gone by."""
        self._save()
        self.checkpoints.wait()
        with self.meter.paused():
            self.control.wait(0.5)

    def _stop(self, wish: int) -> Any:
        self._save()
        self.checkpoints.close()
        self.control.tell(Done(self.step, stopped=True))
        saved = f"saved step {self.step} in {self.run_dir}" if self.step else "no step was done yet"
        who = "stopped" if wish == ASKED else f"{signal.Signals(wish).name} received"
        say(f"{who}: {saved}; --resume auto goes on from there")
        if wish != ASKED:
            raise SystemExit(128 + wish)
        return self.state


class Meter:
    """Keeps time, and the metrics of the steps since the last line of the log."""

    def __init__(self, batch_size: int, started: float):
        self.batch_size, self.started = batch_size, started
        self.last = self.window_start = time.perf_counter()
        self.window: list[dict[str, np.ndarray]] = []
        self.first, self.untimed = True, 0

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def add(self, metrics: dict[str, np.ndarray], count: int) -> float:
        """Takes in the metrics of finished steps, {name: (count,)}; returns the seconds since the last call."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        self.window.append(metrics)
        if self.first:
            self.first = False
            self.window_start, self.untimed = now, count  # images/s without compilation
        return seconds

    def means(self) -> tuple[dict[str, float], float]:
        """The mean of each metric, and images a second, since the last call."""
        now = time.perf_counter()
        values = {name: np.concatenate([metrics[name] for metrics in self.window]) for name in self.window[0]}
        steps = len(next(iter(values.values())))
        rate = (steps - self.untimed) * self.batch_size / max(now - self.window_start, 1e-9)
        self.window, self.window_start, self.untimed = [], now, 0
        return {name: float(of_steps.mean(dtype=np.float64)) for name, of_steps in values.items()}, rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done within counts as neither a step's time nor an image's."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.last, self.window_start = self.last + seconds, self.window_start + seconds


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong, in words


def check_finite(metrics: dict, first: int, checkpoints: Checkpoints, run_dir: Path) -> None:
    """UserError naming the first step and metric that is not finite."""
    bad = [(int(np.flatnonzero(~np.isfinite(v))[0]), name) for name, v in metrics.items() if not np.isfinite(v).all()]
    if bad:
        i, name = min(bad)
        raise UserError(not_finite(f"{name} became {metrics[name][i]}", first + i + 1, checkpoints, run_dir))


def not_finite(what: str, step: int, checkpoints: Checkpoints, run_dir: Path) -> str:
    checkpoints.wait()
    last = checkpoints.steps()[-1:]
    good = f"the last good checkpoint is step {last[0]} in {run_dir}" if last else "no checkpoint was saved before"
    return f"{what} is not finite at step {step}; {good}. Try lower learning rates, --clip-norm 1 or --dtype float32"


def collapse_report(step: int, checkpoints: Checkpoints, run_dir: Path) -> str:
    checkpoints.wait()
    steps = checkpoints.steps()
    kept = f"{run_dir} has the checkpoints {', '.join(map(str, steps))}" if steps else "no checkpoint was saved before"
    best = f", of which {checkpoints.best} was the best" if checkpoints.best in steps else ""
    return f"stopped at step {step}, because the generator has collapsed, as {run_dir / 'samples'} shows; {kept}{best}"


@contextlib.contextmanager
def out_of_room_in_words(loop: Loop) -> Iterator[None]:
    """A full disk or a device without memory becomes a UserError with advice."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"{loop.run_dir} cannot be written: {error.strerror}. What was complete before is kept: free some room and "
            "run the same command with --resume auto"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if any(sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "Out of memory", "best cudnn convolution")):
            raise UserError(
                f"the device is out of memory: lower --batch-size (now {loop.batch_size}), --width or --image-size, "
                "or use --dtype bfloat16; --dry-run shows what is needed"
            ) from error
        raise


def say(text: str) -> None:
    """A line for the person at the terminal, past the progress bar."""
    if processes.is_first():
        print(text, file=sys.stderr, flush=True)
