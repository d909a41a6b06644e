"""Encoded blocks: those of the reference, or as close to the weights as the reference's."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from qlora_studio.engine.gguf_file import blocks
from qlora_studio.engine.gguf_file.blocks import encode, encode_q8_0
from qlora_studio.engine.gguf_file.mixture import Mixture, bytes_of
from tests.llama_cpp import quantize

KINDS = [Type.Q8_0, Type.Q4_K, Type.Q5_K, Type.Q6_K]
ALIKE = {Type.Q8_0: 1.0, Type.Q4_K: 0.9955, Type.Q5_K: 0.9825, Type.Q6_K: 0.984}
"""Share of bytes that are the reference's at least; where its search rounds otherwise, the error decides."""
ALIKE_WEIGHED = {
    Type.Q8_0: 1.0,
    Type.Q4_K: 0.995,
    Type.Q5_K: 0.9945,
    Type.Q6_K: 0.985,
    Type.Q5_0: 0.99,
    Type.Q5_1: 0.9985,
}


def rows(seed: int = 0) -> torch.Tensor:
    """Weights as they come: bell-shaped, with a few large ones, a row of zeros and one of one number."""
    torch.manual_seed(seed)
    weight = torch.randn(64, 1024) * 0.02
    weight[:8] *= 10 * torch.rand(8, 1024) ** 8
    weight[8], weight[9] = 0, 0.125
    return weight


