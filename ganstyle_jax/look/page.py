"""A page of HTML that is one file: what it consists of, as plain data, and how that is written.

    losses = section("Losses", Text("Of both networks."), charts([chart("loss", {"gen": points})]))
    write(Path("report.html"), Page("Report", "My run", (), (losses,)))

The templates beside this file lay it out, with every text escaped; templates/style.html is its style sheet, and
templates/script.html the program that draws charts and moves sliders. Nothing is fetched from anywhere.
"""

import base64
import dataclasses
import functools
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ganstyle_jax.io import images
from ganstyle_jax.look.words import is_number, thinned

MOST_POINTS = 1500  # of a curve
LONGEST_SIDE = 1200  # pixels of a picture in the page
SHOWN_SIDE = 640  # pixels on the screen up to which small pictures are enlarged
LOSSLESS_BYTES = 90_000  # a picture that takes no more without loss is stored so
LOSSLESS_PIXELS = 200_000  # of larger ones it is not tried, because it takes long

# ---------------------------------------------------------------------------------------------------------------------
# Pictures


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture that is ready to be put into a page."""

    uri: str
    width: int  # on the screen, in its pixels
    height: int
    square_pixels: bool  # it is enlarged, and that is to be seen


def encode(picture: np.ndarray, budget: float, enlarge: Literal["pixels", "smoothly", "no"] = "pixels") -> Picture:
    """(h, w, 1 or 3) uint8, or float in [-1, 1], as WebP in a data URI of about `budget` bytes at most.

    Without loss where that is small, else of quality 85, else in fewer pixels. enlarge: by a whole number, where a
    picture is small.
    """
    pixels = picture if picture.dtype == np.uint8 else images.to_uint8(picture)
    file = Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))
    file.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    scale = 1 if enlarge == "no" else max(1, SHOWN_SIDE // max(file.size))
    shape = file.width * scale, file.height * scale
    encoded = _webp(file, lossless=True) if file.width * file.height <= LOSSLESS_PIXELS else b""
    if not 0 < len(encoded) * 4 / 3 <= min(budget, LOSSLESS_BYTES):
        encoded = _webp(file, quality=85)
        while len(encoded) * 4 / 3 > budget and min(file.size) > 32:
            factor = max(0.5, min(0.9, (budget / (len(encoded) * 4 / 3)) ** 0.5))
            smaller = max(1, round(file.width * factor)), max(1, round(file.height * factor))
            file = file.resize(smaller, Image.Resampling.LANCZOS)
            encoded = _webp(file, quality=80)
    uri = "data:image/webp;base64," + base64.b64encode(encoded).decode()
    return Picture(uri, *shape, square_pixels=scale > 1 and enlarge == "pixels")


def _webp(file: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    file.save(buffer, "WEBP", method=4, **options)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# What sections are made of; templates/parts.html has a macro for each


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    lead: str = ""  # words before it that stand out
    soft: bool = False  # of less weight than others


@dataclasses.dataclass(frozen=True)
class Note:
    """A remark, such as on what is missing."""

    text: str


@dataclasses.dataclass(frozen=True)
class Heading:
    text: str


@dataclasses.dataclass(frozen=True)
class Cell:
    text: str
    header: bool = False
    looks: str = ""  # "number": at the right; "wide": it may take several lines; "marked": it differs
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    cells: tuple[Cell, ...]
    looks: str = ""  # "other": it does not count; "changed": its cells differ


@dataclasses.dataclass(frozen=True)
class Table:
    """In a box that scrolls by itself."""

    head: tuple[Cell, ...]
    rows: tuple[Row, ...]
    label: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """Names with their values, in columns; True marks one."""

    items: dict[str, tuple[str, bool]]


@dataclasses.dataclass(frozen=True)
class Details:
    """What is seen when one asks for it."""

    summary: str
    blocks: "tuple[Block, ...]"


@dataclasses.dataclass(frozen=True)
class Figure:
    picture: Picture
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Figures:
    """Pictures side by side. looks: "plates" for wide ones, "pictures low" for those that are to fit the screen."""

    items: tuple[Figure | Note, ...]
    looks: str = "plates"


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Rows of a picture and those that are nearest to it, each with lines of text below."""

    rows: tuple[tuple[tuple[Picture, str, tuple[str, ...]], ...], ...]  # (picture, alt, lines)


