"""Image files in folders and archives."""

import bz2
import collections
import functools
import gzip
import io
import lzma
import os
import posixpath
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from ganstyle_jax.data import arrays, encoded
from ganstyle_jax.data.source import Size, Source
from ganstyle_jax.io import folders
from ganstyle_jax.io.files import UserError, largest, listed

MOST_IN_FOLDER = 4_000_000_000  # bytes of one file: 400 megapixels of 16-bit colour and alpha are 3.2 GB
PACKED = 20  # times that picture files shrink at most, BMP and the like; most do not shrink at all

Load = Callable[[Any, int | None], bytes]
"""What lies at a location, or its first bytes."""


def folder(path: Path, image_size: Size, channels: int | None) -> Source:
    """All images below a folder; MNIST's files where it has those alone."""
    found = folders.find(path)
    idx = [p for p in found.others.values() if re.fullmatch(r"train-images[-.]idx3-ubyte(\.gz)?", p.name)]
    if idx and not found.pictures:
        return arrays.idx(min(idx), image_size, channels)
    return _source(path.absolute(), dict(found.pictures), "", _read_file, found.passed_over, image_size, channels)


def _source(
    path: Path,
    members: dict[str, Any],
    inner: str,
    load: Load,
    passed_over: collections.Counter[str],
    image_size: Size,
    channels: int | None,
) -> Source:
    """A source of named pictures, {path below the root: what `load` wants}, whatever holds them."""
    names = sorted(members)
    place = str(path)
    if inner:
        names = [name for name in names if name.startswith(inner.rstrip("/") + "/")]
        place = f"{path}/{inner.rstrip('/')}"
    words = folders.passed_over_words(passed_over)
    if not names:
        within = sorted({name.split("/")[0] for name in members if "/" in name})
        here = f" It has the folders {listed(within)}." if inner and within else f" It has {words}." if words else ""
        raise UserError(
            f"No images in {place}: accepted are files at any depth that end in {' '.join(folders.suffixes())}.{here}"
        )
    names, labels, label_names, said = encoded.classes(names, place)
    locations = [members[name] for name in names]

    def load_with_label(i: int, most: int | None = None) -> tuple[bytes, int | None]:
        return load(locations[i], most), None if labels is None else int(labels[i])

    name = Path(place).name.split(".")[0] if not inner else f"{path.stem}/{inner}"
    notes = [said, f"passed over: {words}" if words and not inner else ""]
    return encoded.source(
        name or str(path), len(names), names.__getitem__, load_with_label, label_names, image_size, channels, notes
    )


def _read_file(path: Path, most: int | None) -> bytes:
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for, a device has no end
        raise ValueError("it is no regular file")
    if about.st_size > MOST_IN_FOLDER and most is None:
        raise ValueError(f"it has {about.st_size:,} bytes; at most {MOST_IN_FOLDER:,} are read")
    with open(path, "rb") as file:
        return file.read(-1 if most is None else most)


# ---------------------------------------------------------------------------------------------------------------------
# Zip


def zipped(path: Path, inner: str, image_size: Size, channels: int | None) -> Source:
    """All images of a zip archive, or of one of its folders."""
    members, passed_over = in_zip(path)
    return _source(path, members, inner, functools.partial(read_zip_member, path), passed_over, image_size, channels)


