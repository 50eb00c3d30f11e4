"""Round trips of picture and video files, and what people's files may hold."""

import contextlib
import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import av
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps, features

from ganstyle_jax import data
from ganstyle_jax.io import folders, pictures, video
from ganstyle_jax.io.files import UserError
from ganstyle_jax.io.images import to_uint8, to_uint16
from ganstyle_jax.io.pictures import read_alpha, read_picture, write_picture
from ganstyle_jax.io.video import read_video, write_video

rng = np.random.default_rng(0)
NOISE = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
DEEP_NOISE = rng.integers(0, 65536, (20, 30, 4), dtype=np.uint16)


def smooth(h: int, w: int, phase: float = 0) -> np.ndarray:
    """(h, w, 3) float32 in [-0.9, 0.9]."""
    y, x = np.mgrid[:h, :w] / max(h, w)
    return (0.9 * np.stack([np.sin(4 * x + phase), np.cos(3 * y), np.sin(2 * (x + y) - phase)], -1)).astype(np.float32)


def full_range(integers: np.ndarray) -> np.ndarray:
    return integers / (np.iinfo(integers.dtype).max / 2) - 1


def over_white(rgba: np.ndarray) -> np.ndarray:
    unit = rgba / np.iinfo(rgba.dtype).max
    return 2 * (unit[..., :-1] * unit[..., -1:] + 1 - unit[..., -1:]) - 1


