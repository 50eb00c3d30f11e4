"""The command `ganstyle`: reads which command is wanted, and hands over to its file in commands/.

Nothing here imports JAX before the arguments are known to be good.
"""

import sys
from typing import Annotated, Any

import tyro

from ganstyle_jax import __version__
from ganstyle_jax.builtin import EXAMPLE
from ganstyle_jax.commands import (
    apply,
    bench,
    collect,
    convert,
    data,
    evaluate,
    explain,
    export,
    flags,
    plan,
    project,
    quickstart,
    report,
    restore,
    sample,
    stylize,
    texture,
    train,
    weights,
)

Command = (
    Annotated[quickstart.Quickstart, tyro.conf.subcommand("quickstart")]
    | Annotated[train.Train, tyro.conf.subcommand("train")]
    | Annotated[stylize.Stylize, tyro.conf.subcommand("stylize")]
    | Annotated[texture.Texture, tyro.conf.subcommand("texture")]
    | Annotated[restore.Restore, tyro.conf.subcommand("restore")]
    | Annotated[sample.Sample, tyro.conf.subcommand("sample")]
    | Annotated[project.Project, tyro.conf.subcommand("project")]
    | Annotated[apply.Apply, tyro.conf.subcommand("apply")]
    | Annotated[export.Export, tyro.conf.subcommand("export")]
    | Annotated[convert.Convert, tyro.conf.subcommand("convert")]
    | Annotated[data.Data, tyro.conf.subcommand("data")]
    | Annotated[weights.Weights, tyro.conf.subcommand("weights")]
    | Annotated[evaluate.Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[plan.Plan, tyro.conf.subcommand("plan")]
    | Annotated[bench.Bench, tyro.conf.subcommand("bench")]
    | Annotated[collect.Collect, tyro.conf.subcommand("collect")]
    | Annotated[report.Report, tyro.conf.subcommand("report")]
    | Annotated[explain.Explain, tyro.conf.subcommand("explain")]
)
RUN: dict[type, Any] = {
    quickstart.Quickstart: quickstart.run,
    train.Train: train.run,
    sample.Sample: sample.run,
    export.Export: export.run,
    convert.Convert: convert.run,
    data.Data: data.run,
    weights.Weights: weights.run,
    plan.Plan: plan.run,
    collect.Collect: collect.run,
    report.Report: report.run,
    explain.Explain: explain.run,
}
DESCRIPTION = (
    "Adversarial networks and style transfer in JAX. Begin with `ganstyle quickstart`, then "
    f"`ganstyle train {EXAMPLE} --data FOLDER_OR_ZIP_OF_IMAGES` and `ganstyle sample runs/{EXAMPLE}`."
)


def main(args: list[str] | None = None) -> None:
    """Runs one command."""
    args = sys.argv[1:] if args is None else args
    with flags.errors_for_people():
        if args == ["--version"]:
            print(f"ganstyle_jax {__version__}")
            return
        # Commands whose flags are those of other parts of the program, which are imported for them alone.
        if len(args) > 1 and args[0] in ("train", "plan") and not args[1].startswith("-"):
            (train.train if args[0] == "train" else plan.plan)(args[1], args[2:])
            return
        own: dict[str, Any] = {"stylize": stylize.run, "texture": texture.run, "restore": restore.run}
        own |= {"evaluate": evaluate.run, "apply": apply.run, "bench": bench.run, "project": project.run}
        if args and args[0] in own:
            own[args[0]](args[1:])
            return
        command = tyro.cli(Command, prog="ganstyle", args=args, config=flags.CONFIG, description=DESCRIPTION)  # type: ignore
        RUN[type(command)](command)


if __name__ == "__main__":
    main()
