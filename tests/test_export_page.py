"""The page that paints, in a real browser: the same numbers as JAX, by hand and by keyboard, and what it says.

Chromium is the system's, as `apt-get install chromium` brings it; onnxruntime-web is what npm brings. Where one of them
is not to be had, the tests are skipped.
"""

import base64
import functools
import http.server
import io
import shutil
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image
from test_export import model_file, weights_of

from ganstyle_jax import cli, contract
from ganstyle_jax.export import runtime
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import models

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'ganstyle_jax[test]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.usefixtures("home", "quick_compile")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# A camera that needs no permission; the sandbox is not to be had as root.
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
PATIENCE = 300  # seconds, on a machine that does much else


@pytest.fixture(scope="module")
def driver():
    with playwright.sync_playwright() as driver:
        yield driver


def launched(driver, *flags):
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    return driver.chromium.launch(executable_path=path, args=[*FLAGS, *flags], timeout=1000 * PATIENCE)


def new_page(browser):
    page = browser.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    return page


@pytest.fixture(scope="module")
def browser(driver):
    browser = launched(driver)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def package(home, tmp_path_factory):
    """The .tgz of onnxruntime-web."""
    try:
        runtime.files(None, fetch=True, webgpu=True)
    except UserError as error:
        pytest.skip(f"no onnxruntime-web: {error}")
    return home / f"{runtime.PACKAGE}-{runtime.VERSION}.tgz"


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    return model_file(tmp_path_factory.mktemp("models") / "sea.safetensors")


