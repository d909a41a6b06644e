"""A whole model: the base with the adapter added into its weights, as safetensors that transformers loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.companions import copy_companions
from qlora_studio.engine.exporters.comparison import (
    ChatModel,
    ChatRecord,
    ask_layers,
    ask_model,
    check_words,
    compare_with_chat,
    look_at_layers,
)
from qlora_studio.engine.exporters.protocol import Emit, ExportSource
from qlora_studio.engine.layerwise import LayerwiseModel, fits_in_memory
from qlora_studio.engine.load import Device, choose_attention, load_base, read_text_config
from qlora_studio.engine.merge import MergedWeights, MergeRecipe, write_merged
from qlora_studio.engine.model_layout import find_layout
from qlora_studio.engine.model_weights import ModelWeights
from qlora_studio.engine.oom import is_out_of_memory
from qlora_studio.engine.strength import measure_merged
from qlora_studio.engine.tokenizer import load_tokenizer
from qlora_studio.weight_files import find_weight_files


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
        tokenizer = load_tokenizer(stage)
        check_words(record, tokenizer)
        model = load_merged(stage, source.device, emit)
        if isinstance(model, LayerwiseModel):
            found = ask_layers(model, tokenizer, record, emit)
        else:
            found = ask_model(ChatModel(model, tokenizer, record.options), record)
        like = ev.Checked(
            what=f"merged model, {source.merge_into.replace('_', ' ')}", as_chatted=source.merge_into == "as_chatted"
        )
        del model
        with open_merged(source) as merged, closing(ModelWeights(stage)) as written:
            like = look_at_layers(like, measure_merged(merged, written))
        compare_with_chat(record, found, like, emit)


EXPORTER = MergedExporter()
BY_LAYERS = "it is checked layer by layer from its files."


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
    """The merged model unquantised, ready to answer: on the accelerator where it fits, else in the computer's memory, else
    with its weights left in their files.
    """
    host = isinstance(device.accelerator, CpuAccelerator)
    places = [] if host else [device]
    if fits_in_memory(sum(path.stat().st_size for path in find_weight_files(folder).paths)):
        places.append(device if host else Device(CpuAccelerator(), device.dtype))
    for place in places:
        if place is not device:
            emit(ev.Noted(text="The merged model does not fit the card; it is checked in the computer's memory."))
        try:
            return load_base(folder, place, four_bit=False).eval()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        place.accelerator.release()
    emit(ev.Noted(text=f"The merged model does not fit into memory; {BY_LAYERS}"))
    return layers_of_merged(folder, device)


def layers_of_merged(folder: Path, device: Device) -> LayerwiseModel:
    """The merged model with its weights left in their files.

    Raises a StudioError where its files hold parts of weights that are joined while they are loaded.
    """
    weights = ModelWeights(folder)
    layout = find_layout(folder, weights.tensors)
    if layout.joined:
        raise StudioError(
            "This export does not fit into memory, and experts in files of their own cannot be checked layer by layer.",
            "Close other programs and export again, or export without the comparison.",
        )
    stored = {parameter: name for name, parameter in layout.parameters.items()}
    config: Any = read_text_config(folder)
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=device.dtype, attn_implementation=choose_attention(config, device)
        )
    model.tie_weights()
    return LayerwiseModel(model, lambda parameter: weights.read(stored[parameter]), device)
