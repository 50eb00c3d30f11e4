"""R3GAN networks to and from the files of the authors' PyTorch code, brownvc/R3GAN.

What is read are its pickled networks, `network-snapshot-000000000.pkl` or `ffhq-64x64.pkl`: the averaged generator,
"G_ema", and the discriminator, "D", without executing anything of theirs (see features/persistent_pickle.py). What is
written are the state dicts of both under the same names, for `load_state_dict` of networks of the same settings.

Names there are `Model.MainLayers.1.Layers.2.LinearLayer1.Layer.weight`, (out, in, 1, 1), where ours are
8x8_block1/expand, (in, out): stages are counted in the order of use, and the layer that leads from one to the next
stands before the generator's blocks and after the discriminator's. What a network is follows from its arrays: the files
say nothing of how it was trained. A run made of one computes in float32, where the authors' finest stages compute in
bfloat16, and has their settings for a network of that size, or those of the preset `small`.
"""

import dataclasses
import functools
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
from ganstyle_jax.gan import r3gan, snapshots
from ganstyle_jax.io.files import UserError

IMPLEMENTATION = "brownvc/R3GAN"
TAPS = np.outer((1, 3, 3, 1), (1, 3, 3, 1)) / 64  # the filter that resampling goes through
PACKAGES = "R3GAN", "BaselineGAN"  # where the networks' classes are, and were before they were published
NETWORKS = """
    Generator Discriminator GeneratorStage DiscriminatorStage GenerativeBasis DiscriminativeBasis UpsampleLayer
    DownsampleLayer ResidualBlock Convolution
""".split()  # noqa: SIM905
FURTHER = {
    "FusedOperators": ("BiasedActivationCUDA", "BiasedActivationReference"),
    "Resamplers": [f"Interpolative{way}sampler{of}" for way in ("Up", "Down") for of in ("CUDA", "Reference")],
}
CLASSES = frozenset(
    {(f"{package}.{file}", name) for package in PACKAGES for file, names in FURTHER.items() for name in names}
    | {(f"{package}.Networks", name) for package in PACKAGES for name in NETWORKS}
    | {(f"training.{file}", name) for file in ("networks", "networks_baseline") for name in NETWORKS[:2]}
    | {("torch.nn.modules.container", "ModuleList"), ("torch.nn.modules.conv", "Conv2d")}
    | {("torch.nn.modules.linear", "Linear")}
)
BLOCK = {
    "expand": "LinearLayer1.Layer.weight",
    "grouped": "LinearLayer2.Layer.weight",
    "project": "LinearLayer3.Layer.weight",
    "bias1": "NonLinearity1.Bias",
    "bias2": "NonLinearity2.Bias",
}
EITHER = {"embed": "Model.EmbeddingLayer.weight"}
GENERATOR = EITHER | {
    "basis": "Model.MainLayers.0.Layers.0.Basis",
    "latent": "Model.MainLayers.0.Layers.0.LinearLayer.weight",
    "to_picture": "Model.AggregationLayer.Layer.weight",
}


def name_of(ours: str, cfg: r3gan.Config, which: Literal["generator", "discriminator"]) -> str:
    """Theirs of a weight, such as "8x8_block1/expand"."""
    recipe = cfg.recipe
    last, generating = len(recipe.widths) - 1, which == "generator"
    at_last = f"Model.MainLayers.{last}.Layers.{recipe.blocks}"
    discriminator = EITHER | {
        "basis": f"{at_last}.Basis.weight",
        "judge": f"{at_last}.LinearLayer.weight",
        "from_picture": "Model.ExtractionLayer.Layer.weight",
    }
    if (found := (GENERATOR if generating else discriminator).get(ours)) is not None:
        return found
    match = re.fullmatch(r"(?:to_|from_)?(\d+)x\d+(?:_block(\d+)/(\w+))?", ours)
    assert match is not None, ours
    stage = int(match[1]).bit_length() - 3
    place = f"Model.MainLayers.{stage if generating else last - stage}.Layers"
    if match[2] is None:
        return f"{place}.{0 if generating else recipe.blocks}.LinearLayer.Layer.weight"
    return f"{place}.{int(match[2]) + generating}.{BLOCK[match[3]]}"


def _turned(array: np.ndarray, ours: str, theirs: str) -> np.ndarray:
    """As PyTorch orders the axes."""
    if ours == "basis":
        channels_first = array.transpose(2, 0, 1)
        return channels_first[:, None] if theirs.endswith("weight") else channels_first
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if array.ndim == 2:
        return array.T[:, :, None, None] if theirs.endswith(".Layer.weight") else array.T  # a convolution, or not
    return array


