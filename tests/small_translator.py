"""Unpaired translation in small (Zhu et al. 2017, arXiv:1703.10593): four networks, two sources, past pictures kept.

Differs: convolutions of one size throughout, no identity loss. Written outside the package; try
`ganstyle train tests/small_translator.py --data a=FOLDER b=FOLDER` and `ganstyle apply RUN PICTURE`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ganstyle_jax import layers
from ganstyle_jax.data import Wanted


@dataclasses.dataclass(frozen=True)
class Config:
    image_size: int = 16  # pixels
    width: int = 8  # channels of the hidden layers
    history: int = 50  # past pictures of each side that the discriminators are shown
    cycle: float = 10.0  # weight of the cycle loss
    learning_rate: float = 2e-4
    dtype: str = "float32"  # or float64


def sources(cfg):
    return {"a": Wanted(cfg.image_size), "b": Wanted(cfg.image_size)}


class Net(nn.Module):
    cfg: Config
    channels: int

    @nn.compact
    def __call__(self, x):
        for channels in (self.cfg.width, self.cfg.width):
            x = nn.leaky_relu(nn.Conv(channels, (3, 3), param_dtype=self.cfg.dtype)(x), 0.2)
        return nn.Conv(self.channels, (3, 3), param_dtype=self.cfg.dtype)(x)


translate = lambda params, images, cfg: jnp.tanh(Net(cfg, 3).apply(params, images))  # noqa: E731
judge = lambda params, images, cfg: Net(cfg, 1).apply(params, images)  # noqa: E731


def init(key, cfg):
    picture = jnp.zeros((1, cfg.image_size, cfg.image_size, 3), cfg.dtype)
    shapes = {"a2b": 3, "b2a": 3, "judge_a": 1, "judge_b": 1}
    keys = dict(zip(shapes, jax.random.split(key, 4), strict=True))
    params = {name: Net(cfg, channels).init(keys[name], picture) for name, channels in shapes.items()}
    # Zeros until pictures have come: a discriminator is shown grey ones for the first few steps.
    history = jnp.zeros((cfg.history, *picture.shape[1:]), cfg.dtype)
    return {
        "params": params,
        "opt_state": jax.tree.map(optax.adam(cfg.learning_rate, 0.5).init, params, is_leaf=lambda x: "params" in x),
        "history": {"a": history, "b": jnp.copy(history)},
    }


def remember(history, fakes, key, axis_name):
    """(history, what is shown for each fake): half of them are kept, and one from the past is shown for each.

    The history is the global batch's, so that every device has the same.
    """
    fakes = layers.global_batch(fakes, axis_name)
    n = min(len(fakes), len(history))
    places = jax.random.permutation(jax.random.fold_in(key, 0), len(history))[:n]
    swap = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.5, (n, 1, 1, 1))
    old, new = history[places], fakes[:n]
    shown = jnp.concatenate([jnp.where(swap, old, new), fakes[n:]])
    return history.at[places].set(jnp.where(swap, new, old)), layers.local_part(shown, axis_name)


def train_step(state, batch, key, cfg, axis_name=None):
    real = {name: batch[name]["image"].astype(cfg.dtype) for name in "ab"}
    params = state["params"]

    def gen_loss(gens):
        fake = {"b": translate(gens["a2b"], real["a"], cfg), "a": translate(gens["b2a"], real["b"], cfg)}
        again = {"a": translate(gens["b2a"], fake["b"], cfg), "b": translate(gens["a2b"], fake["a"], cfg)}
        fooled = sum(jnp.mean((judge(params[f"judge_{x}"], fake[x], cfg) - 1) ** 2) for x in "ab")
        cycle = sum(jnp.mean(jnp.abs(again[x] - real[x])) for x in "ab")
        return fooled + cfg.cycle * cycle, (fake, cycle)

    gens = {name: params[name] for name in ("a2b", "b2a")}
    (g_loss, (fake, cycle)), gradients = jax.value_and_grad(gen_loss, has_aux=True)(gens)
    history, shown = {}, {}
    for i, x in enumerate("ab"):
        history[x], shown[x] = remember(state["history"][x], fake[x], jax.random.fold_in(key, i), axis_name)

    def judge_loss(judges):
        losses = [(judge(judges[f"judge_{x}"], real[x], cfg) - 1) ** 2 for x in "ab"]
        losses += [judge(judges[f"judge_{x}"], shown[x], cfg) ** 2 for x in "ab"]
        return sum(map(jnp.mean, losses)) / 2

    judges = {name: params[name] for name in ("judge_a", "judge_b")}
    d_loss, more = jax.value_and_grad(judge_loss)(judges)
    new, opt_state = {}, {}
    for name, gradient in layers.pmean(gradients | more, axis_name).items():
        updates, opt_state[name] = optax.adam(cfg.learning_rate, 0.5).update(gradient, state["opt_state"][name])
        new[name] = optax.apply_updates(params[name], updates)
    metrics = {"loss/gen": g_loss, "loss/disc": d_loss, "loss/cycle": cycle}
    return {"params": new, "opt_state": opt_state, "history": history}, layers.pmean(metrics, axis_name)


requests = lambda key, n, cfg, examples: examples["a"]["image"]  # noqa: E731
requests_of = lambda pictures, cfg: pictures  # noqa: E731
judged = lambda cfg: ("to b", "b")  # noqa: E731
generator = lambda state, cfg: {name: state["params"][name] for name in ("a2b", "b2a")}  # noqa: E731


def sample(variables, pictures, cfg):
    pictures = pictures.astype(cfg.dtype)
    translated = translate(variables["a2b"], pictures, cfg)
    return {"a": pictures, "to b": translated, "back": translate(variables["b2a"], translated, cfg)}
