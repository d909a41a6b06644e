"""What a run can be exported as. The work behind each name is the module of that name in `engine/exporters/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import MergeInto


@dataclass(frozen=True, slots=True)
class ExportKind:
    """One kind of artefact, as a person chooses it."""

    name: str
    """In requests and on the command line; the module that writes it has this name."""
    title: str
    says: str
    """What it is good for, in a sentence."""
    needs_base: bool
    """Whether the base's weights are read for it."""
    compares_with_chat: bool
    """Whether it computes in its own way, so that it is asked what the chat was asked."""
    as_large_as: Literal["adapter", "base"] = "adapter"
    """What its size goes by before it is written."""
    merges: bool = False
    """Whether a person chooses which weights take the adapter."""


EXPORT_KINDS: tuple[ExportKind, ...] = (
    ExportKind("adapter", "adapter", "The small part on top of the base, in PEFT's format.", False, False),
    ExportKind("merged", "merged model", "A whole model in safetensors that runs alone.", True, True, "base", True),
)
"""In the order they are offered."""


@dataclass(frozen=True, slots=True)
class ExportChoice:
    """One way to export a run, as it is offered: a kind, and the weights that take the adapter where it merges."""

    name: str
    kind: ExportKind
    merge_into: MergeInto = "original"
    title: str = ""
    says: str = ""


def list_choices() -> tuple[ExportChoice, ...]:
    """Every kind, those that merge once for each way to merge."""
    choices: list[ExportChoice] = []
    for kind in EXPORT_KINDS:
        if not kind.merges:
            choices.append(ExportChoice(kind.name, kind, title=kind.title.capitalize(), says=kind.says))
            continue
        own, chatted = "into the base's own weights", "into the dequantised 4-bit weights"
        choices.append(ExportChoice(f"{kind.name}-original", kind, "original", kind.title.capitalize(), own))
        choices.append(ExportChoice(f"{kind.name}-as-chatted", kind, "as_chatted", "As chatted", chatted))
    return tuple(choices)


def find_export_kind(name: str) -> ExportKind:
    """The kind of this name. Raises a StudioError that lists the names there are."""
    for kind in EXPORT_KINDS:
        if kind.name == name:
            return kind
    names = ", ".join(kind.name for kind in EXPORT_KINDS)
    raise StudioError(f"'{name}' cannot be exported.", f"Choose one of: {names}.")
