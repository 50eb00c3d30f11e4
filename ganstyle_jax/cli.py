"""The command `ganstyle`. Nothing here imports JAX before the arguments are known to be good."""

import contextlib
import dataclasses
import errno
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ganstyle_jax.files import UserError, atomic_path, cache_dir


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """Stylize a photograph, then train a DCGAN on digits drawn on the spot: three minutes on two cores, no network."""

    run_dir: Path = Path("runs/quickstart")  # folder for all that the run leaves
    steps: int = 2000  # training steps
    size: int = 320  # pixels of the stylized photograph's sides; 0 for none


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a method on images. `ganstyle train dcgan --help` lists its settings."""

    method: tyro.conf.Positional[str]  # dcgan, or a Python file of your own such as ./my_gan.py
    settings: tyro.conf.Positional[tuple[str, ...]] = ()  # --data SOURCE and the method's settings


@dataclasses.dataclass(frozen=True)
class Stylize:
    """Paint a picture in the manner of others. `ganstyle stylize --help` lists the settings."""

    content: tyro.conf.Positional[Path]  # picture, or a folder of them
    styles: tyro.conf.Positional[tuple[Path, ...]]  # pictures whose manner to take, or folders of them


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draw pictures from a trained run."""

    run: tyro.conf.Positional[Path]  # run folder
    out: Path = Path("samples")  # .png: one grid; .npz: array `images`, uint8 (n, h, w, c); else a folder of PNGs
    count: int = 64  # pictures
    step: int | Literal["best"] | None = None  # of the checkpoint to draw from, or the best; by default the newest
    seed: int = 0  # decides the latents
    batch_norm: Literal["standing", "running", "batch"] | None = None  # the generator's statistics; None: as trained
    interpolate: bool = False  # a walk from latent to latent instead: walk.gif and strip.png in the folder --out
    stops: int = 6  # latents that the walk passes through before it is back at the first
    frames: int = 12  # pictures from one of them to the next
    fps: int = 20  # pictures per second of the GIF


@dataclasses.dataclass(frozen=True)
class Convert:
    """Move DCGAN weights from and to the common PyTorch example (netG.pth, netD.pth), or to .safetensors.

    From a run to files: `ganstyle convert RUN --out FOLDER`. From files to a run that can be sampled from or begun with
    (--init-from): `ganstyle convert netG.pth netD.pth --out RUN`. Pickled code in a .pth file is never executed.
    """

    source: tyro.conf.Positional[tuple[Path, ...]]  # a run folder, or netG and if wanted netD as .pth or .safetensors
    out: Path  # the folder to make
    format: Literal["pth", "safetensors"] = "pth"  # of the files written from a run
    averaged: bool = True  # write the averaged generator rather than the last one


@dataclasses.dataclass(frozen=True)
class Data:
    """Download a TensorFlow data set as ArrayRecord, for `--data tfds:NAME`. Needs a network and TensorFlow."""

    action: tyro.conf.Positional[Literal["prepare"]]  # download and convert
    name: tyro.conf.Positional[str]  # such as mnist, cifar10, celeb_a
    data_dir: Path | None = None  # where to; by default where TFDS looks, ~/tensorflow_datasets


@dataclasses.dataclass(frozen=True)
class Weights:
    """List, fetch, import or verify the weights of feature networks.

    `ganstyle weights list`; `ganstyle weights fetch NAME` downloads; `ganstyle weights import FILE` takes what was
    fetched by hand; `ganstyle weights verify` recomputes the sums of all that is here.
    """

    action: tyro.conf.Positional[Literal["list", "fetch", "import", "verify"]]  # what to do
    # to fetch: a name from the list; to import: a .pth, .h5, .npz or .safetensors file
    what: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[NAME|FILE]")] = None
    name: str | None = None  # to import by; by default the name of these very weights in the list, or the file's


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step takes on TPUs that are not here. `ganstyle plan dcgan --help` lists the settings."""

    method: tyro.conf.Positional[str]  # dcgan, a Python file of your own such as ./my_gan.py, or gatys
    settings: tyro.conf.Positional[tuple[str, ...]] = ()  # --topology and the method's settings


@dataclasses.dataclass(frozen=True)
class Collect:
    """Put runs into one table: what they differ in, and the mean and spread over seeds of what they logged last."""

    folders: tyro.conf.Positional[tuple[Path, ...]]  # run folders, or folders of them at any depth
    json: Path | None = None  # file to write the same to
    force: bool = False  # put figures side by side that were found in different ways


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure how good a run's pictures, or any images, are. `ganstyle evaluate --help` lists the settings."""

    what: tyro.conf.Positional[Path]  # run folder, or images: a folder, .zip, .tar or .npz


