"""The adapter's product for few tokens, as an answer needs it, beside the one that training and prompts take."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from qlora_studio.engine.kernels import lora


def make_layer(dtype: torch.dtype, adapter: torch.dtype, **options) -> nn.Module:
    """One adapted linear layer in `dtype` whose adapter is not zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 40)).to(dtype)
    peft_model = get_peft_model(model, LoraConfig(r=4, target_modules=["0"], **options), autocast_adapter_dtype=False)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter, dtype=adapter) * 0.1
    assert lora.replace_lora_forwards(peft_model) == 1
    return peft_model.eval()


@pytest.mark.parametrize("tokens", [1, lora.FEW_ROWS, lora.FEW_ROWS + 1])
@pytest.mark.parametrize("adapter", [torch.float32, torch.bfloat16])
def test_few_tokens_come_out_as_many_do(tokens, adapter, monkeypatch):
    model = make_layer(torch.bfloat16, adapter, lora_alpha=8)
    x = torch.randn(1, tokens, 48, dtype=torch.bfloat16)
    with torch.no_grad():
        few = model(x)
        monkeypatch.setattr(lora, "FEW_ROWS", 0)
        many = model(x)
        exact = make_layer(torch.float32, torch.float32, lora_alpha=8)(x.float()) if adapter is torch.float32 else many
    assert few.dtype == many.dtype == torch.bfloat16 and few.shape == many.shape == (1, tokens, 40)
    assert (few.float() - exact.float()).abs().max() <= 2**-6 * exact.float().abs().max()
    assert (few.float() - many.float()).abs().max() <= 2**-6 * many.float().abs().max()


def test_few_tokens_are_scaled_and_switched_off_like_many(monkeypatch):
    model = make_layer(torch.float32, torch.float32, lora_alpha=32, use_rslora=True)
    x = torch.randn(1, 3, 48)
    with torch.no_grad():
        few = model(x)
        monkeypatch.setattr(lora, "FEW_ROWS", 0)
        assert torch.allclose(few, model(x), atol=1e-6)
        monkeypatch.setattr(lora, "FEW_ROWS", 8)
        with model.disable_adapter():
            base = model(x)
    assert not torch.allclose(few, base, atol=1e-2)


def test_a_layer_with_a_gradient_never_takes_the_way_of_few_tokens(monkeypatch):
    model = make_layer(torch.float32, torch.float32, lora_alpha=8)
    monkeypatch.setattr(lora, "_add_few", lambda *arguments: pytest.fail("taken"))
    model(torch.randn(1, 1, 48)).sum().backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "lora_" in name)
