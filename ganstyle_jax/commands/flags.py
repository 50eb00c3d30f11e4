"""What commands share: flags made from dataclasses, errors in words, and programs that are kept from run to run."""

import contextlib
import dataclasses
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

import tyro

from ganstyle_jax.io.files import UserError

CONFIG = (tyro.conf.CascadeSubcommandArgs, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
)


def parse(command: str, description: str, args: list[str], **parts: Any) -> Any:
    """What the arguments say: an object with the attributes `parts`, whose fields are the flags.

    parts: an object of a dataclass, whose values are the defaults; a type, for a positional argument; or
    (type, default). UserError where a dataclass refuses its values.
    """
    fields: list[Any] = []
    for name, part in parts.items():
        if isinstance(part, tuple):
            fields.append((name, part[0], dataclasses.field(default=part[1])))
        elif dataclasses.is_dataclass(part) and not isinstance(part, type):
            fields.append((name, type(part), dataclasses.field(default=part)))
        else:
            fields.append((name, part))
    settings = dataclasses.make_dataclass("Settings", fields, frozen=True)
    try:
        return tyro.cli(settings, prog=command, args=args, config=CONFIG, description=description)
    except ValueError as error:
        raise UserError(str(error)) from None


@contextlib.contextmanager
def errors_for_people() -> Iterator[None]:
    """A UserError, or a place that cannot be written, becomes one line on standard error and exit status 1."""
    try:
        yield
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("ganstyle: stopped. What was complete before is kept.", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # `ganstyle --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        _fail(f"{error.filename or 'a file'} cannot be written: {error.strerror}. What was complete before is kept")


def _fail(message: str) -> None:
    print(f"ganstyle: error: {message.rstrip('.')}.", file=sys.stderr)
    raise SystemExit(1)


def use_cache() -> None:
    """`programs.keep`, once the arguments are known to be good: it imports JAX."""
    from ganstyle_jax import programs

    programs.keep()
