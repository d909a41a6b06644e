"""The optimizer's side of a step: loss scale, gradient clipping, update, schedule. It refuses what is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.optim import AdamW8bit
from transformers import get_scheduler

from qlora_studio.core.config import OptimConfig, TrainConfig
from qlora_studio.engine.accumulator import StepSums

LEAST_LOSS_SCALE = 1.0
"""Below it fp16 gradients would be made smaller than they are: what still overflows there is not for want of a scale."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The numbers of a step before its update, on the host."""

    loss: float
    grad_norm: float
    metrics: Mapping[str, float]

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


Group = dict[str, Any]


def trained_groups(model: torch.nn.Module, optim: OptimConfig) -> list[Group]:
    """The parameters that are trained; with LoRA+ those of B in a group of their own, at so many times the rate.

    B starts at zero and its gradient is smaller by the model's width, so that one rate for both lets it learn too
    slowly (Hayou et al. 2024, arXiv 2402.12354).
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if optim.loraplus_ratio == 1:
        return [{"params": [parameter for _, parameter in named]}]
    rate = optim.learning_rate
    assert rate is not None, "the learning rate is chosen before the optimizer is made"
    others = [parameter for name, parameter in named if ".lora_B." not in name]
    second = [parameter for name, parameter in named if ".lora_B." in name]
    return [{"params": others}, {"params": second, "lr": rate * optim.loraplus_ratio}]


def make_optimizer(
    parameters: list[torch.nn.Parameter] | list[Group], config: TrainConfig, name: str
) -> torch.optim.Optimizer:
    """AdamW with states in fp32 (`adamw`) or 8-bit blocks (`adamw_8bit`, Dettmers et al. 2022, arXiv 2110.02861).

    The config's learning rate is a number here: one that was left open has been chosen by then.
    """
    optim, rate = config.optim, config.optim.learning_rate
    assert rate is not None, "the learning rate is chosen before the optimizer is made"
    if name == "adamw_8bit":
        return AdamW8bit(parameters, lr=rate, weight_decay=optim.weight_decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=optim.weight_decay, fused=True)


class Updates:
    """Updates of the parameters of one optimizer, one a step."""

    def __init__(self, optimizer: torch.optim.Optimizer, optim: OptimConfig, total_steps: int, scaler: Any) -> None:
        self.optimizer = optimizer
        self.max_grad_norm = optim.max_grad_norm
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        warmup = math.ceil(optim.warmup_share * total_steps)
        self.schedule = get_scheduler(optim.schedule, optimizer, warmup, total_steps)
        self.scaler = scaler

    @property
    def learning_rate(self) -> float:
        """That of the next update."""
        return float(self.schedule.get_last_lr()[0])

    def measure(self, sums: StepSums) -> Measured:
        """Unscales and clips the gradients; the one place of a step where the host waits for the device."""
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        values = torch.stack([value.to(sums.loss.dtype) for value in (sums.loss, norm, *sums.metrics.values())])
        loss, grad_norm, *metrics = values.tolist()
        return Measured(loss, grad_norm, dict(zip(sums.metrics, metrics, strict=True)))

    def lower_scale(self, measured: Measured) -> bool:
        """Whether the gradients overflowed for want of a smaller loss scale; it is then halved and they are gone.

        False without a loss scale, where the loss itself is not finite, and where the scale is at its least.
        """
        if not self.scaler.is_enabled() or not math.isfinite(measured.loss):
            return False
        before = self.scaler.get_scale()
        if before <= LEAST_LOSS_SCALE:
            return False
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return bool(self.scaler.get_scale() < before)

    def apply(self) -> None:
        """Updates the parameters. What raises in here may have updated some of them."""
        self.scaler.step(self.optimizer)

    def end_step(self) -> None:
        """Moves scale and schedule on and lets the gradients go, whether the update was applied or refused."""
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Schedule and scale as plain values."""
        schedule = {name: value for name, value in self.schedule.state_dict().items() if name != "lr_lambdas"}
        lambdas = [None] * len(self.optimizer.param_groups)
        return {"schedule": {**schedule, "lr_lambdas": lambdas}, "scaler": self.scaler.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Puts `state()` of another process back; the rate is the schedule's own at that step, which may be longer now."""
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        step, bases = self.schedule.last_epoch, self.schedule.base_lrs
        rates = [base * share(step) for base, share in zip(bases, self.schedule.lr_lambdas, strict=True)]
        self.schedule._last_lr = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
