"""What the importers of networks that other code has pickled share: from a snapshot to a run folder, and back."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax

from ganstyle_jax.features import torch_files
from ganstyle_jax.features.persistent_pickle import Network
from ganstyle_jax.features.state_dicts import StateDict
from ganstyle_jax.io.files import UserError


def import_snapshot(
    method: ModuleType,
    implementation: str,
    paths: list[Path],
    out: Path,
    read: Callable[[Path], Mapping[str, Network]],
    state_of: Callable[[Mapping[str, Network]], tuple[Any, Any]],
) -> str:
    """Makes the run folder `out` of a pickled snapshot; returns a sentence. UserError for what is not one.

    implementation: whose snapshots they are, in words. read: a file to its networks; state_of: these to (cfg, state).
    """
    from ganstyle_jax.loop import runs
    from ganstyle_jax.loop.checkpoints import Checkpoints
    from ganstyle_jax.loop.settings import Loop

    if (out / "run.json").exists():
        raise UserError(f"{out} already holds a run: choose another --out")
    if len(paths) != 1:
        raise UserError(f"a snapshot of {implementation} holds both networks: give one file, got {len(paths)}")
    networks = read(paths[0])
    try:
        cfg, state = state_of(networks)
    except UserError as error:
        raise UserError(f"{paths[0]}: {error}") from None
    runs.write(out, method, runs.describe(method, cfg, f"weights of {paths[0].name}", Loop(run_dir=out)))
    checkpoints = Checkpoints(out)
    checkpoints.save(0, jax.tree.map(jax.device_put, state))
    checkpoints.close()
    what = "G_ema and D" if "D" in networks else "G_ema"
    classes = f", {cfg.classes} classes" if cfg.conditional else ""
    return f"{what} of {cfg.image_size} pixels{classes} are in the run folder {out}: ganstyle sample {out}"


def export_run(
    run_dir: Path,
    out: Path,
    file_format: Literal["pth", "safetensors"],
    averaged: bool,
    states_of: Callable[[Any, Any, Any], tuple[StateDict, StateDict]],
) -> str:
    """Writes the state dicts of G_ema (or of the last G) and D of a run into the folder `out`; returns a sentence.

    states_of: (state, its generator's weights, cfg) to the two.
    """
    from ganstyle_jax.loop import runs

    run = runs.load(run_dir)
    generator = run.state.ema if averaged else run.state.gen.params
    names = "G_ema" if averaged else "G", "D"
    places = [out / f"{name}.{file_format}" for name in names]
    for place, state in zip(places, states_of(run.state, generator, run.cfg), strict=True):
        torch_files.write_weights(place, state)
    return f"step {run.step} of {run_dir} is in {' and '.join(map(str, places))}"
