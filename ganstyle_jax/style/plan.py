"""An evaluation of an image whose rows the chips share, as it is planned for TPUs and GPUs that are not here."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ganstyle_jax.features import vgg
from ganstyle_jax.features.vgg import VGG
from ganstyle_jax.nn import layers
from ganstyle_jax.programs import Lowered
from ganstyle_jax.style import memory, places
from ganstyle_jax.style.config import Config
from ganstyle_jax.style.losses import Moments
from ganstyle_jax.style.optimise import evaluate
from ganstyle_jax.style.targets import Targets, canvas_of

NETWORKS = {"vgg19": vgg.VGG19, "vgg16": vgg.VGG16, "compact": vgg.COMPACT}


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """What is planned of `ganstyle stylize --parallel rows`."""

    # TPUs such as v5e:2x4, v5e:16x16, v4:2x2x2 or v5p:4x4x4, or GPUs such as h200:1, h200:8 or, hosts x GPUs, h200:2x8
    topology: str
    features: Literal["vgg19", "vgg16", "compact"] = "vgg19"  # network to compare by
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of the features
    remat: bool = False  # compute features again rather than keep them


def lower_step(settings: PlanSettings, cfg: Config, devices: Sequence[Any]) -> Lowered:
    """One evaluation, loss and gradient, of a square image. Raises ValueError for one that cannot be cut so."""
    network = dataclasses.replace(NETWORKS[settings.features], dtype=settings.precision, remat=settings.remat)
    made = lower(network, cfg, (cfg.size, cfg.size), devices)
    unit = f"an evaluation of {cfg.size} x {cfg.size} pixels, {settings.features} in {settings.precision}"
    return dataclasses.replace(made, unit=unit)


def lower(network: VGG, cfg: Config, shape: tuple[int, int], devices: Sequence[Any]) -> Lowered:
    """As `lower_step`, for any network and an image of (h, w) pixels."""
    if places.any_of(cfg):
        raise ValueError("a plan is made for the style losses gram, wasserstein and mean-std, and for no further terms")
    mesh = Mesh(np.asarray(devices), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    canvas = canvas_of(shape, network, cfg, mesh)

    def array(shape: tuple[int, ...], rows: int | None = None, dtype: Any = jnp.float32) -> Any:
        spec = PartitionSpec() if rows is None else PartitionSpec(*[None] * rows, "rows")
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    params = jax.tree.map(lambda x: array(x.shape), jax.eval_shape(network.init, jax.random.key(0)))
    image = jax.ShapeDtypeStruct((1, *canvas.shape, 3), jnp.float32)
    with layers.compiling_for(devices[0].platform):
        taps: Any = jax.eval_shape(lambda params, x: network.apply(params, x, cfg.layers), params, image)
        features = {layer: x.shape[1:] for layer, x in taps.items()}
        content = {layer: array(features[layer], 0, taps[layer].dtype) for layer in cfg.content_layers}
        masks = {} if canvas.padded is None else {layer: array((1, *x[:2], 1), 1) for layer, x in features.items()}
        channels = {layer: features[layer][2] for layer in cfg.style_layers}
        targets = Targets(
            content=content,
            style={layer: Moments(array((1, c)), array((1, c, c))) for layer, c in channels.items()},
            factors={layer: array((1, c, c)) for layer, c in channels.items() if cfg.style_loss == "wasserstein"},
            share={layer: array((1,)) for layer in channels},
            regions={layer: masks[layer] for layer in cfg.style_layers if masks},
            areas={layer: array((1,)) for layer in cfg.style_layers},
            inside={layer: masks[layer] for layer in cfg.content_layers if masks},
            canvas=canvas,
        )
        lowered = evaluate.lower(network, params, targets, array((*canvas.shape, 3), 0), cfg)
    # The optimizer's memory lies beside it: images, of which each chip has its rows.
    pixels = canvas.shape[0] * canvas.shape[1] // mesh.size
    return Lowered(
        lowered,
        memory.images_kept(cfg) * memory.PIXEL * pixels,
        f"an evaluation of {shape[1]} x {shape[0]} pixels",
        "take more chips, --remat, --precision bfloat16 or a smaller --memory or --size",
    )
