"""Deep Image Prior in PyTorch, for parity: written from the paper and its supplement, with biases before BatchNorm."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def convolution(before: int, after: int, size: int, stride: int = 1) -> nn.Sequential:
    layers = [nn.Conv2d(before, after, size, stride), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*([nn.ReflectionPad2d(size // 2)] if size > 1 else []), *layers)


class Scale(nn.Module):
    """Half the size, back again, and what is deeper in between."""

    def __init__(self, channels, skip, upsampling, depth, kernel_down, pointwise):
        super().__init__()
        c, s, deeper = channels[0], skip[0], channels[min(1, len(channels) - 1)]
        self.down, self.inner = convolution(depth, c, kernel_down, 2), convolution(c, c, kernel_down)
        self.skip = convolution(depth, s, 1) if s else None
        rest = channels[1:], skip[1:], upsampling[1:]
        self.deeper = Scale(*rest, c, kernel_down, pointwise) if len(channels) > 1 else nn.Identity()
        self.enlarge = nn.Upsample(scale_factor=2, mode=upsampling[0])
        self.joined = nn.BatchNorm2d(s + deeper)
        self.up = convolution(s + deeper, c, 3)
        self.point = convolution(c, c, 1) if pointwise else nn.Identity()

    def forward(self, x):
        y = self.enlarge(self.deeper(self.inner(self.down(x))))
        y = y if self.skip is None else torch.cat([self.skip(x), y], 1)
        return self.point(self.up(self.joined(y)))


class Network(nn.Module):
    """(b, depth, h, w) to (b, colours, h, w) in [0, 1]."""

    def __init__(self, depth=32, channels=(128,) * 5, skip=(4,) * 5, kernel_down=3, pointwise=True, upsampling=None):
        super().__init__()
        self.scales = Scale(channels, skip, upsampling or ("bilinear",) * len(channels), depth, kernel_down, pointwise)
        self.out = nn.Conv2d(channels[0], 3, 1)

    def forward(self, x):
        return self.out(self.scales(x)).sigmoid()

    def by_name(self) -> dict[str, torch.Tensor]:
        """Parameters by our names, as "scale1/down/kernel"; biases that BatchNorm takes away have none."""
        found, scale, i = {"out/kernel": self.out.weight, "out/bias": self.out.bias}, self.scales, 1
        while isinstance(scale, Scale):
            for name in ("down", "inner", "skip", "up", "point"):
                if isinstance(layer := getattr(scale, name), nn.Sequential):
                    (kernel,) = (x.weight for x in layer if isinstance(x, nn.Conv2d))
                    (norm,) = (x for x in layer if isinstance(x, nn.BatchNorm2d))
                    parts = {"kernel": kernel, "scale": norm.weight, "shift": norm.bias}
                    found |= {f"scale{i}/{name}/{part}": x for part, x in parts.items()}
            found |= {f"scale{i}/joined/scale": scale.joined.weight, f"scale{i}/joined/shift": scale.joined.bias}
            scale, i = scale.deeper, i + 1
        return found

    def load(self, params) -> None:
        """Ours, {"scale1": {"down": {"kernel": ..}}}, as copies."""
        with torch.no_grad():
            for name, x in self.by_name().items():
                value = params
                for part in name.split("/"):
                    value = value[part]
                value = torch.tensor(value)
                x.copy_(value.permute(3, 2, 0, 1) if value.ndim == 4 else value)

    def values(self) -> dict[str, "torch.Tensor"]:
        """The inverse: arrays laid out as ours, by names."""
        return self._as_ours(self.by_name())

    def gradients(self) -> dict[str, "torch.Tensor"]:
        """As `values`, after a backward pass."""
        return self._as_ours({name: x.grad for name, x in self.by_name().items()})

    @staticmethod
    def _as_ours(found) -> dict[str, "torch.Tensor"]:
        return {name: (x.permute(2, 3, 1, 0) if x.ndim == 4 else x).detach().clone() for name, x in found.items()}


def lanczos(x: torch.Tensor, factor: int) -> torch.Tensor:
    """(b, c, h, w) to a smaller one by the two-dimensional kernel, with the border's pixels repeated around."""
    taps, centre = [], (4 * factor - 1) / 2
    for i in range(4 * factor):
        d = math.pi * (i - centre) / factor
        taps.append(2 * math.sin(d) * math.sin(d / 2) / d**2)
    line = torch.tensor(taps, dtype=x.dtype)
    kernel = torch.outer(line, line)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1, -1)
    pad = (4 * factor - factor) // 2
    return F.conv2d(F.pad(x, (pad,) * 4, mode="replicate"), kernel, stride=factor, groups=x.shape[1])


def loss(picture, measured, mask=None, factor=None, tv_weight=0.0):
    """Pictures (1, c, h, w) in [0, 1]."""
    found = picture if factor is None else lanczos(picture, factor)
    value = F.mse_loss(found, measured) if mask is None else F.mse_loss(found * mask, measured * mask)
    if tv_weight:
        right, below = picture[..., :-1, 1:] - picture[..., :-1, :-1], picture[..., 1:, :-1] - picture[..., :-1, :-1]
        value = value + tv_weight * (right**2 + below**2 + 1e-8).sqrt().mean()
    return value