@dataclasses.dataclass(frozen=True)
class Report:
    """Write one HTML file that shows runs, alone or side by side, and opens in any browser without a network.

    RUN is a folder that `ganstyle train` left, or `ganstyle stylize --run-dir`.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]  # run folders
    out: Path | None = None  # file to write; by default report.html in the folder of a single run, or here
    training_images: int = 5000  # how many to look through for those nearest to samples; 0 leaves that out


@dataclasses.dataclass(frozen=True)
class Explain:
    """Show what a trained run has learned, or what style transfer compares: pictures and texts in a folder.

    `ganstyle explain RUN` leaves them in RUN/explain, and `ganstyle report RUN` shows them.
    """

    # a run folder of ganstyle train or ganstyle stylize --run-dir; or a content picture, a style picture and,
    # if it is not to be made, the result
    what: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN | CONTENT STYLE [RESULT]")]
    out: Path | None = None  # folder to write to; by default explain in the run folder, or in this one
    step: int | None = None  # of the checkpoint to explain; by default the newest
    seed: int = 0  # decides the latents and the noise
    features: str | None = None  # network of pictures, a name or a file of weights; by default compact
    size: int | None = None  # longer side of the pictures that are made to explain pictures; by default 144 pixels


Command = (
    Annotated[Quickstart, tyro.conf.subcommand("quickstart")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Stylize, tyro.conf.subcommand("stylize")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Weights, tyro.conf.subcommand("weights")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Explain, tyro.conf.subcommand("explain")]
)
CONFIG = (tyro.conf.CascadeSubcommandArgs, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)


def main(args: list[str] | None = None) -> None:
    """Runs one command."""
    args = sys.argv[1:] if args is None else args
    with errors_for_people():
        if len(args) > 1 and args[0] in ("train", "plan") and not args[1].startswith("-"):
            (train if args[0] == "train" else plan)(args[1], args[2:])
            return
        if args[:1] in (["stylize"], ["evaluate"]):
            (stylize if args[0] == "stylize" else evaluate)(args[1:])
            return
        command = tyro.cli(Command, prog="ganstyle", args=args, config=CONFIG, description=__package_doc())  # type: ignore
        run: Any = {
            Quickstart: quickstart,
            Train: _train_without_method,
            Sample: sample,
            Convert: convert,
            Data: prepare,
            Weights: manage_weights,
            Plan: lambda command: plan(command.method, []),
            Collect: collect,
            Report: report,
            Explain: explain,
        }
        run[type(command)](command)


def experiment(name: str, description: str | None, data: str, loop: Any, config: Any) -> None:
    """All that a script in experiments/ does: `ganstyle train NAME` with defaults and a description of its own."""
    with errors_for_people():
        train(name, sys.argv[1:], data, loop, config, sys.argv[0], description)


@contextlib.contextmanager
def errors_for_people() -> Iterator[None]:
    """A UserError, or a place that cannot be written, becomes one line on standard error and exit status 1."""
    try:
        yield
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("ganstyle: stopped. What was complete before is kept.", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # `ganstyle --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        _fail(f"{error.filename or 'a file'} cannot be written: {error.strerror}. What was complete before is kept")


def __package_doc() -> str:
    return (
        "Adversarial networks and style transfer in JAX. Begin with `ganstyle quickstart`, then "
        "`ganstyle train dcgan --data FOLDER_OR_ZIP_OF_IMAGES` and `ganstyle sample runs/dcgan`."
    )


def _fail(message: str) -> None:
    print(f"ganstyle: error: {message.rstrip('.')}.", file=sys.stderr)
    raise SystemExit(1)


def parse(settings: Any, prog: str, args: list[str], description: str) -> Any:
    """What the arguments say, as an object of the dataclass `settings`; UserError where it refuses its values."""
    try:
        return tyro.cli(settings, prog=prog, args=args, config=CONFIG, description=description)
    except ValueError as error:
        raise UserError(str(error)) from None


def _train_without_method(command: Train) -> None:
    train(command.method, list(command.settings))


def train(
    name: str,
    args: list[str],
    data: Any = dataclasses.MISSING,
    loop: Any = None,
    config: Any = None,
    prog: str | None = None,
    description: str | None = None,
) -> None:
    """`ganstyle train METHOD`: the flags are the fields of the loop's and of the method's dataclasses.

    data, loop, config: defaults of the flags; without data the flag is required.
    """
    from ganstyle_jax import processes, runs
    from ganstyle_jax.train import Loop

    method = runs.find_method(name)
    settings = dataclasses.make_dataclass(
        "Settings",
        [
            ("data", Annotated[str, tyro.conf.arg(help=DATA_HELP)], dataclasses.field(default=data)),
            ("loop", Loop, dataclasses.field(default=loop or Loop())),
            ("processes", processes.Processes, dataclasses.field(default=processes.Processes())),
            ("config", method.Config, dataclasses.field(default=config or method.Config())),
        ],
        frozen=True,
    )
    prog, description = prog or f"ganstyle train {name}", description or _summary(method)
    chosen = parse(settings, prog, args, description)
    use_cache()
    from ganstyle_jax import train as training

    processes.join(chosen.processes)
    with processes.leaving_together():
        training.run(method, chosen.config, chosen.data, chosen.loop)


def stylize(args: list[str]) -> None:
    """`ganstyle stylize CONTENT STYLE ...`: the flags are the fields of two dataclasses."""
    from ganstyle_jax import processes
    from ganstyle_jax import stylize as program
    from ganstyle_jax.style import gatys

    content_help = tyro.conf.arg(metavar="CONTENT", help="picture to be painted, or a folder of them")
    styles_help = tyro.conf.arg(
        metavar="STYLE [STYLE ...]", help="picture in whose manner, several to be blended, or one folder of them"
    )
    command = dataclasses.make_dataclass(
        "Settings",
        [
            ("content", Annotated[tyro.conf.Positional[Path], content_help]),
            ("styles", Annotated[tyro.conf.Positional[tuple[Path, ...]], styles_help]),
            ("settings", program.Settings, dataclasses.field(default=program.Settings())),
            ("processes", processes.Processes, dataclasses.field(default=processes.Processes())),
            ("config", gatys.Config, dataclasses.field(default=gatys.Config())),
        ],
        frozen=True,
    )
    description = "Paint CONTENT in the manner of the pictures STYLE."
    chosen = parse(command, "ganstyle stylize", args, description)
    use_cache()
    processes.join(chosen.processes)
    with processes.leaving_together():
        program.run(chosen.content, chosen.styles, chosen.config, chosen.settings)


UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
)
DATA_HELP = (
    "images: a folder, .zip or .tar of image files (nested folders are classes), an .npz or IDX file, tfds:NAME, or "
    "glyphs, which needs no files"
)


def _summary(method: Any) -> str:
    """The first paragraph of the method's file."""
    return (method.__doc__ or f"Trains {method.__name__}.").split("\n\n")[0].replace("\n", " ")


