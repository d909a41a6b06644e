"""The static formulas carry other programs' figures too: published maxima and recorded predictions are met.

The three accounts below are not ours: they are how a plain transformers and PEFT loop ("classic"), TRL 1.16 ("trl") and
a fully fused step ("fused") spend memory, with the slopes that a dry run gave for each model in bytes per token. Static
parts come from the planner. What is tested is that the bill as a whole lands where it was recorded and measured.
"""

import pytest

from qlora_studio.core.plan import GIB, PlanSettings
from qlora_studio.planner.estimate import nf4_bytes, unquantised_bytes
from qlora_studio.planner.families import count_adapter_weights, list_linears
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

CONTEXT_GIB, SLACK = 0.55, 1.03
SLOPES = {  # thousand bytes per token of a layer computed again: PEFT in bf16, fused
    "Llama-3.2-1B": (129.6, 105.1),
    "Qwen3-1.7B": (123.8, 97.2),
    "Llama-3.2-3B": (156.5, 125.8),
    "Phi-4-mini": (164.5, 144.0),
    "Gemma-3-4B": (210.3, 147.8),
    "Qwen3-4B": (185.3, 145.5),
    "Mistral-7B-v0.3": (238.4, 193.4),
    "Llama-3.1-8B": (238.4, 193.4),
    "Qwen3-8B": (238.6, 187.4),
    "Gemma-3-12B": (296.3, 230.3),
    "Qwen3-14B": (316.5, 248.9),
}
RECORDED = {  # GiB at 512, 1024, 2048 and 4096 tokens, rank 16, gradient checkpointing on every layer
    ("Llama-3.2-1B", "classic"): (3.3, 4.4, 6.5, 10.8),
    ("Llama-3.2-1B", "trl"): (1.8, 1.8, 2.0, 2.4),
    ("Llama-3.2-1B", "fused"): (1.9, 1.9, 2.0, 2.3),
    ("Qwen3-1.7B", "classic"): (4.0, 5.3, 7.9, 13.2),
    ("Qwen3-1.7B", "trl"): (2.1, 2.2, 2.5, 2.9),
    ("Qwen3-1.7B", "fused"): (2.3, 2.4, 2.5, 2.9),
    ("Llama-3.2-3B", "classic"): (5.0, 6.2, 8.5, 13.2),
    ("Llama-3.2-3B", "trl"): (3.1, 3.3, 3.6, 4.2),
    ("Llama-3.2-3B", "fused"): (3.2, 3.3, 3.6, 4.2),
    ("Phi-4-mini", "classic"): (6.6, 8.4, 11.9, 19.0),
    ("Phi-4-mini", "trl"): (3.7, 3.9, 4.3, 5.0),
    ("Phi-4-mini", "fused"): (3.9, 4.0, 4.3, 4.9),
    ("Gemma-3-4B", "classic"): (7.4, 9.6, 14.1, 23.0),
    ("Gemma-3-4B", "trl"): (3.9, 4.1, 4.4, 5.2),
    ("Gemma-3-4B", "fused"): (4.2, 4.3, 4.5, 5.0),
    ("Qwen3-4B", "classic"): (5.7, 7.1, 9.8, 15.3),
    ("Qwen3-4B", "trl"): (3.6, 3.8, 4.1, 4.8),
    ("Qwen3-4B", "fused"): (3.7, 3.8, 4.1, 4.8),
    ("Mistral-7B-v0.3", "classic"): (6.3, 6.7, 7.7, 9.8),
    ("Mistral-7B-v0.3", "trl"): (5.2, 5.4, 5.9, 6.9),
    ("Mistral-7B-v0.3", "fused"): (5.3, 5.5, 5.9, 6.8),
    ("Llama-3.1-8B", "classic"): (9.9, 11.2, 13.7, 18.8),
    ("Llama-3.1-8B", "trl"): (6.7, 6.9, 7.4, 8.4),
    ("Llama-3.1-8B", "fused"): (6.8, 7.0, 7.4, 8.3),
    ("Qwen3-8B", "classic"): (10.9, 12.4, 15.4, 21.3),
    ("Qwen3-8B", "trl"): (7.1, 7.3, 7.9, 8.9),
    ("Qwen3-8B", "fused"): (7.2, 7.4, 7.8, 8.8),
    ("Gemma-3-12B", "classic"): (13.2, 15.6, 20.4, 30.1),
    ("Gemma-3-12B", "trl"): (8.7, 9.1, 9.7, 11.0),
    ("Gemma-3-12B", "fused"): (9.0, 9.2, 9.7, 10.9),
    ("Qwen3-14B", "classic"): (15.6, 17.2, 20.4, 26.8),
    ("Qwen3-14B", "trl"): (11.1, 11.5, 12.2, 13.6),
    ("Qwen3-14B", "fused"): (11.2, 11.5, 12.2, 13.5),
}


