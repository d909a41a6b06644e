"""An importance matrix: the mean square of what each layer is given, on the very tokens of the rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qlora_studio.core.example import Example
from qlora_studio.core.exports import IMPORTANCE_TOKENS
from qlora_studio.engine import importance
from qlora_studio.engine.importance import choose_rows, load_importance, measure_importance, save_importance


def row(length: int, first: int = 3) -> Example:
    return Example(tuple(range(first, first + length)), ((1, length),))


ROWS = [row(9), row(4, 20), row(13, 7), row(1, 40)]


def squares_by_hand(model: nn.Module, name: str) -> torch.Tensor:
    """The mean square of the inputs of one layer, row by row, nothing padded."""
    seen: list[torch.Tensor] = []
    layer = model.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().flatten(0, -2)))
    with torch.inference_mode():
        for example in ROWS:
            model(input_ids=torch.tensor([example.input_ids]))
    hook.remove()
    return torch.cat(seen).square().mean(0)


@pytest.mark.parametrize("pass_tokens", [1, 20, 4096], ids=["row by row", "two at once", "all at once"])
def test_padding_and_passes_leave_no_trace(tiny_adapter_model, monkeypatch, pass_tokens):
    monkeypatch.setattr(importance, "PASS_TOKENS", pass_tokens)
    model, heard = tiny_adapter_model.eval(), []
    found = measure_importance(model, ROWS, lambda done, total: heard.append((done, total)))
    assert heard[-1] == (27, 27)
    for layer in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        wanted = squares_by_hand(model, f"base_model.model.{layer}")
        assert torch.allclose(found[f"{layer}.weight"], wanted, rtol=1e-3)


def test_every_linear_layer_but_the_head_is_measured_and_nothing_stays_behind(tiny_adapter_model):
    model = tiny_adapter_model.eval()
    found = measure_importance(model, ROWS)
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    parts += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    layers = model.config.num_hidden_layers
    assert set(found) == {f"model.layers.{layer}.{part}.weight" for layer in range(layers) for part in parts}
    assert not [name for name, module in model.named_modules() if module._forward_pre_hooks]


def test_the_adapter_counts(tiny_adapter_model):
    """Later layers are given other numbers with the adapter than without."""
    model = tiny_adapter_model.eval()
    with model.disable_adapter():
        without = measure_importance(model, ROWS)
    last = f"model.layers.{model.config.num_hidden_layers - 1}.mlp.down_proj.weight"
    assert not torch.allclose(measure_importance(model, ROWS)[last], without[last], rtol=1e-3)


def test_rows_come_from_all_over_a_large_set():
    assert [place for place, _ in choose_rows([5, 7, 6])] == [1, 2, 0]
    chosen = choose_rows([100] * 1000)
    places = sorted(place for place, _ in chosen)
    assert sum(length for _, length in chosen) <= IMPORTANCE_TOKENS and len(chosen) > 75
    assert places[0] == 0 and places[-1] > 960
    assert choose_rows([20_000]) == [(0, 20_000)]


def test_what_is_kept_is_read_again(tmp_path):
    save_importance({"a.weight": torch.tensor([1.0, 2.0])}, tmp_path / "x.safetensors")
    assert (
        load_importance(tmp_path / "x.safetensors")["a.weight"].tolist() == [1.0, 2.0] and load_importance(None) == {}
    )


def test_of_a_set_with_too_many_tokens_every_so_manieth_row_is_taken():
    assert choose_rows([3] * 10, most=15) == [(0, 3), (2, 3), (4, 3), (6, 3), (8, 3)]
    assert choose_rows([3] * 10, most=30) == [(place, 3) for place in range(10)]
    assert choose_rows([3] * 10, most=20) == [(0, 3), (1, 3), (3, 3), (4, 3), (6, 3), (7, 3)], "step one and a half"
    assert choose_rows([1, 9, 5, 9], most=24) == [(1, 9), (3, 9), (2, 5), (0, 1)], "the longest first, in order"
    assert choose_rows([50, 50], most=10) == [(0, 50)]


def test_rows_go_through_together_as_long_as_they_fill_a_pass_when_padded(tiny_adapter_model, monkeypatch):
    monkeypatch.setattr(importance, "PASS_TOKENS", 20)
    model, seen, heard = tiny_adapter_model.eval(), [], []
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given), with_kwargs=True)
    examples = [row(10), row(10, 30), row(7), row(6), row(25), row(5)]
    measure_importance(model, examples, lambda done, total: heard.append((done, total)))
    assert [tuple(one["input_ids"].shape) for one in seen] == [(1, 25), (2, 10), (2, 7), (1, 5)]
    assert heard == [(25, 63), (45, 63), (58, 63), (63, 63)]
    assert seen[2]["input_ids"].tolist()[1] == [3, 4, 5, 6, 7, 8, 0], "filled up behind its end"
    assert {(one["use_cache"], one["logits_to_keep"]) for one in seen} == {(False, 1)}, "one token's logits at most"
