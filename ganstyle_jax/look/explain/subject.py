"""A trained run, and all that the sections of its explanation need of it."""

import dataclasses
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ganstyle_jax import contract
from ganstyle_jax.data import CorruptImage
from ganstyle_jax.io.files import UserError
from ganstyle_jax.look import judged
from ganstyle_jax.look.words import short
from ganstyle_jax.loop.runs import LoadedRun

FEWEST = 8  # real pictures; of fewer nothing can be said


@dataclasses.dataclass(frozen=True)
class Settings:
    count: int = 400  # pictures of either kind on the maps
    labelled: int = 1000  # real pictures by which classes are told
    drawn: int = 2000  # made-up pictures whose classes are counted
    jacobians: int = 24  # latents over which the generator's Jacobian is averaged
    seed: int = 0  # of requests, noise and random directions


@dataclasses.dataclass(frozen=True)
class Subject:
    run: LoadedRun
    variables: Any  # what samples are drawn with
    requests: Any  # what pictures are asked for by, leaves (n, ...)
    real: np.ndarray | None  # (n, h, w, c) in [-1, 1]
    labels: np.ndarray | None  # (n,) of the real ones
    names: tuple[str, ...]  # of the classes
    absent: str  # why there are no real pictures

    @property
    def latents(self) -> np.ndarray | None:
        """Those of the requests, (n, d); None where they are no vectors to walk between."""
        return contract.latents_of(self.requests)

    def generate(self, requests: Any) -> jax.Array:
        """Differentiable: requests of n pictures to the pictures that are looked at, (n, h, w, c)."""
        return contract.column(
            self.run.method.sample(self.variables, requests, self.run.cfg), judged.title_of(self.run)
        )

    def make(self, count: int) -> np.ndarray:
        """The pictures of the first requests, (count, h, w, c) float32."""
        return judged.pictures_of(self.run, jax.tree.map(lambda x: x[:count], self.requests))

    def make_from(self, latents: np.ndarray) -> np.ndarray:
        """Latents (n, k, d), k for each of the first n requests and otherwise as those, to (n * k, h, w, c) float32."""
        n, k, d = latents.shape
        others = jax.tree.map(lambda x: np.repeat(np.asarray(x[:n]), k, axis=0), self.requests)
        return judged.pictures_of(self.run, contract.with_latents(others, latents.reshape(n * k, d)))


def prepare(run: LoadedRun, settings: Settings) -> Subject:
    """Makes up requests, and reads real pictures where the run's data are still there.

    Raises UserError where no picture can be asked for, since requests are made of data that are gone.
    """
    if getattr(run.cfg, "batch_norm", None) == "batch":  # pictures would depend on each other, gradients as well
        run = dataclasses.replace(run, cfg=dataclasses.replace(run.cfg, batch_norm="standing"))
    generator = jax.jit(lambda state, constants: run.method.generator(state, run.cfg, constants))
    variables = generator(run.state, run.constants)
    asked = run.requests(jax.random.key(settings.seed), max(settings.drawn, settings.count))
    asked = jax.tree.map(np.asarray, asked)
    try:
        source = judged.open_source(run, settings.seed)
    except UserError as error:
        return Subject(run, variables, asked, None, None, (), short(str(error)).rstrip("."))
    count = max(settings.labelled, settings.count)
    if source.size is None:
        order = np.arange(count)
    else:
        order = np.random.default_rng(settings.seed).permutation(source.size)[:count]
    real, labels = [], []
    for i in tqdm(order, "real pictures", leave=False):
        try:
            example = source[int(i)]
        except CorruptImage:
            continue
        real.append(example["image"])
        labels.append(int(example.get("label", 0)))
    if len(real) < FEWEST:
        absent = f"{short(source.name)} holds {len(real)} pictures; {FEWEST} are needed"
        return Subject(run, variables, asked, None, None, (), absent)
    names = source.label_names if len(np.unique(labels)) > 1 else None
    known = None if names is None else np.array(labels)
    return Subject(run, variables, asked, np.stack(real), known, names or (), "")
