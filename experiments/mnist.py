"""MNIST at 32 pixels, judged by the Fréchet distance in a LeNet's features.

Paper: DCGAN (Radford, Metz & Chintala 2016, arXiv:1511.06434), which has no figure for MNIST. Compared
    with the same network in PyTorch, which experiments/bench/train_torch.py trains, by experiments/bench/mnist.py.
Data: mnist.npz, the 60,000 training digits of LeCun et al. 1998, CC BY-SA 3.0; from
    https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz, or `--data tfds:mnist`. The distance also
    needs the folder --reference with datasets/mnist.npz and weights/mnist_lenet.pth (see experiments/lenet_fd.py).
Hardware and time: 2 CPU cores, a quarter of an hour for each seed; the distance, a minute for each seed.
Expected: LeNet-FD 86.9 at 2,500 and 55.8 at 9,000 steps, mean of 3 seeds (the data: 1.27).
Command: python experiments/mnist.py
"""

import dataclasses
import sys
from pathlib import Path

import jax
import lenet_fd
import tyro

import ganstyle_jax
from ganstyle_jax.commands import flags
from ganstyle_jax.gan import dcgan
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import train

CONFIG = dcgan.Config(image_size=32, width=32)
LOOP = train.Loop(
    run_dir=Path("runs/mnist"), steps=9_000, checkpoint_every=500, keep_every=2_500, sample_every=500, resume="auto"
)


def main(
    data: str = str(lenet_fd.DATA / "datasets" / "mnist.npz"),
    seeds: tuple[int, ...] = (0, 1, 2),
    measure_at: tuple[int, ...] = (2_500, 9_000),
    samples: int = 10_000,
    reference: Path = lenet_fd.DATA,
    loop: train.Loop = LOOP,
    config: dcgan.Config = CONFIG,
) -> None:
    """Trains one run for each seed, in the folders seed0, seed1, ... of --run-dir, and prints its LeNet-FD.

    Args:
        data: images to train on, as `ganstyle train --data` takes them.
        seeds: one run each, in the place of --seed.
        measure_at: steps whose checkpoints are measured; they must be kept, see --checkpoint-every and --keep-every.
        samples: pictures drawn for the distance, which falls with their number.
        reference: folder with datasets/mnist.npz and weights/mnist_lenet.pth.
        loop: the settings of the loop.
        config: the settings of the network.
    """
    flags.use_cache()
    for seed in seeds:
        run_dir = (loop.run_dir or Path("runs/mnist")) / f"seed{seed}"
        train.run(dcgan, config, data, dataclasses.replace(loop, run_dir=run_dir, seed=seed))
        for step in measure_at:
            pictures = ganstyle_jax.load(run_dir, step).sample(jax.random.key(seed), samples)
            numbers = lenet_fd.evaluate(pictures, reference)
            print(
                f"seed {seed}, step {step}: LeNet-FD {numbers['lenet_fd']:.2f} (training images "
                f"{numbers['real']['lenet_fd']:.2f}), mean top probability {numbers['mean_top_probability']:.3f}, "
                f"rarest digit {numbers['rarest_digit_share']:.1%}",
                flush=True,
            )


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    except UserError as error:
        sys.exit(f"error: {error}")
