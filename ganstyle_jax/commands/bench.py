"""`ganstyle bench`: the comparison with PyTorch on the user's own machine, by the scripts of a clone."""

import dataclasses
import runpy
import sys
from pathlib import Path

from ganstyle_jax.io.files import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "bench" / "against_pytorch.py"
TABLES = {"--json": "bench.json", "--markdown": "bench.md"}  # in the folder that one is in, unless told otherwise


@dataclasses.dataclass(frozen=True)
class Bench:
    """Compare speed with PyTorch on this machine, parity first. `ganstyle bench --help` lists the settings."""


def run(args: list[str]) -> None:
    """Everything that is given goes to the script. UserError where the package was installed without it."""
    if not SCRIPT.exists():
        raise UserError(
            "the comparison with PyTorch is in the repository and not in the installed package: clone it, and install "
            "by pip install -e '.[parity]' there"
        )
    names = {arg.partition("=")[0] for arg in args}
    tables = [text for flag, name in TABLES.items() if flag not in names for text in (flag, str(Path.cwd() / name))]
    sys.argv = [str(SCRIPT), *args, *tables]
    sys.path.insert(0, str(SCRIPT.parent))  # as when it is run by itself
    runpy.run_path(str(SCRIPT), run_name="__main__")
