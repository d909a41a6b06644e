"""What a look at the machine found: one check, one state, one remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Check(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """What was looked at, in a word or two."""
    state: Literal["ok", "warn", "bad"]
    says: str
    """What was found, as a sentence."""
    remedy: str = ""
    """What to do about it, as a sentence; empty where nothing needs doing."""


def diagnostics(checks: Iterable[Check], home: str = "") -> str:
    """All checks as plain text to paste elsewhere. The person's home folder is left out; nothing else is private."""
    lines = []
    for check in checks:
        lines.append(f"[{check.state}] {check.name}: {check.says}")
        if check.remedy:
            lines.append(f"      {check.remedy}")
    text = "\n".join(lines)
    return text.replace(home, "~") if home else text
