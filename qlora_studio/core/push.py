"""Where a finished export can be handed on to, by name, as page and command line offer it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import PushTo


@dataclass(frozen=True, slots=True)
class Destination:
    """One place."""

    name: PushTo
    title: str
    description: str


DESTINATIONS: tuple[Destination, ...] = (
    Destination("lmstudio", "LM Studio", "Copies the GGUF file into LM Studio's folder of models."),
    Destination("ollama", "Ollama", "Has Ollama make a model of the GGUF file and its Modelfile."),
    Destination(
        "hub",
        "Hub",
        "Uploads the whole folder to the Hugging Face hub, as you are logged in; private unless you say public.",
    ),
)


def find_destination(name: str) -> Destination:
    """The destination of this name. Raises a StudioError that lists the names there are."""
    for destination in DESTINATIONS:
        if destination.name == name:
            return destination
    raise StudioError(f"There is no destination '{name}'.", f"Choose {', '.join(one.name for one in DESTINATIONS)}.")


def default_name(destination: PushTo, export: str) -> str:
    """What an export's folder of this name would be called there."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", export.lower()).strip("-._") or "model"
    return f"qlora-studio/{plain}" if destination == "lmstudio" else plain
