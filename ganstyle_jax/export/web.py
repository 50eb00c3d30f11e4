"""A page that paints in the reader's own browser, by the ONNX file of a network and onnxruntime-web.

As a folder, index.html and what it needs beside it, for any server of files; or as one file that opens by a double
click, in which everything lies packed. Templates are beside this file; its colours are those of reports.
"""

import base64
import functools
import gzip
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ganstyle_jax import __version__
from ganstyle_jax.export import graph, runtime
from ganstyle_jax.export.card import Card
from ganstyle_jax.io import pictures
from ganstyle_jax.io.files import UserError, atomic_path
from ganstyle_jax.look import page as reports
from ganstyle_jax.nn.image_transform import SMALLEST, ImageTransform

TEMPLATES = Path(__file__).with_name("templates")
THUMBNAIL = 112  # pixels
CHECK_SIDES = (32, 38)  # height and width of the pattern by which the page knows that it paints rightly
CHECK_VALUES = 24


def write_folder(
    out: Path,
    network: ImageTransform,
    params: Mapping[str, Any],
    card: Card,
    files: Mapping[str, bytes],
    cfg: Any = None,
) -> None:
    """Writes the page into the folder `out`, whole or not at all; one that an earlier export has written is replaced.

    files: of onnxruntime-web, by name. cfg: whose `style` names the paintings, which are shown small where they are
    still there. UserError for a folder that holds anything else.
    """
    ours = {"index.html", "worker.js", "model.onnx", "serve.py", "README.md", "ort"}
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - ours):
        raise UserError(f"{out} holds something else than a page: choose another --out, or empty it")
    contents = _run_by(network, params, card, files) | {
        "serve.py": (TEMPLATES / "serve.py").read_bytes(),
        "ort/LICENSE": runtime.LICENCE.encode(),
        "README.md": card.markdown(USE_FOLDER).encode(),
    }
    contents["index.html"] = _page(network, params, card, contents, cfg, inlined={}).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        made = Path(folder) / "page"
        for name, content in contents.items():
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if out.exists():
            out.rename(Path(folder) / "before")
        made.rename(out)


def write_file(
    out: Path,
    network: ImageTransform,
    params: Mapping[str, Any],
    card: Card,
    files: Mapping[str, bytes],
    cfg: Any = None,
) -> None:
    """Writes the page as one file, and its card beside it; arguments as for `write_folder`."""
    contents = _run_by(network, params, card, files)
    inlined = {name: base64.b64encode(gzip.compress(x, 6, mtime=0)).decode() for name, x in contents.items()}
    with atomic_path(out) as temporary:
        temporary.write_text(_page(network, params, card, contents, cfg, inlined), encoding="utf-8")


def _run_by(
    network: ImageTransform, params: Mapping[str, Any], card: Card, files: Mapping[str, bytes]
) -> dict[str, bytes]:
    """What the page paints with, by the names of its files."""
    return {f"ort/{name}": content for name, content in files.items()} | {
        "model.onnx": graph.build(network, params, card.metadata()).SerializeToString(),
        "worker.js": (TEMPLATES / "worker.js").read_bytes(),
    }


USE_FOLDER = """Put this folder on any server of files, or see it at once:

```sh
python serve.py
```

and open the address that it says. A page that is opened from the disk may not read the files beside it.

With two headers the page may use several threads: `Cross-Origin-Opener-Policy: same-origin` and
`Cross-Origin-Embedder-Policy: require-corp`. `serve.py` sends them. Without them it paints on one thread, or on the
graphics processor where the browser has WebGPU.

`model.onnx` is the network: inputs `image` (1, 3, height, width) in [-1, 1] and `style` (1, styles), weights that sum
to 1; output `painted`, as `image`. ONNX Runtime, in `ort/`, has a licence of its own, which lies there."""
USE_FILE = """Open the file in a browser, by a double click or from any server. Everything lies within it, and nothing
is fetched. It paints on one thread; the page as a folder, `ganstyle export RUN --format web --out page/`, can use
several, and WebGPU."""


