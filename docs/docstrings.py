"""Docstrings as the reference shows them: they are written as plain text, and Markdown is not to read signs into it.

Backticks stay code, and paragraphs in columns, such as tables of files, stay as they are laid out. What a field of a
dataclass is for is told by the comment behind it or above it, as in the help of the command line.
"""

import functools
import re
from pathlib import Path
from typing import Any

import griffe

COLUMNS = re.compile(r"\S {2,}\S")
CODE = re.compile(r"(`+[^`]+`+)")


class PlainText(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
        elif isinstance(obj, griffe.Attribute) and isinstance(obj.parent, griffe.Class) and (said := comment(obj)):
            obj.docstring = griffe.Docstring(paragraph(said), parent=obj)


def comment(field: griffe.Attribute) -> str:
    """That behind a field, or the lines of comment above it."""
    if not isinstance(field.filepath, Path) or field.lineno is None or field.endlineno is None:
        return ""
    lines = lines_of(field.filepath)
    if "  # " in lines[field.endlineno - 1]:
        return lines[field.endlineno - 1].split("  # ", 1)[1]
    above = field.lineno - 1
    while lines[above - 1].strip().startswith("# "):
        above -= 1
    return " ".join(line.strip().removeprefix("# ") for line in lines[above : field.lineno - 1])


@functools.cache
def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def markdown(text: str) -> str:
    return "\n\n".join(map(paragraph, text.split("\n\n")))


def paragraph(text: str) -> str:
    lines = text.split("\n")
    if all(line.startswith("    ") or not line for line in lines):
        return text  # indented: code already
    if any(COLUMNS.search(line) for line in lines):
        return "\n".join(f"    {line}" for line in lines)
    return "".join(part if part.startswith("`") else escaped(part) for part in CODE.split(text))


def escaped(text: str) -> str:
    return re.sub(r"([\[\]*_\\])", r"\\\1", text).replace("<", "&lt;")
