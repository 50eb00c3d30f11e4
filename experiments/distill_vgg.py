"""The compact perceptual network that ships with the package, distilled from VGG-19.

Paper: Wang et al. 2020 (arXiv:2003.08436), who distil VGG-19 for style transfer to a sixteenth of its size; their
    encoder is one of the two teachers.
Data: the teachers, the first three blocks of VGG-19 (Simonyan & Zisserman 2015, CC BY 4.0) and the encoder of Wang et
    al. (MIT); the pictures, 1,670 photographs and 2,048 paintings of PACS (Li et al. 2017) at 160 pixels and 1,000
    photographs of ImageNet (Deng et al. 2009) at 256 pixels, for research. All are expected in the folder --data.
Hardware and time: two CPU cores (AMD EPYC), 17 minutes for 6,000 steps, 28 beside other work.
Expected: experiments/results/distill_vgg.json: squared errors of 0.1 to 1.6 % in the encoder's five taps, on pictures
    that were not trained on. What that means for pictures is in compact_against_teacher.py.
Command: python experiments/distill_vgg.py

The student begins as the encoder without the channels that matter least: 637,000 weights of 810,000. (Trained from
random weights, without the last convolutions of blocks 3 and 4, it still had errors of 18 to 21 % in the last three
taps after 3,000 steps.) Each layer that is as wide as the encoder's learns to equal it over its root mean square, so
that Gram matrices and distances mean the same in both; a linear head on each of the first three taps, which is thrown
away, learns the real VGG-19's. Both are judged by the squared error over the mean square of the target, of features and
of Gram matrices. Half of the pictures are disturbed (noise, contrast, tint), because the images that style transfer
meets on its way are not photographs.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import lax
from tqdm import trange

from ganstyle_jax import cli, vgg, weights
from ganstyle_jax import data as data_module
from ganstyle_jax.checkpoints import Checkpoints
from ganstyle_jax.files import UserError

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine

TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
# Padded like the encoder, so that borders do not count; what ships pads as vgg.COMPACT says, which is quicker.
STUDENT = dataclasses.replace(vgg.COMPACT, padding="reflect", first_padding=None)
# Layers as wide as the encoder's, which the student learns to equal; those between are narrower.
MATCHED = (*TAPS[:1], "relu1_2", "relu2_1", "relu2_2", "relu3_1", "relu3_4", "relu4_1", "relu4_4", "relu5_1")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long, and on what."""

    data: Path = machine.ROOT / ".." / "shared" / "data"  # folder with weights/ and datasets/
    run_dir: Path = Path("runs/distill_vgg")  # checkpoints; the same command goes on from the last one
    out: Path | None = None  # the weights, .safetensors; by default compact.safetensors in the run folder
    steps: int = 6_000
    batch_size: int = 8
    crop: int = 96  # pixels
    learning_rate: float = 1e-3  # of Adam, down to 0 along a cosine
    gram_weight: float = 0.3  # of the error of Gram matrices, beside that of features
    vgg_weight: float = 0.1  # of the errors against the real VGG-19, beside those against the encoder
    vgg_share: int = 8  # one in so many pictures is shown to the real VGG-19, which takes longest
    seed: int = 0
    json: Path | None = Path("distill_vgg.json")  # file for the record; a bare name goes into experiments/results/


