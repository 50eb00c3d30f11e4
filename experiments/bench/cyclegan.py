"""Times a step of CycleGAN against PyTorch on the same machine.

    python experiments/bench/cyclegan.py                                   # CPU, 128 pixels, the paper's networks
    python experiments/bench/cyclegan.py --size 64 --width 32 --discriminator-width 32 --discriminator-halvings 2

A step updates all four networks, histories of past pictures included: generators of 6 blocks both ways, discriminators
of 70 pixels, least squares, cycle and identity, three Adams, as in the paper. Ours is `step.make_advance` as training
runs it, several steps in one dispatch, with pictures taken out of a set on the device and mirrored. PyTorch's is
torch_translation.py, which train_translation_torch.py trains with, on one and the same pictures: eagerly with
contiguous memory and with channels_last, and with contiguous memory once more with each kind of picture by itself
("apart"), as the common implementation does; with `--compiled` the first two through `torch.compile`, too. The fastest
of them counts.

PyTorch is a process of its own under `--torch-python`. The sides work in turn; a round is as many steps of each as
take about `--round-seconds`, compilation and warm-up lie outside. `ratio` is our median over PyTorch's best: below 1 we
are faster.

Parity comes first, from the same weights, pictures and draws. In float64 at 32 pixels, four steps with a history of two
pictures, so that it is filled and drawn from: losses, what is in the histories, and the weights of all networks must
agree within 1e-9. Then one step in float32 at the size that is timed: losses relatively within 1e-4, translated
pictures within 1e-3, and gradients of each network within 2e-2 by norm, because rounding decides the signs of what is
nearly 0, in ReLUs and in differences. Weights are not compared there: Adam's first step is the gradient's sign. Where
any of this fails, the benchmark stops.

The machine must have nothing else to do; `load_average` in the record says how it was at the beginning.
"""

import dataclasses
import functools
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import machine
import numpy as np
from torch_process import Worker, serve

from ganstyle_jax.io.files import UserError

# JAX is imported in functions, because PyTorch's process runs this file too, and its environment may lack it.

