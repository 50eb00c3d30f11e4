"""The house: imports point one way, and nothing outside the methods knows one of them by name."""

import ast
import re
from pathlib import Path

import pytest

import ganstyle_jax

PACKAGE = Path(ganstyle_jax.__file__).parent
# From the street to the cellar: a room may use those that stand further down.
ORDER = [
    *("__main__", "cli", "commands", "export", "look", "restoration", "stylize", "forward", "loop", "judge"),
    *("contract", "earlier"),
    *("gan", "style", "restore", "features", "data", "nn"),
    *("programs", "method_file", "control", "builtin", "io", "__init__"),
]
# Rooms beside one another, which must not see each other though one stands further down.
METHODS = ("gan", "style", "restore")
APART = {(a, b) for a in (*METHODS, "loop", "judge") for b in METHODS if a != b}
# Weights go into run folders and come out of them; only when asked to.
UPWARDS = {
    ("gan/convert.py", "loop"),
    ("gan/cyclegan_files.py", "loop"),
    ("gan/snapshots.py", "loop"),
    ("style/fast_style_files.py", "loop"),
    ("style/adain_files.py", "loop"),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported(path: Path) -> set[str]:
    """The rooms that a file imports from, anywhere in it."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "ganstyle_jax":
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ganstyle_jax."):
            names = [str(node.module).split(".")[1]]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ganstyle_jax.")]
        rooms |= {name if name in ORDER else "__init__" for name in names}
    return rooms


def test_every_room_has_its_place():
    assert {room_of(path) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    me = room_of(path)
    for room in imported(path) - {me}:
        if (str(path.relative_to(PACKAGE)), room) in UPWARDS:
            continue
        assert ORDER.index(room) > ORDER.index(me), f"{me} uses {room}, which uses it"
        assert (me, room) not in APART, f"{me} uses {room}"


def test_no_method_is_known_by_name_outside_the_methods():
    """Methods, the list of those that are built in, what is DCGAN's own, and the quick start, which trains one."""
    texts = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in FILES}
    names = re.compile(r'dcgan|"gatys"|super_resolution|"super-resolution"')
    known = [path for path, text in texts.items() if names.search(text)]
    outside = [path for path in known if not path.startswith(("gan/", "style/", "restore/"))]
    assert outside == ["builtin.py", "commands/quickstart.py"]
