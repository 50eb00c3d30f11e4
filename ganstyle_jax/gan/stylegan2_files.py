"""StyleGAN2 networks to and from the files of the authors' PyTorch code, NVlabs/stylegan2-ada-pytorch.

What is read are its pickled networks, `network-snapshot-000000.pkl` or `ffhq.pkl`: the averaged generator, "G_ema", and
the discriminator, "D", without executing anything of theirs (see features/persistent_pickle.py). What is written are
the state dicts of both under the same names, for `load_state_dict` of networks that are made with the same arguments.

Names there are `synthesis.b8.conv0.weight`, (out, in, 3, 3), where ours are synthesis/b8/conv0/kernel, (3, 3, in, out);
the scales of equalised learning rates are applied in use on both sides, so that weights are the same numbers. A run
made of a file computes in float32, where the authors' finest levels compute in halves and clamp all others at 256.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ganstyle_jax.features import persistent_pickle
from ganstyle_jax.features.array_files import not_finite
from ganstyle_jax.features.persistent_pickle import Network
from ganstyle_jax.features.state_dicts import StateDict
from ganstyle_jax.gan import snapshots, stylegan2
from ganstyle_jax.io.files import UserError

IMPLEMENTATION = "stylegan2-ada-pytorch"
TAPS = (1, 3, 3, 1)  # of the filter that all resampling goes through
CAPACITY, MAX_CHANNELS = 32768, 512  # of their networks, where they are not told otherwise
# Their names of what we call otherwise, within a network.
RENAMED = {"torgb": "to_picture", "fromrgb": "from_picture"}


def names_of(shapes: Mapping[str, tuple[int, ...]], size: int | None = None) -> Iterator[tuple[str, str]]:
    """(ours, theirs) of every array of a network, {"synthesis/b8/conv0/kernel": (3, 3, in, out), ...}.

    size: pixels of the pictures that a discriminator sees, whose first layer and last ones they count among the levels.
    """
    theirs = {ours: name for name, ours in RENAMED.items()}
    for name in shapes:
        *way, last = (theirs.get(part, part) for part in name.split("/"))
        if size is not None and way[0] in ("fromrgb", "conv", "fc", "out"):
            way = [f"b{size if way[0] == 'fromrgb' else 4}", *way]
        yield name, ".".join([*way, "weight" if last == "kernel" else last])


def to_torch(params: Mapping[str, Any], size: int | None = None) -> StateDict:
    """A network's weights as a state dict. size: of a discriminator's pictures, None for a generator."""
    arrays = {name: np.asarray(x) for name, x in flatten_dict(params, sep="/").items()}
    return {
        theirs: np.array(_turned(arrays[ours], ours, size), order="C")
        for ours, theirs in names_of({name: x.shape for name, x in arrays.items()}, size)
    }


def _turned(array: np.ndarray, name: str, size: int | None) -> np.ndarray:
    """As PyTorch orders the axes."""
    if name.endswith("const"):
        return array.transpose(2, 0, 1)
    if not name.endswith("kernel"):
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if size is not None and name == "fc/kernel":  # of the last 4x4 pixels, which they lay flat with channels first
        return array.reshape(4, 4, -1, array.shape[1]).transpose(3, 2, 0, 1).reshape(array.shape[1], -1)
    return array.T


def _turned_back(array: np.ndarray, shape: tuple[int, ...], name: str, size: int | None) -> np.ndarray:
    """The inverse, to our `shape`; the array's own where it does not fit."""
    there = _turned(np.empty(shape, np.int8), name, size).shape
    if array.shape != there:
        raise ValueError(there)
    if name.endswith("const"):
        return array.transpose(1, 2, 0)
    if not name.endswith("kernel"):
        return array
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if size is not None and name == "fc/kernel":
        return array.reshape(len(array), -1, 4, 4).transpose(2, 3, 1, 0).reshape(shape)
    return array.T


