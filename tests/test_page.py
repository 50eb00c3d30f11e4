"""Parts of a page: escaping, figures in words, pictures within their bytes."""

import base64
import html.parser
import io
import typing

import numpy as np
import pytest
from PIL import Image

from ganstyle_jax.look import page, words
from ganstyle_jax.look.page import Cell, Column, Fact, Figure, Film, Heading, Neighbours, Note, Page, Picture, Row, Text


def decoded(uri):
    head, _, body = uri.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB"))


EVIL = """</script><script>alert(1)</script>'"><b>&{{ 7 * 7 }}"""


class Seen(html.parser.HTMLParser):
    """Names of elements, and all text that a reader sees or hears."""

    def __init__(self, text):
        super().__init__()
        self.names, self.said = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.said += [value for name, value in attributes if name in ("alt", "aria-label", "data-labels")]

    def handle_data(self, data):
        self.said.append(data)


def every_block(text):
    """A block of each kind that says the text wherever it can say something."""
    picture = Picture("data:image/webp;base64,AA", 8, 8, True)
    cells = (Cell(text, header=True), Cell(text, looks="marked"), Cell(text, looks="number", best=True))
    inner = (Text(text, lead=text), Note(text), Heading(text), page.Settings({text: (text, True)}))
    return [
        *inner,
        page.Table((Cell(text),), (Row(cells, "other"),), text),
        page.Details(text, inner),
        page.Figures((Figure(picture, text, text), Note(text))),
        Neighbours((((picture, text, (text,)),),)),
        Film((text, text), (Column(((0, picture), (1, picture)), text, text, (text, text)),), text),
        page.Split(picture, picture, (text, text), (text, text), text, text),
        page.charts([page.chart(text, {text: [(0, 1.0), (1, 2.0)]}, text, [(0, text, "alarm-line")])]),
    ]


def page_of(text):
    facts = (Fact(text, text), Fact(text, lines=(text,), place=9))
    return Page(
        text, text, facts, (page.section("Title", every_block(text)),), text, (Text(text, lead=text),), text, text
    )


def test_no_text_becomes_html():
    plain, evil = Seen(page.render(page_of("plain"))), Seen(page.render(page_of(EVIL)))
    assert evil.names == plain.names and evil.names.count("script") == 2
    assert " ".join(evil.said).count("alert(1)") == " ".join(plain.said).count("plain")
    assert "&49" not in " ".join(evil.said) and evil.said.count(EVIL) > 20


def test_a_block_of_every_kind_is_tried():
    assert {type(block) for block in every_block("x")} == set(typing.get_args(page.Block))


def test_sections_without_anything_are_left_out():
    assert page.section("a", None, [None], []) is None and page.charts([None]) is None
    assert page.section("Where it's (so)", None, [Note("x")]).name == "where-it-s-so"


def test_names_that_are_no_utf8_are_written(tmp_path):
    page.write(tmp_path / "page.html", page_of(b"caf\xe9".decode("utf-8", "surrogateescape")))
    assert r"caf\udce9" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text, said",
    [("/home/ann/photos", "photos"), ("/home/ann/My Photos/", "My Photos"), ("~/runs/a", "a"), ("a/b", "a/b")]
    + [("/data/set.npz/x_train", "set.npz/x_train"), (r"C:\\Users\\ann\\a.png", "a.png"), ("/", "/"), ("", "")]
    + [("there is no '/home/ann/a.png', or /b/c", "there is no 'a.png', or c"), ("loss/gen", "loss/gen")]
    + [("see https://example.org/a/b", "see https://example.org/a/b"), ("1 / 2 and and/or", "1 / 2 and and/or")],
)
def test_paths_are_shown_without_where_they_lie(text, said):
    assert words.short(text) == said


def test_paths_that_end_alike_are_told_apart():
    assert words.told_apart(["/a/x/run", "/a/y/run", "/z"]) == ["x/run", "y/run", "z"]
    assert words.told_apart(["/a/b", "/a/b"]) is None


@pytest.mark.parametrize(
    "value, said",
    [(None, "none"), (True, "yes"), (False, "no"), (0, "0"), (12345, "12,345"), (0.00012345, "0.0001234")]
    + [([], "none"), ([1, "a"], "1, a"), ({"a": 1, "b": "c"}, "a=1, b=c"), (10**400 > 0, "yes")]
    + [(float("inf"), "inf"), (float("nan"), "nan"), (123456.0, "123,456"), ("x", "x")],
)
def test_values_in_words(value, said):
    assert words.worded(value) == said


def test_thinning_keeps_both_ends():
    assert words.thinned(range(5), 5) == [0, 1, 2, 3, 4]
    assert words.thinned(range(100), 4) == [0, 33, 66, 99]


def test_a_small_picture_is_kept_exactly():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    kept = page.encode(picture, 1e6)
    np.testing.assert_array_equal(decoded(kept.uri), picture)
    assert (kept.width, kept.height, kept.square_pixels) == (630, 420, True)  # 21 times as large
    kept = page.encode(picture, 1e6, "no")
    assert (kept.width, kept.height, kept.square_pixels) == (30, 20, False)
    grey = picture[..., :1]
    np.testing.assert_array_equal(decoded(page.encode(grey / 127.5 - 1.0, 1e6).uri), np.repeat(grey, 3, 2))


def test_a_large_picture_keeps_within_its_bytes():
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)  # what compresses worst
    kept = page.encode(noise, 20_000)
    assert len(kept.uri) < 20_100 and (kept.width, kept.height) == (400, 300)
    height, width = decoded(kept.uri).shape[:2]
    assert width / height == pytest.approx(4 / 3, rel=0.05)
    smooth = np.zeros((10, 3000, 3), np.uint8)
    assert decoded(page.encode(smooth, 1e6).uri).shape[1] == page.LONGEST_SIDE


def test_a_chart_leaves_out_what_is_no_number():
    assert page.chart("empty", {"a": [(1, float("nan")), (2, None), (3, "x"), (4, True), (5, 10**400)]}) is None
    made = page.chart("full", {"a": [(1, None)], "b": [(2, 3.0), (1, 5.0), (2, 4.0)]})
    assert made.series == ({"name": "b", "place": 1, "points": [(1, 5.0), (2, 4.0)]},)  # the last of a step
