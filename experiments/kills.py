"""Kills a training run at random moments, many times, and checks that nothing is lost.

    python experiments/kills.py                      # 30 kills
    python experiments/kills.py --method r3gan       # of another method than DCGAN
    python experiments/kills.py --processes 2 3 4 --kills 100 --steps 300 --checkpoint-every 3 --width 4 \
        --batch-size 12 --json kills_processes.json

A run is trained undisturbed first. A second one with the same settings is sent SIGKILL at random moments, started again
with `--resume auto` each time, and after the last kill left alone to its end. Checkpoints are written so often that
many kills fall into a write. After each kill every complete checkpoint is compared with its SHA-256 sums, by code of
this file, and the next life must go on from the newest one. At the end the SHA-256 of the state (weights, statistics,
optimizers, step) must equal the undisturbed run's. Ends with exit status 1 if anything was damaged, lost or different.

With `--processes N` the run is one of N processes, of which any one is killed: the others must end by themselves within
a minute, and not with status 0. With further numbers the second half of the kills falls on another run, in float64 and
with small learning rates, each life of which has a number of processes drawn from those given. Sums over the batch then
come in another order, so that its end is compared within a tolerance.

Goodput is the share of the wall time that went into steps that were kept: here that of the undisturbed run's training
over that of all lives together. From it follows what a kill costs, c seconds: the others' leaving, starting anew, and
steps done again since the last checkpoint. With a kill every m seconds and a checkpoint every s seconds, rather than
as often as here, goodput is 1 - (c + s / 2) / m, because half of an interval is done again on average. That is what the
record extrapolates to; it leaves out what the scheduler of a cluster takes to start processes anew.
"""

import dataclasses
import hashlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

import ganstyle_jax
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop.checkpoints import digest

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine

