"""Shared fixtures."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# Eight pretend devices in every test, asked for before anything imports jax.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

# The same examples every time; no deadline, because the first one waits for a compiler, and no other judgement by the
# clock: how long an example takes to be drawn depends on what else the machine does.
settings.register_profile("ganstyle", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ganstyle")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets and weights, GANSTYLE_TEST_DATA.

    Where it is missing, tests that need it are skipped, or fail if GANSTYLE_REQUIRE_DATA=1.
    """
    path = Path(os.environ.get("GANSTYLE_TEST_DATA") or ROOT / "../shared/data").resolve()
    if not path.is_dir():
        reason = f"no folder {path}: set GANSTYLE_TEST_DATA to the folder of test data"
        if os.environ.get("GANSTYLE_REQUIRE_DATA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def torch():
    """PyTorch on one thread. Where it is missing, tests that need it skip, or fail if GANSTYLE_REQUIRE_DATA=1."""
    try:
        import torch
    except ImportError:
        reason = "PyTorch, the reference of the parity tests, is not installed"
        if os.environ.get("GANSTYLE_REQUIRE_DATA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    torch.set_num_threads(1)
    return torch


@pytest.fixture
def x64():
    """float64 within one test, and off again after it."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A GANSTYLE_HOME of this session's: every program is compiled once, in whatever process."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from ganstyle_jax.commands import flags

    folder = tmp_path_factory.getbasetemp() / "ganstyle_home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANSTYLE_HOME", str(folder))
        compilation_cache.reset_cache()  # what was compiled before has settled that there is none
        flags.use_cache()
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        yield folder
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """An .npz of 24 colour pictures of 16 pixels: blurred noise, the same every time."""
    import numpy as np

    noise = np.random.default_rng(0).normal(size=(24, 16, 16, 3))
    smooth = noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2) + np.roll(noise, (1, 1), (1, 2))
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, images=np.clip(128 + 40 * smooth, 0, 255).astype(np.uint8))
    return path


@pytest.fixture(autouse=True, scope="session")
def signals_as_at_a_terminal():
    """Also where nohup has SIGHUP ignored, or a shell SIGINT in its background, which this project goes on ignoring."""
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def float32_again():
    """Every test begins and ends in float32: a float64 run, trained or loaded, switches the whole program over."""
    import jax

    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(autouse=True, scope="module")
def programs_are_forgotten():
    """What the tests have compiled goes where it fills a worker's memory: kept to the end, it would take 6 GB each."""
    import jax
    import psutil

    yield
    if psutil.Process().memory_info().rss > 3e9:
        jax.clear_caches()


@pytest.fixture
def asked_of_the_network(monkeypatch) -> list:
    """A network on which nothing is to be found, and at once; what was looked for there all the same."""
    import socket

    asked = []

    def look_up(host, *_, **__):
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def connect(_, address):
        asked.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket.socket, "connect", connect)
    return asked


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 2 MiB. Skips where this user may not mount one."""
    import subprocess

    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a full disk needs the right to mount a small one: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def quick_compile():
    """XLA with few optimisations in the whole of a file whose tests take longer to compile than to run.

    In the processes it starts too: a run goes on bit for bit through the same program alone, and whether another
    optimisation rounds as this one does depends on the processor.
    """
    import jax

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
