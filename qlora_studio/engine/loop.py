"""The training loop: probe, resume, steps, evaluation, saving. Own, because a step must be repeatable smaller,
stoppable and exact whatever memory is left.

It knows the order of things and nothing else: gradients are the accumulator's, updates are `updates.py`'s, files are
the checkpoints', memory is the ladder's, and what is optimised is the objective's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import token_lengths
from qlora_studio.core.steps import Step, evaluation_steps
from qlora_studio.engine.accumulator import Accumulator, StepRows
from qlora_studio.engine.batches import plan_unit_steps
from qlora_studio.engine.checkpoints import Position, RunCheckpoints, TunedModel, read_position
from qlora_studio.engine.evaluate import evaluate
from qlora_studio.engine.forward import LossFunction, without_dropout
from qlora_studio.engine.kernels.replace import tile_mlps
from qlora_studio.engine.ladder import Descent, Limits, MemoryLadder
from qlora_studio.engine.objectives.registry import find_objective
from qlora_studio.engine.oom import is_out_of_memory
from qlora_studio.engine.planned import comparable_bytes
from qlora_studio.engine.setup import Outcome, Setup
from qlora_studio.engine.updates import Measured, Updates, make_optimizer

Emit = Callable[[ev.Event], None]
Request = Literal["", "stop", "save"]

NON_FINITE_LIMIT = 3
"""Updates in a row that may be refused before the run stops with its weights as they are."""


def train(setup: Setup, emit: Emit, asked: Callable[[], Request]) -> Outcome:
    """Trains the adapter in `setup.model`; writes `adapter/` and `checkpoints/` under `setup.folder`.

    `asked` is read between steps. Raises a StudioError where memory or numbers leave no way on. Whatever is raised, the
    last whole step is saved first, or an event says which checkpoint is the last.
    """
    return TrainingLoop(setup, emit, asked).run()


class TrainingLoop:
    """One run, from its first or its resumed step to its last."""

    def __init__(self, setup: Setup, emit: Emit, asked: Callable[[], Request]) -> None:
        config, plan, model = setup.config, setup.plan, setup.model
        self.setup, self.emit, self.asked = setup, emit, asked
        self.objective = find_objective(setup.objective)
        lengths = token_lengths(setup.train)
        self.steps = plan_unit_steps(self.objective.units(len(setup.train)), lengths, config.optim)
        model.train()
        tile_mlps(model, plan.tiled_mlp)
        self.loss_function = LossFunction(model)
        self.ladder = MemoryLadder(
            model,
            setup.accelerator,
            Limits(plan.micro_batch_tokens, plan.checkpointed_layers, plan.layers),
            self._say_descent,
            offload=plan.offload in ("boundaries", "both"),
        )
        self.accumulator = Accumulator(
            self.objective, self.loss_function, setup.train, self.ladder, seed=config.optim.seed
        )
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(parameters, config, plan.optimizer)
        fp16 = self.loss_function.head.dtype == torch.float16
        scaler = torch.amp.GradScaler(setup.accelerator.device.type, enabled=fp16)
        self.updates = Updates(optimizer, config.optim, len(self.steps), scaler)
        tuned = TunedModel(model, setup.base, setup.revision)
        self.checkpoints = RunCheckpoints(setup.folder, tuned, setup.accelerator, config.saving.keep)
        self.evaluate_at = evaluation_steps(len(self.steps), config.evaluation.every_steps)
        self.started = self.saved_at = time.monotonic()
        self.step = self.first_step = 0
        self.refused_in_a_row = 0
        self.updating = False
        """Whether an update is under way, so that the weights may be those of no whole step."""
        self.loss: float | None = None
        self.held_out_before: float | None = None
        self.held_out_after: float | None = None

    def run(self) -> Outcome:
        try:
            return self._run()
        except Exception:
            self._keep_the_last_whole_step()
            raise

    def _run(self) -> Outcome:
        if self.setup.resume is not None and (limits := read_position(self.setup.resume).limits) is not None:
            self.ladder.set_limits(self.ladder.limits.smaller_of(limits))
        if not self._probe():
            return self._outcome(stopped=True)
        if self.setup.resume is not None:
            self._resume(self.setup.resume)  # after the probe, which may draw random numbers
        if self.setup.held_out and self.setup.config.evaluation.before and self.step == 0:
            self.held_out_before = self._evaluate(adapter=False)
        self.emit(ev.PhaseEntered(phase="training"))
        for step in self.steps[self.step :]:
            request = self.asked()
            if request == "stop":
                self._save_checkpoint()
                self.checkpoints.save_adapter()
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
        self.checkpoints.save_adapter()
        return self._outcome(stopped=False)

    def _outcome(self, *, stopped: bool) -> Outcome:
        total = len(self.steps)
        return Outcome(stopped, self.step, total, self.loss, self.held_out_before, self.held_out_after)

    def _probe(self) -> bool:
        """Runs the largest micro-batch forward and backward without an update. False where a stop was asked."""
        self.emit(ev.PhaseEntered(phase="trying the largest step"))
        accelerator, lengths = self.setup.accelerator, self.accumulator.lengths
        accelerator.reset_peak()
        layout = self.accumulator.layout
        largest = layout.largest(self.steps, lengths, self.ladder.limits.micro_batch_tokens)
        if (reason := self.loss_function.padded_because) is not None:
            self.emit(ev.Noted(text=f"Rows are padded and not packed: {reason}."))
        self.accumulator.add_gradients(StepRows(largest, 0))
        self.setup.model.zero_grad(set_to_none=True)
        states = self.setup.plan.estimate.part_bytes("optimizer")  # not there yet: the first update makes them
        self.emit(
            ev.ProbeMeasured(
                predicted_bytes=comparable_bytes(self.setup.plan, accelerator),
                measured_bytes=accelerator.peak().reserved_bytes + states,
                tokens=layout.tokens_of([lengths[row] for row in largest]),
                row_tokens=max(lengths[row] for row in largest),
                trained_tokens=self._trained_tokens(largest),
            )
        )
        return self.asked() != "stop"

    def _resume(self, checkpoint: Path) -> None:
        """Weights, optimizer, schedule and random numbers as they were after the checkpoint's step."""
        position = self.checkpoints.load(checkpoint, self.updates.optimizer)
        self.step = self.first_step = position.step
        self.held_out_before = position.held_out_before
        self.updates.load_state(position.updates)
        self.emit(ev.Resumed(step=self.step))

    def _take(self, step: Step) -> None:
        """One optimizer step, and its event."""
        begun = time.monotonic()
        measured = self._measure(step)
        rate = self.updates.learning_rate
        if measured.finite:
            self.refused_in_a_row = 0
            self._apply()
        else:
            self._refuse(step, measured)
        self.updates.end_step()
        self.step += 1
        self.updating = False
        self.loss = measured.loss
        every = self.setup.accelerator.release_every_steps
        if every is not None and self.step % every == 0:
            self.setup.accelerator.release()
        self._log(step, measured, rate, time.monotonic() - begun)

    def _apply(self) -> None:
        self.updating = True
        try:
            self.updates.apply()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise StudioError(
                f"Memory ran out in the update of step {self.step + 1}.",
                "Lower lora.rank, or choose the optimizer adamw_8bit.",
            ) from error

    def _measure(self, step: Step) -> Measured:
        """The step's gradients, computed again at half the loss scale for as long as they overflow fp16."""
        while True:
            scale = self.updates.scaler.scale
            measured = self.updates.measure(self.accumulator.add_gradients(StepRows(step.rows, self.step + 1), scale))
            if measured.finite or not self.updates.lower_scale(measured):
                return measured
            halved = self.updates.scaler.get_scale()
            text = f"Step {self.step + 1}: the gradient overflowed fp16; it is computed again at loss scale {halved:g}."
            self.emit(ev.Noted(text=text))

    def _refuse(self, step: Step, measured: Measured) -> None:
        """Says that an update is not finite and is left out; stops the run when that goes on."""
        self.refused_in_a_row += 1
        rows = ", ".join(str(self.setup.train[row].source) for row in step.rows[:3])
        reason = f"Loss {measured.loss} and gradient {measured.grad_norm} are not finite; rows {rows}."
        self.emit(ev.UpdateSkipped(step=self.step + 1, reason=reason))
        if self.refused_in_a_row == NON_FINITE_LIMIT:
            self.checkpoints.save_adapter()
            raise StudioError(
                f"{NON_FINITE_LIMIT} updates in a row were not finite; the last rows were {rows}.",
                "Lower the learning rate or look at these rows. The adapter from before them is saved.",
            )

    def _log(self, step: Step, measured: Measured, rate: float, seconds: float) -> None:
        tokens = sum(self.accumulator.lengths[row] for row in step.rows)
        taken = self.step - self.first_step
        self.emit(
            ev.StepLogged(
                step=self.step,
                total_steps=len(self.steps),
                epoch=step.epoch,
                loss=measured.loss,
                learning_rate=rate,
                grad_norm=measured.grad_norm,
                tokens=tokens,
                trained_tokens=self._trained_tokens(step.rows),
                tokens_per_second=tokens / max(seconds, 1e-9),
                peak_bytes=self.setup.accelerator.peak().reserved_bytes,
                seconds_left=(time.monotonic() - self.started) / taken * (len(self.steps) - self.step),
                metrics=dict(measured.metrics),
            )
        )

    def _trained_tokens(self, rows: Sequence[int]) -> int:
        return sum(self.setup.train[row].trained_tokens for row in rows)

    def _say_descent(self, descent: Descent) -> None:
        self.emit(
            ev.StepRetriedSmaller(
                step=self.step + 1,
                change=descent.change,
                micro_batch_tokens=descent.limits.micro_batch_tokens,
                checkpointed_layers=descent.limits.checkpointed_layers,
                reason=descent.reason,
            )
        )

    def _evaluate(self, *, adapter: bool) -> float:
        """Evaluation loss with or without the adapter; dropout is off and comes back."""
        self.emit(ev.PhaseEntered(phase="measuring the held-out loss"))
        held_out = self.setup.held_out
        off = nullcontext() if adapter else self.setup.model.disable_adapter()
        with without_dropout(self.setup.model), off:
            loss = evaluate(
                self.objective,
                self.loss_function,
                held_out,
                self.ladder,
                lambda done, total: self.emit(ev.Advanced(done=done, total=total, unit="rows")),
            )
        tokens = sum(example.trained_tokens for example in held_out)
        self.emit(ev.EvaluationLogged(step=self.step, loss=loss, tokens=tokens, rows=len(held_out), adapter=adapter))
        return loss

    def _save_checkpoint(self) -> None:
        position = Position(self.step, self.held_out_before, self.updates.state(), self.ladder.limits)
        path = self.checkpoints.save(self.updates.optimizer, position)
        self.saved_at = time.monotonic()
        self.emit(ev.CheckpointSaved(step=self.step, path=path))

    def _keep_the_last_whole_step(self) -> None:
        """After an error: a checkpoint of the last whole step where there is none, else a word about the last one."""
        if self.step == self.first_step or self.checkpoints.newest_step == self.step:
            return
        if self.updating:
            text = f"The update of step {self.step + 1} did not finish. {self.checkpoints.says()}"
            self.emit(ev.Noted(text=text))
            return
        try:
            self._save_checkpoint()
        except Exception as error:  # the error that brought us here is the one to raise
            text = f"Step {self.step} could not be saved ({type(error).__name__}). {self.checkpoints.says()}"
            self.emit(ev.Noted(text=text))
