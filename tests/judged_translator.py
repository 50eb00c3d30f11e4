"""A method with two sources, constants and several titles, whose requests are pictures: for the tests of the judge."""

import dataclasses

import jax.numpy as jnp

from ganstyle_jax.data import Wanted


@dataclasses.dataclass(frozen=True)
class Config:
    height: int = 16
    width: int = 16


def sources(cfg):
    return {"horses": Wanted((cfg.height, cfg.width), 3), "zebras": Wanted((cfg.height, cfg.width), None)}


def constants(cfg):
    return {"shift": jnp.float32(0.25)}


def init(key, cfg, constants):
    return {"factor": jnp.float32(-1)}


def train_step(state, batch, key, cfg, constants, axis_name=None):
    return state, {}


def requests(key, n, cfg, examples):
    return examples["horses"]["image"]


def generator(state, cfg, constants):
    return state | constants


def sample(variables, requests, cfg):
    return {"horse": requests, "as a zebra": requests * variables["factor"], "darker": requests - variables["shift"]}


def judged(cfg):
    return "as a zebra", "zebras"
