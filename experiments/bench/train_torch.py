"""Trains DCGAN in PyTorch: the other side of experiments/bench/mnist.py, cifar.py and losses.py, which measure it.

    python experiments/bench/train_torch.py --data mnist.npz --seeds 0 1 2      # 20 minutes a seed on 2 CPU cores

The same network, optimizers, losses, batch size and number of steps as `ganstyle train dcgan`, and the same images in
the same order (`data.Batches`). The weights to begin with and the latents are PyTorch's own draws, or with `--paired`
those that our training has of the same seed: the two then compute the same until rounding has driven them apart.
With `--ema-halflife-images` it keeps the average of the generator's weights that ours keeps.

Leaves netG_SEED_STEP.pth, state dicts as `torch.save` writes them, averageG_SEED_STEP.pth where an average is kept (its
statistics are to be estimated anew: those in the file are of the last weights), and train.json with the command, the
machine and the versions.
"""

import copy
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import numpy as np
import tyro

from ganstyle_jax import data
from ganstyle_jax.io.files import UserError, atomic_path

LATENT_DIM = 100


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained."""

    data: str = "mnist.npz"  # images, as `ganstyle train --data` takes them
    out: Path = Path("runs/mnist_torch")  # folder for the weights
    seeds: tuple[int, ...] = (0, 1, 2)  # one run each
    save_at: tuple[int, ...] = (2_500, 9_000)  # steps after which the generator is saved; the last one ends the run
    image_size: int = 32  # pixels
    width: int = 32  # channels of the finest hidden layer
    batch_size: int = 64  # images in a step
    learning_rate: float = 2e-4  # of both networks
    ema_halflife_images: float | None = None  # of the average of the generator's weights, if one is to be kept
    paired: bool = False  # begin with our weights and draw our latents, of the same seeds
    threads: int = machine.cores()  # of PyTorch


def main(settings: Settings) -> None:
    record = machine.describe() | {"versions": machine.versions(("torch", "numpy")), "threads": settings.threads}
    seconds = {seed: round(train(settings, seed)) for seed in settings.seeds}
    with atomic_path(settings.out / "train.json") as path:
        path.write_text(json.dumps(record | {"seconds": seconds}, indent=1) + "\n")


def train(settings: Settings, seed: int) -> float:
    """Trains one pair of networks and saves the generator; returns seconds."""
    import torch

    sys.path.insert(0, str(machine.ROOT / "tests"))
    import torch_dcgan

    torch.set_num_threads(settings.threads)
    torch.manual_seed(seed)
    source = data.open_source(settings.data, settings.image_size, seed=seed)
    channels, steps = source.image_shape[-1], max(settings.save_at)
    gen = torch_dcgan.Generator(settings.image_size, channels, LATENT_DIM, settings.width)
    disc = torch_dcgan.Discriminator(settings.image_size, channels, settings.width)
    for network in (gen, disc):
        torch_dcgan.initialise(network)
    if settings.paired:
        gen_state, disc_state, latents = ours(settings, channels, seed)
        for network, state in ((gen, gen_state), (disc, disc_state)):
            network.load_state_dict({name: torch.tensor(np.array(value)) for name, value in state.items()})
    else:
        latents = (torch.randn(settings.batch_size, LATENT_DIM) for _ in range(steps))
    for network in (gen, disc):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizers = torch_dcgan.adam(gen, settings.learning_rate), torch_dcgan.adam(disc, settings.learning_rate)

    saved, decay = {"netG": gen}, 0.0
    if settings.ema_halflife_images:
        saved["averageG"] = copy.deepcopy(gen)
        decay = 0.5 ** (settings.batch_size / settings.ema_halflife_images)

    start = time.perf_counter()
    for step, (images, z) in enumerate(zip(batches(source, settings, seed, steps), latents, strict=False)):
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
        disc_loss, gen_loss = torch_dcgan.train_step(gen, disc, *optimizers, images, torch.as_tensor(z))
        if average := saved.get("averageG"):
            with torch.no_grad():
                for mean, weight in zip(average.parameters(), gen.parameters(), strict=True):
                    mean.lerp_(weight, 1 - decay)
        if step % 500 == 0:
            print(f"seed {seed}, step {step}: losses {disc_loss.item():.3f} and {gen_loss.item():.3f}", flush=True)
        if step + 1 in settings.save_at:
            for name, network in saved.items():
                with atomic_path(settings.out / f"{name}_{seed}_{step + 1}.pth") as path:
                    torch.save(network.state_dict(), path)
    return time.perf_counter() - start


def batches(source: data.Source, settings: Settings, seed: int, steps: int) -> Iterator[np.ndarray]:
    """(b, s, s, c) float32 in [-1, 1] for each step, as our training has them."""
    order = data.Batches(source, settings.batch_size, seed)
    if source.size is None:
        for batch in order.stream(0, steps):
            yield data.to_float(batch["image"])
        return
    stored = order.load(progress=False)["image"]
    for step in range(steps):
        yield data.to_float(stored[order.indices(step)])


def ours(settings: Settings, channels: int, seed: int) -> tuple[dict[str, Any], dict[str, Any], Iterator[np.ndarray]]:
    """State dicts of both networks, and the latents of each step, as `train.run` has them of the same seed."""
    import jax

    from ganstyle_jax.gan import convert, dcgan

    cfg = dcgan.Config(settings.image_size, channels=channels, width=settings.width)
    key_init, key_train = jax.random.split(jax.random.key(seed))
    state = jax.jit(dcgan.init, static_argnums=1)(key_init, cfg)

    @jax.jit
    def draw(step):  # see dcgan.train_step and generate_for_training
        key_disc, _ = jax.random.split(jax.random.fold_in(key_train, step))
        key = jax.random.fold_in(jax.random.fold_in(key_disc, 0), 0)
        return jax.random.normal(key, (settings.batch_size, cfg.latent_dim))

    latents = (np.array(draw(step)) for step in range(max(settings.save_at)))
    networks = (
        convert.generator_to_torch(state.gen.variables, cfg),
        convert.discriminator_to_torch(state.disc.variables, cfg),
    )
    return *networks, latents


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX reads and draws; leave the GPU to PyTorch
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
