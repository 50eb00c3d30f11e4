"""The generators of pytorch-CycleGAN-and-pix2pix in PyTorch: the same parts in the same places, so the same names."""

import functools

import torch
from torch import nn

PADS = {"reflect": [nn.ReflectionPad2d(1)], "zero": []}


def instance(affine=False, track=False):
    """`--norm instance`; of files of 2017 and 2018 with scales and shifts, or statistics that test.py does not use."""
    return functools.partial(nn.InstanceNorm2d, affine=affine, track_running_stats=track)


class Block(nn.Module):
    def __init__(self, dim, padding, norm, dropout, bias):
        super().__init__()

        def convolution():
            return [*PADS[padding], nn.Conv2d(dim, dim, 3, padding=int(padding == "zero"), bias=bias), norm(dim)]

        drop = [nn.Dropout(0.5)] if dropout else []
        self.conv_block = nn.Sequential(*convolution(), nn.ReLU(), *drop, *convolution())

    def forward(self, x):
        return x + self.conv_block(x)


class ResNet(nn.Module):
    """first: of 2017, with zeros around the 7x7 convolutions in the place of parts that pad."""

    def __init__(self, width, blocks, norm, padding="reflect", dropout=False, bias=True, first=False, channels=(3, 3)):
        super().__init__()
        pad = [] if first else [nn.ReflectionPad2d(3)]
        ends = 3 if first else 0
        parts = [*pad, nn.Conv2d(channels[0], width, 7, padding=ends, bias=bias), norm(width), nn.ReLU()]
        for c in (width, 2 * width):
            parts += [nn.Conv2d(c, 2 * c, 3, 2, 1, bias=bias), norm(2 * c), nn.ReLU()]
        parts += [Block(4 * width, padding, norm, dropout, bias) for _ in range(blocks)]
        for c in (4 * width, 2 * width):
            parts += [nn.ConvTranspose2d(c, c // 2, 3, 2, 1, output_padding=1, bias=bias), norm(c // 2), nn.ReLU()]
        self.model = nn.Sequential(*parts, *pad, nn.Conv2d(width, channels[1], 7, padding=ends), nn.Tanh())

    def forward(self, x):
        return self.model(x)


class Level(nn.Module):
    def __init__(self, outer, inner, norm, within=None, inputs=None, dropout=False):
        super().__init__()
        self.outermost = inputs is not None
        down = nn.Conv2d(inputs if self.outermost else outer, inner, 4, 2, 1)
        up = nn.ConvTranspose2d(inner * (1 if within is None else 2), outer, 4, 2, 1)
        if self.outermost:
            parts = [down, within, nn.ReLU(), up, nn.Tanh()]
        elif within is None:
            parts = [nn.LeakyReLU(0.2), down, nn.ReLU(), up, norm(outer)]
        else:
            parts = [nn.LeakyReLU(0.2), down, norm(inner), within, nn.ReLU(), up, norm(outer)]
        self.model = nn.Sequential(*parts, *([nn.Dropout(0.5)] if dropout else []))

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class UNet(nn.Module):
    """depth from 5 up; dropout in the levels of full width but the innermost."""

    def __init__(self, width, depth, norm, dropout=False, channels=(3, 3)):
        super().__init__()
        level = Level(8 * width, 8 * width, norm)
        for _ in range(depth - 5):
            level = Level(8 * width, 8 * width, norm, level, dropout=dropout)
        for times in (4, 2, 1):
            level = Level(times * width, 2 * times * width, norm, level)
        self.model = Level(channels[1], width, norm, level, inputs=channels[0])

    def forward(self, x):
        return self.model(x)


def random(net, seed=0):
    """The same network with random weights that leave no part without effect, and running statistics of no use."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            spread = 0.5 if parameter.ndim == 1 else (2 / parameter[0].numel()) ** 0.5
            parameter.copy_(spread * torch.randn_like(parameter) + (parameter.ndim == 1))
        for name, buffer in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(1 + torch.rand_like(buffer))
    return net


def painted(net, images):
    """Of (b, h, w, c) in NumPy, as test.py does it: without dropout, each picture normalised by itself."""
    for module in net.modules():
        module.train(not isinstance(module, nn.Dropout))
    with torch.no_grad():
        return net(torch.tensor(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
