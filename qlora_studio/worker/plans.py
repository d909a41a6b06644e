"""The plan of a run as its worker makes it: from the real lengths, made smaller after a kill, corrected by the probe."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_studio.core import events as ev
from qlora_studio.core.bases import BaseRef
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.example import token_lengths
from qlora_studio.core.plan import GpuInfo, MemoryPlan, ModelShape
from qlora_studio.data.sets.prepare import Prepared
from qlora_studio.engine.ladder import Limits, smaller_limits
from qlora_studio.planner.corrections import learn_correction, step_settings
from qlora_studio.planner.estimate import estimate
from qlora_studio.planner.fit import make_plan
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


def plan_run(context: Context, config: TrainConfig, base: FetchedBase, train_rows: Prepared) -> Planned:
    """The plan for the real token lengths, with what earlier runs measured here; said and kept."""
    machine = read_machine(context.home)
    lengths = token_lengths(train_rows.examples)
    shape = resolve_base(context, BaseRef(str(base.folder))).shape.model_copy(update={"name": base.label})
    plan = make_plan(config, shape, machine, lengths)
    planned = Planned(shrink_plan(context, plan, max(lengths)), shape, machine.card)
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
    corrected = settings.model_copy(update={"correction": factor})
    reason = f"Corrected by what the largest step took here: activations count {factor:.2f} times the formula."
    update = {
        "estimate": estimate(planned.shape, corrected),
        "settings": corrected,
        "reasons": (*planned.plan.reasons, reason),
    }
    keep_plan(context, planned.plan.model_copy(update=update))


def shrink_plan(context: Context, plan: MemoryPlan, longest: int) -> MemoryPlan:
    """The plan as many rungs down the out-of-memory ladder as the guard has counted."""
    limits = Limits(plan.micro_batch_tokens, plan.checkpointed_layers, plan.layers)
    for _ in range(count_rungs(context.folder)):
        found = smaller_limits(limits, longest)
        if found is None:
            break
        limits, words = found
        context.emit(ev.Noted(text=f"With {words}."))
    changed = {"micro_batch_tokens": limits.micro_batch_tokens, "checkpointed_layers": limits.checkpointed_layers}
    return plan.model_copy(update=changed)
