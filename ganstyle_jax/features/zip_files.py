"""Zip archives whose list of members is not larger than that of any file of weights."""

import os
import zipfile
from pathlib import Path

DIRECTORY = 8 << 20  # bytes; Python makes some fifteen times as much of it
_END, _END_64, _COMMENT = 22, 56 + 20, 1 << 16  # bytes: of the last record, of those before it in zip64, of a comment


def open_archive(path: Path) -> zipfile.ZipFile:
    """The archive. zipfile.BadZipFile for one that is damaged, or that lists too much, before that is read."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _COMMENT - _END - _END_64))
        tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    directory = int.from_bytes(tail[place + 12 : place + 16], "little") if place >= 0 else 0
    record = place - _END_64
    if record >= 0 and tail[record : record + 4] == b"PK\x06\x06":  # then the true size is there
        directory = int.from_bytes(tail[record + 40 : record + 48], "little")
    if directory > DIRECTORY:
        raise zipfile.BadZipFile(f"it lists {directory:,} bytes of members, where {DIRECTORY:,} are accepted")
    return zipfile.ZipFile(path)
