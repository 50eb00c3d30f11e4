"""Times style transfer by optimisation against PyTorch on the same machine: seconds per evaluation of the loss.

    python experiments/bench/gatys.py --features vgg19-random compact --json gatys_cpu.json
    python experiments/bench/gatys.py --device gpu --compiled --dtype bfloat16 --json gatys_gpu.json
    python experiments/bench/gatys.py --features compact --whole --pictures FOLDER --json gatys_whole.json

An evaluation is what every optimizer spends its time on: the loss of `gatys.Config()` and its gradient by the image.
Ours is `jax.jit(jax.value_and_grad(...))` of `gatys.loss_terms`, which is the optimizers' own loop body less a few
operations on pixels. PyTorch's is the module of `torch_loss` below, the same loss from the same weights, and
`.backward()` on an image that requires a gradient; weights require none. It runs with contiguous memory and with
channels_last, eagerly and with `--compiled` through `torch.compile` too: mode "default", on a GPU also
"reduce-overhead" (CUDA graphs). The fastest of them counts. `vgg19-random` has random weights (He et al. 2015),
because the speed of dense convolutions does not depend on their values; `--features` takes any VGG that
`weights.load` does.

Precision: float32, on a GPU with TF32 in matrix products and convolutions on both sides, which is JAX's default and
not PyTorch's (`--no-tf32`: without, on both); or bfloat16 for the features on both sides, loss and picture in float32.

PyTorch is a process of its own under `--torch-python`, so that the two share no threads and may come from different
environments. They work in turn: ours, PyTorch's first, PyTorch's second, ..., ours, ... A round is as many evaluations
of each as take about `--round-seconds`, ended by `block_until_ready` or `torch.cuda.synchronize`; compilation and
warm-up lie outside. `ratio` is our median over PyTorch's best: below 1 we are faster.

Parity comes first. Both make their own targets of the same two pictures, and of a third both take loss and gradient,
which are compared by the norm of the difference over that of PyTorch's. In float64, at 40 pixels, both must agree
within 1e-9, and then at every size and in the precision that is timed: in float32 the losses within 1e-4 and the
gradients within 2e-2. Gradients cannot do better there, and PyTorch's own differs by about 1e-3 from that of float64:
rounding decides the sign of what is nearly 0, and each ReLU and pooling that decides otherwise sends all of its
gradient elsewhere. TF32 and bfloat16 are compared more roughly. Where any of this fails, the benchmark stops.

`--whole` times `gatys.stylize` as it is by default, at 512 pixels on two pictures: "cold" with compilation (the
interpreter and JAX already running, no cache on disk), and "warm" again in the same process. `ratio` there is the loss
of its result, at the full size, over that of 500 evaluations of L-BFGS all at that size, from the content picture.
`--sizes` without numbers leaves the timings against PyTorch out.

The machine must have nothing else to do. Where its cores are shared, PyTorch's OpenMP threads wait for each other and
become up to a hundred times slower, ours do not; `load_average` in the record says how it was at the beginning.
Expected: on 2 CPU cores a quarter of an hour for VGG-19, of which 1024 pixels take most; `--whole` takes minutes more.
"""

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import machine
import numpy as np
import torch_process

from ganstyle_jax.io.files import UserError

# JAX is imported in functions, because PyTorch's process runs this file too, and its environment may lack it.

Result = tuple[float, np.ndarray]  # loss, gradient (h, w, 3)

