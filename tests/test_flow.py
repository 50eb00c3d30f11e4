"""Optical flow, what it carries over, and where it is believed, on clips whose motion is known."""

import functools
import sys

import numpy as np
import pytest
from scripts import load_script

from ganstyle_jax.io.files import UserError
from ganstyle_jax.style import flow

rng = np.random.default_rng(0)


@functools.cache
def drawn(seed=0):
    return load_script("video_flicker").drawn(3, 96, 128, seed=seed)


@functools.cache
def found():
    """Of the clip's first two frames: the flows back and forth, and where they are trusted."""
    earlier, later = drawn().frames[:2]
    back, forth = flow.flow(later, earlier), flow.flow(earlier, later)
    return back, forth, flow.trusted(back, forth)


def uniform(x, y, h=12, w=16):
    return np.broadcast_to(np.float32([x, y]), (h, w, 2))


def test_warp_by_whole_pixels_is_exact():
    picture = rng.uniform(-1, 1, (12, 16, 3)).astype(np.float32)
    got = flow.warp(picture, uniform(3, -2))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[2:, :-3], picture[:-2, 3:])
    np.testing.assert_array_equal(got[:2, :-3], np.repeat(picture[:1, 3:], 2, axis=0))  # from outside: the nearest edge
    np.testing.assert_array_equal(flow.warp(picture, uniform(0, 0)), picture)


def test_warp_between_pixels_is_linear():
    picture = rng.uniform(-1, 1, (12, 16, 3)).astype(np.float32)
    got = flow.warp(picture, uniform(0.25, 0.5))
    above = 0.75 * picture[:, :-1] + 0.25 * picture[:, 1:]
    np.testing.assert_allclose(got[:-1, :-1], (above[:-1] + above[1:]) / 2, atol=1e-6)


def test_flow_finds_the_motion_of_ground_and_disc():
    back, forth, trusted = found()
    clip = drawn()
    error = np.linalg.norm(back - clip.flows[0], axis=-1)
    assert back.dtype == np.float32 and back.shape == (96, 128, 2) == forth.shape
    assert np.median(error) < 0.05  # 0.014 was measured
    assert error[trusted > 0].mean() < 0.1 and np.percentile(error[trusted > 0], 99) < 0.5


def test_what_is_uncovered_is_not_trusted_and_what_stays_in_sight_is():
    trusted, seen = found()[2], drawn().seen[0]
    assert set(np.unique(trusted)) == {0, 1} and trusted.dtype == np.float32
    assert 0.02 < (~seen).mean() < 0.1  # both happen
    assert trusted[~seen].mean() < 0.3 and trusted[seen].mean() > 0.95


def test_trusted_in_closed_form():
    np.testing.assert_array_equal(flow.trusted(uniform(0, 0), uniform(0, 0)), np.ones((12, 16)))
    away = flow.trusted(uniform(3, 0), uniform(-3, 0))  # the last three columns come from outside
    np.testing.assert_array_equal(away, np.broadcast_to(np.arange(16) < 13, (12, 16)))
    # |w + w'|^2 against 0.01 (|w|^2 + |w'|^2) + 0.5: of 0 and d, above it from d = 0.7107 on
    for there, believed in ((0.70, 1), (0.72, 0)):
        np.testing.assert_array_equal(flow.trusted(uniform(0, 0), uniform(0, there))[2:-2], believed)
    torn = np.array(uniform(0, 0))
    torn[:, 8:] = [0.4, 0]  # a step of 0.4 is a slope of 0.2 on both sides of it
    edge = flow.trusted(torn, -torn)[6]
    np.testing.assert_array_equal(np.flatnonzero(edge == 0), [7, 8])


def test_the_same_bits_on_any_number_of_cores():
    import cv2

    before = cv2.getNumThreads()
    try:
        got = []
        for threads in (1, 3):
            cv2.setNumThreads(threads)
            got.append(flow.flow(drawn().frames[1], drawn().frames[0]))
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(*got)


def seen_again(later, earlier):
    back, forth = flow.flow(later, earlier), flow.flow(earlier, later)
    return flow.seen_again(later, earlier, back, flow.trusted(back, forth))


def test_another_scene_is_told_from_motion():
    first, second, third = drawn().frames
    assert seen_again(second, first) > 0.8 and seen_again(third, first) > 0.7
    assert seen_again(drawn(seed=1).frames[0], first) < flow.CUT / 2
    black, white = np.full((2, 40, 60, 3), [[[[-1]]], [[[1]]]], np.float32)
    assert seen_again(white, black) == 0  # which have the same flow, none
    assert seen_again(0.9 * black, black) == 1  # fading in


@pytest.mark.parametrize("h, w", [(1, 1), (5, 40), (9, 7), (17, 16)])
def test_small_pictures_have_flow_too(h, w):
    pair = rng.uniform(-1, 1, (2, h, w, 3)).astype(np.float32)
    back = flow.flow(*pair)
    assert back.shape == (h, w, 2) and np.isfinite(back).all()
    assert flow.trusted(back, back).shape == (h, w) and flow.warp(pair[0], back).shape == (h, w, 3)


def test_pictures_of_two_shapes_have_none():
    with pytest.raises(ValueError, match=r"one shape, got \(4, 5, 3\) and \(4, 6, 3\)"):
        flow.flow(np.zeros((4, 5, 3)), np.zeros((4, 6, 3)))


def test_without_opencv_one_sentence_says_what_to_install(monkeypatch):
    flow.check_available()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match="pip install opencv-python-headless"):
        flow.check_available()
