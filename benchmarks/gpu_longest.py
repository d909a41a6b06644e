"""The longest row that really trains under a cap, searched around the one that is planned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.gpu_models import network_for
from benchmarks.gpu_processes import report

LONGEST_RANK = 32
"""As in the table of longest contexts that Unsloth publishes."""
REHEARSED_ROW = 256
"""The planned row of a rehearsal, in tokens, and how much longer one may be before it runs out of memory."""
REHEARSED_ROOM = 1.2


def find_longest(shape: Any, cap: int, *, rehearse: bool) -> None:
    """Reports the longest row that trains under a cap, with the settings of the longest that the plan says would fit."""
    from qlora_studio.core.config import TrainConfig
    from qlora_studio.planner.fit import make_plan
    from qlora_studio.planner.tables import imagine_machine

    config = TrainConfig().replace({"lora.rank": LONGEST_RANK, "optim.learning_rate": 2e-4})
    longest = make_plan(config, shape, imagine_machine(cap)).longest_context
    if longest is None:
        report({"cap": cap, "problem": "no row would fit, as planned"})
        return
    planned = REHEARSED_ROW if rehearse else longest
    plan = make_plan(
        config.replace({"data.max_length": planned, "optim.batch_tokens": planned}), shape, imagine_machine(cap)
    )
    fits = row_trainer(shape, plan, config, rehearse=rehearse)
    if fits is None:
        report({"cap": cap, "problem": "the weights alone did not fit"})
        return

    def report_longest(longest: int, *, final: bool = False) -> None:
        report({"cap": cap, "planned": planned, "longest": longest, "final": final})

    report_longest(search_longest(fits, planned, shape.max_positions, report_longest), final=True)


def search_longest(fits: Callable[[int], bool], planned: int, most: int, report_longest: Callable[[int], None]) -> int:
    """The longest row of up to `most` tokens for which `fits` holds, to a sixteenth of the planned one.

    From the planned row in steps that double, until one fits and the next does not; then between them. So a plan that is
    right costs two tries. Every row that fits is told.
    """
    grain = step = max(1, planned // 16)
    low, high = 0, most + 1  # the longest that fitted, the shortest that did not
    tried = min(planned, most)
    while high - low > grain and low < most:
        if fits(tried):
            low = tried
            report_longest(low)
        else:
            high = tried
        if low and high <= most:
            tried = (low + high) // 2
        else:
            tried = min(most, low + step) if low else max(high - step, high // 2)
        step *= 2
    return low


def row_trainer(shape: Any, plan: Any, config: Any, *, rehearse: bool) -> Callable[[int], bool] | None:
    """Whether one row of so many tokens trains with the plan's settings under its cap: two whole updates.

    None where memory runs out before there is a row.
    """
    import torch

    from qlora_studio.core.example import Example
    from qlora_studio.engine.accelerator.choose import choose_accelerator
    from qlora_studio.engine.forward import LossFunction
    from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
    from qlora_studio.engine.kernels.offloading import Offloading
    from qlora_studio.engine.oom import is_out_of_memory
    from qlora_studio.engine.planned import tensor_budget_bytes
    from qlora_studio.engine.updates import make_optimizer

    accelerator = choose_accelerator()
    accelerator.release()
    accelerator.cap(tensor_budget_bytes(plan))
    try:
        network = network_for(shape, plan, config.lora)
        loss_of = LossFunction(network)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    offloading = Offloading(accelerator) if plan.offload in ("boundaries", "both") else None
    checkpoint_layers(network, plan.checkpointed_layers, offloading)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, config, plan.optimizer)

    def train(tokens: int) -> None:
        if rehearse and tokens > REHEARSED_ROOM * REHEARSED_ROW:
            raise torch.OutOfMemoryError("pretended: nothing caps a processor")
        row = [place % shape.vocab for place in range(tokens)]
        for _ in range(2):
            batch = loss_of.layout.collate([Example(tuple(row), ((0, tokens),))], [0])
            (loss_of.row_losses(batch).sum() / tokens).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        accelerator.synchronise()

    def fits(tokens: int) -> bool:
        try:
            train(tokens)
            fitted = True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fitted = False
        # Outside the handler, so that the failed frames are gone.
        optimizer.zero_grad(set_to_none=True)
        accelerator.release()
        return fitted

    return fits
