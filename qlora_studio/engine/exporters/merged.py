"""A whole model: the base with the adapter added into its weights, as safetensors that transformers loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qlora_studio.core import events as ev
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.companions import copy_companions
from qlora_studio.engine.exporters.comparison import ChatRecord, Speaker, compare_with_chat
from qlora_studio.engine.exporters.protocol import Emit, ExportSource
from qlora_studio.engine.load import Device, load_base
from qlora_studio.engine.merge import MergedWeights, MergeRecipe, write_merged
from qlora_studio.engine.oom import is_out_of_memory
from qlora_studio.engine.tokenizer import load_tokenizer


class MergedExporter:
    """As large as the base in 16 bits. The mathematics are `merge.py`'s."""

    def size_bytes(self, source: ExportSource) -> int:
        with open_merged(source) as merged:
            return merged.bytes

    def write(self, source: ExportSource, stage: Path, emit: Emit) -> None:
        emit(ev.PhaseEntered(phase="merging"))
        with open_merged(source) as merged:
            write_merged(merged, stage, lambda done, total: emit(ev.Advanced(done=done, total=total, unit="bytes")))
        copy_companions(source.base_folder(), source.adapter, stage)

    def check(self, source: ExportSource, stage: Path, record: ChatRecord | None, emit: Emit) -> None:
        """Reads the merged model back and asks it what the chat was asked."""
        if record is None:
            return
        emit(ev.PhaseEntered(phase="checking the merged model"))
        artefact = Speaker(load_merged(stage, source.device, emit), load_tokenizer(stage), record.options)
        like = ev.Checked(
            what=f"merged model, {source.merge_into.replace('_', ' ')}", as_chatted=source.merge_into == "as_chatted"
        )
        compare_with_chat(record, artefact, like, emit)


EXPORTER = MergedExporter()


@contextmanager
def open_merged(source: ExportSource) -> Iterator[MergedWeights]:
    """The merged weights of a run, closed afterwards."""
    recipe = MergeRecipe(source.base_folder(), source.adapter, source.merge_into, source.device.dtype)
    merged = MergedWeights(recipe)
    try:
        yield merged
    finally:
        merged.close()


def load_merged(folder: Path, device: Device, emit: Emit) -> Any:
    """The merged model unquantised, ready to answer: on the accelerator where it fits, else in the computer's memory."""
    try:
        model = load_base(folder, device, four_bit=False)
    except Exception as error:
        if not is_out_of_memory(error) or isinstance(device.accelerator, CpuAccelerator):
            raise
        model = None
    if model is None:
        device.accelerator.release()
        emit(ev.Noted(text="The merged model does not fit the card; it is checked in the computer's memory."))
        model = load_base(folder, Device(CpuAccelerator(), device.dtype), four_bit=False)
    return model.eval()