RANDOM = "vgg19-random"
# Of loss and gradient, relative. bfloat16 has 8 bits of precision, TF32 11: the last finds other mathematics, no more.
TOLERANCES = {
    "float64": {"loss": 1e-9, "gradient": 1e-9},
    "float32": {"loss": 1e-4, "gradient": 2e-2},
    "rough": {"loss": 5e-2, "gradient": 0.5},
}
EXACT_SIZE = 40  # pixels; not a multiple of 16, so that a pooling meets an odd side
SEED = 0


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is timed, and how."""

    features: tuple[str, ...] = (RANDOM,)  # networks: vgg19-random, names of `ganstyle weights list`, files
    sizes: tuple[int, ...] = (256, 512, 1024)  # pixels, of square pictures
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the features
    device: Literal["cpu", "gpu"] = "cpu"  # where both sides run; of several GPUs the first
    tf32: bool = True  # GPU, float32: TF32 in matrix products and convolutions, on both sides
    compiled: bool = False  # time torch.compile too, which takes long to begin with
    rounds: int = 7  # timings of each contestant
    round_seconds: float = 1.0  # of the slowest contestant in a round, which has one evaluation at least
    whole: bool = False  # time whole runs of ours, too
    pictures: Path | None = None  # folder of the pictures for whole runs
    content: str = "tubingen.jpg"
    style: str = "starry_night.jpg"
    whole_size: int = 512  # pixels, the longer side
    whole_evaluations: int = 500  # of the run at one size that a whole run is compared with
    json: Path | None = Path(
        "gatys.json"
    )  # file for the record; a bare name goes into experiments/results/, None: nowhere
    torch_python: Path = Path(sys.executable)  # Python interpreter that has PyTorch

    def __post_init__(self):
        for name in ("rounds", "whole_size", "whole_evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.sizes, default=1) < 1:
            raise ValueError(f"sizes must be at least 1, got {self.sizes}")
        if self.whole and self.pictures is None:
            raise ValueError("whole runs need a folder of pictures: give --pictures FOLDER")
        if not (self.sizes or self.whole):
            raise ValueError("there is nothing to do without sizes: give some, or --whole")

    @property
    def torch_names(self) -> list[str]:
        """Contestants of PyTorch: how the module is run, and its memory format."""
        compiled = {"cpu": ["default"], "gpu": ["default", "reduce-overhead"]}[self.device]
        modes = ["eager", *(compiled if self.compiled else [])]
        return [f"{mode}, {layout}" for mode in modes for layout in ("contiguous", "channels_last")]

    @property
    def tolerances(self) -> dict[str, float]:
        """Those of what is timed."""
        is_float32 = self.dtype == "float32" and (self.device == "cpu" or not self.tf32)
        return TOLERANCES["float32" if is_float32 else "rough"]


class Side(Protocol):
    """What is asked of JAX and of PyTorch."""

    def load(self, pictures: dict[str, np.ndarray]) -> None:
        """The pictures for all that follows, see `make_pictures`."""

    def evaluate(self, name: str, dtype: str) -> Result:
        """As the contestant of that name computes it in that type."""
        ...

    def run(self, name: str, count: int) -> float:
        """Seconds of so many evaluations together."""
        ...


# ---------------------------------------------------------------------------------------------------------------------
# Ours


def make_evaluation(network, params, content, style, cfg) -> Callable[[Any], Any]:
    """(loss, gradient) as a compiled function of the image; all that is known of gatys' losses here.

    Weights and targets are arguments of what is compiled, as they are in `gatys.advance`: as constants they would be
    folded into it.
    """
    import jax

    from ganstyle_jax.features import vgg
    from ganstyle_jax.style import gatys

    params = vgg.prepare(network, params)
    targets = gatys.make_targets(network, params, content, [style], cfg)

    @jax.jit
    @jax.value_and_grad
    def evaluate(image, params, targets):
        return sum(gatys.loss_terms(network, params, image, targets, cfg).values())

    return functools.partial(evaluate, params=params, targets=targets)


class Ours:
    """The side of JAX."""

    def __init__(self, bench: Bench, network, params):
        self.bench, self.network, self.params = bench, network, params

    def load(self, pictures: dict[str, np.ndarray]) -> None:
        self.pictures = pictures
        self.timed, self.image = self._make(self.bench.dtype)

    def _make(self, dtype: str) -> tuple[Callable, Any]:
        """An evaluation and the image for it, on the device."""
        import jax

        from ganstyle_jax.style import gatys

        params, pictures = self.params, self.pictures
        if dtype == "float64":
            params, pictures = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, pictures))
        params, pictures = jax.device_put((params, pictures))
        network = dataclasses.replace(self.network, dtype=dtype)
        evaluation = make_evaluation(network, params, pictures["content"], pictures["style"], gatys.Config())
        return evaluation, pictures["image"]

    def evaluate(self, name: str, dtype: str) -> Result:
        import jax

        if dtype == self.bench.dtype:
            value, gradient = self.timed(self.image)
        else:
            with jax.enable_x64(dtype == "float64"):
                evaluation, image = self._make(dtype)
                value, gradient = evaluation(image)
        return float(value), np.asarray(gradient)

    def run(self, name: str, count: int) -> float:
        import jax

        start, result = time.perf_counter(), None
        for _ in range(count):
            result = self.timed(self.image)
            if self.bench.device == "cpu":  # or it might begin the next one beside it, which an optimizer cannot
                jax.block_until_ready(result)
        jax.block_until_ready(result)
        return time.perf_counter() - start

    def about(self) -> dict:
        import jax

        versions = machine.versions(("ganstyle_jax", "jax", "jaxlib", "numpy"))
        return {"versions": versions, "device": jax.devices()[0].device_kind, "threads": machine.cores()}


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch's


def torch_loss(network: dict, params: dict[str, dict[str, np.ndarray]], cfg: dict, dtype: str):
    """The loss of style transfer as an nn.Module, an image (1, 3, h, w) to a scalar, once it has its targets.

    network: the fields of a `vgg.VGG`; params: its weights; cfg: the fields of a `gatys.Config`.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    narrow = getattr(torch, dtype)
    wide = torch.promote_types(narrow, torch.float32)

    class Loss(nn.Module):
        colour_matrix: torch.Tensor
        colour_offset: torch.Tensor

        def __init__(self):
            super().__init__()
            self.convolutions: Any = nn.ModuleDict()
            self.heads: Any = nn.ModuleDict()
            for name, of in params.items():
                if name != "input":
                    kernel = torch.tensor(of["kernel"]).permute(3, 2, 0, 1)
                    convolution: Any = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, dtype=narrow)
                    convolution.weight.data.copy_(kernel)
                    convolution.bias.data.copy_(torch.tensor(of["bias"]))
                    self.convolutions[name] = convolution
                    if "head" in of:  # behind the tap alone
                        head = torch.tensor(of["head"]).T[:, :, None, None]
                        self.heads[name] = nn.Conv2d(head.shape[1], head.shape[0], 1, bias=False, dtype=narrow)
                        self.heads[name].weight.data.copy_(head)
            self.register_buffer("colour_matrix", torch.tensor(params["input"]["kernel"], dtype=wide).T.contiguous())
            self.register_buffer("colour_offset", torch.tensor(params["input"]["bias"], dtype=wide))
            # As most networks have it: a scale and an offset for each colour.
            self.is_diagonal = not np.any(params["input"]["kernel"] * (1 - np.eye(3)))
            shares = np.broadcast_to(cfg["style_layer_weights"], len(cfg["style_layers"]))
            self.shares = dict(zip(cfg["style_layers"], (shares / shares.sum()).tolist(), strict=True))
            self.requires_grad_(False)

        def set_targets(self, content, style):
            with torch.no_grad():
                features, styles = self.features(content), self.features(style)
            for layer in cfg["content_layers"]:
                self.register_buffer(f"content_{layer}", features[layer])
            for layer in cfg["style_layers"]:
                self.register_buffer(f"style_{layer}", self.gram(styles[layer]))

        def features(self, image):
            """ReLUs by layer, no further than the last that is needed."""
            if self.is_diagonal:
                x = image * self.colour_matrix.diagonal()[:, None, None] + self.colour_offset[:, None, None]
            else:
                x = F.conv2d(image, self.colour_matrix[:, :, None, None], self.colour_offset)
            x, found = x.to(narrow), {}
            wanted = {*cfg["content_layers"], *cfg["style_layers"]}
            for i, block in enumerate(network["channels"], start=1):
                if wanted <= found.keys():
                    break
                if i > 1 and network["pooling"] == "max":
                    x = F.max_pool2d(x, 2, ceil_mode=network["ceil_mode"])
                elif i > 1:
                    x = 2 * F.avg_pool2d(x, 2, ceil_mode=network["ceil_mode"])
                for j in range(1, len(block) + 1):
                    if wanted <= found.keys():
                        break
                    first = network["first_padding"] if (i, j) == (1, 1) else None
                    x = self.convolve(x, self.convolutions[f"conv{i}_{j}"], first or network["padding"])
                    x = F.relu(x, inplace=True)
                    if f"relu{i}_{j}" in wanted:
                        name = f"conv{i}_{j}"
                        found[f"relu{i}_{j}"] = self.heads[name](x) if name in self.heads else x
            return found

        def convolve(self, x, convolution, padding: str):
            if padding == "zeros":
                return F.conv2d(x, convolution.weight, convolution.bias, padding=1)
            return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=padding), convolution.weight, convolution.bias)

        def gram(self, features):
            flat = features[0].flatten(1)
            return (flat @ flat.T).to(wide) / flat.shape[1]

        def relative_error(self, found, target):
            found, target = found.to(wide), target.to(wide)
            return (found - target).square().sum() / target.square().sum().clamp(min=1e-12)

        def forward(self, image):
            taps, total = self.features(image), 0.0
            for layer in cfg["content_layers"]:
                error = self.relative_error(taps[layer], getattr(self, f"content_{layer}"))
                total = total + cfg["content_weight"] / len(cfg["content_layers"]) * error
            for layer, share in self.shares.items():
                error = self.relative_error(self.gram(taps[layer]), getattr(self, f"style_{layer}"))
                total = total + cfg["style_weight"] * share * error
            down, across = image[:, :, 1:] - image[:, :, :-1], image[:, :, :, 1:] - image[:, :, :, :-1]
            outside = (image.abs() - 1).clamp(min=0)
            smooth = cfg["tv_weight"] * (down.square().mean() + across.square().mean())
            return total + smooth + cfg["range_weight"] * outside.square().mean()

    return Loss()


