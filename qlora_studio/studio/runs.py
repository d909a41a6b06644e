"""Runs: started, resumed, stopped, listed, opened, evaluated."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from qlora_studio.core.chat import Sampling
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.events import Event
from qlora_studio.core.jobs import AdoptRequest, EvaluateRequest, JobRef, RateRequest, TrainRequest
from qlora_studio.core.labels import Labels
from qlora_studio.core.progress import RESUMABLE
from qlora_studio.core.record import RunRecord
from qlora_studio.core.runs import CheckpointView, RunSummary, RunView
from qlora_studio.home import Home, read_path
from qlora_studio.planner.rates import steps_to_try
from qlora_studio.runs import queue, supervisor
from qlora_studio.runs.checkpoints import find_weights, list_checkpoints
from qlora_studio.runs.extend import extend_run
from qlora_studio.runs.folder import JobFolder, create_job, delete_job, find_job
from qlora_studio.runs.leftovers import sweep_leftovers
from qlora_studio.runs.records import read_record
from qlora_studio.studio.bases import Bases
from qlora_studio.studio.data import Data
from qlora_studio.studio.jobs import Jobs
from qlora_studio.weight_files import find_plain_file, read_strict_json

STOP_SECONDS = 30
"""How long a worker may take to answer a stop before a person is offered to end it."""


class Runs:
    """The trainings of a home."""

    def __init__(self, home: Home, jobs: Jobs, bases: Bases, data: Data) -> None:
        self.home, self.jobs, self.bases, self.data = home, jobs, bases, data

    def start(self, config: TrainConfig) -> str:
        """Checks what can be checked here, makes the run's folder and starts its worker. Returns the run's name.

        Raises a StudioError where another training is at work; then nothing is left behind.
        """
        self.refuse_second()
        job = self.create(config)
        try:
            self.begin(job)
        except supervisor.TrainingBusy:
            shutil.rmtree(job.path, ignore_errors=True)
            raise
        return job.name

    def create(self, config: TrainConfig) -> JobFolder:
        """Checks what can be checked here and makes the folder of a run that nobody has started yet."""
        sweep_leftovers(self.home.runs, self.home.datasets)
        self.data.check(config)
        self.bases.find(config.model.base)
        stem = Path(config.model.base).name.lower()
        title = config.saving.name.strip() or f"{stem}-r{config.lora.rank}-{time.strftime('%m%d-%H%M%S')}"
        return create_job(self.home.runs, title, TrainRequest(), {"config.json": config.model_dump(mode="json")})

    def begin(self, job: JobFolder) -> None:
        """Starts a run's worker, for the first time or to go on. Raises TrainingBusy where another is at work."""
        supervisor.clear_requests(job)
        supervisor.start(job, card=self.jobs.card_of(self.open(job.name).config.memory.card))

    def resume(self, name: str) -> None:
        """Starts a run's worker again: it resumes from the newest whole checkpoint, or from the start without one."""
        view = self.open(name)
        if view.state not in (*RESUMABLE, "queued"):
            raise StudioError(f"The run '{name}' is {view.state}.", "Only a run that did not finish can be resumed.")
        self.refuse_second()
        job = JobFolder(view.folder)
        self.begin(job)
        queue.take_out(job)

    def extend(self, name: str, epochs: float) -> None:
        """Gives a run so many more epochs, on the same curve: its schedule is stretched, its optimizer goes on.

        It can then be resumed, or put into the queue. Raises a StudioError for one at work or without a checkpoint.
        """
        view = self.open(name)
        reached, kept = view.progress.last, self.checkpoints(name)
        if view.at_work or view.state == "queued":
            raise StudioError(f"The run '{name}' is {view.state}.", "Give it more epochs when it has ended.")
        if reached is None or not kept:
            raise StudioError(
                f"The run '{name}' has kept no checkpoint to go on from.", "Start a new run from its adapter."
            )
        before = view.config.optim
        ended = (
            (*before.ended_at, before.epochs) if view.progress.step == view.progress.total_steps else before.ended_at
        )
        extend_run(
            JobFolder(view.folder),
            view.config.replace(
                {
                    "optim.epochs": round(reached.epoch + epochs, 6),
                    "optim.max_steps": None,
                    "optim.ended_at": ended,
                    "evaluation.patience": None,
                }
            ),
        )

    def anew(self, name: str, checkpoint: str = "", **changes: Any) -> TrainConfig:
        """The config of a new run that starts from the weights of this one, with its settings but for these changes.

        The schedule begins anew and rows come in another order. Raises a StudioError for weights that are not there.
        """
        view = self.with_weights(name, checkpoint)
        optim = view.config.optim
        seed = (optim.seed + 1) % 2**32
        fresh = {"optim.seed": seed, "optim.ended_at": (), "saving.name": f"{view.title} more"[:120]}
        start = f"{name}@{checkpoint}" if checkpoint else name
        return view.config.replace({**fresh, **changes, "model.adapter": start})

    def find_rate(self, config: TrainConfig, run_steps: int | None) -> JobRef:
        """Starts trying learning rates on the rows of a config, a few steps each; `run_steps` are those of the run.

        Raises a StudioError as `start` does; the search needs the card for itself.
        """
        self.data.check(config)
        self.bases.find(config.model.base)
        self.refuse_second()
        request = RateRequest(steps=steps_to_try(run_steps))
        files = {"config.json": config.model_dump(mode="json")}
        return self.jobs.start(self.home.cache / "rates", request, files, card=config.memory.card)

    def at_work(self) -> str | None:
        """The run that is training; None where the card is free."""
        return supervisor.find_training(self.home.runs)

    def adopt(self, adapter: str, base: str = "", title: str = "") -> JobRef:
        """Starts making a run of a PEFT folder from elsewhere, so that it can be chatted with, evaluated and exported.

        `base` is a folder or hub id; empty takes the one that the adapter names. Raises a StudioError for a folder that
        holds no adapter.
        """
        folder = read_path(adapter).resolve()
        values = read_strict_json(find_plain_file(folder, "adapter_config.json"))
        named = base or str(values.get("base_model_name_or_path") or "")
        if not named:
            raise StudioError("This adapter names no base.", "Give the base it was trained on.", where=str(folder))
        rank, alpha = values.get("r"), values.get("lora_alpha")
        try:
            config = TrainConfig().replace(
                {
                    "model.base": named,
                    "lora.rank": rank,
                    "lora.alpha": alpha,
                    "lora.use_rslora": bool(values.get("use_rslora")),
                }
            )
        except (StudioError, ValidationError):
            raise StudioError(
                f"This adapter's rank {rank} and alpha {alpha} are no numbers to use.", where=str(folder)
            ) from None
        self.bases.find(named)
        made = create_job(
            self.home.runs,
            title or folder.name,
            AdoptRequest(adapter=folder),
            {"config.json": config.model_dump(mode="json")},
        )
        supervisor.start(made, card=None)
        return JobRef(made.path)

    def refuse_second(self) -> None:
        """One training at a time: two would not fit the plan of either."""
        if (name := self.at_work()) is not None:
            raise StudioError(
                f"The run '{name}' is still at work.", "Wait for it, stop it first, or have this one wait in the queue."
            )

    def all(self) -> list[RunSummary]:
        """A line for every run, newest first."""
        return self.jobs.store.summaries()

    def open(self, name: str) -> RunView:
        """One run. Raises a StudioError for a name that is none and for a run that cannot be read."""
        return self.jobs.store.open(name)

    def label(self, name: str, **changes: Any) -> Labels:
        """Changes what is said of a run: title, note, tags, pinned. Raises a StudioError for what is too long."""
        folder = find_job(self.home.runs, name, "run")
        try:
            labels = Labels.model_validate(folder.read_labels().model_dump() | changes)
        except ValidationError as error:
            first = error.errors()[0]
            raise StudioError(f"This cannot be said of a run: {first['msg']}.", field=str(first["loc"][0])) from None
        folder.write_labels(labels)
        return labels

    def size_bytes(self, name: str) -> int:
        """What a run holds on disk: checkpoints, adapter, evaluations, journal."""
        return find_job(self.home.runs, name, "run").size_bytes()

    def delete(self, name: str) -> None:
        """Removes a run with all it holds. Exports of it lie elsewhere and stay.

        Raises a StudioError for one that is at work, pinned, or being chatted with, evaluated or exported.
        """
        folder = find_job(self.home.runs, name, "run")
        if folder.worker_lives():
            raise StudioError(f"The run '{name}' is at work.", "Stop it first.")
        if folder.read_labels().pinned:
            raise StudioError(f"The run '{name}' is pinned.", "Unpin it first: `qlora-studio runs pin NAME --off`.")
        for job in (*self.jobs_of(name, "evaluations"), *self.jobs_of(name, "exports")):
            if JobFolder(job.folder).worker_lives():
                raise StudioError(f"The run '{name}' is in use by '{job.name}'.", "Wait for it, or stop it.")
        self.jobs.store.forget(folder)
        delete_job(folder)

    def record(self, name: str) -> RunRecord:
        """What it takes to do a run again: its settings, hashes and versions, and the losses it had."""
        return read_record(self.open(name))

    def stop(self, name: str) -> None:
        """Asks a run to stop after its step; its adapter is saved."""
        supervisor.stop(find_job(self.home.runs, name, "run"))

    def end_now(self, name: str) -> None:
        """Ends a run's worker without waiting for its step; it can go on from its last checkpoint.

        Raises a StudioError where no worker is to be found.
        """
        if not supervisor.end_now(find_job(self.home.runs, name, "run")):
            raise StudioError(f"The run '{name}' has no worker that could be ended.", "Look at it again in a moment.")

    def stop_waits(self, name: str) -> bool:
        """Whether a stop or a pause has waited longer than a step should take."""
        folder = JobFolder(self.home.runs / name)
        return max(map(folder.seconds_since_request, ("stop", "pause"))) > STOP_SECONDS

    def pause(self, name: str) -> None:
        """Asks a run to leave the card after its step, with a checkpoint to go on from. Raises a StudioError if it is not at work."""
        self._at_work(name).ask("pause")

    def save_now(self, name: str) -> None:
        """Asks a run to write a checkpoint after its step. Raises a StudioError if it is not at work."""
        self._at_work(name).ask("save")

    def _at_work(self, name: str) -> JobFolder:
        view = self.open(name)
        if not view.at_work:
            raise StudioError(f"The run '{name}' is {view.state}.", "Only a run that is at work can be asked this.")
        return JobFolder(view.folder)

    def watch(self, name: str) -> Iterator[Event]:
        """All events of a run, past and coming, until it is over."""
        return supervisor.watch(find_job(self.home.runs, name, "run"))

    def evaluate(self, name: str, prompts: Sequence[str], sampling: Sampling, checkpoint: str = "") -> JobRef:
        """Starts evaluating a run, or a checkpoint of it: held-out loss and answers of base and adapter."""
        run = self.with_weights(name, checkpoint)
        request = EvaluateRequest(run=run.folder, prompts=tuple(prompts), sampling=sampling, checkpoint=checkpoint)
        return self.jobs.start(run.folder / "evaluations", request, card=run.config.memory.card)

    def answers(self, name: str) -> dict[str, str]:
        """The newest answer of a run's adapter to each prompt it was asked, in training or in an evaluation."""
        evaluations = [self.jobs.look(job).progress for job in reversed(self.jobs_of(name, "evaluations"))]
        samples = [sample for progress in (self.open(name).progress, *evaluations) for sample in progress.samples]
        return {sample.prompt: sample.answer for sample in samples if sample.side != "base"}

    def jobs_of(self, name: str, kind: Literal["exports", "evaluations"]) -> list[JobRef]:
        """What was started for a run, the newest first."""
        files = (find_job(self.home.runs, name, "run").path / kind).glob("[!.]*/job.json")
        return [JobRef(path.parent) for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)]

    def checkpoints(self, name: str) -> list[CheckpointView]:
        """The checkpoints that a run has kept, rising by step."""
        run = self.open(name)
        return list_checkpoints(JobFolder(run.folder), run.progress)

    def pin_checkpoint(self, name: str, step: int, *, pinned: bool) -> None:
        """Keeps a checkpoint however many newer ones there are, or lets it go again with the next that is saved."""
        if pinned and step not in {one.step for one in self.checkpoints(name)}:
            find_weights(find_job(self.home.runs, name, "run"), f"step-{step}")
        before = find_job(self.home.runs, name, "run").read_labels().pinned_steps
        self.label(name, pinned_steps=sorted({*before, step} if pinned else {*before} - {step}))

    def with_weights(self, name: str, checkpoint: str) -> RunView:
        """A run that has saved an adapter, or kept this checkpoint: `best`, `last` or `step-N`."""
        if not checkpoint:
            return self.with_adapter(name)
        find_weights(find_job(self.home.runs, name, "run"), checkpoint)
        return self.open(name)

    def with_adapter(self, name: str) -> RunView:
        """A run that has saved an adapter. Raises a StudioError for one that has not."""
        view = self.open(name)
        if not view.has_adapter:
            raise StudioError(f"The run '{name}' has saved no adapter.", "Wait until it ends, or choose another run.")
        return view
