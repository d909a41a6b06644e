"""What a run took of memory beside what was planned for it, in the sentences that page and command line show.

Each compares a measurement with the plan of that very thing: the largest step with what was planned when it was tried,
the run's own peak with the plan in force.
"""

from __future__ import annotations

from qlora_studio.core.plan import MemoryPlan
from qlora_studio.core.progress import Progress
from qlora_studio.core.words import gib


def differences(progress: Progress) -> list[str]:
    """Measured against planned, a sentence each; none before there is a plan."""
    plan = progress.plan
    if plan is None:
        return []
    return [one for one in (_largest_step(progress, plan), compare_peak(progress)) if one]


def compare_peak(progress: Progress) -> str:
    """The run's own peak against the plan; empty before its first step."""
    plan = progress.plan
    if plan is None or not progress.peak_bytes or not plan.comparable_bytes:
        return ""
    whole = plan.comparable_bytes == plan.estimate.total_bytes
    planned = "the plan" if whole else f"the {gib(plan.comparable_bytes, 1)} planned beside CUDA's context"
    name = "The peak of the run is" if progress.ended else "The peak so far is"
    return f"{name} {_against(progress.peak_bytes, plan.comparable_bytes)} {planned}."


def _largest_step(progress: Progress, plan: MemoryPlan) -> str:
    probe = progress.probe
    if probe is None or not probe.predicted_bytes:
        return ""
    whole = probe.predicted_bytes == plan.comparable_bytes
    planned = "was planned" if whole else f"the {gib(probe.predicted_bytes, 1)} planned for it"
    return f"The largest step took {_against(probe.measured_bytes, probe.predicted_bytes)} {planned}."


def _against(measured: int, planned: int) -> str:
    """`22% more than`, `as much as`."""
    off = measured / planned - 1
    return "as much as" if abs(off) < 0.005 else f"{abs(off):.0%} {'more' if off > 0 else 'less'} than"
