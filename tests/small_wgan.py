"""A small Wasserstein GAN of two perceptrons (Arjovsky et al. 2017, arXiv:1701.07875), written outside the package."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ganstyle_jax import layers, losses
from ganstyle_jax.data import Wanted


@dataclasses.dataclass(frozen=True)
class Config:
    image_size: int = 16  # pixels
    channels: int | None = None  # 1 or 3; None: as many as the data has
    latent_dim: int = 8  # numbers in a latent z
    width: int = 32  # hidden units of either network
    critic_steps: int = 2  # critic updates in a training step
    clip: float = 0.01  # the critic's weights stay in [-clip, clip]
    learning_rate: float = 5e-4
    dtype: str = "float32"  # or float64


sources = lambda cfg: {"real": Wanted(cfg.image_size, cfg.channels, batches=cfg.critic_steps)}  # noqa: E731
settle = lambda cfg, found: dataclasses.replace(cfg, channels=found["real"].image_shape[-1])  # noqa: E731


def networks(cfg):
    def perceptron(outputs):
        hidden, last = (nn.Dense(n, param_dtype=cfg.dtype) for n in (cfg.width, outputs))
        return nn.Sequential([lambda x: x.reshape(len(x), -1), hidden, nn.leaky_relu, last])

    return perceptron(cfg.image_size**2 * (cfg.channels or 3)), perceptron(1), optax.rmsprop(cfg.learning_rate)


def init(key, cfg):
    gen, critic, optimizer = networks(cfg)
    images, gen_params = gen.init_with_output(jax.random.fold_in(key, 0), requests(key, 1, cfg))
    both = {"gen": gen_params, "critic": critic.init(jax.random.fold_in(key, 1), images)}
    return {name: {"params": params, "opt_state": optimizer.init(params)} for name, params in both.items()}


def train_step(state, batch, key, cfg, axis_name=None):
    images = batch["real"]["image"].astype(cfg.dtype)
    images = images.reshape(-1, cfg.critic_steps, *images.shape[1:])  # [:, i] for update i: no picture changes device
    critic, optimizer = networks(cfg)[1:]

    def fakes(params, i):
        shape = (len(images), cfg.latent_dim)
        z = layers.global_normal(jax.random.fold_in(key, i), shape, axis_name, images.dtype)
        return sample(params, z, cfg)

    def critic_loss(params, real, fake):
        return losses.discriminator_wasserstein(critic.apply(params, real), critic.apply(params, fake)).mean()

    def gen_loss(params, critic_params):
        return losses.generator_wasserstein(critic.apply(critic_params, fakes(params, cfg.critic_steps))).mean()

    def descend(net, loss, *args):
        value, gradients = layers.pmean(jax.value_and_grad(loss)(net["params"], *args), axis_name)
        updates, opt_state = optimizer.update(gradients, net["opt_state"])
        return {"params": optax.apply_updates(net["params"], updates), "opt_state": opt_state}, value

    gen, net = state["gen"], state["critic"]
    for i in range(cfg.critic_steps):
        net, c_loss = descend(net, critic_loss, images[:, i], fakes(gen["params"], i))
        net["params"] = jax.tree.map(lambda w: jnp.clip(w, -cfg.clip, cfg.clip), net["params"])
    gen, g_loss = descend(gen, gen_loss, net["params"])
    return {"gen": gen, "critic": net}, {"loss/critic": c_loss, "loss/gen": g_loss}


requests = lambda key, n, cfg, examples=None: jax.random.normal(key, (n, cfg.latent_dim), cfg.dtype)  # noqa: E731
generator = lambda state, cfg: state["gen"]["params"]  # noqa: E731


def sample(params, z, cfg):
    return jnp.tanh(networks(cfg)[0].apply(params, z)).reshape(-1, cfg.image_size, cfg.image_size, cfg.channels or 3)
