"""Translation between two kinds of pictures, a and b: CycleGAN, pix2pix and CUT, as the modes of one method.

cycle        CycleGAN (Zhu, Park, Isola & Efros 2017, arXiv:1703.10593): no pictures belong together; a generator each
             way, and what goes there and back is to be what it was
paired       pix2pix (Isola, Zhu, Zhou & Efros 2017, arXiv:1611.07004): pictures of b that belong to pictures of a
contrastive  CUT (Park, Efros, Zhang & Zhu 2020, arXiv:2007.15651): no pictures belong together, one generator; each
             patch of the result is to have more in common with the same patch of the input than with its others

Follows pytorch-CycleGAN-and-pix2pix and contrastive-unpaired-translation where they differ from the papers: transposed
convolutions in the generators, a linear last layer of the discriminators, half a loss for them; in cycle mode all
networks are updated against what the others were before the step, in the other two modes the discriminator first.

Differs from both:
- every picture is normalised by itself; pix2pix's common settings have BatchNorm, in a batch of one the same but for
  its scales and shifts (--affine); batches may be larger, and the cycle's first and identity's pass are one;
- pictures are brought to `image_size` by their central square, where those two squeeze them into one;
- pix2pix's dropout follows the first three layers up, as in its paper, and is not kept when pictures are made;
- CUT without its blurred changes of size, and with places of its finest layer inside the picture alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ganstyle_jax.data import Wanted
from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError
from ganstyle_jax.nn import augment, layers, losses
from ganstyle_jax.nn.samples import diversity
from ganstyle_jax.nn.translation import SMALLEST, Params, PatchDiscriminator, ResNetGenerator, UNetGenerator

Direction = Literal["a2b", "b2a"]
OTHER = {"a": "b", "b": "a"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Networks that translate pictures, and how they are trained. The defaults are those of the mode's paper."""

    mode: Literal["cycle", "paired", "contrastive"] = "cycle"  # CycleGAN, pix2pix or CUT
    direction: Direction = "a2b"  # which way the one generator of the modes paired and contrastive goes
    image_size: int = 286  # pixels of a side to which pictures are brought
    crop: int = 256  # pixels of a side of the random part that a step sees; of the whole picture in grids
    flip: bool = True  # mirror pictures at random
    network: Literal["auto", "resnet", "unet"] = "auto"  # generator; auto: unet for paired, else resnet
    width: int = 64  # channels of the generator's finest hidden layer
    blocks: int = 9  # residual blocks of a resnet; 6 for pictures of 128 pixels
    upsampling: Literal["transposed", "nearest"] = "transposed"  # of a resnet; nearest leaves no checkerboards
    padding: Literal["reflect", "zero"] = "reflect"  # of a resnet's blocks
    ends: Literal["reflect", "zero"] = "reflect"  # of a resnet's first and last convolution
    affine: bool = False  # scales and shifts of the generators' normalisations
    dropout: float = 0.5  # share that is dropped in a unet of the mode paired
    discriminator_width: int = 64  # channels of its finest hidden layer
    discriminator_halvings: int = 3  # 3: patches of 70 pixels, 2 of 34, 1 of 16
    loss: Literal["least_squares", "non_saturating", "hinge"] = "least_squares"
    cycle_weight: float = 10.0  # of the distance of what went there and back; mode cycle
    identity_weight: float = 0.5  # of what a generator makes of its own target's pictures, as a share of cycle_weight
    l1_weight: float = 100.0  # of the distance to the picture that belongs to the input; mode paired
    history: int = 50  # past pictures of each side that discriminators are shown; mode cycle; 0: none
    nce_weight: float = 1.0  # of the contrastive loss; mode contrastive
    nce_identity: bool = True  # the same loss for what is made of the target's own pictures
    nce_patches: int = 256  # places of each layer that are compared
    nce_width: int = 256  # numbers that describe a patch
    nce_temperature: float = 0.07
    learning_rate: float = 2e-4  # of Adam
    beta1: float = 0.5  # Adam's decay of the mean gradient
    beta2: float = 0.999  # Adam's decay of the mean squared gradient
    total_steps: int = 0  # of the whole training, over whose second half the learning rate falls to 0; 0: it stays
    ema_halflife_images: float = 0.0  # images after which the generators' average has half forgotten; 0: no average
    dtype: Literal["float32", "float64"] = "float32"  # of weights and arithmetic

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if get_origin(field.type) is Literal and value not in get_args(field.type):
                raise ValueError(f"{field.name} must be {' or '.join(get_args(field.type))}, got {value!r}")
        for name in ("width", "discriminator_width", "discriminator_halvings", "nce_patches", "nce_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "nce_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        weights = ("cycle_weight", "identity_weight", "l1_weight", "nce_weight")
        for name in (*weights, "blocks", "history", "total_steps", "ema_halflife_images"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("beta1", "beta2", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        multiple = max(4, 2**self.discriminator_halvings)
        least = -(-max(SMALLEST, discriminator_of(self).smallest) // multiple) * multiple
        if self.crop < least or self.crop % multiple:
            fits = max(least, self.crop // multiple * multiple)
            raise ValueError(
                f"crop must be a multiple of {multiple} from {least} pixels up, for discriminators that halve it "
                f"{self.discriminator_halvings} times, got {self.crop}: take {fits}"
            )
        if self.image_size < self.crop:
            raise ValueError(f"image_size must be at least the crop's {self.crop}, got {self.image_size}")
        if self.mode == "contrastive" and (self.network == "unet" or self.blocks < 1):
            raise ValueError(
                "the mode contrastive compares layers of a resnet of one block or more: take --network auto"
            )

    @property
    def ways(self) -> tuple[Direction, ...]:
        """Which way there are generators."""
        return ("a2b", "b2a") if self.mode == "cycle" else (self.direction,)


def sources(cfg: Config) -> dict[str, Wanted]:
    """Both kinds of pictures; of pairs one set, each of its pictures a and b side by side, as pix2pix's sets are."""
    if cfg.mode == "paired":
        return {"ab": Wanted((cfg.image_size, 2 * cfg.image_size))}
    return {"a": Wanted(cfg.image_size), "b": Wanted(cfg.image_size)}


# ---------------------------------------------------------------------------------------------------------------------
# Networks, see nn/translation.py


def generator_of(cfg: Config) -> ResNetGenerator | UNetGenerator:
    """The architecture of the generators."""
    if cfg.network == "unet" or (cfg.network == "auto" and cfg.mode == "paired"):
        halvings = (cfg.crop & -cfg.crop).bit_length() - 1  # until a side is odd, as 1 is
        return UNetGenerator(cfg.width, min(8, halvings), cfg.affine)
    return ResNetGenerator(cfg.width, cfg.blocks, cfg.upsampling, cfg.padding, cfg.ends, cfg.affine)


def discriminator_of(cfg: Config) -> PatchDiscriminator:
    """Of pairs it judges a picture beside what it was made of."""
    inputs = 6 if cfg.mode == "paired" else 3
    return PatchDiscriminator(cfg.discriminator_width, cfg.discriminator_halvings, inputs=inputs)


def compared_layers(cfg: Config) -> dict[str, int]:
    """{layer of the generator: its channels} that the contrastive loss compares (section 3.2 and appendix of CUT)."""
    w = cfg.width
    layers_ = {"pixels": 3, "down2": 2 * w, "down3": 4 * w, "block1": 4 * w}
    return layers_ | {f"block{min(5, cfg.blocks)}": 4 * w}


def describe(head: Params, features: jax.Array) -> jax.Array:
    """Features of places (b, n, c) to vectors of length 1, (b, n, nce_width), by two layers."""
    hidden = jax.nn.relu(features @ head["first"]["kernel"] + head["first"]["bias"])
    x = hidden @ head["second"]["kernel"] + head["second"]["bias"]
    # The root has no derivative at 0, where a grey pixel may well be.
    length = jnp.sqrt(jnp.maximum(jnp.sum(x**2, -1, keepdims=True), 1e-24))
    return x / (length + 1e-7)


def _head(key: jax.Array, channels: int, cfg: Config) -> Params:
    def layer(key, before):
        kernel = 0.02 * jax.random.normal(key, (before, cfg.nce_width), cfg.dtype)
        return {"kernel": kernel, "bias": jnp.zeros(cfg.nce_width, cfg.dtype)}

    first, second = jax.random.split(key)
    return {"first": layer(first, channels), "second": layer(second, cfg.nce_width)}


# ---------------------------------------------------------------------------------------------------------------------
# State


@flax.struct.dataclass
class State:
    step: jax.Array  # () int32, training steps done
    params: dict[str, Params]  # "a2b", "b2a", "disc_a", "disc_b"; one way: "a2b", "disc_b", and "heads" of contrastive
    opt_state: dict[str, Any]  # of each of these
    history: dict[str, Any]  # {"a", "b": {"pictures": (history, crop, crop, 3), "count": () int32, how many there are}}
    ema: dict[str, Params]  # the generators, averaged over training; {} without an average


def optimizer(cfg: Config) -> optax.GradientTransformation:
    """Adam; the learning rate is constant over half of the steps and falls to 0 over the other (section 7.1)."""

    def rate(step):
        return cfg.learning_rate * jnp.clip(2 - 2 / cfg.total_steps * step, 0, 1)

    return optax.adam(rate if cfg.total_steps else cfg.learning_rate, cfg.beta1, cfg.beta2)


def init(key: jax.Array, cfg: Config) -> State:
    """New networks, and a history without pictures."""
    judged_sides = [way[-1] for way in cfg.ways]
    networks = {way: generator_of(cfg) for way in cfg.ways} | {f"disc_{x}": discriminator_of(cfg) for x in judged_sides}
    params: dict[str, Params] = {
        name: network.init(jax.random.fold_in(key, i), cfg.dtype) for i, (name, network) in enumerate(networks.items())
    }
    if cfg.mode == "contrastive":
        for layer in ("down2", "down3"):  # which are compared before their normalisation takes a bias away
            weights = params[cfg.direction][layer]
            weights["bias"] = jnp.zeros(weights["kernel"].shape[3], cfg.dtype)
        keys = jax.random.split(jax.random.fold_in(key, len(networks)), 8)
        params["heads"] = {
            layer: _head(key_head, channels, cfg)
            for key_head, (layer, channels) in zip(keys, compared_layers(cfg).items(), strict=False)
        }
    history = {}
    if cfg.mode == "cycle" and cfg.history:
        for x in judged_sides:
            pictures = jnp.zeros((cfg.history, cfg.crop, cfg.crop, 3), cfg.dtype)
            history[x] = {"pictures": pictures, "count": jnp.zeros((), jnp.int32)}
    # Copies, because the state is donated to the step and no buffer may be donated twice.
    ema = {way: jax.tree.map(jnp.copy, params[way]) for way in cfg.ways} if cfg.ema_halflife_images else {}
    opt_state = {name: optimizer(cfg).init(tree) for name, tree in params.items()}
    return State(jnp.zeros((), jnp.int32), params, opt_state, history, ema)


# ---------------------------------------------------------------------------------------------------------------------
# History


def history_draws(key: jax.Array, n: int, size: int) -> tuple[jax.Array, jax.Array]:
    """For each of n pictures whether one of the past is shown in its place, (n,) bool, and which of `size`, (n,)."""
    swaps = jax.random.bernoulli(jax.random.fold_in(key, 0), 0.5, (n,))
    return swaps, jax.random.randint(jax.random.fold_in(key, 1), (n,), 0, size)


def remember(
    history: Mapping[str, jax.Array], fakes: jax.Array, key: jax.Array, axis_name: str | None = None
) -> tuple[dict[str, jax.Array], jax.Array]:
    """(history, what the discriminator is shown for each picture (b, s, s, 3)) (Shrivastava et al. 2017, section 2.3).

    One picture after the other. While there is room it is kept, and shown; later, with a chance of one half, it takes
    the place of one that was kept, and that one is shown. The history is the global batch's, in the devices' order.
    """
    fakes = layers.global_batch(fakes, axis_name)
    size, n = len(history["pictures"]), len(fakes)

    # With numbers in the place of pictures: those of the history, then the new ones. So the pictures move once, and
    # where devices share the batch they exchange it once.
    def one(carry, given):
        kept, count = carry
        number, swap, place = given
        filling = count < size
        place = jnp.where(filling, count, place)
        shown = jnp.where(~filling & swap, kept[place], number)
        kept = kept.at[place].set(jnp.where(filling | swap, number, kept[place]))
        return (kept, jnp.minimum(count + 1, size)), shown

    begin = jnp.arange(size), history["count"]
    (kept, count), shown = lax.scan(one, begin, (size + jnp.arange(n), *history_draws(key, n, size)))
    pictures = jnp.concatenate([history["pictures"], fakes])
    return {"pictures": pictures[kept], "count": count}, layers.local_part(pictures[shown], axis_name)


# ---------------------------------------------------------------------------------------------------------------------
# Training

# Of the discriminator's loss and of the generator's, in those of nn/losses.py: squares are halved there already.
SHARES = {"least_squares": (1.0, 2.0), "non_saturating": (0.5, 1.0), "hinge": (0.5, 1.0)}


def discriminator_loss(real_logits: jax.Array, fake_logits: jax.Array, cfg: Config) -> jax.Array:
    """Half the loss (section 7.1), the mean over pictures and patches, (b, h, w, 1) twice -> ()."""
    return SHARES[cfg.loss][0] * losses.DISCRIMINATOR[cfg.loss](real_logits, fake_logits).mean()


def generator_loss(fake_logits: jax.Array, cfg: Config) -> jax.Array:
    """(D - 1)^2 or what stands for it, the mean over pictures and patches, (b, h, w, 1) -> () (section 3.1)."""
    return SHARES[cfg.loss][1] * losses.GENERATOR[cfg.loss](fake_logits).mean()


def distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean absolute difference."""
    return jnp.abs(x - y).mean()


def joined(x: jax.Array, y: jax.Array) -> jax.Array:
    """Two batches as one, in turns so that no picture leaves its device: (b, ...) twice -> (2 b, ...)."""
    return jnp.stack([x, y], 1).reshape(2 * len(x), *x.shape[1:])


def parted(both: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Undoes `joined`."""
    both = both.reshape(len(both) // 2, 2, *both.shape[1:])
    return both[:, 0], both[:, 1]


def prepared(key: jax.Array, pictures: jax.Array, cfg: Config, axis_name: str | None) -> jax.Array:
    """A random part of each picture, mirrored or not: (b, image_size, image_size, c) -> (b, crop, crop, c)."""
    pictures = augment.crop(jax.random.fold_in(key, 0), pictures.astype(cfg.dtype), cfg.crop, axis_name)
    return augment.flip(jax.random.fold_in(key, 1), pictures, axis_name) if cfg.flip else pictures


def train_step(
    state: State, batch: Mapping, key: jax.Array, cfg: Config, axis_name: str | None = None
) -> tuple[State, dict]:
    """One update of all networks.

    batch["a" or "b"]["image"]: (b, s, s, 3) float in [-1, 1], s being image_size; of pairs batch["ab"]["image"],
    (b, s, 2 s, 3). Returns the new state and scalar metrics.
    """
    key_pictures, key_step = jax.random.split(key)
    if cfg.mode == "paired":
        both = batch["ab"]["image"]
        # Side by side as six channels, which are cut and mirrored together.
        both = jnp.concatenate([both[:, :, : cfg.image_size], both[:, :, cfg.image_size :]], -1)
        both = prepared(key_pictures, both, cfg, axis_name)
        real = {"a": both[..., :3], "b": both[..., 3:]}
    else:
        keys = zip("ab", jax.random.split(key_pictures), strict=True)
        real = {x: prepared(key_x, batch[x]["image"], cfg, axis_name) for x, key_x in keys}
    step = {"cycle": cycle_step, "paired": paired_step, "contrastive": contrastive_step}[cfg.mode]
    params, opt_state, history, metrics = step(state, real, key_step, cfg, axis_name)
    seen = len(real["a"]) * layers.axis_size(axis_name)
    ema = {
        way: layers.ema(average, params[way], cfg.ema_halflife_images, seen, (state.step + 1) * seen)
        for way, average in state.ema.items()
    }
    return State(state.step + 1, params, opt_state, history, ema), layers.pmean(metrics, axis_name)


Step = tuple[dict[str, Params], dict[str, Any], dict[str, Any], dict[str, jax.Array]]


def cycle_step(state: State, real: Mapping[str, jax.Array], key: jax.Array, cfg: Config, axis_name: str | None) -> Step:
    """CycleGAN's update of four networks; real: {"a", "b": (b, crop, crop, 3)}."""
    generator, discriminator = generator_of(cfg), discriminator_of(cfg)
    gens = {way: state.params[way] for way in cfg.ways}
    discs = {name: state.params[name] for name in ("disc_a", "disc_b")}

    def gen_loss(gens):
        gens, judges = layers.gathered((gens, discs))
        fake, same, back = {}, {}, {}
        for x, y in OTHER.items():
            if cfg.identity_weight:
                fake[y], same[y] = parted(generator.apply(gens[f"{x}2{y}"], joined(real[x], real[y])))
            else:
                fake[y] = generator.apply(gens[f"{x}2{y}"], real[x])
        for x, y in OTHER.items():
            back[x] = generator.apply(gens[f"{y}2{x}"], fake[y])
        adversarial = sum(generator_loss(discriminator.apply(judges[f"disc_{x}"], fake[x]), cfg) for x in OTHER)
        cycle = sum(distance(back[x], real[x]) for x in OTHER)
        total = adversarial + cfg.cycle_weight * cycle
        terms = {"loss/adversarial": adversarial, "loss/cycle": cycle / 2}
        if cfg.identity_weight:
            identity = sum(distance(same[x], real[x]) for x in OTHER)
            total += cfg.cycle_weight * cfg.identity_weight * identity
            terms["loss/identity"] = identity / 2
        return total, (fake, terms)

    (total, (fake, terms)), gradients = jax.value_and_grad(gen_loss, has_aux=True)(gens)
    history, shown = dict(state.history), dict(fake)
    for i, x in enumerate(OTHER if history else ()):
        history[x], shown[x] = remember(state.history[x], fake[x], jax.random.fold_in(key, i), axis_name)

    def disc_loss(discs):
        judges, of = layers.gathered(discs), {}
        for x in OTHER:
            logits = parted(discriminator.apply(judges[f"disc_{x}"], joined(real[x], shown[x])))
            of[f"loss/disc_{x}"] = discriminator_loss(*logits, cfg)
        return sum(of.values()), of

    (_, of_discs), more = jax.value_and_grad(disc_loss, has_aux=True)(discs)
    params, opt_state = descend(state, gradients | more, cfg, axis_name)
    return params, opt_state, history, {"loss/gen": total, **terms, **of_discs}


def paired_step(
    state: State, real: Mapping[str, jax.Array], key: jax.Array, cfg: Config, axis_name: str | None
) -> Step:
    """pix2pix's: the discriminator of pairs, then the generator against it."""
    generator, discriminator = generator_of(cfg), discriminator_of(cfg)
    (way,), x, y = cfg.ways, cfg.direction[0], cfg.direction[-1]

    def forward(params):
        return translated(generator, layers.gathered(params), real[x], key, cfg, axis_name)

    fake, pull_back = jax.vjp(forward, state.params[way])

    def disc_loss(params):
        pairs = (jnp.concatenate([real[x], picture], -1) for picture in (real[y], fake))
        logits = parted(discriminator.apply(layers.gathered(params), joined(*pairs)))
        return discriminator_loss(*logits, cfg)

    disc = f"disc_{y}"
    d_loss, gradient = jax.value_and_grad(disc_loss)(state.params[disc])
    params, opt_state = descend(state, {disc: gradient}, cfg, axis_name)

    def gen_loss(fake):
        logits = discriminator.apply(layers.gathered(params[disc]), jnp.concatenate([real[x], fake], -1))
        adversarial, l1 = generator_loss(logits, cfg), distance(fake, real[y])
        return adversarial + cfg.l1_weight * l1, {"loss/adversarial": adversarial, "loss/l1": l1}

    (total, terms), by_fake = jax.value_and_grad(gen_loss, has_aux=True)(fake)
    (gradient,) = pull_back(by_fake)
    moved = dataclasses.replace(state, params=params, opt_state=opt_state)
    params, opt_state = descend(moved, {way: gradient}, cfg, axis_name)
    return params, opt_state, state.history, {"loss/gen": total, **terms, f"loss/{disc}": d_loss}


def translated(
    generator: Any, params: Params, pictures: jax.Array, key: jax.Array, cfg: Config, axis_name: str | None
) -> jax.Array:
    """What the generator makes of pictures in training: in a U-Net with dropout, pix2pix's only noise."""
    if isinstance(generator, ResNetGenerator) or not cfg.dropout:
        return generator.apply(params, pictures)

    def drop(name: str, x: jax.Array) -> jax.Array:
        kept = dropout_mask(key, name, x.shape, cfg, axis_name)
        return jnp.where(kept, x / (1 - cfg.dropout), 0)

    return generator.apply(params, pictures, drop)


def dropout_mask(key: jax.Array, name: str, shape: tuple[int, ...], cfg: Config, axis_name: str | None) -> jax.Array:
    """What dropout keeps of a U-Net's layer "up8" or so, bool of the shape."""
    key = jax.random.fold_in(key, int(name.removeprefix("up")))
    return layers.global_draw(lambda s: jax.random.bernoulli(key, 1 - cfg.dropout, tuple(s)), shape, axis_name)


def contrastive_step(
    state: State, real: Mapping[str, jax.Array], key: jax.Array, cfg: Config, axis_name: str | None
) -> Step:
    """CUT's: the discriminator, then generator and heads against it."""
    generator, discriminator = generator_of(cfg), discriminator_of(cfg)
    assert isinstance(generator, ResNetGenerator)
    (way,), x, y = cfg.ways, cfg.direction[0], cfg.direction[-1]
    given = joined(real[x], real[y]) if cfg.nce_identity else real[x]

    def forward(params):
        params = layers.gathered(params)
        inner, features = generator.encode(params, given)
        return generator.decode(params, inner), {name: features[name] for name in compared_layers(cfg)}

    made, pull_back, of_given = jax.vjp(forward, state.params[way], has_aux=True)
    fake = parted(made)[0] if cfg.nce_identity else made

    def disc_loss(params):
        logits = parted(discriminator.apply(layers.gathered(params), joined(real[y], fake)))
        return discriminator_loss(*logits, cfg)

    disc = f"disc_{y}"
    d_loss, gradient = jax.value_and_grad(disc_loss)(state.params[disc])
    params, opt_state = descend(state, {disc: gradient}, cfg, axis_name)

    def gen_loss(made, params_of_generator, heads):
        weights, heads, judge = layers.gathered((params_of_generator, heads, params[disc]))
        fake = parted(made)[0] if cfg.nce_identity else made
        adversarial = generator_loss(discriminator.apply(judge, fake), cfg)
        of_made = generator.encode(weights, made)[1]
        nce = contrastive_loss(heads, of_made, of_given, key, cfg)  # of each picture
        terms = {"loss/adversarial": adversarial}
        if cfg.nce_identity:
            terms |= {
                f"loss/{name}": part.mean() for name, part in zip(("nce", "nce_identity"), parted(nce), strict=True)
            }
        else:
            terms["loss/nce"] = nce.mean()
        return adversarial + cfg.nce_weight * nce.mean(), terms

    arguments = made, state.params[way], state.params["heads"]
    (total, terms), (by_made, direct, of_heads) = jax.value_and_grad(gen_loss, (0, 1, 2), has_aux=True)(*arguments)
    gradient = jax.tree.map(jnp.add, pull_back(by_made)[0], direct)
    state = dataclasses.replace(state, params=params, opt_state=opt_state)
    params, opt_state = descend(state, {way: gradient, "heads": of_heads}, cfg, axis_name)
    return params, opt_state, state.history, {"loss/gen": total, **terms, f"loss/{disc}": d_loss}


def contrastive_loss(
    heads: Params, queries: Mapping[str, jax.Array], keys: Mapping[str, jax.Array], key: jax.Array, cfg: Config
) -> jax.Array:
    """PatchNCE of each picture, (b,) (eq. 3 and 4 of CUT), the mean over layers; features {layer: (b, h, w, c)}.

    queries: of what was made; keys: of what it was made of, whose place is to be told among places of that picture.
    """
    total = jnp.zeros(())
    for layer in compared_layers(cfg):
        b, h, w, c = queries[layer].shape
        places = compared_places(key, layer, h * w, cfg)
        query, answer = (describe(heads[layer], x[layer].reshape(b, h * w, c)[:, places]) for x in (queries, keys))
        logits = jnp.einsum("bnd,bmd->bnm", query, lax.stop_gradient(answer)) / cfg.nce_temperature
        right = jnp.diagonal(logits, axis1=1, axis2=2)
        total += (jax.nn.logsumexp(logits, axis=2) - right).mean(1)
    return total / len(compared_layers(cfg))


def compared_places(key: jax.Array, layer: str, count: int, cfg: Config) -> jax.Array:
    """Which of so many places of a layer are compared, the same in all pictures."""
    i = list(compared_layers(cfg)).index(layer)
    return jax.random.permutation(jax.random.fold_in(key, i), count)[: cfg.nce_patches]


def descend(
    state: State, gradients: Mapping[str, Params], cfg: Config, axis_name: str | None
) -> tuple[dict[str, Params], dict[str, Any]]:
    """(weights, states of their optimizers) after one step of these networks, the others as they were."""
    params, opt_state = dict(state.params), dict(state.opt_state)
    for name, gradient in layers.pmean(dict(gradients), axis_name).items():
        updates, opt_state[name] = optimizer(cfg).update(gradient, opt_state[name], params[name])
        moved: Any = optax.apply_updates(params[name], updates)
        params[name] = moved
    return params, opt_state


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


@dataclasses.dataclass(frozen=True)
class ApplySettings:
    """What `ganstyle apply` translates into what."""

    direction: Direction | None = None  # by default a2b, or the only way that the run goes


def requests(key: jax.Array, n: int, cfg: Config, examples: Mapping[str, Any]) -> dict[str, Any]:
    """Whole pictures of both sides, {"a", "b": (n, crop, crop, 3)}."""
    if cfg.mode == "paired":
        both = examples["ab"]["image"]
        found = {"a": both[:, :, : cfg.image_size], "b": both[:, :, cfg.image_size :]}
    else:
        found = {x: examples[x]["image"] for x in OTHER}
    return {x: _at_crop(pictures, cfg) for x, pictures in found.items()}


def _at_crop(pictures: Any, cfg: Config) -> Any:
    """Brought to the size of the parts that training sees, so that what is shown is of the scale of a whole picture."""
    if pictures.shape[1] == cfg.crop:
        return pictures
    small = jax.image.resize(pictures, (len(pictures), cfg.crop, cfg.crop, 3), "lanczos3")
    return jnp.clip(small, -1, 1)


def requests_of(pictures: Any, cfg: Config, settings: ApplySettings = ApplySettings()) -> dict[str, Any]:
    """The user's own pictures (n, h, w, 3), as those of the side that is translated. UserError for the other way."""
    direction = settings.direction or cfg.ways[0]
    if direction not in cfg.ways:
        raise UserError(f"--direction must be {cfg.ways[0]}, the only way that this run goes, got {direction}")
    return {direction[0]: pictures}


def generator(state: State, cfg: Config) -> dict[str, Params]:
    """{"a2b", "b2a": weights of `generator_of(cfg)`}, averaged where there is an average."""
    return {way: (state.ema or state.params)[way] for way in cfg.ways}


def sample(variables: Mapping[str, Params], requests: Mapping[str, jax.Array], cfg: Config) -> dict[str, jax.Array]:
    """Columns of a grid, (n, h, w, 3) in [-1, 1] each, of requests {"a", "b": (n, h, w, 3)}.

    Cycle: "a", "a to b", "back to a", "a as a" (what b2a makes of it, which is to be a itself), and as many for b.
    Contrastive: "a", "a to b", "b", "b as b". Paired: "a", "a to b", "b" as it should be, and "pair", a and what was
    made of it side by side, as the data has them. Of one side alone, itself and what becomes of it. The smallest side
    is 16 pixels; sides are padded by reflection to multiples of 4, of a U-Net to powers of two, and cropped again.
    """
    paint, found = generator_of(cfg).apply, {}
    given = {x: pictures.astype(cfg.dtype) for x, pictures in requests.items()}
    for x, y in OTHER.items():
        if x not in given or f"{x}2{y}" not in variables:
            continue
        found[x], made = given[x], paint(variables[f"{x}2{y}"], given[x])
        found[f"{x} to {y}"] = made
        if len(given) == 1:
            continue
        if cfg.mode == "cycle":
            found[f"back to {x}"] = paint(variables[f"{y}2{x}"], made)
            found[f"{x} as {x}"] = paint(variables[f"{y}2{x}"], given[x])
            continue
        found[y] = given[y]
        if cfg.mode == "paired":
            found["pair"] = jnp.concatenate([given[x], made] if x == "a" else [made, given[x]], 2)
        else:
            found[f"{y} as {y}"] = paint(variables[f"{x}2{y}"], given[y])
    return {title: pictures.astype(jnp.float32) for title, pictures in found.items()}


def judged(cfg: Config) -> tuple[str, str]:
    """What is made of a, with b; of pairs whole pairs, with those of the data."""
    if cfg.mode == "paired":
        return "pair", "ab"
    x, y = cfg.ways[0][0], cfg.ways[0][-1]
    return f"{x} to {y}", y


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong

INVERTED = -0.2  # correlation of brightness between input and output
UNCHANGED = 0.02  # mean absolute difference between input and output, of 2
ALIKE = 0.1  # how much outputs differ among themselves, of how much inputs do
CYCLED = 0.1  # cycle loss, below which pictures come back


def watch(
    metrics: Mapping[str, float], pictures: Mapping[str, np.ndarray], real: Mapping[str, Any]
) -> tuple[dict[str, float], str | None]:
    """Of each direction three numbers, and a warning once there are losses (step 0 has none).

    "colours": the correlation of brightness between input and output, the mean over pictures, negative where they are
    inverted, which a cycle can undo as well. "change": the mean absolute difference between the two. "variety": how
    much outputs differ among themselves, 1 being as much as inputs do.
    """
    numbers, found = {}, []
    for x, y in OTHER.items():
        title = f"{x} to {y}"
        if title not in pictures:
            continue
        before, after = (np.asarray(pictures[name], np.float64) for name in (x, title))
        colours, change = correlation(before, after), float(np.abs(after - before).mean())
        variety = diversity(after) / max(diversity(before), 1e-6)
        way = f"{x}2{y}"
        numbers |= {f"colours/{way}": colours, f"change/{way}": change, f"variety/{way}": variety}
        if colours < INVERTED:
            found.append(
                f"{title}: colours are inverted (brightness correlates by {colours:.2f} with the input's). If this "
                "stays, begin again with another --seed, or with more of --identity-weight"
            )
        if change < UNCHANGED and metrics.get("loss/cycle", 0.0) < CYCLED:
            found.append(
                f"{title}: nothing is changed (outputs differ from inputs by {change:.3f} of 2). Try less of "
                "--cycle-weight or --identity-weight, or see whether both sources hold the same pictures"
            )
        if len(before) > 1 and variety < ALIKE:
            found.append(
                f"{title}: one output for all (they differ by {variety:.3f} of what inputs do): the generator has "
                "collapsed, unless it has only begun to learn. Try more of --cycle-weight, or a lower --learning-rate"
            )
    return {name: round(value, 4) for name, value in numbers.items()}, " ".join(found) if found and metrics else None


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Of brightness over the places of each picture, the mean over pictures: (n, h, w, 3) twice -> [-1, 1]."""
    x, y = (pictures @ images.LUMA for pictures in (x, y))
    x, y = (luma - luma.mean((1, 2), keepdims=True) for luma in (x, y))
    return float(((x * y).mean((1, 2)) / np.maximum(x.std((1, 2)) * y.std((1, 2)), 1e-9)).mean())
