"""Writes the pages that are made from the code: `python docs/generate.py`. A test compares them with what stands here.

`settings.md` is TrainConfig, field by field; `reference.md` is every module with its purpose and its public names.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from qlora_studio.core.config import DataSource, Section, TrainConfig

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "qlora_studio"


def settings_page() -> str:
    """Every setting of a run: its name for `--set` and `config.json`, what it takes, its default, what it does."""
    lines = [
        "# Settings",
        "",
        "Made from `TrainConfig` by `python docs/generate.py`. On the command line: `--set section.field=value`.",
    ]
    for name, info in TrainConfig.model_fields.items():
        section = info.annotation
        assert isinstance(section, type) and issubclass(section, Section)
        lines += ["", f"## {name}", "", str(section.__doc__), "", *_table(section, f"{name}.")]
    lines += ["", "## A data set in `data.sources`", "", str(DataSource.__doc__), "", *_table(DataSource, "")]
    return "\n".join(lines) + "\n"


def _table(section: type[Section], prefix: str) -> Iterator[str]:
    yield "| setting | takes | default | |"
    yield "|---|---|---|---|"
    for field, info in section.model_fields.items():
        default = "required" if info.is_required() else _shown(info.get_default(call_default_factory=True))
        yield f"| `{prefix}{field}` | {_takes(info)} | {default} | {(info.description or '').replace('|', chr(92) + '|')} |"


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    return f"`{value}`" if value not in ("", (), {}) else "empty"


def _takes(info: FieldInfo) -> str:
    """Type and bounds in the words of a person who types them."""
    text = (
        str(info.annotation).replace("typing.", "").replace("qlora_studio.core.config.", "").replace("NoneType", "None")
    )
    plain = {
        "<class 'int'>": "whole number",
        "<class 'float'>": "number",
        "<class 'str'>": "text",
        "<class 'bool'>": "true or false",
    }
    text = plain.get(
        text, text.replace("int | None", "whole number or empty").replace("float | None", "number or empty")
    )
    text = text.replace("str | None", "text or empty").replace("|", "or")
    if text.startswith("Literal["):
        text = ", ".join(f"`{one.strip().strip(chr(39))}`" for one in text[8:-1].split(","))
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {getattr(item, name)}" for item in info.metadata for name, sign in signs.items() if hasattr(item, name)
    ]
    return ", ".join([text, *bounds])


def reference_page() -> str:
    """Every module: its purpose, then its public classes and functions with the first sentence of each."""
    lines = ["# Reference", "", "Made from the docstrings by `python docs/generate.py`."]
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: path.relative_to(PACKAGE).parts):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = ".".join(("qlora_studio", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        lines += ["", f"## {name}", "", _first(ast.get_docstring(tree))]
        public = [line for node in tree.body for line in _names(node, "")]
        lines += ["", *public] if public else []
    return "\n".join(lines) + "\n"


def _names(node: ast.stmt, owner: str) -> Iterator[str]:
    """A line for a public class or function, and for the public methods of a class."""
    if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
        return
    said = _first(ast.get_docstring(node))
    if isinstance(node, ast.ClassDef):
        yield f"- **{node.name}**: {said}"
        for inner in node.body:
            yield from _names(inner, f"{node.name}.")
        return
    arguments = ", ".join(argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg))
    indent = "  " if owner else ""
    yield f"{indent}- `{owner}{node.name}({arguments.removeprefix('self, ').removeprefix('self')})`" + (
        f": {said}" if said else ""
    )


def _first(text: str | None) -> str:
    """The first paragraph in one line."""
    return " ".join((text or "").split("\n\n")[0].split()).replace("|", "\\|")


PAGES = {"settings.md": settings_page, "reference.md": reference_page}


if __name__ == "__main__":
    for file, make in PAGES.items():
        (DOCS / file).write_text(make(), encoding="utf-8")
