"""The job `export`: the adapter or the merged model into a folder, checked against what was chatted with."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_studio.core import events as ev
from qlora_studio.core.chat import Sampling
from qlora_studio.core.conversation import Turn
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import ExportReport, ExportRequest
from qlora_studio.core.plan import GIB
from qlora_studio.data.render.prompt import RenderOptions, prompt_ids, stop_ids
from qlora_studio.engine import load, memory
from qlora_studio.engine.checkpoints import find_damage
from qlora_studio.engine.compare import Probe, agreement, answer_log_probabilities
from qlora_studio.engine.generate import generate
from qlora_studio.engine.merge import merge
from qlora_studio.engine.oom import is_out_of_memory
from qlora_studio.engine.tokenizer import load_tokenizer
from qlora_studio.runs.folder import JobFolder
from qlora_studio.worker.context import Context
from qlora_studio.worker.loaded_run import LiveRun, open_run

CHECK = Sampling(temperature=0.0, max_new_tokens=64)
"""Greedy and short: what is compared must not depend on chance."""


def run(context: Context) -> ev.Event:
    request = context.request(ExportRequest)
    folder, target = JobFolder(request.run), request.to
    if damage := find_damage(folder.adapter):
        raise StudioError(damage, "Train again, or choose another run.")
    stage = target.with_name(f".{target.name}.part")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        if request.kind == "adapter":
            context.phase("copying the adapter")
            for path in folder.adapter.iterdir():
                shutil.copyfile(path, stage / path.name)
        else:
            _merge(context, folder, stage, request)
        if context.asked() == "stop":
            return ev.Stopped()
        if target.exists():  # empty: the studio refuses any other before the job starts
            target.rmdir()
        stage.rename(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    context.emit(ev.Exported(what=request.kind, path=str(target), bytes=size))
    return ev.Finished(report=ExportReport(path=target, bytes=size))


def _merge(context: Context, folder: JobFolder, stage: Path, request: ExportRequest) -> None:
    """Merges into `stage`, then compares the merged model, read back from there, with the live one."""
    config = context.config(folder)
    base = context.fetch_base(config)
    need = sum(path.stat().st_size for path in base.folder.glob("*.safetensors"))
    free = shutil.disk_usage(stage).free
    if free < need:
        raise StudioError(
            f"The merged model needs {need / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free.",
            "Choose another disk.",
            where=str(stage.parent),
        )
    probes: list[Probe] = []
    live = None
    if request.prompts:
        live = open_run(context, folder)
        context.phase("answering with the adapter")
        probes = _answer(live, request.prompts)
        chatted = answer_log_probabilities(live.model, probes)
    options = live.options if live else RenderOptions()
    compute = live.device.dtype if live else load.choose_device(config.model.compute_dtype).dtype
    del live
    memory.release()
    context.phase("merging")
    kind = request.merge_into
    merge(
        base.folder,
        folder.adapter,
        stage,
        kind,
        compute,
        lambda done, total: context.emit(ev.Advanced(done=done, total=total, unit="bytes")),
    )
    if not probes:
        return
    context.phase("checking the merged model")
    model = load_merged(context, stage, load.choose_device(config.model.compute_dtype))
    same, kl = agreement(chatted, answer_log_probabilities(model, probes))
    tokenizer = load_tokenizer(stage)
    identical = 0
    for prompt, probe in zip(request.prompts, probes, strict=True):
        ids = prompt_ids([Turn("user", prompt)], tokenizer, options=options)
        if tuple(ids) != probe.prompt:
            raise StudioError(
                "The exported tokenizer writes this prompt differently from training.",
                "Report this: it should be impossible.",
            )
        answer = tuple(generate(model, ids, stop_ids(tokenizer), CHECK))
        identical += answer == probe.answer
        context.emit(ev.SampleWritten(step=0, prompt=prompt, answer=tokenizer.decode(answer), side="merged"))
    context.emit(
        ev.Checked(
            what=f"merged, {kind.replace('_', ' ')}",
            same_top1=same,
            kl=kl,
            identical_answers=identical,
            answers=len(probes),
        )
    )


def load_merged(context: Context, folder: Path, device: load.Device) -> Any:
    """The merged model in 16 bits, ready to answer: on the card where it fits there, else in the computer's memory."""
    try:
        model = load.load_base(folder, device, four_bit=False)
    except Exception as error:
        if not is_out_of_memory(error) or device.type == "cpu":
            raise
        model = None
    if model is None:
        memory.release()
        context.emit(ev.Noted(text="The merged model does not fit the card; it is checked in the computer's memory."))
        model = load.load_base(folder, load.Device("cpu", device.dtype), four_bit=False)
    model.eval()
    return model


def _answer(live: LiveRun, prompts: Sequence[str]) -> list[Probe]:
    probes = []
    for prompt in prompts:
        ids = live.prompt([Turn("user", prompt)])
        probes.append(Probe(tuple(ids), tuple(generate(live.model, ids, stop_ids(live.tokenizer), CHECK))))
    return probes
