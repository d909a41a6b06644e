"""How a model that is loaded names and treats its weights, beside how its files name them.

transformers renames while it loads: a prefix comes or goes, a family's older names become its present ones, experts are
joined. An adapter speaks of the loaded model, a merge writes files, so both names are needed. The model that is looked at
is whole and has no numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from qlora_studio.engine.architecture import quantised_names
from qlora_studio.engine.load import read_text_config
from qlora_studio.engine.stand_ins import build, without_numbers


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """The weights of a model, by the name it has when it is loaded."""

    parameters: Mapping[str, str]
    """The loaded model's name of each tensor in the files."""
    joined: frozenset[str]
    """Tensors of the files that become a part of a larger one."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the loaded model's parameters."""
    quantised: frozenset[str]
    """Parameters that the chat computes with in 4 bits."""
    transposed: frozenset[str]
    """Parameters stored as (in, out), as GPT-2's are."""
    embedding: str
    head: str
    """Parameters of input embeddings and output head."""
    tied: bool
    """Whether these two are one."""


def find_layout(folder: Path, names: Iterable[str]) -> ModelLayout:
    """The layout of a model's folder whose files hold tensors of these names.

    Raises a StudioError where its config.json is not that of a causal language model.
    """
    with without_numbers():
        model = build(read_text_config(folder), torch.bfloat16)
    state = model.state_dict()
    parameters, joined = _rename(model, state, names)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    modules = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    return ModelLayout(
        parameters=parameters,
        joined=joined,
        shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
        quantised=frozenset(f"{name}.weight" for name in quantised_names(model)),
        transposed=frozenset(f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)),
        embedding=modules[id(embedding)],
        head=modules.get(id(head), ""),
        tied=bool(head is not None and head.weight is embedding.weight),
    )


def _rename(
    model: PreTrainedModel, state: Mapping[str, Any], names: Iterable[str]
) -> tuple[dict[str, str], frozenset[str]]:
    """What transformers' loader makes of these names, by its own rules, and which of them it joins."""
    transforms = get_model_conversion_mapping(model)
    renamings: Any = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters: Any = [one for one in transforms if not isinstance(one, WeightRenaming)]
    parameters, joined, known = {}, set(), dict(state)
    for name in names:
        new, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if new not in known and name in known:
            new, pattern = rename_source_key(name, [], [], model.base_model_prefix, known)
        parameters[name] = new
        if pattern is not None:
            joined.add(name)
    return parameters, frozenset(joined)
