"""Several processes that do one run: what they compute, how they stop, and that none outlives the others."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from ganstyle_jax.io import images, pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import processes, runs
from ganstyle_jax.loop.processes import Processes

STEPS = 20
RUN = ["dcgan", "--image-size=16", "--width=4", "--latent-dim=8", "--batch-size=16", "--dtype=float64"]
RUN += ["--checkpoint-every=5", "--sample-every=100", "--steps-per-dispatch=5", "--workers=1"]


def training(place: Path, run_dir: Path, *options: str) -> list[str]:
    """The command for one process."""
    command = [sys.executable, "-m", "ganstyle_jax", "train", *RUN, f"--data={place / 'pictures.npz'}"]
    return [*command, f"--run-dir={run_dir}", *options]


class Job:
    """A command in several processes on this machine; what they say goes to files beside `name`."""

    def __init__(self, place: Path, name: Path, count: int, devices: int, command: list[str]):
        # Ours until the job is over, so that nobody else is given it; the coordinator shares it with who has it thus.
        self.reserved = socket.socket()
        self.reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.reserved.bind(("127.0.0.1", 0))
        port = self.reserved.getsockname()[1]
        # The variables of a launcher that runs the tests would be taken for this job's.
        launched = {name for names in processes.LAUNCHERS.values() for name in names}
        environment = {name: value for name, value in os.environ.items() if name not in launched} | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(place / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles faster
        }
        self.logs = [name.with_name(f"{name.name}.{i}.log") for i in range(count)]
        self.members = []
        for i, log in enumerate(self.logs):
            here = [f"--coordinator=127.0.0.1:{port}", f"--process-count={count}", f"--process-id={i}"]
            with open(log, "w") as file:
                self.members.append(
                    subprocess.Popen(command + (here if count > 1 else []), env=environment, stdout=file, stderr=file)
                )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.kill()
            member.wait()
        self.reserved.close()

    def wait(self, seconds: float = 600) -> list[int]:
        """Exit statuses."""
        end = time.monotonic() + seconds
        return [member.wait(max(0.1, end - time.monotonic())) for member in self.members]

    def said(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with pictures.npz, and with the compiled programs that all these processes share."""
    folder = tmp_path_factory.mktemp("place")
    noise = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 1), np.uint8)
    np.savez(folder / "pictures.npz", images=noise)
    return folder


@pytest.fixture(scope="module")
def undisturbed(place, tmp_path_factory) -> Path:
    """All steps in one process with four devices."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    with Job(place, run_dir, 1, 4, training(place, run_dir, f"--steps={STEPS}")) as job:
        assert job.wait() == [0], job.said()
    return run_dir


def assert_same_run(run_dir: Path, other: Path) -> None:
    """In float64 and up to the order of sums."""
    with jax.enable_x64(True):
        one, two = runs.load(run_dir), runs.load(other)
        assert one.step == two.step == STEPS
        for a, b in zip(jax.tree.leaves(one.state), jax.tree.leaves(two.state), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-9)


def log_lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "count, options",
    [
        (2, []),
        (4, ["--shard-state", "--data-on-device=yes"]),
        (2, ["--parallel=pmap"]),
        (2, ["--parallel=pmap", "--data-on-device=yes"]),
        (2, ["--shard-state", "--shard-devices=2"]),
    ],
    ids=["2", "4-sharded-resident", "2-pmap", "2-pmap-resident", "2-sharded-in-groups"],
)
def test_processes_compute_what_one_does(place, undisturbed, tmp_path, count, options):
    with Job(
        place, tmp_path / "run", count, 4 // count, training(place, tmp_path / "run", f"--steps={STEPS}", *options)
    ) as job:
        assert job.wait() == [0] * count, job.said()
    assert_same_run(undisturbed, tmp_path / "run")
    # One process writes for people, and what one alone would have written.
    assert [line["step"] for line in log_lines(tmp_path / "run")] == [line["step"] for line in log_lines(undisturbed)]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(p.name for p in undisturbed.iterdir())
    assert "steps done" in job.logs[0].read_text() and "steps done" not in job.logs[1].read_text()


# Lazy terms, an adjustment of the probability and every cosine within the steps.
STYLEGAN2 = ["--preset=small", "--image-size=16", "--latent-dim=4", "--capacity=64", "--max-channels=4", "--mirror"]
STYLEGAN2 += ["--r1-interval=4", "--path-interval=3", "--augment-interval=4", "--augment-speed-images=1000"]
STYLEGAN2 += ["--augment-p=0.3", "--augment-policy=blit,color"]
R3GAN = ["--image-size=16", "--width=2", "--latent-dim=4", "--group-size=2", "--mirror", "--schedule-images=200"]
R3GAN += ["--augment=color,cutout", "--augment-probability", "0.3", "0.7"]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
@pytest.mark.parametrize("name", ["small_translator", "small_stylizer", "small_prior", "stylegan2", "r3gan"])
def test_every_kind_of_method_is_the_same_in_two_processes(place, tmp_path, name, parallel):
    """Several sources, a history in the state, frozen networks, no data at all; and the GANs of today."""
    data = {
        "small_translator": ["--data", "a={0}", "b={0}"],
        "small_stylizer": ["--data", "content={0}", "style={0}"],
        "small_prior": [],
        "stylegan2": ["--data={0}", *STYLEGAN2],
        "r3gan": ["--data={0}", *R3GAN],
    }[name]
    data = [part.format(place / "pictures.npz") for part in data]
    method = str(Path(__file__).with_name(f"{name}.py")) if name.startswith("small") else name
    command = [sys.executable, "-m", "ganstyle_jax", "train", method, *data]
    command += ["--batch-size=16", "--dtype=float64", f"--steps={STEPS}", "--sample-every=100", "--workers=1"]
    for count in (1, 2):
        run_dir = tmp_path / str(count)
        options = [f"--run-dir={run_dir}", f"--parallel={parallel}"]
        with Job(place, run_dir, count, 4 // count, command + options) as job:
            assert job.wait() == [0] * count, job.said()
    assert_same_run(tmp_path / "1", tmp_path / "2")


ROWS = """
import sys
import jax
import numpy as np
import tyro
from jax.sharding import Mesh
from ganstyle_jax.loop import processes
from ganstyle_jax.style import gatys
from ganstyle_jax.features.vgg import VGG