def in_zip(path: Path) -> tuple[dict[str, Any], collections.Counter[str]]:
    """Where the images of a zip archive lie in it, by name, and how many files of each other kind there are."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {_member_name(info.filename): info for info in archive.infolist() if not info.is_dir()}
    except PermissionError:
        raise
    except Exception as error:  # of damaged archives zipfile raises struct.error, UnicodeDecodeError and more
        raise UserError(f"{path} is not a readable zip archive ({error}): download or pack it again.") from error
    chosen, passed_over = folders.choose(infos)
    members = {}
    for name in chosen:
        info = infos[name]
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            how = "encrypted" if info.flag_bits & 1 else f"compressed with method {info.compress_type}"
            raise UserError(
                f"{info.filename} in {path} is {how}: pack the images again, stored or deflated, without a password."
            )
        members[name] = (info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)
    return members, passed_over


def read_zip_member(path: Path, location: tuple[int, int, int, int, int], most: int | None) -> bytes:
    """One member, through a file opened for it.

    A ZipFile has one position and one lock for all threads, and one for each thread would read the directory again.
    """
    offset, stored, size, method, checksum = location
    if size > largest(stored, PACKED):
        raise ValueError(f"its {stored:,} bytes in the zip archive unpack to {size:,}")
    with open(path, "rb") as file:
        file.seek(offset)
        header = file.read(30)
        if header[:4] != b"PK\x03\x04" or len(header) < 30:
            raise ValueError("the zip directory points to no file")
        start = offset + 30 + sum(struct.unpack("<HH", header[26:]))  # past its name and extra field
        data = _slice(file, start, stored if most is None else min(stored, most))
    if method == zipfile.ZIP_DEFLATED:
        unpack = zlib.decompressobj(-zlib.MAX_WBITS)
        data = unpack.decompress(data, size + 1 if most is None else most)
    if most is not None:
        return data
    if len(data) != size:
        raise ValueError(f"the zip archive says that it has {size:,} bytes, which it has not")
    if zlib.crc32(data) != checksum:
        raise ValueError("wrong checksum in the zip archive")
    return data


def _slice(file: BinaryIO, start: int, length: int) -> bytes:
    """So many bytes from there on; asking for more than there are would make room for them first."""
    if length > 1 << 20:
        length = max(0, min(length, os.fstat(file.fileno()).st_size - start))
    file.seek(start)
    return file.read(length)


# ---------------------------------------------------------------------------------------------------------------------
# Tar


def tar(path: Path, inner: str, image_size: Size, channels: int | None) -> Source:
    """All images of a tar archive, or of one of its folders; those of a compressed one are unpacked into memory."""
    members, passed_over = in_tar(path)
    load = functools.partial(_read_tar_member, path) if path.suffix.lower() == ".tar" else _read_bytes
    return _source(path, members, inner, load, passed_over, image_size, channels)


def in_tar(path: Path) -> tuple[dict[str, Any], collections.Counter[str]]:
    """As `in_zip`; of a compressed one the images themselves."""
    plain = path.suffix.lower() == ".tar"
    members: dict[str, Any] = {}
    passed_over: collections.Counter[str] = collections.Counter()
    try:
        with (
            open(path, "rb") as file,
            _unpacked(file, plain, largest(path.stat().st_size, PACKED)) as stream,
            tarfile.open(fileobj=cast(BinaryIO, stream), mode="r:" if plain else "r|") as archive,
        ):
            for member in archive:
                name = _member_name(member.name)
                if member.issym() or member.islnk():
                    passed_over["links"] += 1
                    continue
                if not member.isreg() or member.issparse():
                    passed_over["sparse files"] += member.issparse()
                    continue
                chosen, others = folders.choose([name])
                passed_over += others
                if not chosen:
                    continue
                if plain:
                    members[name] = (member.offset_data, member.size)
                    continue
                content = archive.extractfile(member)
                members[name] = b"" if content is None else content.read()
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # of damaged archives tarfile raises more than TarError
        raise UserError(f"{path} is not a readable tar archive ({error}): download or pack it again.") from error
    return members, +passed_over


def _read_tar_member(path: Path, location: tuple[int, int], most: int | None) -> bytes:
    offset, length = location
    with open(path, "rb") as file:
        return _slice(file, offset, length if most is None else min(length, most))


def _read_bytes(data: bytes, most: int | None) -> bytes:
    return data[:most]


def _unpacked(file: BinaryIO, plain: bool, room: int) -> "_Careful":
    """The content of a plain file, or of one that its first bytes say to be compressed: at most `room` bytes then."""
    magic = file.read(6)
    file.seek(0)
    kinds = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7zXZ\x00": lzma.open}
    opener = next((opener for begin, opener in kinds.items() if magic.startswith(begin)), None)
    return _Careful(file) if plain or opener is None else _Careful(cast(BinaryIO, opener(file)), room)


class _Careful(io.RawIOBase):
    """A file that gives at most `room` bytes, and not all at once.

    A damaged size in a header makes tarfile ask for gigabytes, for which room would be made before they are read.
    """

    PIECE = 1 << 24

    def __init__(self, file: BinaryIO, room: int | None = None):
        self.file, self.room, self.given = file, room, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        pieces, wanted = [], size
        while wanted:
            piece = self.file.read(min(wanted, self.PIECE) if wanted > 0 else self.PIECE)
            pieces.append(piece)
            self.given += len(piece)
            if self.room is not None and self.given > self.room:
                raise ValueError(f"it unpacks to more than {self.room:,} bytes")
            wanted -= len(piece) if wanted > 0 else 0
            if not piece:
                break
        return b"".join(pieces)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def _member_name(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")
