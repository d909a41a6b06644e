"""The job `train`: rows to examples, a plan, a 4-bit model, an adapter, and the record that makes it repeatable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qlora_studio.core import events as ev
from qlora_studio.core.chat import Sampling
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.example import token_lengths
from qlora_studio.core.jobs import TrainReport
from qlora_studio.core.plan import ModelShape
from qlora_studio.core.steps import plan_steps
from qlora_studio.data.render.prompt import RenderOptions
from qlora_studio.data.sets.prepare import Stopped, options_of
from qlora_studio.data.sets.token_cache import TokenisedRows
from qlora_studio.engine.accelerator.choose import choose_accelerator
from qlora_studio.engine.adapters import start_from
from qlora_studio.engine.checkpoints import newest_checkpoint
from qlora_studio.engine.loaded import Loaded, load_for_training
from qlora_studio.engine.loop import train
from qlora_studio.engine.manifest import sweep
from qlora_studio.engine.objectives.registry import find_objective
from qlora_studio.engine.setup import Outcome, Setup
from qlora_studio.engine.tokenizer import ChatTokenizer, load_tokenizer
from qlora_studio.planner.rates import choose_rate
from qlora_studio.planner.speeds import learn_speed
from qlora_studio.planner.time import measured_speed, padding_of_steps
from qlora_studio.runs.journal import Follower
from qlora_studio.worker.context import Context, FetchedBase
from qlora_studio.worker.fingerprint import fingerprint, identify_base, keep_fingerprint, kept_rate
from qlora_studio.worker.loaded_run import LoadedRun
from qlora_studio.worker.plans import Planned, keep_plan, learn_from_probe, plan_run
from qlora_studio.worker.rows import tokenise
from qlora_studio.worker.start import find_start
from qlora_studio.worker.templates import vet_once
from qlora_studio.worker.tracker import open_tracker


@dataclass(frozen=True, slots=True)
class Material:
    """What a run is made of, before its model is loaded."""

    config: TrainConfig
    base: FetchedBase
    tokenizer: ChatTokenizer
    rows: TokenisedRows


def run(context: Context) -> ev.Event:
    choose_accelerator().prepare()
    config = context.config()
    find_objective(config.optim.objective)
    track = open_tracker(config, context.folder.path)
    base = context.fetch_base(config)
    vet_once(context, base.folder, config.model.template)
    context.phase("tokenising the rows")
    tokenizer = load_tokenizer(base.folder, config.model.template)
    try:
        rows = prepare_rows(context, config, tokenizer)
    except Stopped:
        return ev.Stopped(paused=context.pending_request() == "pause")
    planned = plan_run(context, config, base, rows.train)
    config = settle_rate(context, config, planned.shape)
    identity = identify_base(context, base.folder)
    start = find_start(context, config, identity)
    keep_fingerprint(context, fingerprint(config, base, tokenizer, rows, identity))
    if (request := context.pending_request()) in ("stop", "pause"):
        return ev.Stopped(paused=request == "pause")
    material = Material(config, base, tokenizer, rows)
    loaded = load_model(context, material, planned, start)
    planned = replace(planned, plan=loaded.plan)
    steps: list[ev.StepLogged] = []

    def emit(event: ev.Event) -> None:
        context.emit(event)
        track(event)
        if isinstance(event, ev.ProbeMeasured):
            learn_from_probe(context, planned, event)
        elif isinstance(event, ev.StepLogged):
            steps.append(event)

    outcome = train(make_setup(context, material, loaded), emit, context.pending_request)
    keep_speed(context, material, planned, steps)
    return last_event(context, outcome)


def load_model(context: Context, material: Material, planned: Planned, start: Path | None) -> Loaded:
    """The model with its adapter, which begins as the one in `start` where there is one; what came otherwise is noted."""
    context.phase("loading the model in 4 bits")
    loaded = load_for_training(material.base.folder, material.config, planned.plan, planned.again)
    if start is not None:
        start_from(loaded.model, start)
    if loaded.plan is not planned.plan:
        keep_plan(context, loaded.plan)
    for note in loaded.notes:
        context.emit(ev.Noted(text=note))
    return loaded


def make_setup(context: Context, material: Material, loaded: Loaded) -> Setup:
    """What the training loop is given."""
    config, base, tokenizer, rows = material.config, material.base, material.tokenizer, material.rows
    return Setup(
        config=config,
        plan=loaded.plan,
        accelerator=loaded.device.accelerator,
        model=loaded.model,
        train=rows.train.examples,
        held_out=rows.held_out.examples,
        folder=context.folder.path,
        base=base.label,
        revision=base.revision,
        resume=find_checkpoint(context),
        objective=config.optim.objective,
        also=lambda stage: write_beside(config, tokenizer, stage),
        answers=lambda: sample_answers(
            config, LoadedRun(base, tokenizer, loaded.model, loaded.device, thinks(config, rows))
        ),
        all_logged=context.all_written,
        pinned=lambda: context.folder.read_labels().pinned_steps,
    )


def keep_speed(context: Context, material: Material, planned: Planned, steps: Sequence[ev.StepLogged]) -> None:
    """Keeps how fast these steps went, for the time that the next run on this machine is told beforehand."""
    lengths, plan = token_lengths(material.rows.train.examples), planned.plan
    padding = 1.0
    if plan.settings:
        padding = padding_of_steps(lengths, plan_steps(lengths, material.config.optim), plan.settings)
    if (speed := measured_speed(planned.shape, plan, steps, padding)) is not None:
        learn_speed(context.home.cache, planned.gpu, speed)


def last_event(context: Context, outcome: Outcome) -> ev.Event:
    """How the training ended, with its report where it came to its end."""
    if outcome.stopped:
        paused = outcome.ending == "paused"
        return ev.Stopped(step=outcome.step, saved="checkpoint" if paused else "adapter", paused=paused)
    best = outcome.held_out.best
    return ev.Finished(
        report=TrainReport(
            steps=outcome.step,
            loss=outcome.loss if outcome.loss is not None else logged_loss(context),
            held_out_before=outcome.held_out.before,
            held_out_after=outcome.held_out_after,
            best_step=best[0] if best else None,
            best_held_out=best[1] if best else None,
            stopped_early=outcome.ending == "early",
        )
    )


def settle_rate(context: Context, config: TrainConfig, shape: ModelShape) -> TrainConfig:
    """The config with a learning rate; one that was left open is chosen here and said.

    A run that goes on keeps the one that was chosen when it began, whatever rule this version chooses by.
    """
    if config.optim.learning_rate is None and (kept := kept_rate(context.folder)) is not None:
        return config.replace({"optim.learning_rate": kept})
    settled = choose_rate(config, shape)
    if config.optim.learning_rate is None:
        rate = settled.optim.learning_rate
        context.emit(
            ev.Noted(text=f"Learning rate {rate:g}: it suits a model of width {shape.hidden:,} at this alpha.")
        )
    return settled


def logged_loss(context: Context) -> float | None:
    """The loss of the last step in the journal: a run that is resumed after its last step takes none itself."""
    follower = Follower(context.folder.events)
    follower.read()
    return follower.progress.last.loss if follower.progress.last is not None else None


def write_beside(config: TrainConfig, tokenizer: ChatTokenizer, stage: Path) -> None:
    """Puts the tokenizer with its template beside an adapter whose base brings none."""
    if config.model.template:
        tokenizer.inner.save_pretrained(stage)


def thinks(config: TrainConfig, rows: TokenisedRows) -> RenderOptions:
    """How a prompt is put to this run: as its chat will put it."""
    return replace(options_of(config.data), thinking=2 * rows.train.reasoning_rows > len(rows.train.examples))


def sample_answers(config: TrainConfig, live: LoadedRun) -> Iterator[tuple[str, str]]:
    """The sample prompts and what the model answers them now, greedily."""
    sampling = Sampling(max_new_tokens=config.evaluation.answer_tokens)
    for prompt in config.evaluation.sample_prompts:
        yield prompt, live.whole_answer(prompt, "tuned", sampling)


def find_checkpoint(context: Context) -> Path | None:
    """The newest whole checkpoint of this run, where it was interrupted; damaged ones are named and passed over."""
    for parent in (context.folder.path, context.folder.path / "checkpoints"):
        sweep(parent)
    checkpoint, damages = newest_checkpoint(context.folder.path / "checkpoints")
    for damage in damages:
        instead = "An older checkpoint is used." if checkpoint else "There is no older one, so the run begins again."
        context.emit(ev.Noted(text=f"{damage} {instead}"))
    return checkpoint


def prepare_rows(context: Context, config: TrainConfig, tokenizer: ChatTokenizer) -> TokenisedRows:
    """Training and held-out examples of a run. Raises a StudioError for findings that nobody accepted."""
    rows = tokenise(context, config, tokenizer)
    rows.train.check(config.data.accepted)
    context.emit(
        ev.Noted(
            text=f"{len(rows.train.examples)} rows to train, {len(rows.held_out.examples)} held out; "
            f"{rows.train.tokens} tokens, {rows.train.trained_tokens} of them trained."
        )
    )
    for taken in rows.train.mixture:
        context.emit(
            ev.Noted(
                text=f"{taken.name}: {taken.rows} of {taken.of_rows} rows, {taken.share:.0%} of the mixture, "
                f"each seen {taken.epochs * config.optim.epochs:.3g} times."
            )
        )
    if rows.train.dropped or rows.train.cut:
        context.emit(
            ev.Noted(
                text=f"{rows.train.dropped} rows left out and {rows.train.cut} cut: "
                f"longer than {config.data.max_length} tokens."
            )
        )
    return rows
