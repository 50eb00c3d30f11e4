"""Which of a method's pictures are looked at, and beside which real ones: the contract's `judged`, for a loaded run."""

from typing import Any

import numpy as np

from ganstyle_jax import contract, data
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop.runs import LoadedRun


def title_of(run: LoadedRun) -> str | None:
    """Of the pictures that are looked at, where a method gives several for one request; None where there is no choice.

    A method that says nothing of it is looked at by what it names last.
    """
    try:
        return run.method.judged(run.cfg)[0]
    except UserError:
        return None


def source_of(run: LoadedRun) -> str | None:
    """Name of the source whose pictures they are compared with; None for a method that has none such."""
    try:
        return run.method.judged(run.cfg)[1]
    except UserError:
        return None


def pictures_of(run: LoadedRun, requests: Any) -> np.ndarray:
    """What is drawn for the requests and looked at, (n, h, w, c) float32 in [-1, 1]."""
    return contract.column(run.draw(requests), title_of(run))


def open_source(run: LoadedRun, seed: int) -> data.Source:
    """The training images that its pictures are compared with. UserError where there are none (any more)."""
    name = source_of(run)
    if name is None:
        raise UserError(f"{run.method.name} has no training images to compare its pictures with")
    spec = run.data if isinstance(run.data, str) else run.data.get(name)
    if spec is None:
        raise UserError(f"run.json does not say what was trained on as {name!r}")
    wanted = run.method.sources(run.cfg)[name]
    return data.open_source(spec, wanted.size, wanted.channels, seed)