class Torch:
    """The side of PyTorch. device, dtype, tf32: of `Bench`; network, params, cfg: as `torch_loss` takes them."""

    def __init__(
        self,
        device: Literal["cpu", "gpu"],
        dtype: str,
        tf32: bool,
        network: dict,
        params: dict[str, dict[str, np.ndarray]],
        cfg: dict,
    ):
        import torch

        if device == "gpu" and not torch.cuda.is_available():
            raise UserError(
                f"--device gpu was asked for, but PyTorch {torch.__version__} finds none: install a PyTorch for CUDA, "
                "or choose another --torch-python"
            )
        self.dtype, self.arguments = dtype, (network, params, cfg)
        self.device = torch.device({"cpu": "cpu", "gpu": "cuda"}[device])
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32

    def load(self, pictures: dict[str, np.ndarray]) -> None:
        import torch

        self.pictures = {name: torch.tensor(x.transpose(2, 0, 1)[None]) for name, x in pictures.items()}
        self.contestants: dict[tuple[str, str], Callable] = {}
        torch.compiler.reset()  # it compiles a function only so often, and then silently runs it eagerly

    def _contestant(self, name: str, dtype: str) -> Callable:
        """Computes (loss, gradient (1, 3, h, w)), on the device."""
        import torch

        if (name, dtype) in self.contestants:
            return self.contestants[name, dtype]
        mode, layout = name.split(", ")
        memory = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
        wide = torch.float64 if dtype == "float64" else torch.float32
        content, style, image = (
            self.pictures[picture].to(self.device, wide, memory_format=memory)
            for picture in ("content", "style", "image")
        )
        module: Any = torch_loss(*self.arguments, dtype)
        module = module.to(self.device, memory_format=memory)
        module.set_targets(content, style)
        loss = module if mode == "eager" else torch.compile(module, mode=mode, dynamic=False)
        image = image.clone(memory_format=torch.preserve_format).requires_grad_()

        def evaluate():
            if mode == "reduce-overhead":
                torch.compiler.cudagraph_mark_step_begin()  # the last evaluation's tensors may be overwritten
            image.grad = None
            value = loss(image)
            value.backward()
            return value.detach(), image.grad

        self.contestants[name, dtype] = evaluate
        return evaluate

    def evaluate(self, name: str, dtype: str) -> Result:
        value, gradient = self._contestant(name, dtype)()
        return float(value), gradient[0].permute(1, 2, 0).contiguous().cpu().numpy()

    def run(self, name: str, count: int) -> float:
        import torch

        synchronize = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        evaluate = self._contestant(name, self.dtype)
        synchronize()
        start = time.perf_counter()
        for _ in range(count):
            evaluate()
        synchronize()
        return time.perf_counter() - start

    def about(self) -> dict:
        import torch

        device = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        return {"versions": machine.versions(("torch", "numpy")), "device": device, "threads": torch.get_num_threads()}


