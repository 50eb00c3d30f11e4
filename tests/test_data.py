import dataclasses
import gzip
import io
import itertools
import json
import logging
import os
import re
import struct
import subprocess
import sys
import tarfile
import threading
import time
import types
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Sequence
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from ganstyle_jax import data
from ganstyle_jax.data import Batches, CorruptImage, Source, UserError, encoded, fitting, open_source
from ganstyle_jax.io import folders, pictures

rng = np.random.default_rng(0)


def colours(height, width, channels=3):
    return rng.integers(0, 256, (height, width, channels)).astype(np.uint8)


def png(pixels, **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.squeeze(pixels))
    image.save(file, "png", **options)
    return file.getvalue()


def jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg")
    return file.getvalue()


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def read_one(tmp_path, name, content, image_size, channels=None):
    return open_source(write(tmp_path / "one", {name: content}), image_size, channels).read(0)["image"]


# ---------------------------------------------------------------------------------------------------------------------
# Values


def test_to_float_spans_minus_one_to_one_for_numpy_and_jax():
    import jax
    import jax.numpy as jnp

    values = np.array([0, 51, 255], np.uint8)
    for result in (data.to_float(values), data.to_float(jnp.asarray(values)), jax.jit(data.to_float)(values)):
        assert result.dtype == np.float32
        np.testing.assert_allclose(np.asarray(result), [-1, -0.6, 1], rtol=1e-6)
    floats = np.array([0.25], np.float32)
    assert data.to_float(floats) is floats
    with pytest.raises(TypeError, match="int64"):
        data.to_float(np.array([1]))


# ---------------------------------------------------------------------------------------------------------------------
# Every mode of image, at its own size, so that no resampling blurs the comparison


def test_grey_and_colour_are_exact_and_channels_follow_the_data(tmp_path):
    grey, colour = colours(6, 6, 1), colours(6, 6)
    np.testing.assert_array_equal(read_one(tmp_path / "a", "x.png", png(grey), 6), grey)
    np.testing.assert_array_equal(read_one(tmp_path / "b", "x.png", png(colour), 6), colour)
    repeated = read_one(tmp_path / "c", "x.png", png(grey), 6, channels=3)
    np.testing.assert_array_equal(repeated, np.repeat(grey, 3, axis=-1))
    luma = read_one(tmp_path / "d", "x.png", png(colour), 6, channels=1)
    assert luma.shape == (6, 6, 1)
    np.testing.assert_allclose(luma[..., 0], colour @ [0.299, 0.587, 0.114], atol=0.51)


def test_a_folder_with_any_colour_is_colour(tmp_path):
    source = open_source(write(tmp_path, {"a.png": png(colours(4, 4, 1)), "b.png": png(colours(4, 4))}), 4)
    assert source.image_shape == (4, 4, 3)
    assert source.read(0)["image"].shape == source.read(1)["image"].shape == (4, 4, 3)


def test_one_bit_and_palette(tmp_path):
    bits = rng.integers(0, 2, (8, 8)).astype(bool)
    result = read_one(tmp_path / "a", "x.png", png(Image.fromarray(bits)), 8)
    np.testing.assert_array_equal(result[..., 0], np.where(bits, 255, 0))

    table, index = colours(1, 7)[0], rng.integers(0, 7, (8, 8)).astype(np.uint8)
    palette = Image.fromarray(index)
    palette = palette.convert("P")
    palette.putpalette(table.tobytes())
    palette.putdata(index.ravel())
    np.testing.assert_array_equal(read_one(tmp_path / "b", "x.png", png(palette), 8), table[index])
    see_through = read_one(tmp_path / "c", "x.png", png(palette, transparency=3), 8)
    np.testing.assert_array_equal(see_through, np.where((index == 3)[..., None], 255, table[index]))


def test_transparency_is_laid_over_white(tmp_path):
    rgba = colours(9, 9, 4)
    opacity = rgba[..., 3:] / 255
    expected = opacity * rgba[..., :3] + (1 - opacity) * 255
    result = read_one(tmp_path / "a", "x.png", png(rgba), 9)
    np.testing.assert_allclose(result, expected, atol=1)
    luma = read_one(tmp_path / "b", "x.png", png(rgba), 9, channels=1)
    np.testing.assert_allclose(luma[..., 0], expected @ [0.299, 0.587, 0.114], atol=1.5)

    la = np.ascontiguousarray(rgba[..., 2:])
    result = read_one(tmp_path / "c", "x.png", png(Image.fromarray(la)), 9)
    assert result.shape == (9, 9, 1)
    np.testing.assert_allclose(result, la[..., 1:] / 255 * la[..., :1] + 255 - la[..., 1:], atol=1)

    rgb = colours(4, 4)
    key = tuple(map(int, rgb[1, 2]))
    result = read_one(tmp_path / "d", "x.png", png(rgb, transparency=key), 4)
    np.testing.assert_array_equal(result[1, 2], 255)
    assert np.mean(result == rgb) >= 15 / 16


def test_cmyk(tmp_path):
    cmyk = colours(5, 5, 4)
    file = io.BytesIO()
    Image.fromarray(cmyk, "CMYK").save(file, "tiff")
    result = read_one(tmp_path, "x.tif", file.getvalue(), 5)
    expected = (255 - cmyk[..., :3].astype(float)) * (255 - cmyk[..., 3:]) / 255
    np.testing.assert_allclose(result, expected, atol=1)


def test_sixteen_bits_keep_their_levels(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    result = read_one(tmp_path / "a", "x.png", png(ramp), 64)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[..., 0], ramp / 32767.5 - 1, atol=1e-6)
    smaller = read_one(tmp_path / "b", "x.png", png(ramp), 32)
    assert len(np.unique(smaller)) > 256 and np.abs(smaller).max() <= 1
    np.testing.assert_allclose(smaller.mean(), 0, atol=2e-3)


@pytest.mark.parametrize("deep_first", [True, False])
def test_a_mixed_folder_has_one_dtype(tmp_path, deep_first):
    """The dtype is chosen from files at even distances, which here are all."""
    deep, flat = np.full((4, 4), 40000, np.uint16), np.full((4, 4), 100, np.uint8)
    pair = [png(deep), png(flat)] if deep_first else [png(flat), png(deep)]
    source = open_source(write(tmp_path, {"a.png": pair[0], "b.png": pair[1]}), 4)
    images = [source.read(i)["image"] for i in range(2)]
    assert {image.dtype for image in images} == {np.dtype(np.float32)} == {source.dtype}
    values = sorted(float(image.mean()) for image in images)
    np.testing.assert_allclose(values, [100 / 127.5 - 1, 40000 / 32767.5 - 1], rtol=1e-5)


def test_a_deep_file_that_was_not_looked_at_is_rounded_to_8_bits(tmp_path):
    files = {f"{i:02}.png": png(np.full((2, 2), 100, np.uint8)) for i in range(40)}
    files["01.png"] = png(np.full((2, 2), 200 * 257, np.uint16))
    source = open_source(write(tmp_path, files), 2)
    assert source.dtype == np.uint8 and source.read(1)["image"].dtype == np.uint8
    assert np.all(source.read(1)["image"] == 200)


