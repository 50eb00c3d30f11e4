"""`ganstyle export`: a trained network for programs other than this one."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ganstyle_jax.commands import flags
from ganstyle_jax.io.files import UserError, atomic_path

SUFFIXES = {"safetensors": ".safetensors", "stablehlo": ".stablehlo", "onnx": ".onnx"}


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a trained run, or a model, for other programs, with a card that says what it is.

    safetensors: the weights, from which `ganstyle apply` paints. stablehlo: the compiled network, for JAX and XLA.
    onnx: for ONNX Runtime and others, pictures of any size. web: a page that paints in the browser, a folder or, where
    --out ends in .html, one file that opens by a double click. Needs `pip install 'ganstyle_jax[export]'`.
    """

    run: tyro.conf.Positional[Path]  # run folder, model file, or the name of a model that ships
    format: Literal["safetensors", "stablehlo", "onnx", "web"]  # what to write
    # file to write, or a page's folder; by default named after the run
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    step: int | Literal["best"] | None = None  # of the checkpoint, or the best; by default the newest
    title: str = ""  # of the card and the page; by default the run's name
    license: str = ""  # of the weights, for the card; nothing is said of it unless you do
    half: bool = False  # safetensors: weights in 16 bits, half as large; pictures differ by about 0.002
    runtime: Path | None = None  # web: onnxruntime-web, the .tgz of `npm pack` or a folder that holds it
    fetch: bool = False  # web: let npm bring onnxruntime-web, once
    webgpu: bool = True  # web: with what graphics processors need, 26 MB more; never in one file


def run(command: Export) -> None:
    out = command.out or Path(command.run.resolve().stem + SUFFIXES.get(command.format, "-page"))
    if command.half and command.format != "safetensors":
        raise UserError(f"--half belongs to --format safetensors, got --format {command.format}")
    if (command.runtime or command.fetch) and command.format != "web":
        raise UserError(f"--runtime and --fetch belong to --format web, got --format {command.format}")
    one_file = command.format == "web" and out.suffix.lower() in (".html", ".htm")
    if command.format != "web" and out.suffix.lower() != SUFFIXES[command.format]:
        raise UserError(f"--out must end in {SUFFIXES[command.format]} for --format {command.format}, got {out}")
    if (out.is_dir() and (one_file or command.format != "web")) or (
        out.is_file() and not one_file and command.format == "web"
    ):
        raise UserError(f"--out is a {'folder' if out.is_dir() else 'file'} already, got {out}: choose another one")
    if command.format == "web":
        from ganstyle_jax.export import runtime

        files = runtime.files(command.runtime, command.fetch, webgpu=command.webgpu and not one_file)
    if command.format in ("onnx", "web"):
        from ganstyle_jax.export import graph

        graph.package()  # missing, it is to be heard of before anything is loaded
    flags.use_cache()
    from ganstyle_jax.export import card as cards
    from ganstyle_jax.loop import models

    model = models.load(command.run, command.step)
    card = cards.of(model, _data_of(model), command.title, command.license)
    if command.format == "safetensors":
        try:
            models.write(
                out, model.method, model.cfg, model.variables, "float16" if command.half else "float32", card.metadata()
            )
        except ValueError as error:
            raise UserError(f"{model.origin} cannot become a model file: {error}") from error
        use = f"```sh\nganstyle apply {out.name} photo.jpg -o painted.png\n```"
    elif command.format == "stablehlo":
        use = _write_program(out, model)
    else:
        network, params = _network_of(model, command.format)
        if command.format == "onnx":
            made = graph.build(network, params, card.metadata())
            with atomic_path(out) as path:
                path.write_bytes(made.SerializeToString())
            use = USE_ONNX.format(file=out.name, styles=network.styles)
        else:
            from ganstyle_jax.export import web

            write, use = (web.write_file, web.USE_FILE) if one_file else (web.write_folder, "")
            write(out, network, params, card, files, model.cfg)
    if use:
        with atomic_path(out.with_name(f"{out.name}.md")) as path:
            path.write_text(card.markdown(use), encoding="utf-8")
    size = sum(path.stat().st_size for path in ([out] if out.is_file() else out.rglob("*")) if path.is_file())
    place = out.with_name(f"{out.name}.md") if use else out / "README.md"
    see = f"; `python {out / 'serve.py'}` shows it" if command.format == "web" and not one_file else ""
    print(f"{model.title} of {model.origin} is in {out} ({size / 1e6:.1f} MB), its card in {place}{see}")


def _data_of(model: Any) -> Any:
    from ganstyle_jax.loop import folder

    return folder.read(model.origin)["data"] if model.origin.is_dir() else ""


def _network_of(model: Any, wanted: str) -> tuple[Any, Any]:
    """The ImageTransform of a model, and its weights in float32; UserError for a method that has none."""
    import jax
    import numpy as np

    from ganstyle_jax.nn.image_transform import ImageTransform

    module = model.method.module
    network = module.network(model.cfg) if model.method.has("network") else None
    if not isinstance(network, ImageTransform):
        raise UserError(
            f"--format {wanted} is for networks that paint pictures in one pass, and {model.method.name} has none: "
            "--format stablehlo and safetensors take every method that is trained"
        )
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), model.variables["params"])
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(params)):
        raise UserError(f"{model.origin} holds weights that are NaN or infinite: choose another --step")
    return network, params


def _write_program(out: Path, model: Any) -> str:
    """Writes StableHLO; returns how it is used."""
    import jax

    from ganstyle_jax import contract
    from ganstyle_jax.export import program

    if model.method.has("network"):
        network, params = _network_of(model, "stablehlo")
        made = program.of_network(network, params)
        call = "painted = program.call(images, style)  # (b, h, w, 3) in [-1, 1], sides from 32; (b, {}) that sum to 1"
        call = call.format(network.styles)
    else:
        method, cfg = model.method, model.cfg
        with model.precision():
            examples = contract.imagined(method.sources(cfg))
            requests = jax.tree.map(jax.numpy.asarray, method.requests(jax.random.key(0), 2, cfg, examples))
        made = program.of_requests(model, requests)
        shapes = jax.tree.map(lambda x: f"(b, {', '.join(map(str, x.shape[1:]))}) {x.dtype}", requests)
        call = f"pictures = program.call(requests)  # requests: {shapes}"
    with atomic_path(out) as path:
        path.write_bytes(made)
    return (
        f'```python\nimport jax, pathlib\n\nprogram = jax.export.deserialize(bytearray(pathlib.Path("{out.name}")'
        f".read_bytes()))\n{call}\n```"
    )


USE_ONNX = """```python
import numpy as np, onnxruntime

network = onnxruntime.InferenceSession("{file}")
image = np.zeros((1, 3, 480, 640), np.float32)  # red, green, blue in [-1, 1]; sides from 16 pixels up
style = np.eye(1, {styles}, dtype=np.float32)  # a weight for each style, which sum to 1
(painted,) = network.run(None, {{"image": image, "style": style}})  # as image
```"""
