"""Generators to and from the files of the common PyTorch implementation, pytorch-CycleGAN-and-pix2pix.

`latest_net_G_A.pth` is the state dict of one `nn.Sequential`, `model`, whose parts are numbered by position, paddings
and activations too: "model.1.weight", "model.4.weight", ..., in a block "model.10.conv_block.1.weight". Where blocks
pad with zeros there is no part for that, and all numbers in them are lower; dropout is one more. The first versions of
2017 pad with zeros throughout and begin with "model.0.weight". The U-Net's levels lie in each other, as in
"model.model.1.model.3.model.1.weight".

It takes and gives colours in [-1, 1], as ours does. Normalisation is of each picture by itself, with or without scales
and shifts. The statistics that some files hold are passed over: the implementation's own test.py does not use them,
unless it is told to by --eval. Biases before a normalisation have no effect and are not kept, nor is dropout, which
training alone has. Others who build the same networks call what is in a block "block", which is read too. Blocks that
repeat their border look like those that reflect it, and are taken for such.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax.features import array_files, torch_files
from ganstyle_jax.features.array_files import not_finite
from ganstyle_jax.features.state_dicts import StateDict, plain_names
from ganstyle_jax.gan import cyclegan
from ganstyle_jax.io.files import UserError
from ganstyle_jax.nn.image_transform import layer_of, put_layer
from ganstyle_jax.nn.translation import Params, ResNetGenerator, UNetGenerator

Generator = ResNetGenerator | UNetGenerator
Names = dict[str, tuple[str, str | None]]  # of each layer, its convolution's and its normalisation's
IMPLEMENTATION = "pytorch-CycleGAN-and-pix2pix"
UNUSED = re.compile(r".*\.(running_mean|running_var|num_batches_tracked)")
BLOCK = re.compile(r"^(model\.\d+)\.block\.")  # what others who built the same call "conv_block"
CONV, TRANSPOSED = (3, 2, 0, 1), (2, 3, 0, 1)  # axes of a kernel of ours, as PyTorch orders them


def names_of(generator: Generator, dropout: bool = False) -> Names:
    """PyTorch's names of each layer of `generator.shapes`. dropout: whether it is a part of the blocks, or of "up"."""
    if isinstance(generator, UNetGenerator):
        return _unet_names(generator)
    first = 0 if generator.ends == "zero" else 1  # past the padding
    names: Names = {f"down{i + 1}": _sequential("model", first + 3 * i) for i in range(3)}
    begin, second = (0, 3) if generator.padding == "zero" else (1, 5)
    for i in range(generator.blocks):
        block = f"model.{first + 9 + i}.conv_block"
        names[f"block{i + 1}/first"] = _sequential(block, begin)
        names[f"block{i + 1}/second"] = _sequential(block, second + dropout)
    up = first + 9 + generator.blocks
    names |= {"up1": _sequential("model", up), "up2": _sequential("model", up + 3)}
    return names | {"out": (f"model.{up + 6 + first}", None)}


def _sequential(within: str, place: int) -> tuple[str, str | None]:
    return f"{within}.{place}", f"{within}.{place + 1}"


def _unet_names(generator: UNetGenerator) -> Names:
    """Level 1 is convolution, what lies within, ReLU, convolution; others begin with ReLU and have normalisations."""
    names: Names = {}
    block = "model.model"
    for level in range(1, generator.depth + 1):
        if level == 1:
            names["down1"], names["up1"] = (f"{block}.0", None), (f"{block}.3", None)
            block += ".1.model"
        elif level < generator.depth:
            names[f"down{level}"], names[f"up{level}"] = _sequential(block, 1), _sequential(block, 5)
            block += ".3.model"
        else:
            names[f"down{level}"], names[f"up{level}"] = (f"{block}.1", None), _sequential(block, 3)
    return names