def error(packed: np.ndarray, kind: Type, weight: torch.Tensor) -> float:
    back = torch.from_numpy(gguf.dequantize(packed.reshape(weight.shape[0], -1), kind))
    return float((back - weight).norm() / weight.norm())


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16, Type.Q8_0, Type.Q5_0, Type.Q5_1])
def test_a_type_that_the_gguf_package_encodes_is_encoded_as_it_does(kind):
    weight = rows()
    assert np.array_equal(encode(weight, kind).view(np.uint8), gguf.quantize(weight.numpy(), kind).view(np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_k_quants_are_as_good_as_llama_cpps_and_mostly_the_same_bytes(kind):
    weight = rows()
    ours, reference = encode(weight, kind), quantize(weight.numpy(), int(kind))
    assert ours.shape == reference.shape and ours.nbytes == bytes_of(weight.shape, kind)
    assert error(ours, kind, weight) < 1.002 * error(reference, kind, weight)
    assert (ours == reference).mean() >= ALIKE[kind]


@pytest.mark.parametrize("kind", [*KINDS, Type.Q5_0, Type.Q5_1])
def test_blocks_fitted_by_an_importance_matrix_are_llama_cpps(kind):
    weight = rows()
    columns = torch.randn(1024, generator=torch.Generator().manual_seed(5)).exp() ** 2
    columns[3] = 0
    ours, reference = encode(weight, kind, columns), quantize(weight.numpy(), int(kind), columns.numpy())
    assert ours.shape == reference.shape
    assert weighed_error(ours, kind, weight, columns) < 1.001 * weighed_error(reference, kind, weight, columns)
    assert (ours == reference).mean() >= ALIKE_WEIGHED[kind]
    if kind != Type.Q8_0:  # eight bits take no notice
        plain = weighed_error(encode(weight, kind), kind, weight, columns)
        assert weighed_error(ours, kind, weight, columns) < 0.95 * plain


def weighed_error(packed: np.ndarray, kind: Type, weight: torch.Tensor, columns: torch.Tensor) -> float:
    back = torch.from_numpy(gguf.dequantize(packed.reshape(weight.shape[0], -1), kind))
    return float(((back - weight).square() * columns).sum().sqrt())


@pytest.mark.parametrize("columns", [None, torch.zeros(256), torch.ones(256)], ids=["none", "zero", "one"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_not_a_number(kind, columns):
    weight = torch.zeros(2, 256)
    weight[1, 7] = 1e-30
    assert np.isfinite(gguf.dequantize(encode(weight, kind, columns), kind)).all()


def test_a_vector_keeps_its_numbers():
    vector = torch.linspace(-1, 1, 33)
    assert np.array_equal(encode(vector, Type.F32).view(np.float32), vector.numpy())


LAYERS = 24
EXPECTED = {  # llama.cpp's choice, src/llama-quant.cpp
    ("Q4_K_M", "blk.0.attn_v.weight", 2048): Type.Q6_K,
    ("Q4_K_M", "blk.4.attn_v.weight", 2048): Type.Q4_K,
    ("Q4_K_M", "blk.5.ffn_down.weight", 8192): Type.Q6_K,
    ("Q4_K_M", "blk.23.ffn_down.weight", 8192): Type.Q6_K,
    ("Q4_K_M", "blk.0.attn_qkv.weight", 2048): Type.Q6_K,
    ("Q4_K_M", "blk.0.attn_q.weight", 2048): Type.Q4_K,
    ("Q4_K_M", "token_embd.weight", 2048): Type.Q4_K,
    ("Q4_K_M", "output.weight", 2048): Type.Q6_K,
    ("Q4_K_M", "output.weight", 576): Type.Q8_0,
    ("Q4_K_M", "blk.4.attn_q.weight", 576): Type.Q5_0,
    ("Q4_K_M", "blk.0.attn_v.weight", 576): Type.Q8_0,
    ("Q4_K_M", "blk.4.attn_q.weight", 100): Type.F16,
    ("Q5_K_M", "blk.4.attn_q.weight", 576): Type.Q5_1,
    ("Q5_K_M", "blk.4.ffn_down.weight", 8192): Type.Q5_K,
    ("Q6_K", "blk.4.attn_q.weight", 2048): Type.Q6_K,
    ("Q8_0", "output.weight", 2048): Type.Q8_0,
    ("Q8_0", "blk.4.attn_q.weight", 100): Type.F16,
    ("F16", "blk.4.attn_q.weight", 100): Type.F16,
    ("BF16", "token_embd.weight", 100): Type.BF16,
}


@pytest.mark.parametrize(("kind", "name", "columns"), EXPECTED)
def test_the_type_of_a_tensor_is_llama_cpps_choice(kind, name, columns):
    assert Mixture(kind, LAYERS, tied=False).choose(name, (64, columns)) == EXPECTED[kind, name, columns]


def test_norms_stay_whole_and_tied_embeddings_are_the_head():
    assert Mixture("Q4_K_M", LAYERS, tied=False).choose("blk.0.attn_norm.weight", (2048,)) == Type.F32
    assert Mixture("Q4_K_M", LAYERS, tied=True).choose("token_embd.weight", (64, 2048)) == Type.Q6_K


def test_scales_of_six_bits_end_at_sixty_three_however_small_they_are():
    top, codes = blocks._six_bits(torch.tensor([[0.0, 1, 2, 31.4, 31.6, 62.4, 63, 62.6], [1e-40] * 8]))
    assert top.tolist() == pytest.approx([1, 1e-40 / 63], abs=1e-45)
    assert codes.tolist() == [[0, 1, 2, 31, 32, 62, 63, 63], [63] * 8]


def test_codes_of_four_and_five_bits_lie_as_llama_cpp_reads_them():
    codes = torch.arange(256, dtype=torch.uint8).view(1, 8, 32) % 16
    packed = blocks._nibbles(codes).flatten().tolist()
    assert packed == [(n % 16) * 17 for n in range(128)]
    other = torch.cat([torch.full((1, 1, 32), n, dtype=torch.uint8) for n in range(8)], 1)
    assert (
        blocks._nibbles(other).flatten().tolist()
        == [16] * 32 + [2 + 3 * 16] * 32 + [4 + 5 * 16] * 32 + [6 + 7 * 16] * 32
    )
    five = blocks._five_bits(torch.tensor([31, 0, 16, 1, *[0] * 12, 2, *[0] * 14, 17], dtype=torch.uint8)).tolist()
    assert five == [0b101, 0, 0, 0b10000000, 15 | 2 << 4, 0, 0, 1, *[0] * 11, 1 << 4]


@pytest.mark.parametrize(("rows", "columns", "parts"), [(3, 64, [3]), (5, 64, [2, 2, 1]), (2, 256, [1, 1])])
def test_rows_are_encoded_in_parts_of_so_many_values_each_row_in_one(monkeypatch, rows, columns, parts):
    seen = []

    def note(block, importance):
        seen.append(len(block))
        return encode_q8_0(block)

    monkeypatch.setitem(blocks.ENCODERS, Type.Q8_0, note)
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 192 if rows == 3 else 128)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = encode(weight, Type.Q8_0)
    assert sorted(seen, reverse=True) == parts
    assert np.array_equal(found, gguf.quantize(weight.float().numpy(), Type.Q8_0))


def test_while_blocks_are_encoded_each_worker_has_one_thread_and_afterwards_there_are_as_many_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(KeyError), blocks.one_thread_an_operation() as workers:
            assert (workers, torch.get_num_threads()) == (3, 1)
            raise KeyError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
