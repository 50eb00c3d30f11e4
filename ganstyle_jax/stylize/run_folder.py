"""The run folder of `ganstyle stylize --run-dir`, which `ganstyle report` shows.

run.json        as in loop/runs.py, with the method's name
content.png     and style-1.png ...: as they are compared at the full size
metrics.jsonl   a line for each step;  steps/NNNNNN.png  the picture by evaluations
result.png      written last, and only if the picture was not stopped
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax import contract
from ganstyle_jax.io import images, pictures
from ganstyle_jax.style import gatys
from ganstyle_jax.stylize.orders import Settings
from ganstyle_jax.stylize.reading import Piece

STEPS_OF_RUN = 10  # evaluations from one picture in steps/ to the next, without --save-every


def described(piece: Piece, cfg: gatys.Config, settings: Settings) -> dict[str, Any]:
    """What run.json says of the picture."""
    order = piece.order
    return {
        "method": contract.Method(gatys).name,
        "config": plain(dataclasses.asdict(cfg)),
        "data": str(order.content),
        "loop": {"styles": [str(style) for style in order.styles]} | plain(dataclasses.asdict(settings)),
    }


def write_inputs(folder: Path, piece: Piece, cfg: gatys.Config) -> None:
    """The pictures that are known before the first step."""
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    shown = {"content": piece.content} | {f"style-{i}": style for i, style in enumerate(piece.job.styles, start=1)}
    for name, picture in shown.items():
        longer = cfg.size * (1 if name == "content" else cfg.style_scale)
        small = images.resize(picture, gatys.fitted_shape(picture.shape, longer))
        pictures.write_picture(folder / f"{name}.png", np.clip(small, -1, 1))


def write_step(folder: Path, evaluations: int, picture: np.ndarray) -> None:
    pictures.write_picture(folder / "steps" / f"{evaluations:06d}.png", picture)


def write_metrics(folder: Path, steps: Sequence[dict[str, Any]]) -> None:
    """A line for each of these steps of a trace."""
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(metrics_line(step)) + "\n" for step in steps)


def metrics_line(step: dict[str, Any]) -> dict[str, Any]:
    """A step of a trace as a line of metrics.jsonl, where every number has a name of its own."""
    kept = {name: value for name, value in step.items() if name not in ("evaluations", "terms")}
    return {"step": step["evaluations"]} | kept | step.get("terms", {})


def plain(value: Any) -> Any:
    """For JSON."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