def _page(
    network: ImageTransform,
    params: Mapping[str, Any],
    card: Card,
    contents: Mapping[str, bytes],
    cfg: Any,
    inlined: Mapping[str, str],
) -> str:
    def file(name: str) -> dict[str, Any]:
        return {"name": name, "bytes": len(contents[name])}

    pairs = {"wasm": tuple(runtime.WASM), "webgpu": tuple(runtime.WEBGPU)}
    runtimes = {
        provider: {"script": file(f"ort/{script}"), "wasm": file(f"ort/{wasm}")}
        for provider, (script, wasm) in pairs.items()
        if f"ort/{script}" in contents
    }
    told = {
        "styles": network.styles,
        "smallest": SMALLEST,
        "inlined": bool(inlined),
        "gpu": "webgpu" in runtimes,
        "runtimes": runtimes,
        "model": file("model.onnx"),
        "files": sorted(name for name in contents if name.endswith((".js", ".mjs", ".wasm", ".onnx"))),
        "check": _check(network, params),
    }
    own = "" if inlined else "'self' "
    policy = {
        "default-src": "'none'",
        "script-src": f"{own}'unsafe-inline' 'wasm-unsafe-eval' blob:",
        "worker-src": f"{own}blob:",
        "connect-src": own.strip() or "'none'",
        "img-src": f"{own}data: blob:",
        "media-src": "blob: mediastream:",
        "style-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return (
        environment()
        .get_template("painter.html")
        .render(
            card=card,
            styles=styles_of(network, card, cfg),
            example=_example(),
            policy="; ".join(f"{name} {value}" for name, value in policy.items()),
            told=told,
            inlined=inlined,
            licence=runtime.LICENCE if inlined else "",
            program=f"ganstyle_jax {__version__}",
            runtime=runtime.VERSION,
        )
    )


def _check(network: ImageTransform, params: Mapping[str, Any]) -> dict[str, Any]:
    """What the network paints of a pattern, all styles blended, at every so many numbers of three planes."""
    import jax

    h, w = CHECK_SIDES
    planes = ((np.arange(3 * h * w) * 37 % 256) / 127.5 - 1).astype(np.float32).reshape(1, 3, h, w)
    style = np.full((1, network.styles), 1 / network.styles, np.float32)
    painted = (
        np.asarray(jax.jit(network.apply)(params, planes.transpose(0, 2, 3, 1), style)).transpose(0, 3, 1, 2).ravel()
    )
    every = len(painted) // CHECK_VALUES
    return {"height": h, "width": w, "every": every, "painted": [round(float(x), 5) for x in painted[::every]]}


def styles_of(network: ImageTransform, card: Card, cfg: Any) -> list[dict[str, str]]:
    paths = getattr(cfg, "style", ())
    paths = paths if isinstance(paths, tuple) and len(paths) == network.styles else (None,) * network.styles
    names = card.styles if len(card.styles) == network.styles else [f"Style {i + 1}" for i in range(network.styles)]
    return [{"name": name, "uri": _thumbnail(path)} for name, path in zip(names, paths, strict=True)]


def _thumbnail(path: Any) -> str:
    """The middle of a painting, small, as a data URI; "" where it cannot be read, as on another machine."""
    if not isinstance(path, Path) or not path.is_file():
        return ""
    try:
        picture = pictures.read_picture(path)
    except UserError:
        return ""
    side = min(picture.shape[:2])
    top, left = ((n - side) // 2 for n in picture.shape[:2])
    square = Image.fromarray(np.uint8(np.clip(picture[top : top + side, left : left + side] * 127.5 + 128, 0, 255)))
    return reports.encode(np.asarray(square.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)), 6000, "no").uri


@functools.cache
def _example() -> str:
    """A photograph that may be passed on (Chelsea the cat, CC0), as a data URI."""
    import skimage.data

    return reports.encode(skimage.data.chelsea(), 40_000, "no").uri


@functools.cache
def environment() -> Any:
    """Jinja's, with the templates of this folder and, for their style sheet, those of reports."""
    import jinja2

    made = reports.environment().overlay(
        loader=jinja2.ChoiceLoader([jinja2.FileSystemLoader(TEMPLATES), reports.environment().loader])
    )
    return made
