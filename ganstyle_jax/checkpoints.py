"""Checkpoints that survive anything: written in the background by Orbax, renamed when whole, checked when read.

    checkpoints/1000/             the state as Orbax writes it
    checkpoints/1000.sha256.json  the SHA-256 of each of its files, written last

A checkpoint counts only with its sums, and only if they hold: Orbax itself returns a flipped bit without a word.
Killed at any moment, a run is left with its earlier checkpoints whole. What is damaged is set aside and said so.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax import processes
from ganstyle_jax.files import UserError, atomic_path, first_line

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run folder; keeps the newest `keep`, every `keep_every`-th step, and the step `best`."""

    def __init__(self, run_dir: Path, keep: int = 3, keep_every: int | None = None):
        self.folder = Path(run_dir).absolute() / "checkpoints"  # Orbax wants an absolute path
        self.keep, self.keep_every = keep, keep_every
        self.best: int | None = None  # kept as long as no other takes its place
        self._writer = None
        self._finishing: threading.Thread | None = None
        self._failed: tuple[int, Exception] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """What was begun is finished, also where an error ends the run; that error is the one to hear of."""
        with contextlib.suppress(UserError) if kind else contextlib.nullcontext():
            self.close()

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, damaged or not, rising."""
        sums = self.folder.glob("*.sha256.json")
        return sorted(int(path.name.split(".")[0]) for path in sums if path.name.split(".")[0].isdigit())

    def save(self, step: int, state: Any) -> None:
        """Copies the state to the host and returns; files are written behind. UserError if the disk is full."""
        self.wait()
        import orbax.checkpoint as ocp  # after the first step: it takes as long to import as a small network to compile

        if self._writer is None:
            _quiet()
            self._writer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        target = self.folder / str(step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if processes.is_first():
                self._sums(step).unlink(missing_ok=True)
            # Asked first, because Orbax's threads write about a full disk to the terminal.
            if shutil.disk_usage(self.folder).free < sum(leaf.nbytes for leaf in jax.tree.leaves(state)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._writer.save(target, args=ocp.args.StandardSave(state), force=True)
        except (OSError, ValueError) as error:
            self._fail(step, error)
        # The sums follow as soon as Orbax is done: a checkpoint must not have to wait for the next one to count.
        self._finishing = threading.Thread(target=self._finish, args=(step,), name="checkpoint")
        self._finishing.start()

    def _finish(self, step: int) -> None:
        """Waits for the files, writes their sums, and deletes what is no longer kept."""
        assert self._writer is not None
        try:
            self._writer.wait_until_finished()  # on all processes
            if not processes.is_first():
                return
            sums = {name: _sha256(self.folder / str(step) / name) for name in _files(self.folder / str(step))}
            with atomic_path(self._sums(step)) as path:
                path.write_text(json.dumps(sums, indent=1))
            self._delete_old()
        except (OSError, ValueError) as error:
            self._failed = step, error

    def wait(self) -> None:
        """Until what `save` began is on disk with its sums; UserError if it could not be written."""
        if self._finishing is not None:
            self._finishing.join()
            self._finishing = None
        if self._failed is not None:
            (step, error), self._failed = self._failed, None
            self._fail(step, error)

    def restore(self, abstract_state: Any, only: int | None = None) -> tuple[int, Any] | None:
        """(step, state) of the newest sound checkpoint, or of step `only`; None without one.

        abstract_state: the tree of jax.ShapeDtypeStruct, with the shardings to restore to. Unsound checkpoints are
        renamed to <step>-damaged and reported. Raises UserError if there are checkpoints and all are damaged, or if
        `only` is not among them.
        """
        self.wait()
        import orbax.checkpoint as ocp

        _quiet()
        step = processes.decided_by_first(lambda: self._newest(only))
        if step < 0:
            return None
        target = self.folder / str(step)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            _check_tree(reader.metadata(target), abstract_state, step)
            state = reader.restore(target, args=ocp.args.StandardRestore(abstract_state))
        return step, state

    def _newest(self, only: int | None) -> int:
        """The newest sound step, or `only`, -1 for none; see `restore`."""
        steps = self.steps()
        if only is not None and only not in steps:
            kept = ", ".join(map(str, steps)) or "nothing"
            raise UserError(f"{self.folder} holds no checkpoint of step {only}: it has {kept}")
        if only is not None and (reason := self._damage(only)) is not None:
            raise UserError(f"checkpoint {only} in {self.folder} is damaged ({reason}): choose another step")
        steps = steps if only is None else [only]
        for step in reversed(steps):
            if (reason := self._damage(step)) is None:
                return step
            self._set_aside(step, reason)
        if steps:
            raise UserError(
                f"all checkpoints in {self.folder} are damaged (steps {', '.join(map(str, steps))}): "
                "start again in another --run-dir"
            )
        return -1

    def close(self) -> None:
        self.wait()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _sums(self, step: int) -> Path:
        return self.folder / f"{step}.sha256.json"

    def _damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint; None if it is sound."""
        folder = self.folder / str(step)
        try:
            sums = json.loads(self._sums(step).read_text())
            for name, expected in sums.items():
                if _sha256(folder / name) != expected:
                    return f"{name} does not match its SHA-256 sum"
            if set(_files(folder)) != set(sums):
                return "it holds files without a sum"
        except (OSError, ValueError, AttributeError) as error:
            return str(error)
        return None

    def _set_aside(self, step: int, reason: str) -> None:
        log.warning("checkpoint %d is damaged (%s); falling back to the one before", step, reason)
        aside = self.folder / f"{step}-damaged"
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):  # a run folder that may only be read
            if (self.folder / str(step)).exists():
                (self.folder / str(step)).rename(aside)
            self._sums(step).unlink(missing_ok=True)

    def _delete_old(self) -> None:
        steps = self.steps()
        for step in steps[: -self.keep]:
            if step != self.best and not (self.keep_every and step % self.keep_every == 0):
                self._sums(step).unlink()  # first: without sums it no longer counts
                shutil.rmtree(self.folder / str(step), ignore_errors=True)
        self._delete_unfinished()

    def _delete_unfinished(self) -> None:
        """Remains of writes that failed or were killed."""
        steps = self.steps()
        for path in self.folder.iterdir():
            if path.is_dir() and (".orbax-checkpoint-tmp" in path.name or path.name.isdigit()):
                if not (path.name.isdigit() and int(path.name) in steps):
                    shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith("."):  # sums that were not yet renamed
                path.unlink(missing_ok=True)

    def _fail(self, step: int, error: Exception):
        if self.folder.is_dir() and processes.is_first():
            self._delete_unfinished()
        last = self.steps()[-1:]
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        raise UserError(
            f"checkpoint {step} could not be written to {self.folder} "
            f"({'the disk is full' if full else first_line(error)}); "
            + (f"the last good one is step {last[0]}. " if last else "there is none yet. ")
            + f"{'Free some room' if full else 'Put that right'} and run the same command with --resume auto"
        ) from error


