"""What an exporter is: how large its artefact becomes, how it is written and how it is checked.

What it needs and what it is called stands in `core/exports.py`, where faces read it without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import GgufType, MergeInto
from qlora_studio.engine.exporters.comparison import ChatRecord
from qlora_studio.engine.load import Device

Emit = Callable[[ev.Event], None]


@dataclass(frozen=True, slots=True)
class ExportSource:
    """The run that is exported."""

    adapter: Path
    """Its adapter folder, whole."""
    base: Path | None
    """The folder of its base; None for an exporter that does not need it."""
    device: Device
    """Where and in which format it was chatted with."""
    merge_into: MergeInto = "original"
    """Which weights take the adapter, where weights are merged."""
    gguf: GgufType = "Q4_K_M"
    """The type of a GGUF file."""
    importance: Path | None = None
    """A file that says how much each column of a GGUF file's matrices counts."""
    parts: tuple[str, ...] = ()
    """The kinds that a pack holds."""
    name: str = "model"
    """What the artefact is called in its files: the run's name."""
    base_name: str = ""
    """The base's hub id or name, never a path."""
    licence: str = ""
    """The base's, as its model card names it."""
    context_tokens: int = 2048
    """The longest row that was trained: what a runtime is told to make room for."""

    def tokenizer_folder(self) -> Path:
        """Where tokenizer and template are: beside the adapter where it has its own, else the base's."""
        return self.adapter if (self.adapter / "tokenizer_config.json").exists() else self.base_folder()

    def base_folder(self) -> Path:
        """The base's folder, for an exporter that needs it."""
        if self.base is None:
            raise StudioError("This export needs the base model, which is not on the disk.", "Download it again.")
        return self.base


class Exporter(Protocol):
    """One kind of artefact."""

    def size_bytes(self, source: ExportSource) -> int:
        """How much room the artefact takes."""

    def write(self, source: ExportSource, stage: Path, emit: Emit) -> None:
        """Writes the artefact into the empty folder `stage`. Raises a StudioError where it cannot be made."""

    def check(self, source: ExportSource, stage: Path, record: ChatRecord | None, emit: Emit) -> None:
        """Reads back what was written and says what was found; `record` is None where nobody asked for a comparison.

        Raises a StudioError for an artefact that is broken.
        """
