"""R3GAN in PyTorch, the reference of the parity tests; it computes in the dtype of its weights."""

import itertools
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def leaky(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return functional.leaky_relu(x + bias[:, None, None], 0.2)


class Block(nn.Module):
    def __init__(self, width: int, expansion: int, group_size: int):
        super().__init__()
        inner = expansion * width
        self.groups = inner // min(group_size, inner)
        self.expand = nn.Conv2d(width, inner, 1, bias=False)
        self.bias1 = nn.Parameter(torch.zeros(inner))
        self.grouped = nn.Conv2d(inner, inner, 3, padding=1, groups=self.groups, bias=False)
        self.bias2 = nn.Parameter(torch.zeros(inner))
        self.project = nn.Conv2d(inner, width, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.grouped(leaky(self.expand(x), self.bias1))
        return x + self.project(leaky(y, self.bias2))


def filtered(x: torch.Tensor, up: bool) -> torch.Tensor:
    """Twice or half the size by the filter [1, 3, 3, 1], depthwise."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype)
    kernel = torch.outer(line, line)[None, None].expand(x.shape[1], 1, 4, 4)
    if up:
        return functional.conv_transpose2d(x, kernel / 16, stride=2, padding=1, groups=x.shape[1])
    return functional.conv2d(x, kernel / 64, stride=2, padding=1, groups=x.shape[1])


class Generator(nn.Module):
    def __init__(self, widths, blocks, group_size, latent_dim, channels, classes=0, expansion=2):
        super().__init__()
        self.embed = nn.Parameter(torch.zeros(classes, latent_dim)) if classes else None
        self.basis = nn.Parameter(torch.zeros(widths[0], 4, 4))
        self.latent = nn.Linear(2 * latent_dim if classes else latent_dim, widths[0], bias=False)
        pairs = itertools.pairwise(widths)
        self.widen = nn.ModuleList(
            [nn.Identity() if a == b else nn.Conv2d(a, b, 1, bias=False) for a, b in ((0, 0), *pairs)]
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*[Block(width, expansion, group_size) for _ in range(blocks)]) for width in widths
        )
        self.to_picture = nn.Conv2d(widths[-1], channels, 1, bias=False)

    def forward(self, z: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        if self.embed is not None:
            z = torch.cat([z, self.embed[label]], 1)
        x = self.latent(z)[:, :, None, None] * self.basis
        for i, (widen, stage) in enumerate(zip(self.widen, self.stages, strict=True)):
            x = stage(filtered(widen(x), up=True) if i > 0 else x)
        return self.to_picture(x)


class Discriminator(nn.Module):
    def __init__(self, widths, blocks, group_size, channels, classes=0, expansion=2):
        super().__init__()
        widths = list(reversed(widths))
        self.from_picture = nn.Conv2d(channels, widths[0], 1, bias=False)
        self.stages = nn.ModuleList(
            nn.Sequential(*[Block(width, expansion, group_size) for _ in range(blocks)]) for width in widths
        )
        pairs = itertools.pairwise(widths)
        self.widen = nn.ModuleList([nn.Identity() if a == b else nn.Conv2d(a, b, 1, bias=False) for a, b in pairs])
        self.basis = nn.Conv2d(widths[-1], widths[-1], 4, groups=widths[-1], bias=False)
        self.judge = nn.Linear(widths[-1], widths[-1] if classes else 1, bias=False)
        self.embed = nn.Parameter(torch.zeros(classes, widths[-1])) if classes else None

    def forward(self, x: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        x = self.from_picture(x)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i < len(self.widen):
                x = self.widen[i](filtered(x, up=False))
        x = self.judge(self.basis(x).flatten(1))
        return x[:, 0] if self.embed is None else (x * self.embed[label]).sum(1)


def penalty(logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """|grad D|^2 of each picture, to be differentiated again."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3))


def cosine(images: int, total: int, first: float, last: float) -> float:
    share = 0.5 - 0.5 * math.cos(math.pi * min(images / total, 1.0))
    return first + share * (last - first)


class Trainer:
    """Both networks, their optimizers and the generator's average; pairs: those of the Config by their names."""

    def __init__(self, gen: Generator, disc: Discriminator, average: Generator, total: int, pairs: dict):
        self.gen, self.disc, self.average, self.total, self.pairs = gen, disc, average, total, pairs
        self.optimizers = [torch.optim.Adam(each.parameters(), betas=(0.0, 0.9), eps=1e-8) for each in (gen, disc)]
        self.images = 0

    def step(self, disc_part, gen_part, change=lambda images, which, probability: images) -> dict[str, float]:
        """Each part: latents, real pictures, labels or None. change: augments, which: 0 to 3, in the order of use."""
        now = {name: cosine(self.images, self.total, *pair) for name, pair in self.pairs.items()}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"], group["betas"] = now["learning_rate"], (0.0, now["beta2"])
        probability = now["augment_probability"]
        on_gen, on_disc = self.optimizers

        z, real, label = disc_part
        real = real.clone().requires_grad_()
        with torch.no_grad():
            fake = self.gen(z, label)
        fake.requires_grad_()
        real_logits = self.disc(change(real, 0, probability), label)
        fake_logits = self.disc(change(fake, 1, probability), label)
        r1, r2 = penalty(real_logits, real), penalty(fake_logits, fake)
        adversarial = functional.softplus(fake_logits - real_logits)
        on_disc.zero_grad()
        (adversarial + now["gamma"] / 2 * (r1 + r2)).mean().backward()
        on_disc.step()

        z, real, label = gen_part
        fake_logits = self.disc(change(self.gen(z, label), 3, probability), label)
        loss = functional.softplus(self.disc(change(real, 2, probability), label) - fake_logits).mean()
        on_gen.zero_grad()
        loss.backward()
        on_gen.step()

        decay = 0.5 ** (len(real) / max(now["ema_halflife_images"], 1e-8))
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.gen.parameters(), strict=True):
                mean.copy_(decay * mean + (1 - decay) * new)
        self.images += len(real)
        values = {"loss/disc": adversarial, "penalty/r1": r1, "penalty/r2": r2, "loss/gen": loss}
        return {name: value.mean().item() for name, value in values.items()}


def named_weights(network: Generator | Discriminator) -> dict[str, torch.Tensor]:
    """By the names of the JAX network's tree, slashes between its parts; the order of axes is PyTorch's."""
    drawn: dict[str, Any] = {}
    is_gen = isinstance(network, Generator)
    for i, stage in enumerate(network.stages):
        side = 4 << (i if is_gen else len(network.stages) - 1 - i)
        for j, block in enumerate(stage):
            for name in ("expand", "grouped", "project"):
                drawn[f"{side}x{side}_block{j}/{name}"] = getattr(block, name).weight
            for name in ("bias1", "bias2"):
                drawn[f"{side}x{side}_block{j}/{name}"] = getattr(block, name)
    for i, widen in enumerate(network.widen):
        if isinstance(widen, nn.Conv2d):
            side = 4 << (i if is_gen else len(network.stages) - 1 - i)
            drawn[f"{'to' if is_gen else 'from'}_{side}x{side}"] = widen.weight
    if is_gen:
        drawn |= {"basis": network.basis, "latent": network.latent.weight, "to_picture": network.to_picture.weight}
    else:
        drawn |= {
            "basis": network.basis.weight,
            "judge": network.judge.weight,
            "from_picture": network.from_picture.weight,
        }
    if network.embed is not None:
        drawn["embed"] = network.embed
    return drawn


def from_ours(name: str, value):
    """A weight of the JAX network as the PyTorch network has it, a NumPy array."""
    last = name.rsplit("/", 1)[-1]
    if last in ("bias1", "bias2", "embed"):
        return value
    if last == "basis":
        return value.transpose(2, 0, 1)
    if last == "grouped":
        return value.transpose(3, 2, 0, 1)
    return value.T


def load(network: Generator | Discriminator, ours: dict) -> None:
    """ours: {name: NumPy array} of the JAX network, whose names must be the network's."""
    weights = named_weights(network)
    assert set(weights) == set(ours), set(weights) ^ set(ours)
    for name, weight in weights.items():
        weight.data = torch.tensor(from_ours(name, ours[name]).copy()).reshape(weight.shape)
