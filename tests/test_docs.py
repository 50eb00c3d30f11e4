"""What README.md and the guides in docs/ say can be done: their commands, links, pictures, code and names."""

import ast
import dataclasses
import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import pytest
import yaml

from ganstyle_jax import builtin, cli, contract

ROOT = Path(__file__).resolve().parent.parent
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
every_guide = pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.S | re.M)
FLAG = re.compile(r"--[a-z0-9][a-z0-9-]*")


def blocks(guide, language):
    return [text for kind, text in BLOCK.findall(guide.read_text()) if kind == language]


def prose(guide):
    return BLOCK.sub("", guide.read_text())


def commands(guide):
    """The words of each ganstyle command in a guide's shell blocks and `code`."""
    texts = [text.replace("\\\n", " ") for text in blocks(guide, "sh")]
    texts += [span for span in re.findall(r"`([^`\n]+)`", prose(guide)) if span.startswith("ganstyle ")]
    found = []
    for line in "\n".join(texts).splitlines():
        for part in re.split("[;&|]+", " ".join(shlex.split(line, comments=True))):
            words = part.split()
            starts = [i for i, word in enumerate(words) if Path(word).name == "ganstyle"]
            if starts and all(word == "srun" or "=" in word for word in words[: starts[0]]):
                found.append(words[starts[0] + 1 :])
    return found


NAMES = {annotated.__metadata__[0].name for annotated in get_args(cli.Command)}


@pytest.fixture(scope="module")
def method_file(tmp_path_factory):
    """The complete method of the guide on extending, in a file of its own."""
    (text,) = [text for text in blocks(ROOT / "docs" / "extend.md", "python") if "class Config" in text]
    path = tmp_path_factory.mktemp("method") / "my_gan.py"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def flags_of(method_file):
    """words -> the flags of that command, from its own help."""
    known = {}

    def flags(words, capsys, monkeypatch):
        command = words[:1]
        if words[0] in ("train", "plan"):
            command = [words[0], str(method_file) if words[1] == "./my_gan.py" else words[1]]
        if tuple(command) not in known:
            monkeypatch.setenv("COLUMNS", "200")
            monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # which `plan` sets, and is to be as before afterwards
            monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")  # the same
            monkeypatch.chdir(ROOT)
            with pytest.raises(SystemExit) as ended:
                cli.main([*command, "--help"])
            known[tuple(command)] = set(FLAG.findall(capsys.readouterr().out))
            assert not ended.value.code, f"ganstyle {' '.join(command)} --help fails"
            if words[0] == "apply":  # whose flags are the model's too, which a guide need not have
                settings = [getattr(contract.find(name).module, "ApplySettings", None) for name in builtin.TRAINED]
                fields = [field.name for kind in settings if kind for field in dataclasses.fields(kind)]
                known[tuple(command)] |= {f"--{name.replace('_', '-')}" for name in fields}
        return known[tuple(command)]

    return flags


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_commands_are_found():
    assert ["train", "./my_gan.py"] in commands(ROOT / "README.md")
    assert ["quickstart"] in commands(ROOT / "README.md")
    assert sum(len(commands(guide)) for guide in GUIDES) > 60


@every_guide
def test_commands_and_their_flags_exist(guide, flags_of, capsys, monkeypatch):
    for words in commands(guide):
        if words[0].startswith("-"):
            continue
        assert words[0] in NAMES, f"there is no ganstyle {words[0]}"
        wanted = {word.partition("=")[0] for word in words[1:] if word.startswith("--")} - {"--help"}
        unknown = wanted - flags_of(words, capsys, monkeypatch) if wanted else set()
        assert not unknown, f"ganstyle {' '.join(words)}: no {', '.join(sorted(unknown))}"


