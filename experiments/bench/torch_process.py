"""The side of PyTorch in a process of its own: the two share no threads, and may come from different environments.

    with Worker(Path(__file__), python, *arguments) as theirs:     # makes Torch(*arguments) there
        value = theirs.ask("method", ...)

and in the script, before anything that PyTorch's interpreter may lack:

    if sys.argv[1:2] == ["--worker"]:
        serve(Torch)
        sys.exit()
"""

import contextlib
import os
import pickle
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine

from ganstyle_jax.io.files import UserError


class Worker:
    """An object in another process, which gets (method, arguments) and answers (value, error), pickled."""

    def __init__(self, script: Path, python: Path, *arguments: Any):
        self.python = python
        if shutil.which(self.python) is None:
            raise UserError(f"there is no program {self.python}: give the path of a Python interpreter")
        paths = [str(machine.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        environment.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # compile_seconds from nothing, as JAX's
        self.process = subprocess.Popen(
            [str(self.python), str(script.resolve()), "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        try:
            self.ask("__init__", *arguments)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        machine.end(self.process)

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the method answers. UserError where it fails, or where the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the answer says so
            pickle.dump((method, arguments), self.process.stdin)
            self.process.stdin.flush()
        try:
            value, error = pickle.load(self.process.stdout)
        except EOFError:
            status = self.process.wait()
            raise UserError(f"PyTorch's process ({self.python}) ended with status {status}: see above") from None
        if error:
            raise UserError(f"PyTorch's process ({self.python}) failed: {error}")
        return value


def serve(make: Callable[..., Any]) -> None:
    """The other end of a `Worker`: answers on stdout until stdin closes. make: the object of its arguments."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not end up among the replies
    side: Any = None
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            method, arguments = pickle.load(sys.stdin.buffer)
            value = error = None
            try:
                if method == "__init__":
                    import torch

                    torch.set_num_threads(machine.cores())
                    side = make(*arguments)
                else:
                    value = getattr(side, method)(*arguments)
            except UserError as failure:
                error = str(failure)
            except ImportError as failure:
                error = f"{failure}: install PyTorch there, or choose another --torch-python"
            except Exception as failure:
                traceback.print_exc()
                error = f"{type(failure).__name__}: {str(failure).strip() or 'no message'}".splitlines()[0]
            pickle.dump((value, error), replies)
            replies.flush()
