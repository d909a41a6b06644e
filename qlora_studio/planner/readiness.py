"""One readiness for page and command line, before a run and before an export. Pure: every fact is handed in."""

from __future__ import annotations

import math
from collections.abc import Iterator

from qlora_studio.core.bases import BaseFacts, FailedBase, ResolvedBase, UnresolvedBase
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.core.exports import find_gguf_limit
from qlora_studio.core.jobs import TokeniseReport
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import MemoryPlan
from qlora_studio.core.readiness import (
    DataFacts,
    DiskNeed,
    ExportFacts,
    ExportReadiness,
    LeftOut,
    Readiness,
    TimeEstimate,
)
from qlora_studio.core.steps import plan_steps
from qlora_studio.core.words import gib
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.rates import suited_rate
from qlora_studio.planner.time import CORE_FLOPS, Work, estimate_time, work_of
from qlora_studio.planner.unusual import find_unusual

RUN_FILES_BYTES = 64 << 20
"""Journal, log, tokenizer and records of a run."""
EXPORT_BANDWIDTH = 0.2e9
"""Bytes a second of reading, merging and writing weights; rough."""
ENCODED_A_SECOND = 6e6
"""Values a core brings into K-quants on a busy machine; 11 to 17 million on a quiet one, 2026-11-21, docs/export.md."""
CHECK_SECONDS = 10
"""A model answering one prompt twice, with the loading shared; rough."""


def assess(config: TrainConfig, base: BaseFacts, data: DataFacts, machine: Machine) -> Readiness:
    """Everything that a person wants to know before a start. Never raises for what a person can mend: it is listed."""
    plan, problems = _plan(config, base, data, machine)
    report, findings = data.tokens, (data.tokens.findings if data.tokens else data.findings)
    blocks = [*_data_blocks(config, data), *_base_blocks(base), *problems]
    errors = [one for one in findings if one.severity == "error" and one.name not in config.data.accepted]
    blocks += [Problem(one.message, one.hint, field="data.accepted") for one in errors]
    work, exact = _work(config, report, plan)
    disk = _disk(config, base, plan, machine)
    if disk is not None and not disk.fits:
        blocks.append(_no_room(disk, "The run"))
    return Readiness(
        rows=report.rows if report else data.rows,
        trained_rows=_trained_rows(report),
        left_out=tuple(_left_out(report)) if report else (),
        cut_rows=report.cut if report else 0,
        held_out_rows=report.held_out_rows if report else None,
        steps=work.steps if work else None,
        steps_exact=exact,
        time=_time(config, base, plan, work, machine),
        plan=plan,
        disk=disk,
        download_bytes=_download_bytes(base),
        blocks=tuple(blocks),
        over_budget=_over_budget(plan),
        unusual=tuple(find_unusual(config, base, report, work.steps if work else None)),
        chosen=_chosen(config, base),
        limits=_limits(base),
    )


def assess_export(base: BaseFacts, facts: ExportFacts, *, needs_base: bool) -> ExportReadiness:
    """Size, time and disk of an export, and what blocks it. `needs_base`: whether it merges into the base's weights."""
    blocks = [*_base_blocks(base), *_merge_blocks(base)] if needs_base else []
    if facts.gguf and isinstance(base, ResolvedBase) and (limit := find_gguf_limit(base.shape.family)):
        blocks.append(Problem(limit, "Export the merged model instead."))
    disk = None
    if facts.result_bytes is not None:
        disk = DiskNeed(facts.result_bytes + facts.scratch_bytes, facts.free_bytes)
        if not disk.fits:
            blocks.append(_no_room(disk, f"The {facts.kind}"))
    moved = facts.read_bytes + (facts.result_bytes or 0) + facts.scratch_bytes
    return ExportReadiness(
        base=base,
        kind=facts.kind,
        result_bytes=facts.result_bytes,
        time=TimeEstimate(
            seconds=moved / EXPORT_BANDWIDTH
            + facts.encoded_values / (ENCODED_A_SECOND * facts.cores)
            + CHECK_SECONDS * facts.checks
            + _reading_seconds(facts),
            tokens_per_second=0,
            measured=False,
            basis="by a rough formula: weights read and written at 0.2 GB/s",
        ),
        disk=disk,
        blocks=tuple(blocks),
    )


def _reading_seconds(facts: ExportFacts) -> float:
    """Of training rows that only go forward: at twice the speed of training, which goes backward as well."""
    if facts.tokens_per_second:
        return facts.read_tokens / (2 * facts.tokens_per_second)
    return facts.read_tokens * 2 * facts.encoded_values / (facts.cores * CORE_FLOPS[False])


def _plan(
    config: TrainConfig, base: BaseFacts, data: DataFacts, machine: Machine
) -> tuple[MemoryPlan | None, tuple[Problem, ...]]:
    """The plan, or why there is none; for a base that is not resolved, `_base_blocks` says it."""
    if not isinstance(base, ResolvedBase):
        return None, ()
    try:
        return make_plan(config, base.shape, machine, _lengths(data.tokens)), ()
    except StudioError as error:
        return None, error.problems


def _lengths(report: TokeniseReport | None) -> tuple[int, ...] | None:
    """Lengths of the trained examples; of very many rows only the longest is known."""
    if report is None or not report.examples:
        return None
    return report.lengths or (min(report.longest, report.limit),)


