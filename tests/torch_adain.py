"""AdaIN in PyTorch, for parity: written from the paper and the layouts of the common PyTorch version, not from ours."""

import torch
import torch.nn.functional as F
from torch import nn


def vgg_normalised(blocks, dtype=torch.float32) -> nn.Sequential:
    """The layout of vgg_normalised.pth, of any widths: a 1x1 convolution of the colours, then reflected borders."""
    layers, before = [nn.Conv2d(3, 3, 1)], 3
    for i, block in enumerate(blocks):
        layers += [nn.MaxPool2d(2, ceil_mode=True)] if i else []
        for channels in block:
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(before, channels, 3), nn.ReLU()]
            before = channels
    return nn.Sequential(*layers).to(dtype)


def decoder(channels: list[tuple[int, int]], ups: set[int], dtype=torch.float32) -> nn.Sequential:
    """The layout of decoder.pth: convolutions of these channels, an Upsample after those numbered in `ups`."""
    layers = []
    for i, (before, after) in enumerate(channels):
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(before, after, 3)]
        layers += [nn.ReLU()] if i < len(channels) - 1 else []
        layers += [nn.Upsample(scale_factor=2, mode="nearest")] if i in ups else []
    return nn.Sequential(*layers).to(dtype)


def moments(x, unbiased=False):
    flat = x.flatten(2)
    return flat.mean(2), (flat.var(2, unbiased=unbiased) + 1e-5).sqrt()


def adain(content, style, unbiased=False):
    (mean, std), (wanted_mean, wanted_std) = moments(content, unbiased), moments(style, unbiased)
    normal = (content - mean[..., None, None]) / std[..., None, None]
    return normal * wanted_std[..., None, None] + wanted_mean[..., None, None]


class Encoder:
    """An encoder of ours with copied weights, as PyTorch computes it: ReLU at the first layer of each block."""

    def __init__(self, params, channels, first_padding):
        self.params = {
            name: {part: torch.tensor(value) for part, value in layer.items()} for name, layer in params.items()
        }
        self.channels, self.first_padding = channels, first_padding

    def __call__(self, x):
        found = []
        colours = self.params["input"]
        x = torch.einsum("bchw,cd->bdhw", x, colours["kernel"]) + colours["bias"][:, None, None]
        for i, block in enumerate(self.channels, start=1):
            x = F.max_pool2d(x, 2) if i > 1 else x
            for j in range(1, len(block) + 1):
                layer = self.params[f"conv{i}_{j}"]
                mode = "reflect" if (i, j) == (1, 1) and self.first_padding == "reflect" else "constant"
                x = F.conv2d(
                    F.pad(x, (1, 1, 1, 1), mode=mode), layer["kernel"].permute(3, 2, 0, 1), layer["bias"]
                ).relu()
                if j == 1:
                    found.append(x)
                if (i, j) == (4, 1):
                    return found

    def behind_head(self, x, i):
        head = self.params[f"conv{i}_1"].get("head")
        return x if head is None else torch.einsum("bchw,cd->bdhw", x, head)


def losses(encoder, decoder, content, style):
    style = encoder(style)
    target = adain(encoder(content)[-1], style[-1])
    result = encoder(decoder(target))
    found, wanted = encoder.behind_head(result[-1], 4), encoder.behind_head(target, 4)
    of_content = ((found - wanted).pow(2).flatten(1).sum(1) / wanted.pow(2).flatten(1).sum(1)).mean()
    of_style = 0
    for i in range(4):
        (m, s), (wm, ws) = (moments(encoder.behind_head(x[i], i + 1)) for x in (result, style))
        of_style = of_style + (((m - wm).pow(2) + (s - ws).pow(2)).sum(1) / (wm.pow(2) + ws.pow(2)).sum(1)).mean()
    return of_content, of_style