class Worker(torch_process.Worker):
    """`Torch` in a process of its own, as a `Side`."""

    def load(self, pictures: dict[str, np.ndarray]) -> None:
        self.ask("load", pictures)

    def evaluate(self, name: str, dtype: str) -> Result:
        return self.ask("evaluate", name, dtype)

    def run(self, name: str, count: int) -> float:
        return self.ask("run", name, count)

    def about(self) -> dict:
        return self.ask("about")


# ---------------------------------------------------------------------------------------------------------------------
# Parity


def make_pictures(size: int) -> dict[str, np.ndarray]:
    """Content, style and the image between them, whose loss is taken: waves with noise, (size, size, 3) in [-1, 1]."""
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[:size, :size] / 16

    def picture(angle: float) -> np.ndarray:
        across, down = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        waves = np.sin(np.stack([across, down, across + down], -1) + rng.uniform(0, 6, 3))
        return np.clip(0.7 * waves + 0.2 * rng.normal(size=waves.shape), -1, 1)

    content, style = picture(0.3), picture(1.0)
    pictures = {"content": content, "style": style, "image": 0.7 * content + 0.3 * picture(2.0)}
    return {name: array.astype(np.float32) for name, array in pictures.items()}


def parity_errors(ours: Result, theirs: Result, tolerances: dict[str, float], who: str) -> dict[str, float]:
    """Relative errors of loss and gradient, of the latter by norms. UserError where one is not within its tolerance."""
    errors = {}
    for name, ours_of, theirs_of in zip(("loss", "gradient"), ours, theirs, strict=True):
        a, b = np.asarray(ours_of, np.float64), np.asarray(theirs_of, np.float64)
        if a.shape != b.shape:
            raise UserError(f"the {name} has shape {a.shape} here and {b.shape} in PyTorch ({who})")
        with np.errstate(divide="ignore", invalid="ignore"):  # a gradient of zeros is refused below
            errors[name] = float(np.linalg.norm(a - b) / np.linalg.norm(b))
        if not errors[name] <= tolerances[name]:  # NaN is not
            raise UserError(
                f"the {name} differs from PyTorch's ({who}) by {errors[name]:.3g}, and {tolerances[name]:g} is "
                "accepted: the two sides do not compute the same, so there is nothing to time"
            )
    return errors


