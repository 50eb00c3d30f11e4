"""CycleGAN, pix2pix and CUT in PyTorch, laid out as pytorch-CycleGAN-and-pix2pix has them, layer by layer.

Networks are built of PyTorch's own modules with all their biases; `load` copies in the trees of nn/translation.py.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class ResnetBlock(nn.Module):
    def __init__(self, dim, padding, norm):
        super().__init__()
        pad = {"reflect": nn.ReflectionPad2d, "zero": nn.ZeroPad2d}[padding]
        first = [pad(1), nn.Conv2d(dim, dim, 3), norm(dim), nn.ReLU()]
        self.conv_block = nn.Sequential(*first, pad(1), nn.Conv2d(dim, dim, 3), norm(dim))

    def forward(self, x):
        return x + self.conv_block(x)


def normalisation(affine):
    return lambda channels: nn.InstanceNorm2d(channels, affine=affine)


def resnet(width, blocks, upsampling="transposed", padding="reflect", affine=False):
    norm = normalisation(affine)
    parts = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), norm(width), nn.ReLU()]
    for c in (width, 2 * width):
        parts += [nn.Conv2d(c, 2 * c, 3, stride=2, padding=1), norm(2 * c), nn.ReLU()]
    parts += [ResnetBlock(4 * width, padding, norm) for _ in range(blocks)]
    for c in (4 * width, 2 * width):
        if upsampling == "transposed":
            parts += [nn.ConvTranspose2d(c, c // 2, 3, stride=2, padding=1, output_padding=1)]
        else:
            parts += [nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.Conv2d(c, c // 2, 3)]
        parts += [norm(c // 2), nn.ReLU()]
    return nn.Sequential(*parts, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())


class UnetBlock(nn.Module):
    """One level: down, what lies within, up, and beside it what came in."""

    def __init__(self, outer, inner, inputs=None, within=None, outermost=False, affine=False):
        super().__init__()
        norm, self.outermost, self.within = normalisation(affine), outermost, within
        self.down = nn.Conv2d(inputs or outer, inner, 4, 2, 1)
        self.up = nn.ConvTranspose2d(inner if within is None else 2 * inner, outer, 4, 2, 1)
        self.downnorm = None if outermost or within is None else norm(inner)
        self.upnorm = None if outermost else norm(outer)
        self.mask = None  # of dropout, with which what comes up is multiplied

    def forward(self, x):
        y = self.down(x if self.outermost else F.leaky_relu(x, 0.2))
        y = y if self.downnorm is None else self.downnorm(y)
        y = y if self.within is None else self.within(y)
        y = self.up(F.relu(y))
        if self.outermost:
            return torch.tanh(y)
        assert self.upnorm is not None
        y = self.upnorm(y)
        y = y if self.mask is None else y * self.mask
        return torch.cat([x, y], 1)


def unet(width, depth, affine=False):
    channels = [width * min(8, 2**i) for i in range(depth)]
    block = None
    for i in reversed(range(1, depth)):
        block = UnetBlock(channels[i - 1], channels[i], within=block, affine=affine)
    return UnetBlock(3, channels[0], within=block, outermost=True, affine=affine)


def levels(net):
    """The blocks of a U-Net from the outside, number 1."""
    while net is not None:
        yield net
        net = net.within


def discriminator(width, halvings, inputs=3, affine=False):
    norm = normalisation(affine)
    parts, before = [nn.Conv2d(inputs, width, 4, 2, 1), nn.LeakyReLU(0.2)], width
    for i in range(1, halvings + 1):
        after = width * min(8, 2**i)
        parts += [nn.Conv2d(before, after, 4, 2 if i < halvings else 1, 1), norm(after), nn.LeakyReLU(0.2)]
        before = after
    return nn.Sequential(*parts, nn.Conv2d(before, 1, 4, 1, 1))


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def layers_of(net):
    """[(name in the tree, convolution, its normalisation or None), ...]."""
    if isinstance(net, UnetBlock):
        found = []
        for i, level in enumerate(levels(net), start=1):
            found += [(f"down{i}", level.down, level.downnorm), (f"up{i}", level.up, level.upnorm)]
        return found
    flat = []
    blocks = 0
    for part in net:
        if isinstance(part, ResnetBlock):
            blocks += 1
            inner = [m for m in part.conv_block if isinstance(m, (nn.Conv2d, nn.InstanceNorm2d))]
            flat += [(f"block{blocks}/first", *inner[:2]), (f"block{blocks}/second", *inner[2:])]
        elif isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
            flat.append([None, part, None])
        elif isinstance(part, nn.InstanceNorm2d):
            flat[-1][2] = part
    plain = [layer for layer in flat if layer[0] is None]
    if blocks:
        names = ("down1", "down2", "down3", "up1", "up2", "out")
    else:
        names = (*(f"conv{i}" for i in range(1, len(plain))), "judge")
    for layer, name in zip(plain, names, strict=True):
        layer[0] = name
    return flat


def order_of(conv):
    """That of PyTorch's axes in HWIO."""
    return (2, 3, 0, 1) if isinstance(conv, nn.ConvTranspose2d) else (2, 3, 1, 0)


