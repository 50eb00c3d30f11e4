"""onnxruntime-web, by which a page runs a network: four files of one version of an npm package, known by their sums.

They come from where the user says, a folder or the .tgz of `npm pack`, or by the user's own npm, and so from wherever
that is set up to look. Nothing of the package is installed or executed here.
"""

import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from ganstyle_jax.io.files import UserError, atomic_path, cache_dir, first_line

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SPEC = f"{PACKAGE}@{VERSION}"
# By name: (bytes, SHA-256). The pairs are a program and its WebAssembly, of processors and of graphics processors.
WASM = {
    "ort.wasm.bundle.min.mjs": (73054, "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"),
    "ort-wasm-simd-threaded.wasm": (14239897, "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"),
}
WEBGPU = {
    "ort.webgpu.bundle.min.mjs": (117732, "0730816731ce2cdfb06f273da065d4a1c7091eb9d1756a83b2916c8a89d015e2"),
    "ort-wasm-simd-threaded.asyncify.wasm": (
        26781914,
        "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
    ),
}
SECONDS = 600  # that npm may take
LICENCE = """ONNX Runtime, MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def files(place: Path | None, fetch: bool, webgpu: bool) -> dict[str, bytes]:
    """The contents of the files, by name, each with the sum that is known of it.

    place: a .tgz, or a folder that has them somewhere a package does; None: what an earlier `fetch` has kept. fetch:
    let npm bring the package where it is not kept. UserError where they are not to be had, and what to do.
    """
    wanted = WASM | (WEBGPU if webgpu else {})
    if place is None:
        place = cache_dir() / f"{PACKAGE}-{VERSION}.tgz"
        if not place.is_file():
            if not fetch:
                raise UserError(
                    f"the page needs the npm package {SPEC}, which is not here: give --fetch, by which npm brings it "
                    f"once, or run `npm pack {SPEC}` where it can be had and give --runtime {place.name}"
                )
            _fetch(place)
    if not place.exists():
        raise UserError(f"there is no {place}: --runtime takes the .tgz of `npm pack {SPEC}` or a folder of it")
    found = _of_folder(place, wanted) if place.is_dir() else _of_archive(place, wanted)
    for name, content in found.items():
        if hashlib.sha256(content).hexdigest() != wanted[name][1]:
            raise UserError(f"{name} in {place} is not that of {SPEC}: give this version, `npm pack {SPEC}` brings it")
    return found


def _missing(place: Path, names: list[str]) -> UserError:
    return UserError(f"{place} lacks {', '.join(names)} of {SPEC}: give the .tgz that `npm pack {SPEC}` brings")


def _of_folder(place: Path, wanted: dict) -> dict[str, bytes]:
    within = (".", "dist", "package/dist", f"{PACKAGE}/dist", f"node_modules/{PACKAGE}/dist")
    folders = [place / part for part in within]
    folder = next((one for one in folders if any((one / name).is_file() for name in wanted)), place)
    if missing := [name for name in wanted if not (folder / name).is_file()]:
        raise _missing(place, missing)
    return {name: (folder / name).read_bytes() for name in wanted}


def _of_archive(place: Path, wanted: dict) -> dict[str, bytes]:
    """Members are read one by one, no more of each than it has; nothing is unpacked to the disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(place, "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix("package/dist/")
                if name in wanted and member.isfile() and member.size == wanted[name][0]:
                    file = archive.extractfile(member)
                    assert file is not None
                    found[name] = file.read(member.size)
                if len(found) == len(wanted):
                    break
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(
            f"{place} is cut off or damaged ({first_line(error)}): `npm pack {SPEC}` brings it anew"
        ) from error
    if missing := [name for name in wanted if name not in found]:
        raise _missing(place, missing)
    return found


def _fetch(path: Path) -> None:
    """Has npm bring the package, and keeps it at `path`."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"--fetch needs npm, which is not installed: run `npm pack {SPEC}` elsewhere and give --runtime {path.name}"
        )
    with tempfile.TemporaryDirectory(prefix="ganstyle-") as folder:
        command = [npm, "pack", SPEC, "--pack-destination", folder, "--ignore-scripts", "--no-update-notifier"]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"npm has not brought {SPEC} within {SECONDS} s") from None
        except OSError as error:
            raise UserError(f"npm cannot be run ({error.strerror or error})") from error
        brought = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or len(brought) != 1:
            raise UserError(f"npm has not brought {SPEC}: {_reason(done.stderr + done.stdout)}")
        with atomic_path(path) as part:
            shutil.copyfile(brought[0], part)


def _reason(said: str) -> str:
    """What npm's words mean."""
    if re.search(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH|network request", said):
        return "it does not reach the registry or mirror where it looks, so there may be no network"
    if re.search(r"E404|ETARGET", said):
        return "where it looks there is no such package or version"
    lines = (
        [line for line in said.splitlines() if re.match(r"npm (ERR!|error)", line)] or said.splitlines() or ["nothing"]
    )
    return f"it says: {lines[0][:300]}"