# ---------------------------------------------------------------------------------------------------------------------
# Timing


def check_exactly(bench: Bench, ours: Side, theirs: Side) -> dict[str, float]:
    """Parity in float64."""
    first = bench.torch_names[0]
    for side in (ours, theirs):
        side.load(make_pictures(EXACT_SIZE))
    results = ours.evaluate(machine.OURS, "float64"), theirs.evaluate(first, "float64")
    return parity_errors(*results, TOLERANCES["float64"], f"float64, {first}")


def measure(bench: Bench, size: int, ours: Side, theirs: Side) -> dict:
    """Parity as timed, then rounds: what a record says of one network at one size."""
    for side in (ours, theirs):
        side.load(make_pictures(size))
    sides: dict[str, Side] = {machine.OURS: ours}
    contestants: dict[str, dict] = {}
    results: dict[str, Result] = {}
    for name in (machine.OURS, *bench.torch_names):
        side = ours if name == machine.OURS else theirs
        try:
            contestants[name] = {"compile_seconds": machine.seconds(side.run(name, 1))}
        except UserError as error:
            if name == machine.OURS or name.startswith("eager"):
                raise
            machine.say(f"{name} is left out: {error}")  # a compiler may be missing
            contestants[name] = {"error": str(error)}
            continue
        sides[name], results[name] = side, side.evaluate(name, bench.dtype)
    mine = results.pop(machine.OURS)
    parity = {name: parity_errors(mine, result, bench.tolerances, name) for name, result in results.items()}
    machine.say("parity: " + "; ".join(f"{name} {describe_errors(errors)}" for name, errors in parity.items()))

    for name, side in sides.items():
        side.run(name, {"cpu": 0, "gpu": 5}[bench.device])  # CUDA graphs are recorded in the third evaluation
    slowest = max(side.run(name, 1) for name, side in sides.items())
    count = max(1, min(1000, int(bench.round_seconds / slowest)))
    rounds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(bench.rounds):
        for name, side in sides.items():
            rounds[name].append(side.run(name, count) / count)
        last = ", ".join(f"{name} {1e3 * seconds[-1]:.4g} ms" for name, seconds in rounds.items())
        machine.say(f"round {i + 1} of {bench.rounds}: {last}")
    for name, seconds in rounds.items():
        contestants[name] |= summary(seconds)
    return {
        "size": size,
        "dtype": bench.dtype,
        "evaluations_per_round": count,
        "parity": parity,
        "contestants": contestants,
        **machine.compare({name: contestants[name]["median"] for name in rounds}),
    }


