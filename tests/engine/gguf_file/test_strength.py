"""What a GGUF file holds of each layer's change: all of it, half of it, and on how many rows that is looked at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file

from qlora_studio.engine.adapter_file import WEIGHTS
from qlora_studio.engine.gguf_file import strength
from qlora_studio.engine.gguf_file.blocks import encode
from qlora_studio.engine.gguf_file.strength import measure_gguf
from qlora_studio.engine.gguf_file.write import About, GgufFile, Precision
from qlora_studio.engine.merge import MergedWeights, MergeRecipe
from qlora_studio.engine.strength import Measure
from qlora_studio.engine.tokenizer import load_tokenizer
from tests.engine.gguf_file.small_models import small_adapter, small_base

LAYERS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Llama of one layer, an adapter on it, and the same with its queries at half strength."""
    place = tmp_path_factory.mktemp("strength")
    base = small_base("llama", place / "base", num_hidden_layers=1)
    adapter, weaker = small_adapter(base, place / "adapter"), place / "weaker"
    weaker.mkdir()
    state = load_file(adapter / WEIGHTS)
    for name in state:
        state[name] *= 0.5 if "q_proj.lora_B" in name else 1
    save_file(state, weaker / WEIGHTS, metadata={"format": "pt"})
    (weaker / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    return base, adapter, weaker


def planned(base, adapter, kind):
    merged = MergedWeights(MergeRecipe(base, adapter, "original", torch.float32))
    return GgufFile(merged, load_tokenizer(base), Precision(kind), About("small"))


@pytest.mark.parametrize(("kind", "near"), [("F32", 1e-5), ("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 5e-2)])
def test_each_layer_is_found_at_the_strength_at_which_it_was_written(folders, tmp_path, kind, near):
    base, adapter, weaker = folders
    planned(base, weaker, kind).write(tmp_path / "x.gguf")
    found = {one.layer: one for one in measure_gguf(planned(base, adapter, kind), tmp_path / "x.gguf")}
    assert sorted(found) == sorted(f"model.layers.0.{name}" for name in LAYERS)
    for name, one in found.items():
        half = name.endswith("q_proj")
        assert one.share == pytest.approx(0.5 if half else 1, abs=near) and one.is_off == half
        assert one.expected == pytest.approx(1, abs=near)
        assert half or one.deviation == 0


def test_only_some_rows_of_a_large_layer_are_looked_at_and_always_whole_heads(folders, tmp_path, monkeypatch):
    base, adapter, _ = folders
    planned(base, adapter, "F32").write(tmp_path / "x.gguf")
    seen = []

    class Noting(Measure):
        def add(self, *rows):
            seen.append({tuple(one.shape) for one in rows})
            super().add(*rows)

    monkeypatch.setattr(strength, "Measure", Noting)
    monkeypatch.setattr(strength, "SAMPLE_VALUES", 20 * 128)
    found = {one.layer: shapes for one, shapes in zip(looked_at(folders, tmp_path), seen, strict=True)}
    assert {name.rpartition(".")[2]: shapes for name, shapes in found.items()} == {
        "q_proj": {(32, 128)}, "k_proj": {(32, 128)},  # a head has 32 rows
        "v_proj": {(20, 128)}, "o_proj": {(20, 128)}, "gate_proj": {(20, 128)}, "up_proj": {(20, 128)},
        "down_proj": {(10, 256)},
    }  # fmt: skip
    seen.clear()
    monkeypatch.setattr(strength, "SAMPLE_VALUES", 100 * 128)
    found = {one.layer: shapes for one, shapes in zip(looked_at(folders, tmp_path), seen, strict=True)}
    assert {name.rpartition(".")[2]: shapes for name, shapes in found.items()} == {
        "q_proj": {(96, 128)}, "k_proj": {(64, 128)}, "v_proj": {(64, 128)},  # of keys and values all there are
        "o_proj": {(100, 128)}, "gate_proj": {(100, 128)}, "up_proj": {(100, 128)}, "down_proj": {(50, 256)},
    }  # fmt: skip


def looked_at(folders, place):
    return list(measure_gguf(planned(*folders[:2], "F32"), place / "x.gguf"))


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0])
def test_rows_are_read_in_fp32_from_the_bytes_of_every_type(kind):
    rows = torch.tensor([[127.0, -3, 0.5, 0] * 8, [2.0] * 32])
    found = strength._decode(encode(rows, kind), kind)
    expected = rows.clone()
    if kind == Type.Q8_0:  # steps of one around 127; half a step goes away from zero
        expected[0, 2::4] = 1
    assert found.dtype == torch.float32 and found.shape == (2, 32)
    assert torch.allclose(found, expected, rtol=1e-3)


def test_what_was_read_may_be_changed_and_the_file_s_own_bytes_stay(tmp_path):
    stored = np.ones((1, 4), np.float32)
    strength._decode(stored, Type.F32).zero_()
    assert stored.tolist() == [[1, 1, 1, 1]]
