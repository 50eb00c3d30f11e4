"""Closed forms and properties of PNG and GIF files and grids."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageSequence

from ganstyle_jax.io import images

ALL_VALUES = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_to_uint8_inverts_the_input_scaling(dtype):
    np.testing.assert_array_equal(images.to_uint8(ALL_VALUES.astype(dtype) / dtype(127.5) - 1), ALL_VALUES)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_to_uint16_inverts_the_input_scaling(dtype):
    values = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(images.to_uint16(values.astype(dtype) / dtype(32767.5) - 1), values)
    np.testing.assert_array_equal(images.to_uint16(np.array([-2, 2], dtype)), [0, 65535])


def test_to_uint8_of_jax_arrays_and_low_precision():
    import jax.numpy as jnp

    np.testing.assert_array_equal(images.to_uint8(jnp.asarray(ALL_VALUES) / 127.5 - 1), ALL_VALUES)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        values = np.array([-1.5, -1, 0.5, 1, 2], dtype)
        np.testing.assert_array_equal(images.to_uint8(values), [0, 0, 191, 255, 255])


@given(hnp.arrays(np.float32, (2, 3, 1), elements=st.floats(-3, 3, width=32)))
def test_to_uint8_rounds_to_the_nearest_and_clips(x):
    got = images.to_uint8(x)
    exact = (np.clip(x.astype(np.float64), -1, 1) + 1) * 127.5
    assert got.dtype == np.uint8 and got.shape == x.shape
    assert np.abs(got - exact).max() <= 0.5 + 1e-4  # float32 next to a tie


def test_to_uint8_refuses_what_has_no_known_range():
    with pytest.raises(ValueError, match=r"uint8 already, of shape \(2, 2, 3\)"):
        images.to_uint8(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"dtype int64 and shape \(2,\)"):
        images.to_uint8(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=r"shape \(3,\) hold 1 NaN"):
        images.to_uint8(np.array([0.0, np.nan, 1.0]))


def test_grid_by_hand():
    one, two, three = (np.full((1, 2, 1), value, np.uint8) for value in (1, 2, 3))
    got = images.grid(np.stack([one, two, three]), columns=2, padding=1)
    np.testing.assert_array_equal(got[..., 0], [[1, 1, 255, 2, 2], [255, 255, 255, 255, 255], [3, 3, 255, 255, 255]])
    floats = images.grid(np.full((1, 2, 2, 3), -1, np.float32), columns=5)
    assert floats.shape == (2, 2, 3) and floats.dtype == np.float32 and (floats == -1).all()


@given(
    n=st.integers(1, 20),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    columns=st.none() | st.integers(1, 25),
    padding=st.integers(0, 3),
)
def test_grid_holds_each_image_once_in_order(n, size, columns, padding):
    h, w = size
    pictures = np.random.default_rng(0).uniform(-1, 0.9, (n, h, w, 3)).astype(np.float32)
    whole = images.grid(pictures, columns, padding)
    per_row = (whole.shape[1] + padding) // (w + padding)
    for i, picture in enumerate(pictures):
        top, left = i // per_row * (h + padding), i % per_row * (w + padding)
        np.testing.assert_array_equal(whole[top : top + h, left : left + w], picture)
        whole[top : top + h, left : left + w] = 1
    assert (whole == 1).all()  # nothing but white is left
    assert columns is None or per_row == min(columns, n)


@pytest.mark.parametrize("n, shape", [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (6, (2, 3)), (16, (4, 4)), (64, (8, 8))])
def test_grid_is_nearly_square(n, shape):
    got = images.grid(np.zeros((n, 8, 8, 1)), padding=0).shape
    assert got == (8 * shape[0], 8 * shape[1], 1)


def test_grid_of_wide_images_is_nearly_square():
    assert images.grid(np.zeros((16, 8, 32, 3)), padding=0).shape == (64, 64, 3)  # 8 rows of 2


def test_grid_errors():
    with pytest.raises(ValueError, match=r"got shape \(4, 4, 3\)"):
        images.grid(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match=r"got shape \(0, 4, 4, 3\)"):
        images.grid(np.zeros((0, 4, 4, 3)))
    with pytest.raises(ValueError, match="columns=0 and padding=2"):
        images.grid(np.zeros((1, 4, 4, 3)), columns=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(tmp_path, channels):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    images.save_png(tmp_path / "new" / "uint8.png", picture)
    images.save_png(tmp_path / "float.png", picture / 127.5 - 1)
    for name in ("new/uint8.png", "float.png"):
        with Image.open(tmp_path / name) as file:
            assert file.format == "PNG" and file.mode == {1: "L", 3: "RGB"}[channels]
            np.testing.assert_array_equal(np.asarray(file).reshape(picture.shape), picture)


def test_png_errors_leave_the_old_file(tmp_path):
    images.save_png(tmp_path / "x.png", ALL_VALUES)
    before = (tmp_path / "x.png").read_bytes()
    for bad, words in (
        (np.zeros((4, 4)), r"got \(4, 4\)"),
        (np.zeros((4, 4, 2)), r"got \(4, 4, 2\)"),
        (np.full((4, 4, 1), np.nan), "16 NaN"),
        (np.zeros((4, 4, 3), bool), "dtype bool"),
    ):
        with pytest.raises(ValueError, match=words):
            images.save_png(tmp_path / "x.png", bad)
    assert (tmp_path / "x.png").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


def test_save_grid(tmp_path):
    pictures = np.linspace(-1, 1, 4 * 3 * 3 * 3).reshape(4, 3, 3, 3)
    images.save_grid(tmp_path / "x.png", pictures, padding=1)
    with Image.open(tmp_path / "x.png") as file:
        np.testing.assert_array_equal(np.asarray(file), images.to_uint8(images.grid(pictures, padding=1)))


def gif_tables(content: bytes) -> tuple[int, set[bytes]]:
    """The number of stored frames, and the different palettes among the file's own and those of the frames."""

    def table(flags: int, start: int) -> bytes:
        return content[start : start + (3 << (flags & 7) + 1)] if flags & 0x80 else b""

    frames, palettes = 0, {table(content[10], 13)}
    at = 13 + len(table(content[10], 13))
    while content[at] != 0x3B:
        if content[at] == 0x2C:
            frames += 1
            own = table(content[at + 9], at + 10)
            palettes.add(own)
            at += 10 + len(own) + 1
        else:
            assert content[at] == 0x21
            at += 2
        while content[at]:
            at += content[at] + 1
        at += 1
    return frames, palettes - {b""}