def summary(seconds: list[float]) -> dict:
    """Median and spread of the rounds' seconds per evaluation."""
    low, middle, high = (float(x) for x in np.percentile(seconds, [25, 50, 75]))
    return {"seconds": seconds, "median": middle, "quartiles": [low, high], "evaluations_per_second": 1 / middle}


def describe_errors(errors: dict[str, float]) -> str:
    return ", ".join(f"{name} {error:.1e}" for name, error in errors.items())


def whole_run(bench: Bench, network, params) -> dict:
    """What a record says of whole runs with one network."""
    import jax

    from ganstyle_jax.io import images, pictures
    from ganstyle_jax.style import gatys

    assert bench.pictures is not None
    content, style = (pictures.read_picture(bench.pictures / name) for name in (bench.content, bench.style))
    network, cfg = dataclasses.replace(network, dtype=bench.dtype), gatys.Config(size=bench.whole_size)
    one_size = dataclasses.replace(cfg, smallest=cfg.size, steps=bench.whole_evaluations)
    seconds, results = {}, {}
    for name, settings in (("cold", cfg), ("warm", cfg), ("one size", one_size)):
        start = time.perf_counter()
        results[name] = gatys.stylize(jax.random.key(SEED), content, [style], settings, network, params)
        seconds[name] = time.perf_counter() - start
        machine.say(f"whole run, {name}: {seconds[name]:.4g} s")
    # Both results are looked at in the same way, in float32.
    content, style = (images.resize(x, gatys.fitted_shape(x.shape, cfg.size)) for x in (content, style))
    evaluate = make_evaluation(dataclasses.replace(network, dtype="float32"), params, content, style, cfg)
    loss, loss_one_size = (float(evaluate(results[name])[0]) for name in ("warm", "one size"))
    return {
        "size": cfg.size,
        "content": bench.content,
        "style": bench.style,
        "steps": cfg.steps,
        "cold_seconds": seconds["cold"],
        "warm_seconds": seconds["warm"],
        "loss": loss,
        "one_size": {"evaluations": one_size.steps, "cold_seconds": seconds["one size"], "loss": loss_one_size},
        "ratio": loss / loss_one_size,
    }


