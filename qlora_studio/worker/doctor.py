"""The job `doctor`: what only torch can tell about this machine."""

from __future__ import annotations

from qlora_studio.core import events as ev
from qlora_studio.core.jobs import DoctorReport
from qlora_studio.engine.doctor import check_engine
from qlora_studio.planner.machine import read_cards
from qlora_studio.worker.context import Context


def run(context: Context) -> ev.Event:
    context.phase("looking at torch and its kernels")
    return ev.Finished(report=DoctorReport(checks=tuple(check_engine(len(read_cards())))))
