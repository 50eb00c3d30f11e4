"""Small methods for the tests of the judge, which draw without learning: a generator of noise, and a translator."""

import dataclasses

import jax
import jax.numpy as jnp

from ganstyle_jax.data import Wanted


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 16
    batch_norm: str = "running"  # "batch": pictures of one call of `sample` depend on one another


def sources(cfg):
    return {"real": Wanted(cfg.size, 3)}


def init(key, cfg):
    return {"scale": jax.random.uniform(key, (3,))}


def train_step(state, batch, key, cfg, axis_name=None):
    return state, {}


def requests(key, n, cfg, examples):
    return {"latents": jax.random.normal(key, (n, cfg.size, cfg.size, 3))}


def generator(state, cfg):
    return state["scale"]


def sample(variables, requests, cfg):
    z = requests["latents"]
    if cfg.batch_norm == "batch":
        z = (z - z.mean((0, 1, 2))) / z.std((0, 1, 2))
    return jnp.tanh(z * variables)