def from_torch(arrays: Mapping[str, np.ndarray], shapes: Any, what: str, size: int | None = None) -> dict:
    """Their arrays as the tree that `shapes` is, and of its dtypes. UserError for arrays of another network.

    Buffers are not looked at here: the filters, the average style and the noise of samples.
    """
    left = dict(arrays)
    wanted: dict[str, Any] = flatten_dict(shapes, sep="/")
    found = {}
    for ours, theirs in names_of({name: x.shape for name, x in wanted.items()}, size):
        if theirs not in left:
            raise UserError(f"{what} has no {theirs}, which the network that it is said to be needs")
        array = np.asarray(left.pop(theirs))
        try:
            turned = _turned_back(array, wanted[ours].shape, ours, size)
        except ValueError as error:
            raise UserError(f"{theirs} of {what} has shape {array.shape}, where {error.args[0]} was expected") from None
        if fault := not_finite(array, theirs):
            raise UserError(f"{what}: {fault}, so the training that it is from has failed; take an earlier state of it")
        found[ours] = np.array(turned, wanted[ours].dtype, order="C")
    if left:
        raise UserError(f"{what} holds {', '.join(list(left)[:4])}, which there is no place for")
    return unflatten_dict(found, sep="/")


# ---------------------------------------------------------------------------------------------------------------------
# What their networks are


def config_of(generator: Network, discriminator: Network | None = None) -> stylegan2.Config:
    """Settings of a run with such networks, by what they were made with. UserError for what no run has."""
    said, layers_said = generator.arguments, _within(generator, "synthesis_kwargs")
    if generator.kind != "Generator" or "synthesis.b4.const" not in generator.arrays:
        raise UserError(
            f"G_ema is a {generator.kind[:60]} without the constant that StyleGAN2 begins with: generators of "
            f"{IMPLEMENTATION} are read, and not those of StyleGAN3 or others"
        )
    kinds = {"z_dim": int, "w_dim": int, "c_dim": int, "img_resolution": int, "img_channels": int}
    for name, kind in kinds.items():
        if type(said.get(name)) is not kind:
            raise UserError(f"G_ema does not say its {name}: it was not made as {IMPLEMENTATION} makes it")
    if said["z_dim"] != said["w_dim"]:
        raise UserError(
            f"G_ema has latents of {said['z_dim']} and styles of {said['w_dim']} numbers: runs have as many"
        )
    if (of := layers_said.get("architecture", "skip")) != "skip":
        raise UserError(f"G_ema has the architecture {of!r}, and runs have 'skip'")
    given: dict[str, Any] = {
        "preset": "auto",
        "image_size": said["img_resolution"],
        "channels": said["img_channels"],
        "latent_dim": said["z_dim"],
        "mapping_layers": _within(generator, "mapping_kwargs").get("num_layers", 8),
        "capacity": layers_said.get("channel_base", CAPACITY),
        "max_channels": layers_said.get("channel_max", MAX_CHANNELS),
        "conditional": said["c_dim"] > 0,
        "classes": said["c_dim"] or None,
    }
    if discriminator is not None:
        architecture = discriminator.arguments.get("architecture", "resnet")
        known = {"resnet": "resnet", "orig": "plain"}
        if architecture not in known:
            raise UserError(f"D has the architecture {architecture!r}, and runs have {' or '.join(map(repr, known))}")
        group = _within(discriminator, "epilogue_kwargs").get("mbstd_group_size", 4)
        given |= {"discriminator": known[architecture], "group": group}
    try:
        return stylegan2.complete(stylegan2.Config(**given))
    except (TypeError, ValueError) as error:
        raise UserError(f"a run with such networks is not accepted: {error}") from None


def _within(network: Network, name: str) -> Mapping[str, Any]:
    found = network.arguments.get(name, {})
    return found if isinstance(found, Mapping) else {}