FIRST_STEP = "first training step"  # what the program says once it has trained one
EARLY = 0.1  # share of the kills that fall between the start of a program and its first step
JOINING = 60.0  # seconds that the processes wait for each other at the beginning
PARTING = 60.0  # seconds that the processes may take to end when one of them was killed
TOLERANCE = 1e-6  # between runs in float64 whose sums came in another order, which many steps make more of
LIMIT = 1800.0  # seconds from the start of a program to its first step, and then to its end


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is killed, and how often."""

    kills: int = 30  # of all runs together
    minutes: float | None = None  # no more kills after so long, in each run: what was begun comes to its end
    seed: int = 0  # decides the moments
    steps: int = 2_000  # training steps of the run
    checkpoint_every: int = 5  # steps between checkpoints
    method: Literal["dcgan", "stylegan2", "r3gan"] = "dcgan"  # that is trained
    image_size: int = 16  # pixels
    width: int = 16  # channels of the finest hidden layer; of StyleGAN2, a sixteenth of its capacity
    batch_size: int = 16  # images in a step
    processes: tuple[int, ...] = (1,)  # that do the run together, a device each; further numbers: of other lives
    json: Path | None = Path("kills.json")  # file for the record; a bare name goes into experiments/results/


def main(settings: Settings) -> dict[str, Any]:
    """Returns the record, after writing it. Raises UserError if a run ended before all its kills were done."""
    record = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(settings).items()},
    }
    mixed = settings.kills // 2 if len(settings.processes) > 1 else 0
    with tempfile.TemporaryDirectory() as folder:
        record |= compare(settings, Path(folder), settings.processes[:1], settings.kills - mixed)
    if settings.json is not None:
        machine.write_record(settings.json, record)
    found = [record]
    if mixed:
        with tempfile.TemporaryDirectory() as folder:
            record["other_numbers_of_processes"] = compare(settings, Path(folder), settings.processes, mixed)
        found.append(record["other_numbers_of_processes"])
    for of in found:
        print(
            f"{of['kills']} kills, {of['kills_during_a_write']} of them during the write of a checkpoint and "
            f"{of['kills_before_the_sums']} between a write and its sums: {of['damaged']} checkpoints damaged, "
            f"{of['lost']} lost, final state {'equal' if of['equal'] else 'DIFFERENT'}; a kill costs "
            f"{of['seconds_lost_by_a_kill']:.3g} s, goodput {of['goodput']:.0%}"
        )
    if settings.json is not None:
        print(f"the record is in {machine.write_record(settings.json, record)}")
    return record


def compare(settings: Settings, folder: Path, numbers: tuple[int, ...], kills: int) -> dict[str, Any]:
    """Trains both runs inside `folder`, lives with one of these numbers of processes; the numbers of the record."""
    undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
    exact = len(numbers) == 1
    life = Life(settings, undisturbed, folder, numbers[0], exact)
    start_up = life.wait_for_first_step()
    training = life.wait_for_end()
    interval = training / settings.steps * settings.checkpoint_every  # seconds from one checkpoint to the next

    rng = random.Random(settings.seed)
    # Each kill comes within two intervals of the checkpoint of such a step, so that seconds decide only where in an
    # interval it falls, and a busy machine does not change how far the run has come.
    targets = sorted(rng.uniform(0, 0.9 * settings.steps) for _ in range(kills))
    moments = []
    damaged, lost = 0, 0
    newest: int | None = None  # the step that the next life must go on from
    begun = time.perf_counter()
    for number, target in enumerate(targets):
        if settings.minutes is not None and time.perf_counter() - begun > 60 * settings.minutes:
            break
        known = entries(disturbed)
        life = Life(settings, disturbed, folder, rng.choice(numbers), exact)
        early = rng.random() < EARLY
        if early:
            time.sleep(rng.uniform(0, start_up))
        else:
            start_up = life.wait_for_first_step()
            life.wait_for_checkpoint(disturbed, target)
            time.sleep(rng.uniform(0, 2 * interval))
        # Before they have met, the others wait for the one that was killed for as long as they are told to.
        if not life.kill(rng.randrange(len(life.members)), PARTING + (JOINING if early else 0)):
            raise UserError(f"the run ended after {number} of {kills} kills: give it more --steps")

        new = entries(disturbed) - known
        sound = check_sums(disturbed)
        unfinished = sorted(name for name, _ in new if name.isdigit() and int(name) not in sound)
        damaged += sum(not ok for ok in sound.values())
        lost += life.resumed_at() != newest and not (early and life.resumed_at() is None)
        lost += newest is not None and max(sound, default=-1) < newest
        newest = max(sound, default=None)
        moments.append(
            {
                "seconds": round(life.seconds, 2),
                "before_the_first_step": early,
                "during_a_write": any("orbax-checkpoint-tmp" in name or ".sha256-" in name for name, _ in new),
                "before_the_sums": bool(unfinished) and int(unfinished[-1]) > (newest or 0),
                "newest_checkpoint": newest,
            }
            | ({"start_up": round(start_up, 2)} if not early else {})
            | ({"processes": len(life.members), "left_after": round(life.parting, 2)} if max(numbers) > 1 else {})
        )
        print(f"kill {number + 1}: {json.dumps(moments[-1])}", flush=True)

    life = Life(settings, disturbed, folder, numbers[0], exact)
    last_start = life.wait_for_first_step()
    life.wait_for_end()
    lost += life.resumed_at() != newest
    damaged += len(list((disturbed / "checkpoints").glob("*-damaged")))
    states = [ganstyle_jax.load(run_dir, settings.steps).state for run_dir in (undisturbed, disturbed)]
    sums = [digest(state) for state in states]
    difference = farthest(*states)
    # The first start is paid without kills, too, and `seconds` of a killed life hold the others' leaving.
    wall = sum(moment["seconds"] for moment in moments) + life.seconds - last_start
    cost = (wall - training) / max(len(moments), 1)
    return {
        "kills": len(moments),
        "kills_during_a_write": sum(moment["during_a_write"] for moment in moments),
        "kills_before_the_sums": sum(moment["before_the_sums"] for moment in moments),
        "kills_before_the_first_step": sum(moment["before_the_first_step"] for moment in moments),
        "damaged": damaged,
        "lost": lost,
        "sha256_undisturbed": sums[0],
        "sha256_killed": sums[1],
        "largest_difference": difference,
        "equal": sums[0] == sums[1] if exact else difference <= TOLERANCE,
        "training_seconds_undisturbed": round(training, 2),
        "wall_seconds_killed": round(wall, 2),
        "goodput": training / wall,
        "seconds_lost_by_a_kill": cost,
        "goodput_extrapolated": [
            {"kill_every": m, "checkpoint_every": s, "goodput": max(0.0, 1 - (cost + s / 2) / m)}
            for m in (120, 300, 600)
            for s in (20, 60)
        ],
        "moments": moments,
    }


def farthest(one: Any, other: Any) -> float:
    """The largest difference of two states, relative to the array's largest value where that is above 1."""
    differences = []
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        differences.append(float(np.abs(a - b).max() / max(1, np.abs(b).max())))
    return max(differences)


