"""The card of a model: what it is, what it was trained on, how it is used, and under which licence it may be.

It goes beside every exported file as Markdown, and into the metadata of the formats that have such.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ganstyle_jax import __version__
from ganstyle_jax.io.files import listed
from ganstyle_jax.loop.models import Model, config_of

UNKNOWN = "not stated. Ask whoever trained it before you pass it on: what it may be used for can depend on its data"


@dataclasses.dataclass(frozen=True)
class Card:
    """What is known of a model. Paths are the names of their files, since cards are read elsewhere."""

    title: str
    method: str
    config: dict[str, Any]
    data: str  # what it was trained on, in words
    steps: str  # of training
    styles: tuple[str, ...]  # of a network that paints
    licence: str  # of the weights; "" where nobody has said
    classes: tuple[str, ...] = ()  # of a model that is conditional on them, by label

    def metadata(self) -> dict[str, str]:
        """As texts by name, for the metadata of files."""
        said = {
            "title": self.title,
            "method": self.method,
            "config": json.dumps(self.config),
            "data": self.data,
            "steps": self.steps,
            "license": self.licence or "unknown",
            "program": f"ganstyle_jax {__version__}",
        }
        lists = {"styles": self.styles, "label_names": self.classes}
        return said | {name: json.dumps(names) for name, names in lists.items() if names}

    def markdown(self, use: str) -> str:
        """The card of a file. use: a section in Markdown on how it is used."""
        facts = {
            "Method": self.method,
            "Trained for": self.steps,
            "Data": self.data,
            "Styles": ", ".join(self.styles),
            "Classes": listed(self.classes, most=40),
            "Program": f"ganstyle_jax {__version__}",
            "Licence of the weights": self.licence or UNKNOWN,
        }
        rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items() if value)
        settings = json.dumps(self.config, indent=1)
        return (
            f"# {_cell(self.title)}\n\n| | |\n|---|---|\n{rows}\n\n## How to use it\n\n{use.strip()}\n\n"
            f"## Settings\n\n```json\n{settings}\n```\n"
        )


def of(model: Model, data: Any, title: str = "", licence: str = "") -> Card:
    """The card of a model. data: as run.json has it, or ""; title: by default the name of its folder or file."""
    known = dict(model.metadata)
    return Card(
        title=title or known.get("title") or model.origin.resolve().stem,
        method=model.method.name,
        config=config_of(model.cfg),
        data=_data(data) or known.get("data") or "unknown",
        steps=known.get("steps") or (model.title if model.title.startswith("step ") else "unknown"),
        styles=names_of_styles(model.cfg),
        licence=licence or known.get("license", "").replace("unknown", ""),
        classes=model.label_names,
    )


def names_of_styles(cfg: Any) -> tuple[str, ...]:
    """Of the paintings that a config names in `style`, for people; () where there are none."""
    style = getattr(cfg, "style", ())
    style = style if isinstance(style, tuple) else (style,)
    if not all(isinstance(path, Path) for path in style):
        return ()
    words = [" ".join(path.stem.replace("_", " ").replace("-", " ").split()) or path.name for path in style]
    return tuple(name[:1].upper() + name[1:] for name in words)


def _data(data: Any) -> str:
    """In words, without the folders in which it lies."""
    parts = data if isinstance(data, dict) else {"": data}
    shown = {name: Path(str(text)).name if "://" not in str(text) else str(text) for name, text in parts.items()}
    return ", ".join(f"{name}: {text}" if name else text for name, text in shown.items())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
