"""`ganstyle explain`: pictures that show what a network has learned, with a text to each.

    explain.run("runs/digits")        # writes runs/digits/explain/*.png and runs/digits/explain/explain.json

gan.py explains a trained GAN, style.py a picture made by style transfer; maps.py lays points out in two dimensions,
sections.py says what is written and how it is drawn.
"""

from pathlib import Path

from ganstyle_jax import runs
from ganstyle_jax.explain import gan, sections
from ganstyle_jax.files import UserError


def run(run_dir: Path | str, out: Path | None = None, step: int | None = None, settings: gan.Settings | None = None):
    """Explains a run folder, by default into its folder `explain`; returns the path of explain.json.

    step: of the checkpoint, by default the newest. Raises UserError where there is no run or no checkpoint.
    """
    run_dir = Path(run_dir)
    out = run_dir / "explain" if out is None else Path(out)
    description = runs.read(run_dir)
    loaded = runs.load(run_dir, step)
    found = gan.sections(loaded, description["data"], out, settings or gan.Settings())
    return sections.write(out, found)
