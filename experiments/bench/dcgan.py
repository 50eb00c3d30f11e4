"""Times DCGAN's training step, both networks and both optimizers, against PyTorch on the same machine.

    python experiments/bench/dcgan.py --json dcgan_cpu.json                     # CPU, 64 pixels, batch 64
    python experiments/bench/dcgan.py --device gpu --sweep --json dcgan_gpu.json   # batch 128 and 1024, both dtypes

Ours is what `ganstyle train` runs: `step.make_advance` over a set of random uint8 images that lives on the device,
several steps in one dispatch, state donated. PyTorch runs the networks and the step of tests/torch_dcgan.py with
channels_last memory, fused Adam and (on a GPU) cuDNN's search for the fastest kernels, eagerly and with `torch.compile`
of both networks: mode "default", on a GPU "reduce-overhead" (CUDA graphs) too. With `--published` there is one more,
the common example's step as it was published: contiguous memory, eager, Adam as it is by default, a sigmoid before the
loss. Both sides draw new latents in every step.
What favours PyTorch: its images lie ready as floats on the device, ours are picked out of the set and converted in
every step; and we also average the generator's weights.

Precision: float32, on a GPU with TF32 in matrix products and convolutions on both sides, which is JAX's default and
not PyTorch's (`--no-tf32`: without, on both); or bfloat16, where PyTorch uses autocast: weights and BatchNorm float32.

Each of the contestants is a process of its own, ours under `--jax-python` and PyTorch's under `--torch-python`, so
that they share no threads and may come from different environments. One works at a time, in turn: ours, eager,
compiled, ours, ... Seconds per step are those of a round of steps, ended by `block_until_ready` or
`torch.cuda.synchronize`; compilation and warm-up lie outside. `ratio` is our median over PyTorch's best: below 1 we
are faster. Nothing is timed before the parity check: from the same weights, images and latents both must give the same
images and logits within 1e-4 and the same losses of the first step within 2e-4, in float32 without TF32, and that step
must change the generated pictures alike. In the precision that is timed, every contestant of PyTorch is checked again,
to 5e-2 where that is TF32 or bfloat16.

Expected: on 2 CPU cores the default settings take about five minutes. The sweep is made for one data-centre GPU,
for which ten minutes are an estimate.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import machine
import numpy as np

from ganstyle_jax.io.files import UserError

# The update is compared loosely, because Adam's first step is the gradient's sign, and rounding decides the sign of
# gradients near 0: 2 % in float32 at full size. It is 100 % for an update left out, and 200 % for one the wrong way.
TOLERANCES = {"images": 1e-4, "logits": 1e-4, "loss/disc": 2e-4, "loss/gen": 2e-4, "update": 0.1}
# bfloat16 has 8 bits of precision, TF32 11, and errors add up over the layers: this finds other mathematics, no more.
ROUGH_TOLERANCES = {"images": 5e-2, "logits": 5e-2, "loss/disc": 5e-2, "loss/gen": 5e-2, "update": 0.5}
SWEEP = [(batch, dtype) for batch in (128, 1024) for dtype in ("float32", "bfloat16")]
SEED = 0


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is timed, and how."""

    image_size: int = 64  # pixels, a power of two from 16 to 256
    width: int = 64  # channels of the finest hidden layer
    batch_size: int = 64  # images in a step
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the arithmetic
    device: Literal["cpu", "gpu"] = "cpu"  # where both sides run; of several GPUs the first
    tf32: bool = True  # GPU, float32: TF32 in matrix products and convolutions, on both sides
    rounds: int = 7  # timings of each contestant
    steps: int | None = None  # training steps in a round; by default 5 on a CPU, 200 on a GPU
    compiled: bool = True  # time torch.compile too, and not eager PyTorch alone
    published: bool = False  # time the common example as published, too
    sweep: bool = False  # batch 128 and 1024 in float32 and bfloat16, in the place of batch_size and dtype
    json: Path | None = None  # file for the record; a bare name goes into experiments/results/
    torch_python: Path = Path(sys.executable)  # Python interpreter that has PyTorch
    jax_python: Path = Path(sys.executable)  # Python interpreter that has JAX and what ganstyle_jax needs

    def __post_init__(self):
        for name in ("batch_size", "width", "rounds", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def steps_per_round(self) -> int:
        return self.steps or {"cpu": 5, "gpu": 200}[self.device]

    @property
    def torch_modes(self) -> list[str]:
        """Contestants of PyTorch: eager, as published, or a mode of torch.compile."""
        compiled = {"cpu": ["default"], "gpu": ["default", "reduce-overhead"]}[self.device]
        return ["eager", *(["published"] if self.published else []), *(compiled if self.compiled else [])]

    @property
    def exact(self) -> bool:
        """Whether what is timed has float32's full precision."""
        return self.dtype == "float32" and (self.device == "cpu" or not self.tf32)


# ---------------------------------------------------------------------------------------------------------------------
# Workers
#
# A worker is this file run as `dcgan.py --worker MODE SETTINGS` and answers lines of JSON with lines of JSON:
#     {"do": "warm_up"}                                   -> {"compile_seconds": the first step, compilation included}
#     {"do": "parity", "folder": ..., "exact": true}      -> {"loss/disc": ..., "loss/gen": ...}, and a file, see below
#     {"do": "run", "steps": 5}                           -> {"seconds": of all of them together}
# For parity our worker writes folder/inputs.npz (weights under PyTorch's names, images, latents), PyTorch's reads it,
# and each writes to folder/MODE.npz: images (b, s, s, 3) of the generator and logits (b,) of the discriminator, both
# before the step, and update (b, s, s, 3), by how much the step changed the images.


def serve(mode: str, bench: Bench) -> None:
    """Answers commands on stdin until it closes."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not end up among the replies

    def reply(value: dict) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    try:
        about, commands = jax_worker(bench) if mode == machine.OURS else torch_worker(mode, bench)
        reply(about)
        for line in sys.stdin:
            command = json.loads(line)
            reply(commands[command.pop("do")](**command))
    except KeyboardInterrupt:
        pass
    except UserError as error:
        reply({"error": str(error)})
    except Exception as error:
        traceback.print_exc()
        reply({"error": f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]})


def jax_worker(bench: Bench) -> tuple[dict, dict[str, Callable[..., dict]]]:
    """(what this is, its commands)."""
    import jax

    from ganstyle_jax import contract, data
    from ganstyle_jax.gan import convert, dcgan
    from ganstyle_jax.loop import step as step_of
    from ganstyle_jax.loop import train
    from ganstyle_jax.loop.feed import Feed
    from ganstyle_jax.nn import compiled

    if jax.default_backend() != bench.device:
        raise UserError(
            f"--device {bench.device} was asked for, but JAX in {sys.executable} finds {jax.default_backend()}: "
            "install JAX with CUDA there, or choose another --jax-python"
        )
    if not bench.tf32:
        jax.config.update("jax_default_matmul_precision", "highest")
    cfg = dcgan.Config(image_size=bench.image_size, channels=3, width=bench.width, dtype=bench.dtype)
    steps = bench.steps_per_round
    loop = train.Loop(batch_size=bench.batch_size, seed=SEED, devices=1, steps_per_dispatch=steps, data_on_device="yes")

    # As in `train.run`, from here to `advance`.
    rng = np.random.default_rng(SEED)
    size = max(1024, bench.batch_size)
    pictures = rng.integers(0, 256, (size, bench.image_size, bench.image_size, 3), dtype=np.uint8)
    source = data.Source(
        "random", pictures.shape[1:], pictures.dtype, size, None, lambda i: {"image": pictures[i].copy()}
    )
    feed = Feed({"real": data.Batches(source, loop.batch_size, SEED)}, loop, step_of.make_mesh(loop))
    key_init, key_train = jax.random.split(jax.random.key(SEED))
    method = contract.of(dcgan)
    abstract = step_of.abstract_state(method, cfg, key_init, loop, feed.mesh)
    advance = step_of.make_advance(method, cfg, key_train, loop, feed.mesh, abstract, feed.rows)
    scalar = jax.ShapeDtypeStruct((), np.int32)
    advance = compiled.Ahead(advance, abstract, (), *feed.abstract(), scalar, scalar)
    make_state = compiled.once(step_of.init_of(method, cfg), out_shardings=step_of.shardings_of(abstract))
    step, state = 0, make_state(key_init, ())
    stored = feed.load()
    chunks = feed.stream(0, 0)  # a set that lives on the device has no end

    def run(steps: int) -> dict:
        nonlocal step, state
        start = time.perf_counter()
        state, metrics = advance(state, (), stored, chunks(step, steps), np.int32(step), np.int32(steps))
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - start
        step += steps
        return {"seconds": seconds}

    def warm_up() -> dict:
        jax.block_until_ready((state, stored))
        first = run(1)["seconds"]
        run(min(2, steps))
        return {"compile_seconds": first}

    def parity(folder: str, exact: bool) -> dict:
        checked = dataclasses.replace(cfg, dtype="float32") if exact else cfg
        fresh = dcgan.init(key_init, checked)
        key = jax.random.key(SEED + 1)
        # The latents that the first update of `dcgan.train_step` draws.
        key_z = jax.random.fold_in(jax.random.fold_in(jax.random.split(key)[0], 0), 0)
        z = dcgan.requests(key_z, loop.batch_size, checked)
        images = data.to_float(pictures[: loop.batch_size])

        @jax.jit
        def compute(state, images, z):
            fake, _ = dcgan.apply(dcgan.Generator(checked), state.gen.params, state.gen.batch_stats, z)
            logits, _ = dcgan.apply(dcgan.Discriminator(checked), state.disc.params, state.disc.batch_stats, images)
            new, metrics = dcgan.train_step(state, {"real": {"image": images}}, key, checked)
            changed, _ = dcgan.apply(dcgan.Generator(checked), new.gen.params, new.gen.batch_stats, z)
            return {"images": fake, "logits": logits, "update": changed - fake}, metrics

        with jax.default_matmul_precision("highest") if exact else contextlib.nullcontext():
            outputs, metrics = compute(fresh, images, z)
        gen = convert.generator_to_torch(fresh.gen.variables, checked)
        disc = convert.discriminator_to_torch(fresh.disc.variables, checked)
        inputs: dict[str, Any] = {"images": images, "z": np.asarray(z)}
        inputs |= {f"gen/{k}": v for k, v in gen.items()} | {f"disc/{k}": v for k, v in disc.items()}
        np.savez(Path(folder, "inputs.npz"), **inputs)
        arrays: dict[str, Any] = jax.device_get(outputs)
        np.savez(Path(folder, f"{machine.OURS}.npz"), **arrays)
        return {name: float(metrics[name]) for name in ("loss/disc", "loss/gen")}

    about = {
        "versions": machine.versions(("jax", "jaxlib", "flax", "optax", "numpy")),
        "device": jax.devices()[0].device_kind,
        "threads": machine.cores(),
    }
    return about, {"warm_up": warm_up, "parity": parity, "run": run}


def torch_worker(mode: str, bench: Bench) -> tuple[dict, dict[str, Callable[..., dict]]]:
    """(what this is, its commands). mode: "eager", "published", or one of torch.compile."""
    import torch
    import torch_dcgan
    from torch import nn

    if bench.device == "gpu" and not torch.cuda.is_available():
        raise UserError(
            f"--device gpu was asked for, but PyTorch {torch.__version__} in {sys.executable} finds none: "
            "install a PyTorch for CUDA there, or choose another --torch-python"
        )
    device = torch.device({"cpu": "cpu", "gpu": "cuda"}[bench.device])
    torch.set_num_threads(machine.cores())
    torch.manual_seed(SEED)
    torch.backends.cudnn.benchmark = True

    def allow_tf32(allowed: bool) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed

    class Autocast(nn.Module):
        """The forward pass in bfloat16, its result in float32. (Autograd gives the backward pass the same dtypes.)"""

        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            with torch.autocast(device.type, torch.bfloat16):
                return self.module(x).float()

    def prepare(module):
        """The network as it is timed, sharing `module`'s weights."""
        module = Autocast(module) if bench.dtype == "bfloat16" else module
        return module if mode in ("eager", "published") else torch.compile(module, mode=mode, dynamic=False)

    memory = torch.contiguous_format if mode == "published" else torch.channels_last

    plain = [
        torch_dcgan.Generator(bench.image_size, 3, 100, bench.width),
        torch_dcgan.Discriminator(bench.image_size, 3, bench.width),
    ]
    plain = [network.to(device, memory_format=memory) for network in plain]
    for network in plain:
        torch_dcgan.initialise(network)
    timed = [prepare(network) for network in plain]
    settings = torch_dcgan.adam(plain[0]).defaults
    fused = None if mode == "published" else True
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=settings["lr"], betas=settings["betas"], fused=fused)
        for network in plain
    ]
    train_step = torch_dcgan.published_step if mode == "published" else torch_dcgan.train_step
    allow_tf32(bench.tf32)
    shape = (bench.batch_size, 3, bench.image_size, bench.image_size)
    images = (torch.rand(shape, device=device) * 2 - 1).contiguous(memory_format=memory)

    def one_step(networks, images, z):
        if mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # the last step's tensors may be overwritten
        gen, disc = networks
        gen_optimizer, disc_optimizer = optimizers
        return train_step(gen, disc, gen_optimizer, disc_optimizer, images, z)

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def run(steps: int) -> dict:
        synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            one_step(timed, images, torch.randn(bench.batch_size, 100, device=device))
        synchronize()
        return {"seconds": time.perf_counter() - start}

    def warm_up() -> dict:
        first = run(1)["seconds"]
        run(min(10, 2 * bench.steps_per_round))  # CUDA graphs are recorded in the second and third step
        return {"compile_seconds": first}

    def parity(folder: str, exact: bool) -> dict:
        networks = timed if not exact or bench.exact else plain
        with np.load(Path(folder, "inputs.npz")) as file:
            inputs = {name: torch.from_numpy(file[name]).to(device) for name in file.files}

        def load_weights() -> None:
            for name, network in zip(("gen", "disc"), plain, strict=True):
                prefix = f"{name}/"
                network.load_state_dict(
                    {key.removeprefix(prefix): value for key, value in inputs.items() if key.startswith(prefix)}
                )
            for optimizer in optimizers:
                optimizer.state.clear()

        allow_tf32(bench.tf32 and not exact)
        real = inputs["images"].permute(0, 3, 1, 2).contiguous(memory_format=memory)
        load_weights()
        # With gradients, as in training: without, torch.compile would make, and we would check, other code.
        fake, logits = (network(x).detach().cpu() for network, x in zip(networks, (inputs["z"], real), strict=True))
        load_weights()
        disc_loss, gen_loss = one_step(networks, real, inputs["z"])
        losses = {"loss/disc": disc_loss.item(), "loss/gen": gen_loss.item()}
        changed = networks[0](inputs["z"]).detach().cpu()
        images, update = (x.permute(0, 2, 3, 1).numpy() for x in (fake, changed - fake))
        np.savez(Path(folder, f"{mode}.npz"), images=images, logits=logits.numpy(), update=update)
        allow_tf32(bench.tf32)
        return losses

    about = {
        "versions": machine.versions(("torch", "numpy")) | {"cuda": torch.version.cuda},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }
    return about, {"warm_up": warm_up, "parity": parity, "run": run}


