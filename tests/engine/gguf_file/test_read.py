"""A GGUF file read back is the model it was written from, by a reader that takes every weight of the model."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.gguf_file.read import load_gguf, part
from qlora_studio.engine.gguf_file.write import About, interleave
from tests.engine.conftest import FP32
from tests.engine.gguf_file.small_models import FAMILIES, reference, small_base, write_gguf
from tests.matrix import mostly_slow

IDS = torch.tensor([[*range(300, 390)]])


@pytest.mark.parametrize("name", mostly_slow(FAMILIES, "qwen2"))
@torch.no_grad()
def test_it_computes_what_base_and_adapter_compute(name, tmp_path):
    model_type, changes = FAMILIES[name]
    base = small_base(model_type, tmp_path / "base", **changes)
    path = write_gguf(base, tmp_path, "F32", About("small"))
    expected = reference(base, tmp_path / "adapter")(IDS).logits
    assert torch.allclose(load_gguf(path, base, FP32)(IDS).logits, expected, atol=1e-4)


def test_a_file_of_another_model_is_refused(tmp_path):
    small = small_base("llama", tmp_path / "small", num_hidden_layers=4)
    large = small_base("llama", tmp_path / "large")
    file = write_gguf(small, tmp_path, "F16", About("small"))
    with pytest.raises(StudioError, match=r"The GGUF file has no model\.layers\.4"):
        load_gguf(file, large, FP32)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_what_is_paired_can_be_parted(heads):
    rows = torch.randn(16, 3)
    assert torch.equal(part(interleave(rows, heads), heads), rows)


def test_as_chatted_is_written_from_the_rounded_weights(tmp_path):
    base = small_base("llama", tmp_path / "base")
    original = write_gguf(base, tmp_path, "F32", About("small"))
    (tmp_path / "two").mkdir()
    chatted = write_gguf(base, tmp_path / "two", "F32", About("small"), "as_chatted", tmp_path / "adapter")
    read = [{one.name: one.data.copy() for one in gguf.GGUFReader(path).tensors} for path in (original, chatted)]
    same = {name for name in read[0] if np.array_equal(read[0][name], read[1][name])}
    assert {"token_embd.weight", "output.weight", "output_norm.weight"} <= same
    assert not any("attn_q" in name or "ffn" in name for name in same if "norm" not in name)
