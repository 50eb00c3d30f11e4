"""FID, KID, coverage and classes of glyphs against damage of known size, in the features of the reader of glyphs."""

import json

import numpy as np
import pytest
from scripts import load_script

from ganstyle_jax.features import glyph_reader

script = load_script("metric_behaviour")
COUNT = 2_000


@pytest.fixture(scope="module")
def real():
    return script.draw(41, COUNT)


@pytest.fixture(scope="module")
def other():
    return script.draw(42, COUNT)


@pytest.fixture(scope="module")
def reading(other):
    return glyph_reader.read(other["image"])


@pytest.fixture(scope="module")
def of_real(real):
    return script.reader_features(real["image"])


@pytest.fixture(scope="module")
def known(real):
    return script.known(real)


def rises(rows, statistic, start=0):
    values = [row[statistic] for row in rows][start:]
    return bool((np.diff(values) > 0).all())


def test_noise_and_blur_raise_fid_and_kid(of_real, other):
    """Of noise up to 0.1 the reader, which was trained with it, sees next to nothing; the compact network sees it."""
    images = other["image"][:600]
    for damage, levels in ((script.noisy, (0.0, 0.2, 0.4, 0.8)), (script.blurred, (0.0, 0.5, 1.0, 2.0, 4.0))):
        rows = script.with_damage(of_real, images, damage, levels, script.reader_features, 250)
        assert rises(rows, "fid") and rises(rows, "kid"), rows
        assert rows[-1]["fid"] > 10 * rows[0]["fid"], rows


def test_faint_noise_raises_fid_and_kid_of_the_compact_network(real, other):
    of_real = script.compact_features(real["image"][:512])
    rows = script.with_damage(
        of_real, other["image"][:512], script.noisy, (0.0, 0.05, 0.1, 0.4), script.compact_features, 250
    )
    assert rises(rows, "fid") and rises(rows, "kid"), rows


def test_fewer_classes_raise_fid_and_kid(of_real, reading, other):
    rows = script.fewer_classes(of_real, reading.features, script.classes_of(other), script.KEPT, 500)
    assert rises(rows, "fid") and rises(rows, "kid"), rows


def test_real_against_real_is_near_zero_and_nearer_with_more_images(of_real, reading):
    rows = script.real_against_real(of_real, reading.features, 500)
    assert [row["images"] for row in rows] == [1000, 2000] and rows[0]["pairs"] == 2
    assert rows[0]["fid"] > 1.5 * rows[1]["fid"] > 0  # the bias falls as 1 / N
    for row in rows:  # KID has no bias; its spread is that of one subset, the mean of 50 is nearer to 0
        assert abs(row["kid"]) < row["kid_spread"]
    worst = script.apart(of_real, script.reader_features(np.full((300, 32, 32, 3), 128, np.uint8)), 300)
    assert rows[1]["fid"] < 0.02 * worst["fid"]


def test_class_coverage_is_exact(other, reading, known):
    rows = script.found_classes(other, reading, known, (34, 33, 32, 30, 20, 10, 5, 2, 1))
    for row in rows:
        assert row["exact"] and row["covered"] == row["kept"], row
        assert row["real_accuracy"] == known.accuracy > 0.985 and row["real_images"] == COUNT
    assert rows[0]["kl"] < 3 * rows[0]["kl_by_chance"] and rises(rows, "kl") and rises(rows, "total_variation")


def test_coverage_falls_by_the_share_of_real_glyphs_that_are_left_out(real, of_real, other, reading):
    half = COUNT // 2
    rows = script.coverage(of_real[:half], script.classes_of(real)[:half], reading.features, other)
    whole = rows[0]["coverage"]
    assert whole == pytest.approx(1 - 3**-5, abs=0.005)  # k = 5, twice as many of the same kind
    for row in rows:
        assert row["coverage"] == pytest.approx(row["share_kept"], abs=0.03), row
        assert whole - row["coverage"] == pytest.approx(1 - row["share_kept"], abs=0.03), row


def test_o_and_0_and_i_and_1_are_one(other, reading, known):
    """Without the letters O and I nothing is missing; without the digits too, two classes are."""
    characters = np.array(list(script.glyphs.CHARACTERS))[other["label"]]
    for left_out, missing in (("OI", ()), ("01", ()), ("O0I1", ("0", "1"))):
        there = ~np.isin(characters, list(left_out))
        found = script.modes.modes(reading.probabilities[there], glyph_reader.shares(), known, glyph_reader.CLASSES)
        assert found.missing == missing


def test_noise_is_unreadable_and_covers_nothing(known):
    noise = np.random.default_rng(0).integers(0, 256, (500, 32, 32, 3), dtype=np.uint8)
    found = script.modes.modes(glyph_reader.read(noise).probabilities, glyph_reader.shares(), known)
    assert found.unreadable > 0.98 and found.covered == 0


def test_damage_of_no_size_changes_nothing(other):
    images = other["image"][:5]
    np.testing.assert_array_equal(script.noisy(images, 0.0), images)
    np.testing.assert_array_equal(script.blurred(images, 0.0), images)
    noise = script.noisy(np.full((50, 32, 32, 3), 128, np.uint8), 0.2).astype(float) / 127.5
    assert noise.std() == pytest.approx(0.2, rel=0.01)


@pytest.mark.slow
def test_script_leaves_a_record_and_a_picture(tmp_path, home):
    settings = script.Settings(
        images=300, damaged=60, subset_size=50, json=tmp_path / "record.json", plot=tmp_path / "curves.png"
    )
    script.main(settings)
    record = json.loads((tmp_path / "record.json").read_text())
    assert [row["level"] for row in record["reader"]["noise"]] == list(script.NOISE)
    assert record["compact"]["dimensions"] == 592 and len(record["modes"]) == len(script.KEPT)
    assert (tmp_path / "curves.png").stat().st_size > 20_000
