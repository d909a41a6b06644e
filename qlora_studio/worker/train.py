"""The job `train`: rows to examples, a plan, a 4-bit model, an adapter, and the record that makes it repeatable."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_studio.core import events as ev
from qlora_studio.core.bases import BaseRef
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import TrainReport
from qlora_studio.core.plan import GpuInfo, MemoryPlan, ModelShape
from qlora_studio.data.sets.prepare import Prepared, prepare_sources
from qlora_studio.engine import load
from qlora_studio.engine.accelerator.choose import choose_accelerator
from qlora_studio.engine.accelerator.formats import DTYPES
from qlora_studio.engine.checkpoints import newest_checkpoint
from qlora_studio.engine.ladder import Limits, smaller_limits
from qlora_studio.engine.loop import train
from qlora_studio.engine.planned import tensor_budget_bytes
from qlora_studio.engine.setup import Setup
from qlora_studio.engine.tokenizer import ChatTokenizer, load_tokenizer
from qlora_studio.planner.corrections import learn_correction, step_settings
from qlora_studio.planner.estimate import estimate
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.machine import read_machine
from qlora_studio.planner.speeds import learn_speed
from qlora_studio.planner.time import measured_speed
from qlora_studio.runs.folder import read_json, write_json
from qlora_studio.worker.context import Context, FetchedBase
from qlora_studio.worker.resolve import resolve_base
from qlora_studio.worker.templates import vet_once

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "safetensors")
MUST_STAY = ("base", "revision", "tokens_sha256", "template_sha256")
"""Facts of the fingerprint without which a run that goes on is another run."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Both sides of the data, as the model will see them."""

    train: Prepared
    held_out: Prepared


def run(context: Context) -> ev.Event:
    choose_accelerator().prepare()
    config = context.config()
    base = context.fetch_base(config)
    vet_once(context, base.folder, config.model.template)
    context.phase("turning rows into tokens")
    tokenizer = load_tokenizer(base.folder, config.model.template)
    rows = prepare_rows(context, config, tokenizer)
    planned = plan_run(context, config, base, rows.train)
    plan = planned.plan
    keep_fingerprint(context, fingerprint(config, base, tokenizer, rows))
    if context.asked() == "stop":
        return ev.Stopped()
    context.phase("loading the model in 4 bits")
    device = load.choose_device(config.model.compute_dtype)
    device.accelerator.cap(tensor_budget_bytes(plan))
    model = load.load_base(base.folder, device)
    if plan.offload in ("embeddings", "both"):
        load.keep_embeddings_off_the_card(model)
    adapter = load.attach_adapter(model, config.lora, DTYPES[plan.adapter_precision], config.optim.seed)
    setup = Setup(
        config=config,
        plan=plan,
        accelerator=device.accelerator,
        model=adapter,
        train=rows.train.examples,
        held_out=rows.held_out.examples,
        folder=context.folder.path,
        base=base.label,
        revision=base.revision,
        resume=find_checkpoint(context),
    )

    steps: list[ev.StepLogged] = []

    def emit(event: ev.Event) -> None:
        context.emit(event)
        if isinstance(event, ev.ProbeMeasured):
            learn_from_probe(context, planned, event)
        elif isinstance(event, ev.StepLogged):
            steps.append(event)

    outcome = train(setup, emit, context.asked)
    if (speed := measured_speed(planned.shape, plan, steps)) is not None:
        learn_speed(context.home.cache, planned.gpu, speed)
    if config.model.template:
        tokenizer.inner.save_pretrained(context.folder.adapter)
    if outcome.stopped:
        return ev.Stopped(step=outcome.step, saved="adapter")
    return ev.Finished(
        report=TrainReport(
            steps=outcome.step,
            loss=outcome.loss,
            held_out_before=outcome.held_out_before,
            held_out_after=outcome.held_out_after,
        )
    )


def find_checkpoint(context: Context) -> Path | None:
    """The newest whole checkpoint of this run, where it was interrupted; damaged ones are named and passed over."""
    checkpoint, damages = newest_checkpoint(context.folder.path / "checkpoints")
    for damage in damages:
        context.emit(ev.Noted(text=f"{damage} An older checkpoint is used."))
    return checkpoint


def keep_fingerprint(context: Context, made: dict[str, Any]) -> None:
    """Writes the record of a new run. Raises a StudioError where a run that goes on would not be the same one."""
    file = context.folder.path / "fingerprint.json"
    if file.exists():
        kept = read_json(file)
        changed = [name for name in MUST_STAY if kept.get(name) != made[name]]
        if changed:
            raise StudioError(
                f"This run cannot go on: since it began, {', '.join(changed)} changed.",
                "Start a new run; its checkpoints stay where they are.",
                where=str(file),
            )
    write_json(file, made)


def prepare_rows(context: Context, config: TrainConfig, tokenizer: ChatTokenizer) -> Rows:
    """Training and held-out examples of a run. Raises a StudioError for findings that nobody accepted."""
    folder, seed = context.home.datasets, config.optim.seed
    train_rows = prepare_sources(folder, tokenizer, config.data, seed=seed)
    train_rows.check(config.data.accepted)
    rows = Rows(train_rows, prepare_sources(folder, tokenizer, config.data, split="eval", seed=seed))
    context.emit(
        ev.Noted(
            text=f"{len(rows.train.examples)} rows to train, {len(rows.held_out.examples)} held out; "
            f"{rows.train.tokens} tokens, {rows.train.trained_tokens} of them trained."
        )
    )
    for taken in rows.train.mixture:
        context.emit(
            ev.Noted(text=f"{taken.name}: {taken.rows} of {taken.of_rows} rows, {taken.share:.0%} of the mixture.")
        )
    if rows.train.dropped or rows.train.cut:
        context.emit(
            ev.Noted(
                text=f"{rows.train.dropped} rows left out and {rows.train.cut} cut: "
                f"longer than {config.data.max_length} tokens."
            )
        )
    return rows


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what it takes to learn from its measurement."""

    plan: MemoryPlan
    shape: ModelShape
    gpu: GpuInfo | None


def plan_run(context: Context, config: TrainConfig, base: FetchedBase, train_rows: Prepared) -> Planned:
    """The plan for the real token lengths, with what earlier runs measured here; said and kept."""
    machine = read_machine(context.home)
    lengths = [len(example.input_ids) for example in train_rows.examples]
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
    file = context.folder.path / "limits.json"
    limits = Limits(plan.micro_batch_tokens, plan.checkpointed_layers, plan.layers)
    for _ in range(read_json(file)["levers"] if file.exists() else 0):
        found = smaller_limits(limits, longest)
        if found is None:
            break
        limits, words = found
        context.emit(ev.Noted(text=f"With {words}."))
    changed = {"micro_batch_tokens": limits.micro_batch_tokens, "checkpointed_layers": limits.checkpointed_layers}
    return plan.model_copy(update=changed)


def fingerprint(config: TrainConfig, base: FetchedBase, tokenizer: ChatTokenizer, rows: Rows) -> dict[str, Any]:
    """What must be equal for the same curve: data, template, base, versions, seed."""
    digest = hashlib.sha256()
    for example in (*rows.train.examples, *rows.held_out.examples):
        digest.update(repr((example.input_ids, example.spans)).encode())
    return {
        "schema": 1,
        "base": base.label,
        "revision": base.revision,
        "tokens_sha256": digest.hexdigest(),
        "template_sha256": hashlib.sha256(tokenizer.template.encode()).hexdigest(),
        "seed": config.optim.seed,
        "thinks": 2 * rows.train.reasoning_rows > len(rows.train.examples),
        "accepted_findings": list(config.data.accepted),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
