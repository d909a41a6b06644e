"""The adapter as it was saved: PEFT's format, to be loaded on top of the base."""

from __future__ import annotations

import shutil
from pathlib import Path

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.engine.exporters.comparison import ChatRecord
from qlora_studio.engine.exporters.protocol import Emit, ExportSource
from qlora_studio.engine.manifest import find_damage


class AdapterExporter:
    """A copy, byte for byte."""

    def size_bytes(self, source: ExportSource) -> int:
        return sum(path.stat().st_size for path in source.adapter.iterdir())

    def write(self, source: ExportSource, stage: Path, emit: Emit) -> None:
        emit(ev.PhaseEntered(phase="copying the adapter"))
        for path in source.adapter.iterdir():
            shutil.copyfile(path, stage / path.name)

    def check(self, source: ExportSource, stage: Path, record: ChatRecord | None, emit: Emit) -> None:
        """Every byte of the copy against the manifest that came with it."""
        if damage := find_damage(stage):
            raise StudioError(damage, "Export again; the disk may be failing.")


EXPORTER = AdapterExporter()