def quickstart(command: Quickstart) -> None:
    use_cache()
    from ganstyle_jax import train as training
    from ganstyle_jax.gan import dcgan
    from ganstyle_jax.train import Loop

    # Small batches and high learning rates give clearer digits in the same time than the defaults do. The half-life is
    # short, because in so short a run the weights still move fast and an average lags behind them.
    if command.size:
        photograph = stylize_photograph(command.run_dir, command.size)
        print(f"Look at {photograph}, a photograph in the manner of the texture beside it.\n")
    cfg = dcgan.Config(
        image_size=32,
        width=32,
        generator_learning_rate=4e-4,
        discriminator_learning_rate=4e-4,
        ema_halflife_images=1000,
    )
    loop = Loop(command.run_dir, command.steps, batch_size=32, sample_every=200, checkpoint_every=500, resume="auto")
    print("Training a DCGAN to draw digits. Two minutes on two cores; Ctrl-C saves and stops.")
    training.run(dcgan, cfg, "glyphs:digits:night", loop)
    grid = command.run_dir / "samples" / f"{command.steps:06d}.png"
    print(
        f"\nLook at {grid}: each cell is a digit that the network made up;\n"
        f"the earlier grids beside it show the same latents while it was learning.\n"
        f"Next: ganstyle stylize PHOTOGRAPH PAINTING -o stylized.png\n"
        f"      ganstyle sample {command.run_dir} --interpolate --out walk\n"
        f"      ganstyle report {command.run_dir}\n"
        f"      ganstyle train dcgan --data FOLDER_OR_ZIP_OF_IMAGES"
    )


