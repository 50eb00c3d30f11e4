"""DCGAN (Radford, Metz & Chintala 2016, arXiv:1511.06434), trained as in Goodfellow et al. 2014 (arXiv:1406.2661).

Differs from the papers, as the common PyTorch example does: the generator's update reuses the latents of the
discriminator's (Algorithm 1 of Goodfellow et al. draws new ones), and BatchNorm sees real and generated pictures as
two batches. Under `jit` and `pmap` alike BatchNorm's batch is the global one.

With `conditional` both networks are told the class: the generator by a one-hot label beside z (Mirza & Osindero 2014,
arXiv:1411.1784), the discriminator by a product of its last features with the class' embedding (Miyato & Koyama 2018,
arXiv:1802.05637, eq. 3, who sum the features over their places first; here each place has weights of its own, as it has
in the judgement that is common to all classes). Generated pictures are asked for in the classes of the real ones that
they are compared with. An embedding beside z that is as long as z would be learned so fast that the generator forgets
z: on glyphs each class was then one picture.

Four mistakes that tutorials hand on, and where this file does otherwise:
- a generator grows the picture: its convolutions are transposed (`layers.double`); strided ones would shrink it;
- the discriminator returns a logit, and the losses are softplus of it: a sigmoid followed by a log overflows;
- log(1 - D) is -softplus(logit): `log1p` of D itself has the wrong sign, and rewards what it should punish;
- every step draws a new batch, and an epoch is all of the data: one random batch per epoch learns next to nothing.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ganstyle_jax.data import Source, Wanted
from ganstyle_jax.nn import augment, classes, layers, losses
from ganstyle_jax.nn.classes import class_weights
from ganstyle_jax.nn.samples import diversity


@dataclasses.dataclass(frozen=True)
class Config:
    """A DCGAN and how it is trained. The defaults are the paper's."""

    # pixels of a side, a power of two from 16 to 256; or height and width, the longer side a multiple of a quarter of
    # the shorter one
    image_size: int | tuple[int, int] = 64
    channels: int | None = None  # 1 or 3; None: as many as the data has
    latent_dim: int = 100  # numbers in a latent z, drawn from N(0, 1)
    width: int = 64  # channels of the finest hidden layer, doubled at each coarser one
    loss: Literal["non_saturating", "minimax", "least_squares", "hinge", "wasserstein"] = "non_saturating"
    generator_learning_rate: float = 2e-4
    discriminator_learning_rate: float = 2e-4
    beta1: float = 0.5  # Adam's decay of the mean gradient, for both networks
    beta2: float = 0.999  # Adam's decay of the mean squared gradient
    generator_steps: int = 1  # generator updates in a training step
    discriminator_steps: int = 1  # discriminator updates in a training step, each on its own part of the batch
    generator_schedule: Literal["constant", "linear", "cosine"] = "constant"  # learning rate down to 0
    discriminator_schedule: Literal["constant", "linear", "cosine"] = "constant"
    schedule_steps: int = 0  # training steps after which a schedule that is not constant has reached 0
    clip_norm: float = 0.0  # largest norm of a network's gradient; 0: not clipped
    r1: float = 0.0  # weight gamma of the R1 penalty, gamma / 2 |grad D|^2 on real pictures
    r2: float = 0.0  # weight gamma of the R2 penalty, the same on generated ones
    gradient_penalty: float = 0.0  # weight lambda of WGAN-GP's penalty (10 in the paper)
    augment: str = ""  # DiffAugment, a comma-separated list of color, translation, cutout
    instance_noise: float = 0.0  # standard deviation of the noise on all that the discriminator sees, at step 0
    instance_noise_steps: int = 10_000  # steps over which that noise falls to 0
    ema_halflife_images: float = 10_000.0  # images after which the generator's average has half forgotten
    weights: Literal["average", "last"] = "average"  # of samples: averaged over training, or those of the last step
    batch_norm: Literal["standing", "running", "batch"] = "standing"  # statistics of samples: estimated anew, ...
    conditional: bool = False  # on the data's classes, which are its labels
    classes: int | None = None  # how many; None: as many as the data has
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # of the arithmetic; weights are float32 or float64
    convolution: Literal["auto", "cpu", "xla"] = "auto"  # see layers.halve

    def __post_init__(self):
        short = min(self.shape)
        if not 16 <= short <= 256 or short & (short - 1):
            fits = min(256, max(16, 1 << max(0, short - 1).bit_length()))
            raise ValueError(f"image_size must be a power of two from 16 to 256, got {short}: take {fits}")
        if max(self.shape) % (short // 4):
            fits = round(4 * max(self.shape) / short) * (short // 4)
            raise ValueError(
                f"image_size must have a longer side that is a multiple of {short // 4}, "
                f"got {max(self.shape)}: take {fits}"
            )
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        for name in ("latent_dim", "width", "generator_steps", "discriminator_steps", "instance_noise_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        not_negative = ("generator_learning_rate", "discriminator_learning_rate", "clip_norm", "r1", "r2")
        for name in (*not_negative, "gradient_penalty", "instance_noise", "ema_halflife_images"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if get_origin(field.type) is Literal and value not in get_args(field.type):
                raise ValueError(f"{field.name} must be {' or '.join(get_args(field.type))}, got {value!r}")
        if self.schedule_steps < 1 and {self.generator_schedule, self.discriminator_schedule} != {"constant"}:
            raise ValueError(f"a schedule that is not constant needs schedule_steps >= 1, got {self.schedule_steps}")
        if self.classes is not None and not self.conditional:
            raise ValueError(f"classes go with conditional, which is off, got {self.classes}: leave them out")
        if self.classes is not None and self.classes < 1:
            raise ValueError(f"classes must be at least 1, got {self.classes}")
        augment.check_policy(self.augment)

    @property
    def compute_dtype(self):
        return jnp.dtype(self.dtype)

    @property
    def param_dtype(self):
        """Weights keep float32 under bfloat16. Linen keeps it under x64 too, unless it is told otherwise."""
        return jnp.float64 if self.dtype == "float64" else jnp.float32

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of the pictures."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def smallest(self) -> tuple[int, int]:
        """(h, w) of what the generator begins with: 4x4, or wider or higher."""
        return self.shape[0] >> self.levels, self.shape[1] >> self.levels

    @property
    def levels(self) -> int:
        return min(self.shape).bit_length() - 3

    @property
    def hidden_channels(self) -> list[int]:
        """From 4x4 pixels up: [8w, 4w, 2w, w] for 64 pixels."""
        return [self.width << level for level in reversed(range(self.levels))]


def sources(cfg: Config) -> dict[str, Wanted]:
    """One set of real pictures; each discriminator update of a step takes its own batch."""
    return {"real": Wanted(cfg.image_size, cfg.channels, batches=cfg.discriminator_steps)}


def settle(cfg: Config, found: Mapping[str, Source]) -> Config:
    """As many channels and, if conditional, classes as the data has. UserError where these are not the config's."""
    real = found["real"]
    count = classes.settled(cfg.conditional, cfg.classes, real)
    return dataclasses.replace(cfg, channels=real.image_shape[-1], classes=count)


# ---------------------------------------------------------------------------------------------------------------------
# Networks

_normal = nn.initializers.normal(0.02)


class Halve(nn.Module):
    """4x4 convolution of stride 2, without bias."""

    features: int
    cfg: Config

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", _normal, (4, 4, x.shape[-1], self.features), self.cfg.param_dtype)
        return layers.halve(x, kernel.astype(x.dtype), self.cfg.convolution)


class Double(nn.Module):
    """4x4 transposed convolution of stride 2, without bias."""

    features: int
    cfg: Config

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", _normal, (4, 4, x.shape[-1], self.features), self.cfg.param_dtype)
        return layers.double(x, kernel.astype(x.dtype), self.cfg.convolution)


class Generator(nn.Module):
    """Latents (b, latent_dim) to images (b, h, w, c) in [-1, 1]: projected to 4x4 or so, then doubled up to h x w."""

    cfg: Config
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z: jax.Array, train: bool, label: jax.Array | None = None) -> jax.Array:
        """label: (b,) int, or (b, classes) float for what lies between classes; None where it is unconditional."""
        cfg, dtype = self.cfg, self.cfg.compute_dtype
        first, *others = cfg.hidden_channels
        if cfg.conditional:
            z = jnp.concatenate([z, class_weights(label, cfg)], 1)
        # A transposed convolution of a 1x1 picture to 4x4 pixels, which is one matrix product.
        kernel = self.param("project", _normal, (*cfg.smallest, z.shape[1], first), cfg.param_dtype)
        x = jnp.einsum("bz,hwzc->bhwc", z.astype(dtype), kernel.astype(dtype))
        x = self._norm_relu("norm0")(x, train)
        for i, channels in enumerate(others, start=1):
            x = Double(channels, cfg, name=f"double{i}")(x)
            x = self._norm_relu(f"norm{i}")(x, train)
        x = Double(cfg.channels or 3, cfg, name=f"double{len(others) + 1}")(x)
        return jnp.tanh(x).astype(cfg.param_dtype)

    def _norm_relu(self, name: str) -> layers.BatchNorm:
        return layers.BatchNorm(self.cfg.compute_dtype, self.cfg.param_dtype, self.axis_name, slope=0.0, name=name)


class Discriminator(nn.Module):
    """Images (b, h, w, c) in [-1, 1] to logits (b,): halved to 4x4 pixels, then one weighted sum; no sigmoid.

    Where it is conditional, the sum's weights are those of all classes plus those of the image's own.
    """

    cfg: Config
    axis_name: str | None = None
    batches: int = 1  # that lie interleaved, see `layers.BatchNorm`

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, label: jax.Array | None = None) -> jax.Array:
        """label: as the generator's."""
        cfg, dtype = self.cfg, self.cfg.compute_dtype
        x = images.astype(dtype)
        for i, channels in enumerate(reversed(cfg.hidden_channels)):
            x = Halve(channels, cfg, name=f"halve{i}")(x)
            if i == 0:  # the paper leaves the discriminator's first layer without BatchNorm
                x = nn.leaky_relu(x, 0.2)
                continue
            x = layers.BatchNorm(
                dtype, cfg.param_dtype, self.axis_name, slope=0.2, batches=self.batches, name=f"norm{i}"
            )(x, train)
        kernel = self.param("judge", _normal, (*x.shape[1:], 1), cfg.param_dtype)
        logits = jnp.einsum("bhwc,hwcd->b", x, kernel.astype(dtype)).astype(cfg.param_dtype)
        if not cfg.conditional:
            return logits
        weights = class_weights(label, cfg)
        embedding = self.param("embedding", _normal, (cfg.classes, *x.shape[1:]), cfg.param_dtype)
        of_classes = jnp.einsum("bhwc,khwc->bk", x, embedding.astype(dtype)).astype(cfg.param_dtype)
        return logits + jnp.sum(weights * of_classes, 1)


# ---------------------------------------------------------------------------------------------------------------------
# State


@flax.struct.dataclass
class Network:
    """One network and its optimizer."""

    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict:
        return {"params": self.params, "batch_stats": self.batch_stats}


@flax.struct.dataclass
class State:
    step: jax.Array  # () int32, training steps done
    gen: Network
    disc: Network
    ema: Any  # the generator's weights, averaged: part of the state, so that resuming and sharding need no special case


def optimizer(cfg: Config, which: Literal["generator", "discriminator"]) -> optax.GradientTransformation:
    """Adam with the network's learning rate, schedule and clipping."""
    rate = getattr(cfg, f"{which}_learning_rate")
    updates = cfg.schedule_steps * getattr(cfg, f"{which}_steps")  # the schedule counts updates, the user steps
    rate = {
        "constant": lambda: rate,
        "linear": lambda: optax.linear_schedule(rate, 0.0, updates),
        "cosine": lambda: optax.cosine_decay_schedule(rate, updates),
    }[getattr(cfg, f"{which}_schedule")]()
    clip = optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    return optax.chain(clip, optax.adam(rate, cfg.beta1, cfg.beta2))


def init(key: jax.Array, cfg: Config) -> State:
    """A new pair of networks."""
    key_gen, key_disc = jax.random.split(key)
    z = jnp.zeros((2, cfg.latent_dim), cfg.param_dtype)
    images = jnp.zeros((2, *cfg.shape, cfg.channels or 3), cfg.param_dtype)
    asked: dict[str, Any] = {"label": jnp.zeros(2, jnp.int32)} if cfg.conditional else {}

    def network(module, key, inputs, which):
        variables = module.init(key, inputs, train=True, **asked)
        return Network(variables["params"], variables["batch_stats"], optimizer(cfg, which).init(variables["params"]))

    gen = network(Generator(cfg), key_gen, z, "generator")
    disc = network(Discriminator(cfg), key_disc, images, "discriminator")
    # A copy, because the state is donated to the step and no buffer may be donated twice.
    return State(jnp.zeros((), jnp.int32), gen, disc, ema=jax.tree.map(jnp.copy, gen.params))


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train_step(
    state: State, batch: dict, key: jax.Array, cfg: Config, axis_name: str | None = None
) -> tuple[State, dict]:
    """The discriminator's updates, then the generator's.

    batch["real"]["image"]: (b * discriminator_steps, h, w, c) float in [-1, 1]; every discriminator_steps-th image
    belongs to the same update, so that no image leaves its device; if conditional, ["label"] (b * discriminator_steps,)
    int32 are their classes, in which pictures are generated too. Returns the new state and scalar metrics.
    """
    images = batch["real"]["image"].astype(cfg.param_dtype)
    b = len(images) // cfg.discriminator_steps
    images = images.reshape(b, cfg.discriminator_steps, *images.shape[1:])
    labels = batch["real"]["label"].reshape(b, cfg.discriminator_steps) if cfg.conditional else None
    asked: dict[str, Any] = {}  # what pictures are asked for by besides latents; the generator's as in the last update
    gen, disc = state.gen, state.disc
    key_disc, key_gen = jax.random.split(key)

    # Generated pictures are made once for both networks' last and first update: `pull_back` remembers how.
    for i in range(cfg.discriminator_steps):
        key_i = jax.random.fold_in(key_disc, i)
        asked = {} if labels is None else {"label": labels[:, i]}
        gen, fake, pull_back = generate_for_training(gen, key_i, b, cfg, axis_name, **asked)
        disc, metrics = update_discriminator(disc, images[:, i], fake, key_i, state.step, cfg, axis_name, **asked)
    for i in range(cfg.generator_steps):
        key_i = jax.random.fold_in(key_gen, i)
        if i > 0:
            gen, fake, pull_back = generate_for_training(gen, key_i, b, cfg, axis_name, **asked)
        gen, disc, g_loss = update_generator(gen, disc, fake, pull_back, key_i, state.step, cfg, axis_name, **asked)

    global_batch = b * layers.axis_size(axis_name)
    ema = layers.ema(state.ema, gen.params, cfg.ema_halflife_images, global_batch)
    return State(state.step + 1, gen, disc, ema), layers.pmean({**metrics, "loss/gen": g_loss}, axis_name)


def generate_for_training(gen: Network, key: jax.Array, b: int, cfg: Config, axis_name: str | None, **asked):
    """(generator with new statistics, b images, function from a gradient by the images to one by the weights)."""
    z = layers.global_normal(jax.random.fold_in(key, 0), (b, cfg.latent_dim), axis_name, cfg.param_dtype)

    def forward(params):
        return apply(Generator(cfg, axis_name), params, gen.batch_stats, z, **asked)

    fake, pull_back, batch_stats = jax.vjp(forward, gen.params, has_aux=True)
    return dataclasses.replace(gen, batch_stats=batch_stats), fake, lambda gradient: pull_back(gradient)[0]


def update_discriminator(disc: Network, real, fake, key, step, cfg: Config, axis_name: str | None, **asked):
    """One step down the discriminator's loss. Real and generated pictures pass as two batches, as in the paper."""
    module = Discriminator(cfg, axis_name)
    real = distort(jax.random.fold_in(key, 1), real, step, cfg, axis_name)
    fake = distort(jax.random.fold_in(key, 2), fake, step, cfg, axis_name)

    def loss_function(params):
        (real_logits, fake_logits), batch_stats = apply_in_turn(module, params, disc.batch_stats, (real, fake), **asked)
        loss = losses.DISCRIMINATOR[cfg.loss](real_logits, fake_logits)

        def critic(x):
            return apply(module, params, disc.batch_stats, x, **asked)[0]

        if cfg.r1:
            loss += cfg.r1 / 2 * losses.r1_penalty(critic, real)
        if cfg.r2:
            loss += cfg.r2 / 2 * losses.r2_penalty(critic, fake)
        if cfg.gradient_penalty:
            mix = layers.global_draw(
                lambda s: jax.random.uniform(jax.random.fold_in(key, 3), tuple(s), real.dtype),
                (len(real), 1, 1, 1),
                axis_name,
            )
            loss += cfg.gradient_penalty * losses.gradient_penalty(critic, real, fake, mix)
        return loss.mean(), (batch_stats, real_logits, fake_logits)

    (loss, (batch_stats, real_logits, fake_logits)), gradients = jax.value_and_grad(loss_function, has_aux=True)(
        disc.params
    )
    metrics = {
        "loss/disc": loss,
        "logit/real": real_logits.mean(),
        "logit/fake": fake_logits.mean(),
        "accuracy/real": (real_logits > 0).mean(dtype=loss.dtype),
        "accuracy/fake": (fake_logits <= 0).mean(dtype=loss.dtype),
    }
    return descend(disc, gradients, batch_stats, cfg, "discriminator", axis_name), metrics


def update_generator(
    gen: Network, disc: Network, fake, pull_back, key, step, cfg: Config, axis_name: str | None, **asked
):
    """One step down the generator's loss, judged by the discriminator as it is now, whose statistics move too."""

    def loss_function(images):
        images = distort(jax.random.fold_in(key, 4), images, step, cfg, axis_name)
        logits, batch_stats = apply(Discriminator(cfg, axis_name), disc.params, disc.batch_stats, images, **asked)
        return losses.GENERATOR[cfg.loss](logits).mean(), batch_stats

    (loss, batch_stats), by_images = jax.value_and_grad(loss_function, has_aux=True)(fake)
    gen = descend(gen, pull_back(by_images), gen.batch_stats, cfg, "generator", axis_name)
    return gen, dataclasses.replace(disc, batch_stats=batch_stats), loss


def apply(module: nn.Module, params, batch_stats, inputs, **asked) -> tuple[jax.Array, Any]:
    """A forward pass in training mode: (outputs, new running statistics). asked: label=labels if conditional."""
    variables = {"params": layers.gathered(params), "batch_stats": batch_stats}
    outputs, updates = module.apply(variables, inputs, train=True, mutable=["batch_stats"], **asked)
    return outputs, updates["batch_stats"]


def apply_in_turn(module: Discriminator, params, batch_stats, batches, **asked) -> tuple[list[jax.Array], Any]:
    """`apply` to batches of one size and, if conditional, of the same labels in each, every batch normalised by itself:
    (their outputs, new running statistics).
    """
    if layers.backend() == "cpu":  # each on its own, which fits its caches better
        outputs = []
        for batch in batches:
            output, batch_stats = apply(module, params, batch_stats, batch, **asked)
            outputs.append(output)
        return outputs, batch_stats
    # In one pass: fewer kernels and, among devices, exchanges. Interleaved, so that no picture leaves its device.
    together = jnp.stack(batches, 1).reshape(-1, *batches[0].shape[1:])
    asked = {name: jnp.repeat(x, len(batches), 0) for name, x in asked.items()}
    outputs, batch_stats = apply(module.clone(batches=len(batches)), params, batch_stats, together, **asked)
    return [outputs[i :: len(batches)] for i in range(len(batches))], batch_stats


def descend(network: Network, gradients, batch_stats, cfg: Config, which, axis_name: str | None) -> Network:
    """One optimizer step. Under `pmap` the gradients are averaged here, and nowhere else."""
    gradients = layers.pmean(gradients, axis_name)
    updates, opt_state = optimizer(cfg, which).update(gradients, network.opt_state, network.params)
    return Network(optax.apply_updates(network.params, updates), batch_stats, opt_state)


def distort(key: jax.Array, images: jax.Array, step: jax.Array, cfg: Config, axis_name: str | None) -> jax.Array:
    """What the discriminator sees in place of the images: augmented, and under noise that fades."""
    if cfg.augment:
        images = augment.diff_augment(jax.random.fold_in(key, 0), images, cfg.augment, axis_name)
    if cfg.instance_noise:
        stddev = cfg.instance_noise * jnp.maximum(0, 1 - step / cfg.instance_noise_steps).astype(images.dtype)
        images = augment.instance_noise(jax.random.fold_in(key, 1), images, stddev, axis_name)
    return images


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


def requests(key: jax.Array, n: int, cfg: Config, examples: Mapping[str, Any] | None = None) -> Any:
    """Latents (n, latent_dim), N(0, 1); whatever n is beyond them.

    If conditional, {"latents": those, "label": (n,) int32}, one class after the other and again from the first.
    """
    latents = jax.random.normal(key, (n, cfg.latent_dim), cfg.param_dtype)
    if not cfg.conditional:
        return latents
    return {"latents": latents, "label": jnp.arange(n, dtype=jnp.int32) % (cfg.classes or 1)}


def asked_by(requests: Any) -> tuple[jax.Array, dict[str, Any]]:
    """Requests as the networks take them: (latents, {} or {"label": labels})."""
    if not isinstance(requests, Mapping):
        return requests, {}
    return requests["latents"], {"label": requests["label"]}


def generator(state: State, cfg: Config) -> dict:
    """The generator as samples are made from it: weights and statistics according to `cfg.weights`, `cfg.batch_norm`.

    The running statistics belong to the weights of the last steps and not to their average. "standing" estimates them
    anew, as the mean over 16 batches of 64 fixed latents (Brock et al. 2019, appendix A), in all classes as often.
    """
    params = state.ema if cfg.weights == "average" else state.gen.params
    if cfg.batch_norm != "standing":
        return {"params": params, "batch_stats": state.gen.batch_stats}
    zeros = jax.tree.map(jnp.zeros_like, state.gen.batch_stats)

    def add(i, total):
        z, asked = asked_by(requests(jax.random.fold_in(jax.random.key(0), i), 64, cfg))
        if cfg.conditional:  # on with the class at which the batch before has ended
            asked = {"label": (asked["label"] + 64 * i) % cfg.classes}
        _, new = apply(Generator(cfg), params, zeros, z, **asked)
        return jax.tree.map(jnp.add, total, new)

    # A loop, because sixteen copies of the generator would take several times as long to compile.
    total = lax.fori_loop(0, 16, add, zeros)
    # Running statistics that began at 0 are the batch's, times the momentum.
    return {"params": params, "batch_stats": jax.tree.map(lambda x: x / (16 * layers.BatchNorm.momentum), total)}


def sample(variables: dict, requests: Any, cfg: Config) -> jax.Array:
    """Requests to images (n, h, w, c) in [-1, 1]; with batch_norm "batch" they depend on each other.

    In the place of labels (n,) weights of the classes (n, classes) float may be given, for what lies between them.
    """
    module, (z, asked) = Generator(cfg), asked_by(requests)
    if cfg.batch_norm == "batch":
        return apply(module, variables["params"], variables["batch_stats"], z, **asked)[0]
    return jnp.asarray(module.apply(variables, z, train=False, **asked))


def watch(
    metrics: Mapping[str, float], pictures: np.ndarray, real: Mapping[str, Any]
) -> tuple[dict[str, float], str | None]:
    """How much samples differ from each other, 1 being as much as real pictures, and what looks like collapse.

    The discriminator's accuracy alone says little: on MNIST it reaches 1 for hundreds of steps while the digits go on
    getting better. It counts where the pictures are also alike, for then it knows them by what they share.
    """
    relative = diversity(pictures) / max(diversity(real["real"]["image"]), 1e-6)
    accuracy = min(metrics.get("accuracy/real", 0.0), metrics.get("accuracy/fake", 0.0))
    warning = None
    if relative < 0.1 or (relative < 0.4 and accuracy > 0.99):
        warning = (
            f"the samples are too much alike (diversity {relative:.3f} of the data's, the lower of the "
            f"discriminator's accuracies {accuracy:.3f}): the generator has collapsed, unless it has only begun to "
            "learn and more steps help. Go back to an earlier checkpoint, or try "
            "--augment color,translation, --instance-noise 0.1, --r1 1, or a lower --generator-learning-rate"
        )
    return {"diversity": round(relative, 4)}, warning


# ---------------------------------------------------------------------------------------------------------------------
# Seeing inside


def discriminate(state: State, images: jax.Array, cfg: Config) -> jax.Array:
    """Images (n, h, w, c) in [-1, 1] to logits (n,), each of its image alone: BatchNorm takes its running statistics.

    Those are of real and generated images together, where training normalises each kind by itself. If conditional, the
    logit is the mean over all classes that the image might have been asked for in.
    """
    asked: dict[str, Any] = {"label": jnp.full((len(images), cfg.classes), 1 / cfg.classes)} if cfg.classes else {}
    images = images.astype(cfg.param_dtype)
    return jnp.asarray(Discriminator(cfg).apply(state.disc.variables, images, train=False, **asked))


def first_layer(variables: dict, cfg: Config) -> jax.Array:
    """The generator's first weights, (latent_dim, 16 * channels): what a latent is multiplied with."""
    return jnp.moveaxis(variables["params"]["project"], 2, 0)[: cfg.latent_dim].reshape(cfg.latent_dim, -1)


def activations(variables: dict, requests: Any, cfg: Config) -> dict[str, jax.Array]:
    """Requests to the generator's hidden layers after ReLU, "4x4" and so on: (n, 4, 4, channels), ..."""

    def is_norm(module: nn.Module, method: str) -> bool:
        return isinstance(module, layers.BatchNorm) and method == "__call__"

    z, asked = asked_by(requests)
    captured: Any = Generator(cfg).apply(variables, z, train=False, capture_intermediates=is_norm, **asked)[1]
    hidden = [captured["intermediates"][f"norm{i}"]["__call__"][0] for i in range(len(cfg.hidden_channels))]
    return {f"{x.shape[1]}x{x.shape[2]}": x for x in hidden}