EXACT_SIZE, EXACT_STEPS, EXACT_HISTORY = 32, 4, 2
TOLERANCES = {
    "float64": {"losses": 1e-9, "pictures": 1e-9, "weights": 1e-9},
    "float32": {"losses": 1e-4, "pictures": 1e-3, "gradients": 2e-2},
}
SEED = 0
LOSSES = ("gen", "adversarial", "cycle", "identity", "disc_a", "disc_b")


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is timed, and how."""

    size: int = 128  # pixels that a step sees
    width: int = 64  # channels of the generators' finest hidden layer
    blocks: int = 6  # residual blocks
    discriminator_width: int = 64  # channels of their finest hidden layer
    discriminator_halvings: int = 3  # 3: patches of 70 pixels
    batch_size: int = 1  # pictures of each side in a step
    compiled: bool = False  # time torch.compile too, which takes minutes to begin with
    rounds: int = 7  # timings of each contestant
    round_seconds: float = 10.0  # of the slowest contestant in a round, which has one step at least
    json: Path | None = Path("cyclegan_cpu.json")  # record; a bare name goes into experiments/results/, None: nowhere
    torch_python: Path = Path(sys.executable)  # Python interpreter that has PyTorch

    def __post_init__(self):
        for name in ("rounds", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def torch_names(self) -> list[str]:
        """Contestants of PyTorch: how networks are run, memory, and whether both kinds of pictures are one batch."""
        modes = ["eager", *(["compiled"] if self.compiled else [])]
        layouts = [f"{mode}, {layout}" for mode in modes for layout in ("contiguous", "channels_last")]
        return [*layouts, "eager, contiguous, apart"]

    @property
    def networks(self) -> tuple[int, int, int, int]:
        """What `torch_translation.networks` takes."""
        return self.width, self.blocks, self.discriminator_width, self.discriminator_halvings

    def config(self, size: int, **given: Any) -> Any:
        """Whole pictures are seen."""
        from ganstyle_jax.gan import cyclegan

        for name in ("width", "blocks", "discriminator_width", "discriminator_halvings"):
            given[name] = getattr(self, name)
        return cyclegan.Config(image_size=size, crop=size, **given)


def make_pictures(steps: int, batch_size: int, size: int) -> list[dict[str, np.ndarray]]:
    """Of each step {"a": waves, "b": noise that is smooth, both (b, size, size, 3) in [-1, 1]}, with 8 bits."""
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[:size, :size] / 16
    found = []
    for _ in range(steps):
        phases = rng.uniform(0, 6, (2, batch_size, 1, 1, 3))
        a = 0.7 * np.sin(np.stack([x, y, x + y], -1) + phases[0]) + 0.2 * rng.normal(size=(batch_size, size, size, 3))
        b = 0.7 * np.sin(np.stack([x * y, x - y, y], -1) + phases[1]) + 0.2 * rng.normal(size=a.shape)
        found.append({side: np.round(np.clip(of, -1, 1) * 127) / 127 for side, of in (("a", a), ("b", b))})
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The two sides


class Ours:
    """The side of JAX."""

    def __init__(self, bench: Bench):
        self.bench = bench

    def some_steps(self, size: int, dtype: str, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """(what is compared, what PyTorch needs to do the same)."""
        import jax

        from ganstyle_jax.gan import cyclegan

        with jax.enable_x64(dtype == "float64"):
            cfg = self.bench.config(size, dtype=dtype, flip=False, history=EXACT_HISTORY)
            state = jax.jit(functools.partial(cyclegan.init, cfg=cfg))(jax.random.key(SEED))
            given: dict[str, Any] = {"params": jax.device_get(state.params), "history": cfg.history, "draws": []}
            given["real"] = make_pictures(steps, self.bench.batch_size, size)
            step = jax.jit(functools.partial(cyclegan.train_step, cfg=cfg))
            losses = []
            for t, real in enumerate(given["real"]):
                key = jax.random.fold_in(jax.random.key(SEED + 1), t)
                state, metrics = step(state, {x: {"image": of.astype(dtype)} for x, of in real.items()}, key)
                losses.append([float(metrics[f"loss/{name}"]) for name in LOSSES])
                given["draws"].append(self._draws(jax.random.split(key)[1], cfg.history))
            found = {
                "losses": np.array(losses),
                "pictures": {x: of["pictures"][: int(of["count"])] for x, of in state.history.items()},
                "weights": state.params,
            }
            if steps == 1:  # then Adam's mean gradient is a share of the gradient
                found["gradients"] = {
                    name: jax.tree.map(lambda mean: mean / (1 - cfg.beta1), of[0].mu)
                    for name, of in state.opt_state.items()
                }
            return jax.device_get(found), given

    def _draws(self, key: Any, history: int) -> dict[str, Any]:
        """Those of `cyclegan.remember`, as lists."""
        import jax

        from ganstyle_jax.gan import cyclegan

        drawn = {
            x: cyclegan.history_draws(jax.random.fold_in(key, i), self.bench.batch_size, history)
            for i, x in enumerate(cyclegan.OTHER)
        }
        return {x: tuple(np.asarray(part).tolist() for part in parts) for x, parts in drawn.items()}

    def load(self) -> None:
        """As in `train.run`."""
        import jax

        from ganstyle_jax import contract, data
        from ganstyle_jax.gan import cyclegan
        from ganstyle_jax.loop import sources, train
        from ganstyle_jax.loop import step as step_of
        from ganstyle_jax.loop.feed import Feed

        bench, method = self.bench, contract.of(cyclegan)
        cfg = bench.config(bench.size, total_steps=10**6)
        loop = train.Loop(batch_size=bench.batch_size, seed=SEED, devices=1, data_on_device="yes")
        rng = np.random.default_rng(SEED)
        found = {}
        for x in cyclegan.OTHER:
            pictures = rng.integers(0, 256, (64, bench.size, bench.size, 3), dtype=np.uint8)
            found[x] = data.Source(
                "random", pictures.shape[1:], pictures.dtype, 64, None, lambda i, of=pictures: {"image": of[i].copy()}
            )
        feed = Feed(sources.batched(found, method, cfg, loop), loop, step_of.make_mesh(loop))
        key_init, key_train = jax.random.split(jax.random.key(SEED))
        whole = step_of.everywhere(feed.mesh)
        make_state = jax.jit(functools.partial(cyclegan.init, cfg=cfg), out_shardings=whole)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), jax.eval_shape(make_state, key_init)
        )
        advance = step_of.make_advance(method, cfg, key_train, loop, feed.mesh, abstract, feed.rows)
        self.advance, self.stored, self.chunks = advance, feed.load(), feed.stream(0, 0)
        self.step, self.state = 0, make_state(key_init)
        self.rows = feed.rows

    def run(self, steps: int) -> float:
        """Seconds of so many steps together."""
        import jax

        start, left = time.perf_counter(), steps
        while left:
            count = min(left, self.rows)
            chunk = self.chunks(self.step, count)
            self.state, _ = self.advance(self.state, (), self.stored, chunk, np.int32(self.step), np.int32(count))
            self.step, left = self.step + count, left - count
        jax.block_until_ready(self.state)
        return time.perf_counter() - start


class Torch:
    """The side of PyTorch. networks: their sizes, see `torch_translation.networks`."""

    def __init__(self, networks: tuple[int, int, int, int]):
        import torch
        import torch_translation as translation

        torch.manual_seed(SEED)
        self.networks, self.translation = networks, translation

    def some_steps(self, given: dict[str, Any], dtype: str) -> dict[str, Any]:
        """What is compared, as the trees of ours."""
        import torch

        translation, wide = self.translation, getattr(torch, dtype)
        reference, params = translation.reference, given["params"]
        nets = translation.networks(*self.networks)
        nets = {name: reference.load(net, params[name]).to(wide) for name, net in nets.items()}
        optimizers = translation.optimizers(nets, given["rate"])
        pools = {x: reference.ImagePool(given["history"]) for x in "ab"}
        losses = []
        for real, draws in zip(given["real"], given["draws"], strict=True):
            real = {x: reference.nchw(of).to(wide) for x, of in real.items()}
            of = translation.step(nets, optimizers, pools, real, draws)
            losses.append([of[name].item() for name in LOSSES])
        return {
            "losses": np.array(losses),
            "pictures": {x: reference.nhwc(torch.stack(pool.images)) for x, pool in pools.items()},
            "weights": {name: reference.tree(net, params[name]) for name, net in nets.items()},
            "gradients": {name: reference.tree(net, params[name], lambda p: p.grad) for name, net in nets.items()},
        }

    def load(self, names: list[str], size: int, batch_size: int, history: int, rate: float) -> None:
        import torch

        translation = self.translation
        self.contestants: dict[str, Any] = {}
        for name in names:
            mode, layout, *apart = name.split(", ")
            memory = translation.LAYOUTS[layout]
            nets = {of: net.to(memory_format=memory) for of, net in translation.networks(*self.networks).items()}
            optimizers = translation.optimizers(nets, rate)
            if mode == "compiled":
                nets = {of: torch.compile(net, dynamic=False) for of, net in nets.items()}
            pools = {x: translation.reference.ImagePool(history) for x in "ab"}
            shape = (batch_size, 3, size, size)
            real = {x: (2 * torch.rand(shape) - 1).contiguous(memory_format=memory) for x in "ab"}
            self.contestants[name] = (nets, optimizers, pools, real, not apart)
        self.rng, self.history = np.random.default_rng(SEED), history

    def run(self, name: str, steps: int) -> float:
        """Seconds of so many steps together."""
        nets, optimizers, pools, real, joined = self.contestants[name]
        start = time.perf_counter()
        for _ in range(steps):
            draws = {
                x: ((self.rng.random(len(of)) < 0.5).tolist(), self.rng.integers(self.history, size=len(of)).tolist())
                for x, of in real.items()
            }
            self.translation.step(nets, optimizers, pools, real, draws, joined)
        return time.perf_counter() - start

    def about(self) -> dict:
        import torch

        return {"versions": machine.versions(("torch", "numpy")), "threads": torch.get_num_threads()}


# ---------------------------------------------------------------------------------------------------------------------
# Parity and timing


def parity_errors(ours: dict[str, Any], theirs: dict[str, Any], tolerances: dict[str, float]) -> dict[str, float]:
    """The largest difference of pictures and weights, of losses relatively; of gradients by the norm of each network.

    UserError where one is not within its tolerance.
    """
    errors = {}
    for name, tolerance in tolerances.items():
        a, b = ({k: np.asarray(x, np.float64) for k, x in machine.flat(of[name]).items()} for of in (ours, theirs))
        if a.keys() != b.keys():
            raise UserError(f"{name} are of {', '.join(a.keys() ^ b.keys())} on one side alone: not timed")
        if name == "gradients":
            found = [norm_error(a, b, network) for network in ours[name]]
        elif name == "losses":
            found = [np.abs(a[k] / b[k] - 1).max() for k in a]
        else:
            found = [np.abs(a[k] - b[k]).max() for k in a]
        errors[name] = float(np.max(found))  # NaN stays
        if not errors[name] <= tolerance:
            raise UserError(f"{name} differ by {errors[name]:.3g} from PyTorch's, more than {tolerance:g}: not timed")
    return errors


def norm_error(a: dict[str, np.ndarray], b: dict[str, np.ndarray], network: str) -> float:
    """Of the gradients of one network together, the norm of the difference over that of PyTorch's."""
    x, y = (np.concatenate([of[k].ravel() for k in a if k.startswith(f"{network}/")]) for of in (a, b))
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def check(ours: Ours, theirs: Worker, size: int, dtype: str, steps: int) -> dict[str, float]:
    found, given = ours.some_steps(size, dtype, steps)
    given["rate"] = ours.bench.config(size).learning_rate
    return parity_errors(found, theirs.ask("some_steps", given, dtype), TOLERANCES[dtype])


