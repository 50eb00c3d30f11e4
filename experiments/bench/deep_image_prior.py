"""Times a step of Deep Image Prior against PyTorch on the same machine, and restarts side by side against one by one.

    python experiments/bench/deep_image_prior.py --json deep_image_prior_cpu.json      # CPU, 256 pixels
    python experiments/bench/deep_image_prior.py --sizes 64 --restarts 4

A step is noise added to the input, the network forward and backward, Adam and the running average of pictures, with the
network of the paper for denoising. Ours is `deep_image_prior.advance` with --stopping steps, several steps in one
dispatch. PyTorch runs the network of tests/torch_deep_image_prior.py, with contiguous memory and with channels_last,
eagerly, with fused Adam; the faster of the two counts. With `--stopping wmv` ours looks for the lowest variance, too,
which PyTorch's does not.

PyTorch is a process of its own under `--torch-python`. The sides work in turn; a round is as many steps of each as
take about `--round-seconds`, compilation and warm-up lie outside. `ratio` is our median over PyTorch's best: below 1 we
are faster. `side_by_side` is the time of a step of all restarts in one program over that of as many one by one.

Parity comes first: from the same weights, input and noisy picture both must give the same picture and loss, and after a
step of Adam the same weights, in float64 at 64 pixels within 1e-9, and at each size in float32 within 1e-3 and 1e-4.
Weights are not compared in float32: Adam's first step is the gradient's sign, which rounding decides where that is
nearly 0. Where any of this fails, the benchmark stops.

The machine must have nothing else to do; `load_average` in the record says how it was at the beginning.
"""

import dataclasses
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, Literal

import machine
import numpy as np
from torch_process import Worker, serve

from ganstyle_jax.io.files import UserError

# JAX is imported in functions, because PyTorch's process runs this file too, and its environment may lack it.

EXACT_SIZE = 64  # pixels
# Of gradients, as shares of the largest: Adam's first step divides each by itself, and would show rounding errors of
# those that are nearly 0 as they are; tests/test_deep_image_prior.py compares its weights, of smaller networks.
TOLERANCES = {
    "float64": {"picture": 1e-9, "loss": 1e-9, "gradients": 1e-9},
    "float32": {"picture": 1e-3, "loss": 1e-4},
}
LAYOUTS = ("contiguous", "channels_last")
SEED = 0
BETA1 = 0.9  # of Adam


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is timed, and how."""

    sizes: tuple[int, ...] = (256,)  # pixels, of square pictures
    stopping: Literal["steps", "wmv", "emv"] = "steps"  # of ours
    restarts: int = 0  # networks side by side, timed against as many one by one; 0 leaves it out
    channels: int = 128  # of each scale
    scales: int = 5
    rounds: int = 5  # timings of each contestant
    round_seconds: float = 5.0  # of the slowest contestant in a round, which has one step at least
    json: Path | None = Path(
        "deep_image_prior.json"
    )  # record; a bare name goes into experiments/results/, None: nowhere
    torch_python: Path = Path(sys.executable)  # Python interpreter that has PyTorch

    def __post_init__(self):
        for name in ("rounds", "channels", "scales"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def config(self, dtype: str, restarts: int = 1) -> Any:
        """The paper's for denoising, complete."""
        from ganstyle_jax.restore import deep_image_prior as prior

        given: Any = {"stopping": self.stopping, "dtype": dtype, "restarts": restarts, "steps": 10**6}
        cfg = prior.Config(channels=(self.channels,) * self.scales, patience=10**6, **given)
        return prior.preset("denoise", cfg=cfg)


