"""The engine on a card that is only pretended: no mismatch of devices, no plain attention, no more waits than stated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig

from qlora_studio.core import events as ev
from qlora_studio.core.example import Example
from qlora_studio.engine import loop
from qlora_studio.engine.batches import Layout
from qlora_studio.engine.checkpoints import RunCheckpoints
from qlora_studio.engine.kernels import loss
from qlora_studio.engine.load import Device
from qlora_studio.engine.setup import Setup
from tests.engine.architectures import config_of
from tests.engine.conftest import make_config, make_plan
from tests.engine.fake_card import FakeAccelerator, build_on_card, fake_card

AMPERE, TURING = (8, 6), (7, 5)
LAYERS = 2
ADAPTER_TENSORS = 2 * 7 * LAYERS
"""A and B of seven linear layers in each decoder layer of a Llama."""
MICRO_BATCHES = 2
WAITS = Counter({"tolist": 1})
"""The budget of one step: its numbers are read once."""
MASK_SCAN = Counter({"item": MICRO_BATCHES})
"""Where rows are padded, transformers looks for each micro-batch whether a mask is needed."""


@dataclass(frozen=True)
class Case:
    """One way to train."""

    family: str = "llama"
    capability: tuple[int, int] = AMPERE
    dtype: torch.dtype = torch.bfloat16
    optimizer: str = "adamw"
    checkpointed: int = 0
    offload: str = "none"
    adapter: torch.dtype = torch.float32
    tiled: bool = False
    dropout: float = 0.0


@dataclass
class Watched:
    """The events of a run, and the waits of its last step."""

    events: list[ev.Event] = field(default_factory=list)
    attention: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    """Of the last step."""


def short(family: str) -> PreTrainedConfig:
    config = config_of(family)
    config.num_hidden_layers = LAYERS
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:LAYERS]
    return config


def train(case: Case, folder: Any) -> Watched:
    """Three steps of two micro-batches on the fake card, all but the saving of the adapter, which wants numbers."""
    with fake_card(case.capability) as accelerator, pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunCheckpoints, "save_adapter", lambda *_: None)
        return _train(case, folder, accelerator)


def _train(case: Case, folder: Any, accelerator: FakeAccelerator) -> Watched:
    watched, before = Watched(), Counter[str]()
    plan = make_plan(256, case.optimizer, case.checkpointed)
    plan = plan.model_copy(
        update={"device": "cuda", "layers": LAYERS, "offload": case.offload, "tiled_mlp": case.tiled}
    )
    setup = Setup(
        config=make_config(optim__batch_tokens=400, optim__max_steps=3, optim__learning_rate=1e-4),
        plan=plan,
        accelerator=accelerator,
        model=build_on_card(
            short(case.family),
            Device(accelerator, case.dtype),
            case.adapter,
            embeddings_on_host=case.offload == "both",
            dropout=case.dropout,
        ),
        train=[Example(tuple(range(100)), ((50, 100),))] * 12,
        held_out=[],
        folder=folder,
        base="tiny/base",
    )

    def emit(event: ev.Event) -> None:
        watched.events.append(event)
        if isinstance(event, ev.StepLogged):
            watched.waits = accelerator.seen.waits - before
            before.update(watched.waits)

    loop.train(setup, emit, lambda: "")
    watched.attention = accelerator.seen.attention
    return watched


@pytest.mark.parametrize(
    ("case", "waits"),
    [
        pytest.param(Case(), WAITS, id="llama"),
        pytest.param(
            Case("qwen3", optimizer="adamw_8bit", checkpointed=LAYERS, offload="boundaries"),
            WAITS + Counter({"synchronise": ADAPTER_TENSORS}),  # bitsandbytes waits after every tensor
            id="qwen3-8bit-checkpointed-offloaded",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            Case(checkpointed=LAYERS, offload="both"),
            WAITS + Counter({"copy to the host": MICRO_BATCHES}),  # the ids whose embeddings are looked up there
            id="llama-embeddings-on-the-host",
            marks=pytest.mark.slow,
        ),
        pytest.param(Case(tiled=True), WAITS, id="llama-tiled", marks=pytest.mark.slow),
        pytest.param(
            Case("gemma3_text", checkpointed=LAYERS, tiled=True),
            WAITS,
            id="gemma-checkpointed-tiled",
            marks=pytest.mark.slow,
        ),
        pytest.param(Case(checkpointed=1, dropout=0.1), WAITS, id="llama-dropout", marks=pytest.mark.slow),
    ],
)
def test_training_on_a_card_stays_on_it_and_waits_no_more_than_stated(case, waits, tmp_path):
    watched = train(case, tmp_path)
    assert [event.step for event in watched.events if isinstance(event, ev.StepLogged)] == [1, 2, 3]
    assert all(event.peak_bytes > 0 for event in watched.events if isinstance(event, ev.StepLogged))
    assert set(watched.attention) == {"flash", "varlen"}  # the first before rows are packed
    assert watched.waits == waits


def test_a_tensor_left_on_the_host_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(Layout, "_send", lambda layout, tensor: tensor)
    with pytest.raises(RuntimeError, match=r"(?s)cuda:0.*cpu|cpu.*cuda:0"):
        train(Case(), tmp_path)


@pytest.mark.slow
def test_a_wait_more_is_noticed(tmp_path, monkeypatch):
    inner = loss.next_token_losses

    def curious(*arguments):
        losses = inner(*arguments)
        losses.sum().item()
        return losses

    monkeypatch.setattr("qlora_studio.engine.forward.next_token_losses", curious)
    assert train(Case(), tmp_path).waits == WAITS + Counter({"item": MICRO_BATCHES})


@pytest.mark.slow
def test_gradients_that_a_card_cannot_unscale_are_noticed(tmp_path):
    with pytest.raises(NotImplementedError, match="not implemented for 'BFloat16'"):
        train(Case(capability=TURING, dtype=torch.float16, adapter=torch.bfloat16), tmp_path)


@pytest.mark.slow
def test_grouped_queries_on_a_card_without_flash_go_to_the_memory_efficient_kernel(tmp_path):
    watched = train(Case(capability=TURING, dtype=torch.float16), tmp_path)
    assert set(watched.attention) == {"memory-efficient"}
    assert watched.waits == WAITS


@pytest.mark.slow
def test_attention_that_falls_back_to_the_plain_kernel_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.engine.fake_card.choose_attention", lambda config, device: "sdpa")
    watched = train(Case(capability=TURING, dtype=torch.float16), tmp_path)
    assert set(watched.attention) == {"plain"}


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [0, 1, LAYERS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text", "granite", "olmo2"])
def test_every_family_trains_in_every_format_without_plain_attention(family, dtype, checkpointed, tmp_path):
    watched = train(Case(family, dtype=dtype, checkpointed=checkpointed), tmp_path)
    assert "plain" not in watched.attention
    kinds_of_mask = 2 if family == "gemma3_text" else 1
    assert watched.waits <= WAITS + Counter({"item": (kinds_of_mask - 1) * MICRO_BATCHES})


def test_a_fake_card_leaves_no_patched_constructor_behind():
    """torch keeps the list of what `torch.device(...)` as a context changes from the first time it is asked for."""
    with fake_card((8, 6)), torch.device("cpu"):
        torch.zeros(1)
    with torch.device("meta"):
        assert torch.tensor([1.0]).device.type == "meta"