def _turned_back(array: np.ndarray, shape: tuple[int, ...], ours: str, theirs: str) -> np.ndarray:
    """The inverse, to our `shape`. ValueError with the shape that was expected."""
    there = _turned(np.empty(shape, np.int8), ours, theirs).shape
    if array.shape != there:
        raise ValueError(there)
    if ours == "basis":
        return array.reshape(there[0], *there[-2:]).transpose(1, 2, 0)
    if len(shape) == 4:
        return array.transpose(2, 3, 1, 0)
    return array.reshape(there[:2]).T if len(shape) == 2 else array


def to_torch(params: Mapping[str, Any], cfg: r3gan.Config, which: Literal["generator", "discriminator"]) -> StateDict:
    """A network's weights as a state dict, with the filters that are buffers there."""
    found: StateDict = {}
    for ours, array in flatten_dict(params, sep="/").items():
        theirs = name_of(ours, cfg, which)
        found[theirs] = np.array(_turned(np.asarray(array), ours, theirs), order="C")
    for name in _filters(cfg, which):
        found[name] = TAPS.astype(np.float32)
    return found


def _filters(cfg: r3gan.Config, which: str) -> Iterator[str]:
    """Names of the filters between stages."""
    blocks, stages = cfg.recipe.blocks, len(cfg.recipe.widths)
    for i in range(stages - 1):
        place = f"{i + 1}.Layers.0" if which == "generator" else f"{i}.Layers.{blocks}"
        yield f"Model.MainLayers.{place}.Resampler.Kernel"


def from_torch(network: Network, shapes: Any, cfg: r3gan.Config, which: Any, what: str) -> dict:
    """Their arrays as the tree that `shapes` is, and of its dtypes. UserError for arrays of another network."""
    wanted: dict[str, Any] = flatten_dict(shapes, sep="/")
    left, found = dict(network.arrays), {}
    for name in _filters(cfg, which):
        taps = left.pop(name, None)
        if taps is None or taps.shape != TAPS.shape or not np.allclose(taps, TAPS, atol=1e-5):
            raise UserError(f"{name} of {what} is not there, or another filter than [1, 3, 3, 1], which runs have")
    for ours, like in wanted.items():
        theirs = name_of(ours, cfg, which)
        if theirs not in left:
            raise UserError(f"{what} has no {theirs}, which the network that it seems to be needs")
        array = np.asarray(left.pop(theirs))
        try:
            turned = _turned_back(array, like.shape, ours, theirs)
        except ValueError as error:
            raise UserError(f"{theirs} of {what} has shape {array.shape}, where {error.args[0]} was expected") from None
        if fault := not_finite(array, theirs):
            raise UserError(f"{what}: {fault}, so the training that it is from has failed; take an earlier state of it")
        found[ours] = np.array(turned, like.dtype, order="C")
    if left:
        raise UserError(f"{what} holds {', '.join(list(left)[:4])}, which there is no place for")
    return unflatten_dict(found, sep="/")


# ---------------------------------------------------------------------------------------------------------------------
# What their networks are