def stylize_photograph(folder: Path, size: int) -> Path:
    """The picture of the quick start, made from two that scikit-image has, in the folder."""
    import skimage.data

    from ganstyle_jax import data, pictures
    from ganstyle_jax import stylize as program
    from ganstyle_jax.style import gatys

    cfg, settings = gatys.Config(size=size), program.Settings(out=folder / "stylized.png")
    if settings.out.exists():
        return settings.out
    folder.mkdir(parents=True, exist_ok=True)
    sources = folder / "content.png", folder / "style.png"
    for path, picture in zip(sources, (skimage.data.astronaut(), skimage.data.immunohistochemistry()), strict=True):
        pictures.write_picture(path, data.to_float(picture))
    print("Painting a photograph in the manner of a texture.")
    program.run(sources[0], (sources[1],), cfg, settings)
    return settings.out


def sample(command: Sample) -> None:
    for name, least in (("count", 1), ("stops", 2), ("frames", 1)):
        if getattr(command, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(command, name)}")
    if not 1 <= command.fps <= 50:
        raise UserError(f"--fps must be from 1 to 50, got {command.fps}")
    if not 0 <= command.seed < 2**32:
        raise UserError(f"--seed must be from 0 to {2**32 - 1}, got {command.seed}")
    if command.out.suffix.lower() not in ("", ".png", ".npz"):
        raise UserError(f"--out must end in .png or .npz or be a folder, got {command.out}")
    if command.interpolate and command.out.suffix:
        raise UserError(f"--interpolate writes two files: --out must be a folder, got {command.out}")
    use_cache()
    import jax
    import numpy as np

    from ganstyle_jax import images, runs

    overrides: dict[str, Any] = {} if command.batch_norm is None else {"batch_norm": command.batch_norm}
    run = runs.load(command.run, command.step, **overrides)
    key = jax.random.key(command.seed)
    if command.interpolate:
        stops = np.asarray(run.method.latents(key, command.stops, run.cfg))
        frames = run.decode(images.walk(stops, command.frames - 1).astype(stops.dtype))
        images.save_gif(command.out / "walk.gif", frames, command.fps)
        # A row for each stop: the way from it to the next.
        images.save_png(command.out / "strip.png", images.grid(frames, columns=command.frames))
        print(f"a walk of {len(frames)} pictures in {command.out / 'walk.gif'} and {command.out / 'strip.png'}")
        return
    pictures = run.sample(key, command.count)
    if command.out.suffix.lower() == ".npz":
        with atomic_path(command.out) as path:
            np.savez_compressed(path, images=images.to_uint8(pictures))
    elif command.out.suffix.lower() == ".png":
        images.save_grid(command.out, pictures)
    else:
        for i, picture in enumerate(pictures):
            images.save_png(command.out / f"{i:06d}.png", picture)
    print(f"{command.count} pictures of step {run.step} in {command.out}")


def convert(command: Convert) -> None:
    from ganstyle_jax import convert as conversion

    use_cache()
    if len(command.source) == 1 and command.source[0].is_dir():
        written = conversion.export_run(command.source[0], command.out, command.format, command.averaged)
    else:
        written = conversion.import_files(list(command.source), command.out)
    print(written)


def prepare(command: Data) -> None:
    from ganstyle_jax import data

    folder = data.prepare(command.name, command.data_dir)
    print(f"{command.name} is ready in {folder}: train with --data tfds:{command.name}")