def png(pixels: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file with 16 bits a channel, which Pillow does not write in colour."""
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[-1]]
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = (b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


# Writing and reading back.


@pytest.mark.parametrize("name", ["x.png", "X.PNG", "12:30 %d.png"])
def test_png_is_exact(tmp_path, name):
    write_picture(tmp_path / name, NOISE)
    got = read_picture(tmp_path / name)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_array_equal(to_uint8(got), NOISE)
    write_picture(tmp_path / "again.png", got)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("suffix", [".tif", ".tiff"])
def test_tiff_has_16_bits(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    picture = rng.uniform(-1, 1, (20, 30, 3)).astype(np.float32)
    write_picture(path, picture)
    np.testing.assert_allclose(read_picture(path), picture, atol=1 / 65535 + 1e-7)  # half a step, and float32
    write_picture(path, full_range(DEEP_NOISE[..., :3]))
    np.testing.assert_array_equal(to_uint16(read_picture(path)), DEEP_NOISE[..., :3])
    write_picture(path, NOISE)
    np.testing.assert_array_equal(to_uint8(read_picture(path)), NOISE)
    with Image.open(path) as file:  # and other programs see the same
        np.testing.assert_array_equal(np.asarray(file), NOISE)


@pytest.mark.parametrize("suffix, largest, mean", [(".jpg", 4, 0.8), (".jpeg", 4, 0.8), (".webp", 10, 2)])
def test_lossy_formats_lose_little(tmp_path, suffix, largest, mean):
    """In levels of 255; WebP has its colour at half resolution."""
    path = tmp_path / f"x{suffix}"
    write_picture(path, smooth(64, 48))
    errors = np.abs(read_picture(path) - smooth(64, 48)) * 127.5
    assert errors.max() < largest and errors.mean() < mean


def test_jpeg_keeps_colour_at_full_resolution(tmp_path):
    stripes = np.where(np.arange(32)[:, None] % 2, [200, 40, 40], [40, 40, 200]).astype(np.uint8)
    write_picture(tmp_path / "x.jpg", np.tile(stripes, (16, 1, 1)))
    errors = np.abs(to_uint8(read_picture(tmp_path / "x.jpg")).astype(int) - stripes)
    assert errors.max() < 12  # 96 where two columns share one colour


@pytest.mark.parametrize("suffix", pictures.PICTURE_SUFFIXES)
def test_every_format_says_that_it_is_srgb(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    write_picture(path, smooth(8, 8))
    with Image.open(path) as file:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(file.info["icc_profile"]))
        assert file.size == (8, 8)
    assert "sRGB" in ImageCms.getProfileDescription(profile)


def test_grey_is_written_in_colour(tmp_path):
    for suffix in pictures.PICTURE_SUFFIXES:
        write_picture(tmp_path / f"x{suffix}", np.full((4, 4, 1), 0.2))
        np.testing.assert_allclose(read_picture(tmp_path / f"x{suffix}"), 0.2, atol=1 / 127)


def test_wrong_arrays_and_places_are_refused(tmp_path):
    good = np.zeros((4, 4, 3))
    for array, words in (
        (np.zeros((4, 4)), r"got \(4, 4\)"),
        (np.zeros((4, 4, 4)), r"got \(4, 4, 4\)"),
        (np.full((4, 4, 3), np.nan), "48 NaN"),
        (np.zeros((4, 4, 3), int), "dtype int64"),
    ):
        for suffix in (".png", ".tif"):
            with pytest.raises(ValueError, match=words):
                write_picture(tmp_path / f"x{suffix}", array)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for name, words in (
        ("x.bmp", r"ends in \.bmp.*use \.png, \.jpg, \.jpeg, \.webp, \.tif or \.tiff"),
        ("x", "ends in no suffix"),
        ("folder.png", "is a folder"),
        ("no/x.png", r"no folder .*no; make it first"),
        ("file/x.png", "no folder .*file"),
    ):
        with pytest.raises(UserError, match=words):
            write_picture(tmp_path / name, good)
    for name, array in (("x.webp", np.zeros((2, 16_384, 3))), ("x.jpg", np.zeros((65_501, 2, 3)))):
        with pytest.raises(UserError, match=r"choose \.png or \.tif"):
            write_picture(tmp_path / name, array)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.png"]


def full_disk(*_):
    raise OSError(28, "No space left on device")


WRITERS = [*product([write_picture], pictures.PICTURE_SUFFIXES), *product([write_video], video.VIDEO_SUFFIXES)]


@pytest.mark.parametrize("write, suffix", WRITERS)
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, write, suffix):
    path = tmp_path / f"x{suffix}"
    arguments = (path, smooth(8, 8)) if write is write_picture else (path, [smooth(8, 8)], 20)
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(UserError, match=rf"x{suffix} cannot be written: No space left on device"):
            write(*arguments)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(UserError, match="no right to write to the folder"):
            write(*arguments)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# Transparency.


ALPHA = np.random.default_rng(1).integers(0, 256, (20, 30)).astype(np.float32) / 255


@pytest.mark.parametrize("suffix, levels", [(".png", 255), (".tif", 65535), (".webp", 255)])
@pytest.mark.parametrize("deep", [False, True])
def test_alpha_is_written_and_read_back(tmp_path, suffix, levels, deep):
    """The colours lie under it as they were; a picture that is read lies over white."""
    path = tmp_path / f"x{suffix}"
    picture = full_range(DEEP_NOISE[..., :3]) if deep else NOISE
    write_picture(path, picture, alpha=ALPHA)
    np.testing.assert_allclose(read_alpha(path), ALPHA, atol=0.5 / levels + 1e-6)
    assert read_alpha(path).dtype == np.float32 and read_alpha(path).flags.c_contiguous
    unit = np.dstack([(picture + 1) / 2 if deep else picture / 255, ALPHA])
    expected = 2 * (unit[..., :3] * unit[..., 3:] + 1 - unit[..., 3:]) - 1
    if suffix != ".webp":
        np.testing.assert_allclose(read_picture(path), expected, atol=2.1 / 255)
    with Image.open(path) as file:
        assert file.has_transparency_data and file.info["icc_profile"]
    write_picture(path, picture)
    assert read_alpha(path) is None


def test_alpha_of_other_programs_files(tmp_path):
    """A palette's colour, 16 bits, and turned upright as the picture is; None where all is opaque or nothing said."""
    path = tmp_path / "x.png"
    rgba = np.dstack([NOISE, np.rint(ALPHA * 255).astype(np.uint8)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgba).save(path, exif=exif)
    np.testing.assert_allclose(read_alpha(path), np.rot90(ALPHA, -1), atol=1e-6)
    assert read_alpha(path).shape == read_picture(path).shape[:2]
    for pixels in (DEEP_NOISE, DEEP_NOISE[..., [0, 3]]):
        path.write_bytes(png(pixels))
        np.testing.assert_allclose(read_alpha(path), DEEP_NOISE[..., 3] / 65535, atol=1e-6)
    for kind in ("unassalpha", "assocalpha"):
        tifffile.imwrite(tmp_path / "x.tif", DEEP_NOISE, photometric="rgb", extrasamples=[kind])
        np.testing.assert_allclose(read_alpha(tmp_path / "x.tif"), DEEP_NOISE[..., 3] / 65535, atol=1e-6)
    palette = Image.fromarray(NOISE).quantize(8, dither=Image.Dither.NONE)
    palette.save(path, transparency=3)
    np.testing.assert_array_equal(read_alpha(path), np.asarray(palette) != 3)
    for pixels in (png(DEEP_NOISE[..., :3]), png(np.dstack([DEEP_NOISE[..., :3], np.full((20, 30), 65535)]))):
        path.write_bytes(pixels)
        assert read_alpha(path) is None
    with pytest.raises(UserError, match=r"there is no picture .*none\.png"):
        read_alpha(tmp_path / "none.png")


def test_wrong_alpha_is_refused(tmp_path):
    for name in ("x.jpg", "x.JPEG"):
        with pytest.raises(UserError, match=r"JPEG has no alpha: choose \.png, \.webp or \.tif"):
            write_picture(tmp_path / name, NOISE, alpha=ALPHA)
    for alpha in (ALPHA[:5], ALPHA[..., None], ALPHA * 2, -ALPHA, ALPHA * np.nan, (ALPHA * 255).astype(np.uint8)):
        with pytest.raises(ValueError, match=r"floats from 0 to 1 of shape \(20, 30\)"):
            write_picture(tmp_path / "x.png", NOISE, alpha=alpha)
    assert not list(tmp_path.iterdir())


# Which files are pictures.


def test_pictures_of_a_folder(tmp_path):
    """At any depth, sorted, by suffix in either case, without what systems leave; as `data.open_source` takes them."""
    wanted = ["B.PNG", "a.bmp", "b/c.gif", "b/d.avif", "b/deep/e.jp2", "f.webp"]
    others = ["._a.png", ".hidden/a.png", "__MACOSX/a.png", "@eaDir/a.jpg/SYNO.jpg", "$RECYCLE.BIN/x.jpg", 
              "b/notes.txt", "lost+found/a.png", "System Volume Information/a.png", "c.psd"]  # fmt: skip
    for name in wanted + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert pictures.pictures_in(tmp_path) == [tmp_path / name for name in wanted] == pictures.pictures_in(str(tmp_path))
    found = folders.find(tmp_path)
    assert list(found.pictures) == wanted and set(found.others) == set(others)
    assert folders.passed_over_words(found.passed_over) == (
        "2 hidden, 1 .psd, 1 .txt, 1 in $RECYCLE.BIN, 1 in @eaDir, 1 in System Volume Information, 1 in __MACOSX, "
        "1 in lost+found"
    )
    assert folders.passed_over_words(found.passed_over, most=2) == "2 hidden, 1 .psd, 6 of other kinds"
    (tmp_path / "empty").mkdir()
    assert pictures.pictures_in(tmp_path / "empty") == []
    for name in ("none", "a.bmp"):
        with pytest.raises(UserError, match=f"{name} is no folder"):
            pictures.pictures_in(tmp_path / name)


def test_every_suffix_that_is_listed_can_be_read(tmp_path):
    """What `pictures_in` gives, `read_picture` takes; each suffix as Pillow writes it."""
    picture = Image.fromarray(NOISE)
    for suffix in folders.SUFFIXES:
        if suffix != ".avif" or features.check("avif"):
            (picture.convert("1") if suffix == ".pbm" else picture).save(tmp_path / f"x{suffix}")
    for path in pictures.pictures_in(tmp_path):
        assert read_picture(path).shape == (20, 30, 3)
    assert len(pictures.pictures_in(tmp_path)) >= len(folders.SUFFIXES) - 1


@pytest.mark.parametrize("suffix", folders.HEIC_SUFFIXES)
def test_heic_is_read_where_its_reader_is_installed(tmp_path, monkeypatch, suffix):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.fromarray(to_uint8(smooth(40, 64))).save(tmp_path / f"x{suffix}", format="HEIF", quality=100)
    assert pictures.pictures_in(tmp_path) == [tmp_path / f"x{suffix}"]
    np.testing.assert_allclose(read_picture(tmp_path / f"x{suffix}"), smooth(40, 64), atol=0.1)
    source = data.open_source(tmp_path, 40)
    assert source.size == 1
    np.testing.assert_allclose(source[0]["image"], smooth(40, 64)[:, 12:52], atol=0.1)
    for module in (folders, pictures):
        monkeypatch.setattr(module, "suffixes", lambda: folders.SUFFIXES)
    assert pictures.pictures_in(tmp_path) == []
    (tmp_path / "fake.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(UserError, match=r"pip install -e '\.\[heic\]'"):
        read_picture(tmp_path / "fake.heic")


def test_kinds_that_run_programs_are_not_opened(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("was run"))
    Image.fromarray(NOISE).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    with pytest.raises(UserError, match="not a picture that can be read"):
        read_picture(tmp_path / "x.png")


# What a file may hold.


TURNS = [
    (1, None),
    (2, Image.Transpose.FLIP_LEFT_RIGHT),
    (3, Image.Transpose.ROTATE_180),
    (4, Image.Transpose.FLIP_TOP_BOTTOM),
    (5, Image.Transpose.TRANSPOSE),
    (6, Image.Transpose.ROTATE_90),  # counterclockwise, so that it is shown turned clockwise
    (7, Image.Transpose.TRANSVERSE),
    (8, Image.Transpose.ROTATE_270),
]


@pytest.mark.parametrize("orientation, turn", TURNS)
def test_pictures_are_turned_upright(tmp_path, orientation, turn):
    """`turn` makes of an upright picture what a camera stores with this orientation."""
    stored = Image.fromarray(NOISE) if turn is None else Image.fromarray(NOISE).transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("x.png", "x.tif", "lzw.tif"):
        stored.save(tmp_path / name, exif=exif, **{"compression": "tiff_lzw"} if name == "lzw.tif" else {})
        np.testing.assert_array_equal(to_uint8(read_picture(tmp_path / name)), NOISE)
    deep = np.asarray(stored).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb", extratags=[(0x0112, 3, 1, orientation, True)])
    (tmp_path / "deep.png").write_bytes(png(deep, (b"eXIf", exif.tobytes()[6:])))
    for name in ("deep.tif", "deep.png"):
        np.testing.assert_array_equal(to_uint8(read_picture(tmp_path / name)), NOISE)
    stored.save(tmp_path / "x.jpg", exif=exif, quality=100)
    with Image.open(tmp_path / "x.jpg") as file:
        expected = np.asarray(ImageOps.exif_transpose(file))
    np.testing.assert_array_equal(to_uint8(read_picture(tmp_path / "x.jpg")), expected)


def test_senseless_exif_is_passed_over(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    for value in (exif, b"Exif\0\0damaged"):
        Image.fromarray(NOISE).save(tmp_path / "x.png", exif=value)
        np.testing.assert_array_equal(to_uint8(read_picture(tmp_path / "x.png")), NOISE)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# The primaries of red and green exchanged.
SWAPPED = SRGB.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")
# The same primaries with a linear curve (gamma, a, b, c and d of its parametric form), and grey with that curve.
CURVE = SRGB.index(b"para") + 12
LINEAR = SRGB[:CURVE] + struct.pack(">5i", 65536, 65536, 0, 65536, 0) + SRGB[CURVE + 20 :]
LINEAR_GREY = (LINEAR[:16] + b"GRAY" + LINEAR[20:]).replace(b"rTRC", b"kTRC")


def srgb_curve(linear: np.ndarray) -> np.ndarray:
    return np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_an_embedded_profile_is_converted_as_by_pillow(tmp_path):
    picture = Image.fromarray(to_uint8(smooth(20, 30)))
    for profile in (SWAPPED, LINEAR):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        expected = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        picture.save(tmp_path / "x.png", icc_profile=profile)
        np.testing.assert_array_equal(to_uint8(read_picture(tmp_path / "x.png")), expected)


def test_embedded_profiles_by_closed_form(tmp_path):
    def same(path, expected):
        np.testing.assert_allclose(read_picture(path) * 127.5, expected * 127.5, atol=2)  # of 255 levels

    picture = to_uint8(smooth(20, 30))
    deep = full_range(DEEP_NOISE[..., :3])
    path = tmp_path / "x.png"
    Image.fromarray(picture).save(path, icc_profile=SWAPPED)
    same(path, full_range(picture)[..., [1, 0, 2]])
    tifffile.imwrite(tmp_path / "deep.tif", DEEP_NOISE[..., :3], photometric="rgb", iccprofile=SWAPPED)
    same(tmp_path / "deep.tif", deep[..., [1, 0, 2]])
    palette = Image.fromarray(picture).quantize(16)
    palette.save(path, icc_profile=SWAPPED)
    same(path, full_range(np.asarray(palette.convert("RGB")))[..., [1, 0, 2]])
    grey = picture[..., :1]
    expected = 2 * srgb_curve(grey / 255) - 1
    for profile in (LINEAR_GREY, LINEAR):  # a grey picture may have either kind
        Image.fromarray(grey[..., 0]).save(path, icc_profile=profile)
        same(path, np.repeat(expected, 3, -1))
        Image.fromarray(grey[..., 0]).convert("LA").save(path, icc_profile=profile)
        same(path, np.repeat(expected, 3, -1))


def test_useless_profiles_change_nothing(tmp_path):
    """Damaged, of another mode, or that of sRGB; 16 bits are kept then."""
    for profile in (b"damaged", SWAPPED[:300], LINEAR_GREY, SRGB):
        Image.fromarray(NOISE).save(tmp_path / "x.png", icc_profile=profile)
        np.testing.assert_array_equal(to_uint8(read_picture(tmp_path / "x.png")), NOISE)
        tifffile.imwrite(tmp_path / "x.tif", DEEP_NOISE[..., :3], photometric="rgb", iccprofile=profile)
        np.testing.assert_array_equal(to_uint16(read_picture(tmp_path / "x.tif")), DEEP_NOISE[..., :3])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits(tmp_path, channels):
    pixels = DEEP_NOISE[..., :channels]
    (tmp_path / "x.png").write_bytes(png(pixels))
    expected = full_range(pixels) if channels in (1, 3) else over_white(pixels)
    np.testing.assert_allclose(read_picture(tmp_path / "x.png"), np.broadcast_to(expected, (20, 30, 3)), atol=3e-7)


def test_png_of_16_bits_with_one_transparent_colour(tmp_path):
    pixels = DEEP_NOISE[..., :3]
    (tmp_path / "x.png").write_bytes(png(pixels, (b"tRNS", pixels[3, 5].astype(">u2").tobytes())))
    expected = full_range(pixels)
    expected[3, 5] = 1
    np.testing.assert_allclose(read_picture(tmp_path / "x.png"), expected, atol=3e-7)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"compression": "zlib", "predictor": True},
        {"tile": (16, 16)},
        {"planarconfig": "separate"},
    ],
    ids=str,
)
def test_tiff_of_16_bits(tmp_path, options):
    path = tmp_path / "x.tif"
    colour = DEEP_NOISE[..., :3]
    tifffile.imwrite(
        path, np.moveaxis(colour, -1, 0) if "planarconfig" in options else colour, photometric="rgb", **options
    )
    np.testing.assert_array_equal(to_uint16(read_picture(path)), colour)
    if "planarconfig" not in options:
        for kind, expected in (("minisblack", colour[..., :1]), ("miniswhite", 65535 - colour[..., :1])):
            if kind == "miniswhite" and "byteorder" in options:
                continue  # which Pillow does not know
            tifffile.imwrite(path, colour[..., 0], photometric=kind, **options)
            np.testing.assert_array_equal(to_uint16(read_picture(path)), np.repeat(expected, 3, -1))


def test_tiff_of_16_bits_with_alpha(tmp_path):
    path = tmp_path / "x.tif"
    straight = over_white(DEEP_NOISE)
    premultiplied = np.rint(DEEP_NOISE / 65535 * DEEP_NOISE[..., 3:]).astype(np.uint16)
    premultiplied[..., 3] = DEEP_NOISE[..., 3]
    for kind, pixels, expected in (
        ("unassalpha", DEEP_NOISE, straight),
        ("assocalpha", premultiplied, straight),
        ("unspecified", DEEP_NOISE, full_range(DEEP_NOISE[..., :3])),
    ):
        tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=[kind])
        np.testing.assert_allclose(read_picture(path), expected, atol=1 / 65535 + 1e-7)


