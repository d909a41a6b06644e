"""Which sentence each error of a library becomes when a base does not load."""

from __future__ import annotations

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from qlora_studio.core.errors import Problem
from qlora_studio.engine.load_faults import ASK_DOCTOR, explain_fault, find_damaged

AGAIN, OTHER = "Download it again.", "Choose another model, or update transformers."
UNKNOWN = "The model's config.json asks for something this version does not know: "


@pytest.fixture
def folder(tmp_path):
    """A model of two files of weights."""
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
    )
    for name, tensor in (("one", "a"), ("two", "b")):
        save_file({tensor: torch.ones(1)}, tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("error", "message", "hint", "file"),
    [
        (KeyError("swoosh"), f"{UNKNOWN}'swoosh'.", OTHER, "config.json"),
        (KeyError(), f"{UNKNOWN}KeyError.", OTHER, "config.json"),
        (AttributeError("no such thing.\nmore"), f"{UNKNOWN}no such thing.", OTHER, "config.json"),
        (TypeError("odd"), f"{UNKNOWN}odd.", OTHER, "config.json"),
        (OSError("broken."), "The model cannot be loaded: broken.", AGAIN, ""),
        (ValueError(""), "The model cannot be loaded: ValueError.", AGAIN, ""),
        (ValueError("CUDA is a word"), "The model cannot be loaded: CUDA is a word.", AGAIN, ""),
        (RuntimeError("shapes"), "The model cannot be loaded: shapes.", AGAIN, ""),
        (RuntimeError("CUDA error: x"), "The model cannot be loaded: CUDA error: x.", ASK_DOCTOR, ""),
        (torch.AcceleratorError("assert"), "The model cannot be loaded: assert.", ASK_DOCTOR, ""),
    ],
)
def test_each_error_is_a_sentence_with_its_place(folder, error, message, hint, file):
    assert explain_fault(error, folder).problems == (
        Problem(message, hint, str(folder / file) if file else str(folder)),
    )


def test_of_damaged_weights_the_first_file_is_named(folder):
    error = SafetensorError("header too large")
    assert find_damaged(folder) is None
    message, hint = "The weights are damaged: header too large.", "Download the model again."
    assert explain_fault(error, folder).problems == (Problem(message, hint, str(folder)),)
    (folder / "two.safetensors").write_bytes(b"x" * 9)
    assert find_damaged(folder) == folder / "two.safetensors"
    assert explain_fault(error, folder).problems == (Problem(message, hint, str(folder / "two.safetensors")),)
    (folder / "one.safetensors").write_bytes(b"")
    assert find_damaged(folder) == folder / "one.safetensors"
