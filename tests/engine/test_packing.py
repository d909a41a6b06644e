"""Rows are packed where nothing leaks between them, which the program finds out itself, and padded with a reason elsewhere."""

from __future__ import annotations

import pytest
import torch

from qlora_studio.core import events as ev
from qlora_studio.core.config import LoraSettings
from qlora_studio.core.example import Example
from qlora_studio.core.plan import MeasuredShape
from qlora_studio.engine import packing
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.kernels import documents
from qlora_studio.engine.kernels.documents import DOCUMENTS, Documents
from qlora_studio.engine.load import Device, attach_adapter, load_base
from qlora_studio.engine.loop import train
from qlora_studio.engine.planned_packing import find_padding
from qlora_studio.engine.setup import Setup
from qlora_studio.engine.stand_ins import without_numbers
from qlora_studio.planner.families import padding_of
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from tests.engine.architectures import config_of, write_model
from tests.engine.conftest import FP32, make_config, make_examples, make_plan, relative
from tests.matrix import mostly_slow

PACKED = [
    "llama",
    "cohere2",
    "gemma4_text",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "gemma",
    "gemma3_text",
    "granite",
    "olmo2",
    "smollm3",
    "mixtral",
]
PADDED = {
    "gemma2": "its attention has no fused kernel that could be cut by row",
    "lfm2": "it has layers that are not cut by row (conv)",
    "falcon": "its layers cannot be told where rows end (TypeError)",
    "doge": "its layers cannot be told where rows end (ValueError)",
    "gpt2": "it leaves something out at random by itself",
}


def load_tiny(family, folder, dtype=torch.float32, **changes):
    base = load_base(write_model(family, folder, **changes), Device(CpuAccelerator(), dtype))
    return attach_adapter(base, LoraSettings(rank=4), torch.float32, seed=1).train()


def losses_and_gradient(model, examples, *, pack):
    loss_function = LossFunction(model, pack=pack)
    model.zero_grad(set_to_none=True)
    losses = loss_function.row_losses(loss_function.layout.collate(examples, range(len(examples))))
    losses.sum().backward()
    gradient = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
    return loss_function, losses.detach(), gradient


@pytest.mark.parametrize("family", mostly_slow(PACKED, "gemma3_text", "phi3"))
def test_packed_rows_have_the_losses_and_gradients_of_padded_ones(family, tmp_path):
    """Gemma 3 with rows that are longer than its window of 64 tokens."""
    model, examples = load_tiny(family, tmp_path), make_examples(6, seed=4, longest=100)
    _, losses, gradient = losses_and_gradient(model, examples, pack=False)
    loss_function, packed_losses, packed_gradient = losses_and_gradient(model, examples, pack=True)
    assert loss_function.layout.packed and loss_function.padded_because is None
    assert relative(packed_losses, losses) < 1e-5
    assert relative(packed_gradient, gradient) < 1e-5


@pytest.mark.parametrize("family", PADDED)
def test_where_rows_cannot_be_packed_they_are_padded_and_the_reason_is_said(family, tmp_path):
    loss_function = LossFunction(load_tiny(family, tmp_path))
    assert (loss_function.layout.packed, loss_function.padded_because) == (False, PADDED[family])
    assert loss_function.decoder.config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize(
    "family",
    mostly_slow(
        sorted([*PACKED, *PADDED, "gpt_oss", "phi", "stablelm", "opt", "cohere2"]),
        "llama",
        "gemma3_text",
        "opt",
        "lfm2",
    ),
)
def test_the_plan_says_packed_or_padded_before_anything_is_loaded(family, tmp_path):
    loss_function = LossFunction(load_tiny(family, tmp_path))
    with without_numbers():
        assert find_padding(config_of(family)) == loss_function.padded_because


def test_a_plan_for_padded_rows_says_why():
    shape = REFERENCE_SHAPES["Llama-3.2-1B"]
    measured = MeasuredShape(linears=(), other_bytes=0, costs={}, rank=8, padded_because="it has no rows")
    padded = shape.model_copy(update={"measured": measured})
    assert (padding_of(shape), padding_of(padded)) == (None, "it has no rows")