def make_picture(size: int) -> np.ndarray:
    """Waves with noise, (size, size, 3) in [-1, 1]."""
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[:size, :size] / 16
    waves = np.sin(np.stack([x, y, x + y], -1) + rng.uniform(0, 6, 3))
    return np.clip(0.7 * waves + 0.2 * rng.normal(size=waves.shape), -1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# The two sides


class Ours:
    """The side of JAX."""

    def __init__(self, bench: Bench):
        self.bench = bench

    def one_step(self, size: int, dtype: str) -> tuple[dict[str, Any], Any, np.ndarray]:
        """(what is compared, the weights before, the input)."""
        import jax

        from ganstyle_jax.restore import deep_image_prior as prior

        with jax.enable_x64(dtype == "float64"):
            cfg, shape = self.bench.config(dtype), (size, size, 3)
            params = prior.network_of(cfg, 3).init(jax.random.key(SEED), dtype)
            z = prior.make_input(jax.random.key_data(jax.random.key(1)), cfg, shape)
            given = {"measured": jax.numpy.asarray((make_picture(size) + 1) / 2, dtype)}

            @jax.jit
            def step(params, z, given):
                return prior.step_of(params, prior.optimizer(cfg).init(params), z, given, cfg, shape)

            _, adam, loss, picture = jax.device_get(step(params, z, given))
            before = jax.device_get(params)
        gradients = {name: x / (1 - BETA1) for name, x in machine.flat(adam[0].mu).items()}
        return {"picture": picture, "loss": loss, "gradients": gradients}, before, np.asarray(z)

    def load(self, size: int) -> None:
        import jax

        from ganstyle_jax.restore import deep_image_prior as prior

        self.measured, self.states = make_picture(size).astype(np.float32), {}
        for restarts in {1, self.bench.restarts} - {0}:
            cfg = self.bench.config("float32", restarts)
            state = prior.init(jax.random.key(SEED), self.measured, cfg)
            self.states[restarts] = prior.advance(state, self.measured, cfg, 1)[0]

    def run(self, steps: int, restarts: int = 1) -> float:
        """Seconds of so many steps together."""
        import jax

        from ganstyle_jax.restore import deep_image_prior as prior

        start = time.perf_counter()
        made = prior.advance(self.states[restarts], self.measured, self.bench.config("float32", restarts), steps)
        self.states[restarts] = jax.block_until_ready(made)[0]
        return time.perf_counter() - start


class Torch:
    """The side of PyTorch. settings: of the network."""

    def __init__(self, settings: dict[str, Any], learning_rate: float, input_noise: float, averaging: float):
        sys.path.insert(1, str(machine.ROOT / "tests"))
        self.settings, self.rate, self.noise, self.averaging = settings, learning_rate, input_noise, averaging

    def _network(self, params: Any, dtype: str) -> Any:
        import torch
        import torch_deep_image_prior as reference

        network = reference.Network(**self.settings).to(getattr(torch, dtype))
        if params is not None:
            network.load(params)
        return network

    def one_step(self, params: Any, z: np.ndarray, measured: np.ndarray, dtype: str) -> dict[str, Any]:
        import torch

        network = self._network(params, dtype)
        wide = getattr(torch, dtype)
        picture = network(torch.tensor(z, dtype=wide).permute(0, 3, 1, 2))
        loss = torch.nn.functional.mse_loss(picture, torch.tensor(measured, dtype=wide).permute(2, 0, 1)[None])
        loss.backward()
        gradients = {name: x.numpy() for name, x in network.gradients().items()}
        return {"picture": picture[0].permute(1, 2, 0).detach().numpy(), "loss": loss.item(), "gradients": gradients}

    def load(self, size: int, measured: np.ndarray) -> None:
        import torch

        self.contestants: dict[str, Any] = {}
        for layout in LAYOUTS:
            memory = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
            network = self._network(None, "float32").to(memory_format=memory)
            optimizer = torch.optim.Adam(network.parameters(), lr=self.rate, fused=True)
            wanted = torch.tensor(measured, dtype=torch.float32).permute(2, 0, 1)[None].contiguous(memory_format=memory)
            z = 0.1 * torch.rand(1, self.settings["depth"], size, size).contiguous(memory_format=memory)
            self.contestants[layout] = [network, optimizer, wanted, z, torch.zeros_like(z), None]
            self.run(layout, 1)

    def run(self, layout: str, steps: int) -> float:
        import torch

        network, optimizer, wanted, z, noise, average = self.contestants[layout]
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            picture = network(z + noise.normal_() * self.noise)
            made = picture.detach()
            average = made if average is None else average * self.averaging + made * (1 - self.averaging)
            torch.nn.functional.mse_loss(picture, wanted).backward()
            optimizer.step()
        self.contestants[layout][-1] = average
        return time.perf_counter() - start

    def about(self) -> dict:
        import torch

        return {"versions": machine.versions(("torch", "numpy")), "threads": torch.get_num_threads()}


# ---------------------------------------------------------------------------------------------------------------------
# Parity and timing


def parity_errors(ours: dict[str, Any], theirs: dict[str, Any], tolerances: dict[str, float]) -> dict[str, float]:
    """Largest differences. UserError where one is not within its tolerance."""
    errors = {}
    for name, tolerance in tolerances.items():
        a, b = ours[name], theirs[name]
        several = name == "gradients"
        pairs = [(a[k], b[k]) for k in a] if several else [(a, b)]
        size = max(np.abs(x).max() for x in b.values()) if several else 1
        errors[name] = float(max(np.abs(np.asarray(x) - np.asarray(y)).max() for x, y in pairs) / size)
        if not errors[name] <= tolerance:  # NaN is not
            raise UserError(f"{name} differs by {errors[name]:.3g} from PyTorch's, more than {tolerance:g}: not timed")
    return errors


def check(ours: Ours, theirs: Worker, size: int, dtype: str) -> dict[str, float]:
    found, params, z = ours.one_step(size, dtype)
    wanted = theirs.ask("one_step", params, z, (make_picture(size) + 1) / 2, dtype)
    return parity_errors(found, wanted, TOLERANCES[dtype])


def measure(bench: Bench, size: int, ours: Ours, theirs: Worker) -> dict[str, Any]:
    """All contestants in turn, so that each round meets the machine as it is."""
    ours.load(size)
    theirs.ask("load", size, (make_picture(size) + 1) / 2)
    contestants = {machine.OURS: lambda n: ours.run(n)}
    contestants |= {name: lambda n, name=name: theirs.ask("run", name, n) for name in LAYOUTS}
    if bench.restarts:
        contestants[f"ours, {bench.restarts} side by side"] = lambda n: ours.run(n, bench.restarts)
    steps = max(1, int(bench.round_seconds / max(run(1) for run in contestants.values())))
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(bench.rounds):
        for name, run in contestants.items():
            seconds[name].append(run(steps) / steps)
    medians = {name: median(x) for name, x in seconds.items()}
    found = {
        "size": size,
        "stopping": bench.stopping,
        "steps_a_round": steps,
        "contestants": {
            name: {"seconds_per_step": x, "median": medians[name], "quartiles": machine.quartiles(x)}
            for name, x in seconds.items()
        },
    }
    of_one = {name: x for name, x in medians.items() if "side by side" not in name}
    found |= machine.compare(of_one)
    if bench.restarts:
        together = medians[f"ours, {bench.restarts} side by side"]
        found["side_by_side"] = together / (bench.restarts * medians[machine.OURS])
    return found


def table(results: list[dict[str, Any]]) -> str:
    """In Markdown: medians, in brackets the quartiles."""
    lines = [["pixels", "ganstyle_jax, s/step", "best PyTorch, s/step", "ratio", "restarts together / one by one"]]
    lines.append(["---"] * len(lines[0]))
    for result in results:

        def cell(name: str, of: dict = result["contestants"]) -> str:
            return "{:.4g} ({:.4g} to {:.4g})".format(of[name]["median"], *of[name]["quartiles"])

        best, together = result["best_torch"], result.get("side_by_side")
        last = "" if together is None else f"{together:.3f}"
        lines.append([str(result["size"]), cell(machine.OURS), f"{cell(best)}, {best}", f"{result['ratio']:.3f}", last])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(bench: Bench) -> dict[str, Any]:
    """Measures, prints a Markdown table and writes the record, which is returned."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    settings = dataclasses.asdict(bench) | {"json": None, "torch_python": None}
    record: dict[str, Any] = machine.describe() | {"settings": settings, "tolerances": TOLERANCES}
    cfg = bench.config("float32")
    from ganstyle_jax.restore.deep_image_prior import NETWORK

    network = {name: getattr(cfg, name) for name in NETWORK}
    ours = Ours(bench)
    of_torch = network, cfg.learning_rate, cfg.input_noise, cfg.averaging
    with Worker(Path(__file__), bench.torch_python, *of_torch) as theirs:
        about = theirs.ask("about")
        record["versions"] = {
            "jax": machine.versions(("ganstyle_jax", "jax", "jaxlib", "numpy")),
            "torch": about["versions"],
        }
        record["exact_parity"] = check(ours, theirs, EXACT_SIZE, "float64")
        machine.say(f"parity in float64: {record['exact_parity']}")
        record["results"] = []
        for size in bench.sizes:
            errors = check(ours, theirs, size, "float32")
            machine.say(f"{size} pixels, parity in float32: {errors}")
            record["results"].append({"parity": errors} | measure(bench, size, ours, theirs))
    print(table(record["results"]))
    if bench.json is not None:
        machine.say(f"record: {machine.write_record(bench.json, record)}")
    return record


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(Torch)
        sys.exit()
    import tyro  # not in the worker, whose interpreter may lack it

    try:
        main(tyro.cli(Bench, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