UPRIGHT = {  # from the definition of the EXIF tag: what turns the stored picture upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("deep", [False, True])
def test_exif_orientation(tmp_path, orientation, deep):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = rng.integers(0, 65536, (6, 6)).astype(np.uint16) if deep else colours(6, 6)
    result = read_one(tmp_path, "x.png", png(stored, exif=exif), 6)
    upright = UPRIGHT[orientation](stored)
    np.testing.assert_allclose(result, upright[..., None] / 32767.5 - 1 if deep else upright, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_image(tmp_path):
    pixels = colours(4, 4)
    result = read_one(tmp_path, "x.png", png(pixels, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff"), 4)
    np.testing.assert_array_equal(result, pixels)


# ---------------------------------------------------------------------------------------------------------------------
# Geometry


@given(width=st.integers(1, 40), height=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_crop_is_the_centre(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    expected = pixels[top : top + side, left : left + side]
    result = data.fit(Image.fromarray(pixels), side, 3, np.dtype(np.uint8))
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_allclose(data.fit_float(data.to_float(pixels), side, 3), data.to_float(expected), atol=1e-6)


def lanczos(source, target):
    """Matrix that resamples a line by Lanczos of three lobes, stretched when the line shrinks."""
    scale = source / target
    stretch = max(scale, 1)
    x = (np.arange(source) + 0.5 - (np.arange(target)[:, None] + 0.5) * scale) / stretch
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return weights / weights.sum(axis=1, keepdims=True)


@given(side=st.integers(4, 60), target=st.integers(1, 60), extra=st.integers(0, 9), tall=st.booleans())
@settings(max_examples=60, deadline=None)
def test_resize_is_lanczos_of_the_central_square(side, target, extra, tall):
    shape = (side + extra, side) if tall else (side, side + extra)
    pixels = np.random.default_rng(0).uniform(-0.5, 0.5, (*shape, 3)).astype(np.float32)
    offset = extra // 2
    square = pixels[offset : offset + side] if tall else pixels[:, offset : offset + side]
    matrix = lanczos(side, target)
    expected = np.clip(np.einsum("ih,hwc,jw->ijc", matrix, square, matrix), -1, 1)
    np.testing.assert_allclose(data.fit_float(pixels, target, 3), expected, atol=2e-3)
    # 8 bits: the same filter, rounded after each of two passes
    eight = np.round((pixels + 1) * 127.5).astype(np.uint8)
    result = data.to_float(data.fit(Image.fromarray(eight), target, 3, np.dtype(np.uint8)))
    np.testing.assert_allclose(result, expected, atol=4 / 127.5)


def test_a_fine_checkerboard_becomes_grey():
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    result = data.fit(Image.fromarray(board), 32, 1, np.dtype(np.uint8)).astype(float)
    assert np.abs(result - 127.5).max() <= 2


def test_a_panorama_and_a_single_pixel(tmp_path):
    source = open_source(write(tmp_path, {"a.png": png(colours(2, 3000)), "b.png": png(colours(1, 1))}), 8)
    assert source.read(0)["image"].shape == source.read(1)["image"].shape == (8, 8, 3)


def test_examples_own_their_memory_and_index_gives_floats(tmp_path):
    source = open_source(write(tmp_path, {"a/x.png": png(colours(4, 4)), "b/x.png": png(colours(4, 4))}), 4)
    example = source.read(1)
    assert example["image"].flags.owndata and example["image"].flags.writeable
    assert example["label"].dtype == np.int32 and example["label"].shape == () and example["label"] == 1
    np.testing.assert_array_equal(source[1]["image"], data.to_float(example["image"]))
    with pytest.raises(IndexError):
        source.read(2)


@pytest.mark.parametrize("shape, box", [((4, 8), (0, 3, 20, 43)), ((8, 4), (0, 18, 20, 28)), ((5, 5), (0, 13, 20, 33))])
def test_other_shapes_are_the_centre_of_their_proportions(tmp_path, shape, box):
    """(h, w) of files, of arrays in 8 bits and of floats; box: top, left, bottom and right in 20 x 46 pixels."""
    pixels = colours(20, 46)
    top, left, bottom, right = box
    centre = Image.fromarray(pixels[top:bottom, left:right])
    expected = np.asarray(centre.resize(shape[::-1], Image.Resampling.LANCZOS))
    write(tmp_path / "files", {"a.png": png(pixels)})
    np.savez(tmp_path / "floats.npz", images=pixels[None] / np.float32(255))
    for spec in (tmp_path / "files", pixels[None], tmp_path / "floats.npz"):
        source = open_source(spec, shape)
        assert source.image_shape == (*shape, 3)
        np.testing.assert_allclose(source[0]["image"], data.to_float(expected), atol=2.5 / 127.5)
    batch = next(Batches(open_source(tmp_path / "files", shape), 2, seed=0).stream(0, 1))
    np.testing.assert_array_equal(batch["image"], [expected] * 2)


@given(height=st.integers(1, 40), width=st.integers(1, 40), h=st.integers(1, 40), w=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_no_larger_centre_has_the_proportions(height, width, h, w):
    top, left, inner_height, inner_width = fitting.centre(height, width, (h, w))
    assert inner_height == height or inner_width == width
    assert 1 <= inner_height <= height and 1 <= inner_width <= width
    assert 0 <= height - inner_height - 2 * top <= 1 and 0 <= width - inner_width - 2 * left <= 1
    exact = min(height / h, width / w)  # at most half a pixel from the proportions, but never nothing
    assert abs(inner_height - max(1, exact * h)) <= 0.5 + 1e-9 and abs(inner_width - max(1, exact * w)) <= 0.5 + 1e-9


# ---------------------------------------------------------------------------------------------------------------------
# Colour profiles and limits: the same as in pictures.read_picture


def swapped_profile():
    """That of sRGB with the primaries of red and green exchanged."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "I;16"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_training_sees_the_colours_that_styling_sees(tmp_path, mode, suffix):
    if mode == "CMYK" and suffix == "png":
        return
    pixels = Image.fromarray(colours(12, 12))
    picture = Image.fromarray(colours(12, 12, 1)[..., 0] * np.uint16(257)) if mode == "I;16" else pixels.convert(mode)
    profile = None if mode == "CMYK" else swapped_profile()
    picture.save(tmp_path / f"x.{suffix}", icc_profile=profile)
    seen = open_source(tmp_path, 12, channels=3)[0]["image"]
    np.testing.assert_allclose(seen, pictures.read_picture(tmp_path / f"x.{suffix}"), atol=1.01 / 127.5)
    if mode == "RGB":
        np.testing.assert_allclose(data.to_float(np.asarray(pixels)[..., [1, 0, 2]]), seen, atol=3 / 127.5)


def test_profiles_in_many_threads_and_srgb_untouched(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for k in range(40):
        picture = Image.fromarray(colours(16, 16))
        picture.save(tmp_path / f"{k:02}.png", icc_profile=[swapped_profile(), srgb, None][k % 3])
    source = open_source(tmp_path, 16)
    expected = [source.read(k)["image"] for k in range(40)]
    for k in range(40):
        stored = np.asarray(Image.open(tmp_path / f"{k:02}.png"))
        if k % 3:
            np.testing.assert_array_equal(expected[k], stored)
        else:
            assert np.abs(expected[k].astype(int) - stored).max() > 20
    batches = Batches(source, 40, seed=0, workers=8)
    for step, batch in enumerate(batches.stream(0, 5)):
        np.testing.assert_array_equal(batch["image"], np.stack(expected)[batches.indices(step)])


def test_the_limit_of_pixels_is_that_of_pictures(tmp_path, monkeypatch):
    """400 million, where Pillow's is 179 and a warning from 89 on; the file says how many, and no memory is taken."""
    Image.new("1", (10_000, 9_000), 1).save(tmp_path / "map.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (open_source(tmp_path, 8).read(0)["image"] == 255).all()
    (tmp_path / "map.png").unlink()
    Image.new("1", (1000, 1000), 1).save(tmp_path / "map.png")
    monkeypatch.setattr(pictures.opened.__init__, "__defaults__", (999_999,))
    with pytest.raises(UserError, match=r"map\.png: it has 1000000 pixels; at most 999999 are read, make it smaller"):
        open_source(tmp_path, 8)


# ---------------------------------------------------------------------------------------------------------------------
# Folders and archives


def test_images_at_their_own_size(tmp_path):
    """Whole, upright, over white; of a file's 16 bits and of an array's opacity too."""
    tall, wide = colours(9, 5), colours(4, 7)
    deep = rng.integers(0, 65536, (3, 8)).astype(np.uint16)
    source = open_source(write(tmp_path / "files", {"a.png": png(tall), "b.png": png(wide)}), None)
    assert source.image_shape == (0, 0, 3)
    for i, expected in enumerate((tall, wide)):
        np.testing.assert_array_equal(source.read(i)["image"], expected)
    found = read_one(tmp_path, "deep.png", png(deep), None)
    np.testing.assert_allclose(found[..., 0], deep / 32767.5 - 1, atol=1e-6)
    clear = np.concatenate([wide, np.zeros((4, 7, 1), np.uint8)], axis=-1)
    np.savez(tmp_path / "arrays.npz", images=clear[None])
    source = open_source(str(tmp_path / "arrays.npz"), None)
    assert source.image_shape == (4, 7, 3) and (source.read(0)["image"] == 255).all()
    np.savez(tmp_path / "floats.npz", images=wide[None] / np.float32(255))
    floats = open_source(str(tmp_path / "floats.npz"), None).read(0)["image"]
    np.testing.assert_allclose(floats, wide / 127.5 - 1, atol=1e-6)
    with pytest.raises(UserError, match="drawn at any size"):
        open_source("glyphs", None)


def test_folder_zip_and_tars_are_the_same_set(tmp_path):
    files = {f"set/{kind}/{k}.{end}": png(colours(5, 5)) if end == "png" else jpeg(colours(5, 5))
             for kind in ("dog", "Cat", "cat-2") for k, end in enumerate(["png", "JPG", "jpeg"])}  # fmt: skip
    noise = {
        "__MACOSX/set/dog/._0.png": b"resource fork",
        "set/.hidden.png": b"",
        "set/.cache/0.png": png(colours(5, 5)),
        "set/dog/notes.txt": b"no image",
        "set/labels.csv": b"0",
    }
    write(tmp_path / "folder", files | noise)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for k, (name, content) in enumerate(reversed((files | noise).items())):
            archive.writestr(name, content, compress_type=[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED][k % 2])
    for suffix in (".tar", ".tar.gz", ".tar.xz"):
        with tarfile.open(tmp_path / f"a{suffix}", "x:" + suffix[5:]) as archive:  # pyright: ignore
            for name, content in reversed((files | noise).items()):
                member = tarfile.TarInfo("./" + name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    first = open_source(str(tmp_path / "folder"), 5)
    assert first.size == 9 and first.label_names == ("Cat", "cat-2", "dog")
    expected = [first.read(i) for i in range(9)]
    np.testing.assert_array_equal([e["label"] for e in expected], [0, 0, 0, 1, 1, 1, 2, 2, 2])
    for name in ("a.zip", "a.tar", "a.tar.gz", "a.tar.xz"):
        source = open_source(str(tmp_path / name), 5)
        assert (source.size, source.label_names, source.name) == (9, first.label_names, "a")
        for i in range(9):
            for key, value in expected[i].items():
                np.testing.assert_array_equal(source.read(i)[key], value)


@pytest.mark.parametrize(
    "names, classes",
    [
        (["a.png", "b.png"], None),
        (["img_align_celeba/1.png", "img_align_celeba/2.png"], None),
        (["dog/1.png", "cat/1.png"], ["cat", "dog"]),
        (["train/dog/1.png", "train/cat/1.png"], ["cat", "dog"]),
        (["photo/dog/1.png", "art/dog/1.png", "art/cat/1.png"], ["art", "photo"]),
        (["dog/1.png", "2.png"], None),
        (["set/dog/1.png", "set/2.png"], None),
        (["train/dog/1.png", "train/cat/1.png", "test/dog/9.png", "test/cat/9.png"], ["cat", "dog"]),
        (["val/1.png", "test/1.png"], None),
        (["a/deep/1.png", "b/1.png"], ["a", "b"]),
    ],
)
def test_classes_are_the_first_level_that_differs(tmp_path, names, classes):
    source = open_source(write(tmp_path, {name: png(colours(2, 2)) for name in names}), 2)
    assert source.label_names == (classes and tuple(classes))
    kept = sorted(name for name in names if not (classes == ["cat", "dog"] and name.startswith("test")))
    assert source.size == len(kept)
    if classes:
        labels = [classes[int(source.read(i)["label"])] for i in range(len(kept))]
        assert all(label in name for label, name in zip(labels, kept, strict=True))
    else:
        assert set(source.read(0)) == {"image"}


def test_one_folder_of_an_archive(tmp_path):
    a, b = colours(3, 3), colours(3, 3)
    with zipfile.ZipFile(tmp_path / "pair.zip", "w") as archive:
        archive.writestr("set/trainA/1.png", png(a))
        archive.writestr("set/trainB/1.png", png(b))
        archive.writestr("set/trainBig/1.png", png(a))
    source = open_source(str(tmp_path / "pair.zip/set/trainB"), 3)
    assert source.size == 1 and source.label_names is None
    np.testing.assert_array_equal(source.read(0)["image"], b)
    with pytest.raises(UserError, match=r"trainC.*set"):
        open_source(str(tmp_path / "pair.zip/trainC"), 3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_and_devices_are_not_waited_for(tmp_path):
    write(tmp_path, {f"{k}.png": png(colours(2, 2)) for k in range(3)})
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    source = open_source(tmp_path, 2)
    assert source.size == 5 and "2 cannot be read (pipe.png: it is no regular file)" in source.opened
    with pytest.raises(CorruptImage, match=r"zero\.png: it is no regular file"):
        source.read(4)


def test_a_link_back_up_ends(tmp_path):
    write(tmp_path, {"a/1.png": png(colours(2, 2)), "b/1.png": png(colours(2, 2))})
    (tmp_path / "b" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert open_source(str(tmp_path), 2).size == 2


# ---------------------------------------------------------------------------------------------------------------------
# What is said on opening


def opened(caplog, spec, **options):
    """The line; it is logged once."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="ganstyle_jax.data"):
        source = open_source(spec, 4, **options)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.INFO] == [source.opened]
    return source, source.opened


def test_what_is_passed_over_is_said(tmp_path, caplog, monkeypatch):
    one = png(colours(4, 4))
    names = (
        "cat/a.png",
        "cat/@eaDir/a.png",
        "dog/b.png",
        "dog/$RECYCLE.BIN/c.png",
        "lost+found/d.png",
        ".Trashes/e.png",
    )
    others = {f"cat/IMG_{k}.HEIC": b"" for k in range(50)} | {"notes.txt": b"", "dog/README": b""}
    write(tmp_path / "set", {name: one for name in names} | others)
    monkeypatch.setattr(folders, "suffixes", lambda: folders.SUFFIXES)
    source, line = opened(caplog, tmp_path / "set")
    assert source.size == 2 and source.label_names == ("cat", "dog")
    assert line == (
        "set: 2 images in 2 classes (cat, dog); passed over: 50 .heic (pip install -e '.[heic]' reads them), "
        "1 .txt, 1 hidden, 1 in $RECYCLE.BIN, 1 in @eaDir, 1 in lost+found, 1 without a suffix; all in colour"
    )
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "set" / "cat" / "a.png", "a.png")
        for name, kind in (("b.png", tarfile.SYMTYPE), ("c.png", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a.png"
            archive.addfile(link)
    assert opened(caplog, tmp_path / "a.tar")[1] == "a: 1 image; passed over: 2 links; all in colour"
    with pytest.raises(UserError, match=r"No images in .*It has 50 \.heic \(pip install"):
        write(tmp_path / "phone", others)
        open_source(tmp_path / "phone", 4)


def test_a_folder_that_may_not_be_read_is_said(tmp_path, caplog, monkeypatch):
    write(tmp_path / "set", {f"{name}/a.png": png(colours(4, 4)) for name in ("cat", "dog", "owl")})
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "owl":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source, line = opened(caplog, tmp_path / "set")
    assert source.label_names == ("cat", "dog") and "1 folder that may not be read (owl)" in line


@pytest.mark.parametrize(
    "names, classes, words",
    [
        (
            ["train/a/1.png", "train/b/1.png", "test/a/1.png"],
            ("a", "b"),
            "images of train; the other folders are test;",
        ),
        (["a/1.png", "b/1.png", "stray.png"], None, "no classes, since stray.png lies above the folders a, b"),
        (["trainA/1.png", "trainB/1.png", "testA/1.png"], None, "two sources, {place}/trainA and {place}/trainB"),
        (["val/1.png", "test/1.png"], None, "no classes: test, val are splits without a train"),
    ],
)
def test_how_folders_were_understood_is_said(tmp_path, caplog, names, classes, words):
    for place in (tmp_path / "set", tmp_path / "set.zip"):
        if place.suffix:
            with zipfile.ZipFile(place, "w") as archive:
                for name in names:
                    archive.writestr(name, png(colours(4, 4)))
        else:
            write(place, {name: png(colours(4, 4)) for name in names})
        source, line = opened(caplog, place)
        assert source.label_names == classes and words.format(place=place) in line


def grey_palette(**options):
    return png(Image.fromarray(colours(4, 4, 1)[..., 0]).convert("P"), **options)


def test_a_few_colours_among_grey_make_a_colour_set(tmp_path, caplog):
    """Of all files, which 16 looks would not find; JPEG and PNG by a glance at their first bytes."""
    grey, colour = Image.new("L", (4, 4), 99), Image.new("RGB", (4, 4), (200, 10, 10))
    for i in range(200):
        (colour if i in (3, 50, 77, 150) else grey).save(tmp_path / f"{i:03}.{['png', 'jpg', 'bmp'][i % 3]}")
    source, line = opened(caplog, tmp_path)
    assert source.image_shape[-1] == 3 and "4 in colour and 196 grey, all read as colour" in line
    assert opened(caplog, tmp_path, channels=1)[0].image_shape[-1] == 1
    write(tmp_path / "palettes", {"a.png": grey_palette(), "b.png": grey_palette(transparency=0)})
    for suffix in ("gif", "bmp", "tif"):
        Image.open(io.BytesIO(grey_palette())).save(tmp_path / "palettes" / f"c.{suffix}")
    source, line = opened(caplog, tmp_path / "palettes")
    assert source.image_shape[-1] == 1 and line.endswith("all grey")
    coloured = Image.fromarray(colours(4, 4)).quantize(4)
    write(tmp_path / "palettes", {"d.png": png(coloured)})
    assert opened(caplog, tmp_path / "palettes")[0].image_shape[-1] == 3


def test_what_is_looked_at_is_bounded_by_numbers(tmp_path, caplog, monkeypatch):
    for name, limit in (("LOOKS", 30), ("HEAD", 200), ("FURTHER", 4000)):
        monkeypatch.setattr(encoded, name, limit)
    write(tmp_path / "many", {f"{i:03}.png": png(colours(4, 4, 1)) for i in range(90)})
    line = opened(caplog, tmp_path / "many")[1]
    assert re.fullmatch(r"many: 90 images; all grey by the (3\d|4[0-6]) looked at", line)
    file = io.BytesIO()
    Image.fromarray(colours(8, 8, 1)[..., 0]).save(file, "jpeg", comment=b"before the size" * 70)
    assert 1000 < len(file.getvalue()) < 2000
    write(tmp_path / "late", {f"{i:03}.jpg": file.getvalue() for i in range(90)})
    assert opened(caplog, tmp_path / "late")[1].endswith("all grey by the 19 looked at")  # 16, and 4,000 bytes more


def test_files_that_cannot_be_read_are_said_on_opening(tmp_path, caplog):
    files = {f"IMG_{k:04}.jpg": b"text" for k in range(50)} | {f"{k}.jpg": jpeg(colours(4, 4)) for k in range(2)}
    source, line = opened(caplog, write(tmp_path / "set", files))
    assert source.size == 52 and "50 cannot be read (IMG_0000.jpg: not an image that Pillow knows)" in line


# ---------------------------------------------------------------------------------------------------------------------
# Arrays


@pytest.mark.parametrize("shape", [(5, 7, 7), (5, 7, 7, 1), (5, 7, 7, 3), (5, 7, 9, 4), (1, 7, 7, 3)])
@pytest.mark.parametrize("kind", ["uint8", "int64", "bool", "uint16", "unit", "signed", "bytes"])
def test_npz_shapes_and_dtypes(tmp_path, shape, kind):
    unit = rng.uniform(0, 1, shape)
    unit.flat[:2] = 0, 1
    images = {
        "uint8": (unit * 255).astype(np.uint8),
        "int64": (unit * 255).astype(np.int64),
        "bool": unit > 0.5,
        "uint16": (unit * 65535).astype(np.uint16),
        "unit": unit,
        "signed": (2 * unit - 1).astype(np.float32),
        "bytes": (unit * 255).astype(np.float32),
    }[kind]
    unit = {
        "uint8": images / 255,
        "int64": images / 255,
        "bool": images.astype(float),
        "uint16": images / 65535,
    }.get(kind, unit)
    np.savez(tmp_path / "set.npz", images=images)
    source = open_source(str(tmp_path / "set.npz"), 7)
    channels = 3 if shape[3:] in ((3,), (4,)) else 1
    assert source.size == shape[0] and source.image_shape == (7, 7, channels) and source.label_names is None
    assert source.dtype == (np.uint8 if kind in ("uint8", "int64", "bool") else np.float32)
    unit = unit.reshape(*shape[:3], -1)
    if shape[3:] == (4,):
        unit = unit[..., 3:] * unit[..., :3] + 1 - unit[..., 3:]
        unit = unit[:, :, 1:8]
    for i in range(shape[0]):
        example = source.read(i)
        assert set(example) == {"image"} and example["image"].dtype == source.dtype
        np.testing.assert_allclose(data.to_float(example["image"]), 2 * unit[i] - 1, atol=2 / 255 + 1e-6)
    assert open_source(str(tmp_path / "set.npz"), 7, channels=1).read(0)["image"].shape == (7, 7, 1)
    assert open_source(str(tmp_path / "set.npz"), 5, channels=3).read(0)["image"].shape == (5, 5, 3)


@pytest.mark.parametrize(
    "labels, expected, names",
    [
        (np.array([3, 0, 1, 1], np.uint8), [3, 0, 1, 1], ("0", "1", "2", "3")),
        (np.array([[3], [0], [1], [1]]), [3, 0, 1, 1], ("0", "1", "2", "3")),
        (np.array([1.0, 0.0, 2.0, 1.0]), [1, 0, 2, 1], ("0", "1", "2")),
        (np.array([102, 7, 102, 9]), [2, 0, 2, 1], ("7", "9", "102")),
        (np.array([-1, 1, 1, -1]), [0, 1, 1, 0], ("-1", "1")),
        (np.array(["dog", "cat", "cat", "dog"]), [1, 0, 0, 1], ("cat", "dog")),
        (np.array([0.5, 0.1, 0.2, 0.3]), None, None),
        (np.zeros((4, 2)), None, None),
    ],
)
def test_npz_labels(tmp_path, labels, expected, names):
    np.savez_compressed(tmp_path / "set.npz", x_train=colours(4, 4, 4), y_train=labels)
    source = open_source(str(tmp_path / "set.npz"), 4)
    assert source.label_names == names
    if expected is None:
        assert "label" not in source.read(0)
    else:
        assert [int(source.read(i)["label"]) for i in range(4)] == expected


def test_npz_keys(tmp_path):
    train, test = colours(3, 4, 4), colours(2, 4, 4)
    path = str(tmp_path / "set.npz")
    np.savez(path, x_test=test, y_test=np.array([1, 0]), x_train=train, y_train=np.array([0, 1, 0]))
    np.testing.assert_array_equal(open_source(path, 4).read(0)["image"][..., 0], train[0])
    source = open_source(path + "/x_test", 4)
    np.testing.assert_array_equal(source.read(1)["image"][..., 0], test[1])
    assert source.size == 2 and source.read(0)["label"] == 1
    np.savez(path, train)
    assert open_source(path, 4).size == 3
    np.savez(path, pictures=train, notes=np.arange(3))
    assert open_source(path, 4).size == 3
    np.savez(path, val_images=train, val_labels=np.array([0, 1, 2]))
    assert open_source(path, 4).read(2)["label"] == 2


@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_idx(tmp_path, zipped):
    images, labels = colours(4, 28, 28), np.array([3, 1, 0, 2], np.uint8)
    pack = gzip.compress if zipped else bytes
    write(tmp_path, {
        f"train-images-idx3-ubyte{zipped}": pack(struct.pack(">HBB3I", 0, 8, 3, 4, 28, 28) + images.tobytes()),
        f"train-labels-idx1-ubyte{zipped}": pack(struct.pack(">HBBI", 0, 8, 1, 4) + labels.tobytes()),
    })  # fmt: skip
    for spec in (tmp_path / f"train-images-idx3-ubyte{zipped}", tmp_path):
        source = open_source(str(spec), 28)
        assert source.size == 4 and source.image_shape == (28, 28, 1) and source.label_names == ("0", "1", "2", "3")
        for i in range(4):
            np.testing.assert_array_equal(source.read(i)["image"][..., 0], images[i])
            assert source.read(i)["label"] == labels[i]
    assert open_source(str(tmp_path), 32).read(0)["image"].shape == (32, 32, 1)


@pytest.mark.parametrize(
    "low, high, taken",
    [
        (0, 1.0005, (0, 1)), (-0.001, 1, (0, 1)), (0, 1.02, (0, 1)), (-1.0001, 1.0001, (-1, 1)), (-0.1, 0.1, (-1, 1)),
        (0, 255, (0, 255)), (-3, 258, (0, 255)), (10, 200, (0, 255)), (0, 0.3, (0, 1)),
        (0, 1.1, None), (0, 16, None), (-0.1, 1, None), (-1.1, 1.1, None), (-20, 255, None), (0, 300, None),
    ],
)  # fmt: skip
def test_the_range_of_floats_has_slack_and_is_said(tmp_path, caplog, low, high, taken):
    """What overshoots by a hair is clipped; what fits no range beyond doubt is refused, and never darkened."""
    images = np.linspace(low, high, 5 * 8 * 8, dtype=np.float32).reshape(5, 8, 8)
    np.savez(tmp_path / "set.npz", images=images)
    np.save(tmp_path / "set.npy", images)
    for spec in (tmp_path / "set.npz", tmp_path / "set.npy", images):
        if taken is None:
            with pytest.raises(UserError, match=rf"from {low:g} to {high:g}: accepted are"):
                open_source(spec, 8)
            continue
        source = open_source(spec, 8)
        assert f"taken as [{taken[0]}, {taken[1]}]" in source.opened
        assert ("clipped" in source.opened) == (low < taken[0] or high > taken[1])
        expected = np.clip((images - taken[0]) / (taken[1] - taken[0]) * 2 - 1, -1, 1)
        np.testing.assert_allclose([source.read(i)["image"][..., 0] for i in range(5)], expected, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_that_are_not_finite_are_refused(bad, dtype):
    images = np.zeros((3, 4, 4), dtype)
    images[1, 2, 3] = bad
    with pytest.raises(UserError, match="Find what made them not finite"):
        open_source(images, 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_masks_of_0_and_1_are_no_black_pictures(dtype):
    masks = np.zeros((3, 4, 4), dtype)
    assert (open_source(masks, 4).read(0)["image"] == 0).all()
    masks[2, 1, 1] = 1
    with pytest.raises(UserError, match=r"from 0 to 1.*save them as bool"):
        open_source(masks, 4)
    assert open_source(masks.astype(bool), 4).read(2)["image"][1, 1] == 255


def test_arrays_and_paths_are_as_good_as_names(tmp_path):
    import jax.numpy as jnp

    images = colours(3, 6, 6).reshape(3, 6, 6, 1).repeat(3, -1)
    for like in (images, jnp.asarray(images), images / np.float32(127.5) - 1, images / 255):
        source = open_source(like, 6)
        assert source.size == 3 and source.image_shape == (6, 6, 3) and source.label_names is None
        np.testing.assert_allclose(source[1]["image"], data.to_float(images[1]), atol=1e-6)
    write(tmp_path / "glyphs", {"a.png": png(images[0])})
    assert open_source(tmp_path / "glyphs", 6).size == 1  # a path is never the name of something built in
    for wrong in (np.zeros((4, 4)), np.array(["a"]), np.array([{}]), 3, None, [1, 2]):
        with pytest.raises(UserError, match="accepted are"):
            open_source(wrong, 6)


def test_npy_files_stay_on_disk_and_have_their_labels_beside_them(tmp_path):
    images, labels = colours(5, 6, 6), np.array([1, 0, 2, 1, 0])
    np.save(tmp_path / "x_train.npy", np.asfortranarray(images))
    np.save(tmp_path / "y_train.npy", labels)
    source = open_source(tmp_path / "x_train.npy", 6)
    assert source.size == 5 and source.label_names == ("0", "1", "2")
    for i in range(5):
        example = source.read(i)
        np.testing.assert_array_equal(example["image"][..., 0], images[i])
        assert example["label"] == labels[i] and type(example["image"]) is np.ndarray
    np.save(tmp_path / "objects.npy", np.array([{}, None], dtype=object))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x_train.npy").read_bytes()[:150])
    for name in ("objects.npy", "cut.npy"):
        with pytest.raises(UserError, match=rf"{name} is not a readable \.npy file.*numpy\.save"):
            open_source(tmp_path / name, 6)


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


def broken_archives(tmp_path):
    np.savez(tmp_path / "objects.npz", images=np.array([{}, None], dtype=object))
    np.savez(tmp_path / "other.npz", weights=np.zeros(3), bias=np.zeros((2, 2)))
    np.savez(tmp_path / "first.npz", images=np.zeros((5, 3, 8, 8), np.uint8))
    np.savez(tmp_path / "flat.npz", x_train=np.zeros((5, 3072), np.uint8))
    np.savez(tmp_path / "single.npz", images=np.zeros((32, 32, 3), np.uint8))
    np.savez(tmp_path / "nan.npz", images=np.full((2, 4, 4), np.nan))
    np.savez(tmp_path / "wide.npz", images=np.full((2, 4, 4), 1000.0))
    np.savez(tmp_path / "count.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.zeros(3, int))
    np.savez(tmp_path / "empty.npz", images=np.zeros((0, 4, 4), np.uint8))
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with zipfile.ZipFile(tmp_path / "bzip.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.png", png(colours(2, 2)))
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("a.bmp")
        member.size = 100_000
        archive.addfile(member, io.BytesIO(rng.bytes(100_000)))
    whole = (tmp_path / "whole.tar.gz").read_bytes()
    write(tmp_path, {
        "text.zip": b"not a zip", "text.tar": b"not a tar" * 100, "text.npz": b"not an npz", "text.txt": b"",
        "cut.tar.gz": whole[: len(whole) // 2], "cut-idx3-ubyte": struct.pack(">HBB3I", 0, 8, 3, 4, 28, 28),
        "kind-idx3-ubyte": struct.pack(">HBB3I", 0, 13, 3, 4, 28, 28), "nothing/readme.md": b"",
        "fake/a.jpg": b"text", "fake/b.jpg": b"",
    })  # fmt: skip


@pytest.mark.parametrize(
    "spec, words",
    [
        ("", "a folder of images"),
        ("missing", "No file or folder.*tfds:NAME"),
        ("missing.zip", "No file or folder.*missing.zip"),
        ("nothing", "No images in .*nothing.*jpg"),
        ("none.zip", "No images in"),
        ("text.txt", "text.txt.*accepted are"),
        ("text.zip", "readable zip"),
        ("text.tar", "readable tar"),
        ("cut.tar.gz", "readable tar"),
        ("text.npz", "readable .npz"),
        ("bzip.zip", "a.png.*method 12"),
        ("objects.npz", "plain arrays"),
        ("other.npz", r"weights \(3,\), bias \(2, 2\).*x_train"),
        ("other.npz/x_test", "no array 'x_test'"),
        ("first.npz", r"\(5, 3, 8, 8\).*moveaxis"),
        ("flat.npz", r"\(5, 3072\)"),
        ("single.npz", r"\(32, 32, 3\)"),
        ("nan.npz", "nan to nan"),
        ("wide.npz", "1000 to 1000"),
        ("count.npz", "2 images but 3 labels"),
        ("empty.npz", r"\(0, 4, 4\)"),
        ("cut-idx3-ubyte", "16 bytes"),
        ("kind-idx3-ubyte", "00000d03"),
        ("fake", "None of the images.*a.jpg"),
    ],
)
def test_each_mistake_is_explained(tmp_path, spec, words):
    broken_archives(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        open_source(str(tmp_path / spec) if spec else "", 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec, words",
    [
        ("photos/*.jpg", "wildcards, which are not followed: give the folder"),
        ("-", "not read from standard input"),
        ("https://example.org/a.zip", "download it and give the file"),
        ("s3://bucket/set", "download it and give the file"),
        ("~nobody-of-this-name/photos", "Cannot open"),
        ("x" * 5000, "Cannot open"),
        ("a\0b", "No file or folder"),
    ],
)
def test_what_people_try_is_answered(spec, words):
    with pytest.raises(UserError, match=words) as caught:
        open_source(spec, 8)
    assert "\n" not in str(caught.value)


def test_memory_that_is_not_there_is_a_sentence(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    write(tmp_path / "set", {"a.png": png(colours(8, 8))})
    np.savez(tmp_path / "a.npz", images=colours(2, 4, 4))
    source = open_source(tmp_path / "set", 4)
    monkeypatch.setattr(Image.Image, "resize", fail)
    with pytest.raises(UserError, match=r"not enough memory to read a\.png"):
        source.read(0)
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(UserError, match=r"a\.npz does not fit into memory"):
        open_source(tmp_path / "a.npz", 4)
    monkeypatch.setattr(np, "zeros", fail)
    with pytest.raises(UserError, match=r"numbers takes 0\.0 GB and does not fit into memory as a whole"):
        Batches(numbers(10), 5, seed=0).load(progress=False)


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied", str(args[0]))

    (tmp_path / "a.zip").write_bytes(b"")
    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(UserError, match=r"No permission to read .*a\.zip"):
        open_source(str(tmp_path / "a.zip"), 8)


def test_opening_the_module_is_quick():
    """Start-up and --help must not wait for what only some sources need."""
    code = "import sys, ganstyle_jax.data; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["jax", "grain", "PIL", "matplotlib", "tensorflow_datasets", "tensorflow"]
    root = str(Path(data.__file__).parents[1])
    result = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("image_size", [0, -4, 2.5, True])
def test_image_size_must_be_positive(image_size):
    with pytest.raises(UserError, match=f"image_size.*{image_size}"):
        open_source("glyphs", image_size)


def test_channels_must_be_one_or_three():
    with pytest.raises(UserError, match=r"channels.*4"):
        open_source("glyphs", 8, channels=4)


# ---------------------------------------------------------------------------------------------------------------------
# Batches. A source of numbers stands for the images, so that thousands can be counted.


def numbers(size, corrupt=(), delay=0.0):
    def read(i):
        time.sleep(delay)
        if i in corrupt:
            raise CorruptImage(f"{i}.jpg", "truncated")
        return {"image": np.full((1, 1, 1), i, np.float32), "label": np.array(i, np.int32)}

    return Source("numbers", (1, 1, 1), np.dtype(np.float32), size, None, read)


def labels(batches, start, stop):
    return [batch["label"] for batch in batches.stream(start, stop)]


@given(size=st.integers(1, 60), share=st.integers(1, 9), count=st.integers(1, 5), step=st.integers(0, 10**9),
       seed=st.integers(0, 2**63))  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_shares_join_to_the_global_batch(size, share, count, step, seed):
    whole = Batches(numbers(size), share * count, seed).indices(step)
    shares = [Batches(numbers(size), share * count, seed, k, count).indices(step) for k in range(count)]
    assert whole.dtype == np.int64 and shares[0].shape == (share,)
    np.testing.assert_array_equal(np.concatenate(shares), whole)


@given(size=st.integers(1, 50), batch_size=st.integers(1, 70), seed=st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_each_image_is_seen_once_per_epoch(size, batch_size, seed):
    batches = Batches(numbers(size), batch_size, seed)
    epochs = 3
    seen = np.concatenate([batches.indices(t) for t in range(-(-epochs * size // batch_size))])[: epochs * size]
    for epoch in seen.reshape(epochs, size):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(size))


def test_orders_differ_between_epochs_and_seeds_and_are_pinned():
    orders = [tuple(data.permutation(seed, 50, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16
    assert data.permutation(0, 8, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]  # resumed runs on other machines depend on it
    first = np.array([data.permutation(7, 5, epoch)[0] for epoch in range(2000)])
    assert np.all(np.abs(np.bincount(first, minlength=5) - 400) < 5 * 18)  # five standard deviations


@given(start=st.integers(0, 30), length=st.integers(0, 5), workers=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_stream_starts_anywhere_and_agrees_with_indices(start, length, workers):
    batches = Batches(numbers(17), 6, seed=3, process_index=1, process_count=2, workers=workers)
    result = list(batches.stream(start, start + length))
    assert len(result) == length
    for step, batch in enumerate(result, start):
        np.testing.assert_array_equal(batch["label"], batches.indices(step))
        np.testing.assert_array_equal(batch["image"].ravel(), batch["label"])
        assert batch["image"].shape == (3, 1, 1, 1) and batch["image"].flags.owndata


def test_an_unlimited_source_counts_up():
    batches = Batches(numbers(None), 4, seed=9, process_index=1, process_count=2)
    assert batches.indices(10).tolist() == [42, 43]
    np.testing.assert_array_equal(labels(batches, 10, 12), [[42, 43], [46, 47]])
    with pytest.raises(UserError, match="unlimited"):
        batches.load()


@given(corrupt=st.sets(st.integers(0, 299), max_size=3), seed=st.integers(0, 1000), count=st.sampled_from([1, 2]))
@settings(max_examples=25, deadline=None)
def test_corrupt_images_are_replaced_by_the_next_good_ones(corrupt, seed, count):
    size, batch_size, steps = 300, 40, 16
    parts = [Batches(numbers(size, corrupt), batch_size, seed, k, count, workers=2) for k in range(count)]
    streamed = np.concatenate([np.stack(labels(part, 0, steps)) for part in parts], axis=1).ravel()

    expected = []  # by the rule, written plainly
    for position in range(batch_size * steps):
        order = data.permutation(seed, size, position // size).tolist()
        place = position % size
        expected.append(next(i for i in order[place:] + order[:place] if i not in corrupt))
    np.testing.assert_array_equal(streamed, expected)
    assert set().union(*(part.skipped for part in parts)) == {f"{i}.jpg" for i in corrupt}

    loaded = Batches(numbers(size, corrupt), batch_size, seed)
    arrays = loaded.load(progress=False)
    assert arrays["image"].shape == (size, 1, 1, 1) and arrays["label"].shape == (size,)
    indices = np.stack([loaded.indices(t) for t in range(steps)]).ravel()
    np.testing.assert_array_equal(arrays["label"][indices], streamed)
    assert set(loaded.skipped.values()) <= {"truncated"} and len(loaded.skipped) == len(corrupt)


def test_further_arrays_reach_the_batches():
    """Such as the tokens of captions, which `others` announces."""
    plain = numbers(30)

    def read(i):
        return {**plain.read(i), "tokens": np.arange(i, i + 4)}

    source = dataclasses.replace(plain, read=read, others={"tokens": ((4,), np.dtype(np.int64))})
    batches = Batches(source, 6, seed=0)
    arrays = batches.load(progress=False)
    assert arrays["tokens"].shape == (30, 4) and arrays["tokens"].dtype == np.int64
    for step, batch in enumerate(batches.stream(0, 5)):
        np.testing.assert_array_equal(batch["tokens"], batch["label"][:, None] + np.arange(4))
        np.testing.assert_array_equal(arrays["tokens"][batches.indices(step)], batch["tokens"])


def test_load_shows_a_bar_only_where_it_takes_long(capsys, monkeypatch):
    """By a clock that stands still, and by one of which every look takes a second."""
    monkeypatch.setattr("tqdm.std.time", lambda: 0.0)
    Batches(numbers(130), 10, seed=0).load()
    assert capsys.readouterr().err == ""
    ticks = itertools.count()
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(ticks)))
    Batches(numbers(130), 10, seed=0).load(progress=False)
    assert capsys.readouterr().err == ""
    Batches(numbers(130), 10, seed=0).load()
    assert "decoding" in capsys.readouterr().err


def test_neighbours_in_the_order_may_both_be_corrupt():
    order = data.permutation(0, 300, 0)
    corrupt = {int(order[k]) for k in (298, 299, 0)}  # wraps round the epoch's end
    first = labels(Batches(numbers(300, corrupt), 300, seed=0), 0, 1)[0]
    assert first[298] == first[299] == first[0] == order[1]
    np.testing.assert_array_equal(first[1:298], order[1:298])


def test_corrupt_images_are_named_once(caplog):
    batches = Batches(numbers(100, {5}), 10, seed=0)
    assert batches.report() is None
    with caplog.at_level(logging.WARNING, logger="ganstyle_jax.data"):
        labels(batches, 0, 50)
    assert [record.getMessage() for record in caplog.records].count(caplog.records[0].getMessage()) == 1
    assert len(caplog.records) == 1 and "5.jpg" in caplog.records[0].getMessage()
    assert batches.skipped == {"5.jpg": "truncated"}
    assert batches.report() == "1 corrupt image was replaced by others: 5.jpg (truncated)."


@pytest.mark.parametrize(
    "size, corrupt, fine", [(50, 1, True), (50, 2, False), (250, 2, True), (250, 3, False), (2, 1, True)]
)
def test_more_than_one_percent_corrupt_stops(size, corrupt, fine):
    def stream(batches):
        return labels(batches, 0, size)

    for use in (stream, lambda batches: batches.load(progress=False)):
        batches = Batches(numbers(size, set(range(corrupt))), 10, seed=0)
        if fine:
            use(batches)
            assert len(batches.skipped) == corrupt
        else:
            with pytest.raises(UserError, match=rf"of the {size} images.*more than the 1 %.*jpg \(truncated\)"):
                use(batches)


def test_a_single_corrupt_image_is_no_endless_search():
    with pytest.raises(UserError, match="No image of numbers can be read"):
        labels(Batches(numbers(1, {0}), 1, seed=0), 0, 1)


def all_end(threads, seconds=120):
    """Whether all of these threads end; a busy machine may be long about it."""
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def test_stopping_early_leaves_no_threads():
    before = set(threading.enumerate())
    stream = Batches(numbers(1000, delay=0.002), 10, seed=0, workers=3).stream(0, 1000)
    next(stream)
    working = set(threading.enumerate()) - before
    assert working
    stream.close()
    assert all_end(working) and not set(threading.enumerate()) - before


def test_a_failing_stream_leaves_no_threads():
    before = set(threading.enumerate())
    with pytest.raises(UserError):
        labels(Batches(numbers(100, set(range(50))), 10, seed=0, workers=3), 0, 100)
    assert all_end(set(threading.enumerate()) - before) and not set(threading.enumerate()) - before


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"batch_size": 10, "process_count": 3}, "multiple of the 3.*10"),
        ({"batch_size": 0}, "positive.*0"),
        ({"batch_size": 4, "process_index": 2, "process_count": 2}, "process_index.*0..1.*2"),
        ({"batch_size": 4, "workers": 0}, "workers.*0"),
    ],
)
def test_batches_explain_wrong_numbers(arguments, words):
    with pytest.raises(UserError, match=words):
        Batches(numbers(10), seed=0, **arguments)


def damaged_files():
    """200 JPEG files in two classes, two of them damaged."""
    files = {f"{k % 2}/{k:03}.jpg": jpeg(colours(16, 16)) for k in range(200)}
    files["0/000.jpg"] = files["0/000.jpg"][:300]  # cut off
    files["1/151.jpg"] = b"text"
    return files


def test_corrupt_files_on_disk_and_in_a_zip(tmp_path):
    files = damaged_files()
    write(tmp_path / "set", files)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    for spec in ("set", "set.zip"):
        source = open_source(str(tmp_path / spec), 16)
        with pytest.raises(CorruptImage, match=r"0/000.jpg: .*[Tt]runcated"):
            source.read(0)
        batches = Batches(source, 50, seed=1)
        streamed = list(batches.stream(0, 8))
        assert batches.skipped.keys() == {"0/000.jpg", "1/151.jpg"}
        assert batches.skipped["1/151.jpg"] == "not an image that Pillow knows"
        report = batches.report()
        assert report is not None and report.startswith("2 corrupt images were replaced by others: ")
        loaded = Batches(source, 50, seed=1)
        arrays = loaded.load(progress=False)
        for step, batch in enumerate(streamed):
            for key in batch:
                np.testing.assert_array_equal(arrays[key][loaded.indices(step)], batch[key])


def test_a_flipped_byte_in_a_zip_is_noticed(tmp_path):
    path = tmp_path / "set.zip"
    content = Image.fromarray(colours(8, 8))
    file = io.BytesIO()
    content.save(file, "bmp")  # no checksum of its own
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.bmp", file.getvalue())
        archive.writestr("b.bmp", file.getvalue())
    raw = bytearray(path.read_bytes())
    raw[150] ^= 255
    path.write_bytes(raw)
    source = open_source(str(path), 8)
    with pytest.raises(CorruptImage, match="checksum"):
        source.read(0)
    np.testing.assert_array_equal(source.read(1)["image"], np.asarray(content))


def test_zip_and_tar_are_read_by_many_threads(tmp_path):
    pixels = [np.full((8, 8, 3), k, np.uint8) for k in range(100)]
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for k, image in enumerate(pixels):
            archive.writestr(f"{k:03}.png", png(image))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for k, image in enumerate(pixels):
            member = tarfile.TarInfo(f"{k:03}.png")
            member.size = len(png(image))
            archive.addfile(member, io.BytesIO(png(image)))
    for name in ("a.zip", "a.tar"):
        batches = Batches(open_source(str(tmp_path / name), 8), 20, seed=0, workers=8)
        for step, batch in enumerate(batches.stream(0, 25)):
            np.testing.assert_array_equal(batch["image"][:, 3, 3, 1], batches.indices(step))


# ---------------------------------------------------------------------------------------------------------------------
# TFDS


def prepare_without_tensorflow(root, version="1.0.0", values: Sequence[int] = range(6), file_format="array_record"):
    """A prepared set as TFDS writes it, with its own features and serialisation, through ArrayRecord's writer."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = root / "shades" / version
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        }
    )
    splits = []
    for split, part in (("train", list(values)), ("test", [200])):
        writer = ArrayRecordWriter(str(folder / f"shades-{split}.array_record-00000-of-00001"), "group_size:1")
        for value in part:
            example = {
                "id": str(value),
                "image": io.BytesIO(png(np.full((6, 8, 3), value, np.uint8))),
                "label": value % 2,
            }
            writer.write(features.serialize_example(features.encode_example(example)))
        writer.close()
        splits.append({
            "name": split, "shardLengths": [str(len(part))], "numBytes": "1000",
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        })  # fmt: skip
    features.save_config(str(folder))
    features.save_metadata(str(folder))
    info = {"name": "shades", "version": version, "fileFormat": file_format, "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_a_prepared_tfds_set_is_read_without_tensorflow(tmp_path, monkeypatch):
    prepare_without_tensorflow(tmp_path, "1.0.0", values=[1])
    prepare_without_tensorflow(tmp_path, "1.10.0", values=range(6))
    prepare_without_tensorflow(tmp_path, "1.9.0", values=[1])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    source = open_source("tfds:shades", 4)
    assert (source.size, source.image_shape, source.label_names) == (6, (4, 4, 3), ("even", "odd"))
    for i in range(6):
        example = source.read(i)
        assert np.all(example["image"] == i) and example["label"] == i % 2
    assert open_source("tfds:shades:test", 4, channels=1).read(0)["image"].ravel().tolist() == [200] * 16
    assert open_source("tfds:shades:train[:50%]", 4).size == 3
    batches = Batches(source, 4, seed=0, workers=3)
    for step, batch in enumerate(batches.stream(0, 6)):
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batches.indices(step))
    assert "tensorflow" not in sys.modules
    with pytest.raises(UserError, match=r"split 'validation'.*train, test"):
        open_source("tfds:shades:validation", 4)


def test_tfds_configurations(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    prepare_without_tensorflow(tmp_path)
    (tmp_path / "shades" / "1.0.0").rename(tmp_path / "kept")
    for config in ("dark", "light"):
        (tmp_path / "shades" / config).mkdir()
        (tmp_path / "shades" / config / "1.0.0").symlink_to(tmp_path / "kept")
        if config == "dark":
            assert open_source("tfds:shades", 4).size == 6
    assert open_source("tfds:shades/light", 4).size == 6
    with pytest.raises(UserError, match="tfds:shades/dark, tfds:shades/light"):
        open_source("tfds:shades", 4)


@pytest.mark.parametrize(
    "spec, words",
    [
        ("tfds:mnist", r"pip install -e '.\[tfds-prepare\]' && ganstyle data prepare mnist .*zip.*npz.*glyphs"),
        ("tfds:mnst", "'mnst'.*did you mean mnist"),
        ("tfds:CIFAR10", "did you mean cifar10"),
        ("tfds:../etc", "knows no set"),
        ("tfds:", "knows no set"),
    ],
)
def test_tfds_sets_that_are_not_there(tmp_path, monkeypatch, spec, words, asked_of_the_network):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=words):
        open_source(spec, 8)
    assert asked_of_the_network == []


def test_a_set_prepared_as_tfrecord_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    prepare_without_tensorflow(tmp_path, file_format="tfrecord")
    with pytest.raises(UserError, match=r"tfrecord.*array_record.*ganstyle data prepare shades"):
        open_source("tfds:shades", 8)
    with pytest.raises(UserError, match="another format"):
        data.prepare("shades", tmp_path)


def test_prepare_says_at_once_that_there_is_no_network(tmp_path, monkeypatch, asked_of_the_network):
    """After one try; TFDS would go on for minutes."""
    asked, hung_up = [], threading.Event()

    def refuse(*args, **kwargs):
        asked.append(args)
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match=r"needs a network.*Name or service not known"):
        data.prepare("mnist", tmp_path)
    with pytest.raises(UserError, match="did you mean mnist"):
        data.prepare("mnst", tmp_path)
    assert len(asked) == 1 and asked_of_the_network == []

    def hang(*args, **kwargs):
        hung_up.wait(120)
        raise urllib.error.URLError("it was waited for")

    monkeypatch.setattr(urllib.request, "urlopen", hang)  # a lookup that hangs
    try:
        with pytest.raises(UserError, match="no answer"):
            data.tfds._require_network("https://example.org", "mnist", seconds=0.1)
    finally:
        hung_up.set()


def test_prepare_asks_tfds_for_array_records(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def answer(*args, **kwargs):
        raise urllib.error.HTTPError("https://storage.googleapis.com", 400, "bad request", Message(), None)  # an answer

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"needs TensorFlow.*pip install -e '.\[tfds-prepare\]'"):
        data.prepare("mnist", tmp_path)

    calls = []

    def builder(name, **options):
        calls.append((name, options))
        folder = tmp_path / name / "3.0.1"
        return types.SimpleNamespace(data_dir=str(folder), download_and_prepare=lambda: calls.append("prepared"))

    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))
    monkeypatch.setattr(tfds, "builder", builder)
    assert data.prepare("tfds:mnist", tmp_path) == tmp_path / "mnist" / "3.0.1"
    assert calls == [("mnist", {"data_dir": tmp_path, "file_format": "array_record"}), "prepared"]

    def failing(name, **options):
        raise OSError("checksum differs")

    monkeypatch.setattr(tfds, "builder", failing)
    with pytest.raises(UserError, match=r"could not prepare 'mnist'.*checksum differs"):
        data.prepare("mnist", tmp_path)


def test_prepare_leaves_a_prepared_set_alone(tmp_path):
    prepare_without_tensorflow(tmp_path)
    assert data.prepare("shades", tmp_path) == tmp_path / "shades" / "1.0.0"


# ---------------------------------------------------------------------------------------------------------------------
# Real sets


def test_mnist(data_dir):
    source = open_source(str(data_dir / "datasets/mnist.npz"), 28)
    assert (source.size, source.image_shape, source.dtype) == (60000, (28, 28, 1), np.uint8)
    assert source.label_names == tuple("0123456789")
    assert [int(source.read(i)["label"]) for i in range(5)] == [5, 0, 4, 1, 9]
    larger = open_source(str(data_dir / "datasets/mnist.npz"), 32).read(0)["image"]
    assert larger.shape == (32, 32, 1)
    np.testing.assert_allclose(larger.mean(), source.read(0)["image"].mean(), rtol=0.02)
    assert open_source(str(data_dir / "datasets/mnist.npz/x_test"), 28).size == 10000


def test_flowers_have_no_classes(data_dir):
    source = open_source(str(data_dir / "datasets/flowers102_64px.zip"), 64)
    assert (source.size, source.image_shape, source.label_names) == (7985, (64, 64, 3), None)
    with zipfile.ZipFile(data_dir / "datasets/flowers102_64px.zip") as archive:
        for i in (0, 4000, 7984):
            expected = np.asarray(Image.open(io.BytesIO(archive.read(sorted(archive.namelist())[i]))))
            np.testing.assert_array_equal(source.read(i)["image"], expected)


def test_cifar10_classes(data_dir):
    source = open_source(str(data_dir / "datasets/cifar10_train_jpg.zip"), 32)
    assert source.size == 50000 and source.image_shape == (32, 32, 3)
    assert source.label_names == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    assert [int(source.read(i)["label"]) for i in (0, 4999, 5000, 49999)] == [0, 0, 1, 9]


def test_unpaired_sets_in_one_archive(data_dir):
    archive = data_dir / "datasets/face2portrait_128px.zip"
    sizes = [open_source(f"{archive}/{part}", 32).size for part in ("trainA", "trainB", "testA", "testB")]
    assert sum(size or 0 for size in sizes) == open_source(str(archive), 32).size == 1754