def test_a_leak_between_rows_is_caught_when_the_model_is_loaded(tmp_path, monkeypatch):
    inner = documents.attend_documents

    def leaking(module, query, key, value, mask, *, documents: Documents | None = None, **options):
        if documents is not None:
            documents = Documents(((0, documents.spans[-1][1]),), windows=documents.windows)
        return inner(module, query, key, value, mask, documents=documents, **options)

    monkeypatch.setattr(documents, "attend_documents", leaking)
    loss_function = LossFunction(load_tiny("llama", tmp_path))
    assert loss_function.padded_because == "a row would see the one in front of it"
    assert not loss_function.layout.packed and loss_function.decoder.config._attn_implementation == "sdpa"
    monkeypatch.undo()
    documents.register_documents()


def test_positions_that_go_on_into_the_next_row_are_caught(tmp_path, monkeypatch):
    """Rotary positions are relative, so only a model with positions of its own would learn otherwise."""
    model = load_tiny("gpt2", tmp_path, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    assert LossFunction(model).layout.packed
    inner = packing.Layout.collate

    def going_on(layout, *arguments):
        batch = inner(layout, *arguments)
        if batch.positions is not None:
            batch.positions.copy_(torch.arange(batch.positions.shape[1]))
        return batch

    monkeypatch.setattr(packing.Layout, "collate", going_on)
    assert LossFunction(model).padded_because == "a row would not be computed as it is alone"


def test_local_layers_that_do_not_say_their_window_are_padded(tmp_path, monkeypatch):
    inner = documents.attend_documents

    def forgetting(*arguments, sliding_window=None, **options):
        return inner(*arguments, **options)

    monkeypatch.setattr(documents, "attend_documents", forgetting)
    loss_function = LossFunction(load_tiny("gemma3_text", tmp_path))
    assert loss_function.padded_because == "its layers cannot be told where rows end (ValueError)"
    monkeypatch.undo()
    documents.register_documents()


def test_a_model_that_is_packed_still_answers_token_by_token(tmp_path):
    model = load_tiny("llama", tmp_path)
    ids = torch.randint(3, 500, (1, 12))
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        LossFunction(model)
        assert model.get_base_model().config._attn_implementation == DOCUMENTS
        first = model(input_ids=ids[:, :11], use_cache=True)
        last = model(input_ids=ids[:, 11:], past_key_values=first.past_key_values, use_cache=True)
    assert torch.allclose(last.logits[0, 0], whole[0, 11], atol=1e-4)


def run(model, start, examples, folder, tokens, *, pack, monkeypatch, dropout_step=None):
    """The weights after a training, all rows of a step in micro-batches of so many tokens."""
    model.load_state_dict(start, strict=False)
    monkeypatch.setattr("qlora_studio.engine.loop.LossFunction", lambda model: LossFunction(model, pack=pack))
    config = make_config(optim__batch_tokens=240, optim__epochs=2, optim__optimizer="adamw", optim__learning_rate=1e-3)
    folder.mkdir()
    events: list[ev.Event] = []
    train(
        Setup(config, make_plan(tokens), FP32.accelerator, model, examples, [], folder, "tiny"),
        events.append,
        lambda: "",
    )
    assert any("packed" in event.text for event in events if isinstance(event, ev.Noted)) is False
    return torch.cat([value.flatten() for name, value in model.state_dict().items() if "lora_" in name])


@pytest.mark.slow
@pytest.mark.parametrize("dropout", mostly_slow([0.0, 0.1], 0.1))
def test_one_by_one_together_and_packed_runs_end_at_the_same_weights(tiny_folder, tmp_path, monkeypatch, dropout):
    model = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=4, dropout=dropout), torch.float32, seed=1)
    start = {name: value.clone() for name, value in model.state_dict().items() if "lora_" in name}
    examples = make_examples(24, seed=2)
    ways = {"1x8": (1, False), "8x1": (4000, False), "packed": (256, True), "packed small": (64, True)}
    ends = {
        name: run(model, start, examples, tmp_path / name, tokens, pack=pack, monkeypatch=monkeypatch)
        for name, (tokens, pack) in ways.items()
    }
    begin = torch.cat([value.flatten() for value in start.values()])
    moved = float((ends["1x8"] - begin).norm())
    for end in ends.values():
        assert float((end - ends["1x8"]).norm()) < 2e-3 * moved


def test_a_row_of_one_token_between_others_is_packed(tmp_path):
    model = load_tiny("llama", tmp_path)
    examples = [Example((5,), ()), *make_examples(2, seed=1), Example((9,), ((0, 1),))]
    _, losses, _ = losses_and_gradient(model, examples, pack=True)
    assert losses[0] == losses[3] == 0 and (losses[1:3] > 0).all()
