"""`ganstyle convert`: weights to and from the files of PyTorch's common examples."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any, Literal

import tyro

from ganstyle_jax.builtin import CONVERTERS
from ganstyle_jax.commands import flags
from ganstyle_jax.io.files import UserError


@dataclasses.dataclass(frozen=True)
class Convert:
    """Move weights from and to the common PyTorch examples, or to .safetensors.

    Of a DCGAN (netG.pth, netD.pth), of fast style transfer (candy.pth, a network of one style), of CycleGAN and pix2pix
    (latest_net_G_A.pth, with latest_net_G_B.pth or alone), of AdaIN (decoder.pth), and of StyleGAN2 and R3GAN
    (network-snapshot-000000.pkl). From a run to files: `ganstyle convert RUN --out FOLDER`. From files to a run that
    can be sampled from, applied or begun with (--init-from): `ganstyle convert netG.pth netD.pth --out RUN`, or
    `ganstyle convert decoder.pth --encoder vgg_normalised --out RUN` after `ganstyle weights import
    vgg_normalised.pth`. Pickled code in a file is never executed.
    """

    source: tyro.conf.Positional[tuple[Path, ...]]  # a run folder, or files as .pth, .safetensors or .pkl
    out: Path  # the folder to make
    format: Literal["pth", "safetensors"] = "pth"  # of the files written from a run
    averaged: bool = True  # write averaged weights rather than the last ones
    encoder: str | None = None  # by name or file, that AdaIN's decoder was trained with: the file is such a decoder


def run(command: Convert) -> None:
    from ganstyle_jax.loop import runs

    flags.use_cache()
    # DCGAN's is for whatever no other knows, and says what it takes.
    first, *others = CONVERTERS
    if command.encoder is not None:
        if len(command.source) != 1 or command.source[0].is_dir():
            raise UserError("--encoder belongs to one file, AdaIN's decoder: leave it out, or give that file alone")
        written = _converter("adain").import_file(command.source[0], command.encoder, command.out)
    elif len(command.source) == 1 and command.source[0].is_dir():
        method = runs.read(command.source[0])["method"]
        written = _converter(method if method in CONVERTERS else first).export_run(
            command.source[0], command.out, command.format, command.averaged
        )
    else:
        files = list(command.source)
        method = next((name for name in others if _converter(name).recognises(files)), first)
        written = _converter(method).import_files(files, command.out)
    print(written)


def _converter(name: str) -> Any:
    return importlib.import_module(CONVERTERS[name])
