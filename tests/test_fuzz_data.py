"""Damaged and hostile files: every reader of pictures, archives, arrays and videos gives a picture or a sentence.

Run as a script, this file is the process that reads them, whose memory is measured: `GROUP COUNT FOLDER`.
"""

import contextlib
import functools
import gzip
import io
import json
import resource
import struct
import subprocess
import sys
import tarfile
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

MOST = 512 << 20  # bytes above what the process has before the first damaged file
GROUPS = ("pictures", "archives", "arrays", "videos")


@pytest.mark.parametrize("group", GROUPS)
def test_some_damaged_files(tmp_path, group):
    check(tmp_path, group, 40)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_many_damaged_files(tmp_path, group):
    check(tmp_path, group, 1000)


def test_files_made_to_fill_the_memory_or_to_lead_elsewhere(tmp_path):
    """Each of them has at most 1 MB and asks for 700 MB and more, or for another file."""
    found = run(tmp_path, "hostile", 0)
    assert not found["raised"], found["raised"]
    assert found["peak"] < MOST


def check(folder: Path, group: str, count: int) -> None:
    found = run(folder, group, count)
    assert not found["raised"], "\n".join(found["raised"][:3])
    assert found["read"] + found["refused"] == count and found["refused"] > 0
    assert found["peak"] < MOST


def run(folder: Path, group: str, count: int) -> dict:
    command = [sys.executable, str(Path(__file__)), group, str(count), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, f"{sorted(folder.iterdir())} ended the process: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------------------------------------------------------
# Whole files to begin with


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)


def whole_pictures(folder: Path) -> None:
    import tifffile
    from PIL import Image, ImageCms, features

    smooth = np.add.outer(np.arange(40), np.arange(56))[..., None] * np.array([1, 2, 2]) % 256
    picture = Image.fromarray(smooth.astype(np.uint8))
    clear = picture.convert("RGBA")
    clear.putalpha(100)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"rXYZ", b"gXYZ", 1)
    picture.save(folder / "a.png", icc_profile=profile, exif=exif)
    clear.save(folder / "b.png")
    picture.quantize(16).save(folder / "c.png", transparency=2)
    Image.fromarray(noise(40, 56, dtype=np.uint16)).save(folder / "d.png")
    picture.save(folder / "a.jpg", icc_profile=profile, exif=exif)
    picture.save(folder / "b.jpg", progressive=True)
    picture.convert("CMYK").save(folder / "c.jpg")
    picture.save(folder / "a.webp")
    clear.save(folder / "b.webp", lossless=True)
    for name, compression in (("a", None), ("b", "tiff_lzw"), ("c", "tiff_adobe_deflate"), ("d", "packbits")):
        picture.save(folder / f"{name}.tif", compression=compression)
    tifffile.imwrite(folder / "e.tif", noise(40, 56, 3, dtype=np.uint16), photometric="rgb", compression="zlib")
    tifffile.imwrite(folder / "f.tif", noise(40, 56, dtype=np.uint16), tile=(16, 16))
    Image.fromarray(noise(40, 56, dtype=np.uint16)).save(folder / "g.tif", compression="tiff_lzw")
    picture.convert("1").save(folder / "h.tif", compression="group4")
    picture.save(folder / "a.gif", save_all=True, append_images=[picture.rotate(180)])
    for suffix in ("bmp", "ppm", "tga", "jp2", "ico", "pcx", "sgi"):
        picture.save(folder / f"a.{suffix}")
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        picture.save(folder / "a.heic", format="HEIF")
    if features.check("avif"):
        picture.save(folder / "a.avif")


def packed_pictures() -> dict[str, bytes]:
    from PIL import Image

    found = {}
    for k, suffix in enumerate(("png", "jpeg", "bmp")):
        file = io.BytesIO()
        Image.fromarray(noise(24, 24, 3)).save(file, suffix)
        found[f"set/{'ab'[k % 2]}/{k}.{suffix}"] = file.getvalue()
    return found