def config_of(generator: Network) -> r3gan.Config:
    """Settings of a run with such a generator, by the shapes of its arrays. UserError for what no run has."""
    arrays = generator.arrays
    if generator.kind != "Generator" or GENERATOR["basis"] not in arrays:
        raise UserError(
            f"G_ema is a {generator.kind[:60]} without the learned 4x4 pixels that R3GAN begins with: generators of "
            f"{IMPLEMENTATION} are read"
        )
    pattern = re.compile(r"Model\.MainLayers\.(\d{1,3})\.Layers\.(\d{1,3})\.LinearLayer([12])\.Layer\.weight")
    stages: dict[int, dict[str, set]] = {}
    for name, array in arrays.items():
        if (match := pattern.fullmatch(name)) and array.ndim == 4 and min(array.shape) > 0:
            of = stages.setdefault(int(match[1]), {"blocks": set(), "expand": set(), "groups": set()})
            of["blocks"].add(match[2])
            of["expand" if match[3] == "1" else "groups"].add(array.shape[:2])
    if sorted(stages) != list(range(len(stages))) or any(
        len(of["expand"]) != 1 or len(of["groups"]) != 1 for of in stages.values()
    ):
        raise UserError("G_ema has stages whose blocks are missing or of several sizes, and runs have one size a stage")
    ordered = [stages[i] for i in range(len(stages))]
    inner_and_widths = [next(iter(of["expand"])) for of in ordered]
    groups = [next(iter(of["groups"]))[1] for of in ordered]

    def single(what: str, values: list[int]) -> int:
        if len(set(values)) != 1:
            raise UserError(
                f"G_ema has {what} that differ from stage to stage, {values}, and runs have as many in each"
            )
        return values[0]

    widths = tuple(width for _, width in inner_and_widths)
    # A stage with fewer channels than a group is one group.
    group = max(groups)
    pairs = zip(groups, inner_and_widths, strict=True)
    single("channels in a group", [group if g == inner else g for g, (inner, _) in pairs])
    latent, picture = (arrays.get(GENERATOR[name], np.empty(())) for name in ("latent", "to_picture"))
    classes = arrays.get(EITHER["embed"])
    for name, array, rank in (("latent", latent, 2), ("to_picture", picture, 4), ("embed", classes, 2)):
        if array is not None and array.ndim != rank:
            raise UserError(f"G_ema has no sound {GENERATOR[name]}")
    numbers = latent.shape[1]
    given: dict[str, Any] = {
        "image_size": 2 << len(widths),
        "channels": picture.shape[0],
        "widths": widths,
        "blocks": single("blocks", [len(of["blocks"]) for of in ordered]),
        "expansion": single("expansions", [max(1, inner // width) for inner, width in inner_and_widths]),
        "group_size": group,
        "latent_dim": numbers if classes is None else numbers - classes.shape[0],
        "conditional": classes is not None,
        "classes": None if classes is None else classes.shape[1],
        "bfloat16_stages": 0,
    }
    sizes = given["image_size"], widths
    preset: Any = next((name for name, of in r3gan.PRESETS.items() if (of.image_size, of.widths) == sizes), "small")
    try:
        cfg = r3gan.Config(preset=preset, **given)
        recipe = {field.name: getattr(cfg.recipe, field.name) for field in dataclasses.fields(r3gan.Recipe)}
        return dataclasses.replace(cfg, **recipe)
    except (TypeError, ValueError) as error:
        raise UserError(f"a run with such networks is not accepted: {error}") from None


def state_of(networks: Mapping[str, Network]) -> tuple[r3gan.Config, r3gan.State]:
    """A run's state with the weights of "G_ema" and, if it is there, "D"; the optimizers are new. UserError."""
    if "G_ema" not in networks:
        raise UserError(f"it holds {', '.join(networks)}, and no averaged generator, G_ema")
    gen, disc = networks["G_ema"], networks.get("D")
    cfg = config_of(gen)
    shapes = jax.eval_shape(lambda key: r3gan.init(key, cfg), jax.random.key(0))
    params = from_torch(gen, shapes.gen.params, cfg, "generator", "G_ema")
    judging = None
    if disc is not None:
        if disc.kind != "Discriminator":
            raise UserError(f"D is a {disc.kind[:60]}: discriminators of {IMPLEMENTATION} are read")
        judging = from_torch(disc, shapes.disc.params, cfg, "discriminator", "D")
    # Only now, since every size has been found to be as large as the file makes it. What is new of a state is 0.
    if judging is None:
        judging = jax.jit(r3gan.init, static_argnums=1)(jax.random.key(0), cfg).disc.params
    new = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return cfg, new.replace(
        gen=r3gan.Network(params, new.gen.opt_state), disc=r3gan.Network(judging, new.disc.opt_state), ema=params
    )


# ---------------------------------------------------------------------------------------------------------------------
# Files


def recognises(paths: list[Path]) -> bool:
    """Whether `ganstyle convert` means networks of R3GAN by these files."""
    return any(persistent_pickle.mentions(path, [f"{package}.Networks" for package in PACKAGES]) for path in paths)


def import_files(paths: list[Path], out: Path) -> str:
    """Makes the run folder `out` of a pickled snapshot; returns a sentence. The optimizers are new."""
    read = functools.partial(persistent_pickle.read_networks, classes=CLASSES)
    return snapshots.import_snapshot(r3gan, IMPLEMENTATION, paths, out, read, state_of)


def export_run(run_dir: Path, out: Path, file_format: Literal["pth", "safetensors"], averaged: bool) -> str:
    """Writes the state dicts of G_ema (or of the last G) and D of a run into the folder `out`; returns a sentence."""

    def states_of(state: r3gan.State, generator: Any, cfg: r3gan.Config) -> tuple[StateDict, StateDict]:
        return to_torch(generator, cfg, "generator"), to_torch(state.disc.params, cfg, "discriminator")

    return snapshots.export_run(run_dir, out, file_format, averaged, states_of)
