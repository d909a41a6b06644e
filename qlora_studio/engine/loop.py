"""The training loop. Own, because a step must be repeatable smaller, stoppable and exact whatever memory is left."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from bitsandbytes.optim import AdamW8bit
from peft import PeftModel
from transformers import get_scheduler

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.core.plan import GIB, MemoryPlan
from qlora_studio.engine import memory
from qlora_studio.engine.batches import Step, collate, micro_batches, plan_steps
from qlora_studio.engine.checkpoints import load_state, save_adapter, save_state, write_folder
from qlora_studio.engine.evaluate import held_out_loss
from qlora_studio.engine.forward import LossFunction, without_dropout
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
from qlora_studio.engine.oom import Limits, is_out_of_memory, next_lever

Emit = Callable[[ev.Event], None]
Request = Literal["", "stop", "save"]

EVALUATIONS = 5
"""How often the held-out loss is measured where the person leaves it open."""
TRIM_STEPS = 4
"""On a processor, rows of ever new lengths leave holes in the heap; every so many steps they are given back."""
NON_FINITE_LIMIT = 3
"""Updates in a row that may be skipped before the run stops with its weights as they are."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a training run works on and where it writes."""

    config: TrainConfig
    plan: MemoryPlan
    model: PeftModel
    train: Sequence[Example]
    held_out: Sequence[Example]
    folder: Path
    base: str
    """Name of the base for the adapter's config: a hub id or a model's name, never a path."""
    revision: str | None = None
    resume: Path | None = None
    """A verified checkpoint of the same run to go on from."""


@dataclass(slots=True)
class Outcome:
    """How a training ended."""

    stopped: bool
    step: int
    total_steps: int
    loss: float | None
    held_out_before: float | None
    held_out_after: float | None


def train(setup: Setup, emit: Emit, asked: Callable[[], Request]) -> Outcome:
    """Trains the adapter in `setup.model`; writes `adapter/` and `checkpoints/` under `setup.folder`.

    `asked` is read between steps. Raises a StudioError where memory or numbers leave no way on; a checkpoint is
    written first.
    """
    return _Training(setup, emit, asked).run()


def make_optimizer(parameters: list[torch.nn.Parameter], config: TrainConfig, name: str) -> torch.optim.Optimizer:
    """AdamW with states in fp32 (`adamw`) or 8-bit blocks (`adamw_8bit`, Dettmers et al. 2022, arXiv 2110.02861)."""
    optim = config.optim
    if name == "adamw_8bit":
        return AdamW8bit(parameters, lr=optim.learning_rate, weight_decay=optim.weight_decay)
    return torch.optim.AdamW(parameters, lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True)


def comparable_bytes(plan: MemoryPlan) -> int:
    """What the plan says of the quantity that `memory.peak_bytes` measures: a card's allocator counts no context."""
    bill = plan.estimate
    outside = bill.part_bytes("context") + bill.part_bytes("slack") if plan.device == "cuda" else 0
    return bill.total_bytes - outside


