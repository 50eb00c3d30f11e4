"""Times StyleGAN2's training steps, with path lengths and R1 when they are due, against PyTorch on the same CPU.

    python experiments/bench/stylegan2.py                            # 32 pixels, the preset small, batch 16
    python experiments/bench/stylegan2.py --image-size 64 --capacity 512

A round is 16 steps, of which 4 measure path lengths and one R1, as both intervals have it. Ours is
`stylegan2.train_step`, a round in one loop with the state donated, as `ganstyle train` runs it. PyTorch runs the
networks and phases of tests/torch_stylegan2.py, eagerly, in float32, once with weights of each picture's own in grouped
convolutions and once with pictures that are scaled before and after one convolution for all, and counts by the faster
one. Neither augments: the reference's augmentation is written to be plain, not fast. Both draw latents, noise and
styles' cuts anew and keep the generator's average. They work in turn within one process, on the same number of threads;
compilation and first steps lie outside. `ratio` is our median over PyTorch's better one: below 1 we are faster.

Nothing is timed before the parity check: from the same weights, pictures and draws both must have the same losses,
penalty and path length of the first step within 1e-3, in float32.
Expected: docs/measured.md, "StyleGAN2"; in three minutes on 2 CPU cores.
"""

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

from ganstyle_jax.gan import stylegan2
from ganstyle_jax.io.files import UserError

sys.path.insert(0, str(machine.ROOT / "tests"))


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is timed, and how."""

    image_size: int = 32  # pixels, a power of two from 16 up
    capacity: int = 1024  # channels of a level times its side
    max_channels: int = 64  # of a level, at most
    batch_size: int = 16  # pictures in a step, an even number
    rounds: int = 7  # timings of each
    steps: int = 16  # training steps in a round
    threads: int = machine.cores()  # of PyTorch; ours takes all cores that this process may use
    json: Path | None = None  # file for the record; a bare name goes into experiments/results/


def main(bench: Bench) -> dict[str, Any]:
    import torch
    import torch_stylegan2 as reference

    torch.set_num_threads(bench.threads)
    size, b = bench.image_size, bench.batch_size
    cfg = stylegan2.Config(
        size, 3, preset="small", capacity=bench.capacity, max_channels=bench.max_channels, augment="none"
    )
    cfg = stylegan2.of_the_batch(cfg, b)
    state = jax.jit(partial(stylegan2.init, cfg=cfg))(jax.random.key(0))
    pictures = np.random.default_rng(0).uniform(-1, 1, (b, size, size, 3)).astype(np.float32)

    def steps(state: Any, images: jax.Array, key: jax.Array) -> Any:
        def one(state: Any) -> Any:
            return stylegan2.train_step(state, {"real": {"image": images}}, jax.random.fold_in(key, state.step), cfg)

        log = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, state)[1])
        return lax.fori_loop(0, bench.steps, lambda _, carry: one(carry[0]), (state, log))

    class Theirs:
        """The reference with our weights, its convolutions in one of two forms."""

        def __init__(self, grouped: bool):
            params = state.gen.params, state.disc.params
            plain = {"dtype": torch.float32, "grouped": grouped}
            self.training = reference.Training(*params, cfg, lambda images, _: images, **plain)
            self.images = torch.tensor(pictures.transpose(0, 3, 1, 2).copy())

        def step(self, draw: Any, project: Any) -> dict[str, float]:
            training, i = self.training, self.training.step
            loss_gen = training.generator_step(draw(0, b), None, None)
            if i % cfg.path_interval == 0:
                training.path_step(draw(1, b // 2), project(b // 2), None)
            loss_disc, *_ = training.discriminator_step(draw(2, b), self.images, None, None, None)
            if i % cfg.r1_interval == 0:
                training.r1_step(self.images, None, None)
            training.end(b)
            found = {"loss/gen": loss_gen, "loss/disc": loss_disc}
            return found | {"penalty/r1": training.r1.item(), "path_length": training.path_mean.item()}

        def run(self) -> None:
            for _ in range(bench.steps):
                self.step(draw, lambda n: torch.randn(n, 3, size, size))

    def draw(_: int, n: int) -> dict[str, Any]:
        noise = {
            level: {name: torch.randn(n, *shape) for name, shape in places.items()}
            for level, places in stylegan2.noise_shapes(cfg).items()
        }
        cut = int(torch.randint(1, cfg.styles, ())) if torch.rand(()) < cfg.style_mixing else cfg.styles
        latents, others = torch.randn(2, n, cfg.latent_dim)
        return {"latents": latents, "others": others, "noise": noise, "cut": cut}

    key = jax.random.key(1)
    keys = [jax.random.split(jax.random.fold_in(key, i), 2 + (i == 2))[:2] for i in range(3)]  # of the phases that draw

    def ours_drawn(phase: int, n: int) -> dict[str, Any]:
        found = jax.tree.map(np.array, stylegan2.draw(keys[phase][0], n, cfg))
        cut = int(found.pop("cut")[0])
        made: Any = reference.tensors(found, False, torch.float32)
        return made | {"cut": cut}

    def ours_projected(n: int) -> Any:
        drawn = np.array(jax.random.normal(keys[1][1], (n, size, size, 3)))
        return torch.tensor(drawn.transpose(0, 3, 1, 2).copy())

    theirs = {"grouped": Theirs(True), "scaled": Theirs(False)}
    _, ours = jax.jit(partial(stylegan2.train_step, cfg=cfg))(state, {"real": {"image": pictures}}, key)
    for name, side in theirs.items():
        for what, value in side.step(ours_drawn, ours_projected).items():
            if abs(float(ours[what]) - value) > 1e-3 * abs(value):
                raise UserError(f"{what} of the first step is {float(ours[what])} and {value} in PyTorch, {name}")

    return in_turn.timed(bench, steps, state, (pictures, key), {name: side.run for name, side in theirs.items()})


if __name__ == "__main__":
    try:
        main(tyro.cli(Bench, description=__doc__))
    except UserError as error:
        sys.exit(str(error))
