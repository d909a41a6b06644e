"""One file for llama.cpp, Ollama and LM Studio: the merged model with tokenizer and chat template, in few bits.

Written straight from base and adapter. The file is `engine/gguf_file`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora_studio.core import events as ev
from qlora_studio.engine.companions import copy_licences
from qlora_studio.engine.exporters.comparison import (
    ArtefactAnswers,
    ChatModel,
    ChatRecord,
    ask_layers,
    ask_model,
    check_words,
    compare_with_chat,
    look_at_layers,
)
from qlora_studio.engine.exporters.merged import BY_LAYERS, open_merged
from qlora_studio.engine.exporters.protocol import Emit, ExportSource
from qlora_studio.engine.gguf_file.llama_cpp import compare_with_llama_cpp, is_installed
from qlora_studio.engine.gguf_file.read import layers_of_gguf, load_gguf
from qlora_studio.engine.gguf_file.strength import measure_gguf
from qlora_studio.engine.gguf_file.write import About, GgufFile, Precision
from qlora_studio.engine.importance import load_importance
from qlora_studio.engine.layerwise import fits_in_memory
from qlora_studio.engine.modelfile import write_modelfile
from qlora_studio.engine.tokenizer import load_tokenizer


class GgufExporter:
    """A GGUF file with its Modelfile and the base's licence."""

    def size_bytes(self, source: ExportSource) -> int:
        with plan_gguf(source) as file:
            return file.bytes

    def write(self, source: ExportSource, stage: Path, emit: Emit) -> None:
        emit(ev.PhaseEntered(phase=f"writing {source.gguf}"))
        with plan_gguf(source) as file:
            path = stage / gguf_name(source)
            file.write(path, lambda done, total: emit(ev.Advanced(done=done, total=total, unit="bytes")))
        copy_licences(source.base_folder(), stage)
        write_modelfile(stage, path.name, load_tokenizer(source.tokenizer_folder()), source)

    def check(self, source: ExportSource, stage: Path, record: ChatRecord | None, emit: Emit) -> None:
        """Reads the file back and asks it what the chat was asked; llama.cpp as well, where it is installed."""
        if record is None:
            return
        emit(ev.PhaseEntered(phase=f"checking {source.gguf}"))
        path, tokenizer = stage / gguf_name(source), load_tokenizer(source.tokenizer_folder())
        check_words(record, tokenizer)
        like = ev.Checked(
            what=f"{source.gguf}, {source.merge_into.replace('_', ' ')}",
            as_chatted=source.merge_into == "as_chatted",
            precision=source.gguf if source.gguf not in ("F32", "F16", "BF16") else "16-bit",
        )
        found = ask_gguf(path, source, record, emit)
        with plan_gguf(source) as file:
            like = look_at_layers(like, measure_gguf(file, path))
        compare_with_chat(record, found, like, emit)
        if is_installed() and record.answers:
            emit(ev.Noted(text=compare_with_llama_cpp(path, record.answers)))
        elif record.answers:
            emit(ev.Noted(text="llama.cpp itself was not asked: it comes with `pip install xllamacpp`."))


EXPORTER = GgufExporter()


def ask_gguf(path: Path, source: ExportSource, record: ChatRecord, emit: Emit) -> ArtefactAnswers:
    """What the file says, read back into a model of the base's kind; layer by layer where that is larger than memory."""
    tokenizer = load_tokenizer(source.tokenizer_folder())
    with open_merged(source) as merged:
        values = sum(math.prod(tensor.shape) for tensor in merged.tensors)
    if fits_in_memory(values * source.device.dtype.itemsize):
        model = load_gguf(path, source.base_folder(), source.device)
        return ask_model(ChatModel(model, tokenizer, record.options), record)
    emit(ev.Noted(text=f"The model in the file does not fit into memory; {BY_LAYERS}"))
    return ask_layers(layers_of_gguf(path, source.base_folder(), source.device), tokenizer, record, emit)


@contextmanager
def plan_gguf(source: ExportSource) -> Iterator[GgufFile]:
    """The file of a run, ready to be written."""
    with open_merged(source) as merged:
        about = About(source.name, source.base_name, source.licence)
        precision = Precision(source.gguf, load_importance(source.importance))
        yield GgufFile(merged, load_tokenizer(source.tokenizer_folder()), precision, about)


def gguf_name(source: ExportSource) -> str:
    """`<run>.<type>.gguf`, as llama.cpp's own tools name them."""
    return f"{source.name}.{source.gguf}.gguf"
