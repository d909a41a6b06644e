"""The job `evaluate`: held-out loss and answers of base and adapter, on the same rows with the same seed."""

from __future__ import annotations

from contextlib import nullcontext

from qlora_studio.core import events as ev
from qlora_studio.core.chat import Side
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import EvaluateReport, EvaluateRequest
from qlora_studio.data.sets.prepare import Stopped
from qlora_studio.engine.evaluate import evaluate
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.ladder import Limits, MemoryLadder
from qlora_studio.engine.load import keep_layout
from qlora_studio.engine.objectives.registry import find_objective
from qlora_studio.runs.folder import JobFolder
from qlora_studio.worker.context import Context
from qlora_studio.worker.loaded_run import open_run
from qlora_studio.worker.rows import held_out as find_held_out

MICRO_BATCH_TOKENS = 4096
SIDES: tuple[Side, ...] = ("base", "tuned")


def run(context: Context) -> ev.Event:
    request = context.request(EvaluateRequest)
    folder, prompts = JobFolder(request.run), request.prompts
    config = context.config(folder)
    live = open_run(context, folder, request.checkpoint)
    try:
        held_out = find_held_out(context, config, live.tokenizer)
    except Stopped:
        return ev.Stopped()
    if not held_out.examples and not prompts:
        raise StudioError(
            "This run holds nothing out, so there is nothing to measure.", "Train with an evaluation share above 0."
        )
    losses: dict[str, float] = {}
    if held_out.examples:
        context.phase("measuring the held-out loss")
        loss_function = LossFunction(live.model)
        ladder = MemoryLadder(live.model, live.device.accelerator, Limits(MICRO_BATCH_TOKENS, 0, 0))
        tokens = sum(example.trained_tokens for example in held_out.examples)
        for adapter in (False, True):
            with nullcontext() if adapter else live.model.disable_adapter():
                loss = evaluate(find_objective(config.optim.objective), loss_function, held_out.examples, ladder)
            event = ev.EvaluationLogged(step=0, loss=loss, tokens=tokens, rows=len(held_out.examples), adapter=adapter)
            context.emit(event)
            losses["tuned_loss" if adapter else "base_loss"] = loss
    keep_layout(live.model, canonical=False)  # nothing is trained or dequantised after this
    context.phase("answering")
    for number, prompt in enumerate(prompts, 1):
        for side in SIDES:
            if context.pending_request() == "stop":
                return ev.Stopped()
            answer = live.whole_answer(prompt, side, request.sampling)
            context.emit(ev.SampleWritten(step=0, prompt=prompt, answer=answer, side=side))
        context.emit(ev.Advanced(done=number, total=len(prompts), unit="prompts"))
    return ev.Finished(report=EvaluateReport(rows=len(held_out.examples), **losses))
