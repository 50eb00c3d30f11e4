"""The PyTorch reference for `ganstyle_jax.gan.stylegan2` and `ganstyle_jax.nn.adaptive_augment`.

Written from the papers' equations in the plainest form: zeros are put between pixels and filtered by a 4x4 kernel, each
picture has weights of its own in a grouped convolution (or, for timings, is scaled before and after one for all),
pictures are padded, enlarged and read by `grid_sample`. Pictures are (b, c, h, w) here. Weights are nested dictionaries
of tensors, as the state of the method has them; kernels (h, w, in, out) are turned where they are used, so that their
gradients compare as they are.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

FILTER = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
SQRT2 = math.sqrt(2)


def tensors(tree, grad=True, dtype=torch.float64):
    """A tree of arrays as leaves."""
    if isinstance(tree, dict):
        return {name: tensors(part, grad, dtype) for name, part in tree.items()}
    return torch.tensor(np.array(tree), dtype=dtype, requires_grad=grad)


def leaves(tree, path=()):
    """[(path, tensor)], by the alphabet of names as JAX has it."""
    if isinstance(tree, dict):
        return [leaf for name in sorted(tree) for leaf in leaves(tree[name], (*path, name))]
    return [(path, tree)]


def to_nchw(images):
    return torch.tensor(np.array(images, np.float64).transpose(0, 3, 1, 2).copy())


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def resample(x, taps, up=1, down=1, before=0, after=0, gain=1.0):
    """Zeros between pixels, padded, filtered by the square of taps (correlated), every down-th pixel kept."""
    b, c, h, w = x.shape
    if up > 1:
        wide = x.new_zeros(b, c, h, up, w, up)
        wide[:, :, :, 0, :, 0] = x
        x = wide.reshape(b, c, h * up, w * up)
    x = F.pad(x, [before, after, before, after])
    kernel = (taps / taps.sum() * math.sqrt(gain)).to(x.dtype).expand(c, 1, 1, len(taps))
    x = F.conv2d(x, kernel, groups=c)
    return F.conv2d(x, kernel.transpose(2, 3), groups=c)[:, :, ::down, ::down]


def dense(p, x, rate=1.0, activate=False):
    y = F.linear(x, p["kernel"].t() * (rate / math.sqrt(x.shape[1])), p["bias"] * rate)
    return F.leaky_relu(y, 0.2) * SQRT2 if activate else y


def unit(x):
    return x / torch.sqrt((x**2).mean(1, keepdim=True) + 1e-8)


def mapping(p, z, label, classes, depth):
    parts = [] if z is None else [unit(z)]
    if label is not None:
        parts.append(unit(dense(p["embed"], F.one_hot(label.long(), classes).to(p["embed"]["kernel"].dtype))))
    x = torch.cat(parts, 1)
    for i in range(depth):
        x = dense(p[f"fc{i}"], x, 0.01, True)
    return x


def modulated(x, kernel, style, up=False, demodulate=True, grouped=True):
    """Each picture by weights of its own."""
    b, c, h, w = x.shape
    if not grouped:
        x, weights = x * style[:, :, None, None], kernel.permute(3, 2, 0, 1)
        if up:
            x = resample(F.conv_transpose2d(x, weights.transpose(0, 1), stride=2), FILTER, before=1, after=1, gain=4)
        else:
            x = F.conv2d(x, weights, padding=weights.shape[2] // 2)
        if demodulate:
            x = x * torch.rsqrt(style**2 @ (weights**2).sum((2, 3)).t() + 1e-8)[:, :, None, None]
        return x
    weights = kernel.permute(3, 2, 0, 1)[None] * style[:, None, :, None, None]  # (b, out, in, p, p)
    if demodulate:
        weights = weights / torch.sqrt((weights**2).sum((2, 3, 4), keepdim=True) + 1e-8)
    d, size = weights.shape[1], weights.shape[3]
    x = x.reshape(1, b * c, h, w)
    if up:
        weights = weights.transpose(1, 2).reshape(b * c, d, size, size)
        x = F.conv_transpose2d(x, weights, stride=2, groups=b)
        return resample(x.reshape(b, d, *x.shape[2:]), FILTER, before=1, after=1, gain=4)
    x = F.conv2d(x, weights.reshape(b * d, c, size, size), padding=size // 2, groups=b)
    return x.reshape(b, d, h, w)


def layer(p, x, w, noise, up=False, grouped=True):
    x = modulated(x, p["kernel"], dense(p["affine"], w), up, grouped=grouped)
    if noise is not None:
        x = x + noise[:, None] * p["noise_strength"]
    return F.leaky_relu(x + p["bias"][:, None, None], 0.2) * SQRT2


def synthesis(p, ws, noise, grouped=True):
    """ws: (b, styles, n); noise as the method has it, of tensors."""
    picture, index = None, 0
    x = p["b4"]["const"].permute(2, 0, 1).expand(len(ws), -1, -1, -1)
    for size in [1 << i for i in range(2, 2 + len(p))]:
        level, here = p[f"b{size}"], noise.get(f"b{size}", {})
        if size > 4:
            x = layer(level["conv0"], x, ws[:, index], here.get("conv0"), up=True, grouped=grouped)
            index += 1
        x = layer(level["conv1"], x, ws[:, index], here.get("conv1"), grouped=grouped)
        index += 1
        paint = level["to_picture"]
        style = dense(paint["affine"], ws[:, index]) / math.sqrt(x.shape[1])
        part = modulated(x, paint["kernel"], style, demodulate=False, grouped=grouped) + paint["bias"][:, None, None]
        if picture is not None:
            picture = resample(picture, FILTER, up=2, before=2, after=1, gain=4)
        picture = part if picture is None else picture + part
    assert index + 1 == ws.shape[1]
    return picture


def convolution(p, x, down=False, activate=True, gain=1.0):
    kernel = p["kernel"].permute(3, 2, 0, 1)
    size = kernel.shape[2]
    kernel = kernel / math.sqrt(kernel[0].numel())
    if down and size == 1:
        x = F.conv2d(resample(x, FILTER, down=2, before=1, after=1), kernel)
    elif down:
        x = F.conv2d(resample(x, FILTER, before=2, after=2), kernel, stride=2)
    else:
        x = F.conv2d(x, kernel, padding=size // 2)
    if activate:
        x = F.leaky_relu(x + p["bias"][:, None, None], 0.2) * SQRT2
    return x * gain


def deviation(x, group):
    """The group is a divisor of the batch; neighbours belong to one."""
    found = []
    for part in x.split(group):
        variance = ((part - part.mean(0)) ** 2).mean(0)
        found.append(torch.sqrt(variance + 1e-8).mean().expand(group))
    return torch.cat(found)


def discriminator(p, images, label, group, classes=None):
    x = convolution(p["from_picture"], images)
    for size in sorted((int(name[1:]) for name in p if name[0] == "b"), reverse=True):
        block = p[f"b{size}"]
        if "skip" in block:
            y = convolution(block["skip"], x, down=True, activate=False, gain=math.sqrt(0.5))
            x = convolution(block["conv1"], convolution(block["conv0"], x), down=True, gain=math.sqrt(0.5)) + y
        else:
            x = convolution(block["conv1"], convolution(block["conv0"], x), down=True)
    group = max(g for g in range(1, min(group, len(x)) + 1) if len(x) % g == 0)
    x = torch.cat([x, deviation(x, group)[:, None, None, None].expand(-1, 1, 4, 4)], 1)
    x = convolution(p["conv"], x).permute(0, 2, 3, 1).reshape(len(x), -1)
    x = dense(p["fc"], x, activate=True)
    x = dense(p["out"], x)
    if label is None:
        return x[:, 0]
    mapped = mapping(p["mapping"], None, label, classes, 8)
    return (x * mapped).sum(1) / math.sqrt(x.shape[1])


# ---------------------------------------------------------------------------------------------------------------------
# Augmentation


def mirrored(x, pad):
    """Mirrored at its borders as often as it takes."""
    side = x.shape[2]
    index = np.abs((np.arange(-pad, side + pad) + side - 1) % (2 * side - 2) - side + 1)
    return x[:, :, index][:, :, :, index]


def inverse(draws):
    """From pixels of the result to those of the picture, (b, 3, 3), from its centre."""
    b = len(next(iter(draws.values())))
    found = torch.eye(3, dtype=torch.float64).repeat(b, 1, 1)

    def matrix(entries):
        m = torch.eye(3, dtype=torch.float64).repeat(b, 1, 1)
        for (i, j), value in entries.items():
            m[:, i, j] = value
        return m

    def turn(theta):
        return matrix({(0, 0): theta.cos(), (0, 1): -theta.sin(), (1, 0): theta.sin(), (1, 1): theta.cos()})

    # What is done to the picture, in turn; the inverse of each on the right.
    if "mirrored" in draws:
        found = found @ torch.linalg.inv(matrix({(0, 0): 1 - 2 * draws["mirrored"]}))
        found = found @ torch.linalg.inv(turn(-math.pi / 2 * draws["quarters"]))
        found = found @ torch.linalg.inv(matrix({(0, 2): draws["pixels"][:, 0], (1, 2): draws["pixels"][:, 1]}))
    if "scale" in draws:
        found = found @ torch.linalg.inv(matrix({(0, 0): draws["scale"], (1, 1): draws["scale"]}))
        found = found @ torch.linalg.inv(turn(-draws["before"]))
        found = found @ torch.linalg.inv(matrix({(0, 0): draws["stretch"], (1, 1): 1 / draws["stretch"]}))
        found = found @ torch.linalg.inv(turn(-draws["after"]))
        found = found @ torch.linalg.inv(matrix({(0, 2): draws["moved"][:, 0], (1, 2): draws["moved"][:, 1]}))
    return found


def warp(x, found, taps, margins=None):
    """margins: left, top, right, bottom; beyond them zeros. None: mirrored as far as anybody could look."""
    b, c, side, _ = x.shape
    quarter = len(taps) // 4
    corners = torch.tensor([[-1.0, -1, 1, 1], [-1, 1, -1, 1]], dtype=torch.float64) * (side / 2 + len(taps) / 2)
    pad = int((found[:, :2, :2] @ corners + found[:, :2, 2:]).abs().max()) + len(taps)
    big = mirrored(x, pad)
    if margins is not None:
        left, top, right, bottom = margins
        keep = torch.zeros_like(big)
        keep[:, :, pad - top : pad + side + bottom, pad - left : pad + side + right] = 1
        big = big * keep
    big = resample(big, taps.flip(0), up=2, before=len(taps) // 2, after=len(taps) // 2 - 1, gain=4)
    found = found.clone()
    wide, size = 2 * (side + 2 * pad), 2 * (side + 2 * quarter)

    def fixed(values):
        return torch.tensor(values, dtype=torch.float64)

    double = torch.diag(fixed([2.0, 2.0, 1.0]))
    halfway = fixed([[1.0, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    found = halfway @ double @ found @ torch.linalg.inv(double) @ torch.linalg.inv(halfway)
    found = torch.diag(fixed([2 / wide, 2 / wide, 1])) @ found @ torch.diag(fixed([size / 2, size / 2, 1]))
    grid = F.affine_grid(found[:, :2], [b, c, size, size], align_corners=False)
    seen = F.grid_sample(big, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    seen = seen[:, :, 1:-1, 1:-1]
    return resample(seen, taps, down=2)


def color(x, draws):
    """One step after another on homogeneous colours."""
    b, c, h, w = x.shape
    grey = torch.full((3,), 1 / math.sqrt(3), dtype=torch.float64)
    planes = x.reshape(b, c, -1)
    if c == 1:
        planes = planes.expand(-1, 3, -1)
    planes = planes + draws["brightness"][:, None, None]
    planes = planes * draws["contrast"][:, None, None]
    luma = torch.einsum("c,bcp->bp", grey, planes)[:, None] * grey[:, None]
    planes = planes - 2 * luma * draws["flipped"][:, None, None]
    if c == 1:
        return planes.mean(1).reshape(b, 1, h, w)
    turned = []
    for plane, theta in zip(planes, draws["hue"], strict=True):  # Rodrigues' formula
        cross = torch.linalg.cross(grey[:, None].expand_as(plane), plane, dim=0)
        along = grey[:, None] * (grey @ plane)[None]
        turned.append(plane * theta.cos() + cross * theta.sin() + along * (1 - theta.cos()))
    planes = torch.stack(turned)
    luma = torch.einsum("c,bcp->bp", grey, planes)[:, None] * grey[:, None]
    planes = luma + (planes - luma) * draws["saturation"][:, None, None]
    return planes.reshape(b, c, h, w)


def bank(sym2):
    """Four filters by repeated zero insertion, (4, 43)."""
    low = np.array(sym2)
    high = low * np.array([1, -1, 1, -1])
    low, high = np.convolve(low, low[::-1]) / 2, np.convolve(high, high[::-1]) / 2
    rows = np.eye(4, 1)
    for i in (1, 2, 3):
        spread = np.zeros((4, 2 * rows.shape[1] - 1))
        spread[:, ::2] = rows
        rows = np.stack([np.convolve(row, low) for row in spread])
        middle = (rows.shape[1] - len(high)) // 2
        rows[i, middle : middle + len(high)] += high
    return torch.tensor(rows)


def bands(x, gains, sym2):
    b, c, h, w = x.shape
    power = torch.tensor([10.0, 1, 1, 1], dtype=torch.float64) / 13
    total = torch.ones(b, 4, dtype=torch.float64)
    for i in range(4):
        one = torch.ones(b, 4, dtype=torch.float64)
        one[:, i] = gains[:, i]
        total = total * one / torch.sqrt((power * one**2).sum(1, keepdim=True))
    taps = total @ bank(sym2)
    half = taps.shape[1] // 2
    x = mirrored(x, half).reshape(1, b * c, h + 2 * half, w + 2 * half)
    taps = taps[:, None].expand(b, c, -1).reshape(b * c, 1, -1)
    x = F.conv2d(x, taps[:, :, None], groups=b * c)
    return F.conv2d(x, taps[:, :, :, None], groups=b * c).reshape(b, c, h, w)


def cutout(x, size, centre):
    side = x.shape[2]
    at = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    across = (at[None] - centre[:, :1]).abs() >= size[:, None] / 2
    down = (at[None] - centre[:, 1:]).abs() >= size[:, None] / 2
    return x * (across[:, None, None, :] | down[:, None, :, None]).double()


def transform(x, draws, sym2, sym6):
    """draws: of tensors; x: (b, c, s, s)."""
    if "mirrored" in draws or "scale" in draws:
        x = warp(x, inverse(draws), torch.tensor(sym6, dtype=torch.float64))
    if "brightness" in draws:
        x = color(x, draws)
    if "bands" in draws:
        x = bands(x, draws["bands"], sym2)
    if "noise" in draws:
        x = x + draws["noise"].permute(0, 3, 1, 2)
    if "size" in draws:
        x = cutout(x, draws["size"], draws["centre"])
    return x


# ---------------------------------------------------------------------------------------------------------------------
# A training step


class Training:
    """Networks, optimizers and everything else that a step changes; one method for each of its four phases."""

    def __init__(self, gen, disc, cfg, augment, dtype=torch.float64, grouped=True):
        """gen, disc, ...: trees of arrays; augment(images, draws) -> images."""
        self.gen, self.disc, self.cfg, self.augment = (
            tensors(gen, True, dtype),
            tensors(disc, True, dtype),
            cfg,
            augment,
        )
        self.ema, self.grouped = tensors(gen, False, dtype), grouped
        self.w_avg = torch.zeros(cfg.latent_dim, dtype=dtype)
        self.path_mean = self.r1 = torch.zeros((), dtype=dtype)
        self.p, self.signs, self.step = cfg.augment_p, [], 0

        def adam(tree, interval):
            ratio = interval / (interval + 1)
            betas = cfg.beta1**ratio, cfg.beta2**ratio
            return torch.optim.Adam([x for _, x in leaves(tree)], lr=cfg.learning_rate * ratio, betas=betas, eps=1e-8)

        self.gen_adam, self.disc_adam = adam(self.gen, cfg.path_interval), adam(self.disc, cfg.r1_interval)

    def generate(self, drawn, label):
        cfg = self.cfg
        w = mapping(self.gen["mapping"], drawn["latents"], label, cfg.classes, cfg.mapping_layers)
        self.w_avg = w.detach().mean(0).lerp(self.w_avg, 0.995)
        ws = w[:, None].repeat(1, cfg.styles, 1)
        if "cut" in drawn:
            cut = int(drawn["cut"])
            other = mapping(self.gen["mapping"], drawn["others"], label, cfg.classes, cfg.mapping_layers)
            ws = torch.cat([ws[:, :cut], other[:, None].repeat(1, cfg.styles - cut, 1)], 1)
        return synthesis(self.gen["synthesis"], ws, drawn["noise"], self.grouped), ws

    def logits(self, images, draws, label):
        return discriminator(self.disc, self.augment(images, draws), label, self.cfg.group, self.cfg.classes)

    def generator_step(self, drawn, draws, label):
        self.gen_adam.zero_grad()
        images, _ = self.generate(drawn, label)
        loss = F.softplus(-self.logits(images, draws, label)).mean()
        loss.backward()
        self.gen_adam.step()
        return loss.item()

    def path_step(self, drawn, project, label):
        self.gen_adam.zero_grad()
        images, ws = self.generate(drawn, label)
        (gradient,) = torch.autograd.grad((images * project).sum() / images.shape[2], ws, create_graph=True)
        lengths = (gradient**2).sum(2).mean(1).sqrt()
        mean = self.path_mean.lerp(lengths.mean(), 0.01)
        self.path_mean = mean.detach()
        loss = (self.cfg.path_length * (lengths - mean) ** 2).mean() * self.cfg.path_interval
        (loss + 0 * images.sum()).backward()
        for _, leaf in leaves(self.gen):  # what the lengths do not depend on has a gradient of 0, and not none
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        self.gen_adam.step()

    def discriminator_step(self, drawn, real, fake_draws, real_draws, label):
        self.disc_adam.zero_grad()
        with torch.no_grad():
            fake, _ = self.generate(drawn, label)
        fake_logits, real_logits = self.logits(fake, fake_draws, label), self.logits(real, real_draws, label)
        loss = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
        loss.backward()
        self.disc_adam.step()
        self.signs.append(real_logits.detach().sign())
        return loss.item(), real_logits.mean().item(), fake_logits.mean().item()

    def r1_step(self, real, draws, label):
        self.disc_adam.zero_grad()
        real = real.clone().requires_grad_(True)
        logits = self.logits(real, draws, label)
        (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        squared = (gradient**2).sum((1, 2, 3))
        self.r1 = squared.mean().detach()
        loss = (squared * (self.cfg.r1 / 2)).mean() * self.cfg.r1_interval
        (loss + 0 * logits.sum()).backward()
        self.disc_adam.step()
        self.signs.append(logits.detach().sign())

    def end(self, batch):
        cfg = self.cfg
        halflife = cfg.ema_halflife_images
        if cfg.ema_ramp_up:
            halflife = min(halflife, 0.05 * self.step * batch)
        beta = 0.5 ** (batch / max(halflife, 1e-8))
        for (_, average), (_, now) in zip(leaves(self.ema), leaves(self.gen), strict=True):
            average.copy_(now.detach().lerp(average, beta))
        self.step += 1
        if cfg.augment == "adaptive" and self.step % cfg.augment_interval == 0:
            sign = torch.cat(self.signs).mean().item() - cfg.augment_target
            self.p = max(self.p + np.sign(sign) * batch * cfg.augment_interval / cfg.augment_speed_images, 0)
            self.signs = []