class Life:
    """One program that trains, from its start to its end."""

    def __init__(self, settings: Settings, run_dir: Path, folder: Path, processes: int, exact: bool):
        command = [sys.executable, "-m", "ganstyle_jax", "train", settings.method]
        command += ["--data", "glyphs", "--resume", "auto"]
        command += [
            "--run-dir",
            str(run_dir),
            "--sample-every",
            str(settings.steps),
            "--log-every",
            str(settings.steps),
        ]
        for name in ("steps", "checkpoint_every", "image_size", "batch_size"):
            command += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
        slowly = {
            "dcgan": ["--generator-learning-rate", "1e-5", "--discriminator-learning-rate", "1e-5"],
            "stylegan2": ["--learning-rate", "1e-5"],
            "r3gan": ["--learning-rate", "1e-5", "1e-5"],
        }
        if settings.method == "stylegan2":
            command += ["--preset", "small", "--capacity", str(16 * settings.width)]
        else:
            command += ["--width", str(settings.width)]
        if not exact:  # the smaller the steps, the less do they make of a difference in rounding
            command += ["--dtype", "float64", *slowly[settings.method]]
        self.logs = [folder / f"log{i}.txt" for i in range(processes)]
        # A compilation cache of its own: the first life compiles, the others start quickly.
        environment = os.environ | {"GANSTYLE_HOME": str(folder)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        self.members = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        for i, path in enumerate(self.logs):
            together = ["--coordinator", coordinator, "--process-count", str(len(self.logs)), "--process-id", str(i)]
            together += ["--join-timeout", str(int(JOINING))]
            alone = ["--devices", "1"]
            with open(path, "w") as log:
                self.members.append(
                    subprocess.Popen(
                        command + (together if len(self.logs) > 1 else alone),
                        **{"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "env": environment},
                    )
                )
        self.process = self.members[0]  # whose word counts
        self.parting = 0.0  # seconds that the others took to end after a kill
        self.started = time.perf_counter()
        self.ended: float | None = None

    @property
    def seconds(self) -> float:
        """From the start to the end of the last process, or to now."""
        return (self.ended or time.perf_counter()) - self.started

    def text(self) -> str:
        return self.logs[0].read_text(errors="replace")

    def wait_for_first_step(self) -> float:
        """Seconds from the start to the first step. Raises UserError if the program fails or takes too long."""
        while FIRST_STEP not in self.text() and self.process.poll() is None:
            if self.seconds > LIMIT:
                self.end()
                raise UserError(f"no training step within {LIMIT:.0f} s: {self.text()[-500:]}")
            time.sleep(0.01)
        if self.process.poll() not in (None, 0):
            raise UserError(f"training failed with exit status {self.process.returncode}: {self.text()[-500:]}")
        return self.seconds

    def wait_for_checkpoint(self, run_dir: Path, step: float) -> None:
        """Until there is a checkpoint of this step or a later one, finished or not, or the program has ended."""
        while self.process.poll() is None and self.seconds < LIMIT:
            if any(name.isdigit() and int(name) >= step for name, _ in entries(run_dir)):
                return
            time.sleep(0.002)

    def wait_for_end(self) -> float:
        """Seconds from now to the end. Raises UserError if the program fails or takes too long."""
        start = time.perf_counter()
        try:
            status = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.end()
            raise UserError(f"training did not end within {LIMIT:.0f} s: give it fewer --steps") from None
        if status != 0:
            raise UserError(f"training failed with exit status {status}: {self.text()[-500:]}")
        self.ended = time.perf_counter()
        return self.ended - start

    def kill(self, victim: int, parting: float) -> bool:
        """Sends SIGKILL to one process; False if it had come to its end.

        Raises UserError if it or another failed, or if another has not ended after `parting` seconds.
        """
        killed = self.members[victim]
        killed.kill()
        status = killed.wait()
        if status not in (0, -9):
            raise UserError(f"training failed with exit status {status}: {self.text()[-500:]}")
        start = time.perf_counter()
        for i, member in enumerate(self.members):
            try:
                other = member.wait(max(0.1, start + parting - time.perf_counter()))
            except subprocess.TimeoutExpired:
                self.end()
                raise UserError(f"process {i} went on for {parting:.0f} s after process {victim} was killed") from None
            if status == -9 and other == 0:
                raise UserError(f"process {i} ended with status 0 though process {victim} was killed")
        self.ended = time.perf_counter()
        self.parting = self.ended - start
        return status == -9

    def end(self) -> None:
        for member in self.members:
            member.kill()

    def resumed_at(self) -> int | None:
        """The step that the program says it goes on from; None if it has not said so."""
        match = re.search(r"^resuming .* at step (\d+)", self.text(), re.MULTILINE)
        return int(match[1]) if match else None


def entries(run_dir: Path) -> set[tuple[str, int]]:
    """(name, inode) of all that lies in the folder of checkpoints: the inode tells a new write from old remains."""
    folder = run_dir / "checkpoints"
    return {(entry.name, entry.inode()) for entry in os.scandir(folder)} if folder.is_dir() else set()


def check_sums(run_dir: Path) -> dict[int, bool]:
    """Whether each complete checkpoint, one that has sums, holds exactly the files and bytes of its sums."""
    sound = {}
    for path in (run_dir / "checkpoints").glob("[0-9]*.sha256.json"):
        folder = path.parent / path.name.split(".")[0]
        files = [file for file in folder.rglob("*") if file.is_file()]
        sums = {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        sound[int(folder.name)] = bool(sums) and sums == json.loads(path.read_text())
    return sound


if __name__ == "__main__":
    try:
        result = main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.exit(not result["equal"] or result["damaged"] > 0 or result["lost"] > 0)
