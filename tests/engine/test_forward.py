"""The forward pass: the same mathematics as the model's own and PEFT's, with less memory."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Gemma2Config

from qlora_studio.core.config import LoraSettings
from qlora_studio.core.example import IGNORED, Example
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.load import Device, attach_adapter, load_base
from tests.engine.architectures import write_model
from tests.engine.conftest import FP32, make_examples, relative
from tests.matrix import mostly_slow


def trained_gradients(model, loss):
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


def test_the_chunked_loss_equals_the_models_own_row_by_row(tiny_adapter_model):
    examples = make_examples(5, seed=5)
    loss_function = LossFunction(tiny_adapter_model)
    assert loss_function.chunked
    loss_function.chunk = 3
    batch = loss_function.layout.collate(examples, range(5))
    chunked = loss_function.row_losses(batch)
    weights = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    grads = trained_gradients(tiny_adapter_model, (chunked * weights).sum())
    loss_function.chunked = False
    plain = loss_function.row_losses(batch)
    reference = trained_gradients(tiny_adapter_model, (plain * weights).sum())
    assert chunked.tolist() == pytest.approx(plain.tolist(), rel=1e-6)
    for mine, theirs in zip(grads, reference, strict=True):
        assert relative(mine, theirs) < 1e-5


def test_the_losses_of_rows_do_not_depend_on_their_company(tiny_adapter_model):
    examples = make_examples(5, seed=5)
    loss_function = LossFunction(tiny_adapter_model)
    together = loss_function.row_losses(loss_function.layout.collate(examples, (3, 0, 4)))
    alone = [loss_function.row_losses(loss_function.layout.collate(examples, (row,))).item() for row in (3, 0, 4)]
    assert together.tolist() == pytest.approx(alone, rel=1e-5)


def test_the_sum_of_the_rows_is_the_loss_of_the_micro_batch(tiny_adapter_model):
    loss_function = LossFunction(tiny_adapter_model)
    ids = torch.randint(3, 250, (3, 17))
    labels = torch.where(torch.arange(17) > 9, ids, IGNORED)
    examples = [Example(tuple(row), ((10, 17),)) for row in ids.tolist()]
    rows = loss_function.row_losses(loss_function.layout.collate(examples, range(3)))
    assert float(loss_function(ids, labels)) == pytest.approx(float(rows.detach().sum()), rel=1e-6)


def test_the_lora_forward_equals_pefts(tiny_folder, tiny_adapter_model):
    state = {name: value for name, value in tiny_adapter_model.state_dict().items() if "lora_" in name}
    plain = PeftModel(load_base(tiny_folder, FP32), tiny_adapter_model.peft_config["default"])
    plain.load_state_dict(state, strict=False)
    ids = torch.randint(3, 250, (2, 17))
    assert torch.allclose(tiny_adapter_model(ids).logits, plain(ids).logits, atol=1e-5)
    with tiny_adapter_model.disable_adapter(), plain.disable_adapter():
        assert torch.allclose(tiny_adapter_model(ids).logits, plain(ids).logits, atol=1e-5)


def test_a_row_of_one_token_trains_nothing_and_breaks_nothing(tiny_adapter_model):
    loss_function = LossFunction(tiny_adapter_model)
    loss = loss_function.row_losses(loss_function.layout.collate([Example((5,), ((0, 1),))], (0,)))
    assert loss.tolist() == [0.0]


def test_an_architecture_that_caps_its_logits_is_computed_with_its_own(tmp_path):
    """Gemma 2: eager attention, and logits that are capped after the head."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma2Config(
        vocab_size=256, num_key_value_heads=2, head_dim=16, initializer_range=0.5, final_logit_softcapping=5.0, **sizes
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, attn_implementation="eager").save_pretrained(tmp_path / "base")
    model = attach_adapter(load_base(tmp_path / "base", FP32), LoraSettings(rank=4), torch.float32, seed=1)
    loss_function = LossFunction(model)
    assert not loss_function.chunked
    examples = make_examples(4, seed=3)
    together = loss_function.row_losses(loss_function.layout.collate(examples, range(4)))
    alone = [loss_function.row_losses(loss_function.layout.collate(examples, (row,))).item() for row in range(4)]
    assert together.tolist() == pytest.approx(alone, rel=1e-5)


SCALED = {"granite": {"logits_scaling": 8.0}, "gemma2": {}, "cohere2": {}, "llama": {}, "gemma4_text": {}, "phi3": {}}
"""Families, and what is set in their configs."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", mostly_slow(SCALED, "llama", "cohere2"))
def test_the_loss_is_that_of_the_model_s_own_logits_however_small_they_are(family, dtype, tmp_path):
    """Of a tiny model every loss is about the logarithm of its vocabulary, whatever its logits are scaled by."""
    base = load_base(write_model(family, tmp_path, **SCALED[family]), Device(CpuAccelerator(), dtype))
    model = attach_adapter(base, LoraSettings(rank=4), torch.float32, seed=1)
    loss_function = LossFunction(model.train(), pack=False)
    capped_below_a_step = family == "gemma2" and dtype == torch.bfloat16
    assert loss_function.chunked == (family not in ("granite", "gemma2", "cohere2") or capped_below_a_step)
    (example,) = make_examples(1, seed=4)
    batch = loss_function.layout.collate([example], (0,))
    logits = model(input_ids=batch.ids, use_cache=False).logits[0].float()
    wanted = torch.nn.functional.cross_entropy(logits[batch.targets.places], batch.targets.tokens, reduction="sum")
    assert float(loss_function.row_losses(batch)) == pytest.approx(
        float(wanted), rel=1e-5 if dtype == torch.float32 else 1e-3
    )
