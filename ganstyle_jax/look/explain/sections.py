"""What explanations are made of: sections of text and pictures in a folder, and how the pictures are drawn.

explain.json holds {"sections": [{"title": str, "text": str, "pictures": [{"file": str, "caption": str}]}]}; files are
PNGs beside it. Drawings are 6.4 inches wide and their letters large, so that a telephone shows them legibly.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax.io import images
from ganstyle_jax.io.files import atomic_path

WIDTH = 6.4  # inches, at 150 dots an inch
STYLE = {
    **{"font.size": 12, "axes.titlesize": 12, "axes.labelsize": 12, "legend.fontsize": 11, "figure.dpi": 150},
    **{"xtick.labelsize": 11, "ytick.labelsize": 11, "savefig.facecolor": "white", "figure.facecolor": "white"},
    **{"axes.spines.top": False, "axes.spines.right": False, "image.interpolation": "nearest"},
}
REAL, FAKE, PLAIN = "#1f5fa8", "#d1600a", "#777777"  # colours that the colour-blind tell apart, as on every figure


@dataclasses.dataclass(frozen=True)
class Picture:
    file: str  # in the folder of explain.json
    caption: str


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    text: str
    pictures: tuple[Picture, ...] = ()


def write(folder: Path, sections: Sequence[Section]) -> Path:
    """explain.json, last of all: whoever finds it finds every picture that it names.

    Pictures that an earlier one named and this one does not are removed after it.
    """
    file = folder / "explain.json"
    before = _named_before(file)
    with atomic_path(file) as path:
        record = {"sections": [dataclasses.asdict(section) for section in sections]}
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in before - {picture.file for section in sections for picture in section.pictures}:
        (folder / name).unlink(missing_ok=True)
    return file


def _named_before(file: Path) -> set[str]:
    """PNGs beside an earlier explain.json that it shows; none where that is damaged."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        named = [picture["file"] for section in record["sections"] for picture in section["pictures"]]
        return {name for name in named if re.fullmatch(r"[\w-]+\.png", name)}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return set()


@contextlib.contextmanager
def figure(file: Path, rows: int, columns: int, height: float, **settings: Any) -> Iterator[tuple[Any, np.ndarray]]:
    """(figure, axes (rows, columns)) of WIDTH x height inches, written to the file when the block ends without error.

    Without pyplot and without the user's settings, so that the same picture is drawn everywhere.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn_by: Any = {**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}
    with matplotlib.rc_context(drawn_by):
        drawing = Figure((WIDTH, height), layout="constrained")
        FigureCanvasAgg(drawing)
        axes = drawing.subplots(rows, columns, squeeze=False, **settings)
        yield drawing, axes
        with atomic_path(file) as path:
            drawing.savefig(path, format="png", dpi=150)


def show(axes: Any, picture: Any, title: str = "", below: str = "", **settings: Any) -> Any:
    """One picture (h, w, 1 or 3) in [-1, 1], or a map (h, w) of numbers with matplotlib's settings, without ticks."""
    picture = np.asarray(picture)
    if picture.ndim == 3:
        picture = images.to_uint8(picture)
        picture = np.repeat(picture, 3, -1) if picture.shape[-1] == 1 else picture
    drawn = axes.imshow(picture, **settings)
    bare(axes)
    axes.set_title(title)
    axes.set_xlabel(below)
    return drawn


def bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def thumbnails(axes: Any, places: np.ndarray, pictures: np.ndarray, colours: Sequence[str], zoom: float) -> None:
    """Pictures (n, h, w, c) at their places (n, 2) in the data's units, each in a frame of its colour.

    Of pictures that would lie on one another only the first is drawn, so that all that one sees can be read.
    """
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    spans = np.ptp(places, axis=0)
    edge = zoom * spans  # of a picture, in the data's units
    taken: list[np.ndarray] = []
    for place, picture, colour in zip(places, pictures, colours, strict=True):
        if any((np.abs(place - other) < edge).all() for other in taken):
            continue
        taken.append(place)
        picture = images.to_uint8(picture)
        picture = np.repeat(picture, 3, -1) if picture.shape[-1] == 1 else picture
        scale = zoom * 0.78 * WIDTH * 72 / picture.shape[0]
        box = AnnotationBbox(
            OffsetImage(picture, zoom=scale, interpolation="nearest"),
            tuple(place),
            frameon=True,
            pad=0.12,
            bboxprops={"edgecolor": colour, "linewidth": 1.6, "facecolor": colour},
        )
        axes.add_artist(box)
    low, high = places.min(0) - edge / 1.5, places.max(0) + edge / 1.5
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
