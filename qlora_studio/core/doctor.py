"""What a look at the machine found: one check, one state, one remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

CUDA_BUILDS = "https://download.pytorch.org/whl/cu130"
"""Where torch's own builds for CUDA 13 lie; drivers from 580 on run them."""
PROCESSOR_INSTEAD = "To train on the processor instead, set CUDA_VISIBLE_DEVICES to -1."


def install_torch(version: str) -> str:
    """The sentence that mends a torch without CUDA."""
    return f"Run: pip install --force-reinstall torch=={version.partition('+')[0]} --index-url {CUDA_BUILDS}."


class Check(BaseModel):
    """One thing that was checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """What was checked, in a word or two."""
    state: Literal["ok", "warn", "bad"]
    finding: str = Field(validation_alias=AliasChoices("finding", "says"))
    """What was found, as a sentence."""
    remedy: str = ""
    """What to do about it, as a sentence; empty where nothing needs doing."""


def diagnostics(checks: Iterable[Check], *private: str) -> str:
    """All checks as plain text to paste elsewhere, with `~` for the folders given as private, longest first."""
    lines = []
    for check in checks:
        lines.append(f"[{check.state}] {check.name}: {check.finding}")
        if check.remedy:
            lines.append(f"      {check.remedy}")
    text = "\n".join(lines)
    for folder in sorted(filter(None, private), key=len, reverse=True):
        text = text.replace(folder, "~")
    return text
