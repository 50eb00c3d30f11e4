"""Checkpoints that survive anything: written in the background by Orbax, renamed when whole, checked when read.

    checkpoints/1000/             the state as Orbax writes it
    checkpoints/1000.sha256.json  the SHA-256 of each of its files, written last

A checkpoint counts only with its sums, and only if they hold: Orbax itself returns a flipped bit without a word. Before
the sums are written, what Orbax says it has written is looked up in the files. Killed at any moment, a run is left with
its earlier checkpoints whole. Whoever only reads changes nothing in the folder; whoever goes on with the run sets aside
what is damaged, and says so.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax.io.files import UserError, atomic_path, first_line
from ganstyle_jax.loop import processes

log = logging.getLogger(__name__)

# Names that Orbax takes for what they are. It hands paths to glob functions, which read `[`, `*`, `?` and `\\` as
# patterns: what it finds then is nothing, and an empty manifest is what it writes. See `_for_orbax`.
PLAIN = re.compile(r"[\w./ +=@,-]*")


class _Gone(Exception):  # noqa: N818  (an event that reading survives)
    """A checkpoint has been deleted or written anew while it was read: the run goes on."""


class Checkpoints:
    """The checkpoints of one run folder; keeps the newest `keep`, every `keep_every`-th step, and the step `best`.

    `save` and `resume` are for the run's owner; `steps` and `restore` for anybody, at any time.
    """

    def __init__(self, run_dir: Path | str, keep: int = 3, keep_every: int | None = None):
        self.folder = Path(run_dir).absolute() / "checkpoints"  # Orbax wants an absolute path
        self.keep, self.keep_every = keep, keep_every
        self.best: int | None = None  # kept as long as no other takes its place
        self._writer = None
        self._finishing: threading.Thread | None = None
        self._failed: tuple[int, BaseException] | None = None
        self._link: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """What was begun is finished, also where an error ends the run; that error is the one to hear of."""
        with contextlib.suppress(UserError) if kind else contextlib.nullcontext():
            self.close()

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, damaged or not, rising."""
        numbers = [path.name.removesuffix(".sha256.json") for path in self.folder.glob("*.sha256.json")]
        return sorted(int(number) for number in numbers if _is_step(number))

    def save(self, step: int, state: Any) -> None:
        """Copies the state to the host and returns; files are written behind. UserError if they cannot be."""
        self.wait()
        import orbax.checkpoint as ocp  # after the first step: it takes as long to import as a small network to compile

        if self._writer is None:
            _quiet()
            self._writer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if processes.is_first():
                self._sums(step).unlink(missing_ok=True)
            # Asked first, because Orbax's threads write about a full disk to the terminal.
            if shutil.disk_usage(self.folder).free < sum(leaf.nbytes for leaf in jax.tree.leaves(state)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._writer.save(self._for_orbax() / str(step), args=ocp.args.StandardSave(state), force=True)
        except Exception as error:  # whatever it is, the run cannot go on as if it were saved
            self._fail(step, error)
        # The sums follow as soon as Orbax is done: a checkpoint must not have to wait for the next one to count.
        self._finishing = threading.Thread(target=self._finish, args=(step, _arrays(state)), name="checkpoint")
        self._finishing.start()

    def _finish(self, step: int, arrays: dict[str, str]) -> None:
        """Waits for the files, looks for the arrays in them, writes their sums, deletes what is no longer kept."""
        assert self._writer is not None
        try:
            self._writer.wait_until_finished()  # on all processes
            if not processes.is_first():
                return
            _check_written(self._for_orbax() / str(step), arrays)
            sums = {name: _sha256(self.folder / str(step) / name) for name in _files(self.folder / str(step))}
            with atomic_path(self._sums(step)) as path:
                path.write_text(json.dumps(sums, indent=1))
            self._delete_old()
        except BaseException as error:  # told by `wait`: nobody hears what a thread raises
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

        Changes nothing, and may be called while the run goes on: what has been deleted or is written anew meanwhile is
        not damaged, but looked for again. abstract_state: the tree of jax.ShapeDtypeStruct, with the shardings to
        restore to. Raises UserError if there are checkpoints and all are damaged, or if `only` is not among them.
        """
        try:
            return self._restore(abstract_state, only, owner=False)
        finally:
            if self._writer is None:  # who only reads need not close anything
                self._unlink()

    def resume(self, abstract_state: Any) -> tuple[int, Any] | None:
        """As `restore` of the newest, by the owner of the run: damaged ones are renamed to <step>-damaged."""
        return self._restore(abstract_state, None, owner=True)

    def _restore(self, abstract_state: Any, only: int | None, owner: bool) -> tuple[int, Any] | None:
        self.wait()
        import orbax.checkpoint as ocp

        _quiet()
        while True:
            step = processes.decided_by_first(lambda: self._newest(only, owner))
            if step < 0:
                return None
            before = self._identity(step)
            if before is None and not processes.several():
                continue  # deleted, or begun to be written anew, since it was found
            target = self._for_orbax() / str(step)
            try:
                with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
                    metadata = reader.metadata(target)
                    if getattr(metadata, "item_metadata", metadata) is None:
                        raise ValueError("it holds no arrays")
                    _check_tree(metadata, abstract_state, step)
                    state = reader.restore(target, args=ocp.args.StandardRestore(abstract_state))
            except (UserError, OSError, ValueError, TypeError, KeyError) as error:
                if not processes.several() and self._identity(step) != before:
                    continue  # deleted or written anew meanwhile
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"checkpoint {step} in {self.folder} cannot be read, although its files are as they were written "
                    f"({first_line(error)})"
                ) from error
            return step, state

    def _newest(self, only: int | None, owner: bool) -> int:
        """The newest sound step, or `only`, -1 for none; see `restore`."""
        while True:
            try:
                return self._newest_of(self.steps(), only, owner)
            except _Gone:
                continue

    def _newest_of(self, steps: list[int], only: int | None, owner: bool) -> int:
        if only is not None and only not in steps:
            kept = ", ".join(map(str, steps)) or "nothing"
            raise UserError(f"{self.folder} holds no checkpoint of step {only}: it has {kept}")
        if only is not None and (reason := self._damage(only)) is not None:
            raise UserError(f"checkpoint {only} in {self.folder} is damaged ({reason}): choose another step")
        steps = steps if only is None else [only]
        for step in reversed(steps):
            if (reason := self._damage(step)) is None:
                return step
            log.warning("checkpoint %d is damaged (%s); falling back to the one before", step, reason)
            if owner:
                self._set_aside(step)
        if steps:
            raise UserError(
                f"all checkpoints in {self.folder} are damaged (steps {', '.join(map(str, steps))}): "
                "start again in another --run-dir"
            )
        return -1

    def close(self) -> None:
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            self._unlink()

    def _unlink(self) -> None:
        if self._link is not None:
            self._link.cleanup()
            self._link = None

    def _for_orbax(self) -> Path:
        """The folder by a path without what Orbax takes for patterns: by a link to it, if need be."""
        if PLAIN.fullmatch(self.folder.relative_to(self.folder.anchor).as_posix()):
            return self.folder
        if self._link is None:
            self._link = tempfile.TemporaryDirectory(prefix="ganstyle-")
            place = Path(self._link.name)
            if not PLAIN.fullmatch(place.relative_to(place.anchor).as_posix()):
                raise UserError(
                    f"the folder of temporary files, {place.parent}, has characters in its name that Orbax takes for "
                    "patterns: set TMPDIR to another one"
                )
            (place / "checkpoints").symlink_to(self.folder, target_is_directory=True)
        return Path(self._link.name, "checkpoints")

    def _identity(self, step: int) -> tuple[int, int, int] | None:
        """Changes when a checkpoint is deleted or written anew; None where there is none."""
        try:
            status = self._sums(step).stat()
        except FileNotFoundError:
            return None
        except OSError:
            return 0, 0, 0
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _sums(self, step: int) -> Path:
        return self.folder / f"{step}.sha256.json"

    def _damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint; None if it is sound. _Gone if it has been deleted or replaced meanwhile."""
        before = self._identity(step)
        reason = self._damage_now(step)
        if before is None or (reason is not None and self._identity(step) != before):
            raise _Gone
        return reason

    def _damage_now(self, step: int) -> str | None:
        folder = self.folder / str(step)
        try:
            sums = json.loads(self._sums(step).read_text())
            for name, expected in sums.items():
                if _sha256(folder / name) != expected:
                    return f"{name} does not match its SHA-256 sum"
            if set(_files(folder)) != set(sums):
                return "it holds files without a sum"
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            return str(error)
        return None

    def _set_aside(self, step: int) -> None:
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
            if path.is_dir() and (".orbax-checkpoint-tmp" in path.name or _is_step(path.name)):
                if not (_is_step(path.name) and int(path.name) in steps):
                    shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith("."):  # sums that were not yet renamed
                path.unlink(missing_ok=True)

    def _fail(self, step: int, error: BaseException):
        if self.folder.is_dir() and processes.is_first():
            with contextlib.suppress(OSError):  # of which the first one is what to hear of
                self._delete_unfinished()
        if isinstance(error, UserError):
            raise error
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


def _arrays(tree: Any) -> dict[str, str]:
    """Name, dtype and shape of all leaves, {"gen/params/Conv_0/kernel": "float32 of shape (4, 4, 3, 8)"}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    # Orbax gives back dicts where the state has dataclasses and tuples: compare names, however they are written.
    return {
        "/".join(
            str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
        ): f"{np.dtype(leaf.dtype).name} of shape {tuple(leaf.shape)}"
        for path, leaf in leaves
    }


def _tree_of(metadata: Any) -> Any:
    """The tree of arrays that Orbax's metadata tells of."""
    tree = getattr(metadata, "item_metadata", metadata)
    return getattr(tree, "tree", tree)


def _check_tree(metadata: Any, abstract_state: Any, step: int) -> None:
    """Raises UserError where the checkpoint holds other arrays than the config asks for."""
    stored, wanted = _arrays(_tree_of(metadata)), _arrays(abstract_state)
    if stored != wanted:
        names = sorted(set(stored) ^ set(wanted)) or sorted(k for k in wanted if stored[k] != wanted[k])
        name = names[0]
        raise UserError(
            f"checkpoint {step} belongs to another config: {name} is {stored.get(name, 'missing')} there and "
            f"{wanted.get(name, 'missing')} here"
        )


def _check_written(target: Path, arrays: dict[str, str]) -> None:
    """Raises where what Orbax has written is not all of the arrays, each with all its parts."""
    import orbax.checkpoint as ocp
    import tensorstore
    from etils import epath  # which comes with Orbax

    try:
        tree = _tree_of(ocp.StandardCheckpointHandler().metadata(epath.Path(target)))
    except Exception as error:
        raise OSError(f"read back, it holds no arrays: {first_line(error)}") from error
    found = _arrays(tree)
    if found != arrays:
        name = sorted(name for name in found | arrays if found.get(name) != arrays.get(name))[0]
        raise OSError(f"read back, {name} is {found.get(name, 'missing')} and was {arrays.get(name, 'missing')}")
    if not (target / "manifest.ocdbt").exists():  # one file an array's part, as Orbax writes when told to
        return
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{target}/"}}
    keys = [key.decode() for key in tensorstore.KvStore.open(store).result().list().result()]
    for leaf in jax.tree.leaves(tree, is_leaf=lambda x: hasattr(x, "shape")):
        described = (f"{leaf.name}/.zarray", f"{leaf.name}/zarr.json")
        parts = sum(key.startswith(f"{leaf.name}/") and key not in described for key in keys)
        chunk = leaf.storage.chunk_shape
        expected = math.prod(-(-size // part) for size, part in zip(leaf.shape, chunk, strict=True))
        if parts < expected:
            raise OSError(f"read back, {leaf.name} has {parts} of its {expected} parts")


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _quiet() -> None:
    """Orbax tells of every save through absl's logger, and of a failed one by a traceback beside the exception."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
