"""Downloads that resume, try several addresses, and say within seconds why nothing came."""

import hashlib
import http.client
import itertools
import queue
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PATIENCE = 10.0  # seconds without a byte, shared by all addresses, after which a download ends
CHUNK = 1 << 18  # bytes


class DownloadError(Exception):
    """Why none of the addresses gave the file: a clause for each of them."""


class _AddressError(Exception):
    """Why this address cannot give the file; the next one is tried."""


class _CutError(_AddressError):
    """The connection ended before the file did; the same address may give the rest."""


def fetch(
    addresses: Sequence[str],
    path: Path,
    check: Callable[[Path], str | None],
    size: int | None = None,
    patience: float = PATIENCE,
) -> str:
    """Downloads a file, the same bytes at all addresses, to `path`; returns the address that gave the last of it.

    What has come so far is kept beside it, ".part" added to its name, and the next call goes on from there. size: in
    bytes, if known; what sends more is stopped there. check: says what is wrong with a whole file, or None. Raises
    DownloadError.
    """
    part = path.with_name(path.name + ".part")
    reasons = []
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        for address in addresses:
            try:
                _complete(address, part, size, patience / len(addresses))
                if wrong := check(part):
                    part.unlink()
                    raise _AddressError(wrong)
            except _AddressError as error:
                reasons.append(f"{urllib.parse.urlsplit(address).netloc} {error}")
                continue
            part.replace(path)
            return address
    except OSError as error:  # of the disk; those of the network are known by name already
        raise DownloadError(f"{part} cannot be written ({error.strerror or error})") from error
    raise DownloadError("; ".join(reasons))


def digests(path: Path) -> dict[str, str]:
    """Sums of a file by algorithm: "sha256" and, for publishers who state no other, "md5"."""
    sums = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            for one in sums.values():
                one.update(chunk)
    return {name: one.hexdigest() for name, one in sums.items()}


def _complete(address: str, part: Path, size: int | None, seconds: float) -> None:
    """Connects again after a cut, for as long as each connection brings the file further than it was."""
    while (before := part.stat().st_size if part.exists() else 0) != size:
        try:
            return _receive(address, part, before, size, seconds)
        except _CutError:
            if part.stat().st_size <= before:
                raise


def _receive(address: str, part: Path, start: int, size: int | None, seconds: float) -> None:
    """One connection: adds to `part`, which has `start` bytes, or begins again where the server knows no ranges."""
    from tqdm import tqdm

    with _open(address, start, seconds) as response:
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        if length is not None and not length.isdecimal():
            raise _AddressError(f"gives a length of {length[:40]!r}")
        total = size if length is None else start + int(length)
        chunks = _chunks(response, seconds)
        first = next(chunks, b"")
        if not resumed and first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            raise _AddressError("gives a web page in place of the file")
        if size is not None and total != size:
            raise _AddressError(f"gives a file of {total:,} bytes in place of one of {size:,}")
        bar = {"desc": part.stem, "unit": "B", "unit_scale": True, "dynamic_ncols": True, "delay": 1, "leave": False}
        with open(part, "ab" if resumed else "wb") as file, tqdm(total=total, initial=start, **bar) as progress:
            received = start
            for chunk in itertools.chain([first], chunks):
                received += len(chunk)
                if total is not None and received > total:
                    break  # of these bytes not even the first are to be trusted
                file.write(chunk)
                progress.update(len(chunk))
    if total is not None and received > total:
        part.unlink()
        raise _AddressError(f"sends more than the {total:,} bytes of the file")
    if total is not None and (received := part.stat().st_size) != total:
        raise _CutError(f"cut the connection after {received:,} of {total:,} bytes")


def _open(address: str, start: int, seconds: float) -> http.client.HTTPResponse:
    """The answer to a request for all bytes from `start` on.

    Asked for in a thread, since looking up a host's name knows no time limit and can take half a minute.
    """
    request = urllib.request.Request(address, headers={"User-Agent": "ganstyle"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(urllib.request.urlopen(request, timeout=seconds))
        except Exception as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        response = answer.get(timeout=seconds)
    except queue.Empty:
        response = TimeoutError()
    if isinstance(response, urllib.error.HTTPError):
        if response.code == 416 and start:  # what is there is longer than the file, so it is no part of it
            return _open(address, 0, seconds)
        raise _AddressError(f"answers {response.code} {response.reason}")
    if isinstance(response, Exception):
        raise _AddressError(_describe(response, seconds)) from response
    return response


def _chunks(response: http.client.HTTPResponse, seconds: float) -> Iterator[bytes]:
    """What comes, as soon as it comes, until the connection ends for whatever reason but a silence."""
    while True:
        try:
            chunk = response.read1(CHUNK)
        except TimeoutError as error:
            raise _AddressError(f"sends nothing for {seconds:.0f} s") from error
        except (OSError, http.client.HTTPException):
            return
        if not chunk:
            return
        yield chunk


def _describe(error: Exception, seconds: float) -> str:
    reason = getattr(error, "reason", error)  # urllib wraps what happened
    if isinstance(reason, TimeoutError):
        return f"does not answer within {seconds:.0f} s"
    if isinstance(reason, socket.gaierror):
        return "is not found, so there may be no network"
    if isinstance(reason, ConnectionRefusedError):
        return "refuses the connection"
    return f"cannot be reached ({getattr(reason, 'strerror', None) or reason})"