class Worker:
    """A worker process, as the parent sees it; ended with its block. environment: of its own, beside the parent's."""

    def __init__(self, mode: str, bench: Bench, environment: dict[str, str] | None = None):
        own = environment or {}
        self.mode = mode
        self.python = bench.jax_python if mode == machine.OURS else bench.torch_python
        settings = json.dumps(dataclasses.asdict(bench), default=str)
        paths = [str(machine.ROOT), str(machine.ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # PyTorch's processes need memory of the GPU, too
        }
        environment.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # compile_seconds from nothing, as JAX's
        environment.pop("JAX_PLATFORMS", None)
        if bench.device == "cpu":
            environment["JAX_PLATFORMS"] = "cpu"
        environment |= own
        self.process = subprocess.Popen(
            [str(self.python), str(Path(__file__).resolve()), "--worker", mode, settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            self.about = self._reply()
        except BaseException:
            self.process.kill()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        machine.end(self.process)

    def __call__(self, do: str, **arguments: Any) -> dict:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `_reply` says so
        return self._reply()

    def _reply(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise UserError(f"the worker {self.mode} ({self.python}) ended with status {status}: see its output above")
        reply = json.loads(line)
        if "error" in reply:
            raise UserError(f"the worker {self.mode} ({self.python}) failed: {reply['error']}")
        return reply


# ---------------------------------------------------------------------------------------------------------------------
# Parity


def parity_errors(ours: dict[str, Any], theirs: dict[str, Any], tolerances: dict[str, float], who: str) -> dict:
    """The error of each number or array that `tolerances` names.

    That is the largest difference, relative to PyTorch's value where it is above 1; for "update" the root mean square
    of the difference, relative to that of PyTorch's. Raises UserError where an error is above its tolerance or not a
    number, where a shape differs or an entry is missing.
    """
    errors = {}
    for name, tolerance in tolerances.items():
        if name not in ours or name not in theirs:
            raise UserError(f"parity of {name} cannot be checked: {'PyTorch' if name in ours else 'JAX'} gave none")
        a, b = (np.asarray(side[name], np.float64) for side in (ours, theirs))
        if a.shape != b.shape or not a.size:
            raise UserError(f"{name} has shape {a.shape} here and {b.shape} in PyTorch ({who}): these are two networks")
        if name == "update":
            with np.errstate(divide="ignore", invalid="ignore"):  # no update at all is refused below
                errors[name] = float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))
        else:
            errors[name] = float(np.max(np.abs(a - b) / np.maximum(1, np.abs(b))))
        if not errors[name] <= tolerance:  # NaN is not
            raise UserError(
                f"{name} differs from PyTorch ({who}) by {errors[name]:.3g}, and {tolerance:g} is accepted: the two "
                "sides do not compute the same, so there is nothing to time; run the parity tests to find the layer"
            )
    return errors


def check_parity(ours: Worker, theirs: Worker, exact: bool) -> dict:
    """`parity_errors` of the two, on the same weights and inputs."""
    with tempfile.TemporaryDirectory(prefix="ganstyle-bench-") as folder:

        def numbers(worker: Worker) -> dict[str, Any]:
            losses = worker("parity", folder=folder, exact=exact)
            with np.load(Path(folder, f"{worker.mode}.npz")) as arrays:
                return losses | dict(arrays)

        a = numbers(ours)  # first, because it makes what the other reads
        b = numbers(theirs)
    return parity_errors(a, b, TOLERANCES if exact else ROUGH_TOLERANCES, theirs.mode)


# ---------------------------------------------------------------------------------------------------------------------
# Timing


def measure(bench: Bench) -> dict:
    """Parity, then rounds: one entry of the record's "results"."""
    contestants: dict[str, dict] = {}
    versions: dict[str, dict] = {}
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        parity: dict[str, dict] = {}

        def start(mode: str) -> None:
            machine.say(f"{mode}: starting and compiling")
            worker = stack.enter_context(Worker(mode, bench))
            seconds = worker("warm_up")["compile_seconds"]
            versions[mode] = worker.about.pop("versions")
            contestants[mode] = worker.about | {"compile_seconds": machine.seconds(seconds)}
            workers[mode] = worker

        start(machine.OURS)
        start("eager")
        parity["float32, eager"] = check_parity(workers[machine.OURS], workers["eager"], exact=True)
        if not bench.exact:
            parity["as timed, eager"] = check_parity(workers[machine.OURS], workers["eager"], exact=False)
        for mode in bench.torch_modes[1:]:
            try:  # a compiler may be missing; a network that compiles must then be the right one
                start(mode)
            except UserError as error:
                machine.say(f"{mode} is left out: {error}")
                contestants[mode] = {"error": str(error)}
                continue
            parity[f"as timed, {mode}"] = check_parity(workers[machine.OURS], workers[mode], exact=bench.exact)
        machine.say("parity: " + describe_errors(parity))

        rounds: dict[str, list[float]] = {mode: [] for mode in workers}
        for i in range(bench.rounds):
            for mode, worker in workers.items():
                seconds = worker("run", steps=bench.steps_per_round)["seconds"]
                rounds[mode].append(seconds / bench.steps_per_round)
            last = ", ".join(f"{mode} {1e3 * seconds[-1]:.4g} ms" for mode, seconds in rounds.items())
            machine.say(f"round {i + 1} of {bench.rounds}: {last}")

    for mode, seconds in rounds.items():
        contestants[mode] |= summary(seconds, bench.batch_size)
    return {
        "image_size": bench.image_size,
        "width": bench.width,
        "batch_size": bench.batch_size,
        "dtype": bench.dtype,
        "steps_per_round": bench.steps_per_round,
        "versions": {"jax": versions[machine.OURS], "torch": versions["eager"]},
        "parity": parity,
        "contestants": contestants,
        **machine.compare({mode: median(seconds) for mode, seconds in rounds.items()}),
    }


def summary(seconds_per_step: list[float], batch_size: int) -> dict:
    """Median and spread of the rounds."""
    middle = median(seconds_per_step)
    return {
        "seconds_per_step": seconds_per_step,
        "median": middle,
        "min": min(seconds_per_step),
        "max": max(seconds_per_step),
        "images_per_second": batch_size / middle,
    }


def describe_errors(parity: dict[str, dict]) -> str:
    return "; ".join(
        f"{what}: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
        for what, errors in parity.items()
    )


def table(results: list[dict], unit: Literal["ms/step", "images/s"]) -> str:
    """Markdown, a row for each result; median, with the range of the rounds for times."""
    modes = list(results[0]["contestants"])
    names = {machine.OURS: "ganstyle_jax", "eager": "PyTorch eager", "default": "PyTorch compiled"}
    names["published"] = "PyTorch as published"
    names = {mode: names.get(mode, f"PyTorch compiled, {mode}") for mode in modes}
    head = ["image", "batch", "dtype", *(f"{names[mode]}, {unit}" for mode in modes), "ours / best PyTorch (time)"]

    def cell(contestant: dict) -> str:
        if "error" in contestant:
            return "failed"
        if unit == "images/s":
            return f"{contestant['images_per_second']:,.0f}"
        low, middle, high = (1e3 * contestant[name] for name in ("min", "median", "max"))
        return f"{middle:.4g} ({low:.4g} to {high:.4g})"

    rows = [head, ["---"] * len(head)]
    for result in results:
        cells = [cell(result["contestants"][mode]) for mode in modes]
        rows.append(
            [str(result["image_size"]), str(result["batch_size"]), result["dtype"], *cells, f"{result['ratio']:.3f}"]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(bench: Bench) -> None:
    for python in (bench.jax_python, bench.torch_python):  # before minutes are spent on compiling
        if shutil.which(python) is None:
            raise UserError(f"there is no program {python}: give the path of a Python interpreter")
    record = machine.describe()
    runs = [dataclasses.replace(bench, batch_size=b, dtype=d) for b, d in SWEEP] if bench.sweep else [bench]
    results = []
    for i, one in enumerate(runs):
        machine.say(
            f"{i + 1} of {len(runs)}: {one.image_size} pixels, width {one.width}, batch {one.batch_size}, {one.dtype}, "
            f"on the {one.device}; {one.rounds} rounds of {one.steps_per_round} steps"
        )
        results.append(measure(one))
    versions = [result.pop("versions") for result in results]
    record |= {
        "settings": json.loads(json.dumps(dataclasses.asdict(bench), default=str)),
        "versions": versions[0],  # those of one interpreter do not change
        "tolerances": {"float32": TOLERANCES, "as timed, where that is TF32 or bfloat16": ROUGH_TOLERANCES},
        "results": results,
    }
    print(table(results, "images/s" if bench.sweep else "ms/step"))
    if bench.json is not None:
        machine.say(f"record: {machine.write_record(bench.json, record)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(sys.argv[2], Bench(**json.loads(sys.argv[3])))
        sys.exit()
    import tyro  # not in the workers, whose interpreter may lack it

    try:
        main(tyro.cli(Bench, description=__doc__))
    except UserError as error:
        sys.exit(str(error))
