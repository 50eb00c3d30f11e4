"""Parts of an HTML page that is one file: escaped text, tables, pictures, curves and films, without a network.

report.html beside this file is the page around them: its style, and the script that draws charts and moves sliders.
"""

import base64
import dataclasses
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ganstyle_jax import images

MOST_POINTS = 1500  # of a curve
LONGEST_SIDE = 1200  # pixels of a picture in the page
SHOWN_SIDE = 640  # pixels on the screen up to which small pictures are enlarged
LOSSLESS_BYTES = 90_000  # a picture that takes no more without loss is stored so
LOSSLESS_PIXELS = 200_000  # of larger ones it is not tried, because it takes long
VOID = ("img", "input")


class Html(str):
    """What is HTML already. All other text is escaped where it enters `tag`."""


Child = str | None | Iterable["Child"]


def tag(name: str, *children: Child, **attributes: Any) -> Html:
    """An element. Children: text, Html, None, or lists of these. Attributes: class_ and aria_label for class and
    aria-label; True stands for the bare name, False and None for none."""
    parts = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            parts.append(f'{key}="{escape(str(value))}"')
    opened = f"<{' '.join(parts)}>"
    return Html(opened if name in VOID else f"{opened}{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    found = []
    for child in children:
        if isinstance(child, Html):
            found.append(child)
        elif isinstance(child, str):
            found.append(escape(child))
        elif child is not None:
            found.append(join(*child))
    return Html("".join(found))


def paragraph(*children: Child, soft: bool = False) -> Html:
    return tag("p", *children, class_="soft" if soft else None)


def note(*children: Child) -> Html:
    """A remark, such as on what is missing."""
    return tag("p", *children, class_="note")


def table(head: Sequence[Html], rows: Sequence[Sequence[Html] | Html], label: str) -> Html:
    """Cells th and td, or whole rows, in a box that scrolls by itself."""
    body = [row if isinstance(row, Html) else tag("tr", row) for row in rows]
    filled = tag("table", tag("thead", tag("tr", head)), tag("tbody", body))
    return tag("div", filled, class_="box", tabindex=0, role="region", aria_label=label)


def settings_list(items: dict[str, tuple[str, bool]]) -> Html:
    """Names with their values, in columns; True marks one."""
    return tag(
        "ul",
        [
            tag("li", tag("span", k), tag("span", v), class_="changed" if marked else None)
            for k, (v, marked) in items.items()
        ],
        class_="settings",
    )


def is_number(value: Any) -> bool:
    """Finite, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def worded(value: Any) -> str:
    """A setting or a figure as one reads it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(worded, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def thinned(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))]


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


def image(picture: Picture, alt: str, **attributes: Any) -> Html:
    """An img element."""
    shape = {"width": picture.width, "height": picture.height, "class_": "pixels" if picture.square_pixels else None}
    return tag("img", src=picture.uri, alt=alt, **shape, decoding="sync", **attributes)


def film(labels: Sequence[str], columns: Sequence[Html], what: str, fps: float = 3) -> Html:
    """A slider with a place for each label, and columns by `frames` that follow it."""
    last = len(labels) - 1
    slider = tag(
        "input", type="range", min=0, max=last, value=last, step=1, aria_label=f"{what}; the arrow keys move it"
    )
    controls = tag("div", tag("button", "Play", type="button"), slider, tag("output", labels[last]), class_="controls")
    stage = tag("div", columns, class_="stage")
    return tag("div", controls, stage, class_="film", data_labels=json.dumps(list(labels)), data_fps=f"{fps:g}")


def frames(pictures: Sequence[tuple[int, Picture]], labels: Sequence[str], alt: str, caption: str) -> Html:
    """A column of a film: pictures and their places on the slider, rising; without scripts the last one is seen."""
    last = pictures[-1][0]
    shown = [
        image(picture, f"{alt}, {labels[place]}", data_at=place, hidden=place != last) for place, picture in pictures
    ]
    said = [caption, " · ", tag("span", labels[last], class_="at")]
    return tag("figure", shown, tag("figcaption", said) if caption else None)


# ---------------------------------------------------------------------------------------------------------------------
# The whole


class Page:
    """Collects the sections of a page and what its charts draw."""

    def __init__(self):
        self.charts: list[dict[str, Any]] = []
        self.sections: list[tuple[str, str]] = []  # (id, title)

    def section(self, title: str, *parts: Child) -> Html:
        """A part of the page that its contents point to; nothing without parts."""
        inner = join(*parts)
        if not inner:
            return inner
        name = re.sub(r"[^a-z]+", "-", title.lower()).strip("-")
        self.sections.append((name, title))
        return tag("section", tag("h2", title, id=f"{name}-title"), inner, id=name, aria_labelledby=f"{name}-title")

    def chart(
        self,
        title: str,
        series: dict[str, list[tuple[float, Any]]],
        x: str = "step",
        marks: Sequence[tuple[float, str, str]] = (),
        log: bool = False,
    ) -> Html | None:
        """A line chart of points (x, y) by name; what is no finite number is left out, and nothing is drawn of nothing.

        marks: vertical lines, (x, text, "alarm-line" or "quiet-line"). log: begin with a logarithmic axis.
        """
        # The place decides the colour, so that a run keeps its own where others have nothing to show.
        kept = [{"name": name, "place": i, "points": _points(of)} for i, (name, of) in enumerate(series.items())]
        kept = [of for of in kept if of["points"]]
        if not kept:
            return None
        self.charts.append({"title": title, "x": x, "log": log, "marks": list(marks), "series": kept})
        choice = tag("label", tag("input", type="checkbox"), " logarithmic")
        header = tag("header", tag("h3", title), tag("output", aria_live="polite"), choice)
        plot, legend = tag("div", class_="plot"), tag("ul", class_="legend")
        return tag("figure", header, plot, legend, class_="chart", data_chart=len(self.charts) - 1)

    def contents(self) -> Html:
        """Links to the sections so far."""
        items = [tag("li", tag("a", title, href=f"#{name}")) for name, title in self.sections]
        return tag("nav", tag("ul", items), aria_label="Contents")

    def write(self, path: Path, title: str, body: Html) -> None:
        template = resources.files("ganstyle_jax").joinpath("report.html").read_text(encoding="utf-8")
        # No "<" or "&" in the script: whatever a run is called, the script cannot end there.
        charts = json.dumps(self.charts, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
        filled = {"title": escape(title), "body": body, "charts": charts}
        text = re.sub(r"\{\{(title|body|charts)\}\}", lambda match: filled[match[1]], template)
        path.write_text(text, encoding="utf-8")


def charts(found: Iterable[Html | None]) -> Html:
    return tag("div", found, class_="charts")


def _points(points: Iterable[tuple[float, Any]]) -> list[tuple[float, float]]:
    finite = {x: float(f"{y:.6g}") for x, y in points if is_number(x) and is_number(y)}  # the last one of a step counts
    return thinned(sorted(finite.items()), MOST_POINTS)
