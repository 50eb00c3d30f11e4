"""Times our compiled training steps and PyTorch's in turn, so that what slows the machine down slows both."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import jax
import machine


def timed(bench: Any, steps: Callable, state: Any, data: tuple, theirs: Mapping[str, Callable[[], None]]) -> dict:
    """The record, which is also printed, and written where `bench.json` says.

    bench: settings with rounds, steps in a round and json. steps(state, *data) gives a new state and metrics of a whole
    round, and is compiled with the state donated; theirs: a round each of the other ways. The first rounds warm up.
    `ratio` is our median over the best of theirs.
    """
    start = time.perf_counter()
    advance = jax.jit(steps, donate_argnums=0).lower(state, *data).compile()
    record = machine.describe() | {"versions": machine.versions(("jax", "torch", "numpy")), "load": os.getloadavg()}
    record |= {"settings": dataclasses.asdict(bench) | {"json": None}, "compile_seconds": time.perf_counter() - start}

    def our_run() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(advance(state, *data))

    runs = {"ours": our_run, **theirs}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(bench.rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if i > 0:
                seconds[name].append((time.perf_counter() - start) / bench.steps)
    middle = {name: median(values) for name, values in seconds.items()}
    record |= {"seconds": seconds, "ratio": middle["ours"] / min(middle[name] for name in theirs)}
    print(f"seconds a step: {', '.join(f'{name} {value:.3f}' for name, value in middle.items())}")
    print(f"ratio {record['ratio']:.2f}, compiled in {record['compile_seconds']:.0f} s")
    if bench.json:
        machine.write_record(bench.json, record)
    return record
