"""Which kernels count as fused, and where flash attention cuts rows itself."""

from __future__ import annotations

import pytest
import torch

from qlora_studio.engine.accelerator import attention
from qlora_studio.engine.accelerator.attention import find_kernels, has_fused, has_varlen

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("kernels", "fused"), [((), False), (("plain",), False), (("flash",), True), (("memory-efficient", "plain"), True)]
)
def test_every_kernel_but_the_plain_one_is_fused(kernels, fused):
    assert has_fused(kernels) == fused


@pytest.mark.parametrize(
    ("device", "dtype", "width", "capability", "built", "expected"),
    [
        (CARD, BF16, 64, (8, 0), True, True),
        (CARD, FP16, 256, (12, 0), True, True),
        (CARD, BF16, 64, (7, 5), True, False),
        (CARD, BF16, 64, (8, 0), False, False),
        (CARD, FP32, 64, (8, 0), True, False),
        (CARD, BF16, 264, (8, 0), True, False),
        (CARD, BF16, 60, (8, 0), True, False),
        (CPU, BF16, 64, (8, 0), True, False),
    ],
)
def test_flash_attention_cuts_rows_on_ampere_in_16_bits_for_usual_heads(
    monkeypatch, device, dtype, width, capability, built, expected
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda one: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: built)
    assert has_varlen(device, dtype, width) == expected


@pytest.mark.parametrize("grouped", [False, True])
def test_each_kernel_is_tried_on_a_few_tokens(monkeypatch, grouped):
    tried = []

    def attend(q, k, v, **options):
        tried.append((tuple(q.shape), tuple(k.shape), k is v, options))
        if len(tried) == 2:
            raise RuntimeError("no kernel")

    monkeypatch.setattr(attention, "scaled_dot_product_attention", attend)
    assert find_kernels(CPU, BF16, grouped=grouped) == ("flash", "cuDNN", "plain")
    keys = (1, 2 if grouped else 4, 16, 64)
    assert tried == [((1, 4, 16, 64), keys, True, {"is_causal": True, "enable_gqa": grouped})] * 4