def all_finite(state: Any) -> jax.Array:
    """() bool: no NaN and no infinity in any floating-point leaf."""
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves])) if leaves else jnp.array(True)


def digest(state: Any) -> str:
    """SHA-256 over the names, types, shapes and bytes of all leaves: equal only for states equal bit for bit."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        leaf = np.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        total.update(leaf.tobytes())
    return total.hexdigest()


def _check_tree(metadata: Any, abstract_state: Any, step: int) -> None:
    """Raises UserError where the checkpoint holds other arrays than the config asks for."""
    tree = getattr(metadata, "item_metadata", metadata)
    tree = getattr(tree, "tree", tree)

    def arrays(tree) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
        # Orbax gives back dicts where the state has dataclasses and tuples: compare names, however they are written.
        return {
            "/".join(
                str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
            ): f"{np.dtype(leaf.dtype).name} of shape {tuple(leaf.shape)}"
            for path, leaf in leaves
        }

    stored, wanted = arrays(tree), arrays(abstract_state)
    if stored != wanted:
        names = sorted(set(stored) ^ set(wanted)) or sorted(k for k in wanted if stored[k] != wanted[k])
        name = names[0]
        raise UserError(
            f"checkpoint {step} belongs to another config: {name} is {stored.get(name, 'missing')} there and "
            f"{wanted.get(name, 'missing')} here"
        )


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _quiet() -> None:
    """Orbax tells of every save through absl's logger, and of a failed one by a traceback beside the exception."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