def total_gib(name, account, tokens, rank=16):
    """What a step takes in one of the three accounts, in GiB."""
    shape = REFERENCE_SHAPES[name]
    peft, fused = (1e3 * slope for slope in SLOPES[name])
    adapter, rest = count_adapter_weights(shape, rank), unquantised_bytes(shape, PlanSettings())
    matrix = 2 * max(linear.weights for linear in list_linears(shape))
    boundaries = 2 * shape.hidden * shape.layers * tokens
    if account == "classic":  # everything unquantised in fp32, AdamW in fp32, all logits at once
        static, step = 2 * rest + 16 * adapter, max(1.75 * peft * tokens + matrix, 16 * tokens * shape.vocab)
        boundaries *= 2
    elif account == "trl":  # adapter and its states in bf16, a head of 4,096 by 32,768 logits
        head = 2 * min(tokens, 4096) * 32768 + 8 * shape.hidden * tokens
        static, step = rest + 8 * adapter, max(peft * tokens + matrix, head)
    else:  # adapter in fp32 with 8-bit states
        head = 6 * 256 * shape.vocab + 2 * shape.hidden * tokens
        static, step = rest + 10.03 * adapter, max(fused * tokens + matrix, head)
    return (nf4_bytes(shape) + static + boundaries + step) * SLACK / GIB + CONTEXT_GIB


def longest(name, account, card_gib, rank, step=16):
    """The most tokens, in multiples of `step`, that fit a card; 0 where none do."""
    tokens = 0
    while total_gib(name, account, tokens + step, rank) <= card_gib:
        tokens += step
    return tokens


@pytest.mark.parametrize(("name", "account"), RECORDED, ids=lambda value: value)
def test_recorded_totals_are_met(name, account):
    found = [total_gib(name, account, tokens) for tokens in (512, 1024, 2048, 4096)]
    assert found == pytest.approx(RECORDED[name, account], abs=0.09)


def test_the_published_maximum_context_of_transformers_with_flash_attention():
    """Llama-3.1-8B, rank 32: recorded predictions exactly; the published column at one constant distance."""
    published = {12: 932, 16: 2551, 24: 5789, 40: 12264, 48: 15502, 80: 28454}
    predicted = {card: longest("Llama-3.1-8B", "classic", card, rank=32) for card in published}
    assert predicted == {12: 1072, 16: 2688, 24: 5936, 40: 12400, 48: 15648, 80: 28592}
    assert longest("Llama-3.1-8B", "classic", 8, rank=32) == 0
    assert {predicted[card] - published[card] for card in published} <= set(range(136, 148))
    slope = GIB * (80 - 12) / (published[80] - published[12])
    assert slope == pytest.approx(SLACK * (4 * 4096 * 32 + 16 * 128256), rel=0.0006)


@pytest.mark.parametrize(
    ("name", "maxima"),
    {
        "Llama-3.2-1B": (1616, 2560, 3520, 4480, 6384),
        "Qwen3-4B": (464, 1200, 1952, 2688, 4176),
        "Gemma-3-4B": (96, 544, 1008, 1472, 2384),
        "Phi-4-mini": (208, 784, 1360, 1952, 3104),
        "Mistral-7B-v0.3": (0, 1904, 3888, 5872, 9856),
        "Llama-3.1-8B": (0, 0, 368, 1168, 2784),
        "Qwen3-14B": (0, 0, 0, 0, 496),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_recorded_maxima_of_the_classic_account(name, maxima):
    cards = (6, 8, 10, 12, 16)
    assert [longest(name, "classic", card - 0.4, rank=16) for card in cards] == pytest.approx(maxima, abs=33)