def table(results: list[dict]) -> str:
    """Markdown, a row for each network and size: medians, in brackets the quartiles."""
    head = ["features", "pixels", "dtype", "ganstyle_jax, ms", "best PyTorch, ms", "ours, evaluations/s", "ratio"]
    rows = [head, ["---"] * len(head)]
    for result in results:

        def cell(name: str, of: dict = result["contestants"]) -> str:
            low, high = of[name]["quartiles"]
            return f"{1e3 * of[name]['median']:.4g} ({1e3 * low:.4g} to {1e3 * high:.4g})"

        best = result["best_torch"]
        speed = f"{result['contestants'][machine.OURS]['evaluations_per_second']:.3g}"
        times = [cell(machine.OURS), f"{cell(best)}, {best}", speed, f"{result['ratio']:.3f}"]
        rows.append([result["features"], str(result["size"]), result["dtype"], *times])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def load_network(features: str) -> tuple[Any, Any]:
    """A VGG and its weights."""
    import jax

    from ganstyle_jax.features import vgg, weights

    if features == RANDOM:
        return vgg.VGG19, jax.jit(vgg.VGG19.init)(jax.random.key(SEED))
    network, params = weights.load(features)
    if not isinstance(network, vgg.VGG):
        raise UserError(
            f"{features} is a {type(network).__name__}, and only VGG and networks laid out like it are timed"
        )
    return network, params


def described(bench: Bench) -> dict[str, Any]:
    """The settings for a record, without where things lie on this machine."""
    settings = dataclasses.asdict(bench)
    settings["features"] = [Path(features).name for features in bench.features]
    return {name: value.name if isinstance(value, Path) else value for name, value in settings.items()}


def main(bench: Bench) -> dict:
    """Measures, prints a Markdown table and writes the record, which is returned."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch's process needs memory of the GPU, too
    import jax

    from ganstyle_jax.style import gatys

    if bench.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if jax.default_backend() != bench.device:
        raise UserError(
            f"--device {bench.device} was asked for, but JAX finds {jax.default_backend()}: install JAX with CUDA"
        )
    if not bench.tf32:
        jax.config.update("jax_default_matmul_precision", "highest")
    record = machine.describe() | {"settings": described(bench), "tolerances": TOLERANCES}
    record |= {"versions": {}, "sides": {}, "exact_parity": {}, "results": [], "whole": []}
    # All of them before the first minutes are spent.
    networks = [(Path(features).name, *load_network(features)) for features in bench.features]
    for features, network, params in networks:
        ours = Ours(bench, network, params)
        about = {"jax": ours.about()}
        if bench.sizes:
            plain = dataclasses.asdict(network), jax.device_get(params), dataclasses.asdict(gatys.Config())
            with Worker(Path(__file__), bench.torch_python, bench.device, bench.dtype, bench.tf32, *plain) as theirs:
                about["torch"] = theirs.about()
                errors = record["exact_parity"][features] = check_exactly(bench, ours, theirs)
                machine.say(f"{features}, parity in float64: {describe_errors(errors)}")
                for size in bench.sizes:
                    machine.say(f"{features}, {size} pixels, {bench.dtype}, on the {bench.device}")
                    record["results"].append({"features": features, **measure(bench, size, ours, theirs)})
        record["versions"] = {side: of.pop("versions") for side, of in about.items()}
        record["sides"] = about
        if bench.whole:
            record["whole"].append({"features": features, **whole_run(bench, network, params)})
    if record["results"]:
        print(table(record["results"]))
    for run in record["whole"]:
        print(
            f"{run['features']}: whole run at {run['size']} pixels in {run['cold_seconds']:.4g} s cold, "
            f"{run['warm_seconds']:.4g} s warm; its loss over that of {run['one_size']['evaluations']} evaluations at "
            f"that size: {run['ratio']:.4f}"
        )
    if bench.json is not None:
        machine.say(f"record: {machine.write_record(bench.json, record)}")
    return record


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        torch_process.serve(Torch)
        sys.exit()
    import tyro  # not in the worker, whose interpreter may lack it

    try:
        main(tyro.cli(Bench, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
