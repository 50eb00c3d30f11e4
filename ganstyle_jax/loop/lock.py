"""One owner of a run folder at a time, also where several machines share the folder.

    with held(run_dir, stop=control.stop):
        ...

`lock.json` in the folder tells who that is: host, process, since when. Its owner's heartbeat renews the file's time;
an owner that is gone is recognised by its process on the same machine, and on others by a heart that has stopped. All
times are compared as the file server gives them, so that no two clocks have to agree. Where the storage forbids
locking, it says so in one line and goes on without.

Who takes over from a dead owner is decided by the same rule: only the holder of the claim `.lock-<owner>` may replace
that owner's file, every owner has a name of its own, and a claim is a lock like any other.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from ganstyle_jax.io.files import UserError, first_line
from ganstyle_jax.loop import processes

NAME = "lock.json"
HEARTBEAT = 10.0  # seconds between two renewals
STALE = 60.0  # seconds without one, after which the owner on another machine counts as dead


@dataclasses.dataclass(frozen=True)
class Owner:
    """What a lock tells of who holds it. Fields that a file lacks are empty, and then its age alone decides."""

    token: str = ""  # of this owner alone, never used again
    host: str = "an unknown host"
    machine: str = ""  # the same for processes that see one another: this start of the kernel, this container
    pid: int = 0
    started: float = 0.0  # when the process started, which tells it from a later one with its number
    since: str = "an unknown time"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@contextlib.contextmanager
def held(
    run_dir: Path | str,
    stop: Callable[[], None] = lambda: None,
    heartbeat: float = HEARTBEAT,
    stale: float = STALE,
) -> Iterator[None]:
    """Within it, this process owns the run folder, which is made if it is missing. Of several processes the first does.

    UserError, in all of them, where another owns it. stop is called from a thread when the lock turns out to be lost.
    heartbeat, stale: seconds.
    """
    run_dir = Path(run_dir)
    taken: list[Owner] = []
    made: list[Path] = []

    def take() -> int:
        with _forgiving(run_dir):
            made.extend(path for path in (run_dir, *run_dir.parents) if not path.exists())
            run_dir.mkdir(parents=True, exist_ok=True)
            taken.append(_take(run_dir / NAME, stale, str(run_dir)))
        return 0

    processes.decided_by_first(take)
    if not taken:
        yield
        return
    (me,), process, ended = taken, os.getpid(), threading.Event()
    arguments = (run_dir, me, stop, heartbeat, ended)
    beating = threading.Thread(target=_beat, args=arguments, name="run folder's lock", daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        if os.getpid() == process:  # and not a copy of it made by a fork
            beating.join()
            with contextlib.suppress(OSError):
                _release(run_dir / NAME, me)
                for path in made:  # a run that did not begin leaves no folder
                    path.rmdir()


def owner(run_dir: Path | str) -> Owner | None:
    """Who owns a run folder according to its lock, dead or alive; None without one."""
    with contextlib.suppress(OSError):
        found = _read(Path(run_dir) / NAME)
        return found and found[0]
    return None


@contextlib.contextmanager
def _forgiving(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _say(
            f"{run_dir} cannot be locked ({error.strerror or first_line(error)}): see to it yourself that no other "
            "process trains in it"
        )


def _take(path: Path, stale: float, what: str) -> Owner:
    """Makes `path` the lock of a new owner and returns it; UserError if a living one has it, OSError as it comes."""
    me = _me()
    while True:
        if _create(path, me):
            return me
        found = _read(path)
        if found is None:  # given back between the two
            continue
        other, age = found[0], _now(path.parent) - found[1]
        if (wait := _alive(other, age, stale)) is not None:
            later = f", or try again in {wait:.0f} s if that one is gone" if wait else ""
            raise UserError(f"{what} is in use by {other}: wait for it, or choose another folder{later}")
        claim = path.parent / f".lock-{other.token}"
        claimed = _take(claim, stale, what)
        try:
            found = _read(path)
            if found is None or found[0].token != other.token:
                continue  # another was faster
            temporary = _write(path.parent, me)
            try:
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            if path.name == NAME:
                _say(f"{what} was in use by {other}, which is gone: taking it over")
            return me
        finally:
            _release(claim, claimed)


def _create(path: Path, me: Owner) -> bool:
    """Writes the lock where there is none, as one step; False where there is one."""
    if path.exists():
        return False
    temporary = _write(path.parent, me)
    try:
        os.link(temporary, path)  # fails where `path` exists, also on NFS
        return True
    except FileExistsError:
        return False
    except OSError:
        # Either the server's answer was lost, or the storage has no links.
        found = _read(path)
        if found is not None:
            return found[0].token == me.token
        try:
            with open(path, "xb") as file:
                file.write(_encoded(me))
            return True
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)


def _release(path: Path, me: Owner) -> None:
    found = _read(path)
    if found is not None and found[0].token == me.token:
        path.unlink(missing_ok=True)


def _beat(run_dir: Path, me: Owner, stop: Callable[[], None], seconds: float, ended: threading.Event) -> None:
    told = False
    while not ended.wait(seconds):
        try:
            found = _read(run_dir / NAME)
            if found is None or found[0].token != me.token:
                who = f"is in use by {found[0]} now" if found else "is not this process's any more, its lock is gone"
                _say(f"{run_dir} {who}: stopping")
                stop()
                return
            os.utime(run_dir / NAME)
            told = False
        except OSError as error:
            if not told:
                _say(f"the lock of {run_dir} cannot be renewed ({error.strerror or first_line(error)})")
            told = True


def _alive(other: Owner, age: float, stale: float) -> float | None:
    """Seconds until an owner counts as dead, 0.0 for never as long as its process runs; None if it is dead."""
    if other.machine and other.machine == _machine():
        return 0.0 if _started(other.pid) == other.started else None
    return None if age > stale else max(1.0, stale - age)


def _read(path: Path) -> tuple[Owner, float] | None:
    """A lock's owner and the time of its last heartbeat by the server's clock; None where there is no lock."""
    try:
        with open(path, "rb") as file:  # an opened file's time is the server's, where a closed one's may be remembered
            text, status = file.read(1 << 16), os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    # What cannot be read is a lock all the same, of an owner that only its age can tell of.
    unknown = Owner(token=hashlib.sha256(text + str(status.st_ino).encode()).hexdigest()[:32])
    try:
        told = json.loads(text)
        fields = {field.name: type(field.default) for field in dataclasses.fields(Owner)}
        values = {name: told[name] for name, kind in fields.items() if isinstance(told.get(name), kind)}
        told = dataclasses.replace(unknown, **values)
        safe = told.token.isalnum() and len(told.token) <= 64  # it becomes part of a file's name
        return (told if safe else dataclasses.replace(told, token=unknown.token)), status.st_mtime
    except (ValueError, AttributeError, RecursionError):
        return unknown, status.st_mtime


def _now(folder: Path) -> float:
    """The time by the clock of the server that keeps the folder."""
    path = folder / f".lock-{uuid.uuid4().hex}.json"
    try:
        with open(path, "xb") as file:
            file.write(b"{}")
            file.flush()
            os.fsync(file.fileno())
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_mtime
    finally:
        path.unlink(missing_ok=True)


def _write(folder: Path, me: Owner) -> Path:
    """A file of a name that nobody else has."""
    path = folder / f".lock-{uuid.uuid4().hex}.json"
    try:
        with open(path, "xb") as file:
            file.write(_encoded(me))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path


def _encoded(me: Owner) -> bytes:
    return (json.dumps(dataclasses.asdict(me), indent=1) + "\n").encode()


def _me() -> Owner:
    pid, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S")
    return Owner(uuid.uuid4().hex, socket.gethostname(), _machine(), pid, _started(pid) or 0.0, since)


def _machine() -> str:
    """The same for two processes exactly if either can see whether the other one runs."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux alone tells: names are given twice, numbers in containers too
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> float | None:
    """When a process was started, by a clock that is never set; None if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        fields = text.rpartition(")")[2].split()  # the name before it may hold anything
        return None if fields[0] in "ZX" else float(fields[19])
    except (OSError, ValueError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