def to_torch(params: Mapping[str, Any], generator: Generator) -> StateDict:
    """A generator's weights as a state dict, of the dtype that they have; biases without effect are 0.

    UserError for a network that the implementation does not have: one that enlarges before it convolves.
    """
    if isinstance(generator, ResNetGenerator) and generator.upsampling != "transposed":
        raise UserError(
            f"{IMPLEMENTATION} has no network with {generator.upsampling} enlargement: train with --upsampling "
            "transposed for it, or use ganstyle export"
        )
    state: StateDict = {}
    for layer, (conv, norm) in names_of(generator).items():
        weights = layer_of(params, layer)
        kernel = np.asarray(weights["kernel"])
        after = kernel.shape[3]
        state[f"{conv}.weight"] = np.ascontiguousarray(kernel.transpose(_axes(layer)))
        state[f"{conv}.bias"] = np.asarray(weights.get("bias", np.zeros(after, kernel.dtype)))
        if norm is not None and generator.affine:
            state[f"{norm}.weight"] = np.asarray(weights["scale"])
            state[f"{norm}.bias"] = np.asarray(weights.get("shift", np.zeros(after, kernel.dtype)))
    return state


def from_torch(state: Mapping[str, np.ndarray], silent: bool = False) -> tuple[Generator, Params]:
    """The inverse: the network and its weights, NumPy, float64 where the file is. UserError for another layout.

    silent: keep biases without effect too, which CUT compares two layers with.
    """
    left = {
        BLOCK.sub(r"\1.conv_block.", name): value
        for name, value in plain_names(state).items()
        if not UNUSED.fullmatch(name)
    }
    generator, dropout = _described(left)
    if isinstance(generator, ResNetGenerator):
        what = f"a ResNet generator of width {generator.width} with {generator.blocks} blocks"
    else:
        what = f"a U-Net generator of width {generator.width} and depth {generator.depth}"

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in left:
            raise UserError(f"the file has no {name}, which {what} needs")
        value = np.asarray(left.pop(name))
        if value.shape != shape:
            raise UserError(f"{name} has the shape {value.shape}, and {what} needs {shape}")
        if fault := not_finite(value, name):
            raise UserError(f"{fault}, so the training that it is from has failed; take an earlier state of it")
        return value.astype(np.promote_types(value.dtype, np.float32))

    params: Params = {}
    for layer, (conv, norm) in names_of(generator, dropout).items():
        shape = generator.shapes[layer]
        kernel = take(f"{conv}.weight", tuple(shape[axis] for axis in _axes(layer)))
        weights = {"kernel": np.ascontiguousarray(kernel.transpose(np.argsort(_axes(layer))))}
        bias = take(f"{conv}.bias", shape[3:])
        if norm is None or silent:
            weights["bias"] = bias
        if norm is not None and generator.affine:
            weights |= {"scale": take(f"{norm}.weight", shape[3:]), "shift": take(f"{norm}.bias", shape[3:])}
        put_layer(params, layer, weights)
    if left:
        raise UserError(f"the file also holds {', '.join(map(str, list(left)[:4]))}, for which {what} has no place")
    return generator, params


def _axes(layer: str) -> tuple[int, ...]:
    return TRANSPOSED if layer.startswith("up") else CONV


# ---------------------------------------------------------------------------------------------------------------------
# What network a state dict is of


def _kernel(state: Mapping[str, Any], name: str, side: int) -> Any:
    """The kernel of so many pixels that goes by this name, or None."""
    value: Any = state.get(f"{name}.weight")
    return value if getattr(value, "ndim", 0) == 4 and value.shape[2:] == (side, side) else None


def is_generator(state: Mapping[str, Any]) -> bool:
    """Whether a state dict begins as such a generator does."""
    return any(_kernel(state, name, side) is not None for name, side in (("model.0", 7), ("model.1", 7), (UNET, 4)))


UNET = "model.model.0"


def _described(state: Mapping[str, Any]) -> tuple[Generator, bool]:
    """The network whose names these are, and whether it was trained with dropout; its sizes are yet to be checked."""
    if not is_generator(state):
        held = ", ".join(str(name)[:40] for name in list(state)[:4]) or "nothing"
        raise UserError(
            f"this is no generator of {IMPLEMENTATION}: it holds {held}, ..., and neither model.0.weight or "
            f"model.1.weight of 7x7 pixels nor {UNET}.weight of 4x4"
        )
    try:
        unet: Any = _kernel(state, UNET, 4)
        generator, dropout = _resnet_of(state) if unet is None else (_unet_of(state, unet), False)
    except ValueError as error:  # no channels
        raise UserError(f"a generator of this shape is not accepted: {error}") from None
    normalised = [conv for conv, norm in names_of(generator, dropout).values() if norm is not None]
    if not any(f"{conv}.bias" in state for conv in normalised):
        raise UserError(
            "its convolutions have no biases, as those of networks that normalise over batches (--norm batch) or not "
            "at all; those with instance normalisation (--norm instance) are accepted"
        )
    return generator, dropout


