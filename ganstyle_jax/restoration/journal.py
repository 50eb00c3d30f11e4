"""A picture that is being restored, as those who wait for it see it: the progress bar, and all files written of it.

The run folder of `--run-dir`, which `ganstyle report` shows:

run.json        as in loop/runs.py
given.png       the picture as it was given; known.png what of it is known; mask.png, guide.png, truth.png if there are
metrics.jsonl   a line for each step;  steps/NNNNNN.png  the picture by steps
result.png      written last, and only if the picture was not stopped
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax.contract import to_json
from ganstyle_jax.io import images, pictures
from ganstyle_jax.io.files import UserError, atomic_path
from ganstyle_jax.judge.metrics import similarity
from ganstyle_jax.loop import runs
from ganstyle_jax.restoration.orders import Settings
from ganstyle_jax.restoration.reading import Piece
from ganstyle_jax.restore import deep_image_prior
from ganstyle_jax.restore.deep_image_prior import Config, State
from ganstyle_jax.stylize.opaque import over_white

KEPT_OF_RUN = 40  # pictures in steps/ of a run folder, without --save-every
ALPHA_SUFFIXES = (".png", ".webp", ".tif", ".tiff")  # of pictures that can be transparent


class Journal:
    """Used in a `with`, which only clears up."""

    def __init__(self, piece: Piece, cfg: Config, settings: Settings):
        assert cfg.steps is not None
        self.piece, self.cfg, self.settings = piece, cfg, settings
        self.total = cfg.steps
        self.lines: list[dict[str, Any]] = []
        self.started = time.perf_counter()
        self.written = 0  # lines of metrics.jsonl
        self.still = np.zeros(cfg.restarts, bool)  # those that have stopped

    @property
    def step(self) -> int:
        return self.lines[-1]["step"] if self.lines else 0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def __enter__(self) -> "Journal":
        from tqdm import tqdm

        shown = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        self.bar = tqdm(total=self.total, bar_format=shown)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    # -----------------------------------------------------------------------------------------------------------------
    # On the way

    def begin(self, lines: Sequence[dict[str, Any]] = (), seconds: float = 0.0) -> None:
        """The run folder as it is by then: after the steps of these lines, which took so long."""
        self.lines = list(lines)
        self.started = time.perf_counter() - seconds
        if self.lines:
            self.still = np.asarray(self.lines[-1].get("still", [False] * self.cfg.restarts), bool)
        self.bar.initial = self.bar.n = self.bar.last_print_n = self.step  # what is left is reckoned from there
        self.bar.refresh()
        if (folder := self.piece.order.run_dir) is not None:
            self._begin_run(folder)

    def note(self, trace: dict[str, np.ndarray], state: State) -> dict[str, Any]:
        """Takes in the steps that were done, and returns the line of the last; {} where there was none."""
        before, taken = self.step, int(state.step) - self.step
        told = {
            name: np.asarray(trace[name], np.float64).reshape(-1, self.cfg.restarts) for name in ("loss", "variance")
        }
        stopped = np.asarray(trace["stopped"], bool).reshape(-1, self.cfg.restarts)
        for i in range(taken):
            going = ~self.still
            if not np.isfinite(told["loss"][i][going]).all():
                raise UserError(
                    f"the loss of {self.piece.order.image} is not finite at step {before + i + 1}: choose a smaller "
                    "--learning-rate"
                )
            self.lines.append(self._line(before + i + 1, {name: of[i] for name, of in told.items()}, going))
            self.still = stopped[i]
        if not taken:
            return {}
        last = self.lines[-1]
        last["still"] = self.still.tolist()
        last["seconds"] = round(self.seconds, 3)
        if self.piece.truth is not None:
            last |= {"psnr": self.psnr(self.now(state)), "psnr_chosen": self.psnr(self.chosen(state))}
        self._show(last)
        self._keep(before, state)
        return last

    def _line(self, step: int, values: dict[str, np.ndarray], going: np.ndarray) -> dict[str, Any]:
        line: dict[str, Any] = {"step": step}
        for name, of in values.items():
            known = {i + 1: float(x) for i, x in enumerate(of) if going[i] and math.isfinite(x)}
            if known:
                line[name] = float(np.mean(list(known.values())))
            if self.cfg.restarts > 1:
                line |= {f"{name}/{i}": x for i, x in known.items()}
        return line

    def _show(self, line: dict[str, Any]) -> None:
        """Moves the progress bar."""
        height, width = self.piece.shape
        words = f"{width}x{height} loss {line['loss']:.5f}"
        words += f" variance {line['variance']:.2e}" if "variance" in line else ""
        words += f" PSNR {line['psnr']:.2f} dB" if "psnr" in line else ""
        self.bar.set_postfix_str(words, refresh=False)
        self.bar.update(line["step"] - self.bar.n)

    def _keep(self, before: int, state: State) -> None:
        """The files of these steps."""
        folder, every = self.piece.order.run_dir, self.settings.save_every
        picture = None
        if every and self.step // every > before // every:
            picture = self.now(state)
            self._write_picture(self.piece.order.steps / f"{self.step:06d}.png", picture)
        if folder is None:
            return
        every = every or max(1, self.total // KEPT_OF_RUN)
        if before == 0 or self.step // every > before // every:
            picture = self.now(state) if picture is None else picture
            pictures.write_picture(folder / "steps" / f"{self.step:06d}.png", self._flat(picture))
        with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in self.lines[self.written :])
        self.written = len(self.lines)

    # -----------------------------------------------------------------------------------------------------------------
    # Pictures as they are to be seen, and how good they are

    def now(self, state: State) -> np.ndarray:
        """The picture that the networks make by now, the mean over restarts."""
        return self.piece.finished(deep_image_prior.latest(state, self.cfg), self.settings.keep_known)

    def chosen(self, state: State) -> np.ndarray:
        """The picture that would be the result if it ended now."""
        return self.piece.finished(deep_image_prior.restored(state, self.cfg), self.settings.keep_known)

    def psnr(self, picture: np.ndarray) -> float:
        """dB, from the truth; at most that of two that differ by a hundredth of a level of 8 bits."""
        assert self.piece.truth is not None
        return round(min(float(similarity.psnr(picture[None], self.piece.truth[None])[0]), 88.0), 3)

    def _flat(self, picture: np.ndarray) -> np.ndarray:
        """Over white where it is transparent."""
        return picture if self.piece.alpha is None else over_white(picture, self.piece.alpha)

    def _write_picture(self, path: Path, picture: np.ndarray) -> None:
        """Transparent where the given one was; in a format that cannot be, over white."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in ALPHA_SUFFIXES:
            pictures.write_picture(path, picture, self.piece.alpha)
        else:
            pictures.write_picture(path, self._flat(picture))

    def _begin_run(self, folder: Path) -> None:
        """All that is known of the run before the next step; what lies beyond it is removed."""
        (folder / "steps").mkdir(parents=True, exist_ok=True)
        for path in (folder / "steps").glob("*.png"):
            if path.stem.isdigit() and int(path.stem) > self.step:
                path.unlink()
        (folder / "result.png").unlink(missing_ok=True)
        lines = list(self.lines)
        if self.piece.truth is not None:  # before the first step, and so not of the trace
            lines.insert(0, {"step": 0, "psnr_given": self.psnr(self.given())})
        with atomic_path(folder / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        self.written = len(self.lines)
        shown = {"given": self.piece.measured, "guide": self.piece.guide, "truth": self.piece.truth}
        if self.piece.mask is not None:
            shown |= {"known": self.piece.known(), "mask": self.piece.mask[..., None] * 2 - 1}
        for name, picture in shown.items():
            if picture is not None:
                pictures.write_picture(folder / f"{name}.png", picture)
        runs.write(folder, deep_image_prior, described(self.piece, self.cfg, self.settings) | runs.surroundings())

    def given(self) -> np.ndarray:
        """What was given, in the size of the result."""
        known = self.piece.known()
        return known if known.shape[:2] == self.piece.shape else images.resize(known, self.piece.shape).clip(-1, 1)

    # -----------------------------------------------------------------------------------------------------------------
    # The end

    def write(self, state: State, stopped: bool) -> Path | None:
        """The picture, what was asked for beside it, and a line for the person at the terminal; its name.

        What was stopped is written beside the name that was asked for.
        """
        self.bar.close()  # before anything is said
        order = self.piece.order
        if not self.lines:
            print(f"{order.out}: stopped before its first step", file=sys.stderr)
            return None
        picture = self.chosen(state)
        path = order.stopped if stopped else order.out
        replacing = "; the old file is replaced" if path.exists() else ""
        self._write_picture(path, picture)
        if self.settings.trace:
            self._write_trace(path.with_suffix(".jsonl"))
        if order.run_dir is not None and not stopped:
            pictures.write_picture(order.run_dir / "result.png", self._flat(picture))
        flat = self.piece.alpha is not None and path.suffix.lower() not in ALPHA_SUFFIXES
        flat = f", over white, since {path.suffix} has no transparency" if flat else ""
        seconds = f" in {self.seconds:.0f} s"
        before = f", stopped before {order.out} was done; --resume goes on" if stopped else ""
        print(f"{path}: {self.reached()}{self.judged(picture)}{seconds}{before}{flat}{replacing}", file=sys.stderr)
        return path

    def reached(self) -> str:
        """In words: how far it has come, and when early stopping has chosen the picture."""
        chosen = chosen_steps(self.lines, self.cfg)
        of = f" of {len(chosen)} networks" if len(chosen) > 1 else ""
        if self.cfg.stopping == "steps" or not any(chosen):
            return f"the picture{of} after {self.step:,} steps"
        least, most = min(filter(None, chosen)), max(chosen)
        when = f"step {least:,}" if least == most else f"steps {least:,} to {most:,}"
        all_stopped = bool(self.still.all()) and self.step < self.total
        ended = f"which stopped at {self.step:,}" if all_stopped else f"of the {self.step:,} that were done"
        return f"the picture{of} at {when}, where the variance was least, {ended}"

    def judged(self, picture: np.ndarray) -> str:
        """In words: how near it is to the truth, and how near what was given is."""
        if self.piece.truth is None:
            return ""
        words = f", PSNR {self.psnr(picture):.2f} dB after {self.psnr(self.given()):.2f} dB"
        if min(self.piece.shape) >= similarity.WINDOW:
            words += f", SSIM {float(similarity.ssim(picture[None], self.piece.truth[None])[0]):.4f}"
        if self.cfg.task == "super-resolve" and min(self.piece.shape) > 2 * self.cfg.scale:
            of_luma = similarity.psnr_y(picture[None], self.piece.truth[None], self.cfg.scale)[0]
            words += f", PSNR of luma {of_luma:.2f} dB"
        return words

    def _write_trace(self, path: Path) -> None:
        about = {"image": str(self.piece.order.image)} | described(self.piece, self.cfg, self.settings)
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in (about, *self.lines)), encoding="utf-8")


def chosen_steps(lines: Sequence[dict[str, Any]], cfg: Config) -> list[int]:
    """The step of the least variance of each restart; 0 where none is known."""
    names = ["variance"] if cfg.restarts == 1 else [f"variance/{i + 1}" for i in range(cfg.restarts)]
    chosen = []
    for name in names:
        known = [(line[name], line["step"]) for line in lines if name in line]
        chosen.append(min(known)[1] if known else 0)
    return chosen


def described(piece: Piece, cfg: Config, settings: Settings) -> dict[str, Any]:
    """What run.json and the trace say of the picture."""
    order = piece.order
    own = {name: getattr(order, name) for name in ("out", "mask", "guide", "truth", "run_dir")}
    loop = to_json(dataclasses.replace(settings, **own))
    return {"method": "deep-image-prior", "config": to_json(cfg), "data": str(order.image), "loop": loop}