def main(settings: Settings) -> None:
    cli.use_cache()
    folder = settings.data / "weights"
    teacher, teacher_params = weights.load_for_style(folder / "vgg19_16x_distilled" / "5SE.pth")
    real, real_params = weights.load_for_style(folder / "vgg19_block1_to_block3.npz")
    assert isinstance(real, vgg.VGG)
    pictures = load_pictures(settings.data / "datasets")
    training, held_out = pictures[: -len(pictures) // 20], pictures[-len(pictures) // 20 :]

    key_train = jax.random.key(settings.seed)
    schedule = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, settings.steps // 50, settings.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    some = data_module.to_float(training[:64])
    scales = {layer: jnp.sqrt(jnp.mean(x**2)) for layer, x in teacher.apply(teacher_params, some, MATCHED).items()}
    real_scales = {tap: jnp.sqrt(jnp.mean(x**2)) for tap, x in real.apply(real_params, some[:8], TAPS[:3]).items()}

    def features(params, images):
        """Errors of features and of Gram matrices by tap."""
        student = STUDENT.apply(params["student"], images, MATCHED)
        targets = teacher.apply(teacher_params, images, MATCHED)
        errors = {
            f"encoder/{layer}": relative_errors(student[layer], targets[layer] / scales[layer]) for layer in MATCHED
        }
        few = images[:: settings.vgg_share]
        for tap, target in real.apply(real_params, few, TAPS[:3]).items():
            found = student[tap][:: settings.vgg_share] @ params["heads"][tap]
            errors[f"vgg19/{tap}"] = relative_errors(found, target / real_scales[tap])
        return errors

    def loss_function(params, images):
        errors = features(params, images)
        weight = {"encoder": 1.0, "vgg19": settings.vgg_weight}
        terms = [
            weight[name.split("/")[0]] * (value + settings.gram_weight * gram) for name, (value, gram) in errors.items()
        ]
        return sum(terms), errors

    @jax.jit
    def train(state, training, start, count):
        def step(i, carry):
            (params, opt_state), _ = carry
            key = jax.random.fold_in(key_train, i)
            images = draw(key, training, settings.batch_size, settings.crop)
            (loss, _), gradients = jax.value_and_grad(loss_function, has_aux=True)(params, images)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        return lax.fori_loop(start, start + count, step, (state, jnp.zeros(())))

    def init():
        student = prune(teacher, teacher_params, some)
        heads = {}
        for tap, target in real.apply(real_params, some[:8], TAPS[:3]).items():
            found = STUDENT.apply(student, some[:8], (tap,))[tap]
            flat, flat_target = (x.reshape(-1, x.shape[-1]) for x in (found, target / real_scales[tap]))
            heads[tap] = jnp.linalg.solve(
                flat.T @ flat + 1e-3 * len(flat) * jnp.eye(flat.shape[1]), flat.T @ flat_target
            )
        params = {"student": student, "heads": heads}
        return params, optimizer.init(params)

    state = init()
    checkpoints = Checkpoints(settings.run_dir)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state)
    step, state = checkpoints.restore(abstract) or (0, state)
    training = jnp.asarray(training)
    chunk = min(20, settings.steps)
    with checkpoints, trange(step, settings.steps, chunk, initial=step // chunk, total=settings.steps // chunk) as bar:
        for start in bar:
            state, loss = train(state, training, start, chunk)
            bar.set_postfix_str(f"loss {float(loss):.4f}")
            if (start + chunk) % 500 == 0 or start + chunk >= settings.steps:
                checkpoints.save(start + chunk, state)

    errors = evaluate(jax.jit(features), state[0], held_out, settings)
    print(json.dumps(errors, indent=1))
    out = settings.out or settings.run_dir / "compact.safetensors"
    weights.write(out, vgg.COMPACT, state[0]["student"], np.float16)
    if settings.json is not None:
        record: dict[str, Any] = machine.describe() | {
            "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "optax", "numpy")),
            "settings": {k: v for k, v in dataclasses.asdict(settings).items() if not isinstance(v, Path)},
            "pictures": {"training": len(training), "held_out": len(held_out)},
            "held_out_relative_errors": errors,
        }
        machine.write_record(settings.json, record)


def load_pictures(folder: Path) -> np.ndarray:
    """All pictures (n, 160, 160, 3) uint8, in a mixed order."""
    sets = []
    for name in ("pacs_photo_art_160px.zip", "imagenet_sample_1000_256px.zip"):
        source = data_module.open_source(str(folder / name), 160, channels=3)
        sets.append(np.stack([source.read(i)["image"] for i in range(source.size or 0)]))
    pictures = np.concatenate(sets)
    return pictures[np.random.default_rng(0).permutation(len(pictures))]


def prune(teacher: vgg.Network, params: vgg.Params, images: jax.Array) -> vgg.Params:
    """The encoder without the channels that matter least, each layer over its root mean square, the student's start.

    A channel matters as much as its root mean square on the images times the norm of the next layer's weights for it.
    """
    layers = [name for name in teacher.names if name.startswith("relu")]
    found = teacher.apply(params, images, layers)
    student = {"input": params["input"]}
    kept, scale = jnp.arange(3), 1.0
    widths = [width for block in STUDENT.channels for width in block]
    for layer, following, width in zip(layers, [*layers[1:], None], widths, strict=True):
        kernel, bias = (params[layer.replace("relu", "conv")][part] for part in ("kernel", "bias"))
        matters = jnp.sqrt(jnp.mean(found[layer] ** 2, (0, 1, 2)))
        if following is not None:
            matters *= jnp.sqrt(jnp.sum(params[following.replace("relu", "conv")]["kernel"] ** 2, (0, 1, 3)))
        before, kept = kept, jnp.sort(jnp.argsort(-matters)[:width])
        before_scale, scale = scale, jnp.sqrt(jnp.mean(found[layer] ** 2))
        student[layer.replace("relu", "conv")] = {
            "kernel": kernel[:, :, before][..., kept] * before_scale / scale,
            "bias": bias[kept] / scale,
        }
    return student


def draw(key: jax.Array, pictures: jax.Array, n: int, crop: int) -> jax.Array:
    """n random crops, (n, crop, crop, 3) float32 in [-1, 1], half of them mirrored and every second disturbed."""

    def one(key, disturb):
        keys = jax.random.split(key, 7)
        room = pictures.shape[1] - crop + 1
        i = jax.random.randint(keys[0], (), 0, len(pictures))
        top, left = jax.random.randint(keys[1], (2,), 0, room)
        image = lax.dynamic_slice(pictures, (i, top, left, 0), (1, crop, crop, 3))[0]
        image = data_module.to_float(image)
        image = jnp.where(jax.random.bernoulli(keys[2]), image, image[:, ::-1])
        gain = jax.random.uniform(keys[3], (3,), minval=0.5, maxval=1.5)
        tint = 0.3 * jax.random.normal(keys[4], (3,))
        noise = 0.3 * jax.random.uniform(keys[5]) ** 2 * jax.random.normal(keys[6], image.shape)
        return jnp.where(disturb, jnp.clip(image * gain + tint + noise, -1, 1), image)

    return jax.vmap(one)(jax.random.split(key, n), jnp.arange(n) // 2 % 2 == 0)


def relative_errors(found: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squared error over mean square of the target, of features (b, h, w, c) and of their Gram matrices."""
    gram_found, gram_target = (jnp.einsum("bhwc,bhwd->bcd", x, x) / x[0, ..., 0].size for x in (found, target))
    value = jnp.mean((found - target) ** 2) / jnp.mean(target**2)
    return value, jnp.mean((gram_found - gram_target) ** 2) / jnp.mean(gram_target**2)


def evaluate(features: Any, params: Any, held_out: np.ndarray, settings: Settings) -> dict[str, dict[str, float]]:
    """Mean errors on pictures that were not trained on, undisturbed."""
    n = settings.batch_size
    batches = [data_module.to_float(held_out[i : i + n]) for i in range(0, len(held_out) - n + 1, n)]
    errors = [jax.tree.map(float, features(params, batch)) for batch in batches]
    mean = jax.tree.map(lambda *values: float(np.mean(values)), *errors)
    return {tap: {"features": round(value, 5), "gram": round(gram, 5)} for tap, (value, gram) in mean.items()}


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
