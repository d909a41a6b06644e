"""Whether rows of a model will be packed, as far as its shapes tell: the plan's answer before anything is loaded.

A leak between rows shows in numbers alone, so the loaded model is tried again (`packing.py`). A test compares both answers
for many families.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig

from qlora_studio.engine.kernels.checkpointing import draws_numbers
from qlora_studio.engine.kernels.documents import Documents
from qlora_studio.engine.packing import RANDOM, UNCUT, check_windows, explain_padding, find_uncut_layers
from qlora_studio.engine.stand_ins import ATTENTION, attention_of, build, shorten

LAYERS = 4
"""Layers of the copy that is tried."""


def find_padding(config: PreTrainedConfig) -> str | None:
    """Why this model's rows will be padded; None where they will lie side by side. Called where numbers are left out."""
    text = config.get_text_config()
    attention = attention_of(config)
    if attention == "eager":
        return UNCUT
    if (reason := find_uncut_layers(text)) is not None:
        return reason
    model = build(shorten(config, min(LAYERS, text.num_hidden_layers)), torch.bfloat16)
    if draws_numbers(model):
        return RANDOM
    if attention != ATTENTION:
        return explain_padding(TypeError())
    decoder: Any = model.get_decoder()
    documents, ids = Documents(()), torch.zeros(1, 8, dtype=torch.long)  # no numbers, so no rows to be cut by
    try:
        decoder(input_ids=ids, position_ids=ids, documents=documents, use_cache=False)
        check_windows(decoder.config, documents.windows)
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
        return explain_padding(error)
    return None
