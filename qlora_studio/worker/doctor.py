"""The job `doctor`: what only torch can tell about this machine."""

from __future__ import annotations

from qlora_studio.core import events as ev
from qlora_studio.engine.doctor import check_engine
from qlora_studio.planner.gpu import read_gpus
from qlora_studio.worker.context import Context


def run(context: Context) -> ev.Event:
    context.phase("looking at torch and its kernels")
    checks = check_engine(len(read_gpus()))
    return ev.Finished(result={"checks": [check.model_dump(mode="json") for check in checks]})
