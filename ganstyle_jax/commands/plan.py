"""`ganstyle plan METHOD`: what a step takes on TPUs and GPUs that are not here, by their own compilers."""

import dataclasses
import os
from typing import Annotated

import tyro

from ganstyle_jax import builtin
from ganstyle_jax.commands import flags
from ganstyle_jax.io.files import UserError


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step takes on TPUs and GPUs that are not here. `ganstyle plan METHOD --help` lists the settings."""

    method: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(help=f"{next(iter(builtin.OPTIMISED))}, {builtin.OR_FILE}")
    ]
    settings: tyro.conf.Positional[tuple[str, ...]] = ()  # --topology and the method's settings


def run(command: Plan) -> None:
    plan(command.method, list(command.settings))


def plan(name: str, args: list[str]) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # all else is described to the compiler
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # whose programs of devices that are not here cannot be read
    from ganstyle_jax.loop import plan as planning

    module, way = planning.module_and_settings(name)
    description = "What a step takes on TPUs and GPUs that are not here, by their own compilers."
    chosen = flags.parse(f"ganstyle plan {name}", description, args, way=way, config=module.Config())
    try:
        planning.run(module, chosen.way, chosen.config)
    except ValueError as error:
        raise UserError(str(error)) from None