def _resnet_of(state: Mapping[str, Any]) -> tuple[ResNetGenerator, bool]:
    first = 0 if _kernel(state, "model.0", 7) is not None else 1
    blocks = len({match[1] for name in state if (match := re.match(r"model\.(\d{1,4})\.conv_block\.", name))})
    inside = f"model.{first + 9}.conv_block"
    zero = _kernel(state, f"{inside}.0", 3) is not None
    dropout = _kernel(state, f"{inside}.{4 if zero else 6}", 3) is not None
    width, inputs = state[f"model.{first}.weight"].shape[:2]
    out = _kernel(state, f"model.{2 * first + 15 + blocks}", 7)
    generator = ResNetGenerator(
        width=width,
        blocks=blocks,
        padding="zero" if zero else "reflect",
        ends="reflect" if first else "zero",
        affine=f"model.{first + 1}.weight" in state,
        inputs=inputs,
        channels=3 if out is None else len(out),  # then its lack is told, by its name
    )
    return generator, dropout


def _unet_of(state: Mapping[str, Any], first: Any) -> UNetGenerator:
    depth, block = 1, "model.model.1.model"
    while f"{block}.1.weight" in state and depth < 16:
        depth, block = depth + 1, f"{block}.3.model"
    out = _kernel(state, "model.model.3", 4)
    width, inputs = first.shape[:2]
    if depth < 2:
        raise UserError("the file has no model.model.1.model.1.weight, the second layer of a U-Net")
    channels = 3 if out is None else out.shape[1]
    plain = UNetGenerator(width=width, depth=depth, inputs=inputs, channels=channels)
    return dataclasses.replace(plain, affine=f"{names_of(plain)['up2'][1]}.weight" in state)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def recognises(paths: list[Path]) -> bool:
    """Whether these are files of such generators. False too for what cannot be read."""
    try:
        return 1 <= len(paths) <= 2 and all(
            any(is_generator(state) for state in array_files.read(path).dicts.values()) for path in paths
        )
    except UserError:
        return False


