"""How near translated pictures come to those of the target, on test pictures, by the features of the real VGG-19.

Paper: Heusel et al. 2017 (arXiv:1706.08500), eq. 6, with features of VGG-19 (Simonyan & Zisserman 2015) in the place of
    Inception's. No figure of a paper is of these features.
Data: test pictures that training did not see, such as face2portrait_128px.zip/test, which is testA and testB, and
    VGG-19 in 8 bits in --weights (CC BY 4.0), or another file or name that `ganstyle weights` knows.
Hardware and time: seconds for a hundred pictures of 64 pixels on a CPU, and as many for the features.
Expected: experiments/results/translation_distance.json, and see "Translation" in docs/measured.md. In relu3_4 the 100
    test pictures of face2portrait at 64 pixels, each side, are 4.12e7 apart before anything is done, floor 3.2e6.
Command: python experiments/translation_distance.py runs/face2portrait --data face2portrait_128px.zip/test
    python experiments/translation_distance.py runs/face2portrait runs/face2portrait_torch
        --data face2portrait_128px.zip/test

A folder that experiments/bench/train_translation_torch.py left is measured like a run; "side" says which of the two it
is, "ours" or "PyTorch".

Protocol: source and target pictures are cropped and resized as for training, to the crop that it saw; translations are
rounded to 8 bits, as if they had been saved. Of each picture the features of each --layers are averaged over its places
(networks.feature_network "none": no resizing), and a Gaussian is fitted to each set. "source" is the distance of source
and target, what doing nothing would have; "translated" that of the translations and the target; "reduction" is 1 less
their ratio; "floor", where there are training pictures of the target, is the distance of as many of these and the
target's test pictures, which perfect translations would have. Few pictures make all of them larger, so compare equal
counts alone. The first layer is the one to quote: relu3_4, 256 features, for a hundred pictures have no more to say.

Also measured, as means over test pictures of absolute differences in [-1, 1]: "cycle", of what went there and back;
"identity", of what a generator makes of its own target's pictures; and what the method's own warnings look at.
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from ganstyle_jax import contract, data
from ganstyle_jax.commands import flags
from ganstyle_jax.gan import cyclegan, cyclegan_files
from ganstyle_jax.io import images, sheet
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge import features, networks
from ganstyle_jax.judge.metrics.distances import Gaussian, frechet_distance, gaussian
from ganstyle_jax.loop import runs, sources

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine

VGG19 = machine.ROOT / ".." / "shared" / "data" / "weights" / "vgg19_8bit.npz"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is translated, and by what it is judged."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]  # runs of cyclegan, such as of several seeds, and PyTorch's
    data: tuple[str, ...] = ()  # test pictures, as `ganstyle train --data` takes them: PAIR.zip/test, or a=.. b=..
    weights: str = str(VGG19)  # the real VGG-19, a file or a name that `ganstyle weights list` shows
    layers: tuple[str, ...] = ("relu3_4", "relu2_2", "relu4_4")  # whose features are compared, the first to be quoted
    step: int | None = None  # of the runs' checkpoints; by default the newest
    count: int | None = None  # of test pictures of each side; by default all
    shown: int = 8  # pictures of each direction in the grid beside each run's record
    json: Path | None = Path("translation_distance.json")  # record; a bare name goes into experiments/results/

    def __post_init__(self):
        if not self.run_dirs or not self.data or not self.layers:
            raise UserError("give runs, test pictures by --data, and --layers")


def main(settings: Settings) -> dict[str, Any]:
    flags.use_cache()
    judges = {layer: networks.feature_network(f"{settings.weights}:{layer}", "none") for layer in settings.layers}
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "flax", "numpy", "pillow")),
        "features": {layer: {"name": judge.name, "weights": judge.digest} for layer, judge in judges.items()},
        "quoted": settings.layers[0],
        "rows": [],
    }
    for run_dir in settings.run_dirs:
        about, run = loaded(run_dir, settings.step)
        if run.method.name != "cyclegan" or run.cfg.mode == "paired":
            raise UserError(f"{run_dir} is no run of cyclegan without pairs, whose pictures have a source and a target")
        for row, grid in measured(run, judges, settings):
            record["rows"].append(about | row)
            place = run_dir / "translation_distance" / f"{run.step:06d}_{row['direction']}.png"
            images.save_png(place, sheet.of(grid, columns=1))
            machine.say(f"{run_dir} {row['direction']}: {in_words(row, settings.layers[0])}; pictures in {place}")
    print(table(record["rows"]))
    if settings.json is not None:
        print(f"The record is in {machine.write_record(settings.json, record)}")
    return record


def loaded(place: Path, step: int | None) -> tuple[dict[str, Any], runs.LoadedRun]:
    """What a row says of a run or of a folder that PyTorch left, and the run."""
    files = [place / f"latest_net_{name}.pth" for name in ("G_A", "G_B")]
    if (place / "run.json").exists() or not all(path.exists() for path in files):
        run = runs.load(place, step)
        seed = runs.read(place).get("loop", {}).get("seed")
        return {"run": place.name, "side": "ours", "step": run.step, "seed": seed}, run
    try:
        trained = json.loads((place / "train.json").read_text())
        sizes = {name: trained["settings"][name] for name in ("image_size", "crop", "discriminator_halvings")}
        seed, found, given = trained["settings"]["seed"], trained["step"], trained["data"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{place} holds {files[0].name} and no train.json of experiments/bench/train_translation_torch.py, which "
            f"says what pictures they are for ({error!r}): ganstyle convert makes a run of the files"
        ) from None
    if step not in (None, found):
        raise UserError(f"{place} holds PyTorch's step {found} alone: leave --step {step} out")
    if trained["settings"].get("upsampling") == "nearest":
        run = of_nearest(files, trained["settings"])
    else:
        with tempfile.TemporaryDirectory() as folder:
            cyclegan_files.import_files(files, Path(folder, "run"))
            run = runs.load(Path(folder, "run"), **sizes)
    about = {"run": place.name, "side": "PyTorch", "step": found, "seed": seed}
    return about, dataclasses.replace(run, step=found, data=given, run_dir=place)


def of_nearest(files: list[Path], trained: dict[str, Any]) -> runs.LoadedRun:
    """Generators with nearest enlargement, which neither the common implementation nor `ganstyle convert` has."""
    sys.path.insert(1, str(machine.ROOT / "tests"))
    import torch
    import torch_cyclegan as reference

    names = ("image_size", "crop", "width", "blocks", "discriminator_width", "discriminator_halvings", "upsampling")
    cfg = cyclegan.Config(**{name: trained[name] for name in names})
    state = cyclegan.init(jax.random.key(0), cfg)
    params = dict(state.params)
    for way, path in zip(cfg.ways, files, strict=True):
        net = reference.resnet(cfg.width, cfg.blocks, cfg.upsampling)
        weights = torch.load(path, weights_only=True)  # tensors alone
        net.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
        params[way] = reference.tree(net, params[way])
    return runs.LoadedRun(contract.find("cyclegan"), cfg, dataclasses.replace(state, params=params), 0)


def measured(run: runs.LoadedRun, judges: dict[str, networks.FeatureNetwork], settings: Settings) -> Any:
    """Of each direction the run's row, and a grid of the first pictures, {title: (n, h, w, 3)}."""
    cfg = run.cfg
    given = sources.named(sources.parse(settings.data, run.method, cfg), run.method, cfg)
    real = {x: pictures(str(place), cfg.crop, settings.count) for x, place in given.items()}
    trained = run.data if isinstance(run.data, dict) else {}
    for way in cfg.ways:
        x, y = way[0], way[-1]
        made = drawn(run, way, real[x])
        back = drawn(run, f"{y}2{x}", made) if len(cfg.ways) == 2 else None
        same = drawn(run, way, real[y])
        row: dict[str, Any] = {"direction": way, "pixels": cfg.crop}
        row |= {
            "source_count": len(real[x]),
            "target_count": len(real[y]),
            "data": [Path(d).name for d in settings.data],
        }
        others = target_of_training(trained.get(y), cfg.crop, len(made))
        row["layers"] = {name: distances(judge, real[x], made, real[y], others) for name, judge in judges.items()}
        row["cycle"] = None if back is None else float(np.abs(back - real[x]).mean())
        row["identity"] = float(np.abs(same - real[y]).mean())
        row |= cyclegan.watch({}, {x: real[x], f"{x} to {y}": made}, {})[0]
        grid = {x: real[x], f"{x} to {y}": made} | ({} if back is None else {f"back to {x}": back})
        yield row, {title: part[: settings.shown] for title, part in grid.items()}


