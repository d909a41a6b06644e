"""The adapter for llama.cpp: a small GGUF file that it lays on a GGUF file of the base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from qlora_studio.core import events as ev
from qlora_studio.core.exports import lora_file_name
from qlora_studio.engine.companions import copy_licences
from qlora_studio.engine.exporters.comparison import ChatRecord
from qlora_studio.engine.exporters.merged import open_merged
from qlora_studio.engine.exporters.protocol import Emit, ExportSource
from qlora_studio.engine.gguf_file.adapter import GgufAdapter
from qlora_studio.engine.gguf_file.write import About


class GgufLoraExporter:
    """The factors of every layer; the base's weights are not read."""

    def size_bytes(self, source: ExportSource) -> int:
        with plan_adapter(source) as file:
            return file.bytes

    def write(self, source: ExportSource, stage: Path, emit: Emit) -> None:
        emit(ev.PhaseEntered(phase="writing the adapter as GGUF"))
        with plan_adapter(source) as file:
            file.write(stage / lora_file_name(source.name))
        copy_licences(source.base_folder(), stage)

    def check(self, source: ExportSource, stage: Path, record: ChatRecord | None, emit: Emit) -> None:
        """Reads the file back: every factor, at the strength that llama.cpp will give it."""
        with plan_adapter(source) as file:
            file.check(stage / lora_file_name(source.name))


EXPORTER = GgufLoraExporter()


@contextmanager
def plan_adapter(source: ExportSource) -> Iterator[GgufAdapter]:
    """The file of a run, ready to be written."""
    with open_merged(
        replace(source, merge_into="as_chatted")
    ) as merged:  # nothing is merged; every base can be laid on
        yield GgufAdapter(merged, About(source.name, source.base_name, source.licence))
