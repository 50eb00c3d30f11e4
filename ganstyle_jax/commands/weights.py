"""`ganstyle weights`: the networks whose features are compared."""

import dataclasses
from typing import Annotated, Literal

import tyro

from ganstyle_jax.io.files import UserError


@dataclasses.dataclass(frozen=True)
class Weights:
    """List, fetch, import or verify the weights of feature networks.

    `ganstyle weights list`; `ganstyle weights fetch NAME` downloads; `ganstyle weights import FILE` takes what was
    fetched by hand; `ganstyle weights verify` recomputes the sums of all that is here.
    """

    action: tyro.conf.Positional[Literal["list", "fetch", "import", "verify"]]  # what to do
    # to fetch: a name from the list; to import: a .pth, .h5, .npz or .safetensors file
    what: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[NAME|FILE]")] = None
    name: str | None = None  # to import by; by default the name of these very weights in the list, or the file's


def run(command: Weights) -> None:
    takes = {"fetch": "a NAME", "import": "a FILE"}
    if (command.what is None) == (command.action in takes):
        raise UserError(f"ganstyle weights {command.action} takes {takes.get(command.action, 'nothing')}")
    if command.name is not None and command.action != "import":
        raise UserError("--name belongs to ganstyle weights import")
    from ganstyle_jax.features import weights

    if command.action == "list":
        print("\n".join(map(weights.describe, weights.names())))
    elif command.action == "fetch":
        print(f"{command.what} is ready in {weights.fetch(str(command.what))}")
    elif command.action == "import":
        kept = weights.import_file(str(command.what), command.name)
        print(f"{command.what} is imported into {kept}:\n{weights.describe(kept.stem)}")
    else:
        faults = {name: weights.fault(name) for name in weights.kept_names()}
        print("\n".join(f"{name} {fault or 'is sound'}" for name, fault in faults.items()) or "no weights are here yet")
        if wrong := [f"{name} {fault}" for name, fault in faults.items() if fault]:
            raise UserError(f"{'; '.join(wrong)}: fetch or import it again")
