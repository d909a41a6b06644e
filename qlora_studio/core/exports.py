"""What a run can be exported as. The work behind each name is the module of that name in `engine/exporters/`."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_studio.core.errors import StudioError


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


EXPORT_KINDS: tuple[ExportKind, ...] = (
    ExportKind("adapter", "adapter", "The small part on top of the base, in PEFT's format.", False, False),
    ExportKind("merged", "merged model", "A whole model in safetensors that runs alone.", True, True),
)
"""In the order they are offered."""


def find_export_kind(name: str) -> ExportKind:
    """The kind of this name. Raises a StudioError that lists the names there are."""
    for kind in EXPORT_KINDS:
        if kind.name == name:
            return kind
    names = ", ".join(kind.name for kind in EXPORT_KINDS)
    raise StudioError(f"'{name}' cannot be exported.", f"Choose one of: {names}.")
