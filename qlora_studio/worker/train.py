"""The job `train`: rows to examples, a plan, a 4-bit model, an adapter, and the record that makes it repeatable."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.plan import MemoryPlan
from qlora_studio.data.mix import load_mixture
from qlora_studio.data.prepare import Prepared, prepare
from qlora_studio.engine import load, memory
from qlora_studio.engine.tokenizer import ChatTokenizer, load_tokenizer
from qlora_studio.engine.train import Setup, train
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.gpu import read_gpus
from qlora_studio.planner.shape import read_shape
from qlora_studio.runs.folder import write_json
from qlora_studio.worker.context import Context, FetchedBase

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "safetensors")


@dataclass(frozen=True, slots=True)
class Rows:
    """Both sides of the data, as the model will see them."""

    train: Prepared
    held_out: Prepared


def run(context: Context) -> ev.Event:
    memory.prepare_allocator()
    config = context.config()
    base = context.fetch_base(config)
    context.phase("turning rows into tokens")
    tokenizer = load_tokenizer(base.folder, config.model.template)
    rows = prepare_rows(context, config, tokenizer)
    plan = plan_run(context, config, base, rows.train)
    write_json(context.folder.path / "fingerprint.json", fingerprint(config, base, tokenizer, rows))
    if context.asked() == "stop":
        return ev.Stopped()
    context.phase("loading the model in 4 bits")
    device = load.choose_device(config.model.compute)
    memory.cap(plan.budget_bytes)
    model = load.load_base(base.folder, device)
    adapter = load.attach_adapter(model, config.lora, load.DTYPES[plan.adapter_precision], config.optim.seed)
    setup = Setup(
        config=config,
        plan=plan,
        model=adapter,
        train=rows.train.examples,
        held_out=rows.held_out.examples,
        folder=context.folder.path,
        base=base.label,
        revision=base.revision,
    )
    outcome = train(setup, context.emit, context.asked)
    if config.model.template:
        tokenizer.inner.save_pretrained(context.folder.adapter)
    if outcome.stopped:
        return ev.Stopped(step=outcome.step, saved="adapter")
    return ev.Finished(
        result={
            "loss": outcome.loss,
            "held_out_before": outcome.held_out_before,
            "held_out_after": outcome.held_out_after,
            "steps": outcome.step,
        }
    )


def prepare_rows(context: Context, config: TrainConfig, tokenizer: ChatTokenizer) -> Rows:
    """Training and held-out examples of a run. Raises a StudioError for findings that nobody accepted."""
    sides = {}
    for split in ("train", "eval"):
        prepared = prepare(
            load_mixture(context.home.datasets, config.data, config.optim.seed, split), tokenizer, config.data
        )
        if split == "train":
            prepared.check(config.data.accepted)
        sides[split] = prepared
    rows = Rows(sides["train"], sides["eval"])
    context.emit(
        ev.Noted(
            text=f"{len(rows.train.examples)} rows to train, {len(rows.held_out.examples)} held out; "
            f"{rows.train.tokens} tokens, {rows.train.trained_tokens} of them trained."
        )
    )
    if rows.train.dropped or rows.train.cut:
        context.emit(
            ev.Noted(
                text=f"{rows.train.dropped} rows left out and {rows.train.cut} cut: "
                f"longer than {config.data.max_tokens} tokens."
            )
        )
    return rows


def plan_run(context: Context, config: TrainConfig, base: FetchedBase, train_rows: Prepared) -> MemoryPlan:
    """The plan for the real token lengths, said and kept."""
    gpus = read_gpus()
    lengths = [len(example.input_ids) for example in train_rows.examples]
    plan = make_plan(config, read_shape(str(base.folder), context.home.models), gpus[0] if gpus else None, lengths)
    write_json(context.folder.path / "plan.json", plan.model_dump(mode="json"))
    context.emit(ev.PlanMade(plan=plan))
    return plan


def fingerprint(config: TrainConfig, base: FetchedBase, tokenizer: ChatTokenizer, rows: Rows) -> dict[str, object]:
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
        "accepted_findings": list(config.data.accepted),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