@pytest.mark.parametrize("predictor", [1, 2])
def test_tiff_of_16_bits_in_lzw(tmp_path, predictor):
    Image.fromarray(DEEP_NOISE[..., 0]).save(tmp_path / "x.tif", compression="tiff_lzw", tiffinfo={317: predictor})
    got = to_uint16(read_picture(tmp_path / "x.tif"))
    np.testing.assert_array_equal(got, np.repeat(DEEP_NOISE[..., :1], 3, -1))


def test_other_modes(tmp_path):
    def saved(picture, name="x.png", **options):
        picture.save(tmp_path / name, **options)
        return to_uint8(read_picture(tmp_path / name))

    picture = Image.fromarray(NOISE)
    rgba = np.dstack([NOISE, NOISE[..., 0]])
    expected = to_uint8(over_white(rgba))
    assert np.abs(saved(Image.fromarray(rgba)).astype(int) - expected).max() <= 1  # Pillow's rounding
    grey = Image.fromarray(NOISE[..., 0])
    np.testing.assert_array_equal(saved(grey), np.repeat(NOISE[..., :1], 3, -1))
    expected = to_uint8(np.repeat(over_white(NOISE[..., :2]), 3, -1))
    assert np.abs(saved(Image.fromarray(NOISE[..., :2])).astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(saved(grey.convert("1")), np.asarray(grey.convert("1").convert("RGB")))
    palette = picture.quantize(8, dither=Image.Dither.NONE)
    colours = np.array(palette.convert("RGB"))
    np.testing.assert_array_equal(saved(palette), colours)
    colours[np.asarray(palette) == 3] = 255
    np.testing.assert_array_equal(saved(palette, transparency=3), colours)
    cmyk = picture.convert("CMYK")
    np.testing.assert_array_equal(saved(cmyk, "x.tif"), np.asarray(cmyk.convert("RGB")))
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))  # red, in a JPEG with Adobe's inverted numbers too
    assert np.abs(saved(cmyk, "x.jpg", quality=100).astype(int) - [255, 0, 0]).max() <= 2
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    stored = ImageCms.profileToProfile(picture, srgb, lab, outputMode="LAB")
    expected = ImageCms.profileToProfile(stored, lab, srgb, outputMode="RGB")
    np.testing.assert_array_equal(saved(stored, "x.tif"), np.asarray(expected))
    deep = Image.fromarray(DEEP_NOISE[..., 0])
    deep.save(tmp_path / "x.pgm")
    np.testing.assert_array_equal(to_uint16(read_picture(tmp_path / "x.pgm")), np.repeat(DEEP_NOISE[..., :1], 3, -1))
    animation = [picture, picture.transpose(Image.Transpose.ROTATE_180)]
    np.testing.assert_array_equal(saved(animation[0], save_all=True, append_images=animation[1:]), NOISE)


