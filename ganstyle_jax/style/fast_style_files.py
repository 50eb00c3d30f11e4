"""Networks of fast style transfer to and from the files of the common PyTorch example (`fast_neural_style`).

There the layers are conv1, conv2, conv3, res1.., deconv1, deconv2, deconv3, each with its convolution in `.conv2d`, and
in1.. are the instance normalisations; files of 2017 and 2018 hold running statistics too, which were never used. The
network takes RGB in 0..255 and gives it, to be clipped, without tanh. Both maps are affine in the colours, so the first
and last kernels take them up: reflected borders are the same before and after. Biases before a normalisation have no
effect and are not kept.

Differs where sides are no multiples of 4: there the example's pictures grow to the next one, and ours are cropped.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ganstyle_jax.features import array_files, torch_files
from ganstyle_jax.features.array_files import not_finite
from ganstyle_jax.features.state_dicts import StateDict, plain_names
from ganstyle_jax.io.files import UserError
from ganstyle_jax.nn.image_transform import ImageTransform, Params, layer_of, put_layer
from ganstyle_jax.style import fast_style

HALF = 127.5  # of colours in 0..255, whose middle it is
UNUSED = re.compile(r"(.*\.)?in\d+\.(running_mean|running_var|num_batches_tracked)")
FIRST = "conv1.conv2d.weight"


def names_of(transform: ImageTransform) -> dict[str, tuple[str, str | None]]:
    """Of each layer of `transform.shapes`, the example's names of its convolution and its normalisation."""
    names: dict[str, tuple[str, str | None]] = {f"down{i}": (f"conv{i}", f"in{i}") for i in (1, 2, 3)}
    for i in range(1, transform.blocks + 1):
        for j, half in ((1, "first"), (2, "second")):
            names[f"block{i}/{half}"] = f"res{i}.conv{j}", f"res{i}.in{j}"
    return names | {"up1": ("deconv1", "in4"), "up2": ("deconv2", "in5"), "out": ("deconv3", None)}


