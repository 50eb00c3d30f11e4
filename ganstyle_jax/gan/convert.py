"""DCGAN weights to and from the state dicts of the common PyTorch DCGAN example (`netG`, `netD`).

There a network is one `nn.Sequential` called `main`: the generator repeats (ConvTranspose2d, BatchNorm2d, ReLU) and
ends in (ConvTranspose2d, Tanh); the discriminator is (Conv2d, LeakyReLU), repeated (Conv2d, BatchNorm2d, LeakyReLU) and
(Conv2d, Sigmoid). No convolution has a bias. Both are numbered by position, so the layers with weights are main.0,
main.1, main.3, main.4, main.6, ... in the generator and main.0, main.2, main.3, main.5, ... in the discriminator.
"""

import dataclasses
import os.path
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from ganstyle_jax.features import array_files, torch_files
from ganstyle_jax.features.array_files import not_finite
from ganstyle_jax.features.state_dicts import StateDict, plain_names
from ganstyle_jax.gan import dcgan
from ganstyle_jax.io.files import UserError

if TYPE_CHECKING:
    from ganstyle_jax.loop import runs  # else only where a run folder is read or written: no method needs the loop


def export_run(run_dir: Path, out: Path, file_format: Literal["pth", "safetensors"], averaged: bool) -> str:
    """Writes netG and netD of a DCGAN run into the folder `out`; returns a sentence that says where they are.

    averaged: the generator as samples are made from it, with averaged weights; else its last weights.
    """
    from ganstyle_jax.loop import runs

    if (method := runs.read(run_dir)["method"]) != "dcgan":
        raise UserError(f"only runs of dcgan can be converted, and {run_dir} is one of {method}")
    run = runs.load(run_dir)
    # A run made from files keeps their statistics; "batch" has none to write.
    cfg = dataclasses.replace(run.cfg, batch_norm="standing") if run.cfg.batch_norm == "batch" else run.cfg
    variables = jax.jit(dcgan.generator, static_argnums=1)(run.state, cfg) if averaged else run.state.gen.variables
    networks = {
        "netG": generator_to_torch(variables, cfg),
        "netD": discriminator_to_torch(run.state.disc.variables, cfg),
    }
    for name, state in networks.items():
        torch_files.write_weights(out / f"{name}.{file_format}", state)
    return f"step {run.step} of {run_dir} is in {out / f'netG.{file_format}'} and {out / f'netD.{file_format}'}"


def import_files(paths: list[Path], out: Path) -> str:
    """Makes the run folder `out` from netG and, if given, netD; returns a sentence.

    The order does not matter, and both may be in one file. Without netD the discriminator is new. The optimizers are
    new: such a run is for sampling and for --init-from.
    """
    from ganstyle_jax.loop import runs
    from ganstyle_jax.loop.checkpoints import Checkpoints
    from ganstyle_jax.loop.train import Loop

    if (out / "run.json").exists():
        raise UserError(f"{out} already holds a run: choose another --out")
    cfg, state, found = state_of_files(paths)
    runs.write(out, dcgan, runs.describe(dcgan, cfg, f"weights of {paths[0].name}", Loop(run_dir=out)))
    checkpoints = Checkpoints(out)
    checkpoints.save(0, jax.tree.map(jax.numpy.asarray, state))
    checkpoints.close()
    return f"{' and '.join(found)} of {cfg.image_size} pixels, width {cfg.width}, are in the run folder {out}"


def load(paths: list[Path], **overrides: Any) -> "runs.LoadedRun":
    """What `import_files` makes of the files, as `runs.load` gives it, and no run folder left."""
    from ganstyle_jax.loop import runs

    with tempfile.TemporaryDirectory() as folder:
        import_files(paths, Path(folder, "run"))
        return runs.load(Path(folder, "run"), **overrides)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def state_of_files(paths: list[Path]) -> tuple[dcgan.Config, dcgan.State, list[str]]:
    """The state of a DCGAN with the weights of the files, its config, and which networks these hold. UserError."""
    found: dict[str, tuple[StateDict, dcgan.Config, Path, str]] = {}
    for path in paths:
        for where, state, kind, cfg in _networks_of(path):
            if kind in found:
                advice = "give one netG and at most one netD"
                if found[kind][2] == path and where:
                    advice = f"save {where!r} or {found[kind][3]!r} by itself, or give a file of each network"
                raise UserError(f"{path} holds a second {kind}: {advice}")
            found[kind] = state, cfg, path, where
    if "generator" not in found:
        raise UserError(f"{', '.join(map(str, paths))} holds no generator: give netG, and netD if you have it")
    # The statistics in the file belong to the weights in the file.
    cfg = dataclasses.replace(found["generator"][1], batch_norm="running")
    taken = {}
    for kind, take in (("generator", generator_from_torch), ("discriminator", discriminator_from_torch)):
        if kind in found:
            try:
                taken[kind] = take(found[kind][0], cfg)
            except UserError as error:
                raise UserError(f"{found[kind][2]}: {error}") from None
    # Only now, since every size has been found to be as large as the files make it.
    state = dcgan.init(jax.random.key(0), cfg)
    gen = taken["generator"]
    state = dataclasses.replace(state, gen=dataclasses.replace(state.gen, **gen), ema=gen["params"])
    if "discriminator" in taken:
        state = dataclasses.replace(state, disc=dataclasses.replace(state.disc, **taken["discriminator"]))
    return cfg, state, list(found)