def manage_weights(command: Weights) -> None:
    takes = {"fetch": "a NAME", "import": "a FILE"}
    if (command.what is None) == (command.action in takes):
        raise UserError(f"ganstyle weights {command.action} takes {takes.get(command.action, 'nothing')}")
    if command.name is not None and command.action != "import":
        raise UserError("--name belongs to ganstyle weights import")
    from ganstyle_jax import weights

    if command.action == "list":
        print("\n".join(map(weights.describe, weights.names())))
    elif command.action == "fetch":
        print(f"{command.what} is ready in {weights.fetch(str(command.what))}")
    elif command.action == "import":
        kept = weights.import_file(str(command.what), command.name)
        print(f"{command.what} is imported into {kept}:\n{weights.describe(kept.stem)}")
    else:
        faults = {name: weights.fault(name) for name in weights.kept_names()}
        print("\n".join(f"{name} {fault or 'is sound'}" for name, fault in faults.items()) or "no weights are here yet")
        if wrong := [f"{name} {fault}" for name, fault in faults.items() if fault]:
            raise UserError(f"{'; '.join(wrong)}: fetch or import it again")


def plan(name: str, args: list[str]) -> None:
    """`ganstyle plan METHOD`: the flags are those of `plan.settings_of`."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # all else is described to the compiler
    from ganstyle_jax import plan as planning

    description = "What a step takes on TPUs that are not here, by their own compiler."
    settings = planning.settings_of(name)
    chosen = parse(settings, f"ganstyle plan {name}", args, description)
    try:
        planning.run(name, chosen)
    except ValueError as error:
        raise UserError(str(error)) from None


def evaluate(args: list[str]) -> None:
    """`ganstyle evaluate WHAT`: the flags are the fields of three dataclasses."""
    from ganstyle_jax import evaluate as program
    from ganstyle_jax import evaluate_pairs

    what_help = tyro.conf.arg(metavar="WHAT", help="run folder, or images: a folder, .zip, .tar or .npz")
    command = dataclasses.make_dataclass(
        "Settings",
        [
            ("what", Annotated[tyro.conf.Positional[Path], what_help]),
            ("options", program.Options, dataclasses.field(default=program.Options())),
            ("settings", program.Settings, dataclasses.field(default=program.Settings())),
            ("pairs", evaluate_pairs.Settings, dataclasses.field(default=evaluate_pairs.Settings())),
        ],
        frozen=True,
    )
    description = "Measure how good WHAT is: the pictures that a run draws, or any images."
    chosen = parse(command, "ganstyle evaluate", args, description)
    use_cache()
    if chosen.pairs.pairs is not None:
        record = evaluate_pairs.run(chosen.what, chosen.options.reference, chosen.pairs, chosen.settings)
        table = evaluate_pairs.table
    else:
        record = program.run(chosen.what, chosen.options, chosen.settings)
        table = program.table
    print(json.dumps(record, indent=1) if chosen.options.json else table(record))


def collect(command: Collect) -> None:
    from ganstyle_jax import collect as collection

    rows = collection.collect(command.folders, command.force)
    if command.json is not None:
        with atomic_path(command.json) as path:
            path.write_text(json.dumps(collection.record(rows), indent=1) + "\n")
    print(collection.table(rows))


def report(command: Report) -> None:
    use_cache()
    from ganstyle_jax import report as reporting

    default = command.runs[0] / "report.html" if len(command.runs) == 1 else Path("report.html")
    written = reporting.write(command.runs, command.out or default, command.training_images)
    print(f"{written}: {written.stat().st_size / 1e6:.1f} MB")


def explain(command: Explain) -> None:
    use_cache()
    from ganstyle_jax import explain as explanation

    written = explanation.run_any(command.what, command.out, command.step, command.seed, command.features, command.size)
    print(f"explained in {written.parent}, with texts in {written}")


def use_cache() -> None:
    """Keeps compiled programs from run to run, unless JAX_COMPILATION_CACHE_DIR names a place already."""
    import jax

    # Of no interest to a person, and repeated at every start: how the CPU's features were written down in the cache.
    warnings.filterwarnings("ignore", message=".*donated buffers.*")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


if __name__ == "__main__":
    main()
