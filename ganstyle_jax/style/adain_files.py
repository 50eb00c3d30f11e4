"""AdaIN's decoder to and from the file of the common PyTorch version (pytorch-AdaIN's decoder.pth).

There the decoder is one `nn.Sequential` of ReflectionPad2d, Conv2d and ReLU, with an Upsample where the picture grows,
numbered by position: "1.weight", "1.bias", "5.weight", ... for VGG-19. It gives RGB in [0, 1], where ours gives it in
[-1, 1]: the last convolution is mapped. Its encoder, vgg_normalised.pth, is read by `ganstyle weights import`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax.features import array_files, torch_files
from ganstyle_jax.features.array_files import not_finite
from ganstyle_jax.features.image_layers import Params
from ganstyle_jax.features.state_dicts import StateDict, plain_names
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style import adain


def positions(found: list[adain.Layer]) -> list[int]:
    """Where in the Sequential each convolution is: before it a padding, after it a ReLU and, if so, an Upsample."""
    places, place = [], 1
    for layer in found:
        places.append(place)
        place += 4 if layer.enlarge else 3
    return places


def decoder_to_torch(params: Mapping[str, Any], cfg: adain.Config) -> StateDict:
    """The decoder's weights as a state dict, float32, of RGB in [0, 1]."""
    found = adain.decoder_layers(adain.encoder(cfg), cfg.width)
    state: StateDict = {}
    for layer, place in zip(found, positions(found), strict=True):
        kernel, bias = (np.asarray(params[layer.name][part], np.float64) for part in ("kernel", "bias"))
        if layer is found[-1]:
            kernel, bias = kernel / 2, (bias + 1) / 2
        state[f"{place}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1), np.float32)
        state[f"{place}.bias"] = bias.astype(np.float32)
    return state


def decoder_from_torch(state: Mapping[str, np.ndarray], cfg: adain.Config) -> Params:
    """The inverse of `decoder_to_torch`. UserError where names or shapes are not those of this encoder's decoder."""
    left = plain_names(state)
    found = adain.decoder_layers(adain.encoder(cfg), cfg.width)
    what = f"the decoder of {cfg.encoder}" + f" at width {cfg.width:g}" * (cfg.width != 1)
    params: Params = {}
    for layer, place in zip(found, positions(found), strict=True):
        taken = []
        for part, shape in (("weight", (layer.after, layer.before, 3, 3)), ("bias", (layer.after,))):
            name = f"{place}.{part}"
            if name not in left:
                held = ", ".join(str(name)[:40] for name in list(state)[:4]) or "nothing"
                raise UserError(
                    f"{what} needs {name}, and the file holds {held}, ...: give pytorch-AdaIN's decoder.pth"
                )
            value = left.pop(name)
            if value.shape != shape:
                raise UserError(
                    f"{name} has the shape {value.shape}, but {what} needs {shape}: give the encoder that it was "
                    "trained with"
                )
            if fault := not_finite(value, name):
                raise UserError(f"{fault}, so the training that it is from has failed; take an earlier state of it")
            taken.append(value.astype(np.float64))
        kernel, bias = taken[0].transpose(2, 3, 1, 0), taken[1]
        if layer is found[-1]:
            kernel, bias = 2 * kernel, 2 * bias - 1
        params[layer.name] = {
            "kernel": jax.device_put(np.asarray(kernel, cfg.dtype)),
            "bias": jax.device_put(np.asarray(bias, cfg.dtype)),
        }
    if left:
        raise UserError(f"the file also holds {', '.join(list(left)[:4])}, for which {what} has no place")
    return params


def read(path: Path | str, cfg: adain.Config) -> Params:
    """The decoder of a .pth or .safetensors file; UserError. Nothing that the file contains is executed."""
    dicts = array_files.read(Path(path)).dicts
    if len(dicts) != 1:
        raise UserError(f"{path} holds {len(dicts)} state dicts: give a file of the decoder alone")
    (state,) = dicts.values()
    try:
        return decoder_from_torch(state, cfg)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def import_file(path: Path, encoder: str, out: Path) -> str:
    """Makes the run folder `out` of a decoder's file, to paint with and to go on from; returns a sentence.

    encoder: the one that it was trained with, by name or file. The optimizer is new.
    """
    from ganstyle_jax.loop import runs
    from ganstyle_jax.loop.checkpoints import Checkpoints
    from ganstyle_jax.loop.settings import Loop

    if (out / "run.json").exists():
        raise UserError(f"{out} already holds a run: choose another --out")
    cfg = adain.Config(encoder=encoder)
    params = read(path, cfg)
    state = adain.init(jax.random.key(0), cfg, {})
    state = dataclasses.replace(state, params=params, ema=jax.tree.map(jnp.copy, params))
    runs.write(out, adain, runs.describe(adain, cfg, f"weights of {path.name}", Loop(run_dir=out)))
    checkpoints = Checkpoints(out)
    checkpoints.save(0, state)
    checkpoints.close()
    return f"the decoder of {path.name} for the encoder {encoder} is in the run folder {out}"


def recognises(paths: list[Path]) -> bool:
    """Whether this is one file of a decoder: a Sequential that begins and ends as it does, without an encoder's 1x1."""
    try:
        dicts = list(array_files.read(paths[0]).dicts.values()) if len(paths) == 1 else []
    except UserError:
        return False
    return any("1.weight" in state and "0.weight" not in state and _is_sequential(state) for state in dicts)


def _is_sequential(state: Mapping[str, Any]) -> bool:
    return all(name.partition(".")[0].isdecimal() for name in map(str, state))


def import_files(paths: list[Path], out: Path) -> str:
    """UserError: a decoder alone does not say which encoder it belongs to; see `import_file`."""
    raise UserError(
        f"{paths[0]} is a decoder as AdaIN has it, of some encoder: name that, as --encoder vgg_normalised after "
        "`ganstyle weights import vgg_normalised.pth`"
    )


def export_run(run_dir: Path, out: Path, file_format: Literal["pth", "safetensors"], averaged: bool) -> str:
    """Writes the decoder of a run into the folder `out`, for PyTorch; returns a sentence.

    averaged: weights as pictures are painted with, averaged over training; else the last.
    """
    from ganstyle_jax.loop import runs

    run = runs.load(run_dir)
    state = decoder_to_torch(run.state.ema if averaged else run.state.params, run.cfg)
    path = out / f"decoder.{file_format}"
    torch_files.write_weights(path, state)
    return f"the decoder of step {run.step} of {run_dir} is in {path}"