def _without_buffers(network: Network, what: str) -> dict[str, np.ndarray]:
    """Its parameters, after a look at the filters. Frozen layers' weights are buffers in their files, and stay."""
    taps = np.outer(TAPS, TAPS) / np.sum(TAPS) ** 2
    rest = {}
    for name, array in network.arrays.items():
        if name.endswith("resample_filter"):
            if array.shape != taps.shape or not np.allclose(array, taps):
                raise UserError(f"{name} of {what} is another filter than {list(TAPS)}, which runs have")
        elif not re.search(r"(noise_const|w_avg)$", name):
            rest[name] = array
    return rest


def state_of(networks: Mapping[str, Network]) -> tuple[stylegan2.Config, stylegan2.State]:
    """A run's state with the weights of "G_ema" and, if it is there, "D"; the optimizers are new. UserError."""
    if "G_ema" not in networks:
        raise UserError(f"it holds {', '.join(networks)}, and no averaged generator, G_ema")
    gen, disc = networks["G_ema"], networks.get("D")
    cfg = config_of(gen, disc)
    shapes = jax.eval_shape(lambda key: stylegan2.init(key, cfg), jax.random.key(0))
    params = from_torch(_without_buffers(gen, "G_ema"), shapes.gen.params, "G_ema")
    theirs = None
    if disc is not None:
        theirs = from_torch(_without_buffers(disc, "D"), shapes.disc.params, "D", cfg.image_size)
    noise = {
        level: {name: _buffer(gen, f"synthesis.{level}.{name}.noise_const", x) for name, x in places.items()}
        for level, places in shapes.noise.items()
    }
    w_avg = _buffer(gen, "mapping.w_avg", shapes.w_avg)
    # Only now, since every size has been found to be as large as the file makes it. What is new of a state is 0.
    new = lambda tree: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)  # noqa: E731
    if theirs is None:
        disc_params = jax.jit(stylegan2.init, static_argnums=1)(jax.random.key(0), cfg).disc.params
    else:
        disc_params = theirs
    state = new(shapes).replace(
        gen=stylegan2.Network(params, new(shapes.gen.opt_state)),
        disc=stylegan2.Network(disc_params, new(shapes.disc.opt_state)),
        ema=params,
        noise=noise,
        w_avg=w_avg,
    )
    return cfg, state


def _buffer(network: Network, name: str, like: Any) -> np.ndarray:
    array = network.arrays.get(name)
    if array is None or array.shape != like.shape or not np.isfinite(array).all():
        raise UserError(f"G_ema has no sound {name} of shape {like.shape}")
    return np.array(array, like.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def recognises(paths: list[Path]) -> bool:
    """Whether `ganstyle convert` means networks of StyleGAN2-ADA by these files."""
    return any(map(persistent_pickle.is_persistent, paths))


def import_files(paths: list[Path], out: Path) -> str:
    """Makes the run folder `out` of a pickled snapshot; returns a sentence.

    The optimizers, the average path length and augmentation are new, which such files do not hold.
    """
    return snapshots.import_snapshot(stylegan2, IMPLEMENTATION, paths, out, persistent_pickle.read_networks, state_of)


def export_run(run_dir: Path, out: Path, file_format: Literal["pth", "safetensors"], averaged: bool) -> str:
    """Writes the state dicts of G_ema (or of the last G) and D of a run into the folder `out`; returns a sentence."""

    def states_of(state: stylegan2.State, generator: Any, cfg: stylegan2.Config) -> tuple[StateDict, StateDict]:
        found = to_torch(generator)
        found["mapping.w_avg"] = np.asarray(state.w_avg)
        for name, noise in flatten_dict(state.noise, sep="/").items():
            found[f"synthesis.{name.replace('/', '.')}.noise_const"] = np.asarray(noise)
        return found, to_torch(state.disc.params, cfg.image_size)

    return snapshots.export_run(run_dir, out, file_format, averaged, states_of)