@pytest.fixture(scope="module")
def folder(painter, package, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "page"
    cli.main(["export", str(painter), "--format=web", "--out", str(out), "--runtime", str(package), "--title=<b>Seas"])
    return out


@pytest.fixture(scope="module")
def server(folder):
    """The address of the page as its own serve.py gives it."""
    with subprocess.Popen([sys.executable, folder / "serve.py", "0"], stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.fixture
def page(browser):
    page = new_page(browser)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    yield page
    page.close()
    assert page.faults == []


def wait(page, condition):
    """Until an expression of JavaScript holds; the page's policy lets Playwright's own way not evaluate any."""
    end = time.monotonic() + PATIENCE
    while not page.evaluate(f"() => Boolean({condition})"):
        assert time.monotonic() < end, f"{condition} does not come; the page says {told(page)}"
        time.sleep(0.05)


def told(page):
    return page.evaluate("() => [document.getElementById('status').textContent, the('problem').textContent]")


def problem(page):
    wait(page, "!the('problem').hidden")
    return page.inner_text("#problem")


def opened(page, address):
    page.goto(address)
    wait(page, "document.body.dataset.engine || !the('problem').hidden")
    assert page.evaluate("() => the('problem').textContent") == ""
    assert float(page.evaluate("() => document.body.dataset.deviation")) < 1e-3
    return page.evaluate("() => document.body.dataset.engine")


def png(height, width, seed=0):
    """(pixels (h, w, 3) uint8, the file)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return pixels, {"name": "noise.png", "mimeType": "image/png", "buffer": file.getvalue()}


def array(page, expression, dtype):
    """A typed array of the page's."""
    text = page.evaluate(
        f"""() => {{
            const array = {expression}, bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
            let text = "";
            for (let i = 0; i < bytes.length; i += 1 << 14)
                text += String.fromCharCode(...bytes.subarray(i, i + (1 << 14)));
            return btoa(text);
        }}"""
    )
    return np.frombuffer(base64.b64decode(text), dtype)


def shown(page, canvas):
    """(h, w, 3) uint8 of a canvas."""
    width, height = page.evaluate(f"() => [the('{canvas}').width, the('{canvas}').height]")
    pixels = array(page, f"the('{canvas}').getContext('2d').getImageData(0, 0, {width}, {height}).data", np.uint8)
    return pixels.reshape(height, width, 4)[..., :3]


def painted(page, do):
    """What the page paints next: its own numbers, and the canvas, (h, w, 3) float32 and uint8."""
    before = page.evaluate("() => lastPainted ? lastPainted.id : 0")
    do()
    wait(page, f"lastPainted && lastPainted.id > {before} && !state.sent && !state.again")
    height, width = page.evaluate("() => [lastPainted.height, lastPainted.width]")
    values = array(page, "lastPainted.values", np.float32).reshape(3, height, width).transpose(1, 2, 0)
    return values, shown(page, "after")


def by_jax(painter, pixels, style):
    model = models.read(painter)
    network = model.method.module.network(model.cfg)
    images = pixels[None].astype(np.float32) / 127.5 - 1
    return np.asarray(jax.jit(network.apply)(model.variables["params"], images, np.float32([style])))[0]


def assert_paints_as_jax(page, painter, height, width):
    pixels, file = png(height, width)
    values, canvas = painted(page, lambda: page.set_input_files("#file", file))
    assert values.shape == pixels.shape == canvas.shape
    expected = by_jax(painter, pixels, (1, 0, 0))
    assert expected.std() > 0.1
    np.testing.assert_allclose(values, expected, atol=1e-3)
    np.testing.assert_allclose(canvas, (values + 1) * 127.5, atol=0.51)


def test_the_page_paints_as_jax_does(page, server, painter):
    """Sides that are multiples of 4 and others; one style and a blend of two; on two threads of two cores."""
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    engine = opened(page, server)
    assert engine.startswith("wasm ") and page.evaluate("() => crossOriginIsolated")
    assert page.evaluate("() => navigator.hardwareConcurrency") == 1 or engine != "wasm 1"
    assert_paints_as_jax(page, painter, 40, 56)
    assert_paints_as_jax(page, painter, 45, 67)
    pixels, _ = png(45, 67)
    page.focus("#style2")
    values, _ = painted(page, lambda: page.keyboard.press("End"))
    np.testing.assert_allclose(values, by_jax(painter, pixels, (0.5, 0, 0.5)), atol=1e-3)
    assert page.locator("output").all_inner_texts() == ["50 %", "0 %", "50 %"]
    page.focus("[data-style='1']")
    values, _ = painted(page, lambda: page.keyboard.press("Enter"))
    np.testing.assert_allclose(values, by_jax(painter, pixels, (0, 1, 0)), atol=1e-3)
    assert page.get_attribute("[data-style='1']", "aria-pressed") == "true"
    assert {url for url in asked if not url.startswith((server, "data:", "blob:"))} == set()


@pytest.mark.slow
@pytest.mark.parametrize("height, width", [(256, 256), (512, 512), (301, 418)])
def test_large_pictures_are_painted_as_jax_does(page, server, painter, height, width):
    opened(page, server)
    assert_paints_as_jax(page, painter, height, width)


def test_one_file_opens_from_the_disk(page, painter, package, tmp_path):
    out = tmp_path / "page.html"
    cli.main(["export", str(painter), "--format=web", "--out", str(out), "--runtime", str(package)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "page.html.md"]
    assert opened(page, out.as_uri()) == "wasm 1"
    assert_paints_as_jax(page, painter, 45, 67)


def test_before_and_after_size_and_download(page, server):
    opened(page, server)
    assert page.locator("h1").inner_text() == "<b>Seas" and page.is_disabled("#download")
    pixels, file = png(60, 600)
    painted(page, lambda: page.set_input_files("#file", file))
    assert page.evaluate("() => [lastPainted.width, lastPainted.height]") == [512, 51]
    painted(page, lambda: page.select_option("#size", "1024"))
    np.testing.assert_array_equal(shown(page, "before"), pixels)
    page.focus("#split")
    page.keyboard.press("Home")
    assert page.evaluate("() => the('frame').style.getPropertyValue('--split')") == "0%"
    box = page.locator("#frame").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 9)
    page.mouse.up()
    assert page.input_value("#split") == "50"
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "noise-painted.png"
    assert Image.open(download.value.path()).size == (600, 60)


def test_pictures_that_cannot_be_painted(page, server):
    opened(page, server)
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    assert problem(page).startswith("notes.txt is no picture that this browser can read: JPEG, PNG,")
    page.set_input_files("#file", png(10, 40)[1])
    wait(page, "the('problem').textContent.startsWith('Nothing')")
    assert "at least 16 pixels on each side, and this one has 40 \u00d7 10" in problem(page)
    painted(page, lambda: page.set_input_files("#file", png(20, 40)[1]))
    assert page.is_hidden("#problem")


def test_the_camera(page, server):
    opened(page, server)
    page.click("#camera")
    wait(page, "the('status').textContent.startsWith('Camera')")
    assert page.evaluate("() => Math.max(the('after').width, the('after').height)") == 256
    painted(page, lambda: page.click("#camera"))  # its last picture is painted once more, and kept
    assert page.evaluate("() => state.stream") is None and page.inner_text("#camera") == "Camera"


def test_nothing_can_be_sent_from_the_page(page, server):
    opened(page, server)
    other = "http://localhost:9/" if "127.0.0.1" in server else "http://127.0.0.1:9/"
    send = f"() => fetch('{other}', {{method: 'POST', mode: 'no-cors', body: 'x'}}).then(() => '', e => violated)"
    page.evaluate(
        "() => { window.violated = '';"
        " addEventListener('securitypolicyviolation', event => { violated = event.effectiveDirective; }); }"
    )
    page.evaluate(send)
    wait(page, "violated")
    assert page.evaluate("() => violated") == "connect-src"


@pytest.mark.parametrize("name", ["model.onnx", "worker.js", "ort/ort-wasm-simd-threaded.wasm"])
def test_a_page_without_its_files_says_which(browser, folder, tmp_path, name):
    """Also one whose file is cut off; by a server that sends no headers of its own."""
    shutil.copytree(folder, tmp_path / "page")
    (tmp_path / "page" / name).unlink()
    with served(tmp_path / "page") as address:
        page = new_page(browser)
        page.goto(address)
        said = problem(page)
        assert f"{name} is missing" in said and "copy the whole folder" in said and "ort.wasm.bundle.min.mjs" in said
        if name == "model.onnx":
            (tmp_path / "page" / name).write_bytes((folder / name).read_bytes()[:-100])
            page.goto(address)
            assert "model.onnx is of another export or cut off: it has " in problem(page)
        page.close()


def test_a_server_without_headers_gives_one_thread_and_the_page_says_so(page, folder):
    with served(folder) as address:
        assert opened(page, address) == "wasm 1"
        assert "python serve.py in the page's folder does" in page.text_content("#engine")


def test_a_folder_opened_from_the_disk_says_what_to_do(page, folder):
    page.goto((folder / "index.html").as_uri())
    assert "Run python serve.py in its folder" in problem(page)


@pytest.mark.slow
def test_the_graphics_processor_paints_the_same(driver, server):
    """One that is imitated in software: the page itself compares a pattern, of 38 x 32, before it is ready."""
    browser = launched(driver, "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
    page = new_page(browser)
    page.goto(server)
    if not page.evaluate("async () => Boolean(navigator.gpu && await navigator.gpu.requestAdapter())"):
        browser.close()
        pytest.skip("this Chromium imitates no graphics processor")
    assert opened(page, server) == "webgpu"
    browser.close()


class served:  # noqa: N801  (read as a word: with served(folder) as address)
    """A folder by Python's plain server of files, without a word."""

    def __init__(self, folder):
        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def test_what_the_folder_holds(folder, painter, package, capsys):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {"index.html", "worker.js", "model.onnx", "serve.py", "README.md", "ort/LICENSE"}
    assert names == expected | {f"ort/{name}" for name in runtime.WASM | runtime.WEBGPU}
    assert "python serve.py" in (folder / "README.md").read_text()
    assert "://" not in (folder / "index.html").read_text().replace("http://www.w3.org", "")  # nothing from elsewhere
    # Exported again, smaller: what an earlier export left is replaced, and nothing else ever is.
    again = ["export", str(painter), "--format=web", "--runtime", str(package), "--no-webgpu", "--out"]
    small = folder.parent / "small"
    for _ in range(2):
        cli.main([*again, str(small)])
    assert not list(small.rglob("*webgpu*")) and sorted(path.name for path in folder.parent.iterdir()) == [
        "page",
        "small",
    ]
    (small / "thesis.txt").write_text("mine")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main([*again, str(small)])
    assert "holds something else than a page" in capsys.readouterr().err and (small / "thesis.txt").exists()


def test_thumbnails_of_paintings_that_are_here(tmp_path):
    from ganstyle_jax.export import card, web

    Image.fromarray(png(40, 60)[0]).save(tmp_path / "dots.png")
    method = contract.find("fast-style")
    cfg = method.config(style=(tmp_path / "dots.png", tmp_path / "gone.png"), width=4, blocks=0)
    network = method.module.network(cfg)
    model = models.Model(method, cfg, {"params": weights_of(network)}, tmp_path, "step 1")
    styles = web.styles_of(network, card.of(model, ""), cfg)
    assert [style["name"] for style in styles] == ["Dots", "Gone"]
    assert styles[0]["uri"].startswith("data:image/webp;base64,") and styles[1]["uri"] == ""
