"""Deep Image Prior in PyTorch, from given weights and input: the other side of experiments/deep_image_prior.py.

The network is that of tests/torch_deep_image_prior.py, which tests prove equal to ours. It begins with our weights and
our input; the noise that each step adds to it is PyTorch's own, so that the two part where rounding has driven them
apart or noise differs, and are compared by what comes out.
"""

import sys
from collections.abc import Callable
from typing import Any

import machine
import numpy as np

sys.path.insert(1, str(machine.ROOT / "tests"))

import torch
import torch_deep_image_prior as reference

from ganstyle_jax.restore.deep_image_prior import NETWORK

Looked = Callable[[int, np.ndarray], None]


def restore(
    params: Any, z: np.ndarray, measured: np.ndarray, mask: np.ndarray | None, cfg: Any, looked: Looked, every: int
) -> np.ndarray:
    """The picture after cfg.steps, (h, w, c) in [-1, 1]: the running mean where cfg has one, else the last.

    params: ours. z: (1, H, W, depth). measured, mask: as `deep_image_prior.init` takes them. looked: is told the number
    of steps and the picture that would be returned, every so many steps. float32, on all cores that it may use.
    """
    torch.set_num_threads(machine.cores())
    torch.manual_seed(0)
    network: Any = reference.Network(**{name: getattr(cfg, name) for name in NETWORK})
    network = network.to(memory_format=torch.channels_last)
    network.load(params)
    adam = torch.optim.Adam(network.parameters(), lr=cfg.learning_rate, fused=True)
    factor = cfg.scale if cfg.task == "super-resolve" else None
    wanted, given, input_ = (_nchw(x) for x in ((measured[None] + 1) / 2, np.ones((1, 1, 1, 1)), z))
    if mask is not None:
        given = _nchw(mask.reshape(1, *mask.shape[:2], 1))
    height, width = (side * (factor or 1) for side in measured.shape[:2])
    noise, average = torch.zeros_like(input_), None
    for step in range(cfg.steps):
        adam.zero_grad()
        seen = input_ + cfg.input_noise * noise.normal_() if cfg.input_noise else input_
        picture = network(seen)[:, :, :height, :width]
        reference.loss(picture, wanted, None if mask is None else given, factor, cfg.tv_weight).backward()
        adam.step()
        made, keep = picture.detach(), cfg.averaging or 0.0
        average = made if average is None else keep * average + (1 - keep) * made
        if (step + 1) % every == 0 or step + 1 == cfg.steps:
            looked(step + 1, _shown(average))
    assert average is not None
    return _shown(average)


def _nchw(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _shown(x: torch.Tensor) -> np.ndarray:
    return 2 * x[0].permute(1, 2, 0).clamp(0, 1).numpy() - 1
