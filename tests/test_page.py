"""Parts of a page: escaping, figures in words, pictures within their bytes."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from ganstyle_jax import page
from ganstyle_jax.page import Html, join, tag


def decoded(uri):
    head, _, body = uri.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB"))


def test_text_is_escaped_and_html_is_not():
    assert tag("p", "a < b & c", tag("b", "<")) == "<p>a &lt; b &amp; c<b>&lt;</b></p>"
    assert join(None, [Html("<i>"), ["<i>"]]) == "<i>&lt;i&gt;"
    assert tag("img", alt='"><script>', hidden=False) == '<img alt="&quot;&gt;&lt;script&gt;">'
    assert tag("a", class_="x", aria_label="y", hidden=True, title=None) == '<a class="x" aria-label="y" hidden></a>'


@pytest.mark.parametrize(
    "value, said",
    [(None, "none"), (True, "yes"), (False, "no"), (0, "0"), (12345, "12,345"), (0.00012345, "0.0001234")]
    + [([], "none"), ([1, "a"], "1, a"), (float("nan"), "nan"), (123456.0, "123,456"), ("x", "x")],
)
def test_values_in_words(value, said):
    assert page.worded(value) == said


def test_thinning_keeps_both_ends():
    assert page.thinned(range(5), 5) == [0, 1, 2, 3, 4]
    assert page.thinned(range(100), 4) == [0, 33, 66, 99]


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
    made = page.Page()
    assert made.chart("empty", {"a": [(1, float("nan")), (2, None), (3, "x"), (4, True)]}) is None and not made.charts
    made.chart("full", {"a": [(1, None)], "b": [(2, 3.0), (1, 5.0), (2, 4.0)]})
    assert made.charts[0]["series"] == [{"name": "b", "place": 1, "points": [(1, 5.0), (2, 4.0)]}]  # the last of a step
