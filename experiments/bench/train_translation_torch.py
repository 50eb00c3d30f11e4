"""Trains CycleGAN in PyTorch: the other side of experiments/cyclegan.py.

    python experiments/bench/train_translation_torch.py --data face2portrait_128px.zip --steps 6000
    python experiments/translation_distance.py runs/face2portrait_torch --data face2portrait_128px.zip/test

The same networks, losses, history, optimizers and learning rates as `ganstyle train cyclegan` with --total-steps as
--steps, and the same pictures in the same order (`sources.batched`). The weights to begin with, where pictures are cut
and whether they are mirrored, and which of the past are shown are draws of its own. float32, in the form that was
fastest on a CPU, see torch_translation.py; --layout channels_last was slower there by a tenth.

Leaves latest_net_G_A.pth and latest_net_G_B.pth, state dicts as `torch.save` writes them, in the names of
pytorch-CycleGAN-and-pix2pix (`ganstyle convert` makes a run of them), and train.json with the command, the machine, the
versions, the settings, the seconds and the losses, the means over --log-every steps. All three are written anew each
--save-every steps. It cannot be resumed.
"""

import copy
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import machine
import numpy as np
import torch
import torch_translation as translation
import tyro

from ganstyle_jax import contract, data
from ganstyle_jax.gan import cyclegan
from ganstyle_jax.io.files import UserError, atomic_path
from ganstyle_jax.loop import sources
from ganstyle_jax.loop.settings import Loop
from ganstyle_jax.nn.averages import RAMP

