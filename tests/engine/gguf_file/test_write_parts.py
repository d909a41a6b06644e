"""What stands in a GGUF file beside its numbers, in what order its bytes come, and how rows are laid out."""

from __future__ import annotations

from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.gguf_file.adapter import GgufAdapter
from qlora_studio.engine.gguf_file.families import FAMILIES
from qlora_studio.engine.gguf_file.write import (
    ALIGNMENT,
    About,
    GgufFile,
    Planned,
    Precision,
    describe,
    interleave,
)
from qlora_studio.engine.merge import MergedWeights, MergeRecipe
from qlora_studio.engine.tokenizer import load_tokenizer
from tests.engine.gguf_file.small_models import small_adapter, small_base


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small Llama of two layers and an adapter on it."""
    place = tmp_path_factory.mktemp("gguf")
    base = small_base("llama", place / "base", num_hidden_layers=2)
    return base, small_adapter(base, place / "adapter")


@pytest.fixture
def merged(folders):
    weights = MergedWeights(MergeRecipe(*folders, "original", torch.float32))
    yield weights
    weights.close()


def general(about, kind="model"):
    writer = gguf.GGUFWriter(None, "llama")
    describe(writer, kind, about)
    found = {key: value.value for part in writer.kv_data for key, value in part.items()}
    return {key.removeprefix("general."): value for key, value in found.items() if key != "general.architecture"}


@pytest.mark.parametrize(
    ("about", "more"),
    [
        (About("me"), {}),
        (About("me", licence="mit"), {"license": "mit"}),
        (About("me", "Base"), {"base_model.count": 1, "base_model.0.name": "Base"}),
        (
            About("me", "org/Base", "mit"),
            {
                "license": "mit", "base_model.count": 1, "base_model.0.name": "Base", "base_model.0.organization": "org",
                "base_model.0.repo_url": "https://huggingface.co/org/Base",
            },
        ),
    ],
)  # fmt: skip
def test_a_file_says_its_name_and_what_is_known_of_its_base(about, more):
    assert general(about) == {"type": "model", "name": "me"} | more
    assert general(about, "adapter") == {"type": "adapter", "name": "me"} | more


@pytest.mark.parametrize(
    ("kind", "file_type", "importance"), [("F32", 0, 0), ("Q8_0", 7, 0), ("Q4_K_M", 15, 2)], ids=str
)
def test_the_header_says_how_numbers_are_kept_and_how_many_tokens_there_are(
    folders, merged, kind, file_type, importance
):
    columns = {f"model.layers.{number}.mlp.up_proj.weight": torch.ones(128) for number in range(importance)}
    planned = GgufFile(merged, load_tokenizer(folders[0]), Precision(kind, columns), About("small"))
    found = {key: value.value for part in planned.writer.kv_data for key, value in part.items()}
    rows = merged.base.tensors["model.embed_tokens.weight"].shape[0]
    expected = {
        "general.architecture": "llama", "general.type": "model", "general.name": "small",
        "general.file_type": file_type, "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "llama.vocab_size": rows, "llama.block_count": 2,
    }  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected
    assert len(found["tokenizer.ggml.tokens"]) == rows
    assert found.get("quantize.imatrix.entries_count") == (importance or None)


def test_every_tensor_is_written_at_its_place_and_told_as_it_goes(folders, merged, tmp_path):
    planned = GgufFile(merged, load_tokenizer(folders[0]), Precision("Q8_0"), About("small"))
    told, path = [], tmp_path / "small.gguf"
    planned.write(path, lambda done, total: told.append((done, total)))
    tensors = gguf.GGUFReader(path).tensors
    assert [(one.name, one.tensor_type, one.n_bytes) for one in tensors] == [
        (one.name, one.kind, one.bytes) for one in planned.tensors
    ]
    assert all(one.data_offset % ALIGNMENT == 0 for one in tensors)
    assert [file.name for file in tmp_path.iterdir()] == ["small.gguf"]
    assert path.stat().st_size == -(-(tensors[-1].data_offset + tensors[-1].n_bytes) // 32) * 32
    assert planned.bytes == sum(one.bytes for one in planned.tensors)
    sums = np.cumsum([one.bytes for one in planned.tensors])
    assert told == [(int(done), planned.bytes) for done in sums], "each is small enough for one piece"
    kinds = {one.name: one.kind for one in planned.tensors}
    assert kinds["token_embd.weight"] == Type.Q8_0 and kinds["output_norm.weight"] == Type.F32
    (norm,) = [one for one in tensors if one.name == "output_norm.weight"]
    assert np.array_equal(norm.data, merged.base.read("model.norm.weight").numpy())


def test_a_tensor_of_another_size_than_planned_leaves_no_file(folders, merged, tmp_path):
    planned = GgufFile(merged, load_tokenizer(folders[0]), Precision("F32"), About("small"))
    planned.encode = lambda tensor, rows: np.zeros(3, np.uint8)
    with pytest.raises(StudioError, match="has another size than planned"):
        planned.write(tmp_path / "small.gguf")
    assert not (tmp_path / "small.gguf").exists()


def test_a_part_of_the_adapter_that_nothing_took_leaves_no_file(folders, merged, tmp_path):
    merged.adapter._left.add("somewhere.lora_A.weight")
    planned = GgufFile(merged, load_tokenizer(folders[0]), Precision("F32"), About("small"))
    with pytest.raises(
        StudioError, match=r"1 weights of the adapter have no place in this base, first somewhere\.lora_A"
    ):
        planned.write(tmp_path / "small.gguf")
    with pytest.raises(StudioError, match="1 weights of the adapter have no place"):
        GgufAdapter(merged, About("small")).write(tmp_path / "small.lora.gguf")
    assert not (tmp_path / "small.gguf").exists() and not (tmp_path / "small.lora.gguf").exists()


def test_rows_of_heads_are_paired_from_halves():
    assert interleave(torch.arange(12), 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert interleave(torch.arange(8), 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    rows = torch.arange(8.0).view(4, 2)
    assert interleave(rows, 1).tolist() == [[0, 1], [4, 5], [2, 3], [6, 7]]


def layout_of(family):
    """A file of this family of 4 heads and 2 of keys, of which only the layout is looked at."""
    planned = GgufFile.__new__(GgufFile)
    planned.family = FAMILIES[family]
    planned.config = SimpleNamespace(num_attention_heads=4, num_key_value_heads=2)
    return planned


@pytest.mark.parametrize(
    ("family", "name", "rows", "together"),
    [
        ("llama", "blk.0.attn_q.weight", 32, 8),
        ("llama", "blk.0.attn_k.weight", 32, 16),
        ("llama", "blk.0.attn_k.bias", 16, 8),
        ("llama", "blk.0.attn_v.weight", 32, 1),
        ("llama", "blk.0.attn_q_norm.weight", 32, 1),
        ("qwen2", "blk.0.attn_q.weight", 32, 1),
    ],
)
def test_rows_of_a_head_are_laid_out_together_where_they_are_paired(family, name, rows, together):
    planned = layout_of(family)
    tensor = Planned(name, Type.F32, (rows, 3), torch.empty(0))
    assert planned.head_rows(tensor) == together
    weight = torch.arange(rows * 3.0).view(rows, 3)
    expected = interleave(weight, rows // together) if together > 1 else weight
    assert torch.equal(planned.lay_out(tensor, weight), expected)


def test_norms_of_a_gemma_are_raised_by_one_and_nothing_else():
    planned, weight = layout_of("gemma2"), torch.tensor([0.5, -1]).bfloat16()
    for name, expected in (("blk.0.attn_norm.weight", [1.5, 0]), ("blk.0.ffn_up.weight", [0.5, -1])):
        assert planned.lay_out(Planned(name, Type.F32, (2,), torch.empty(0)), weight).tolist() == expected
    plain = layout_of("llama")
    assert plain.lay_out(Planned("blk.0.attn_norm.weight", Type.F32, (2,), torch.empty(0)), weight) is weight


def test_an_adapter_s_file_holds_each_factor_at_its_strength_and_is_checked(folders, merged, tmp_path):
    one, path = GgufAdapter(merged, About("small", "org/Base")), tmp_path / "small.lora.gguf"
    one.write(path)
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields == {
        "general.architecture": "llama", "general.type": "adapter", "general.name": "small",
        "general.base_model.count": 1, "general.base_model.0.name": "Base", "general.base_model.0.organization": "org",
        "general.base_model.0.repo_url": "https://huggingface.co/org/Base",
        "adapter.type": "lora", "adapter.lora.alpha": 8.0,
    }  # fmt: skip
    held = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    assert len(held) == 2 * 7 * 2 and one.bytes == sum(4 * value.numel() for value in held.values())
    a, b, _ = merged.adapter.factors("model.layers.1.self_attn.k_proj")
    assert torch.equal(held["blk.1.attn_k.weight.lora_a"], a)
    assert torch.equal(held["blk.1.attn_k.weight.lora_b"], interleave(b, one.config.num_key_value_heads))
    a, b, _ = merged.adapter.factors("model.layers.0.mlp.up_proj")
    assert torch.equal(held["blk.0.ffn_up.weight.lora_a"], a) and torch.equal(held["blk.0.ffn_up.weight.lora_b"], b)
    one.check(path)
    one.alpha = 4.0
    with pytest.raises(StudioError, match="The GGUF file does not hold the adapter"):
        one.check(path)
    one.alpha = 8.0
    del one.names["model.layers.0.mlp.up_proj"]
    with pytest.raises(StudioError, match="does not hold the adapter"):
        one.check(path)