def whole_archives(folder: Path) -> None:
    for name, method in (("a.zip", zipfile.ZIP_STORED), ("b.zip", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(folder / name, "w", method) as archive:
            for member, content in packed_pictures().items():
                archive.writestr(member, content)
    for suffix, mode in ((".tar", "w"), (".tar.gz", "w:gz"), (".tar.bz2", "w:bz2"), (".tar.xz", "w:xz")):
        for name, kind in (("a", tarfile.PAX_FORMAT), ("b", tarfile.GNU_FORMAT)):
            with tarfile.open(folder / f"{name}{suffix}", mode, format=kind) as archive:  # pyright: ignore
                for member, content in packed_pictures().items():
                    info = tarfile.TarInfo(member if name == "a" else "x" * 120 + member)
                    info.size = len(content)
                    if name == "a":
                        info.pax_headers = {"comment": "é" * 200}
                    archive.addfile(info, io.BytesIO(content))


def whole_arrays(folder: Path) -> None:
    images, labels = noise(6, 12, 12), np.arange(6).astype(np.uint8)
    np.savez(folder / "a.npz", x_train=images, y_train=labels)
    np.savez_compressed(folder / "b.npz", images=images / np.float32(255), labels=np.array(list("abcabc")))
    np.save(folder / "c.npy", images)
    np.save(folder / "d.npy", np.asfortranarray(images.astype(np.float16)))
    content = struct.pack(">HBB3I", 0, 8, 3, *images.shape) + images.tobytes()
    (folder / "e-idx3-ubyte").write_bytes(content)
    (folder / "f-idx3-ubyte.gz").write_bytes(gzip.compress(content))


def whole_videos(folder: Path) -> None:
    from ganstyle_jax.io.video import write_video

    frames = [noise(32, 48, 3) // 2 + 8 * k for k in range(6)]
    write_video(folder / "a.mp4", frames, 10)
    write_video(folder / "b.gif", frames, 10)


# ---------------------------------------------------------------------------------------------------------------------
# Files that nobody has by chance

ZEROS = 704 << 20
PIECE = 16 << 20


@functools.cache
def packed_piece() -> bytes:
    """Raw deflate of PIECE zeros, which may stand in a row as often as one likes."""
    pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return pack.compress(bytes(PIECE)) + pack.flush(zlib.Z_FULL_FLUSH)


def deflated_zeros(begin: bytes) -> bytes:
    """Raw deflate of `begin` and 704 MB of zeros."""
    pack = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = pack.compress(begin) + pack.flush(zlib.Z_FULL_FLUSH)
    return head + packed_piece() * (ZEROS // PIECE) + b"\3\0"


def gzipped_zeros(begin: bytes) -> bytes:
    return b"\x1f\x8b\x08" + bytes(7) + deflated_zeros(begin) + bytes(8)  # its checksum is seen after all the rest


def zip_of_zeros(name: str, begin: bytes, stated: int | None) -> bytes:
    content = deflated_zeros(begin)
    size = len(begin) + ZEROS if stated is None else stated
    fields = struct.pack("<HHHHIIIHH", 0, 8, 0, 0x21, 0, len(content), size, len(name), 0)
    local = b"PK\3\4" + struct.pack("<H", 20) + fields + name.encode() + content
    central = b"PK\1\2" + struct.pack("<HH", 20, 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode()
    return local + central + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)


def tar_header(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    parts = (header, data, b"IEND")
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def hostile_files(folder: Path) -> None:
    import tifffile

    from ganstyle_jax.io.video import write_video

    idx = struct.pack(">HBB3I", 0, 8, 3, ZEROS // (1 << 14), 128, 128)
    with zipfile.ZipFile(folder / "shape.npz", "w") as archive:
        archive.writestr("images.npy", npy_header((10**6, 1000, 1000)) + bytes(1000))
    contents = {
        "lies.zip": zip_of_zeros("a.bmp", b"BM", 1000),
        "honest.zip": zip_of_zeros("a.bmp", b"BM", None),
        "large.npz": zip_of_zeros("images.npy", npy_header((ZEROS // (1 << 14), 128, 128)), None),
        "large-idx3-ubyte.gz": gzipped_zeros(idx),
        "longer-idx3-ubyte.gz": gzipped_zeros(struct.pack(">HBB3I", 0, 8, 3, 2, 2, 2)),
        "header-idx3-ubyte": struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31),
        "large.tar.gz": gzipped_zeros(tar_header("a.bmp", ZEROS, tarfile.REGTYPE)),
        "pax.tar.gz": gzipped_zeros(tar_header("a", ZEROS, tarfile.XHDTYPE)),
        "pax.tar": tar_header("a", 2**33 - 1, tarfile.XHDTYPE) + bytes(1024),
        "wide.png": png_header(19_000, 19_000),
        "wider.png": png_header(200_000, 200_000),
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "list.mp4": b"ffconcat version 1.0\nfile other.gif\n",
        "list.gif": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.gif\n#EXT-X-ENDLIST\n",
    }
    for name, content in contents.items():
        assert len(content) < 1 << 20
        (folder / name).write_bytes(content)
    tags = [(65_000, 4, 1, 30_000, True)]
    tifffile.imwrite(folder / "deep.tif", np.zeros((64, 64, 3), np.uint16), photometric="rgb", extratags=tags)
    content = (folder / "deep.tif").read_bytes()
    assert content.count(struct.pack("<H", 65_000)) == 1
    depth = content.replace(struct.pack("<H", 65_000), struct.pack("<H", 32_997))  # ImageDepth: of so many slices
    (folder / "deep.tif").write_bytes(depth)
    (folder / "other").mkdir()
    write_video(folder / "other.gif", [noise(8, 8, 3)], 10)
    (folder / "other.gif").rename(folder / "other" / "other.gif")  # as list.mp4 would have it, at its own place


def read_hostile(path: Path) -> None:
    kind = {".png": read_as_picture, ".tif": read_as_picture, ".mp4": read_as_video, ".gif": read_as_video}
    kind.get(path.suffix, read_as_set)(path)


# ---------------------------------------------------------------------------------------------------------------------
# Damage and reading


def damaged(whole: list[bytes], count: int) -> Iterator[tuple[int, bytes]]:
    """(which, content): bits flipped, cut short, numbers made large or odd, and parts of one put into another."""
    rng = np.random.default_rng(0)

    def near() -> int:
        """Rather at the beginning, where most files say what they are."""
        return min(rng.integers(len(content), size=3).tolist())

    for k in range(count):
        which = k % len(whole)
        content = bytearray(whole[which])
        kind = rng.integers(6)
        if kind == 0:
            for _ in range(rng.integers(1, 9)):
                content[near()] ^= 1 << rng.integers(8)
        elif kind == 1:
            content = content[: rng.integers(len(content))]
        elif kind == 2:
            at = int(rng.choice([near(), len(content) - 1 - near()]))
            number = rng.choice([0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1])
            width = int(rng.choice([1, 2, 4, 8]))
            order = "little" if rng.integers(2) else "big"
            content[at : at + width] = (int(number) % 256**width).to_bytes(width, order)
        elif kind == 3:
            other = whole[rng.integers(len(whole))]
            cut = near()
            content = bytearray(other[:cut]) + content[cut:]
        elif kind == 4:
            at, length, to = near(), int(rng.integers(1, 65)), near()
            content[to:to] = content[at : at + length]
        else:
            at = near()
            content[at : at + int(rng.integers(1, 65))] = rng.bytes(int(rng.integers(0, 65)))
        yield which, bytes(content)


def read_as_picture(path: Path) -> None:
    from ganstyle_jax import data
    from ganstyle_jax.io.files import UserError
    from ganstyle_jax.io.pictures import read_alpha, read_picture, suffixes

    said, readers = [], [read_picture, read_alpha]
    if path.suffix in suffixes():  # those of folders
        readers.append(lambda path: data.open_source(path.parent, 16).read(0))
    for read in readers:
        try:
            read(path)
        except (UserError, data.CorruptImage) as error:
            said.append(error)
    if said:
        raise said[0]


def read_as_set(path: Path) -> None:
    from ganstyle_jax import data

    source = data.open_source(path, 16)
    for i in range(min(source.size or 0, 3)):
        source.read(i)


def read_as_video(path: Path) -> None:
    from ganstyle_jax.io.video import read_video

    for _, frame in zip(range(12), read_video(path), strict=False):
        assert frame.ndim == 3


WHOLE: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "pictures": (whole_pictures, read_as_picture),
    "archives": (whole_archives, read_as_set),
    "arrays": (whole_arrays, read_as_set),
    "videos": (whole_videos, read_as_video),
    "hostile": (hostile_files, read_hostile),
}


def peak() -> int:
    """Bytes that this process had at most in memory so far."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says counts the process that started this one
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(group: str, count: int, folder: Path) -> None:
    from ganstyle_jax import data
    from ganstyle_jax.io.files import UserError

    warnings.simplefilter("ignore")
    make, read = WHOLE[group]
    (folder / "whole").mkdir()
    make(folder / "whole")
    places = []
    for path in sorted(path for path in (folder / "whole").iterdir() if path.is_file()):
        (folder / f"only-{path.name}").mkdir()
        places.append(path.rename(folder / f"only-{path.name}" / path.name))
    if group == "hostile":
        # What is read for the first time is imported, and is no damaged file's need.
        others = folder / "others"
        others.mkdir()
        for prepare in (whole_pictures, whole_videos):
            prepare(others)
        for name, first in (("a.png", read_as_picture), ("e.tif", read_as_picture), ("a.mp4", read_as_video)):
            first(others / name)
        cases = [(place, place.read_bytes()) for place in places]
        for place in places:
            (place.parent / "other.gif").write_bytes((folder / "whole" / "other" / "other.gif").read_bytes())
    else:
        for place in places:
            read(place)
        cases = ((places[which], content) for which, content in damaged([p.read_bytes() for p in places], count))
    before, was_read, refused, raised = peak(), 0, 0, []
    for place, content in cases:
        place.write_bytes(content)
        try:
            read(place)
            was_read += 1
            if group == "hostile":
                raised.append(f"{place.name} was read")
        except (UserError, data.CorruptImage) as error:
            assert str(error) and "\n" not in str(error)
            refused += 1
            if group == "hostile":
                print(place.name, "->", error)
        except Exception:
            raised.append(f"{place.name}: {traceback.format_exc()[-900:]}")
            (folder / f"raised-{len(raised)}-{place.name}").write_bytes(content)
        if peak() - before > MOST:
            raised.append(f"{place.name} takes {(peak() - before) >> 20} MB")
            (folder / f"large-{place.name}").write_bytes(content)
            break
    print(json.dumps({"read": was_read, "refused": refused, "raised": raised, "peak": peak() - before}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
