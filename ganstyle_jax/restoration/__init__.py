"""Damaged pictures in, restored pictures out: the program around Deep Image Prior, which `ganstyle restore` runs.

orders.py    what is asked for: settings, which files become which
reading.py   the pictures, read and looked at before the first of them is begun
program.py   the whole of it, `run`
keeping.py   the file in which unfinished work is kept, and gone on with from
journal.py   listens, and writes what is left on the way: the progress bar, the run folder, the trace
"""

from ganstyle_jax.restoration.orders import Settings
from ganstyle_jax.restoration.program import run

__all__ = ["Settings", "run"]
