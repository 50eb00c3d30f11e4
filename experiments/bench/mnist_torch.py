"""Trains DCGAN on MNIST in PyTorch: the other side of experiments/bench/mnist.py, which measures what this leaves.

    python experiments/bench/mnist_torch.py --data mnist.npz --seeds 0 1 2      # 20 minutes a seed on 2 CPU cores

The same network, optimizers, losses, batch size and number of steps as experiments/mnist.py, and the same images in the
same order (`data.Batches`); the weights and latents are PyTorch's own draws. Leaves netG_SEED_STEP.pth, state dicts as
`torch.save` writes them, and train.json with the command, the machine and the versions.
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import machine
import tyro

from ganstyle_jax import data
from ganstyle_jax.files import UserError, atomic_path


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
    source = data.open_source(settings.data, settings.image_size)
    batches = data.Batches(source, settings.batch_size, seed)
    stored = batches.load(progress=False)["image"]
    channels, latent_dim = source.image_shape[-1], 100
    gen = torch_dcgan.Generator(settings.image_size, channels, latent_dim, settings.width)
    disc = torch_dcgan.Discriminator(settings.image_size, channels, settings.width)
    for network in (gen, disc):
        torch_dcgan.initialise(network)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizers = torch_dcgan.adam(gen), torch_dcgan.adam(disc)

    start = time.perf_counter()
    for step in range(max(settings.save_at)):
        images = torch.from_numpy(data.to_float(stored[batches.indices(step)])).permute(0, 3, 1, 2)
        z = torch.randn(settings.batch_size, latent_dim)
        disc_loss, gen_loss = torch_dcgan.train_step(gen, disc, *optimizers, images, z)
        if step % 500 == 0:
            print(f"seed {seed}, step {step}: losses {disc_loss.item():.3f} and {gen_loss.item():.3f}", flush=True)
        if step + 1 in settings.save_at:
            with atomic_path(settings.out / f"netG_{seed}_{step + 1}.pth") as path:
                torch.save(gen.state_dict(), path)
    return time.perf_counter() - start


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # ganstyle_jax.data alone is used; leave the GPU to PyTorch
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
