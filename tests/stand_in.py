"""A loaded run without training: what `runs.load` gives, of a small GAN that is written by the contract."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax import contract, data


@dataclasses.dataclass(frozen=True)
class Loaded:
    """See runs.LoadedRun."""

    method: contract.Method
    cfg: Any
    state: Any
    data: Any = "glyphs"
    step: int = 2
    constants: Any = ()

    def requests(self, key, n):
        return self.method.requests(key, n, self.cfg, {})

    @functools.cached_property
    def sample(self):
        variables = jax.jit(lambda state: self.method.generator(state, self.cfg, self.constants))(self.state)
        return jax.jit(lambda part: self.method.sample(variables, part, self.cfg))

    def draw(self, requests):
        parts = list(contract.in_parts(self.sample, requests, 64))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)


# ---------------------------------------------------------------------------------------------------------------------
# Methods of other kinds than a GAN of latents


@dataclasses.dataclass(frozen=True)
class Config:
    size: int | tuple[int, int] = (8, 12)
    latent_dim: int = 3

    @property
    def shape(self):
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)


class Labelled:
    """Latents with labels in, two titled columns out; pictures wider than high, and two sources."""

    Config, __file__ = Config, __file__

    @staticmethod
    def sources(cfg):
        return {"a": data.Wanted(cfg.size), "b": data.Wanted(16)}

    @staticmethod
    def init(key, cfg):
        h, w = cfg.shape
        return {"w": jax.random.normal(key, (cfg.latent_dim, h * w * 3)), "shift": jnp.linspace(-0.5, 0.5, 4)}

    train_step = None

    @staticmethod
    def requests(key, n, cfg, examples):
        return {"latents": jax.random.normal(key, (n, cfg.latent_dim)), "label": jnp.arange(n) % 4}

    @staticmethod
    def generator(state, cfg):
        return state

    @staticmethod
    def sample(variables, requests, cfg):
        h, w = cfg.shape
        plain = (requests["latents"] @ variables["w"]).reshape(-1, h, w, 3)
        shift = variables["shift"][requests["label"]][:, None, None, None]
        return {"plain": jnp.tanh(plain), "shifted": jnp.tanh(plain + shift)}

    @staticmethod
    def judged(cfg):
        return "shifted", "a"

    @staticmethod
    def discriminate(state, images, cfg):
        return images.mean((1, 2, 3))


class Restoring:
    """Pictures in, pictures out, and no data: nothing to walk between, nothing to compare with."""

    Config, __file__, train_step = Config, __file__, None
    init, generator = staticmethod(Labelled.init), staticmethod(Labelled.generator)

    @staticmethod
    def sources(cfg):
        return {}

    @staticmethod
    def requests(key, n, cfg, examples):
        return jax.random.uniform(key, (n, *cfg.shape, 3), minval=-1, maxval=1)

    @staticmethod
    def sample(variables, requests, cfg):
        return -requests
