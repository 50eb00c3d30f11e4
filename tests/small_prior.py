"""An untrained network as prior, in small (Ulyanov et al. 2018, arXiv:1711.10925): a method that needs no data.

The picture to be restored is drawn here, under noise. Written outside the package; try
`ganstyle train tests/small_prior.py`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ganstyle_jax import layers


@dataclasses.dataclass(frozen=True)
class Config:
    image_size: int = 16  # pixels
    width: int = 8  # channels
    noise: float = 0.2  # standard deviation of the noise on the picture
    jitter: float = 0.05  # of the noise on the network's input at each step
    learning_rate: float = 1e-2
    dtype: str = "float32"  # or float64


def sources(cfg):
    return {}


def constants(cfg):
    y, x = jnp.meshgrid(*[jnp.linspace(-1, 1, cfg.image_size, dtype=cfg.dtype)] * 2, indexing="ij")
    clean = jnp.stack([jnp.sin(3 * x), jnp.cos(3 * y), x * y], axis=-1)
    return {"noisy": clean + cfg.noise * jax.random.normal(jax.random.key(1), clean.shape, cfg.dtype)}


class Net(nn.Module):
    cfg: Config

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.leaky_relu(nn.Conv(self.cfg.width, (3, 3), param_dtype=self.cfg.dtype)(x))
        return jnp.tanh(nn.Conv(3, (1, 1), param_dtype=self.cfg.dtype)(x))


def init(key, cfg, constants):
    z = jax.random.uniform(jax.random.fold_in(key, 0), (1, cfg.image_size, cfg.image_size, 4), cfg.dtype)
    params = Net(cfg).init(jax.random.fold_in(key, 1), z)
    # `average` of the pictures so far (the paper's supplement): a state that grows out of what the step has made.
    average = jnp.zeros((cfg.image_size, cfg.image_size, 3), cfg.dtype)
    return {"params": params, "opt_state": optax.adam(cfg.learning_rate).init(params), "z": z, "average": average}


def train_step(state, batch, key, cfg, constants, axis_name=None):
    z = state["z"] + cfg.jitter * jax.random.normal(key, state["z"].shape, state["z"].dtype)  # the same on all devices

    def loss(params):
        picture = Net(cfg).apply(params, z)[0]
        return jnp.mean((picture - constants["noisy"]) ** 2), picture

    (value, picture), gradient = layers.pmean(jax.value_and_grad(loss, has_aux=True)(state["params"]), axis_name)
    updates, opt_state = optax.adam(cfg.learning_rate).update(gradient, state["opt_state"])
    new = {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state, "z": state["z"]}
    return new | {"average": 0.9 * state["average"] + 0.1 * picture}, {"loss/pixels": value}


def requests(key, n, cfg, examples):
    """Noise on the network's input."""
    return cfg.jitter * jax.random.normal(key, (n, cfg.image_size, cfg.image_size, 4), cfg.dtype)


def generator(state, cfg, constants):
    return {"params": state["params"], "z": state["z"]}


def sample(variables, noise, cfg):
    return Net(cfg).apply(variables["params"], variables["z"] + noise)
