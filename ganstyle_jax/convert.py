"""DCGAN weights to and from the state dicts of the common PyTorch DCGAN example (`netG`, `netD`).

There a network is one `nn.Sequential` called `main`: the generator repeats (ConvTranspose2d, BatchNorm2d, ReLU) and
ends in (ConvTranspose2d, Tanh); the discriminator is (Conv2d, LeakyReLU), repeated (Conv2d, BatchNorm2d, LeakyReLU) and
(Conv2d, Sigmoid). No convolution has a bias. Both are numbered by position, so the layers with weights are
main.0, main.1, main.3, main.4, main.6, ... in the generator and main.0, main.2, main.3, main.5, ... in the discriminator.
"""

import re
from collections.abc import Mapping

import numpy as np

from ganstyle_jax.files import UserError
from ganstyle_jax.gan import dcgan

StateDict = dict[str, np.ndarray]


def generator_to_torch(variables: Mapping, cfg: dcgan.Config) -> StateDict:
    """{"params", "batch_stats"} of `dcgan.Generator` to a state dict of `netG`."""
    params, stats = variables["params"], variables["batch_stats"]
    levels = len(cfg.hidden_channels)
    out: StateDict = {}
    for i in range(levels + 1):
        kernel = params["project"] if i == 0 else params[f"double{i}"]["kernel"]
        out[f"main.{3 * i}.weight"] = np.asarray(kernel).transpose(2, 3, 0, 1)  # (in, out, h, w)
        if i < levels:
            out |= _norm_to_torch(f"main.{3 * i + 1}", params[f"norm{i}"], stats[f"norm{i}"])
    return out


def generator_from_torch(state: StateDict, cfg: dcgan.Config) -> dict:
    """A state dict of `netG` to {"params", "batch_stats"}; raises UserError for another layout or other sizes."""
    reader = _Reader(state, cfg, "generator")
    channels = [cfg.latent_dim, *cfg.hidden_channels, cfg.channels or 3]
    params, stats = {}, {}
    levels = len(cfg.hidden_channels)
    for i in range(levels + 1):
        kernel = reader.take(f"main.{3 * i}.weight", (channels[i], channels[i + 1], 4, 4)).transpose(2, 3, 0, 1)
        if i == 0:
            params["project"] = kernel
        else:
            params[f"double{i}"] = {"kernel": kernel}
        if i < levels:
            params[f"norm{i}"], stats[f"norm{i}"] = reader.norm(f"main.{3 * i + 1}", channels[i + 1])
    reader.finish()
    return {"params": params, "batch_stats": stats}


def discriminator_to_torch(variables: Mapping, cfg: dcgan.Config) -> StateDict:
    """{"params", "batch_stats"} of `dcgan.Discriminator` to a state dict of `netD`."""
    params, stats = variables["params"], variables["batch_stats"]
    levels = len(cfg.hidden_channels)
    out: StateDict = {}
    for i in range(levels + 1):
        kernel = params["judge"] if i == levels else params[f"halve{i}"]["kernel"]
        position = max(3 * i - 1, 0)
        out[f"main.{position}.weight"] = np.asarray(kernel).transpose(3, 2, 0, 1)  # (out, in, h, w)
        if 0 < i < levels:
            out |= _norm_to_torch(f"main.{position + 1}", params[f"norm{i}"], stats[f"norm{i}"])
    return out


def discriminator_from_torch(state: StateDict, cfg: dcgan.Config) -> dict:
    """A state dict of `netD` to {"params", "batch_stats"}; raises UserError for another layout or other sizes."""
    reader = _Reader(state, cfg, "discriminator")
    channels = [cfg.channels or 3, *reversed(cfg.hidden_channels), 1]
    params, stats = {}, {}
    levels = len(cfg.hidden_channels)
    for i in range(levels + 1):
        position = max(3 * i - 1, 0)
        kernel = reader.take(f"main.{position}.weight", (channels[i + 1], channels[i], 4, 4)).transpose(2, 3, 1, 0)
        if i == levels:
            params["judge"] = kernel
        else:
            params[f"halve{i}"] = {"kernel": kernel}
        if 0 < i < levels:
            params[f"norm{i}"], stats[f"norm{i}"] = reader.norm(f"main.{position + 1}", channels[i + 1])
    reader.finish()
    return {"params": params, "batch_stats": stats}


def config_of(state: StateDict) -> tuple[str, dcgan.Config]:
    """("generator" or "discriminator", its Config), read off the shapes of a state dict."""
    kernels = {
        int(match[1]): value
        for name, value in state.items()
        if (match := re.fullmatch(r"main\.(\d+)\.weight", name)) and getattr(value, "ndim", 0) == 4
    }
    if len(kernels) < 3 or any(kernel.shape[2:] != (4, 4) for kernel in kernels.values()):
        names = ", ".join(list(state)[:4]) or "nothing"
        raise UserError(
            f"this is not a state dict of the common PyTorch DCGAN example: it holds {names}, ..., "
            "where main.0.weight, main.1.weight, ... with 4x4 kernels were expected"
        )
    ordered = [kernels[i] for i in sorted(kernels)]
    size = 2 ** len(kernels) * 2
    try:
        if 3 in kernels:  # the generator's second convolution; the discriminator has BatchNorm at 3
            first, last = ordered[0], ordered[-1]
            channels, width, latent_dim = last.shape[1], last.shape[0], first.shape[0]
            return "generator", dcgan.Config(size, channels=channels, width=width, latent_dim=latent_dim)
        return "discriminator", dcgan.Config(size, channels=ordered[0].shape[1], width=ordered[0].shape[0])
    except ValueError as error:
        raise UserError(f"a DCGAN of this shape is not supported: {error}") from None


def _norm_to_torch(prefix: str, params: Mapping, stats: Mapping) -> StateDict:
    return {
        f"{prefix}.weight": np.asarray(params["scale"]),
        f"{prefix}.bias": np.asarray(params["bias"]),
        f"{prefix}.running_mean": np.asarray(stats["mean"]),
        f"{prefix}.running_var": np.asarray(stats["var"]),
        f"{prefix}.num_batches_tracked": np.asarray(0, np.int64),  # PyTorch wants it and, at fixed momentum, ignores it
    }


class _Reader:
    """Takes tensors out of a state dict one by one, checking names and shapes, and that nothing is left over."""

    def __init__(self, state: StateDict, cfg: dcgan.Config, what: str):
        # nn.DataParallel puts "module." before every name.
        self.state = {name.removeprefix("module."): value for name, value in state.items()}
        self.what = f"{what} of {cfg.image_size} pixels, width {cfg.width}"
        self.dtype = np.dtype(cfg.param_dtype)

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self.state:
            raise UserError(f"the state dict has no {name}, which a {self.what} needs; check --image-size")
        value = np.asarray(self.state.pop(name))
        if value.shape != shape:
            raise UserError(f"{name} has shape {value.shape}, but a {self.what} needs {shape}")
        return value.astype(self.dtype)

    def norm(self, prefix: str, channels: int) -> tuple[dict, dict]:
        self.state.pop(f"{prefix}.num_batches_tracked", None)
        scale, bias = (self.take(f"{prefix}.{name}", (channels,)) for name in ("weight", "bias"))
        mean, var = (self.take(f"{prefix}.running_{name}", (channels,)) for name in ("mean", "var"))
        return {"scale": scale, "bias": bias}, {"mean": mean, "var": var}

    def finish(self) -> None:
        if self.state:
            raise UserError(f"the state dict holds {', '.join(self.state)}, which a {self.what} has no place for")
