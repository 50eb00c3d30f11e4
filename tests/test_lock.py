"""One owner of a run folder: refused by name, taken over when gone, never two at once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ganstyle_jax.io.files import UserError, atomic_path
from ganstyle_jax.loop import devices, lock

PATIENCE = 120  # seconds that another thread may take on a machine that does much else

HOLD = """
import sys
from ganstyle_jax.loop import lock
with lock.held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def left_by(run_dir: Path, age: float = 0.0, **fields) -> Path:
    """The lock of an owner that is told of, last renewed `age` seconds ago."""
    run_dir.mkdir(exist_ok=True)
    path = run_dir / "lock.json"
    told = {"token": "ab12", "host": "node7", "machine": "node7 x", "pid": 42, "started": 1.0, "since": "2026-01-01"}
    with atomic_path(path) as whole:
        whole.write_text(json.dumps(told | fields))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_another_process_is_refused_by_name_until_it_is_killed(tmp_path, capsys):
    run_dir = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(run_dir)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        told = json.loads((run_dir / "lock.json").read_text())
        assert told["pid"] == first.pid
        expected = f"{run_dir} is in use by process {first.pid} on {told['host']} since {told['since']}"
        with pytest.raises(UserError) as caught, lock.held(run_dir):
            pass
        assert expected in str(caught.value) and "\n" not in str(caught.value)
        os.kill(first.pid, signal.SIGKILL)
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # a zombie: dead, and still in the list of processes
        with lock.held(run_dir):
            assert json.loads((run_dir / "lock.json").read_text())["pid"] == os.getpid()
        assert f"was in use by process {first.pid}" in (said := capsys.readouterr().err) and said.count("\n") == 1
    finally:
        first.kill()
        first.communicate()
    assert not run_dir.exists() or not list(run_dir.iterdir())


def test_two_threads_are_two_owners(tmp_path):
    with lock.held(tmp_path):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"), lock.held(tmp_path):
            pass
        assert lock.owner(tmp_path).pid == os.getpid()
    with lock.held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == [] and lock.owner(tmp_path) is None


def test_a_run_that_did_not_begin_leaves_no_folder_and_one_that_did_keeps_it(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.held(tmp_path / "runs" / "new"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with lock.held(tmp_path / "runs" / "new"):
        (tmp_path / "runs" / "new" / "run.json").touch()
    assert [path.name for path in (tmp_path / "runs" / "new").iterdir()] == ["run.json"]


def test_a_number_given_to_a_later_process_is_a_dead_owner(tmp_path):
    mine = lock._started(os.getpid())
    assert mine is not None
    left_by(tmp_path, machine=lock._machine(), pid=os.getpid(), started=mine - 1)
    with lock.held(tmp_path):
        pass
    left_by(tmp_path, age=1e6, machine=lock._machine(), pid=os.getpid(), started=lock._started(os.getpid()))
    with pytest.raises(UserError, match="in use"), lock.held(tmp_path):  # stopped for long, as a laptop, is not dead
        pass


def test_an_owner_on_another_machine_is_known_by_its_heart(tmp_path):
    left_by(tmp_path, age=5)
    with pytest.raises(UserError, match=r"process 42 on node7 since 2026-01-01.*try again in \d+ s"):
        lock.held(tmp_path).__enter__()
    left_by(tmp_path, age=90)
    with lock.held(tmp_path):
        assert lock.owner(tmp_path).pid == os.getpid()


def test_only_the_file_servers_clock_counts(tmp_path, monkeypatch):
    """A machine whose clock is an hour ahead takes no living owner for dead."""
    left_by(tmp_path, age=5)
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 3600)
    with pytest.raises(UserError, match="node7"), lock.held(tmp_path):
        pass


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "{}", '{"token": "../../x", "pid": "no"}', '{"token": null}', "[" * 60000, "\udcff"]
)
def test_a_lock_that_cannot_be_read_is_a_lock_until_it_is_old(tmp_path, text):
    path = tmp_path / "lock.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"in use by process .*try again in"), lock.held(tmp_path):
        pass
    os.utime(path, (time.time() - 100,) * 2)
    with lock.held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dead_claims", [0, 1, 2])
