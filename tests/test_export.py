"""Networks for other programs: the same pictures by ONNX Runtime and by StableHLO, cards, and what is refused."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from ganstyle_jax import cli, contract
from ganstyle_jax.export import card as cards
from ganstyle_jax.export import graph, program, runtime
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import models
from ganstyle_jax.nn.image_transform import ImageTransform

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'ganstyle_jax[test]'")
pytestmark = pytest.mark.usefixtures("home", "quick_compile")


def weights_of(network, seed=0):
    """Random ones, scales and shifts of each style its own."""
    rng = np.random.default_rng(seed)

    def drawn(path, x):
        size = {"kernel": np.prod(x.shape[:-1]) ** -0.5, "scale": 0.2}.get(path[-1].key, 0.1)
        return (size * rng.normal(size=x.shape) + (path[-1].key == "scale")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(drawn, jax.eval_shape(network.init, jax.random.key(0)))


def asked(network, shape, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, (*shape, 3)).astype(np.float32)
    return images, rng.dirichlet(np.ones(network.styles), shape[0]).astype(np.float32)


def model_file(path, **settings):
    """A model of fast-style with random weights, as a run of it would give."""
    styles = tuple(Path(f"/somewhere/{name}") for name in ("the_great_wave.jpg", "red-tree.png", "sea.png"))
    cfg = contract.config_from_json(
        contract.find("fast-style").config, {"width": 4, "blocks": 1, "style": list(map(str, styles))} | settings
    )
    method = contract.find("fast-style")
    models.write(path, method, cfg, {"params": weights_of(method.module.network(cfg))}, metadata={"steps": "step 7"})
    return path


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    return model_file(tmp_path_factory.mktemp("models") / "sea.safetensors")


def ganstyle(*args):
    cli.main([str(arg) for arg in args])


def refusal(capsys, *args):
    """The one sentence with which a command ends."""
    with pytest.raises(SystemExit) as ended:
        ganstyle(*args)
    assert ended.value.code == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and said.startswith("ganstyle: error: ")
    return said.removeprefix("ganstyle: error: ")


# ---------------------------------------------------------------------------------------------------------------------
# The same pictures


@pytest.mark.parametrize("upsampling, output, blocks", [("nearest", "tanh", 2), ("transposed", "clip", 1)])
def test_onnx_runtime_paints_as_jax_does(upsampling, output, blocks):
    """Pictures of four sizes by one file: a multiple of 4, the smallest, and two that are padded; blends of styles."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'ganstyle_jax[test]'")
    network = ImageTransform(4, blocks, styles=3, upsampling=upsampling, output=output)
    params = weights_of(network)
    session = ort.InferenceSession(graph.build(network, params, {}).SerializeToString())
    paint = jax.jit(network.apply)
    for seed, shape in enumerate(((1, 32, 48), (1, 16, 16), (1, 17, 30), (1, 43, 25))):
        images, style = asked(network, shape, seed)
        style = np.eye(1, 3, 2, dtype=np.float32) if seed == 1 else style
        (painted,) = session.run(None, {"image": images.transpose(0, 3, 1, 2), "style": style})
        expected = np.asarray(paint(params, images, style))
        assert painted.dtype == np.float32 and expected.std() > 0.3
        np.testing.assert_allclose(painted.transpose(0, 2, 3, 1), expected, atol=1e-4)