def read_gif(path) -> tuple[np.ndarray, dict]:
    with Image.open(path) as file:
        frames = []
        for frame in ImageSequence.Iterator(file):
            frames.append(np.asarray(frame.convert("RGB")))
        return np.stack(frames), dict(file.info)


def moving(n: int, size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] / size
    return np.stack([np.stack([np.sin(6 * x + k / 2), np.cos(5 * y), x * y * 2 - 1], -1) for k in range(n)])


def test_gif_of_many_colours_has_one_palette_and_does_not_flicker(tmp_path):
    frames = moving(6, 48)
    images.save_gif(tmp_path / "x.gif", frames, fps=24)
    stored, palettes = gif_tables((tmp_path / "x.gif").read_bytes())
    assert stored == 6 and len(palettes) == 1
    got, info = read_gif(tmp_path / "x.gif")
    assert info["loop"] == 0 and info["duration"] == 40  # 1/24 s = 4.17/100 s
    assert got.shape == frames.shape
    assert np.abs(got.astype(int) - images.to_uint8(frames)).mean() < 12  # 256 colours; 8.3 was measured
    # A pixel that stands still in the pictures stands still in the file: here every second frame is the same.
    still = frames[[0, 1, 0, 1]]
    images.save_gif(tmp_path / "still.gif", still, fps=50)
    got, info = read_gif(tmp_path / "still.gif")
    np.testing.assert_array_equal(got[0], got[2])
    np.testing.assert_array_equal(got[1], got[3])
    assert info["duration"] == 20


@pytest.mark.parametrize("n, side", [(1, 16), (4, 8)])
def test_gif_keeps_up_to_256_colours_exactly(tmp_path, n, side):
    # Colours that differ by one: a search for the nearest at reduced precision would mix them up.
    rng = np.random.default_rng(0)
    colours = np.concatenate([np.full((256, 2), 100), np.arange(256)[:, None]], axis=-1).astype(np.uint8)
    frames = rng.permutation(256).reshape(n, side, -1)
    images.save_gif(tmp_path / "x.gif", colours[frames], fps=10)
    got, _ = read_gif(tmp_path / "x.gif")
    np.testing.assert_array_equal(got, colours[frames])
    stored, palettes = gif_tables((tmp_path / "x.gif").read_bytes())
    assert stored == n and len(palettes) == 1


def test_grey_gif_is_exact(tmp_path):
    frames = np.stack([ALL_VALUES, ALL_VALUES[::-1], ALL_VALUES.swapaxes(0, 1)])
    images.save_gif(tmp_path / "x.gif", frames / 127.5 - 1, fps=20)
    got, info = read_gif(tmp_path / "x.gif")
    np.testing.assert_array_equal(got, np.repeat(frames, 3, axis=-1))
    assert info["duration"] == 50 and info["loop"] == 0
    stored, palettes = gif_tables((tmp_path / "x.gif").read_bytes())
    assert stored == 3 and len(palettes) == 1


def test_gif_errors(tmp_path):
    for frames, fps, words in (
        (np.zeros((4, 4, 3)), 20, r"got shape \(4, 4, 3\)"),
        (np.zeros((0, 4, 4, 3)), 20, r"got shape \(0, 4, 4, 3\)"),
        (np.zeros((2, 4, 4, 2)), 20, r"got \(4, 4, 2\)"),
        (np.zeros((2, 4, 4, 3)), 60, "between 1 and 50, got 60"),
    ):
        with pytest.raises(ValueError, match=words):
            images.save_gif(tmp_path / "x.gif", frames, fps)
    assert not list(tmp_path.iterdir())
