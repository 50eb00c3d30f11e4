"""The network of fast style transfer in PyTorch, laid out as the common example `fast_neural_style` has it.

Weights are copied in from the tree of `ImageTransform`; conditional instance normalisation is written out.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Layer(nn.Module):
    """Reflection padding, convolution and, but for the last, instance normalisation by blended scales and shifts."""

    def __init__(self, weights, stride=1, up=None):
        super().__init__()
        self.stride, self.up = stride, up
        order = (2, 3, 0, 1) if up == "transposed" else (3, 2, 0, 1)
        self.kernel = nn.Parameter(torch.tensor(np.array(weights["kernel"])).permute(order).contiguous())
        self.bias = nn.Parameter(torch.tensor(np.array(weights["bias"])))
        if "scale" in weights:
            self.scale, self.shift = (nn.Parameter(torch.tensor(np.array(weights[x]))) for x in ("scale", "shift"))

    def forward(self, x, style):
        if self.up == "transposed":
            x = F.conv_transpose2d(x, self.kernel, self.bias, stride=2, padding=1, output_padding=1)
        else:
            x = F.interpolate(x, scale_factor=2, mode="nearest") if self.up else x
            x = F.pad(x, [self.kernel.shape[-1] // 2] * 4, mode="reflect")
            x = F.conv2d(x, self.kernel, self.bias, stride=self.stride)
        if not hasattr(self, "scale"):
            return x
        scale, shift = ((style @ y)[:, :, None, None] for y in (self.scale, self.shift))
        return F.instance_norm(x) * scale + shift  # epsilon 1e-5


class TransformerNet(nn.Module):
    def __init__(self, params, blocks, upsampling, output="tanh"):
        super().__init__()
        self.output = output
        down = [Layer(params["down1"]), Layer(params["down2"], 2), Layer(params["down3"], 2)]
        self.down = nn.ModuleList(down)
        self.firsts = nn.ModuleList([Layer(params[f"block{i + 1}"]["first"]) for i in range(blocks)])
        self.seconds = nn.ModuleList([Layer(params[f"block{i + 1}"]["second"]) for i in range(blocks)])
        self.up = nn.ModuleList([Layer(params[name], up=upsampling) for name in ("up1", "up2")])
        self.out = Layer(params["out"])

    def forward(self, images, style):
        """(b, 3, h, w) in [-1, 1], (b, styles) -> (b, 3, h, w)."""
        h, w = images.shape[2:]
        x = F.pad(images, (0, -w % 4, 0, -h % 4), mode="reflect")
        for layer in self.down:
            x = F.relu(layer(x, style))
        for first, second in zip(self.firsts, self.seconds, strict=True):
            x = x + second(F.relu(first(x, style)), style)
        for layer in self.up:
            x = F.relu(layer(x, style))
        x = self.out(x, style)[:, :, :h, :w]
        return torch.tanh(x) if self.output == "tanh" else x.clamp(-1, 1)

    def tree(self, read):
        """What `read` makes of each parameter (or its gradient), as the tree of `ImageTransform`, in NumPy."""

        def of(layer):
            kernel = read(layer.kernel).detach().numpy()
            found = {"kernel": kernel.transpose((2, 3, 0, 1) if layer.up == "transposed" else (2, 3, 1, 0))}
            names = [name for name in ("bias", "scale", "shift") if hasattr(layer, name)]
            return found | {name: read(getattr(layer, name)).detach().numpy() for name in names}

        tree = {f"down{i + 1}": of(layer) for i, layer in enumerate(self.down)}
        for i, halves in enumerate(zip(self.firsts, self.seconds, strict=True), start=1):
            tree[f"block{i}"] = {"first": of(halves[0]), "second": of(halves[1])}
        return tree | {"up1": of(self.up[0]), "up2": of(self.up[1]), "out": of(self.out)}