def test_onnx_has_no_more_outputs_than_webgpu_takes_and_pads_by_nodes_alone():
    """Also of a network with so many layers that their numbers are split in three steps."""
    network = ImageTransform(1, 13, styles=2)
    made = graph.build(network, weights_of(network), {})
    assert max(len(node.output) for node in made.graph.node) <= graph.MOST_OUTPUTS
    normalised = [node for node in made.graph.node if node.op_type == "InstanceNormalization"]
    assert len(normalised) == 5 + 2 * 13 and len({name for node in normalised for name in node.input[1:]}) == 62
    convolutions = [node for node in made.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 32
    assert not any(attribute.name in ("pads", "auto_pad") for node in convolutions for attribute in node.attribute)
    assert made.opset_import[0].version == graph.OPSET


@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
def test_stablehlo_round_trip(upsampling):
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed: pip install 'ganstyle_jax[test]'")
    network = ImageTransform(4, 1, styles=2, upsampling=upsampling)
    params = weights_of(network)
    loaded = jax.export.deserialize(bytearray(program.of_network(network, params)))
    assert set(loaded.platforms) == {"cpu", "cuda", "rocm", "tpu"}
    paint = jax.jit(network.apply)
    for shape in ((1, 32, 48), (2, 37, 50)):
        images, style = asked(network, shape)
        np.testing.assert_allclose(loaded.call(images, style), paint(params, images, style), atol=1e-5)


def test_stablehlo_of_a_method_that_is_asked_otherwise(tmp_path):
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed: pip install 'ganstyle_jax[test]'")
    method = contract.find("dcgan")
    cfg = method.config(image_size=16, width=4, latent_dim=8, batch_norm="running")
    variables = method.generator(method.init(jax.random.key(0), cfg), cfg)
    model = models.Model(method, cfg, variables, tmp_path, "step 1")
    loaded = jax.export.deserialize(bytearray(program.of_requests(model, jnp.zeros((2, 8)))))
    latents = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    np.testing.assert_allclose(loaded.call(latents), method.sample(variables, latents, cfg), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# The command, and what it says of the files


def test_every_format_has_its_card(painter, tmp_path, capsys):
    for kind in ("onnx", "safetensors", "stablehlo"):
        if kind == "stablehlo":
            pytest.importorskip("flatbuffers")
        out = tmp_path / f"made.{kind}"
        ganstyle("export", painter, "--format", kind, "-o", out, "--title", "Three | seas", "--license", "CC0-1.0")
        assert str(out) in capsys.readouterr().out
        card = (tmp_path / f"made.{kind}.md").read_text()
        assert card.startswith("# Three \\| seas\n") and "| Licence of the weights | CC0-1.0 |" in card
        assert "| Styles | The great wave, Red tree, Sea |" in card and "| Trained for | step 7 |" in card
        assert out.name in card and "/somewhere" not in card and '"width": 4' in card
    said = {prop.key: prop.value for prop in onnx.load(tmp_path / "made.onnx").metadata_props}
    with safe_open(tmp_path / "made.safetensors", "numpy") as file:
        metadata = file.metadata()
    for one in (said, metadata):
        assert one["license"] == "CC0-1.0" and one["steps"] == "step 7" and json.loads(one["config"])["width"] == 4
        assert json.loads(one["styles"]) == ["The great wave", "Red tree", "Sea"] and one["method"] == "fast-style"
        assert one["program"].startswith("ganstyle_jax ")
    again = models.read(tmp_path / "made.safetensors")
    np.testing.assert_array_equal(
        again.variables["params"]["down1"]["kernel"], models.read(painter).variables["params"]["down1"]["kernel"]
    )
    ganstyle("export", tmp_path / "made.safetensors", "--format=onnx", "-o", tmp_path / "more.onnx")  # keeps its card
    assert all(words in (tmp_path / "more.onnx.md").read_text() for words in ("CC0-1.0", "Three"))


def test_python_in_cards_runs(painter, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    ganstyle("export", painter, "--format", "onnx")
    (code,) = (tmp_path / "sea.onnx.md").read_text().split("```python\n")[1:]
    names: dict = {}
    exec(code.split("```")[0].replace("480, 640", "16, 20"), names)
    assert names["painted"].shape == (1, 3, 16, 20)
    assert "not stated. Ask whoever trained it" in (tmp_path / "sea.onnx.md").read_text()


def test_half_is_half_as_large(painter, tmp_path):
    ganstyle("export", painter, "--format=safetensors", "--half", "-o", tmp_path / "half.safetensors")
    ganstyle("export", painter, "--format=safetensors", "-o", tmp_path / "whole.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]
    kernel = models.read(tmp_path / "half.safetensors").variables["params"]["down1"]["kernel"]
    assert kernel.dtype == np.float32


@pytest.mark.slow
def test_a_run_is_exported_with_what_it_was_trained_on(pictures, tmp_path, capsys):
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(tmp_path / "dots.png")
    run = tmp_path / "run"
    tiny = ["--image-size=32", "--width=2", "--blocks=1", "--batch-size=2", "--steps=1", "--devices=1"]
    ganstyle("train", "fast-style", "--style", tmp_path / "dots.png", "--data", pictures, f"--run-dir={run}", *tiny)
    for kind in ("onnx", "stablehlo", "safetensors"):
        ganstyle("export", run, "--format", kind, "-o", tmp_path / f"dots.{kind}")
    card = (tmp_path / "dots.onnx.md").read_text()
    assert "| Data | content: pictures.npz |" in card or "| Data | pictures.npz |" in card
    assert "| Trained for | step 1 |" in card and "| Styles | Dots |" in card and str(tmp_path) not in card


def test_what_is_refused(painter, tmp_path, capsys):
    export = ["export", painter, "--format"]
    said = refusal(capsys, *export, "onnx", "-o", tmp_path / "a.pth")
    assert said == f"--out must end in .onnx for --format onnx, got {tmp_path / 'a.pth'}."
    assert "--half belongs to --format safetensors" in refusal(capsys, *export, "onnx", "--half")
    assert "belong to --format web" in refusal(capsys, *export, "onnx", "--fetch")
    (tmp_path / "a.onnx").mkdir()
    assert "--out is a folder already" in refusal(capsys, *export, "onnx", "-o", tmp_path / "a.onnx")
    assert "no run folder or model" in refusal(capsys, "export", tmp_path / "none", "--format=onnx")
    assert not list(tmp_path.glob("*.md"))


def test_a_method_without_a_network_that_paints(tmp_path, capsys):
    method = contract.find("dcgan")
    cfg = method.config(image_size=16, width=4, latent_dim=8, batch_norm="running")
    variables = method.generator(method.init(jax.random.key(0), cfg), cfg)
    models.write(tmp_path / "faces.safetensors", method, cfg, jax.tree.map(np.asarray, variables))
    said = refusal(capsys, "export", tmp_path / "faces.safetensors", "--format=onnx", "-o", tmp_path / "faces.onnx")
    assert said.startswith("--format onnx is for networks that paint pictures in one pass, and dcgan has none")


def test_weights_that_are_no_numbers(tmp_path, monkeypatch, capsys, painter):
    model = models.read(painter)
    model.variables["params"]["out"]["bias"][0] = np.nan
    monkeypatch.setattr(models, "load", lambda *_: model)
    said = refusal(capsys, "export", painter, "--format=onnx", "-o", tmp_path / "a.onnx")
    assert "holds weights that are NaN or infinite" in said and not (tmp_path / "a.onnx").exists()


def test_a_model_of_another_version(painter, tmp_path, capsys):
    from safetensors.numpy import save_file

    with safe_open(painter, "numpy") as file:
        arrays, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(arrays, tmp_path / "later.safetensors", metadata | {"version": "9"})
    said = refusal(capsys, "export", tmp_path / "later.safetensors", "--format=onnx", "-o", tmp_path / "a.onnx")
    assert "as a model of version '9', and version 1 is read here" in said


@pytest.mark.parametrize("name, kind", [("onnx", "onnx"), ("flatbuffers", "stablehlo")])
def test_packages_that_are_missing(painter, tmp_path, monkeypatch, capsys, name, kind):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    said = refusal(capsys, "export", painter, "--format", kind, "-o", tmp_path / f"a.{kind}")
    assert f"the package {name}, which is not installed: pip install 'ganstyle_jax[export]'" in said


def test_cards_of_what_is_not_known(tmp_path):
    method = contract.find("dcgan")
    card = cards.of(models.Model(method, method.config(), {}, tmp_path / "faces", "faces"), "")
    assert (card.title, card.steps, card.data, card.styles, card.licence) == ("faces", "unknown", "unknown", (), "")
    assert card.metadata()["license"] == "unknown" and "not stated" in card.markdown("use")
    assert cards.of(
        models.Model(method, method.config(), {}, tmp_path, ""), {"a": "/x/photos", "b": "tfds://y"}
    ).data == ("a: photos, b: tfds://y")


# ---------------------------------------------------------------------------------------------------------------------
# onnxruntime-web


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of small files in the place of the real one, as a .tgz; returns its path and contents."""
    import hashlib

    contents = {name: f"content of {name}".encode() for name in (*runtime.WASM, *runtime.WEBGPU)}
    for table in (runtime.WASM, runtime.WEBGPU):
        for name in table:
            monkeypatch.setitem(table, name, (len(contents[name]), hashlib.sha256(contents[name]).hexdigest()))
    monkeypatch.setenv("GANSTYLE_HOME", str(tmp_path / "home"))
    return packed(tmp_path / "package.tgz", contents), contents


def packed(path, contents):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_the_runtime_out_of_an_archive_or_a_folder(package, tmp_path):
    path, contents = package
    assert runtime.files(path, fetch=False, webgpu=True) == contents
    assert set(runtime.files(path, fetch=False, webgpu=False)) == set(runtime.WASM)
    folder = tmp_path / "node_modules" / runtime.PACKAGE / "dist"
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for place in (tmp_path, tmp_path / "node_modules", folder.parent, folder):
        assert runtime.files(place, fetch=False, webgpu=True) == contents
    (folder / "ort-wasm-simd-threaded.wasm").unlink()
    with pytest.raises(UserError, match=r"lacks ort-wasm-simd-threaded\.wasm of onnxruntime-web@"):
        runtime.files(tmp_path, fetch=False, webgpu=False)


def test_another_version_of_the_runtime_is_refused(package, tmp_path):
    path, contents = package
    name = next(iter(runtime.WASM))
    packed(path, contents | {name: contents[name][::-1]})
    with pytest.raises(UserError, match=f"{name} in .* is not that of onnxruntime-web@"):
        runtime.files(path, fetch=False, webgpu=False)
    packed(path, contents | {name: contents[name] + b"more"})
    with pytest.raises(UserError, match="lacks"):
        runtime.files(path, fetch=False, webgpu=False)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="is cut off or damaged"):
        runtime.files(path, fetch=False, webgpu=False)
    with pytest.raises(UserError, match=r"there is no .*nothing"):
        runtime.files(tmp_path / "nothing", fetch=False, webgpu=False)


def test_npm_brings_it_once_and_only_when_it_may(package, tmp_path, monkeypatch):
    _, contents = package
    asked = []

    def npm(command, **options):
        asked.append((command, options))
        packed(Path(command[command.index("--pack-destination") + 1]) / "onnxruntime-web.tgz", contents)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(runtime.subprocess, "run", npm)
    monkeypatch.setattr(runtime.shutil, "which", lambda name: f"/bin/{name}")
    with pytest.raises(UserError, match="give --fetch, by which npm brings it once, or run `npm pack onnxruntime-web@"):
        runtime.files(None, fetch=False, webgpu=False)
    assert not asked
    for fetch in (True, True, False):
        assert runtime.files(None, fetch, webgpu=True) == contents
    ((command, options),) = asked
    assert command[:3] == ["/bin/npm", "pack", runtime.SPEC] and "--ignore-scripts" in command
    assert options["stdin"] == subprocess.DEVNULL and not any("//" in word for word in command)


@pytest.mark.parametrize(
    "said, expected",
    [
        ("npm error code ENOTFOUND\nnpm error request failed", "it does not reach the registry or mirror"),
        ("npm error code E404", "where it looks there is no such package or version"),
        ("npm warn x\nnpm error code EWHY", "it says: npm error code EWHY"),
        ("", "it says: nothing"),
    ],
)
def test_what_npm_says(package, monkeypatch, said, expected):
    monkeypatch.setattr(runtime.shutil, "which", lambda name: f"/bin/{name}")
    failed = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(runtime.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=f"npm has not brought {runtime.SPEC}: {expected}"):
        runtime.files(None, fetch=True, webgpu=False)
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="--fetch needs npm, which is not installed"):
        runtime.files(None, fetch=True, webgpu=False)