jax.config.update("jax_enable_x64", True)
processes.join(tyro.cli(processes.Processes, args=sys.argv[2:]))
network = VGG(((4, 4), (8,)), padding="reflect", dtype="float64", platform="xla")
layers = {"content_layers": ("relu2_1",), "style_layers": ("relu1_1", "relu2_1")}
cfg = gatys.Config(size=70, smallest=50, steps=12, taper=0.0, **layers)
content, style = (np.random.default_rng(i).uniform(-1, 1, (61, 70, 3)) for i in range(2))
params = jax.tree.map(lambda x: np.asarray(x, np.float64), network.init(jax.random.key(0)))
with processes.leaving_together():
    # Pictures are resized in float32, so this begins where `stylize` has done that.
    mesh = Mesh(np.asarray(jax.devices()), ("rows",))
    targets = gatys.make_targets(network, params, content, [style], cfg, mesh=mesh)
    first = targets.canvas.put(content)
    value, gradient, _ = gatys.evaluate(network, params, targets, first, cfg)
    at = gatys.start(first, value, gradient, cfg, canvas=targets.canvas)
    at, _, _ = gatys.advance(network, params, targets, at, np.int32(cfg.steps), cfg)
    made = targets.canvas.crop(gatys.picture_of(at, cfg, targets.canvas))
    stylized = gatys.stylize(jax.random.key(0), content, [style], cfg, network, params, devices=jax.devices())
    if processes.is_first():
        np.savez(sys.argv[1], made=made, stylized=stylized, loss=np.asarray(at.value))
