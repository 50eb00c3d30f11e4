"""`ganstyle stylize`: pictures in, pictures out, with a progress bar, a trace and intermediate pictures."""

import dataclasses
import json
import resource
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from ganstyle_jax import pictures, weights
from ganstyle_jax.files import UserError, atomic_path
from ganstyle_jax.style import colours, gatys


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which pictures, which features, and what to leave."""

    # .png, .jpg, .webp, or .tif with 16 bits; a folder if CONTENT is one
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("stylized.png")
    features: str = "vgg19-distilled"  # network to compare by: one of `ganstyle weights list`, or a file
    style_weights: tuple[float, ...] = ()  # one for each style; by default all the same
    preserve_colors: colours.How = "none"  # keep the content's colours, in one of the ways of colours.py
    init_image: Path | None = None  # picture to begin with, in the place of --init
    seed: int = 0  # of the noise that --init noise begins with
    save_every: int | None = None  # evaluations between intermediate pictures, in the folder OUT.steps
    animation: Path | None = None  # .gif or .mp4 of the optimisation
    trace: bool = False  # write OUT.json: settings, and loss, time and memory after each step


def run(content: Path, styles: tuple[Path, ...], cfg: gatys.Config, settings: Settings) -> list[Path]:
    """Stylises a picture, or each in a folder, and returns the files written. Raises UserError."""
    contents = files_in(content) if content.is_dir() else [content]
    style_files = [file for style in styles for file in (files_in(style) if style.is_dir() else [style])]
    if not style_files:
        raise UserError(f"no style is given: name at least one picture after {content}")
    given = len(settings.style_weights)
    if given not in (0, len(style_files)):
        raise UserError(f"--style-weights has {given} numbers for {len(style_files)} styles: give one for each")
    many = content.is_dir()
    outs = [settings.out / f"{file.stem}.png" if many else settings.out for file in contents]
    if many:
        settings.out.mkdir(parents=True, exist_ok=True)
    for out in outs:
        pictures.check_destination(out, pictures.PICTURE_SUFFIXES)
    if settings.animation is not None:
        pictures.check_destination(settings.animation, pictures.VIDEO_SUFFIXES)
    network, params = weights.load(settings.features)
    style_pictures = [pictures.read_picture(file) for file in style_files]
    for file, out in zip(contents, outs, strict=True):
        one(pictures.read_picture(file), style_pictures, network, params, cfg, settings, out)
    return outs


def one(
    content: np.ndarray,
    styles: list[np.ndarray],
    network: weights.Network,
    params: weights.Params,
    cfg: gatys.Config,
    settings: Settings,
    out: Path,
) -> None:
    """One content picture, (h, w, 3) in [-1, 1] as the styles are, to the file `out`."""
    how = settings.preserve_colors
    styles = [colours.prepare_style(style, content, how) for style in styles]
    with Journal(cfg, settings, out) as journal:
        try:
            picture = gatys.stylize(
                jax.random.key(settings.seed),
                colours.prepare_content(content, how),
                styles,
                cfg,
                network,
                params,
                settings.style_weights or None,
                None if settings.init_image is None else pictures.read_picture(settings.init_image),
                journal.record,
            )
        except ValueError as error:  # layers that the network lacks, pictures too small
            raise UserError(str(error)) from error
        pictures.write_picture(out, colours.finish(picture, content, how))
    journal.report(out)


class Journal:
    """The progress bar, the trace, intermediate pictures and the animation of one optimisation."""

    def __init__(self, cfg: gatys.Config, settings: Settings, out: Path):
        self.cfg, self.settings, self.out = cfg, settings, out
        self.started = time.perf_counter()
        self.steps: list[dict[str, Any]] = []
        self.frames: list[np.ndarray] = []
        self.saved = 0
        self.before, self.resets = 0, {}  # evaluations at earlier sizes; failed line searches by size

    def __enter__(self) -> "Journal":
        from tqdm import tqdm

        self.bar = tqdm(total=100, unit="%", bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def record(self, progress: gatys.Progress) -> None:
        """The callback of `gatys.stylize`."""
        if self.steps and progress.shape not in self.resets:
            self.before = self.steps[-1]["evaluations"]
        self.resets[progress.shape] = progress.resets
        height, width = progress.shape
        for evaluations, loss in progress.losses:
            self.steps.append({"evaluations": self.before + evaluations, "size": [width, height], "loss": loss})
        self.steps[-1] |= {
            "resets": progress.resets,
            "terms": progress.terms,
            "seconds": round(time.perf_counter() - self.started, 3),
            "memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }
        self.bar.n = 100 * progress.done
        loss = progress.losses[-1][1]
        parts = {part: sum(v for k, v in progress.terms.items() if k.startswith(part)) for part in ("content", "style")}
        shown = " ".join(f"{part} {value:.4f}" for part, value in parts.items())
        self.bar.set_postfix_str(f"{width}x{height} loss {loss:.4f} {shown}")
        every = self.settings.save_every
        if every and self.steps[-1]["evaluations"] >= self.saved + every:
            self.saved = self.steps[-1]["evaluations"]
            folder = self.out.with_suffix(".steps")
            folder.mkdir(exist_ok=True)
            pictures.write_picture(folder / f"{self.saved:06d}.png", progress.image)
        if self.settings.animation is not None:
            self.frames.append(progress.image)

    def report(self, out: Path) -> None:
        """After the picture: the trace, the animation, and a line for the person at the terminal."""
        from ganstyle_jax import images

        if self.settings.animation is not None:
            shape = self.frames[-1].shape[:2]
            pictures.write_video(self.settings.animation, [images.resize(f, shape) for f in self.frames], fps=12)
        if self.settings.trace:
            trace = {
                "config": dataclasses.asdict(self.cfg),
                "settings": {
                    k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self.settings).items()
                },
                "steps": self.steps,
            }
            with atomic_path(out.with_suffix(".json")) as path:
                path.write_text(json.dumps(trace, indent=1) + "\n")
        seconds = time.perf_counter() - self.started
        failed = sum(self.resets.values())
        resets = f", line search failed {failed} times" if failed else ""
        print(f"{out}: {self.steps[-1]['evaluations']} evaluations in {seconds:.0f} s{resets}", file=sys.stderr)


def files_in(folder: Path) -> list[Path]:
    """Picture files directly in a folder, sorted; UserError if there are none."""
    accepted = pictures.PICTURE_SUFFIXES
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in accepted and path.name[0] != ".")
    if not found:
        raise UserError(f"no pictures in {folder}: accepted are {', '.join(accepted)}")
    return found