@every_guide
def test_links_and_pictures_lead_somewhere(guide):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(guide)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (guide.parent / name).resolve() if name else guide
        assert path.is_relative_to(ROOT) and path.exists(), f"{target} is nowhere"
        if anchor:
            assert anchor in {slug(title) for title in re.findall(r"^#+ (.+)$", prose(path), re.M)}, target
        # MkDocs has the pages in docs/ and nothing else.
        assert guide.parent == ROOT or path.is_relative_to(ROOT / "docs"), f"{target} is not among the pages"


def slug(title):
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


@every_guide
def test_files_that_are_named_exist(guide):
    for name in re.findall(r"`((?:experiments|tests|ganstyle_jax|docs)/[\w./-]+)(?: [^`]*)?`", prose(guide)):
        assert (ROOT / name).exists(), f"{name} is nowhere"


@every_guide
def test_python_blocks_compile_and_import_what_is_there(guide):
    for text in blocks(guide, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ganstyle_jax"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    if not hasattr(module, alias.name):  # then it is a module
                        importlib.import_module(f"{node.module}.{alias.name}")


@every_guide
def test_the_reference_is_of_modules_that_are_there(guide):
    for name in re.findall(r"^::: (\S+)$", guide.read_text(), re.M):
        assert importlib.util.find_spec(name) is not None, f"there is no {name}"


def test_the_pages_list_every_guide():
    def files(part):
        if isinstance(part, str):
            return [part]
        return [name for value in (part.values() if isinstance(part, dict) else part) for name in files(value)]

    listed = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    there = [str(path.relative_to(ROOT / "docs")) for path in GUIDES if path.is_relative_to(ROOT / "docs")]
    assert sorted(listed) == sorted(there)


def test_the_complete_method_keeps_the_contract(method_file):
    method = contract.find(method_file)
    cfg = method.config(image_size=12, channels=3, width=2, latent_dim=3)
    assert contract.config_from_json(method.config, contract.to_json(cfg)) == cfg
    assert list(method.sources(cfg)) == ["real"]
    key, batch = jax.random.key(0), {"real": {"image": jnp.zeros((4, 12, 12, 3))}}

    def whole(key, batch):
        before = method.init(key, cfg)
        after, metrics = method.train_step(before, batch, key, cfg)
        requests = method.requests(key, 5, cfg, {})
        return before, after, metrics, method.sample(method.generator(after, cfg), requests, cfg)

    before, after, metrics, pictures = jax.eval_shape(whole, key, batch)
    described = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (before, after)]
    assert described[0] == described[1]
    assert set(metrics) == {"loss/disc", "loss/gen"} and all(x.shape == () for x in metrics.values())
    assert pictures.shape == (5, 12, 12, 3)
    with pytest.raises(ValueError, match="r1 must not be negative, got -1"):
        method.config(r1=-1)


def test_docstrings_are_shown_as_they_are_written():
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "docstrings.py")
    docstrings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docstrings)
    assert (
        docstrings.markdown("load()[i][t] of a <file> and `x[0][1]`")
        == r"load()\[i\]\[t\] of a &lt;file> and `x[0][1]`"
    )
    table = "run.json   settings\nsamples/   grids"
    assert docstrings.markdown(f"A_b:\n\n{table}") == "A\\_b:\n\n    run.json   settings\n    samples/   grids"
    assert docstrings.markdown("    code[0][1]") == "    code[0][1]"


def test_a_field_is_told_of_by_its_comment(tmp_path):
    griffe = pytest.importorskip("griffe")
    (tmp_path / "settings.py").write_text(
        "class Loop:\n    # how long,\n    # in steps\n    steps: int = 1\n"
        "    seed: int = 0  # of [all] draws\n    other: int = 2\n"
    )
    extensions = griffe.load_extensions(str(ROOT / "docs" / "docstrings.py"))
    loop = griffe.load("settings", search_paths=[tmp_path], extensions=extensions)["Loop"]
    told = {name: member.docstring and member.docstring.value for name, member in loop.members.items()}
    assert told == {"steps": "how long, in steps", "seed": r"of \[all\] draws", "other": None}