def to_torch(params: Mapping[str, Any], transform: ImageTransform, blend: Any) -> StateDict:
    """A blend of the styles, (styles,) weights that sum to 1, as a state dict in float32.

    UserError for a network that the example's cannot be: one with tanh, or with transposed convolutions.
    """
    if transform.output != "clip" or transform.upsampling != "nearest":
        what = "with tanh" if transform.output != "clip" else "with transposed convolutions"
        raise UserError(
            f"the PyTorch example has no network {what}: train with --output clip --upsampling nearest for it, or use "
            "ganstyle export"
        )
    state: StateDict = {}
    for layer, (conv, norm) in names_of(transform).items():
        weights = layer_of(params, layer)
        kernel, bias = (np.asarray(weights[part], np.float64).copy() for part in ("kernel", "bias"))
        if layer == "down1":
            kernel /= HALF
            bias -= HALF * kernel.sum((0, 1, 2))
        if layer == "out":
            kernel, bias = HALF * kernel, HALF * (bias + 1)
        state[f"{conv}.conv2d.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1), np.float32)
        state[f"{conv}.conv2d.bias"] = bias.astype(np.float32)
        if norm is not None:
            scale, shift = (np.asarray(blend, np.float64) @ np.asarray(weights[x]) for x in ("scale", "shift"))
            state[f"{norm}.weight"], state[f"{norm}.bias"] = scale.astype(np.float32), shift.astype(np.float32)
    return state


def from_torch(state: Mapping[str, np.ndarray]) -> tuple[fast_style.Config, Params]:
    """The inverse: settings and weights of a network of one style, float32. UserError for another layout."""
    left = {name: value for name, value in plain_names(state).items() if not UNUSED.fullmatch(name)}
    if FIRST not in left or getattr(left[FIRST], "ndim", 0) != 4:
        held = ", ".join(str(name)[:40] for name in list(state)[:4]) or "nothing"
        raise UserError(f"this is no network of the example fast_neural_style: it holds {held}, ..., and no {FIRST}")
    blocks = len({match[1] for name in left if (match := re.fullmatch(r"res(\d{1,3})\.conv1\.conv2d\.weight", name))})
    cfg = fast_style.Config(width=len(left[FIRST]), blocks=blocks, output="clip")
    transform, params = fast_style.network(cfg), {}

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in left:
            raise UserError(f"the file has no {name}, which a network of width {cfg.width} with {blocks} blocks needs")
        value = np.asarray(left.pop(name))
        if value.shape != shape:
            raise UserError(f"{name} has the shape {value.shape}, and a network of width {cfg.width} needs {shape}")
        if fault := not_finite(value, name):
            raise UserError(f"{fault}, so the training that it is from has failed; take an earlier state of it")
        return value.astype(np.float64)

    for layer, (conv, norm) in names_of(transform).items():
        rows, columns, before, after = transform.shapes[layer]
        kernel = take(f"{conv}.conv2d.weight", (after, before, rows, columns)).transpose(2, 3, 1, 0)
        bias = take(f"{conv}.conv2d.bias", (after,))
        if layer == "down1":
            bias += HALF * kernel.sum((0, 1, 2))
            kernel = HALF * kernel
        if layer == "out":
            kernel, bias = kernel / HALF, bias / HALF - 1
        weights = {"kernel": kernel, "bias": bias}
        if norm is not None:
            weights["scale"] = take(f"{norm}.weight", (after,))[None]
            weights["shift"] = take(f"{norm}.bias", (after,))[None]
        weights = {part: jax.device_put(np.asarray(x, np.float32)) for part, x in weights.items()}
        put_layer(params, layer, weights)
    if left:
        raise UserError(f"the file also holds {', '.join(map(str, list(left)[:4]))}, for which there is no place")
    return cfg, params


# ---------------------------------------------------------------------------------------------------------------------
# Files


def recognises(paths: list[Path]) -> bool:
    """Whether this is one file that begins as such a network does. False too for what cannot be read."""
    try:
        return len(paths) == 1 and any(FIRST in state for state in array_files.read(paths[0]).dicts.values())
    except UserError:
        return False


def import_files(paths: list[Path], out: Path) -> str:
    """Makes the run folder `out` of a network's file, to paint with and to begin with; returns a sentence."""
    from ganstyle_jax.loop import runs
    from ganstyle_jax.loop.checkpoints import Checkpoints
    from ganstyle_jax.loop.settings import Loop

    if (out / "run.json").exists():
        raise UserError(f"{out} already holds a run: choose another --out")
    (path,) = paths
    found = [state for state in array_files.read(path).dicts.values() if FIRST in state]
    if len(found) > 1:
        raise UserError(f"{path} holds {len(found)} networks: save one of them by itself")
    try:
        cfg, params = from_torch(found[0])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    runs.write(out, fast_style, runs.describe(fast_style, cfg, f"weights of {path.name}", Loop(run_dir=out)))
    checkpoints = Checkpoints(out)
    checkpoints.save(0, fast_style.state_of(params, cfg))
    checkpoints.close()
    return f"the network of {path.name}, width {cfg.width}, is in the run folder {out}: ganstyle apply {out} PICTURE"


def export_run(run_dir: Path, out: Path, file_format: Literal["pth", "safetensors"], averaged: bool) -> str:
    """Writes each style of a run into the folder `out`, as the example's network; returns a sentence.

    averaged: weights as pictures are painted with, averaged over training; else the last.
    """
    from ganstyle_jax.loop import runs

    run = runs.load(run_dir)
    transform = fast_style.network(run.cfg)
    params = transform.whole(run.state.ema if averaged else run.state.params)
    names = [path.stem for path in run.cfg.style] or ["style"]
    if len(set(names)) < len(names):
        names = [f"{i}_{name}" for i, name in enumerate(names, start=1)]
    states = {name: to_torch(params, transform, blend) for name, blend in zip(names, np.eye(len(names)), strict=True)}
    for name, state in states.items():
        torch_files.write_weights(out / f"{name}.{file_format}", state)
    files = ", ".join(str(out / f"{name}.{file_format}") for name in names)
    return f"step {run.step} of {run_dir} is in {files}"
