"""Pictures that are made together, as those who wait for them see it: a listener of what style transfer tells."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ganstyle_jax.control import Done, Event
from ganstyle_jax.io import images, pictures
from ganstyle_jax.style import colours, gatys
from ganstyle_jax.stylize import opaque, run_folder
from ganstyle_jax.stylize.film import Film
from ganstyle_jax.stylize.orders import Settings
from ganstyle_jax.stylize.reading import Piece
from ganstyle_jax.stylize.trace import Trace

FRAME_EVERY = 2  # evaluations from one picture of a film to the next
FPS = 12
ALPHA_SUFFIXES = (".png", ".webp", ".tif", ".tiff")  # of pictures that can be transparent


class Journal:
    """The progress bar, and all files that are written of the pictures. Used in a `with`, which only clears up."""

    def __init__(
        self, cfg: gatys.Config, settings: Settings, pieces: Sequence[Piece], writes: bool = True, place: int = 0
    ):
        self.cfg, self.settings, self.pieces, self.writes, self.place = cfg, settings, pieces, writes, place
        self.started = time.perf_counter()
        self.traces = [Trace() for _ in pieces]
        self.own = [piece.content for piece in pieces]  # the contents, at the present size where that was asked for
        self.film: Film | None = None
        self.passed = 0  # evaluations when it was told last
        self.stopped = False

    @property
    def tell_every(self) -> tuple[int, ...]:
        """Multiples of evaluations at which it has something to keep, see `gatys.stylize`."""
        every = [self.settings.save_every]
        every += [FRAME_EVERY] if self.settings.animation is not None else []
        every += [self.run_every] if self.settings.run_dir is not None else []
        return tuple(one for one in every if one)

    @property
    def run_every(self) -> int:
        return self.settings.save_every or run_folder.STEPS_OF_RUN

    def __enter__(self) -> "Journal":
        from tqdm import tqdm

        shown = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm(total=100, unit="%", bar_format=shown, position=self.place, disable=not self.writes)
        if self.settings.animation is not None and self.writes:
            self.film = Film(self.settings.animation)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.film is not None:
            self.film.close()

    def hear(self, event: Event) -> None:
        """A listener of `Control`."""
        if isinstance(event, Done):
            self.stopped = event.stopped
        if not isinstance(event, gatys.Stepped) or not self.writes:
            return
        first = event.progress[0]
        new = [trace.add(told) for trace, told in zip(self.traces, event.progress, strict=True)]
        self._show(event)
        if self._due(event, self.settings.save_every):
            done = min(trace.evaluations for trace in self.traces)
            for i, (piece, told) in enumerate(zip(self.pieces, event.progress, strict=True)):
                self._write_picture(piece.order.steps / f"{done:06d}.png", i, told.image)
        if self.film is not None and (self._due(event, FRAME_EVERY) or first.done == 1):
            self._take_frame(first.image)
        if (folder := self.settings.run_dir) is not None:
            run_folder.write_metrics(folder, new[0])
            if self._due(event, self.run_every) or first.done == 1:
                run_folder.write_step(folder, self.traces[0].evaluations, self._flat(0, first.image))
        self.passed = event.step

    def _due(self, event: gatys.Stepped, every: int | None) -> bool:
        """Whether the evaluations have passed a multiple since the last event."""
        return bool(every) and event.step // every > self.passed // every

    def _show(self, event: gatys.Stepped) -> None:
        """Moves the progress bar."""
        (height, width), count = event.progress[0].shape, len(event.progress)
        loss = np.mean([trace.steps[-1]["loss"] for trace in self.traces])
        many = f"{count} pictures " if count > 1 else ""
        self.bar.n = 100 * event.progress[0].done
        self.bar.set_postfix_str(f"{many}{width}x{height} loss {loss:.4f}")

    # -----------------------------------------------------------------------------------------------------------------
    # Pictures as they are to be seen

    def _coloured(self, i: int, picture: np.ndarray) -> np.ndarray:
        """With the content's colours where they are kept."""
        if self.settings.preserve_colors != "luma":
            return picture
        if self.own[i].shape != picture.shape:
            self.own[i] = images.resize(self.pieces[i].content, picture.shape[:2], self.cfg.tileable)
        return colours.finish(picture, self.own[i], "luma")

    def _alpha(self, i: int, shape: tuple[int, int]) -> np.ndarray | None:
        """How opaque the content is, at the present size."""
        alpha = self.pieces[i].alpha
        if alpha is None:
            return None
        return np.clip(images.resize(alpha[..., None], shape, self.cfg.tileable)[..., 0], 0, 1)

    def _flat(self, i: int, picture: np.ndarray) -> np.ndarray:
        """In its colours and, where the content is transparent, over white."""
        alpha = self._alpha(i, picture.shape[:2])
        shown = self._coloured(i, picture)
        return shown if alpha is None else opaque.over_white(np.clip(shown, -1, 1), alpha)

    def _write_picture(self, path: Path, i: int, picture: np.ndarray) -> None:
        """In its colours and, where the content is, transparent; in a format that cannot be, over white."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in ALPHA_SUFFIXES:
            pictures.write_picture(path, self._coloured(i, picture), self._alpha(i, picture.shape[:2]))
        else:
            pictures.write_picture(path, self._flat(i, picture))

    def _take_frame(self, picture: np.ndarray) -> None:
        assert self.film is not None
        shape = gatys.fitted_shape(self.pieces[0].content.shape, self.cfg.size)
        self.film.add(images.to_uint8(images.resize(self._flat(0, picture), shape)))

    # -----------------------------------------------------------------------------------------------------------------
    # The end

    def write(self, made: Sequence[np.ndarray]) -> list[Path]:
        """The pictures, then what was asked for beside them, and a line for the person at the terminal.

        What was stopped is written beside the names that were asked for. Returns the names of the pictures.
        """
        self.bar.close()  # before anything is said
        written = [piece.order.stopped if self.stopped else piece.order.out for piece in self.pieces]
        if not self.writes:
            return written
        if self.stopped and not any(trace.steps for trace in self.traces):
            print(f"{self.pieces[0].order.out}: stopped before its first step", file=sys.stderr)
            return []
        replaced = [path.exists() for path in written]
        for i, (path, picture) in enumerate(zip(written, made, strict=True)):
            self._write_picture(path, i, picture)
        if self.film is not None and (animation := self.settings.animation) is not None:
            if not self.film.count:
                self._take_frame(made[0])
            ending = f".stopped{animation.suffix}" if self.stopped else animation.suffix
            self.film.write(animation.with_suffix(ending), FPS)
        if (folder := self.settings.run_dir) is not None:
            if self.stopped:
                run_folder.write_step(folder, self.traces[0].evaluations, self._flat(0, made[0]))
            else:
                pictures.write_picture(folder / "result.png", self._flat(0, made[0]))
        seconds = time.perf_counter() - self.started
        for path, piece, trace, old in zip(written, self.pieces, self.traces, replaced, strict=True):
            if self.settings.trace:
                trace.write(path.with_suffix(".json"), piece.order, self.cfg, self.settings)
            flat = piece.alpha is not None and path.suffix.lower() not in ALPHA_SUFFIXES
            flat = f", over white, since {path.suffix} has no transparency" if flat else ""
            before = f", stopped before {piece.order.out} was done" if self.stopped else ""
            replacing = "; the old file is replaced" if old else ""
            print(f"{path}: {trace.summary()} in {seconds:.0f} s{before}{flat}{replacing}", file=sys.stderr)
        return written
