"""One folder to share: adapter, merged model and GGUF file, whichever were chosen, each as its own exporter writes it.

The adapter and the merged model have folders of their own; the GGUF file lies beside its Modelfile.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qlora_studio.engine.companions import copy_licences
from qlora_studio.engine.exporters.comparison import ChatRecord
from qlora_studio.engine.exporters.protocol import Emit, Exporter, ExportSource
from qlora_studio.engine.exporters.registry import find_exporter


class PackExporter:
    """The chosen parts, in the order in which they are listed."""

    def size_bytes(self, source: ExportSource) -> int:
        return sum(exporter.size_bytes(source) for _, exporter in _parts(source))

    def write(self, source: ExportSource, stage: Path, emit: Emit) -> None:
        for name, exporter in _parts(source):
            _place(stage, name).mkdir(exist_ok=True)
            exporter.write(source, _place(stage, name), emit)
        copy_licences(source.base_folder(), stage)

    def check(self, source: ExportSource, stage: Path, record: ChatRecord | None, emit: Emit) -> None:
        """Every part as it is checked alone."""
        for name, exporter in _parts(source):
            exporter.check(source, _place(stage, name), record, emit)


EXPORTER = PackExporter()


def _parts(source: ExportSource) -> Iterator[tuple[str, Exporter]]:
    for name in source.parts:
        yield name, find_exporter(name)


def _place(stage: Path, name: str) -> Path:
    return stage if name == "gguf" else stage / name