def read(path: Path) -> tuple[Generator, Params]:
    """The generator in a .pth or .safetensors file, with all of its biases; UserError. Nothing in it is executed."""
    found = [state for state in array_files.read(path).dicts.values() if is_generator(state)]
    if len(found) != 1:
        raise UserError(f"{path} holds {len(found)} generators of {IMPLEMENTATION}: give a file of one")
    try:
        return from_torch(found[0], silent=True)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def config_of(generator: Generator, ways: tuple[cyclegan.Direction, ...]) -> cyclegan.Config:
    """Settings of a run with such generators: a cycle of two, else of the mode that has but one of this kind.

    UserError for networks that no run has. The sizes of training's pictures are the defaults, which the file does not
    tell; a U-Net goes with pictures that it takes down to one pixel.
    """
    if (generator.inputs, generator.channels) != (3, 3):
        raise UserError(
            f"it makes pictures of {generator.channels} channels out of such of {generator.inputs}, and runs are of "
            "pictures in colour, of 3 and 3"
        )
    unet = isinstance(generator, UNetGenerator)
    mode = "cycle" if len(ways) == 2 else "paired" if unet else "contrastive"
    given: dict[str, Any] = {"mode": mode, "direction": ways[0], "width": generator.width, "affine": generator.affine}
    if isinstance(generator, UNetGenerator):
        crop = 2**generator.depth
        given |= {"network": "unet", "crop": crop, "image_size": crop * 286 // 256}
    else:
        given |= {"network": "resnet", "blocks": generator.blocks}
        given |= {"padding": generator.padding, "ends": generator.ends}
    try:
        cfg = cyclegan.Config(**given)
    except ValueError as error:
        raise UserError(f"a run with such a generator is not accepted: {error}") from None
    if cyclegan.generator_of(cfg) != generator:
        raise UserError(f"no run has a U-Net of depth {crop.bit_length() - 1}: 3 to 8 are accepted")
    return cfg


def import_files(paths: list[Path], out: Path) -> str:
    """Makes the run folder `out` of one or two generators' files, to paint with and to begin with; returns a sentence.

    The names of the files tell which way they go: G_A from a to b, G_B back. Without those the first goes from a to b.
    """
    from ganstyle_jax.loop import runs
    from ganstyle_jax.loop.checkpoints import Checkpoints
    from ganstyle_jax.loop.settings import Loop

    if (out / "run.json").exists():
        raise UserError(f"{out} already holds a run: choose another --out")
    ways = _ways_of(paths)
    found = {way: read(path) for way, path in ways.items()}
    generators = [generator for generator, _ in found.values()]
    if generators[0] != generators[-1]:
        raise UserError(
            f"{paths[0]} and {paths[1]} hold different networks, and the two of a run are alike: convert each by itself"
        )
    try:
        cfg = config_of(generators[0], tuple(way for way in ("a2b", "b2a") if way in found))
    except UserError as error:
        raise UserError(f"{paths[0]}: {error}") from None
    state: Any = cyclegan.init(jax.random.key(0), cfg)
    weights = {way: _as(state.params[way], params) for way, (_, params) in found.items()}
    state = state.replace(params=state.params | weights)
    said = "weights of " + " and ".join(path.name for path in paths)
    runs.write(out, cyclegan, runs.describe(cyclegan, cfg, said, Loop(run_dir=out)))
    checkpoints = Checkpoints(out)
    checkpoints.save(0, state)
    checkpoints.close()
    kind = "U-Net" if isinstance(generators[0], UNetGenerator) else f"ResNet with {cfg.blocks} blocks"
    each = " and ".join(f"{way} of {path.name}" for way, path in sorted(ways.items()))
    one = "" if len(ways) == 2 else f", the mode {cfg.mode}, which has no other"
    return f"{each} ({kind}, width {cfg.width}{one}) in the run folder {out}: ganstyle apply {out} PICTURE"


def _as(like: Any, params: Any) -> Any:
    """What a run keeps of them: as the tree `like` is, of its dtype."""
    if isinstance(like, Mapping):
        return {name: _as(part, params[name]) for name, part in like.items()}
    return jnp.asarray(params, like.dtype)


def _ways_of(paths: list[Path]) -> dict[cyclegan.Direction, Path]:
    parts: dict[cyclegan.Direction, str] = {"a2b": "G_A", "b2a": "G_B"}
    named: dict[Path, cyclegan.Direction] = {
        path: way for path in paths for way, part in parts.items() if part in path.name
    }
    left: list[cyclegan.Direction] = [way for way in parts if way not in named.values()]
    ways: dict[cyclegan.Direction, Path] = {}
    for path in paths:
        way = named[path] if path in named else left.pop(0)
        if way in ways:
            raise UserError(f"{ways[way]} and {path} are both named as the generator {way}: give one of each way")
        ways[way] = path
    return ways


def export_run(run_dir: Path, out: Path, file_format: Literal["pth", "safetensors"], averaged: bool) -> str:
    """Writes the generators of a run into the folder `out`, under the implementation's names; returns a sentence.

    averaged: weights averaged over training, where the run has such; else the last.
    """
    from ganstyle_jax.loop import runs

    run = runs.load(run_dir)
    weights = (averaged and run.state.ema) or run.state.params
    names = {"a2b": "latest_net_G_A", "b2a": "latest_net_G_B"} if len(run.cfg.ways) == 2 else {}
    generator = cyclegan.generator_of(run.cfg)
    files = []
    for way in run.cfg.ways:
        files.append(out / f"{names.get(way, 'latest_net_G')}.{file_format}")
        torch_files.write_weights(files[-1], to_torch(weights[way], generator))
    return f"step {run.step} of {run_dir} is in {', '.join(map(str, files))}"