def test_one_of_many_takes_over(tmp_path, dead_claims):
    """Also from owners that died while they were taking over."""
    for attempt in range(4):
        left_by(tmp_path, age=100, token=f"dead0{attempt}")
        for k in range(dead_claims):
            left_by(tmp_path, age=100, token=f"dead{k + 1}{attempt}").rename(tmp_path / f".lock-dead{k}{attempt}")
            left_by(tmp_path, age=100, token=f"dead0{attempt}")
        barrier, ended = threading.Barrier(12), threading.Event()
        won, refused = [], []

        def contend(barrier=barrier, ended=ended, won=won, refused=refused):
            barrier.wait()
            try:
                with lock.held(tmp_path):
                    won.append(json.loads((tmp_path / "lock.json").read_text())["token"])
                    ended.wait(PATIENCE)
            except UserError:
                refused.append(1)

        threads = [threading.Thread(target=contend) for _ in range(12)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + PATIENCE
        while len(won) + len(refused) < 12 and time.monotonic() < deadline:
            time.sleep(0.002)
        assert len(won) == 1 and len(refused) == 11
        assert json.loads((tmp_path / "lock.json").read_text())["token"] == won[0]
        ended.set()
        for thread in threads:
            thread.join()
        assert list(tmp_path.iterdir()) == []


def test_heartbeat_renews(tmp_path):
    with lock.held(tmp_path, heartbeat=0.01):
        os.utime(tmp_path / "lock.json", (1, 1))
        deadline = time.monotonic() + PATIENCE
        while os.stat(tmp_path / "lock.json").st_mtime == 1:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.mark.parametrize("how", ["removed", "another's"])
def test_a_lost_lock_stops_the_work(tmp_path, capsys, how):
    lost = threading.Event()
    with lock.held(tmp_path, lost.set, heartbeat=0.01):
        if how == "removed":
            (tmp_path / "lock.json").unlink()
        else:
            left_by(tmp_path)
        assert lost.wait(PATIENCE)
    said = capsys.readouterr().err
    assert ("its lock is gone" if how == "removed" else "in use by process 42 on node7") in said
    assert said.count("\n") == 1
    assert (tmp_path / "lock.json").exists() == (how != "removed")  # another's lock is not ours to release


def test_storage_that_forbids_it_is_one_line(tmp_path, capsys, monkeypatch):
    def refuse(*arguments):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(lock, "_write", refuse)
    with lock.held(tmp_path):
        pass
    said = capsys.readouterr().err
    assert f"{tmp_path} cannot be locked (Read-only file system)" in said and said.count("\n") == 1


def test_storage_without_links(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(os, "link", refuse)
    with lock.held(tmp_path), pytest.raises(UserError, match="in use"), lock.held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_heartbeat_that_fails_is_told_of_once_and_the_work_goes_on(tmp_path, capsys, monkeypatch):
    seen, lost = [], threading.Event()
    with lock.held(tmp_path, lost.set, heartbeat=0.005):

        def refuse(*arguments):
            seen.append(1)
            raise OSError(116, "Stale file handle")

        monkeypatch.setattr(os, "utime", refuse)
        deadline = time.monotonic() + PATIENCE
        while len(seen) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
    assert len(seen) >= 3 and not lost.is_set()
    assert capsys.readouterr().err == f"the lock of {tmp_path} cannot be renewed (Stale file handle)\n"


@pytest.mark.parametrize(
    "platform, error, message",
    [
        ("cuda", AssertionError(), r"no cuda device can be used \(this jaxlib is built without it\): pip install"),
        ("tpu", RuntimeError("no libtpu.so (set JAX_PLATFORMS='')\nmore"), r"no tpu .*\(no libtpu.so\): .*=cpu$"),
        ("foo,cpu", RuntimeError("Backend 'foo' is unknown"), r"no foo .*\(Backend 'foo' is unknown\): JAX_PLATFORMS"),
    ],
)
def test_no_such_device_is_one_sentence(monkeypatch, platform, error, message):
    def refuse():
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", platform)
    monkeypatch.setattr(devices.jax, "devices", refuse)
    with pytest.raises(UserError, match=message) as caught:
        devices.devices_or_sentence()
    assert "\n" not in str(caught.value)
