"""How far each optimizer brings the loss of style transfer with so many evaluations: ours against PyTorch's L-BFGS.

    python experiments/bench/gatys_optimizers.py --pictures FOLDER

The same loss, from the same picture, at one size. `torch.optim.LBFGS` with its strong Wolfe line search, history 10 and
100, is given our loss and gradient as its closure, so that only the optimizers differ; every call of the closure is one
evaluation. Adam is ours, at three learning rates. The best loss up to the 50th, 200th and 500th evaluation counts; the
table has the geometric mean over the pairs of ours over the better one of PyTorch's two.
"""

import dataclasses
import sys
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import jax
import jax.numpy as jnp
import machine
import numpy as np
import tyro

from ganstyle_jax.commands import flags
from ganstyle_jax.features import weights
from ganstyle_jax.io import images, pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style import gatys

Curve = list[tuple[int, float]]  # (evaluations, loss)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared."""

    pictures: Path  # folder of the pictures
    features: str = "vgg19-distilled"  # network: one of `ganstyle weights list`, or a file
    # content and style, by turns
    pairs: tuple[str, ...] = (
        *("tubingen.jpg", "starry_night.jpg"),
        *("golden_gate.jpg", "the_scream.jpg"),
        *("hoovertowernight.jpg", "woman-with-hat-matisse.jpg"),
    )
    size: int = 512  # pixels, the longer side of both
    evaluations: tuple[int, ...] = (50, 200, 500)
    histories: tuple[int, ...] = (10, 100)  # of PyTorch's L-BFGS
    rates: tuple[float, ...] = (0.005, 0.02, 0.05)  # of Adam
    json: Path | None = Path("gatys_optimizers.json")  # file for the record; a bare name goes into experiments/results/


def main(settings: Settings) -> None:
    flags.use_cache()
    network, params = weights.load_for_style(settings.features)
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "optax", "torch", "numpy")),
        "features": Path(settings.features).name,
        "size": settings.size,
        "pairs": {},
    }
    names = iter(settings.pairs)
    for content_name, style_name in zip(names, names, strict=True):
        content, style = (read(settings.pictures / name, settings.size) for name in (content_name, style_name))
        cfg = gatys.Config(size=settings.size, range_weight=0.0)  # the paper's loss knows no range
        targets = gatys.make_targets(network, params, content, [style], cfg)
        most = max(settings.evaluations)
        curves = {"ours": ours(network, params, targets, content, cfg, most)}
        for history in settings.histories:
            curves[f"torch, history {history}"] = torchs(network, params, targets, content, cfg, history, most)
        for rate in settings.rates:
            adam = dataclasses.replace(cfg, optimizer="adam", learning_rate=rate)
            curves[f"adam, rate {rate}"] = ours(network, params, targets, content, adam, most)
        best = {name: [best_until(curve, n) for n in settings.evaluations] for name, curve in curves.items()}
        record["pairs"][f"{content_name} {style_name}"] = best
        for name, values in best.items():
            print(f"{content_name} {style_name} {name}: " + " ".join(f"{value:.5f}" for value in values), flush=True)

    record["evaluations"], record["ratio"] = settings.evaluations, {}
    for rivals in ("torch", "adam"):
        record["ratio"][rivals] = [
            round(geometric_mean([ratio(pair, rivals, i) for pair in record["pairs"].values()]), 4)
            for i in range(len(settings.evaluations))
        ]
        print(f"ours over the best of {rivals}, after {settings.evaluations} evaluations: {record['ratio'][rivals]}")
    if settings.json is not None:
        machine.write_record(settings.json, record)


def read(path: Path, size: int) -> jax.Array:
    picture = pictures.read_picture(path)
    return jnp.asarray(images.resize(picture, gatys.fitted_shape(picture.shape, size)))


def ours(network, params, targets, content: jax.Array, cfg: gatys.Config, most: int) -> Curve:
    value, gradient, _ = gatys.evaluate(network, params, targets, content, cfg)
    at = gatys.start(content, value, gradient, cfg)
    curve = []
    while int(at.evaluations) < most and int(at.stuck) < 2:
        at, evaluations, values = gatys.advance(network, params, targets, at, np.int32(most), cfg)
        curve += [(int(e), float(v)) for e, v in zip(evaluations, values, strict=True) if e]
    return curve


def torchs(network, params, targets, content: jax.Array, cfg: gatys.Config, history: int, most: int) -> Curve:
    """PyTorch's L-BFGS on the pixels."""
    import torch

    evaluate = jax.jit(
        jax.value_and_grad(lambda image: sum(gatys.loss_terms(network, params, image, targets, cfg).values()))
    )
    image, curve = torch.tensor(np.array(content), requires_grad=True), []

    class Done(Exception):  # noqa: N818  (not an error)
        pass

    def closure():
        if len(curve) == most:
            raise Done
        value, gradient = evaluate(jnp.asarray(image.detach().numpy()))
        curve.append((len(curve) + 1, float(value)))
        image.grad = torch.tensor(np.array(gradient))
        return torch.tensor(float(value))

    optimizer = torch.optim.LBFGS(
        [image],
        max_iter=most,
        max_eval=10 * most,
        tolerance_grad=0,
        tolerance_change=0,
        history_size=history,
        line_search_fn="strong_wolfe",
    )
    try:
        while len(curve) < most:
            before = len(curve)
            optimizer.step(closure)
            if len(curve) == before:
                break
    except Done:
        pass
    return curve


def best_until(curve: Curve, evaluations: int) -> float:
    return min(value for done, value in curve if done <= evaluations)


def ratio(pair: dict[str, list[float]], rivals: str, i: int) -> float:
    return pair["ours"][i] / min(values[i] for name, values in pair.items() if name.startswith(rivals))


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