FILES = {"a2b": "latest_net_G_A.pth", "b2a": "latest_net_G_B.pth"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained. The defaults are those of 64 pixels in experiments/cyclegan.py, with the paper's batches."""

    data: tuple[str, ...] = ("face2portrait_128px.zip",)  # as `ganstyle train cyclegan --data` takes it
    out: Path = Path("runs/face2portrait_torch")  # folder for the weights
    image_size: int = 72  # pixels of a side to which pictures are brought
    crop: int = 64  # pixels of a side of the random part that a step sees
    width: int = 32  # channels of the generators' finest hidden layer
    blocks: int = 6  # residual blocks
    discriminator_width: int = 32  # channels of their finest hidden layer
    discriminator_halvings: int = 2  # 3: patches of 70 pixels, 2 of 34, 1 of 16
    upsampling: Literal["transposed", "nearest"] = "transposed"  # of the generators
    cycle_weight: float = translation.CYCLE  # of the distance of what went there and back
    identity_weight: float = translation.IDENTITY  # of the identity loss, as a share of the cycle's
    ema_halflife_images: float = 0.0  # images after which the generators' average has half forgotten; 0: no average
    batch_size: int = 1  # pictures of each side in a step
    history: int = 50  # past pictures of each side that discriminators are shown
    learning_rate: float = 2e-4  # of Adam; falls to 0 over the second half of the steps
    steps: int = 6_000
    seed: int = 0
    layout: Literal["contiguous", "channels_last"] = "contiguous"  # of memory
    log_every: int = 100  # steps
    save_every: int = 1_000  # steps
    threads: int = machine.cores()  # of PyTorch

    def __post_init__(self):
        for name in ("batch_size", "history", "steps", "log_every", "save_every", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")

    @property
    def config(self) -> cyclegan.Config:
        """Of our training. UserError for what it does not accept."""
        same = ("image_size", "crop", "width", "blocks", "discriminator_width", "discriminator_halvings")
        same += ("upsampling", "cycle_weight", "identity_weight", "ema_halflife_images")
        given = {name: getattr(self, name) for name in (*same, "history", "learning_rate")}
        try:
            return cyclegan.Config(**given, total_steps=self.steps)
        except ValueError as error:
            raise UserError(str(error)) from None


def main(settings: Settings) -> dict[str, Any]:
    """Trains, and returns what train.json holds."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    memory, cfg = translation.LAYOUTS[settings.layout], settings.config
    method = contract.find("cyclegan")
    given = sources.named(sources.parse(settings.data, method, cfg), method, cfg)
    pictures = batches(settings, given)
    sizes = (cfg.width, cfg.blocks, cfg.discriminator_width, cfg.discriminator_halvings, cfg.upsampling)
    nets = {name: net.to(memory_format=memory) for name, net in translation.networks(*sizes).items()}
    optimizers = translation.optimizers(nets, cfg.learning_rate)
    averages = {way: copy.deepcopy(nets[way]) for way in translation.WAYS} if cfg.ema_halflife_images else {}
    pools = {x: translation.reference.ImagePool(cfg.history) for x in "ab"}
    rng = np.random.default_rng([settings.seed, 1])
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("torch", "numpy", "pillow")),
        "settings": dataclasses.asdict(settings) | {"data": list(settings.data), "out": str(settings.out)},
        "data": given,
        "step": 0,
        "seconds": 0.0,
        "seconds_per_step": None,
        "losses": [],
    }
    seen: list[dict[str, torch.Tensor]] = []
    begun = time.perf_counter()
    for step in range(settings.steps):
        real = {
            x: torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(memory_format=memory)
            for x, array in next(pictures).items()
        }
        for optimizer in optimizers.values():
            optimizer.param_groups[0]["lr"] = rate(settings, step)
        draws = {x: history_draws(rng, settings) for x in "ab"}
        weights: dict[str, Any] = {"identity": cfg.identity_weight, "cycle": cfg.cycle_weight}
        seen.append(translation.step(nets, optimizers, pools, real, draws, **weights))
        for way, average in averages.items():
            remember(average, nets[way], cfg.ema_halflife_images, settings.batch_size, step + 1)
        done, seconds = step + 1, time.perf_counter() - begun
        if done % settings.log_every == 0 or done == settings.steps:
            losses = {name: float(np.mean([of[name].item() for of in seen])) for name in seen[0]}
            if not all(np.isfinite(loss) for loss in losses.values()):
                raise UserError(f"losses are not finite at step {done}: {losses}")
            record["losses"].append({"step": done, "seconds": round(seconds, 2)} | losses)
            text = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
            print(f"seed {settings.seed}, step {done}, {seconds:.1f} s: {text}", flush=True)
            seen.clear()
        if done % settings.save_every == 0 or done == settings.steps:
            record |= {"step": done, "seconds": round(seconds, 2), "seconds_per_step": machine.seconds(seconds / done)}
            for way, name in FILES.items():
                with atomic_path(settings.out / name) as path:
                    torch.save(translation.state_dict(averages.get(way, nets[way])), path)
            with atomic_path(settings.out / "train.json") as path:
                path.write_text(json.dumps(record, indent=1) + "\n")
    return record


@torch.no_grad()
def remember(average: torch.nn.Module, net: torch.nn.Module, halflife: float, images: int, steps: int) -> None:
    """One step of a running mean of weights, as `averages.ema` has it."""
    keep = 0.5 ** (images / min(halflife, RAMP * steps * images))
    for kept, new in zip(average.parameters(), net.parameters(), strict=True):
        kept.lerp_(new, 1 - keep)


def rate(settings: Settings, step: int) -> float:
    """Of step number `step`, from 0, as `cyclegan.optimizer` has it."""
    return settings.learning_rate * min(1.0, 2 - 2 / settings.steps * step)


def history_draws(rng: np.random.Generator, settings: Settings) -> tuple[list[bool], list[int]]:
    """For each picture whether one of the past is shown in its place, and which."""
    swaps = rng.random(settings.batch_size) < 0.5
    return swaps.tolist(), rng.integers(settings.history, size=settings.batch_size).tolist()


def batches(settings: Settings, given: dict[str, Any]) -> Iterator[dict[str, np.ndarray]]:
    """{"a", "b": (b, crop, crop, 3) float32 in [-1, 1]} without end, each side in an order of its own."""
    method, cfg = contract.find("cyclegan"), settings.config
    found = sources.opened(given, method, cfg, settings.seed)
    loop = Loop(run_dir=settings.out, batch_size=settings.batch_size, seed=settings.seed)
    orders = sources.batched(found, method, cfg, loop)
    stored = {x: order.load(progress=False)["image"] for x, order in orders.items()}
    rng = np.random.default_rng([settings.seed, 0])

    def drawn() -> Iterator[dict[str, np.ndarray]]:
        step = 0
        while True:
            pictures = {x: stored[x][order.indices(step)] for x, order in orders.items()}
            yield {x: data.to_float(cut(rng, whole, cfg.crop)) for x, whole in pictures.items()}
            step += 1

    return drawn()


def cut(rng: np.random.Generator, pictures: np.ndarray, crop: int) -> np.ndarray:
    """A random part of each picture, mirrored or not: (b, h, w, c) -> (b, crop, crop, c)."""
    h, w = pictures.shape[1:3]
    parts = []
    for picture in pictures:
        top, left = rng.integers(h - crop + 1), rng.integers(w - crop + 1)
        part = picture[top : top + crop, left : left + crop]
        parts.append(part[:, ::-1] if rng.random() < 0.5 else part)
    return np.stack(parts)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX reads pictures at most; leave the GPU to PyTorch
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