def drawn(run: runs.LoadedRun, way: Any, given: np.ndarray) -> np.ndarray:
    """What the generator of this direction makes of pictures, (n, h, w, 3) float32 in [-1, 1]."""
    requests = run.method.requests_of(given, run.cfg, cyclegan.ApplySettings(way))
    return run.draw(requests)[f"{way[0]} to {way[-1]}"]


def distances(
    judge: networks.FeatureNetwork, source: np.ndarray, made: np.ndarray, target: np.ndarray, others: np.ndarray | None
) -> dict[str, float | None]:
    def looked_at(shown: np.ndarray) -> Gaussian:
        return gaussian(features.extract(judge, [images.to_uint8(shown)], progress=False)[0])

    real = looked_at(target)
    before, after = (frechet_distance(real, looked_at(shown)) for shown in (source, made))
    floor = None if others is None else frechet_distance(real, looked_at(others))
    return {"source": before, "translated": after, "reduction": 1 - after / before, "floor": floor}


def pictures(place: str, size: int, count: int | None = None) -> np.ndarray:
    """(n, size, size, 3) float32 in [-1, 1]; of more than `count` as many, evenly spaced."""
    source = data.open_source(place, size, channels=3)
    if source.size is None or source.size < 2:
        raise UserError(f"{place} has {source.size or 'no end of'} pictures: give a set of two or more")
    chosen = np.linspace(0, source.size - 1, min(count or source.size, source.size)).round().astype(int)
    return np.stack([source[int(i)]["image"] for i in chosen])


def target_of_training(place: str | None, size: int, count: int) -> np.ndarray | None:
    """As many pictures of the target as were translated, of those that the run learned from, where they are here."""
    if place is None:
        return None
    try:
        return pictures(place, size, count)
    except UserError:
        return None


def in_words(row: dict[str, Any], layer: str) -> str:
    of = row["layers"][layer]
    floor = "" if of["floor"] is None else f", floor {of['floor']:.4g}"
    return f"{of['source']:.4g} before, {of['translated']:.4g} after, {of['reduction']:.0%} less{floor}"


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        ["run", "side", "step", "", "layer", "source", "translated", "less", "floor", "cycle", "identity"],
        ["---"] * 11,
    ]
    for row in rows:
        for layer, of in row["layers"].items():
            floor = "" if of["floor"] is None else f"{of['floor']:.4g}"
            cycle = "" if row["cycle"] is None else f"{row['cycle']:.3f}"
            line = [row["run"], row["side"], f"{row['step']:,}", row["direction"], layer]
            line += [
                f"{of['source']:.4g}",
                f"{of['translated']:.4g}",
                f"{of['reduction']:.0%}",
                floor,
                cycle,
                f"{row['identity']:.3f}",
            ]
            lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
