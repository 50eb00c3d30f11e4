"""Images a second of a whole run, with its logs, grids, checkpoints and evaluations, against the bare step.

    python experiments/bench/throughput.py --json throughput.json

"bare" calls the compiled step and nothing else, in dispatches of as many steps as a run has. The other cases are
`train.run` from step `--warm` to its end, the last checkpoint's files and sums included, with more and more of what a
run does: each thing every `--every` steps. Each case has a process of its own; they work in turn. The share that is
printed is that of the bare step's images a second. What is missing was waited for: of grids the drawing, of checkpoints
the copies, of evaluations all of it. Hardware: the machine must have nothing else to do; 15 minutes on two CPU
cores. No data: DCGAN at 32 pixels learns the package's own glyphs.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import machine
import tyro

from ganstyle_jax.commands import flags

Case = Literal["bare", "logs", "grids", "checkpoints", "evaluations"]
CASES: tuple[Case, ...] = ("bare", "logs", "grids", "checkpoints", "evaluations")  # each has what those before it have


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long the runs are, and how much they have to do."""

    steps: int = 2_000
    warm: int = 128  # first steps, which do not count
    every: int = 500  # steps between grids, checkpoints and evaluations; lines of the log come every 50
    width: int = 32
    batch_size: int = 64
    evaluate_count: int = 500  # pictures of an evaluation
    rounds: int = 2
    case: Case | None = None  # of one process: measures it and prints its seconds
    json: Path | None = Path("throughput.json")  # file for the record; a bare name goes into experiments/results/


def main(settings: Settings) -> None:
    if settings.case is not None:
        print(json.dumps(seconds_of(settings, settings.case)))
        return
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib")),
        "settings": dataclasses.asdict(settings) | {"json": str(settings.json)},
    }
    images = (settings.steps - settings.warm) * settings.batch_size
    rates: dict[Case, list[float]] = {case: [] for case in CASES}
    for i in range(settings.rounds):
        for case in CASES:
            rates[case].append(images / in_a_process(settings, case))
            machine.say(f"round {i + 1} of {settings.rounds}: {case}: {rates[case][-1]:.1f} images/s")
    best = {case: max(of) for case, of in rates.items()}
    record |= {"images_per_second": rates, "shares": {case: best[case] / best["bare"] for case in CASES}}
    for case in CASES:
        machine.say(f"{case}: {best[case]:.1f} images/s, {best[case] / best['bare']:.1%} of the bare step")
    if settings.json is not None:
        machine.say(f"record: {machine.write_record(settings.json, record)}")


def in_a_process(settings: Settings, case: Case) -> float:
    given = {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("case", "json", "rounds")}
    arguments = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, __file__, "--case", case, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def seconds_of(settings: Settings, case: Case) -> float:
    """Seconds from the end of step `warm` to the end of the run."""
    from ganstyle_jax.control import Advanced, Control, Event
    from ganstyle_jax.gan import dcgan
    from ganstyle_jax.loop import train

    done = CASES.index(case)
    often = [settings.every if done >= CASES.index(name) else 10 * settings.steps for name in CASES[2:]]
    with tempfile.TemporaryDirectory() as folder:
        loop = train.Loop(
            run_dir=Path(folder, "run"),
            steps=settings.steps,
            batch_size=settings.batch_size,
            sample_every=often[0],
            checkpoint_every=often[1],
            evaluate_every=often[2] if case == "evaluations" else None,
            evaluate_count=settings.evaluate_count,
            progress="none",
        )
        cfg = dcgan.Config(image_size=32, width=settings.width)
        if case == "bare":
            return bare(cfg, loop, settings.warm)
        begun: list[float] = []

        def listen(event: Event) -> None:
            if isinstance(event, Advanced) and event.done >= settings.warm and not begun:
                begun.extend([time.perf_counter(), event.done])

        train.run(dcgan, cfg, "glyphs", loop, control=Control(listeners=[listen]))
        seconds = time.perf_counter() - begun[0]
        # Of the steps that did count, where a dispatch went beyond the warm ones.
        return seconds * (settings.steps - settings.warm) / (settings.steps - begun[1])


def bare(cfg: Any, loop: Any, warm: int) -> float:
    import jax
    import numpy as np

    from ganstyle_jax import contract
    from ganstyle_jax.gan import dcgan
    from ganstyle_jax.loop import sources, step
    from ganstyle_jax.loop.feed import Feed

    method, mesh = contract.of(dcgan), step.make_mesh(loop)
    found = sources.opened(sources.named("glyphs", method, cfg), method, cfg, loop.seed)
    cfg = method.settle(cfg, found)
    feed = Feed(sources.batched(found, method, cfg, loop), loop, mesh)
    key_init, key_train = jax.random.split(jax.random.key(loop.seed))
    abstract = step.abstract_state(method, cfg, key_init, loop, mesh)
    advance = step.make_advance(method, cfg, key_train, loop, mesh, abstract, feed.rows)
    state = jax.jit(step.init_of(method, cfg), out_shardings=step.shardings_of(abstract))(key_init, ())
    stored, at, begun = feed.load(), 0, 0.0
    with feed.stream(0, loop.steps) as chunks:
        while at < loop.steps:
            until = warm if at < warm else loop.steps
            count = min(feed.rows, until - at)
            state, metrics = advance(state, (), stored, chunks(at, count), np.int32(at), np.int32(count))
            at += count
            if at == warm:
                jax.block_until_ready(metrics)
                begun = time.perf_counter()
        jax.block_until_ready(state)
    return time.perf_counter() - begun


if __name__ == "__main__":
    with flags.errors_for_people():
        main(tyro.cli(Settings, description=__doc__))