def read_file(path: Path) -> StateDict:
    """The state dict of a file with one network; UserError if there is none, or several."""
    dicts = _read(path)
    if len(dicts) > 1:
        raise UserError(f"{path} holds several state dicts, {', '.join(dicts)}: save one of them by itself")
    return next(iter(dicts.values()))


def _networks_of(path: Path) -> Iterator[tuple[str, StateDict, str, dcgan.Config]]:
    """Of each network in a file: where it is, its state dict, "generator" or "discriminator", its Config.

    What else a checkpoint holds is passed over. UserError where there is no network at all.
    """
    first, count = None, 0
    for where, state in _read(path).items():
        try:
            kind, cfg = config_of(state)
        except UserError as error:
            first = first or error
            continue
        count += 1
        yield where, state, kind, cfg
    if not count:
        raise UserError(f"{path}: {first}") from None


def _read(path: Path) -> dict[str, StateDict]:
    """The state dicts of a file by where they are in it, without what stands before "main." in the names of one.

    Names of one dict with several such beginnings, "generator.main.0.weight" and "discriminator.main.0.weight", are of
    several networks.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}: give a run folder, or netG and netD as .pth or .safetensors")
    networks: dict[str, StateDict] = {}
    for where, state in array_files.read(path).dicts.items():
        for name, value in state.items():
            before = re.match(r"(?:(.*?)\.)?(?=main\.\d)", name)
            place = "/".join(part for part in (where, before and before[1]) if part)
            networks.setdefault(place, {})[name[before.end() :] if before else name] = value
    return networks


# ---------------------------------------------------------------------------------------------------------------------
# State dicts


def generator_to_torch(variables: Mapping, cfg: dcgan.Config) -> StateDict:
    """{"params", "batch_stats"} of `dcgan.Generator` to a state dict of `netG`. UserError for a conditional one."""
    _check_unconditional(cfg)
    params, stats = variables["params"], variables["batch_stats"]
    levels = len(cfg.hidden_channels)
    out: StateDict = {}
    for i in range(levels + 1):
        kernel = params["project"] if i == 0 else params[f"double{i}"]["kernel"]
        out[f"main.{3 * i}.weight"] = np.asarray(kernel).transpose(2, 3, 0, 1)  # (in, out, h, w)
        if i < levels:
            out |= _norm_to_torch(f"main.{3 * i + 1}", params[f"norm{i}"], stats[f"norm{i}"])
    return out


def generator_from_torch(state: StateDict, cfg: dcgan.Config) -> dict:
    """A state dict of `netG` to {"params", "batch_stats"}; raises UserError for another layout or other sizes."""
    reader = _Reader(state, cfg, "generator")
    channels = [cfg.latent_dim, *cfg.hidden_channels, cfg.channels or 3]
    params, stats = {}, {}
    levels = len(cfg.hidden_channels)
    for i in range(levels + 1):
        kernel = reader.take(f"main.{3 * i}.weight", (channels[i], channels[i + 1], 4, 4)).transpose(2, 3, 0, 1)
        if i == 0:
            params["project"] = kernel
        else:
            params[f"double{i}"] = {"kernel": kernel}
        if i < levels:
            params[f"norm{i}"], stats[f"norm{i}"] = reader.norm(f"main.{3 * i + 1}", channels[i + 1])
    reader.finish()
    return {"params": params, "batch_stats": stats}


def discriminator_to_torch(variables: Mapping, cfg: dcgan.Config) -> StateDict:
    """{"params", "batch_stats"} of `dcgan.Discriminator` to a state dict of `netD`. UserError for a conditional one."""
    _check_unconditional(cfg)
    params, stats = variables["params"], variables["batch_stats"]
    levels = len(cfg.hidden_channels)
    out: StateDict = {}
    for i in range(levels + 1):
        kernel = params["judge"] if i == levels else params[f"halve{i}"]["kernel"]
        position = max(3 * i - 1, 0)
        out[f"main.{position}.weight"] = np.asarray(kernel).transpose(3, 2, 0, 1)  # (out, in, h, w)
        if 0 < i < levels:
            out |= _norm_to_torch(f"main.{position + 1}", params[f"norm{i}"], stats[f"norm{i}"])
    return out


def discriminator_from_torch(state: StateDict, cfg: dcgan.Config) -> dict:
    """A state dict of `netD` to {"params", "batch_stats"}; raises UserError for another layout or other sizes."""
    reader = _Reader(state, cfg, "discriminator")
    channels = [cfg.channels or 3, *reversed(cfg.hidden_channels), 1]
    params, stats = {}, {}
    levels = len(cfg.hidden_channels)
    for i in range(levels + 1):
        position = max(3 * i - 1, 0)
        kernel = reader.take(f"main.{position}.weight", (channels[i + 1], channels[i], 4, 4)).transpose(2, 3, 1, 0)
        if i == levels:
            params["judge"] = kernel
        else:
            params[f"halve{i}"] = {"kernel": kernel}
        if 0 < i < levels:
            params[f"norm{i}"], stats[f"norm{i}"] = reader.norm(f"main.{position + 1}", channels[i + 1])
    reader.finish()
    return {"params": params, "batch_stats": stats}


def config_of(state: StateDict) -> tuple[str, dcgan.Config]:
    """("generator" or "discriminator", its Config), read off the shapes of a state dict."""
    kernels = {
        int(match[1]): value
        for name, value in plain_names(state).items()
        if (match := re.fullmatch(r"main\.(\d{1,4})\.weight", name)) and getattr(value, "ndim", 0) == 4
    }
    if len(kernels) < 3 or any(kernel.shape[2:] != (4, 4) for kernel in kernels.values()):
        names = ", ".join(name[:60] for name in list(state)[:4]) or "nothing"
        raise UserError(
            f"this is not a state dict of the common PyTorch DCGAN example: it holds {names}, ..., "
            "where main.0.weight, main.1.weight, ... with 4x4 kernels were expected"
        )
    ordered = [kernels[i] for i in sorted(kernels)]
    size = 2 ** len(kernels) * 2
    try:
        if 3 in kernels:  # the generator's second convolution; the discriminator has BatchNorm at 3
            first, last = ordered[0], ordered[-1]
            channels, width, latent_dim = last.shape[1], last.shape[0], first.shape[0]
            return "generator", dcgan.Config(size, channels=channels, width=width, latent_dim=latent_dim)
        return "discriminator", dcgan.Config(size, channels=ordered[0].shape[1], width=ordered[0].shape[0])
    except ValueError as error:
        raise UserError(f"a DCGAN of this shape is not supported: {error}") from None


def _check_unconditional(cfg: dcgan.Config) -> None:
    if cfg.conditional:
        raise UserError(
            "this DCGAN is conditional, and the common example's networks know of no classes: ganstyle export takes it"
        )


def _norm_to_torch(prefix: str, params: Mapping, stats: Mapping) -> StateDict:
    return {
        f"{prefix}.weight": np.asarray(params["scale"]),
        f"{prefix}.bias": np.asarray(params["bias"]),
        f"{prefix}.running_mean": np.asarray(stats["mean"]),
        f"{prefix}.running_var": np.asarray(stats["var"]),
        f"{prefix}.num_batches_tracked": np.asarray(0, np.int64),  # PyTorch wants it and, at fixed momentum, ignores it
    }


class _Reader:
    """Takes tensors out of a state dict one by one, checking names and shapes, and that nothing is left over."""

    def __init__(self, state: StateDict, cfg: dcgan.Config, what: str):
        self.state = plain_names(state)
        self.what = f"{what} of {cfg.image_size} pixels, width {cfg.width}"
        self.dtype = np.dtype(cfg.param_dtype)

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self.state:
            raise UserError(f"the state dict has no {name}, which a {self.what} needs; check --image-size")
        value = np.asarray(self.state.pop(name))
        if value.shape != shape:
            raise UserError(f"{name} has shape {value.shape}, but a {self.what} needs {shape}")
        if fault := not_finite(value, name):
            raise UserError(f"{fault}, so the training that it is from has failed; take an earlier state of it")
        return value.astype(self.dtype)

    def norm(self, prefix: str, channels: int) -> tuple[dict, dict]:
        self.state.pop(f"{prefix}.num_batches_tracked", None)
        scale, bias = (self.take(f"{prefix}.{name}", (channels,)) for name in ("weight", "bias"))
        mean, var = (self.take(f"{prefix}.running_{name}", (channels,)) for name in ("mean", "var"))
        if (var < 0).any():
            raise UserError(f"{prefix}.running_var holds {var.min():g}, and a variance is at least 0")
        return {"scale": scale, "bias": bias}, {"mean": mean, "var": var}

    def finish(self) -> None:
        if self.state:
            raise UserError(f"the state dict holds {', '.join(self.state)}, which a {self.what} has no place for")