@dataclass
class _Training:
    setup: Setup
    emit: Emit
    asked: Callable[[], Request]
    started: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)
    step: int = 0
    first_step: int = 0
    skipped_in_a_row: int = 0
    held_out_before: float | None = None
    held_out_after: float | None = None
    loss: float | None = None

    def __post_init__(self) -> None:
        config, plan, model = self.setup.config, self.setup.plan, self.setup.model
        self.lengths = [len(example.input_ids) for example in self.setup.train]
        self.steps = plan_steps(self.lengths, config.optim)
        self.limits = Limits(plan.micro_batch_tokens, plan.checkpointed_layers, plan.layers)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.train()
        self.loss_function = LossFunction(model)
        self.device = self.loss_function.head.device
        self.optimizer = make_optimizer(self.parameters, config, plan.optimizer)
        total = len(self.steps)
        self.schedule = get_scheduler(
            config.optim.schedule, self.optimizer, math.ceil(config.optim.warmup_share * total), total
        )
        fp16 = self.loss_function.head.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fp16)
        every = config.evaluation.every_steps
        self.evaluate_at = {
            step for step in range(1, total + 1) if step % (every or max(1, math.ceil(total / EVALUATIONS))) == 0
        } | {total}
        self.offload = plan.offload in ("boundaries", "both")
        checkpoint_layers(model, plan.checkpointed_layers, offload=self.offload)

    def _resume(self, checkpoint: Path) -> None:
        """Weights, optimizer, schedule and random numbers as they were after the checkpoint's step."""
        position = load_state(checkpoint, self.setup.model, self.optimizer)
        self.step = self.first_step = position["step"]
        self.held_out_before = position["held_out_before"]
        self.schedule.load_state_dict(position["schedule"])
        self.scaler.load_state_dict(position["scaler"])
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        self.emit(ev.Resumed(step=self.step))

    def run(self) -> Outcome:
        if not self._probe():
            return self._outcome(stopped=True)
        if self.setup.resume is not None:
            self._resume(self.setup.resume)  # after the probe, whose dropout draws random numbers
        if self.setup.held_out and self.setup.config.evaluation.before and self.step == 0:
            self.held_out_before = self._evaluate(adapter=False)
        self.emit(ev.PhaseEntered(phase="training"))
        for step in self.steps[self.step :]:
            request = self.asked()
            if request == "stop":
                self._save_checkpoint()
                self._save_adapter()
                return self._outcome(stopped=True)
            if request == "save":
                self._save_checkpoint()
            self._take(step)
            if self.step in self.evaluate_at and self.setup.held_out:
                self.held_out_after = self._evaluate(adapter=True)
                self.emit(ev.PhaseEntered(phase="training"))
            if time.monotonic() - self.saved_at > 60 * self.setup.config.saving.every_minutes:
                self._save_checkpoint()
        self.emit(ev.PhaseEntered(phase="saving the adapter"))
        self._save_adapter()
        return self._outcome(stopped=False)

    def _outcome(self, *, stopped: bool) -> Outcome:
        total = len(self.steps)
        return Outcome(stopped, self.step, total, self.loss, self.held_out_before, self.held_out_after)

    def _probe(self) -> bool:
        """Runs the largest micro-batch forward and backward without an update. False where a stop was asked."""
        self.emit(ev.PhaseEntered(phase="trying the largest step"))
        memory.reset_peak()
        limit = self.limits.micro_batch_tokens
        groups = [group for step in self.steps for group in micro_batches(step.rows, self.lengths, limit)]
        largest = max(groups, key=lambda group: (len(group) * max(self.lengths[row] for row in group), len(group)))
        self._accumulate_smaller_until_it_fits(Step(tuple(largest), 0.0))
        self.optimizer.zero_grad(set_to_none=True)
        states = self.setup.plan.estimate.part_bytes("optimizer")  # not there yet: the first update makes them
        self.emit(
            ev.ProbeMeasured(
                predicted_bytes=comparable_bytes(self.setup.plan),
                measured_bytes=memory.peak_bytes() + states,
                tokens=len(largest) * max(self.lengths[row] for row in largest),
                row_tokens=max(self.lengths[row] for row in largest),
                trained_tokens=sum(self.setup.train[row].trained_tokens for row in largest),
            )
        )
        return self.asked() != "stop"

    def _take(self, step: Step) -> None:
        """One optimizer step, and its event."""
        begun = time.monotonic()
        loss = self._accumulate_smaller_until_it_fits(step)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.setup.config.optim.max_grad_norm)
        values = torch.stack([loss, norm.to(loss.dtype)]).tolist()  # the one synchronisation of the step
        rate = self.schedule.get_last_lr()[0]
        if all(math.isfinite(value) for value in values):
            self.scaler.step(self.optimizer)
            self.skipped_in_a_row = 0
        else:
            self._skip(step, values)
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.loss = values[0]
        if self.device.type == "cpu" and self.step % TRIM_STEPS == 0:
            memory.release()
        tokens = sum(self.lengths[row] for row in step.rows)
        seconds = time.monotonic() - begun
        self.emit(
            ev.StepLogged(
                step=self.step,
                total_steps=len(self.steps),
                epoch=step.epoch,
                loss=values[0],
                learning_rate=rate,
                grad_norm=values[1],
                tokens=tokens,
                trained_tokens=sum(self.setup.train[row].trained_tokens for row in step.rows),
                tokens_per_second=tokens / max(seconds, 1e-9),
                peak_bytes=memory.peak_bytes(),
                seconds_left=self._seconds_left(),
            )
        )

    def _seconds_left(self) -> float:
        taken = self.step - self.first_step
        return (time.monotonic() - self.started) / taken * (len(self.steps) - self.step)

    def _skip(self, step: Step, values: list[float]) -> None:
        """Refuses an update whose numbers are not finite; stops the run when that goes on."""
        if self.scaler.is_enabled() and math.isfinite(values[0]):
            self.scaler.step(self.optimizer)  # its own test refuses the update and lowers the loss scale
            self.skipped_in_a_row = 0
            return
        self.skipped_in_a_row += 1
        rows = ", ".join(str(self.setup.train[row].source) for row in step.rows[:3])
        reason = f"Loss {values[0]} and gradient {values[1]} are not finite; rows {rows}."
        self.emit(ev.UpdateSkipped(step=self.step + 1, reason=reason))
        if self.skipped_in_a_row == NON_FINITE_LIMIT:
            self._save_adapter()
            raise StudioError(
                f"{NON_FINITE_LIMIT} updates in a row were not finite; the last rows were {rows}.",
                "Lower the learning rate or look at these rows. The adapter from before them is saved.",
            )

    def _accumulate(self, step: Step) -> torch.Tensor:
        """Gradients of a step's mean loss over all its trained tokens; returns that mean, fp32."""
        trained = max(1, sum(self.setup.train[row].trained_tokens for row in step.rows))
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        for rows in micro_batches(step.rows, self.lengths, self.limits.micro_batch_tokens):
            loss = self.loss_function(*collate([self.setup.train[row] for row in rows], self.device)) / trained
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _accumulate_smaller_until_it_fits(self, step: Step) -> torch.Tensor:
        """The same step with the next lever of the ladder, until it fits: same weights, batch and randomness."""
        while True:
            randomness = self._randomness()
            try:
                return self._accumulate(step)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = (str(error) or type(error).__name__).splitlines()[0]
            # Outside the handler, so that the failed frames and what they hold are gone before trying again.
            self.optimizer.zero_grad(set_to_none=True)
            memory.release()
            torch.set_rng_state(randomness[0])
            if randomness[1] is not None:
                torch.cuda.set_rng_state(randomness[1])
            self._pull_lever(step, reason)

    def _pull_lever(self, step: Step, reason: str) -> None:
        longest = max(self.lengths[row] for row in step.rows)
        pulled = next_lever(self.limits, longest)
        if pulled is None:
            self._save_checkpoint()
            raise StudioError(
                f"One row of {longest} tokens does not fit: "
                f"{memory.peak_bytes() / GIB:.2f} GiB were in use when memory ran out.",
                "Lower data.max_length or lora.rank, or choose a smaller base. A checkpoint is saved.",
            )
        self.limits, lever = pulled
        checkpoint_layers(self.setup.model, self.limits.checkpointed_layers, offload=self.offload)
        self.emit(
            ev.StepRetriedSmaller(
                step=self.step + 1,
                change=lever,
                micro_batch_tokens=self.limits.micro_batch_tokens,
                checkpointed_layers=self.limits.checkpointed_layers,
                reason=reason,
            )
        )

    @staticmethod
    def _randomness() -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def _evaluate(self, *, adapter: bool) -> float:
        """Held-out loss with or without the adapter; dropout is off and comes back."""
        self.emit(ev.PhaseEntered(phase="measuring the held-out loss"))
        off = nullcontext() if adapter else self.setup.model.disable_adapter()
        with without_dropout(self.setup.model), off:
            loss, tokens = self._held_out()
        self.emit(
            ev.EvaluationLogged(
                step=self.step, loss=loss, tokens=tokens, rows=len(self.setup.held_out), adapter=adapter
            )
        )
        return loss

    def _held_out(self) -> tuple[float, int]:
        return held_out_loss(
            self.loss_function,
            self.setup.held_out,
            self.limits.micro_batch_tokens,
            lambda done, total: self.emit(ev.Advanced(done=done, total=total, unit="rows")),
        )

    def _position(self) -> dict[str, Any]:
        """Everything besides tensors that the next step depends on."""
        schedule = {name: value for name, value in self.schedule.state_dict().items() if name != "lr_lambdas"}
        return {
            "step": self.step,
            "held_out_before": self.held_out_before,
            "schedule": {**schedule, "lr_lambdas": [None] * len(self.optimizer.param_groups)},
            "scaler": self.scaler.state_dict(),
        }

    def _save_adapter(self) -> None:
        self._write(self.setup.folder / "adapter", with_state=False)

    def _save_checkpoint(self) -> None:
        """A folder that training can go on from; older ones beyond `saving.keep` are removed, oldest step first."""
        folder = self.setup.folder / "checkpoints" / f"step-{self.step:06d}"
        folder.parent.mkdir(exist_ok=True)
        self._write(folder, with_state=True)
        self.saved_at = time.monotonic()
        self.emit(ev.CheckpointSaved(step=self.step, path=f"checkpoints/{folder.name}"))
        kept = sorted(folder.parent.glob("step-*"))
        for old in kept[: -self.setup.config.saving.keep]:
            remove_checkpoint(old)

    def _write(self, target: Path, *, with_state: bool) -> None:
        def fill(stage: Path) -> None:
            save_adapter(self.setup.model, stage, self.setup.base, self.setup.revision)
            if with_state:
                save_state(stage, self.optimizer, self._position())

        write_folder(target, fill)


def remove_checkpoint(old: Path) -> None:
    """Removes a checkpoint: out of sight first, so that a kill in between leaves no half of it visible."""
    trash = old.parent / ".trash"
    trash.mkdir(exist_ok=True)
    old.rename(trash / old.name)
    shutil.rmtree(trash, ignore_errors=True)
