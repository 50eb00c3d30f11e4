"""Times painting in one pass against the same network in PyTorch on the same machine: seconds a picture.

    python experiments/bench/forward.py                        # the network that ships, 256, 512 and 1,024 pixels

Ours is `models.draw`, which `ganstyle apply` runs; PyTorch's is the network of tests/torch_image_transform.py with the
same weights, channels_last, in inference mode, eagerly and by `torch.compile` (mode "default"), of which the faster
counts. PyTorch is a process of its own, so that the two share no threads; they work in turn, and `ratio` is our median
over PyTorch's: below 1 we are faster. Parity comes first: at every size both paint the same picture within 1e-4.

Expected: experiments/results/forward_cpu.json. A quarter of an hour, most of it for torch.compile.
"""

import dataclasses
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import machine
import numpy as np
from torch_process import Worker, serve

from ganstyle_jax.io.files import UserError

# JAX is imported in functions, because PyTorch's process imports this file too.

PARITY = 1e-4  # of values in [-1, 1]: float32, sixteen layers that are normalised


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is timed, and how."""

    model: str = "paintings"  # name of a model that ships, a model file or a run folder, of fast style transfer
    sizes: tuple[int, ...] = (256, 512, 1024)  # pixels, of square pictures
    rounds: int = 9  # timings of each contestant
    compiled: bool = True  # time torch.compile too, and not eager PyTorch alone
    json: Path | None = Path("forward_cpu.json")  # record; a bare name goes into experiments/results/


def main(settings: Settings) -> dict[str, Any]:
    import jax

    from ganstyle_jax.commands import flags
    from ganstyle_jax.loop import models

    flags.use_cache()
    model = models.load(settings.model)
    if not model.method.has("network"):
        raise UserError(f"{settings.model} is a model of {model.method.name}, and this times fast style transfer")
    network = model.method.module.network(model.cfg)
    ours, params = Ours(model), jax.device_get(model.variables["params"])
    of_torch = params, network.blocks, network.upsampling, network.output
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "torch", "numpy")),
        "network": {"width": network.width, "blocks": network.blocks, "styles": network.styles},
        "rows": [],
    }
    modes = ["eager", *(["compiled"] if settings.compiled else [])]
    with Worker(Path(__file__), Path(sys.executable), *of_torch) as theirs:
        for size in settings.sizes:
            picture = np.random.default_rng(size).uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
            style = np.full((1, network.styles), 1 / network.styles, np.float32)
            expected = ours.paint(picture, style)
            for mode in modes:
                if (wrong := float(np.abs(theirs.ask("paint", mode, picture, style) - expected).max())) > PARITY:
                    raise UserError(
                        f"at {size} pixels PyTorch ({mode}) paints otherwise, by {wrong:.2g}: nothing is timed"
                    )
            times: dict[str, list[float]] = {name: [] for name in ("ours", *modes)}
            for _ in range(settings.rounds):
                times["ours"].append(ours.time(picture, style))
                for mode in modes:
                    times[mode].append(theirs.ask("time", mode, picture, style))
            medians = {name: round(median(seconds), 5) for name, seconds in times.items()}
            ratio = medians["ours"] / min(medians[mode] for mode in modes)
            record["rows"].append({"size": size, "seconds": medians, "ratio": round(ratio, 3)})
            print(record["rows"][-1], flush=True)
    if settings.json is not None:
        print(f"The record is in {machine.write_record(settings.json, record)}")
    return record


class Ours:
    """The side of JAX."""

    def __init__(self, model: Any):
        import jax

        self.model, self.variables = model, jax.device_put(model.variables)

    def _draw(self, picture: np.ndarray, style: np.ndarray) -> Any:
        from ganstyle_jax.loop import models

        requests = {"content": picture, "style": style}
        return models.draw(self.model.method, self.variables, requests, self.model.cfg)["result"]

    def paint(self, picture: np.ndarray, style: np.ndarray) -> np.ndarray:
        return np.asarray(self._draw(picture, style))

    def time(self, picture: np.ndarray, style: np.ndarray) -> float:
        begun = time.perf_counter()
        self._draw(picture, style).block_until_ready()
        return time.perf_counter() - begun


class Torch:
    """The side of PyTorch. network: what TransformerNet takes."""

    def __init__(self, *network: Any):
        import torch

        sys.path.insert(1, str(machine.ROOT / "tests"))
        from torch_image_transform import TransformerNet

        module: Any = TransformerNet(*network)
        module = module.to(memory_format=torch.channels_last).eval()
        self.modes = {"eager": module, "compiled": torch.compile(module, dynamic=False)}

    def _run(self, mode: str, picture: np.ndarray, style: np.ndarray) -> tuple[Any, float]:
        import torch

        with torch.inference_mode():
            images = torch.tensor(picture).permute(0, 3, 1, 2)  # channels_last as it lies
            begun = time.perf_counter()
            painted = self.modes[mode](images, torch.tensor(style))
            return painted, time.perf_counter() - begun

    def paint(self, mode: str, picture: np.ndarray, style: np.ndarray) -> np.ndarray:
        return self._run(mode, picture, style)[0].permute(0, 2, 3, 1).contiguous().numpy()

    def time(self, mode: str, picture: np.ndarray, style: np.ndarray) -> float:
        return self._run(mode, picture, style)[1]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(Torch)
        sys.exit()
    import tyro  # not in the worker, whose interpreter may lack it

    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
