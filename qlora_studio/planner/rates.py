"""The learning rate that suits a run, from the model's width and family and the adapter's scale. Arithmetic only."""

from __future__ import annotations

import math

from qlora_studio.core.config import LoraSettings, TrainConfig
from qlora_studio.core.plan import ModelShape

RATE_AT_WIDTH, WIDTH = 5e-4, 2000
POWER, POWER_QWEN = 0.775, 0.0775
"""A good LoRA rate is 5e-4 x (2000 / width) ** power at alpha 32 and scale alpha / rank, whatever the rank (Thinking
Machines, "LoRA Without Regret", 2025, fitted over fourteen Llama and Qwen models)."""
ALPHA = 32
FACTORS = (0.25, 0.5, 1, 2, 4)
SEARCH_SHARE = 0.05
"""Of a run's steps a search for its rate may take, where that is enough."""
LEAST_STEPS, MOST_STEPS = 12, 60


def suited_rate(width: int, family: str, lora: LoraSettings) -> float:
    """The rate for a model of this width, rounded to two digits.

    An early update of B moves the layer by rate x scale x rank, so at another scale x rank than 32 the rate is moved
    the other way: what is learned stays the same.
    """
    power = POWER_QWEN if family.startswith("qwen") else POWER
    rate = RATE_AT_WIDTH * float(WIDTH / width) ** power * ALPHA / effective_alpha(lora)
    return min(1.0, float(f"{rate:.1e}"))


def effective_alpha(lora: LoraSettings) -> float:
    """The adapter's scale x rank: alpha itself, or alpha x the root of the rank with rsLoRA."""
    return lora.alpha * math.sqrt(lora.rank) if lora.use_rslora else float(lora.alpha)


def rates_to_try(config: TrainConfig, shape: ModelShape) -> tuple[float, ...]:
    """Around the rate that suits the model: a quarter of it to four times, by doubling."""
    suited = suited_rate(shape.hidden, shape.family, config.lora)
    return tuple(float(f"{min(1.0, suited * factor):.2g}") for factor in FACTORS)


def steps_to_try(run_steps: int | None) -> int:
    """Steps for each rate, so that the search takes no more than its share of a long run and tells rates apart at all."""
    return max(LEAST_STEPS, min(MOST_STEPS, round(SEARCH_SHARE * (run_steps or 0) / len(FACTORS))))


def choose_rate(config: TrainConfig, shape: ModelShape) -> TrainConfig:
    """The config with a rate: its own, or the one that suits this model."""
    if config.optim.learning_rate is not None:
        return config
    return config.replace({"optim.learning_rate": suited_rate(shape.hidden, shape.family, config.lora)})
