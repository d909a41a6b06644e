"""Input embeddings that stay in the computer's memory, where tokens are looked up, to leave room on the card."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def place_embeddings_on_host(config: Any, device: torch.device) -> dict[str, Any]:
    """A device map with the input embeddings on the CPU and all else on `device`; all of it where they are tied.

    Every module beside the way to the embeddings is named: one entry for the whole would take them along.
    """
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config)
    embeddings: Any = model.get_input_embeddings()
    if config.get_text_config().tie_word_embeddings or embeddings.weight is model.get_output_embeddings().weight:
        return {"": device}
    way = next(name for name, module in model.named_modules() if module is embeddings)
    places: dict[str, Any] = {}
    for name, _ in model.named_modules():
        parent = name.rpartition(".")[0]
        if name and name != way and _leads_to(way, parent) and not _leads_to(way, name):
            places[name] = device
    return {**places, way: "cpu"}


def _leads_to(way: str, name: str) -> bool:
    """Whether the module `name` contains the one at `way`; the empty name is the whole model."""
    return not name or way.startswith(f"{name}.")


def look_tokens_up_on_host(model: PreTrainedModel, device: torch.device) -> None:
    """Gives input embeddings that lie in the computer's memory a forward whose result is on `device`."""
    embeddings: Any = model.get_input_embeddings()
    look_up = type(embeddings).forward
    embeddings.forward = lambda ids: look_up(embeddings, ids.cpu()).to(device, non_blocking=True)
