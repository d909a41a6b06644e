"""Ollama's reading of a Modelfile: commands in any case, values plain or in quotes, no escapes, comments at line starts."""

from __future__ import annotations

import re

COMMANDS = {
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message", "requires",
}  # fmt: skip


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Commands, or names of parameters, and their values. Raises ValueError where Ollama would stop."""
    found, lines = [], text.split("\n")
    while lines:
        line = lines.pop(0).strip()
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"(\w+)[ \t]+(.*)", line, re.DOTALL)
        if match is None or match[1].lower() not in COMMANDS:
            raise ValueError(f"not a command: {line!r}")
        name, value = match[1].lower(), match[2]
        if name == "parameter":
            name, _, value = value.partition(" ")
        value = value.strip()
        mark = '"""' if value.startswith('"""') else '"' if value.startswith('"') else ""
        while mark and (len(value) < 2 * len(mark) or not value.endswith(mark)):
            if not lines:
                raise ValueError("quotes are not closed")
            value += "\n" + lines.pop(0)
        found.append((name, value[len(mark) : len(value) - len(mark)]))
    if not any(name == "from" for name, _ in found):
        raise ValueError("no FROM line")
    return found