@pytest.mark.parametrize("dtype", [np.float32, np.uint32, np.int16])
@pytest.mark.parametrize("channels", [1, 3])
def test_numbers_without_a_range_are_refused(tmp_path, dtype, channels):
    pixels = np.ones((4, 4, channels), dtype)
    kind = {1: "minisblack", 3: "rgb"}[channels]
    tifffile.imwrite(tmp_path / "x.tif", pixels if channels == 3 else pixels[..., 0], photometric=kind)
    with pytest.raises(UserError, match=r"no known range.*8 or 16 bits|not a picture that can be read"):
        read_picture(tmp_path / "x.tif")


# Files that cannot be read.


@pytest.mark.parametrize("side", [20_001, 60_000])
def test_bombs_are_refused_before_they_are_decoded(tmp_path, monkeypatch, side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    crc = zlib.crc32(b"IHDR" + header)
    content = png(DEEP_NOISE[..., :3])
    (tmp_path / "x.png").write_bytes(content[:16] + header + struct.pack(">I", crc) + content[33:])
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("was decoded"))
    with pytest.raises(UserError, match=rf"has {side * side} pixels; at most 400000000 are read"):
        read_picture(tmp_path / "x.png")


def test_the_limit_is_the_callers(tmp_path, monkeypatch):
    write_picture(tmp_path / "x.png", NOISE)
    for limit in (599, 200):
        with pytest.raises(UserError, match=rf"has 600 pixels; at most {limit} are read"):
            read_picture(tmp_path / "x.png", max_pixels=limit)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_picture(tmp_path / "x.png", max_pixels=600)
    assert Image.MAX_IMAGE_PIXELS == 100
    Image.fromarray(NOISE).save(tmp_path / "x.ico", sizes=[(30, 20)])
    icon = bytearray((tmp_path / "x.ico").read_bytes())
    assert icon[6:8] == bytes([30, 20])
    icon[6:8] = 10, 10  # says that the picture of 600 pixels inside has 100
    (tmp_path / "x.ico").write_bytes(icon)
    with pytest.raises(UserError, match=r"has 600 pixels; at most 200 are read"):
        read_picture(tmp_path / "x.ico", max_pixels=200)


