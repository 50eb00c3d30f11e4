"""Style in one pass, in small (Huang & Belongie 2017, arXiv:1703.06868): two sources and a frozen network.

Differs: the frozen network is one random convolution, and the decoder another. Written outside the package.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from ganstyle_jax import layers
from ganstyle_jax.data import Wanted


@dataclasses.dataclass(frozen=True)
class Config:
    image_size: int = 16  # pixels of contents
    style_size: tuple[int, int] = (12, 20)  # (h, w) of styles
    features: int = 12  # channels of the frozen network
    content_weight: float = 1.0
    learning_rate: float = 1e-3
    dtype: str = "float32"  # or float64


def sources(cfg):
    return {"content": Wanted(cfg.image_size), "style": Wanted(cfg.style_size)}


def constants(cfg):
    kernel = jax.random.normal(jax.random.key(7), (3, 3, 3, cfg.features), cfg.dtype)
    return {"encoder": kernel / 27**0.5}


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def encode(encoder, images):
    return jax.nn.relu(convolve(images, encoder))


def moments(x):
    return x.mean((1, 2), keepdims=True), x.std((1, 2), keepdims=True) + 1e-5


def adain(content, style):
    """Content's features with the means and deviations of style's (eq. 8)."""
    (mean, std), (wanted_mean, wanted_std) = moments(content), moments(style)
    return (content - mean) / std * wanted_std + wanted_mean


def init(key, cfg, constants):
    decoder = 0.1 * jax.random.normal(key, (3, 3, cfg.features, 3), cfg.dtype)
    return {"params": decoder, "opt_state": optimizer(cfg).init(decoder)}


def optimizer(cfg):
    return optax.adam(cfg.learning_rate)


def train_step(state, batch, key, cfg, constants, axis_name=None):
    content, style = (encode(constants["encoder"], batch[x]["image"].astype(cfg.dtype)) for x in ("content", "style"))
    target = adain(content, style)

    def loss(decoder):
        found = encode(constants["encoder"], jnp.tanh(convolve(target, decoder)))
        of_content = jnp.mean((found - target) ** 2)
        of_style = sum(jnp.mean((a - b) ** 2) for a, b in zip(moments(found), moments(style), strict=True))
        return cfg.content_weight * of_content + of_style, {"loss/content": of_content, "loss/style": of_style}

    (_, metrics), gradient = layers.pmean(jax.value_and_grad(loss, has_aux=True)(state["params"]), axis_name)
    updates, opt_state = optimizer(cfg).update(gradient, state["opt_state"])
    return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}, metrics


def requests(key, n, cfg, examples):
    return {name: examples[name]["image"] for name in ("content", "style")}


def generator(state, cfg, constants):
    return {"decoder": state["params"], **constants}


def sample(variables, requests, cfg):
    content, style = (requests[name].astype(cfg.dtype) for name in ("content", "style"))
    target = adain(encode(variables["encoder"], content), encode(variables["encoder"], style))
    return {"content": content, "style": style, "result": jnp.tanh(convolve(target, variables["decoder"]))}


def judged(cfg):
    return "result", "style"
