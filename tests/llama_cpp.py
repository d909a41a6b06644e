"""llama.cpp itself, from the xllamacpp wheel: its logits, its tokenizer and its quantisation, by its C interface.

The wheel exports the library's functions beside its Python ones. Settings are structures that grow from version to
version; they are passed as blocks that are large enough for any, filled in by the library's own defaults.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SETTINGS_BYTES = 1024
THREADS = 2


class Settings(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_uint8 * SETTINGS_BYTES),)


class Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32)), ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)), ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))), ("logits", ctypes.POINTER(ctypes.c_int8)),
    )  # fmt: skip


def library() -> Any:
    """The library, its functions declared. Skips the test where the wheel is not installed."""
    xllamacpp = pytest.importorskip("xllamacpp")
    place = Path(xllamacpp.__file__).parent
    found = ctypes.CDLL(str(next(iter(sorted([*place.glob("*.so"), *place.glob("*.pyd")])))))
    pointer = ctypes.c_void_p
    for name, result, arguments in (
        ("llama_model_default_params", Settings, []),
        ("llama_context_default_params", Settings, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, Settings]),
        ("llama_init_from_model", pointer, [pointer, Settings]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", ctypes.c_int32, [pointer]),
        ("llama_vocab_get_add_bos", ctypes.c_bool, [pointer]),
        ("llama_vocab_is_eog", ctypes.c_bool, [pointer, ctypes.c_int32]),
        ("llama_model_chat_template", ctypes.c_char_p, [pointer, ctypes.c_char_p]),
        ("llama_tokenize", ctypes.c_int32, [pointer, ctypes.c_char_p, ctypes.c_int32, pointer, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool]),
        ("llama_batch_init", Batch, [ctypes.c_int32] * 3),
        ("llama_batch_free", None, [Batch]),
        ("llama_decode", ctypes.c_int32, [pointer, Batch]),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, ctypes.c_int32]),
        ("llama_adapter_lora_init", pointer, [pointer, ctypes.c_char_p]),
        ("llama_set_adapters_lora", ctypes.c_int32, [pointer, pointer, ctypes.c_size_t, pointer]),
        ("llama_free", None, [pointer]),
        ("llama_model_free", None, [pointer]),
        ("llama_log_set", None, [pointer, pointer]),
        ("ggml_quantize_chunk", ctypes.c_size_t, [ctypes.c_int, pointer, pointer, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, pointer]),
    ):  # fmt: skip
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)


class LlamaCpp:
    """A GGUF file as llama.cpp reads it."""

    def __init__(self, path: Path, adapter: Path | None = None) -> None:
        self.library = library()
        self.library.llama_log_set(SILENT, None)
        self.model = self.library.llama_model_load_from_file(
            str(path).encode(), self.library.llama_model_default_params()
        )
        assert self.model, f"llama.cpp cannot load {path}"
        self.vocab = self.library.llama_model_get_vocab(self.model)
        self.adapter = self.library.llama_adapter_lora_init(self.model, str(adapter).encode()) if adapter else None
        assert self.adapter or not adapter, f"llama.cpp cannot load {adapter}"

    def close(self) -> None:
        self.library.llama_model_free(self.model)

    @property
    def template(self) -> str:
        return self.library.llama_model_chat_template(self.model, None).decode()

    @property
    def adds_bos(self) -> bool:
        return bool(self.library.llama_vocab_get_add_bos(self.vocab))

    def ends(self, token: int) -> bool:
        """Whether this token ends an answer."""
        return bool(self.library.llama_vocab_is_eog(self.vocab, token))

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 16))()
        count = self.library.llama_tokenize(self.vocab, data, len(data), room, len(room), False, special)
        assert count >= 0
        return list(room[:count])

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Next-token logits (positions, vocab) after each of these tokens."""
        settings = self.library.llama_context_default_params()
        sizes = ctypes.cast(ctypes.byref(settings), ctypes.POINTER(ctypes.c_uint32))
        sizes[0] = sizes[1] = sizes[2] = max(32, len(ids))  # n_ctx, n_batch, n_ubatch
        context = self.library.llama_init_from_model(self.model, settings)
        assert context
        if self.adapter:
            adapters, strengths = (ctypes.c_void_p * 1)(self.adapter), (ctypes.c_float * 1)(1.0)
            assert self.library.llama_set_adapters_lora(context, adapters, 1, strengths) == 0
        batch = self.library.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, place, 1
            batch.seq_id[place][0], batch.logits[place] = 0, 1
        assert self.library.llama_decode(context, batch) == 0
        width = self.library.llama_vocab_n_tokens(self.vocab)
        rows = [
            np.ctypeslib.as_array(self.library.llama_get_logits_ith(context, place), (width,)).copy()
            for place in range(len(ids))
        ]
        self.library.llama_batch_free(batch)
        self.library.llama_free(context)
        return torch.from_numpy(np.stack(rows))


def quantize(rows: np.ndarray, kind: int, importance: np.ndarray | None = None) -> np.ndarray:
    """The rows (rows, columns) as llama.cpp's reference encodes them; `importance` weighs columns (columns,)."""
    source = np.ascontiguousarray(rows, dtype=np.float32)
    out = np.zeros(source.nbytes, dtype=np.uint8)
    columns = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    weights = None if columns is None else columns.ctypes.data
    size = library().ggml_quantize_chunk(
        kind, source.ctypes.data, out.ctypes.data, 0, source.shape[0], source.shape[1], weights
    )
    return out[:size].reshape(source.shape[0], -1)