def test_the_limit_in_many_threads(tmp_path, monkeypatch):
    """Each reader has its own, and Pillow's is back when the last of them has ended."""
    Image.fromarray(NOISE).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)

    def read(k):
        for _ in range(50):
            with contextlib.suppress(pictures.TooLarge), pictures.opened(tmp_path / "x.png", [600, 599][k % 2]) as file:
                assert k % 2 == 0
                file.crop((0, 0, 30, 20)).load()
        return True

    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("error")
        assert all(pool.map(read, range(8)))
    assert Image.MAX_IMAGE_PIXELS == 100


def test_files_that_are_no_pictures(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    Image.new("RGB", (1, 9)).save(tmp_path / "thin.png")
    for name, words in (
        ("none.png", "there is no picture .*none.png"),
        ("", "is a folder, not a picture"),
        ("text.png", "is not a picture that can be read, such as a JPEG"),
        ("empty.jpg", "is not a picture that can be read, such as a JPEG"),
        ("thin.png", "has 1 x 9 pixels; at least 2 x 2 are needed"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            read_picture(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files(tmp_path):
    write_picture(tmp_path / "x.png", NOISE)
    (tmp_path / "x.png").chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        read_picture(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["x.png", "deep.png", "x.jpg", "x.webp", "x.tif", "zip.tif", "lzw.tif", "x.gif"])
def test_truncated_files(tmp_path, name):
    path = tmp_path / name
    if name == "deep.png":
        path.write_bytes(png(DEEP_NOISE))
    elif name == "zip.tif":
        tifffile.imwrite(path, DEEP_NOISE[..., :3], photometric="rgb", compression="zlib")
    elif name == "lzw.tif":
        Image.fromarray(DEEP_NOISE[..., 0]).save(path, compression="tiff_lzw")
    elif name == "x.gif":
        Image.fromarray(NOISE).save(path)
    else:
        write_picture(path, NOISE)
    content = path.read_bytes()
    for length in range(0, len(content) - 40, max(1, len(content) // 40)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cannot be read as a picture|is not a picture"):
            read_picture(path)


# Videos.


def moving(n: int, h: int, w: int) -> np.ndarray:
    return np.stack([smooth(h, w, phase=k / 3) for k in range(n)])


@pytest.mark.parametrize("fps", [24, 30000 / 1001, 12.5])
@pytest.mark.parametrize("h, w", [(48, 64), (47, 63)])
def test_mp4_round_trip(tmp_path, h, w, fps):
    path = tmp_path / "12:30 %d.mp4"
    frames = moving(9, h, w)
    write_video(path, iter(frames), fps)
    video = read_video(str(path))
    assert video.fps == pytest.approx(fps, rel=1e-6) and video.shape == (48, 64)
    for _ in range(2):  # a video can be read again
        got = np.stack(list(video))
        assert got.dtype == np.float32 and got.shape == (9, 48, 64, 3)
        errors = (got[:, :h, :w] - frames) * 127.5
        # Of 255 levels 1.5 and 15 were measured, since colour is at half resolution; the mean of each channel is kept.
        assert np.abs(errors).mean() < 2.5 and np.abs(errors).max() < 25 and np.abs(errors.mean((0, 1, 2))).max() < 0.4


@pytest.mark.parametrize("h, w", [(1, 1), (2, 2), (3, 17), (720, 2)])
def test_mp4_of_any_size_keeps_colours(tmp_path, h, w):
    colours = np.array([[230, 30, 30], [30, 200, 60], [20, 60, 220], [128, 128, 128]], np.uint8)
    write_video(tmp_path / "x.mp4", [np.full((h, w, 3), colour) for colour in colours], 10)
    got = np.stack([to_uint8(frame) for frame in read_video(tmp_path / "x.mp4")])
    assert got.shape == (4, h + h % 2, w + w % 2, 3)
    assert np.abs(got.astype(int) - colours[:, None, None]).max() <= 3


def test_mp4_takes_frames_one_by_one_and_uint8_and_grey(tmp_path):
    made = []

    def frames():
        for k in range(120):
            made.append(k)
            yield np.full((16, 16, 1), 2 * k, np.uint8)

    write_video(tmp_path / "x.mp4", frames(), 60)
    video = read_video(tmp_path / "x.mp4")
    levels = [to_uint8(frame).mean() for frame in video]
    assert made == list(range(120)) and video.fps == 60
    np.testing.assert_allclose(levels, 2 * np.arange(120), atol=2)
    for _ in zip(range(3), video, strict=False):  # an iteration that is left early
        pass


def test_gif_round_trip(tmp_path):
    frames = rng.integers(0, 2, (5, 7, 9, 3)).astype(np.float32) * 2 - 1
    write_video(tmp_path / "x.gif", iter(frames), 20)
    video = read_video(tmp_path / "x.gif")
    assert video.fps == pytest.approx(20) and video.shape == (7, 9)
    np.testing.assert_array_equal(np.stack(list(video)), frames)


def test_videos_are_shown_as_players_show_them(tmp_path):
    """Turned as the file says, by the matrix of its size where it names none, and in full range where it says so."""
    path = tmp_path / "x.mp4"
    frame = np.full((16, 32, 3), 128, np.uint8)
    frame[:, :16] = 255
    write_video(path, [frame], 20)
    content = path.read_bytes()
    at = content.index(b"tkhd") + 44  # the matrix of the track, here a quarter turn clockwise
    turned = content[:at] + struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 16 << 16, 0, 1 << 30) + content[at + 36 :]
    path.write_bytes(turned)
    video = read_video(path)
    got = to_uint8(next(iter(video)))
    assert video.shape == (32, 16)
    np.testing.assert_allclose(got, np.rot90(frame, -1), atol=4)

    red = np.full((720, 16, 3), [220, 30, 30], np.uint8)
    for height, matrix, pixel_format in (
        (720, "ITU709", "yuv420p"),
        (16, "ITU601", "yuv420p"),
        (16, "ITU601", "yuvj420p"),
    ):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=20)
            stream.height, stream.width, stream.pix_fmt = height, 16, pixel_format
            picture = av.VideoFrame.from_ndarray(red[:height], format="rgb24")
            container.mux(stream.encode(picture.reformat(format=pixel_format, dst_colorspace=matrix)))
            container.mux(stream.encode())
        (got,) = read_video(path)
        np.testing.assert_allclose(to_uint8(got), red[:height], atol=4)


def test_wrong_frames_leave_nothing(tmp_path):
    def failing():
        yield smooth(8, 8)
        raise KeyError("from the frames")

    for suffix in video.VIDEO_SUFFIXES:
        path = tmp_path / f"x{suffix}"
        for frames, error, words in (
            ([], ValueError, "at least one frame"),
            ([smooth(8, 8), smooth(8, 9)], ValueError, r"got \(8, 8, 3\) first and \(8, 9, 3\) at index 1"),
            ([np.zeros((8, 8))], ValueError, r"got \(8, 8\)"),
            (failing(), KeyError, "from the frames"),
        ):
            with pytest.raises(error, match=words):
                write_video(path, frames, 20)
    for name, fps, words in (
        ("x.gif", 60, r"a \.gif file has 1 to 50 frames a second, got 60"),
        ("x.mp4", 0, "1 to 240 frames a second, got 0"),
        ("x.mp4", float("nan"), "got nan"),
        ("x.avi", 20, r"ends in \.avi.*use \.mp4 or \.gif"),
        ("no/x.mp4", 20, "no folder"),
    ):
        with pytest.raises(UserError, match=words):
            write_video(tmp_path / name, [smooth(8, 8)], fps)
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_videos(tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    write_video(tmp_path / "x.mp4", moving(5, 32, 32), 20)
    content = (tmp_path / "x.mp4").read_bytes()
    (tmp_path / "index.mp4").write_bytes(content[: content.index(b"mdat")])
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    for name, words in (
        ("none.mp4", "there is no video .*none.mp4"),
        ("", "is a folder, not a video"),
        ("text.mp4", "cannot be read as a video: Invalid data"),
        ("index.mp4", "no frames|cannot be read as a video"),
        ("sound.wav", "has sound but no pictures"),
    ):
        with pytest.raises(UserError, match=words):
            read_video(tmp_path / name)


def test_lists_of_other_files_are_no_videos(tmp_path):
    """FFmpeg would follow them, whatever they are called."""
    write_video(tmp_path / "secret.gif", [NOISE], 10)
    for content in ("ffconcat version 1.0\nfile secret.gif\n", "#EXTM3U\n#EXTINF:9,\nsecret.gif\n#EXT-X-ENDLIST\n"):
        (tmp_path / "x.mp4").write_text(content)
        with pytest.raises(UserError, match="cannot be read as a video"):
            read_video(tmp_path / "x.mp4")


def test_frames_of_too_many_pixels_are_refused(tmp_path, monkeypatch):
    write_video(tmp_path / "x.mp4", [NOISE], 10)
    monkeypatch.setattr(video, "MAX_FRAME", 599)
    with pytest.raises(UserError, match=r"frames of 30 x 20 pixels; at most 599 are read"):
        read_video(tmp_path / "x.mp4")


def test_a_video_cut_short_is_refused_or_ends_early(tmp_path):
    path = tmp_path / "x.mp4"
    write_video(path, moving(30, 32, 32), 20)
    content = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with contextlib.suppress(UserError):
            assert len(list(read_video(path))) < 30