def load(net, params):
    """Copies in a tree, in float64; biases that it lacks are 0."""
    net.double()
    with torch.no_grad():
        for name, conv, norm in layers_of(net):
            weights = params
            for part in name.split("/"):
                weights = weights[part]
            back = np.argsort(order_of(conv))
            conv.weight.copy_(torch.tensor(np.array(weights["kernel"]).transpose(back)))
            conv.bias.copy_(torch.tensor(np.array(weights.get("bias", np.zeros(conv.bias.shape)))))
            if norm is not None and norm.affine:
                norm.weight.copy_(torch.tensor(np.array(weights["scale"])))
                norm.bias.copy_(torch.tensor(np.array(weights.get("shift", np.zeros(norm.bias.shape)))))
    return net


def tree(net, like, read=lambda parameter: parameter):
    """What `read` makes of each parameter, as the tree that `like` is, in NumPy."""
    found = {}
    for name, conv, norm in layers_of(net):
        values = {"kernel": read(conv.weight).detach().numpy().transpose(order_of(conv))}
        values["bias"] = read(conv.bias).detach().numpy()
        if norm is not None and norm.affine:
            values |= {"scale": read(norm.weight).detach().numpy(), "shift": read(norm.bias).detach().numpy()}
        wanted, place = like, found
        *way, last = name.split("/")
        for part in way:
            wanted, place = wanted[part], place.setdefault(part, {})
        place[last] = {part: values[part] for part in wanted[last]}
    return found


def nchw(images):
    return torch.tensor(np.array(images, np.float64)).permute(0, 3, 1, 2)


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Training, with draws that are given


class ImagePool:
    """The common implementation's, whose draws are given: whether to swap, and with which."""

    def __init__(self, size):
        self.size, self.images = size, []

    def query(self, images, swaps, places):
        shown = []
        for image, swap, place in zip(images.detach(), swaps, places, strict=True):
            if len(self.images) < self.size:
                self.images.append(image)
                shown.append(image)
            elif swap:
                shown.append(self.images[place].clone())
                self.images[place] = image
            else:
                shown.append(image)
        return torch.stack(shown)


def adam(*nets, rate):
    return torch.optim.Adam([p for net in nets for p in net.parameters()], lr=rate, betas=(0.5, 0.999))


def gan_loss(logits, real, kind, of_generator=False):
    """GANLoss, and the hinge, of the discriminator unless it is the generator's."""
    if kind == "least_squares":
        return F.mse_loss(logits, torch.full_like(logits, float(real)))
    if kind == "non_saturating":
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))
    return -logits.mean() if of_generator else F.relu(1 - logits if real else 1 + logits).mean()


def discriminator_step(net, optimizer, real, fake, kind):
    loss = (gan_loss(net(real), True, kind) + gan_loss(net(fake.detach()), False, kind)) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def cyclegan_step(nets, optimizers, pools, real, draws, kind="least_squares", cycle=10.0, identity=0.5):
    """nets: {"a2b", "b2a", "disc_a", "disc_b"}; optimizers: {"gen", "disc_a", "disc_b"}; draws: {"a", "b"} of pools."""
    fake = {"b": nets["a2b"](real["a"]), "a": nets["b2a"](real["b"])}
    back = {"a": nets["b2a"](fake["b"]), "b": nets["a2b"](fake["a"])}
    same = {"a": nets["b2a"](real["a"]), "b": nets["a2b"](real["b"])}
    terms = {
        "adversarial": sum(gan_loss(nets[f"disc_{x}"](fake[x]), True, kind, True) for x in "ab"),
        "cycle": sum(F.l1_loss(back[x], real[x]) for x in "ab"),
        "identity": sum(F.l1_loss(same[x], real[x]) for x in "ab"),
    }
    loss = terms["adversarial"] + cycle * (terms["cycle"] + identity * terms["identity"])
    optimizers["gen"].zero_grad()
    loss.backward()
    optimizers["gen"].step()
    of = {"gen": loss.item()} | {name: term.item() for name, term in terms.items()}
    for x in "ab":
        shown = pools[x].query(fake[x], *draws[x])
        of[f"disc_{x}"] = discriminator_step(nets[f"disc_{x}"], optimizers[f"disc_{x}"], real[x], shown, kind)
    return of