def _base_blocks(base: BaseFacts) -> Iterator[Problem]:
    if isinstance(base, FailedBase):
        yield base.problem
    elif isinstance(base, UnresolvedBase):
        yield Problem(base.needs, "Look the model up first.", field="model.base")
    elif base.weights == "missing":
        yield Problem(base.weights_problem, field="model.base")


def _merge_blocks(base: BaseFacts) -> Iterator[Problem]:
    if isinstance(base, ResolvedBase) and base.unmergeable:
        yield Problem(
            f"The adapter cannot be merged into this base: its files hold no matching weight for {base.unmergeable[0]}.",
            "Export the adapter as it is.",
        )


def _limits(base: BaseFacts) -> tuple[str, ...]:
    """What of this base cannot be quantised, adapted, merged or written as GGUF, a sentence each."""
    if not isinstance(base, ResolvedBase):
        return ()
    limit = find_gguf_limit(base.shape.family)
    return (*base.limits, limit) if limit else base.limits


def _data_blocks(config: TrainConfig, data: DataFacts) -> Iterator[Problem]:
    if not config.data.sources:
        yield Problem("There is no data to train on.", "Import a file first.", field="data.sources")
    elif data.tokens is not None and not data.tokens.examples:
        yield Problem(
            f"No row is left to train: of {data.tokens.rows:,} none fits {config.data.max_length:,} tokens.",
            "Raise the max sequence length, or truncate long rows instead of dropping them.",
            field="data.max_length",
        )
    elif not data.rows and data.tokens is None:
        yield Problem("The chosen data sets have no rows.", "Import a file that has some.", field="data.sources")


def _over_budget(plan: MemoryPlan | None) -> Problem | None:
    if plan is None or plan.fits:
        return None
    hint = plan.changes[1] if len(plan.changes) > 1 else "Choose a smaller model, shorter rows or a smaller rank."
    return Problem(f"The plan is {gib(plan.missing_bytes)} over budget, and memory would run out.", hint)


def _trained_rows(report: TokeniseReport | None) -> int | None:
    """Rows that are trained: those that were neither dropped nor refused, and that the mixture has taken."""
    if report is None:
        return None
    return min(report.rows - report.dropped - report.refused, report.examples)


def _left_out(report: TokeniseReport) -> Iterator[LeftOut]:
    kept = report.rows - report.dropped - report.refused
    for rows, why in (
        (report.dropped, "too long"),
        (report.refused, "with nothing to train"),
        (kept - report.examples, "left out by the mixture"),
    ):
        if rows > 0:
            yield LeftOut(rows, why)


def _work(config: TrainConfig, report: TokeniseReport | None, plan: MemoryPlan | None) -> tuple[Work | None, bool]:
    """What the run computes, None where nothing was counted, and whether its steps are those the loop will take."""
    if report is None or not report.examples:
        return None, True
    if report.lengths:
        taken = plan_steps(report.lengths, config.optim)
        return work_of(report.lengths, taken, report.held_out_rows, plan.settings if plan else None), True
    tokens = report.tokens * config.optim.epochs
    steps = math.ceil(tokens / config.optim.batch_tokens)
    if config.optim.max_steps is not None and config.optim.max_steps < steps:
        steps, tokens = config.optim.max_steps, config.optim.max_steps * config.optim.batch_tokens
    row = report.tokens / report.examples
    return Work(steps, round(tokens), row, round(report.held_out_rows * row)), False


def _time(
    config: TrainConfig, base: BaseFacts, plan: MemoryPlan | None, work: Work | None, machine: Machine
) -> TimeEstimate | None:
    if plan is None or work is None or not isinstance(base, ResolvedBase):
        return None
    return estimate_time(config, base.shape, plan, work, machine)


def _chosen(config: TrainConfig, base: BaseFacts) -> dict[str, str]:
    """What the config leaves open and the base settles."""
    if config.optim.learning_rate is not None or not isinstance(base, ResolvedBase):
        return {}
    rate = suited_rate(base.shape.hidden, base.shape.family, config.lora)
    return {
        "optim.learning_rate": f"A learning rate of {rate:g} suits this model, {base.shape.hidden:,} wide, at this alpha."
    }


def _download_bytes(base: BaseFacts) -> int:
    if isinstance(base, ResolvedBase) and base.weights == "to_download":
        return base.weights_bytes or 0
    return 0


def _disk(config: TrainConfig, base: BaseFacts, plan: MemoryPlan | None, machine: Machine) -> DiskNeed | None:
    """A download, the adapter, and checkpoints: the newest, the best, and the one that is being written."""
    if plan is None:
        return None
    adapter = plan.estimate.part_bytes("adapter")
    checkpoint = adapter + plan.estimate.part_bytes("optimizer")
    needed = _download_bytes(base) + adapter + (config.saving.keep + 2) * checkpoint + RUN_FILES_BYTES
    return DiskNeed(needed, machine.disk_free_bytes)


def _no_room(disk: DiskNeed, what: str) -> Problem:
    return Problem(
        f"{what} needs {gib(disk.needed_bytes)} of disk, and {gib(disk.free_bytes)} are free.",
        "Free some space, or choose another disk.",
    )