@dataclasses.dataclass(frozen=True)
class Column:
    """Pictures at their places on the slider of a film, rising; without scripts the last one is seen."""

    pictures: tuple[tuple[int, Picture], ...]
    alt: str
    caption: str = ""
    titles: tuple[str, ...] = ()  # of the columns within each picture, which are equally wide


@dataclasses.dataclass(frozen=True)
class Film:
    """A slider with a place for each label, and columns that follow it."""

    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    what: str  # that the slider chooses
    fps: float = 3


@dataclasses.dataclass(frozen=True)
class Split:
    """Two pictures of one size, the second over the first, and a slider that says where it begins."""

    before: Picture
    after: Picture
    alts: tuple[str, str]
    titles: tuple[str, str]  # at the ends of the slider
    what: str  # that the slider chooses
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Chart:
    """A line chart, see `chart`."""

    title: str
    x: str
    log: bool
    marks: tuple[tuple[float, str, str], ...]
    series: tuple[dict[str, Any], ...]  # name, place, points


@dataclasses.dataclass(frozen=True)
class Charts:
    items: tuple[Chart, ...]


Block = Text | Note | Heading | Table | Settings | Details | Figures | Neighbours | Film | Split | Charts


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page that its contents point to."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        return re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")


@dataclasses.dataclass(frozen=True)
class Fact:
    """What one wants to know first. lines: smaller, of which the first says most; place: whose colour it has."""

    name: str
    value: str = ""
    lines: tuple[str, ...] = ()
    place: int | None = None


@dataclasses.dataclass(frozen=True)
class Page:
    title: str  # of the window
    heading: str
    facts: tuple[Fact, ...]
    sections: tuple[Section, ...]
    about: str = ""  # below the heading
    alarms: tuple[Text, ...] = ()
    alarm_title: str = "Warnings"
    footer: str = ""


def section(title: str, *blocks: "Block | Iterable[Block | None] | None") -> Section | None:
    """A section of these blocks, lists of them or None; None where nothing is left."""
    found: list[Block] = []
    for block in blocks:
        found += [one for one in ([block] if not isinstance(block, Iterable) else block) if one is not None]
    return Section(title, tuple(found)) if found else None


def chart(
    title: str,
    series: dict[str, list[tuple[float, Any]]],
    x: str = "step",
    marks: Sequence[tuple[float, str, str]] = (),
    log: bool = False,
) -> Chart | None:
    """A line chart of points (x, y) by name; what is no finite number is left out, and nothing is drawn of nothing.

    marks: vertical lines, (x, text, "alarm-line" or "quiet-line"). log: begin with a logarithmic axis.
    """
    # The place decides the colour, so that a run keeps its own where others have nothing to show.
    kept = [{"name": name, "place": i, "points": _points(of)} for i, (name, of) in enumerate(series.items())]
    kept = tuple(of for of in kept if of["points"])
    return Chart(title, x, log, tuple(marks), kept) if kept else None


def charts(found: Iterable[Chart | None]) -> Charts | None:
    kept = tuple(one for one in found if one is not None)
    return Charts(kept) if kept else None


def _points(points: Iterable[tuple[float, Any]]) -> list[tuple[float, float]]:
    finite = {x: float(f"{y:.6g}") for x, y in points if is_number(x) and is_number(y)}  # the last one of a step counts
    return thinned(sorted(finite.items()), MOST_POINTS)


# ---------------------------------------------------------------------------------------------------------------------
# The whole


@functools.cache
def environment() -> Any:
    """Jinja's, in which every text is escaped unless a template says otherwise."""
    import jinja2

    loader = jinja2.PackageLoader("ganstyle_jax.look", "templates")
    made = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["kind"] = lambda block: type(block).__name__
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # for `tojson`, which writes no "<" and no "&"
    return made


def render(page: Page) -> str:
    """The page as HTML."""
    drawn: list[dict[str, Any]] = []

    def number(chart: Chart) -> int:
        """Of a chart that the template comes to, for the program, which finds what it draws at the page's end."""
        drawn.append({field.name: getattr(chart, field.name) for field in dataclasses.fields(chart)})
        return len(drawn) - 1

    return environment().get_template("page.html").render(page=page, number=number, drawn=drawn)


def write(path: Path, page: Page) -> None:
    # A name of a file may be no UTF-8, and then has surrogates, which no encoding takes.
    path.write_text(render(page), encoding="utf-8", errors="backslashreplace")
