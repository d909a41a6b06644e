"""Attention with repeated heads is torch's own attention, and is chosen where only the plain kernel groups queries."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.kernels.attention import REPEATED_HEADS, register_repeated_heads
from qlora_studio.engine.load import Device, choose_attention
from tests.engine.architectures import config_of


class OldCard(CpuAccelerator):
    """Has a fused kernel, but none for grouped queries, as below compute capability 8.0."""

    def attention_kernels(self, dtype, *, grouped):
        return ("plain",) if grouped else ("memory-efficient", "plain")


OLD, NEW = Device(OldCard(), torch.float16), Device(CpuAccelerator(), torch.float32)


def test_nothing_is_repeated_where_heads_are_equal():
    config = config_of("llama")
    config.num_key_value_heads = config.num_attention_heads
    assert choose_attention(config, OLD) == "sdpa"


@pytest.mark.parametrize(
    ("family", "device", "name"),
    [
        ("llama", NEW, "sdpa"),
        ("llama", None, "sdpa"),
        ("llama", OLD, REPEATED_HEADS),
        ("falcon", OLD, "sdpa"),  # takes no other name
        ("gpt_oss", OLD, "eager"),
    ],
)
def test_heads_are_repeated_where_only_the_plain_kernel_groups_queries(family, device, name):
    assert choose_attention(config_of(family), device) == name


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_repeated_heads_give_the_same_logits_and_gradients(family):
    register_repeated_heads()
    ids = torch.randint(3, 500, (2, 100), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 70:] = 0
    found = {}
    for name in ("sdpa", REPEATED_HEADS):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of(family), dtype=torch.float32, attn_implementation=name)
        assert model.config._attn_implementation == name
        logits = [model(ids).logits, model(ids, attention_mask=mask).logits[:, :70]]
        sum(part.logsumexp(-1).sum() for part in logits).backward()
        gradient = model.get_decoder().layers[0].self_attn.k_proj.weight.grad
        found[name] = [*logits, gradient]
        decoded = model.generate(ids[:, :20], max_new_tokens=5, do_sample=False, pad_token_id=0)
        found[name].append(decoded.float())
    for ours, theirs in zip(found[REPEATED_HEADS], found["sdpa"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
