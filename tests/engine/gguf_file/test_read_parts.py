"""One tensor of a GGUF file decoded, in pieces of any size, as transformers lays it out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from qlora_studio.engine.gguf_file import read
from qlora_studio.engine.gguf_file.blocks import encode
from qlora_studio.engine.gguf_file.families import FAMILIES
from qlora_studio.engine.gguf_file.mixture import Mixture, bytes_of
from qlora_studio.engine.gguf_file.strength import _decode as decode_rows
from qlora_studio.engine.gguf_file.write import interleave
from qlora_studio.engine.strength import Measure, Strength

CONFIG = SimpleNamespace(num_attention_heads=4, num_key_value_heads=2)


def stored(name: str, weight: torch.Tensor, kind: Type):
    """What `GGUFReader` gives for a tensor: its shape from the last dimension to the first, and its bytes by row."""
    data = encode(weight, kind).reshape(weight.shape[0] if weight.dim() > 1 else 1, -1)
    numbers = {Type.F32: np.float32, Type.F16: np.float16}
    data = data.view(numbers[kind]) if kind in numbers else data
    return SimpleNamespace(name=name, shape=np.array(weight.shape[::-1]), data=data, tensor_type=kind)


@pytest.mark.parametrize("at_once", [1, 64, 128, 130, 1 << 20])
@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.Q8_0])
def test_rows_come_back_whole_in_pieces_of_any_size(monkeypatch, kind, at_once):
    monkeypatch.setattr(read, "ROW_VALUES", at_once)
    weight = torch.randint(-127, 128, (5, 64)).float()
    weight[:, ::32] = 127  # so that eight bits hold each block
    found = read._decode(stored("blk.0.ffn_up.weight", weight, kind), FAMILIES["llama"], CONFIG, torch.float32)
    assert torch.equal(found, weight)


def test_a_vector_comes_back_as_one_and_norms_of_a_gemma_lowered():
    vector = torch.arange(6.0)
    for family, expected in (("llama", vector), ("gemma2", vector - 1)):
        one = stored("blk.0.attn_norm.weight", vector, Type.F32)
        one.data = one.data.reshape(-1)
        found = read._decode(one, FAMILIES[family], CONFIG, torch.bfloat16)
        assert torch.equal(found, expected.bfloat16())
    other = stored("blk.0.ffn_up.weight", torch.ones(2, 2), Type.F32)
    assert torch.equal(read._decode(other, FAMILIES["gemma2"], CONFIG, torch.float32), torch.ones(2, 2))


@pytest.mark.parametrize(("letter", "heads"), [("q", 4), ("k", 2), ("v", None)])
def test_rows_of_heads_are_parted_where_the_family_pairs_them(letter, heads):
    weight = torch.arange(48.0).view(16, 3)
    paired = stored(f"blk.0.attn_{letter}.weight", interleave(weight, heads) if heads else weight, Type.F32)
    assert torch.equal(read._decode(paired, FAMILIES["llama"], CONFIG, torch.float32), weight)
    plain = stored(f"blk.0.attn_{letter}.weight", weight, Type.F32)
    assert torch.equal(read._decode(plain, FAMILIES["qwen2"], CONFIG, torch.float32), weight)


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0])
def test_some_rows_are_decoded_from_their_bytes_alone(kind):
    weight = torch.randint(-127, 128, (5, 64)).float()
    weight[:, ::32] = 127
    found = decode_rows(encode(weight, kind).reshape(5, -1)[1:4], kind)
    assert found.dtype == torch.float32 and torch.equal(found, weight[1:4])


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.0.attn_q_norm.weight", "output_norm.weight"])
def test_vectors_and_norms_stay_in_fp32(name):
    mixture = Mixture("Q4_K_M", 8, tied=False)
    assert mixture.choose(name, (2048,)) == Type.F32
    assert mixture.choose("blk.0.attn_q_norm.weight", (8, 256)) == Type.F32
    assert mixture.choose("blk.1.attn_q.weight", (8, 256)) == Type.Q4_K


def test_the_layers_that_are_kept_finer_are_the_first_and_last_eighth_and_every_third():
    mixture = Mixture("Q4_K_M", 16, tied=False)
    finer = [layer for layer in range(16) if mixture._is_sensitive(f"blk.{layer}.ffn_down.weight")]
    assert finer == [0, 1, 4, 7, 10, 13, 14, 15]
    assert mixture._is_sensitive("blk.0.attn_v.weight") and mixture._is_sensitive("blk.0.attn_qkv.weight")
    assert not mixture._is_sensitive("blk.0.ffn_up.weight") and not mixture._is_sensitive("mm.0.ffn_down.weight")


@pytest.mark.parametrize(
    ("shape", "kind", "size"), [((3, 5), Type.F32, 60), ((2, 64), Type.Q8_0, 136), ((2, 256), Type.Q4_K, 288), ((7,), Type.F16, 14)]
)  # fmt: skip
def test_the_bytes_of_a_tensor_are_those_of_its_blocks(shape, kind, size):
    assert bytes_of(shape, kind) == size


def test_a_layer_s_share_is_the_change_found_along_the_change_wanted():
    measure = Measure()
    assert measure.strength("a") is None
    before, wanted = torch.zeros(2, 2), torch.tensor([[1.0, 0], [0, 2]])
    measure.add(before + wanted, before + wanted, before, wanted)
    assert measure.strength("a") == Strength("a", 1.0, 1.0, 0.0)
    measure.add(before + 0.5 * wanted, before + wanted, before, wanted)
    # found 5 + 2.5 of 10, missed 1.25, over 8 values
    assert measure.strength("a") == Strength("a", 0.75, 1.0, (1.25 / 10 / 8) ** 0.5)
    other = Measure()
    other.add(before + wanted + 1, before + 2 * wanted, before + 1, wanted)
    # <found - before, wanted> = 5, <expected - before, wanted> = 10 - 3
    assert (other.strength("b").share, other.strength("b").expected) == (1.0, 7 / 5)


@pytest.mark.parametrize(
    ("share", "deviation", "off"),
    [(1.09, 0.0, False), (1.11, 0.0, True), (0.91, 0.0, False), (0.89, 0.0, True), (1.15, 0.01, False), (1.17, 0.01, True)],
)  # fmt: skip
def test_a_layer_is_off_by_a_tenth_and_six_deviations(share, deviation, off):
    assert Strength("a", share, 1.0, deviation).is_off == off


@pytest.mark.parametrize(("at_once", "pieces"), [(1, [1] * 5), (128, [2, 2, 1]), (191, [2, 2, 1]), (320, [5])])
def test_no_more_rows_are_decoded_at_once_than_values_allow_but_one_is(monkeypatch, at_once, pieces):
    seen, inner = [], read.gguf.dequantize
    monkeypatch.setattr(read, "ROW_VALUES", at_once)
    monkeypatch.setattr(read.gguf, "dequantize", lambda rows, kind: seen.append(len(rows)) or inner(rows, kind))
    one = stored("blk.0.ffn_up.weight", torch.ones(5, 64), Type.Q8_0)
    read._decode(one, FAMILIES["llama"], CONFIG, torch.float32)
    assert seen == pieces