def pix2pix_step(generator, judge, optimizers, real, masks, l1=100.0, kind="least_squares"):
    """masks: of the generator's blocks, by their level; real: {"from", "to"}."""
    for level, block in enumerate(levels(generator), start=1):
        block.mask = masks.get(level)
    fake = generator(real["from"])
    of_disc = discriminator_step(
        judge, optimizers["disc"], *(torch.cat([real["from"], x], 1) for x in (real["to"], fake)), kind
    )
    adversarial = gan_loss(judge(torch.cat([real["from"], fake], 1)), True, kind, True)
    loss = adversarial + l1 * F.l1_loss(fake, real["to"])
    optimizers["gen"].zero_grad()
    loss.backward()
    optimizers["gen"].step()
    return {"gen": loss.item(), "adversarial": adversarial.item(), "disc": of_disc}


def head(weights):
    """PatchSampleF's two layers."""
    (before, width), double = weights["first"]["kernel"].shape, torch.float64
    net = nn.Sequential(nn.Linear(before, width, dtype=double), nn.ReLU(), nn.Linear(width, width, dtype=double))
    with torch.no_grad():
        for part, name in ((net[0], "first"), (net[2], "second")):
            part.weight.copy_(torch.tensor(np.array(weights[name]["kernel"]).T))
            part.bias.copy_(torch.tensor(np.array(weights[name]["bias"])))
    return net


def encoder_features(generator, x, blocks):
    """CUT's: pixels, both convolutions that halve, the first block and the fifth."""
    found = {"pixels": x}
    names = {4: "down2", 7: "down3"} | {9 + i: f"block{i}" for i in range(1, blocks + 1)}
    for i, part in enumerate(generator):
        x = part(x)
        if i in names:
            found[names[i]] = x
    return found


def patch_nce(heads, queries, keys, places, temperature):
    """PatchNCELoss of each layer, with places given: the mean over layers and pictures."""
    total = 0
    for layer, net in heads.items():

        def pool(features, net=net, layer=layer):
            x = features[layer].permute(0, 2, 3, 1).flatten(1, 2)[:, places[layer]].flatten(0, 1)
            x = net(x)
            return x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-7)

        q, k = pool(queries), pool(keys).detach()
        b, n = len(queries[layer]), len(places[layer])
        positive = (q * k).sum(1, keepdim=True)
        q, k = q.view(b, n, -1), k.view(b, n, -1)
        negative = torch.bmm(q, k.transpose(2, 1)).masked_fill(torch.eye(n, dtype=torch.bool), -10.0).view(b * n, n)
        logits = torch.cat([positive, negative], 1) / temperature
        total = total + F.cross_entropy(logits, torch.zeros(b * n, dtype=torch.long))
    return total / len(heads)


def cut_step(generator, judge, heads, optimizers, real, places, blocks, temperature=0.07, kind="least_squares"):
    """real: {"from", "to"}. One pass for translation and identity, as CUT has it."""
    made = generator(torch.cat([real["from"], real["to"]]))
    fake, same = made.chunk(2)
    of_disc = discriminator_step(judge, optimizers["disc"], real["to"], fake, kind)
    adversarial = gan_loss(judge(fake), True, kind, True)
    pairs = {"nce": (fake, real["from"]), "nce_identity": (same, real["to"])}
    nce = {
        name: patch_nce(heads, *(encoder_features(generator, x, blocks) for x in (query, given)), places, temperature)
        for name, (query, given) in pairs.items()
    }
    loss = adversarial + (nce["nce"] + nce["nce_identity"]) / 2
    optimizers["gen"].zero_grad()
    loss.backward()
    optimizers["gen"].step()
    return {"gen": loss.item(), "adversarial": adversarial.item(), "disc": of_disc} | {
        name: x.item() for name, x in nce.items()
    }
