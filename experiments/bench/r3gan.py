"""Times R3GAN's training step, both networks, both penalties and both optimizers, against PyTorch on the same CPU.

    python experiments/bench/r3gan.py                                # 32 pixels, width 16, batch 32
    python experiments/bench/r3gan.py --image-size 64 --width 32 --batch-size 16

Ours is `r3gan.train_step`, several in one loop with the state donated, as `ganstyle train` runs it; PyTorch runs the
networks and the step of tests/torch_r3gan.py, eagerly, with its maps in both layouts, and counts by the faster one.
Both draw new latents in every step and keep the generator's average. They work in turn within one process, on the same
number of threads; compilation and first steps lie outside. `ratio` is our median over PyTorch's better one: below 1 we
are faster.

Nothing is timed before the parity check: from the same weights, pictures and latents both must have the same losses and
penalties of the first step within 1e-4, in float32.
Expected: 0.5 to 0.7 on 2 CPU cores, in two minutes.
"""

import copy
import dataclasses
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # PyTorch's threads leave the cores when it is not their turn

import in_turn
import jax
import jax.numpy as jnp
import machine
import numpy as np
import tyro
from jax import lax

from ganstyle_jax.gan import r3gan
from ganstyle_jax.io.files import UserError

sys.path.insert(0, str(machine.ROOT / "tests"))


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is timed, and how."""

    image_size: int = 32  # pixels, a power of two from 16 up
    width: int = 16  # channels of the finest stage
    blocks: int = 1  # residual blocks of a stage
    batch_size: int = 32  # pictures in a step
    rounds: int = 7  # timings of each
    steps: int = 2  # training steps in a round
    threads: int = machine.cores()  # of PyTorch; ours takes all cores that this process may use
    json: Path | None = None  # file for the record; a bare name goes into experiments/results/


def named(tree: Any) -> dict[str, np.ndarray]:
    """{"4x4_block0/expand": array}: weights by their places in the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


def main(bench: Bench) -> dict[str, Any]:
    import torch
    import torch_r3gan

    torch.set_num_threads(bench.threads)
    cfg = r3gan.Config(image_size=bench.image_size, width=bench.width, blocks=bench.blocks, channels=3)
    recipe, b = cfg.recipe, bench.batch_size
    state = jax.jit(partial(r3gan.init, cfg=cfg))(jax.random.key(0))
    pictures = np.random.default_rng(0).uniform(-1, 1, (2 * b, *cfg.shape)).astype(np.float32)

    def steps(state: Any, images: jax.Array, key: jax.Array) -> Any:
        def one(state: Any) -> Any:
            return r3gan.train_step(state, {"real": {"image": images}}, jax.random.fold_in(key, state.step), cfg)

        log = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, state)[1])
        return lax.fori_loop(0, bench.steps, lambda _, carry: one(carry[0]), (state, log))

    class Theirs:
        """The reference with our weights, its maps in one layout."""

        def __init__(self, layout: Any):
            shape = (recipe.widths, recipe.blocks, recipe.group_size)
            gen = torch_r3gan.Generator(*shape, recipe.latent_dim, 3)
            disc = torch_r3gan.Discriminator(*shape, 3)
            networks: list[tuple[Any, Any]] = [(gen, state.gen.params), (disc, state.disc.params)]
            for network, params in networks:
                torch_r3gan.load(network, named(params))
                network.to(memory_format=layout)
            pairs = {name: getattr(recipe, name) for name in r3gan.SCHEDULED}
            self.trainer = torch_r3gan.Trainer(gen, disc, copy.deepcopy(gen), recipe.schedule_images, pairs)
            self.images = torch.tensor(pictures.transpose(0, 3, 1, 2).copy()).to(memory_format=layout)

        def step(self, latents: list[Any]) -> dict[str, float]:
            return self.trainer.step(*((z, self.images[i::2], None) for i, z in enumerate(latents)))

        def run(self) -> None:
            for _ in range(bench.steps):
                self.step([torch.randn(b, recipe.latent_dim) for _ in range(2)])

    theirs = {name: Theirs(getattr(torch, name)) for name in ("contiguous_format", "channels_last")}
    key = jax.random.key(1)
    halves = jax.random.split(key)
    latents = [np.array(jax.random.normal(jax.random.fold_in(half, 1), (b, recipe.latent_dim))) for half in halves]
    _, ours = jax.jit(partial(r3gan.train_step, cfg=cfg))(state, {"real": {"image": pictures}}, key)
    for name, side in theirs.items():
        for what, value in side.step([torch.tensor(z) for z in latents]).items():
            if abs(float(ours[what]) - value) > 1e-4 * max(abs(value), 0.1):
                raise UserError(f"{what} of the first step is {float(ours[what])} and {value} in PyTorch, {name}")

    return in_turn.timed(bench, steps, state, (pictures, key), {name: side.run for name, side in theirs.items()})


if __name__ == "__main__":
    try:
        main(tyro.cli(Bench, description=__doc__))
    except UserError as error:
        sys.exit(str(error))