def measure(bench: Bench, ours: Ours, theirs: Worker) -> dict[str, Any]:
    """All contestants in turn, so that each round meets the machine as it is."""
    cfg = bench.config(bench.size)
    ours.load()
    theirs.ask("load", bench.torch_names, bench.size, bench.batch_size, cfg.history, cfg.learning_rate)
    runs = {machine.OURS: ours.run}
    runs |= {name: functools.partial(theirs.ask, "run", name) for name in bench.torch_names}
    contestants: dict[str, dict[str, Any]] = {}
    for name, run in list(runs.items()):
        try:
            contestants[name] = {"compile_seconds": machine.seconds(run(1))}
        except UserError as error:
            if not name.startswith("compiled"):
                raise
            machine.say(f"{name} is left out: {error}")  # a compiler may be missing
            contestants[name] = {"error": str(error)}
            del runs[name]
    steps = max(1, int(bench.round_seconds / max(run(1) for run in runs.values())))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(bench.rounds):
        for name, run in runs.items():
            seconds[name].append(run(steps) / steps)
        last = ", ".join(f"{name} {of[-1]:.4g} s" for name, of in seconds.items())
        machine.say(f"round {i + 1} of {bench.rounds}: {last}")
    for name, of in seconds.items():
        contestants[name] |= {"seconds_per_step": of, "median": median(of), "quartiles": machine.quartiles(of)}
    return {
        "steps_a_round": steps,
        "contestants": contestants,
        **machine.compare({name: median(of) for name, of in seconds.items()}),
    }


