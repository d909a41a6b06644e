"""What may be meant and rarely is: settings that a person should look at twice before a start. Nothing here blocks."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_studio.core.bases import BaseFacts, ResolvedBase
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import Problem
from qlora_studio.core.jobs import TokeniseReport
from qlora_studio.planner.rates import ALPHA, WIDTH, effective_alpha, suited_rate

FAR_ABOVE, FAR_BELOW = 10, 100
"""How far from the rate that suits the model another is still believed."""
_RATE = "optim.learning_rate"
FEW_STEPS = 8
MANY_EPOCHS = 10
FAR_ALPHA = 16
"""How many times the usual alpha, or which part of it, scales the adapter out of proportion."""


def find_unusual(
    config: TrainConfig, base: BaseFacts, report: TokeniseReport | None, steps: int | None
) -> Iterator[Problem]:
    """Each with the field it is about and what would be usual."""
    yield from _unusual_rate(config, base)
    yield from _unusual_rank(config, base, report)
    yield from _unusual_course(config, steps)
    if report is not None:
        yield from _unusual_rows(config, report)


def _unusual_rate(config: TrainConfig, base: BaseFacts) -> Iterator[Problem]:
    rate = config.optim.learning_rate
    if rate is None:
        return
    width, family = (base.shape.hidden, base.shape.family) if isinstance(base, ResolvedBase) else (WIDTH, "")
    good = suited_rate(width, family, config.lora)
    if rate > FAR_ABOVE * good:
        message = f"A learning rate of {rate:g} is {rate / good:,.0f} times what suits a model of this width."
        yield Problem(message, f"About {good:.0e} is usual; so high a rate mostly destroys the model.", field=_RATE)
    elif rate < good / FAR_BELOW:
        message = f"A learning rate of {rate:g} is so low that hardly anything is learned."
        yield Problem(message, f"About {good:.0e} is usual.", field=_RATE)


def _unusual_rank(config: TrainConfig, base: BaseFacts, report: TokeniseReport | None) -> Iterator[Problem]:
    rank, alpha = config.lora.rank, effective_alpha(config.lora)
    if isinstance(base, ResolvedBase) and rank >= base.shape.hidden:
        message = (
            f"A rank of {rank} is no less than the model's width of {base.shape.hidden}: the adapter saves nothing."
        )
        yield Problem(message, "8 to 64 are usual.", field="lora.rank")
    elif report is not None and report.examples and rank > report.examples:
        message = f"A rank of {rank} is more than there are examples ({report.examples:,})."
        yield Problem(message, "A lower rank learns as much from so few rows, in less memory.", field="lora.rank")
    if not 1 / FAR_ALPHA <= alpha / ALPHA <= FAR_ALPHA:
        message = f"An alpha of {config.lora.alpha:,} scales the adapter out of proportion."
        usual = max(1, round(ALPHA * config.lora.alpha / alpha))
        yield Problem(
            message,
            f"{usual} is usual, whatever the rank." if usual == ALPHA else f"{usual} is usual at this rank.",
            field="lora.alpha",
        )


def _unusual_course(config: TrainConfig, steps: int | None) -> Iterator[Problem]:
    if config.optim.epochs > MANY_EPOCHS and config.optim.max_steps is None:
        message = f"Each row is seen {config.optim.epochs:g} times; most runs forget after a few."
        yield Problem(message, "1 to 3 epochs are usual.", field="optim.epochs")
    if config.optim.warmup_share > 0.5:
        message = f"The learning rate still rises after {config.optim.warmup_share:.0%} of the run."
        yield Problem(message, "0.03 to 0.1 are usual.", field="optim.warmup_share")
    if config.lora.dropout > 0.5:
        message = f"A dropout of {config.lora.dropout:g} leaves most of the adapter's input out."
        yield Problem(message, "0 to 0.1 are usual.", field="lora.dropout")
    if steps is not None and steps < FEW_STEPS:
        message = (
            f"There {'is' if steps == 1 else 'are'} only {steps} step{'s' if steps != 1 else ''}: little is learned."
        )
        yield Problem(
            message, "More rows, more epochs or a smaller effective batch make more.", field="optim.batch_tokens"
        )


def _unusual_rows(config: TrainConfig, report: TokeniseReport) -> Iterator[Problem]:
    if report.examples and 2 * (report.dropped + report.refused) > report.rows:
        message = f"Most rows are left out: {report.dropped + report.refused:,} of {report.rows:,}."
        yield Problem(message, "Raise the max sequence length, or truncate long rows.", field="data.max_length")
    if report.cut and config.data.too_long == "cut_answer":
        message = f"{report.cut:,} answers end in the middle: the model learns to break off."
        yield Problem(message, "Raise the max sequence length.", field="data.too_long")
    if report.examples and not report.held_out_rows:
        yield Problem(
            "No row is held out, so nobody sees whether the model learns or memorises.",
            "Hold out a share of 0.05.",
            field="data.eval_share",
        )
