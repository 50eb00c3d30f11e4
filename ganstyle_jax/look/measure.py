"""`ganstyle evaluate`: how good a run's pictures are, or any images, with the protocol by which it was found."""

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ganstyle_jax import contract
from ganstyle_jax.io.files import UserError, listed
from ganstyle_jax.judge import networks, statistics
from ganstyle_jax.judge.classes import by_class
from ganstyle_jax.judge.compare import compare, spelled, what_to_read
from ganstyle_jax.judge.drawn import drawn_by, examples_of, labels_drawn, source_named
from ganstyle_jax.judge.seen import look, look_at_source, look_at_statistics
from ganstyle_jax.judge.sets import images_of, labels_of, short_name
from ganstyle_jax.judge.settings import Settings, network_of
from ganstyle_jax.loop import runs, sources

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured against what, and where the result goes."""

    # real images, as `ganstyle train --data` takes them, or an .npz file of statistics; for a run by default its own
    reference: str | None = None
    # pictures that a run's own are made of and compared with, as `ganstyle train --data` takes them, such as
    # pair.zip/test for its testA and testB; by default the run's own
    data: tuple[str, ...] = ()
    step: int | Literal["best"] | None = None  # of a run: the checkpoint to draw from; by default the newest
    weights: Literal["average", "last"] | None = None  # of a run's generator: averaged over training, or the last
    batch_norm: Literal["standing", "running", "batch"] | None = None  # of a run's generator: its statistics
    per_class: bool = False  # of a conditional run: fid and kid of each class as well
    save_statistics: Path | None = None  # .npz file for the reference's mean and covariance, as pytorch-fid reads them
    json: bool = False  # print the record as JSON


def run(what: Path | str, options: Options, settings: Settings) -> dict[str, Any]:
    """Measures a run, or images in a folder, archive or .npz, and returns the record; a run's is kept in its folder.

    Raises UserError.
    """
    what = Path(what)
    is_run = (what / "run.json").is_file()
    if not is_run:
        for name in ("step", "weights", "batch_norm", "data", "per_class"):
            if getattr(options, name) not in (None, (), False):
                raise UserError(f"--{name.replace('_', '-')} is for a run, and {what} is none")
        if options.reference is None:
            raise UserError("say with --reference what real images to compare with")
    network = network_of(settings)
    image_size = channels = step = drawn = None
    names: tuple[str, ...] = ()
    if is_run:
        overrides = {name: getattr(options, name) for name in ("weights", "batch_norm")}
        loaded = runs.load(what, options.step, **{k: v for k, v in overrides.items() if v is not None})
        method, cfg, step = contract.of(loaded.method), loaded.cfg, loaded.step
        source = method.judged(cfg)[1]
        wanted = method.sources(cfg)[source]
        image_size, channels = wanted.size, wanted.channels
        given = loaded.data
        if options.data:
            given = sources.named(sources.parse(options.data, method, cfg), method, cfg)
        examples = examples_of(method, cfg, given, settings.seed)
        shown, about = drawn_by(
            method, cfg, loaded.state, settings.count, settings.seed, constants=loaded.constants, examples=examples
        )
        if options.per_class:
            drawn, names = labels_drawn(method, cfg, about["count"], settings.seed, examples), loaded.label_names
        if options.data and "examples" in about:  # which these are is a part of the protocol
            about["examples"] = {name: short_name(str(source_named(given, name))) for name in about["examples"]}
        reference = options.reference or source_named(given, source)
    else:
        reference = options.reference
        shown, about = images_of(str(what), network, settings.count, settings.seed)
    reference = str(reference)
    if statistics.is_statistics(Path(reference).expanduser()):
        real = look_at_statistics(Path(reference).expanduser(), network)
    else:
        real = look_at_source(reference, network, settings, image_size, channels)
    if options.save_statistics is not None:
        statistics.save_statistics(options.save_statistics, real.gaussian, network, short_name(reference))
    if settings.features == "auto" and networks.default() != "inception":
        print(
            "measured in the features of the compact network, whose figures are not those of publications: for these "
            "run `ganstyle weights fetch inception-fid` once",
            file=sys.stderr,
        )
    fake = look(shown, about | what_to_read(real.about["source"], settings), network, settings)
    record = {"step": step} | compare(real, fake, network, settings)
    if drawn is not None:
        labels, there = labels_of(reference, settings.real_count, settings.seed, image_size, channels)
        record["classes"], told = by_class(real, fake, *_same_classes(labels, there, drawn, names), settings)
        if told:
            record["warnings"] = [*record.get("warnings", ()), *told]
    for warning in record.get("warnings", ()):
        log.warning(warning)
    if is_run:
        try:
            runs.add_evaluation(what, record)
        except OSError as error:  # what was measured is not lost for that
            log.warning("the record is not kept in %s, which cannot be written: %s", what, error.strerror or error)
    return record


def _same_classes(
    real: np.ndarray, there: tuple[str, ...], fake: np.ndarray, names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """(real labels, generated labels, names) of one numbering, the run's. UserError for a reference without a class."""
    if not names:  # a run of an array, or of a version that noted none: by number
        return real, fake, there
    if missing := [name for name in names if name not in there]:
        raise UserError(f"--reference has no pictures of the classes {listed(missing)}: it has {listed(there)}")
    place = {name: i for i, name in enumerate(names)}
    return np.array([place.get(name, -1) for name in there])[real], fake, names


def table(record: dict[str, Any]) -> str:
    """The record for people: its numbers, and in which way they were found."""
    metrics, protocol = record["metrics"], record["protocol"]
    width = max(map(len, metrics))
    lines = [f"{name:{width}}  {spelled(value)}" for name, value in metrics.items()]
    if classes := record.get("classes"):
        measured = [key for key in ("fid", "kid") if any(key in of for of in classes.values())]
        wide = max(map(len, classes))
        lines += ["", f"{'class':{wide}}  " + "  ".join(f"{key:>9}" for key in (*measured, "real", "generated"))]
        for name, of in classes.items():
            cells = [spelled(of[key]) if key in of else "-" for key in (*measured, "real", "generated")]
            lines.append(f"{name:{wide}}  " + "  ".join(f"{cell:>9}" for cell in cells))
    real, fake = protocol["real"], protocol["fake"]
    drawn = [f"{name} {fake[name]}" for name in ("weights", "batch_norm") if name in fake]
    lines.append(
        f"\n{fake['count']:,} images of {', '.join([fake['source'], *drawn])} against {spelled(real['count'])} of "
        f"{real['source']}, in features {protocol['features']} ({protocol['weights'][:8]}), resize "
        f"{protocol['resize']}, seed {protocol['seed']}"
    )
    return "\n".join(lines)
