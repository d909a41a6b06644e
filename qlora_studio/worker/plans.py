"""The plan of a run as its worker makes it: from the real lengths, made smaller after a kill, corrected by the probe."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_studio.core import events as ev
from qlora_studio.core.bases import BaseRef
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.example import token_lengths
from qlora_studio.core.plan import GpuInfo, MemoryPlan, ModelShape, PlanSettings
from qlora_studio.data.sets.prepare import Prepared
from qlora_studio.engine.ladder import Limits, smaller_limits
from qlora_studio.planner.corrections import learn_correction, step_settings
from qlora_studio.planner.fit import make_plan, plan_again
from qlora_studio.planner.machine import read_machine
from qlora_studio.runs.folder import write_json
from qlora_studio.worker.context import Context, FetchedBase
from qlora_studio.worker.guard import count_rungs
from qlora_studio.worker.resolve import resolve_base


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what it takes to learn from its measurement."""

    plan: MemoryPlan
    shape: ModelShape
    gpu: GpuInfo | None

    def again(self, settings: PlanSettings) -> MemoryPlan:
        """The plan with other settings, its bill made anew."""
        return plan_again(self.plan, self.shape, settings)


def plan_run(context: Context, config: TrainConfig, base: FetchedBase, train_rows: Prepared) -> Planned:
    """The plan for the real token lengths, with what earlier runs measured here; said and kept."""
    machine = read_machine(context.home)
    lengths = token_lengths(train_rows.examples)
    shape = resolve_base(context, BaseRef(str(base.folder))).shape.model_copy(update={"name": base.label})
    plan = make_plan(config, shape, machine, lengths)
    planned = Planned(shrink_plan(context, plan, shape, max(lengths)), shape, machine.card)
    keep_plan(context, planned.plan)
    return planned


def keep_plan(context: Context, plan: MemoryPlan) -> None:
    write_json(context.folder.path / "plan.json", plan.model_dump(mode="json"))
    context.emit(ev.PlanMade(plan=plan))


def learn_from_probe(context: Context, planned: Planned, probe: ev.ProbeMeasured) -> None:
    """Keeps what the probe says of this machine for the next plan, and corrects the plan of this run by it."""
    settings, measured = planned.plan.settings, step_settings(planned.plan, probe)
    if settings is None or measured is None:
        return
    factor = learn_correction(context.home.cache, planned.gpu, planned.shape, measured, probe.measured_bytes)
    if factor == settings.correction:
        return
    reason = f"Corrected by what the largest step took here: activations count {factor:.2f} times the formula."
    corrected = settings.model_copy(update={"correction": factor})
    keep_plan(context, plan_again(planned.plan, planned.shape, corrected, reason))


def shrink_plan(context: Context, plan: MemoryPlan, shape: ModelShape, longest: int) -> MemoryPlan:
    """The plan as many rungs down the out-of-memory ladder as the guard has counted, and what it takes there."""
    settings = plan.settings
    can_tile = settings is not None and shape.measured is None and not (settings.dropout or settings.dora)
    first = limits = Limits(
        plan.micro_batch_tokens, plan.checkpointed_layers, plan.layers, plan.tiled_mlp, can_tile=can_tile
    )
    for _ in range(count_rungs(context.folder)):
        found = smaller_limits(limits, longest)
        if found is None:
            break
        limits, words = found
        context.emit(ev.Noted(text=f"With {words}."))
    if limits == first or settings is None:
        return plan
    changed = {
        "micro_batch_tokens": limits.micro_batch_tokens,
        "checkpointed_layers": limits.checkpointed_layers,
        "tiled_mlp": limits.tiled_mlp,
    }
    return plan_again(plan, shape, settings.model_copy(update=changed))
