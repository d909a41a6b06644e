"""What llama.cpp computes from a file is what base and adapter compute; the file says what it is and no more."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import GGUF_FAMILIES
from qlora_studio.engine import merge
from qlora_studio.engine.compare import agreement
from qlora_studio.engine.gguf_file import families
from qlora_studio.engine.gguf_file.families import find_family
from qlora_studio.engine.gguf_file.write import About, interleave
from tests.engine.gguf_file.small_models import FAMILIES, reference, small_base, write_gguf
from tests.llama_cpp import LlamaCpp
from tests.matrix import mostly_slow

IDS = [*range(300, 390)]
SAME_KL = 1e-5


@pytest.mark.parametrize("name", mostly_slow(FAMILIES, "gemma3"))
@torch.no_grad()
def test_llama_cpps_logits_are_those_of_base_and_adapter(name, tmp_path):
    model_type, changes = FAMILIES[name]
    base = small_base(model_type, tmp_path / "base", **changes)
    read = LlamaCpp(write_gguf(base, tmp_path, "F32", About("small")))
    expected = reference(base, tmp_path / "adapter")(torch.tensor([IDS])).logits[0].log_softmax(-1)
    same, kl = agreement(expected, read.logits(IDS).log_softmax(-1))
    read.close()
    assert kl < SAME_KL and same > 0.97


COARSER = [("F16", 1e-4), ("BF16", 1e-2), ("Q8_0", 0.04), ("Q6_K", 0.2), ("Q5_K_M", 0.6), ("Q4_K_M", 1.4)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most"), mostly_slow(COARSER, ("Q4_K_M", 1.4)))
@torch.no_grad()
def test_coarser_types_load_and_stay_near(kind, most, tmp_path):
    base = small_base("llama", tmp_path / "base", hidden_size=256, num_attention_heads=8)
    path = write_gguf(base, tmp_path, kind, About("small"))
    read = LlamaCpp(path)
    expected = reference(base, tmp_path / "adapter")(torch.tensor([IDS])).logits[0].log_softmax(-1)
    assert agreement(expected, read.logits(IDS).log_softmax(-1))[1] < most
    read.close()


def test_the_file_says_what_it_is_and_names_no_place_of_this_machine(tmp_path):
    base = small_base("llama", tmp_path / "base")
    path = write_gguf(base, tmp_path, "Q8_0", About("My run", "org/Small-Base", "apache-2.0"))
    fields = gguf.GGUFReader(path).fields
    contents = {name: field.contents() for name, field in fields.items()}
    assert contents["general.name"] == "My run" and contents["general.license"] == "apache-2.0"
    assert (
        contents["general.base_model.0.name"] == "Small-Base" and contents["general.base_model.0.organization"] == "org"
    )
    assert contents["tokenizer.ggml.eos_token_id"] == 2 and "im_start" in contents["tokenizer.chat_template"]
    assert str(tmp_path) not in path.read_bytes()[: 1 << 20].decode("utf-8", "replace")
    assert path.stat().st_size > 0 and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("gpt_neox", {}, "A gpt_neox model is not written as GGUF here"),
        ("llama", {"hidden_act": "gelu"}, "the activation gelu"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}}, "positions scaled by yarn"),
        ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 64, "tie_word_embeddings": True}, "queries scaled in another way"),
        ("smollm3", {"no_rope_layer_interval": 3}, "another pattern of layers without positions"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_compute_otherwise_is_refused_with_the_way_out(model_type, changes, message, tmp_path):
    base = small_base(model_type, tmp_path / "base", **changes)
    with pytest.raises(StudioError, match=message) as refused:
        write_gguf(base, tmp_path, "F16", About("small"))
    assert "Export the merged model instead" in refused.value.hint


def test_every_family_is_known_to_the_package_and_to_those_who_ask_before():
    assert tuple(families.FAMILIES) == GGUF_FAMILIES
    assert find_family("llama").arch == "LLAMA"
    for _, (model_type, _) in FAMILIES.items():
        assert gguf.MODEL_ARCH[find_family(model_type).arch]


def test_rows_are_paired_as_llama_cpp_rotates_them():
    assert interleave(torch.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.slow
@pytest.mark.parametrize("into", ["original", "as_chatted"])
@pytest.mark.parametrize("name", mostly_slow(["llama", "phi4-mini", "gemma3"], "phi4-mini"))
def test_in_pieces_of_a_few_rows_the_file_is_the_same(name, into, tmp_path, monkeypatch):
    model_type, changes = FAMILIES[name]
    base = small_base(model_type, tmp_path / "base", **changes)
    whole = write_gguf(base, tmp_path, "F32", About("small"), into)
    monkeypatch.setattr(merge, "PIECE_VALUES", 2000)
    (tmp_path / "two").mkdir()
    pieces = write_gguf(base, tmp_path / "two", "F32", About("small"), into, tmp_path / "adapter")
    for one, other in zip(gguf.GGUFReader(whole).tensors, gguf.GGUFReader(pieces).tensors, strict=True):
        assert np.allclose(one.data, other.data, atol=1e-6), one.name
