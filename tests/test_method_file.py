"""Methods in files of the user's own, and the neighbours that they import."""

import dataclasses
import sys
from pathlib import Path

import pytest

from ganstyle_jax import contract
from ganstyle_jax.io.files import UserError
from ganstyle_jax.method_file import PREFIX, files_of, load_file


def written(folder: Path, **files: str) -> Path:
    """Files by names such as nets__blocks for nets/blocks.py; the path of the first one."""
    paths = [folder / f"{name.replace('__', '/').replace('/init', '/__init__')}.py" for name in files]
    for path, text in zip(paths, files.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return paths[0]


def test_neighbours_of_the_same_name_and_other_contents_live_side_by_side(tmp_path):
    text = (
        "import dataclasses\nimport helper\nimport nets.blocks as blocks\nfrom nets import more\n"
        "@dataclasses.dataclass(frozen=True)\nclass Config:\n    width: 'int' = helper.WIDTH\n"
        "def later():\n    import other, nets.late\n    from helper import late\n"
        "    return other.NAME, nets.late.NAME, late(), blocks.NAME, more.NAME\n"
    )
    modules = []
    for name in ("a", "b"):
        files = {
            "helper": f"WIDTH = {ord(name)}\ndef late():\n    import other\n    return other.NAME\n",
            "other": f"NAME = 'other {name}'",
            "nets__init": "",
            "nets__blocks": f"from . import late\nfrom .late import NAME as L\nNAME = 'blocks {name}'",
            "nets__late": f"NAME = 'late {name}'",
            "nets__more": f"from helper import WIDTH\nNAME = WIDTH == {ord(name)}",
        }
        modules.append(load_file(written(tmp_path / name, my_gan=text, **files)))
    for module, name in zip(modules, "ab", strict=True):
        assert module.Config().width == ord(name)
        assert module.later() == (f"other {name}", f"late {name}", f"other {name}", f"blocks {name}", True)
    assert not {"helper", "other", "nets", "my_gan"} & set(sys.modules)
    assert str(tmp_path) not in str(sys.path)
    assert not list(tmp_path.rglob("__pycache__"))


def test_the_same_module_until_a_file_changes(tmp_path):
    path = written(tmp_path, my_gan="import helper\nvalue = helper.value", helper="value = 1")
    first = load_file(path)
    assert load_file(str(path)) is first and first.value == 1
    (tmp_path / "helper.py").write_text("value = 2")  # of the same length, within the same second
    assert load_file(path).value == 2 and first.value == 1


def test_a_neighbour_goes_before_what_is_installed_and_a_mere_folder_after_it(tmp_path):
    path = written(
        tmp_path,
        my_gan="import colorsys, json, ganstyle_jax, data, optax\nfrom .colorsys import NAME",
        colorsys="NAME = 'mine'",
        json__x="",
        optax__x="",
        data__x="",
        ganstyle_jax__init="raise ValueError",
    )
    module = load_file(path)
    import json

    import ganstyle_jax

    assert module.colorsys.NAME == module.NAME == "mine"
    assert module.json is json and module.ganstyle_jax is ganstyle_jax
    assert module.data.__name__.startswith(PREFIX) and hasattr(module.optax, "adam")
    assert set(files_of(path)) == {"my_gan.py", "colorsys.py", "data/x.py"}


def test_files_of_are_those_that_are_imported_at_any_place_directly_or_not(tmp_path):
    path = written(
        tmp_path,
        my_gan="import jax\ndef f():\n    if 0:\n        from one import x\nfrom .five import y",
        one="import two.sub.deep",
        two__sub__deep="import three",
        two__other="",
        three="import my_gan",
        five="",
        not_imported="",
    )
    (tmp_path / "two" / "__pycache__").mkdir()
    (tmp_path / "two" / "__pycache__" / "x.py").touch()
    names = ["my_gan.py", "five.py", "one.py", "three.py", "two/other.py", "two/sub/deep.py"]
    assert list(files_of(path)) == names
    assert files_of(path)["one.py"] == tmp_path / "one.py"


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1\ny = (", "my_gan.py, line 2: SyntaxError: '(' was never closed"),
        ("\nimport not_there", "my_gan.py, line 2: ModuleNotFoundError: No module named 'not_there'. A method may"),
        ("import helper", "helper.py, line 3: ZeroDivisionError: division by zero"),
        ("import nothing.more", "my_gan.py, line 1: ModuleNotFoundError: No module named 'nothing.more'"),
        ("from helper2 import x", "my_gan.py, line 1: ImportError: cannot import name 'x' from 'helper2'"),
        ("def f():\n    raise OSError\nf()", "my_gan.py, line 2: OSError"),
        ("raise SystemExit(2)", "my_gan.py, line 1: SystemExit: 2"),
        ("raise RuntimeError('two\\nlines')", "my_gan.py, line 1: RuntimeError: two"),
        ("import jax\njax.numpy.zeros(-1)", "my_gan.py, line 2: "),
        ("x = '\0'", "my_gan.py"),
        ("x = '\udcff'", "my_gan.py"),
        ("import helper3", "helper3.py, line 1: SyntaxError: invalid syntax"),
    ],
)
def test_what_a_file_raises_is_one_sentence(tmp_path, text, message):
    helpers = {"helper": "def f():\n\n    return 1 / 0\nf()", "helper2": "", "nothing": "", "helper3": "x = = 1"}
    path = written(tmp_path, my_gan="", **helpers)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    before = set(sys.modules)
    with pytest.raises(UserError) as caught:
        load_file(path)
    assert message in str(caught.value) and "\n" not in str(caught.value) and PREFIX not in str(caught.value)
    assert not [name for name in set(sys.modules) - before if name.startswith(PREFIX)]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"gone\.py cannot be read: No such file"):
        load_file(tmp_path / "gone.py")


@pytest.mark.parametrize("name", ["my gan.py", "my-gan.v2.py", "größe.py", "1.py"])
def test_files_of_any_name(tmp_path, name):
    text = "import dataclasses\n@dataclasses.dataclass\nclass Config:\n    x: 'int' = 3"
    (tmp_path / name).write_text(text)
    module = load_file(tmp_path / name)
    assert dataclasses.asdict(module.Config()) == {"x": 3}
    assert contract.Method(module).name == name and contract.Method(module).file == tmp_path / name
