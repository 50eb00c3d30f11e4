"""The PyTorch reference for `ganstyle_jax.gan.dcgan`: the networks and one training step of the common DCGAN example.

Written from the paper and from that example's well-known layout of names (`main.0.weight`, ...). The only difference:
the discriminator returns a logit and the loss takes it (`binary_cross_entropy_with_logits`), which is the same number.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn


class Generator(nn.Module):
    def __init__(self, image_size=64, channels=3, latent_dim=100, width=64):
        super().__init__()
        levels = image_size.bit_length() - 3
        sizes = [width << i for i in reversed(range(levels))]
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent_dim, sizes[0], 4, 1, 0, bias=False)]
        layers += [nn.BatchNorm2d(sizes[0]), nn.ReLU(True)]
        for a, b in itertools.pairwise(sizes):
            layers += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(True)]
        layers += [nn.ConvTranspose2d(sizes[-1], channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, z):
        return self.main(z[:, :, None, None])


class Discriminator(nn.Module):
    def __init__(self, image_size=64, channels=3, width=64):
        super().__init__()
        levels = image_size.bit_length() - 3
        sizes = [width << i for i in range(levels)]
        layers: list[nn.Module] = [nn.Conv2d(channels, sizes[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2, True)]
        layers += [nn.Conv2d(sizes[-1], 1, 4, 1, 0, bias=False)]
        self.main = nn.Sequential(*layers)

    def forward(self, images):
        return self.main(images).flatten()


def initialise(module):
    """N(0, 0.02) for convolutions, N(1, 0.02) for BatchNorm's scale."""
    for m in module.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(m.weight, 0.0, 0.02)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1.0, 0.02)


def adam(module, learning_rate=2e-4):
    return torch.optim.Adam(module.parameters(), lr=learning_rate, betas=(0.5, 0.999))


def train_step(gen, disc, gen_optimizer, disc_optimizer, images, z):
    """images: (b, c, s, s) in [-1, 1]; z: (b, latent_dim). Returns the two losses as tensors."""
    disc_optimizer.zero_grad(set_to_none=True)
    fake = gen(z)
    real_logits, fake_logits = disc(images), disc(fake.detach())
    disc_loss = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
    disc_loss.backward()
    disc_optimizer.step()

    gen_optimizer.zero_grad(set_to_none=True)
    # Only the gradient by the pictures is wanted; the discriminator's own would be thrown away.
    for p in disc.parameters():
        p.requires_grad_(False)
    gen_loss = F.softplus(-disc(fake)).mean()
    gen_loss.backward()
    for p in disc.parameters():
        p.requires_grad_(True)
    gen_optimizer.step()
    return disc_loss.detach(), gen_loss.detach()


def published_step(gen, disc, gen_optimizer, disc_optimizer, images, z):
    """As `train_step`, but as the common example writes it.

    That is `BCELoss` of a sigmoid, a backward pass for each term, and in the generator's step gradients of the
    discriminator's weights that are thrown away.
    """
    criterion = nn.BCELoss()
    real, fake_label = (
        torch.full((len(images),), value, dtype=images.dtype, device=images.device) for value in (1.0, 0.0)
    )

    disc.zero_grad()
    real_loss = criterion(torch.sigmoid(disc(images)), real)
    real_loss.backward()
    fake = gen(z)
    fake_loss = criterion(torch.sigmoid(disc(fake.detach())), fake_label)
    fake_loss.backward()
    disc_optimizer.step()

    gen.zero_grad()
    gen_loss = criterion(torch.sigmoid(disc(fake)), real)
    gen_loss.backward()
    gen_optimizer.step()
    return (real_loss + fake_loss).detach(), gen_loss.detach()


class ConditionalGenerator(Generator):
    """One-hot labels go beside z (Mirza & Osindero 2014)."""

    def __init__(self, classes, image_size=64, channels=3, latent_dim=100, width=64):
        super().__init__(image_size, channels, latent_dim + classes, width)
        self.classes = classes

    def forward(self, z, label):
        return super().forward(torch.cat([z, F.one_hot(label, self.classes).to(z.dtype)], 1))


class ConditionalDiscriminator(Discriminator):
    """A projection discriminator (Miyato & Koyama 2018): the class' embedding times the last features, each place's."""

    def __init__(self, classes, image_size=64, channels=3, width=64):
        super().__init__(image_size, channels, width)
        last = self.main[-1]
        assert isinstance(last, nn.Conv2d)
        self.embedding = nn.Embedding(classes, 16 * last.in_channels)

    def forward(self, images, label):
        features = self.main[:-1](images)
        of_class = torch.einsum("bi,bi->b", features.flatten(1), self.embedding(label))
        return self.main[-1](features).flatten() + of_class


def conditional_step(gen, disc, gen_optimizer, disc_optimizer, images, z, label, r1=0.0):
    """As `train_step`, of pictures in classes: generated ones are asked for in the classes of the real ones.

    r1: gamma of the R1 penalty, gamma / 2 |grad D|^2 on the real pictures.
    """
    disc_optimizer.zero_grad(set_to_none=True)
    images = images.clone().requires_grad_(r1 > 0)
    fake = gen(z, label)
    real_logits, fake_logits = disc(images, label), disc(fake.detach(), label)
    disc_loss = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
    if r1:
        (by_images,) = torch.autograd.grad(real_logits.sum(), images, create_graph=True)
        disc_loss = disc_loss + r1 / 2 * by_images.square().sum((1, 2, 3)).mean()
    disc_loss.backward()
    disc_optimizer.step()

    gen_optimizer.zero_grad(set_to_none=True)
    for p in disc.parameters():
        p.requires_grad_(False)
    gen_loss = F.softplus(-disc(fake, label)).mean()
    gen_loss.backward()
    for p in disc.parameters():
        p.requires_grad_(True)
    gen_optimizer.step()
    return disc_loss.detach(), gen_loss.detach()
