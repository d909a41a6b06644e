"""The job `resolve`: looks a base up, so that every plan after it is arithmetic."""

from __future__ import annotations

from pathlib import Path

from qlora_studio.core import events as ev
from qlora_studio.core.bases import BaseRef, ResolvedBase
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import ResolveReport, ResolveRequest
from qlora_studio.core.plan import MeasuredShape
from qlora_studio.planner.bases import resolve
from qlora_studio.worker.context import Context


def run(context: Context) -> ev.Event:
    request = context.request(ResolveRequest)
    base = BaseRef(request.base, request.revision)
    facts = resolve(base, context.home, _measure, context.phase, again=request.again)
    return ev.Finished(report=ResolveReport(facts=facts))


def resolve_base(context: Context, base: BaseRef) -> ResolvedBase:
    """What is known of a base, found out first where nobody has looked yet. Raises a StudioError where that fails."""
    facts = resolve(base, context.home, _measure, context.phase)
    if isinstance(facts, ResolvedBase):
        return facts
    raise StudioError.of([facts.problem])


def _measure(folder: Path) -> MeasuredShape:
    """A dry run; torch is imported for the few families that need one."""
    from qlora_studio.engine.dry_run import measure_folder

    return measure_folder(folder)