def table(result: dict[str, Any]) -> str:
    """In Markdown: medians, in brackets the quartiles; each over PyTorch's best."""
    of, lines = result["contestants"], [["", "s/step", "over PyTorch's best"], ["---"] * 3]
    for name, contestant in of.items():
        if "median" in contestant:
            text = "{:.4g} ({:.4g} to {:.4g})".format(contestant["median"], *contestant["quartiles"])
            lines.append([name, text, f"{contestant['median'] / of[result['best_torch']]['median']:.3f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(bench: Bench) -> dict[str, Any]:
    """Measures, prints a Markdown table and writes the record, which is returned."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    for size in (bench.size, EXACT_SIZE):
        try:
            bench.config(size)
        except ValueError as error:
            raise UserError(str(error)) from None
    settings = dataclasses.asdict(bench) | {"json": None, "torch_python": None}
    record: dict[str, Any] = machine.describe() | {"settings": settings, "tolerances": TOLERANCES}
    ours = Ours(bench)
    with Worker(Path(__file__), bench.torch_python, bench.networks) as theirs:
        about = theirs.ask("about")
        record["threads"] = {"jax": machine.cores(), "torch": about["threads"]}
        record["versions"] = {
            "jax": machine.versions(("ganstyle_jax", "jax", "jaxlib", "optax", "numpy")),
            "torch": about["versions"],
        }
        record["exact_parity"] = check(ours, theirs, EXACT_SIZE, "float64", EXACT_STEPS)
        machine.say(f"parity in float64: {record['exact_parity']}")
        record["parity"] = check(ours, theirs, bench.size, "float32", 1)
        machine.say(f"{bench.size} pixels, parity in float32: {record['parity']}")
        record |= measure(bench, ours, theirs)
    print(table(record))
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