"""


@pytest.mark.slow
def test_rows_of_a_picture_shared_by_processes(place, tmp_path):
    (tmp_path / "rows.py").write_text(ROWS)
    made = []
    for count in (1, 2):
        out = tmp_path / f"{count}.npz"
        with Job(place, out, count, 4 // count, [sys.executable, str(tmp_path / "rows.py"), str(out)]) as job:
            assert job.wait() == [0] * count, job.said()
        made.append(np.load(out))
    for name, tolerance in (("made", 1e-9), ("loss", 1e-9), ("stylized", 1e-5)):  # the last one in float32
        np.testing.assert_allclose(made[0][name], made[1][name], rtol=0, atol=tolerance)
    assert made[0]["stylized"].shape == (61, 70, 3) and np.abs(made[0]["stylized"]).max() <= 1
    assert np.abs(made[0]["made"] - made[0]["stylized"]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("count, devices", [(2, 2), (2, 1)], ids=["a team in each process", "a team of two processes"])
def test_teams_of_rows_make_a_folder(place, tmp_path, count, devices):
    """Three pictures by teams of two devices; one process of each team writes."""
    rng = np.random.default_rng(0)
    for name in ("many/a.png", "many/b.png", "many/c.png", "style.png"):
        coarse = rng.uniform(-1, 1, (5, 5, 3))
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pictures.write_picture(tmp_path / name, np.clip(images.resize(coarse, (40, 32)), -1, 1))
    command = [sys.executable, "-m", "ganstyle_jax", "stylize", str(tmp_path / "many"), str(tmp_path / "style.png")]
    command += ["--size=40", "--smallest=40", "--steps=4", "--optimizer=adam", "--content-layers=relu2_1"]
    command += ["--style-layers", "relu1_1", "relu2_1"]
    for name, processes_and_devices, options in (
        ("alone", (1, 1), ["--parallel=none"]),
        ("teams", (count, devices), ["--parallel=rows", "--rows=2"]),
    ):
        (tmp_path / name).mkdir()
        options += ["-o", str(tmp_path / name)]
        with Job(place, tmp_path / name, *processes_and_devices, command + options) as job:
            assert job.wait() == [0] * processes_and_devices[0], job.said()
    for name in "abc":
        one, other = (pictures.read_picture(tmp_path / folder / f"{name}.png") for folder in ("alone", "teams"))
        assert one.shape == other.shape == (40, 32, 3) and np.abs(one - other).max() < 2.5 / 127.5  # of 256 levels
    assert job.said().count("after 4 evaluations") == 3


@pytest.mark.slow
def test_the_others_leave_when_one_is_killed_and_fewer_go_on(place, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    with Job(place, run_dir, 4, 1, training(place, run_dir, "--steps=100000", "--keep-checkpoints=1000")) as job:
        while not (run_dir / "checkpoints" / "5.sha256.json").exists():
            assert all(member.poll() is None for member in job.members), job.said()
            time.sleep(0.1)
        job.members[2].send_signal(signal.SIGKILL)
        statuses = job.wait()
        assert statuses[2] == -signal.SIGKILL and 0 not in statuses
        assert "another process has died" in job.said() or "another task died" in job.said()
    for sums in (run_dir / "checkpoints").glob("*.sha256.json"):  # those that it was fast enough to write
        if int(sums.name.split(".")[0]) >= STEPS:
            sums.unlink()
    with Job(place, run_dir, 2, 2, training(place, run_dir, f"--steps={STEPS}", "--resume=auto")) as job:
        assert job.wait() == [0, 0], job.said()
        assert "resuming" in job.logs[0].read_text()
    assert_same_run(undisturbed, run_dir)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_the_same_step(place, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    with Job(place, run_dir, 2, 2, training(place, run_dir, "--steps=100000", "--checkpoint-every=1000000")) as job:
        while not (run_dir / "metrics.jsonl").exists():
            assert all(member.poll() is None for member in job.members), job.said()
            time.sleep(0.1)
        job.members[1].send_signal(signal.SIGTERM)
        assert job.wait() == [143, 143], job.said()
        assert "SIGTERM received: saved step" in job.logs[0].read_text()
    with jax.enable_x64(True):
        assert runs.load(run_dir).step > 0


@pytest.mark.slow
def test_who_comes_alone_says_so(place, tmp_path):
    job = Job(place, tmp_path / "run", 2, 1, training(place, tmp_path / "run", "--steps=1", "--join-timeout=3"))
    job.members[1].kill()
    with job:
        assert job.wait()[0] != 0
        assert "did not meet at 127.0.0.1" in job.logs[0].read_text()


@pytest.mark.parametrize(
    "environment, name",
    [
        ({}, None),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, "Slurm"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),  # an interactive shell
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # jax[k8s] is not installed
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # a pod by itself
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "a,b"}, "Cloud TPU"),
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_launchers_are_known(environment, name):
    assert processes.launcher(environment) == name


@pytest.mark.parametrize(
    "given, message",
    [
        ({"coordinator": "a:1"}, "--process-count, --process-id is missing"),
        ({"process_id": 0}, "--coordinator, --process-count is missing"),
        ({"coordinator": "a", "process_count": 2, "process_id": 0}, "HOST:PORT such as node1:1234, got 'a'"),
        ({"coordinator": "a:1", "process_count": 2, "process_id": 2}, "from 0 to 1, below process_count, got 2"),
        ({"coordinator": "a:1", "process_count": 2, "process_id": 0, "distributed": "no"}, "distributed is no"),
        ({"join_timeout": 0}, "join_timeout must be at least 1 second, got 0"),
    ],
)
def test_refusals(given, message):
    with pytest.raises(ValueError, match=message):
        Processes(**given)


def test_alone_there_is_nothing_to_agree_upon():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("batch",))
    now = [1, -2]
    read = processes.agree(lambda: now, mesh)
    now = [3, -4]
    assert read() == [3, -4] and processes.decided_by_first(lambda: 7) == 7
    processes.together("nobody else")
    with pytest.raises(UserError, match="as it was"), processes.leaving_together():
        raise UserError("as it was")


def test_what_a_process_says_when_it_leaves():
    lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:1")
    assert "process 0 of 1: error: another process has died" in processes.farewell(lost)
    assert "--resume auto" in processes.farewell(lost)
    assert processes.farewell(UserError("no such file.")) == "ganstyle: process 0 of 1: error: no such file."
    assert "ZeroDivisionError" in processes.farewell(ZeroDivisionError("ours"))
    assert not processes.is_lost_connection(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"))
