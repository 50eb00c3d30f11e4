"""Pictures in, pictures out: the program around style transfer, which `ganstyle stylize` runs.

orders.py      what is asked for: settings, which pictures make which files
reading.py     pictures as they are read and prepared, and what memory they need
program.py     the whole of it, `run`
resume.py      the file in which unfinished work is kept, and gone on with from
journal.py     listens, and writes what is left on the way: trace.py, film.py, run_folder.py
"""

from ganstyle_jax.stylize.orders import Settings, files_in
from ganstyle_jax.stylize.program import run

__all__ = ["Settings", "files_in", "run"]
