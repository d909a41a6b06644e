"""The training loop: probe, resume, steps, evaluation, saving. Own, because a step must be repeatable smaller,
stoppable and exact whatever memory is left.

It knows the order of things and nothing else: gradients are the accumulator's, updates are `updates.py`'s, files are
the checkpoints', memory is the ladder's, and what is optimised is the objective's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import token_lengths
from qlora_studio.core.held_out import HeldOut
from qlora_studio.core.steps import Step, evaluation_steps
from qlora_studio.engine.accumulator import Accumulator, StepRows, StepSums
from qlora_studio.engine.batches import plan_unit_steps
from qlora_studio.engine.checkpoints import read_position
from qlora_studio.engine.evaluate import evaluate
from qlora_studio.engine.forward import LossFunction, evaluating
from qlora_studio.engine.kernels.replace import report_slow_paths
from qlora_studio.engine.ladder import Descent, MemoryLadder, planned_limits
from qlora_studio.engine.numerics import describe_change, read_numerics
from qlora_studio.engine.objectives.registry import find_objective
from qlora_studio.engine.oom import is_out_of_memory
from qlora_studio.engine.samples import write_samples
from qlora_studio.engine.saving import Saving
from qlora_studio.engine.setup import Ending, Outcome, Setup
from qlora_studio.engine.updates import Measured, Updates, make_optimizer, trained_groups
from qlora_studio.faults import fault

Emit = Callable[[ev.Event], None]
Request = Literal["", "stop", "pause", "save"]
ENDINGS: dict[Request, Ending] = {"stop": "stopped", "pause": "paused"}
"""What a run ends as after such a request."""
NON_FINITE_LIMIT = 3
"""Updates in a row that may be refused before the run stops with its weights as they are."""


def train(setup: Setup, emit: Emit, find_request: Callable[[], Request]) -> Outcome:
    """Trains the adapter in `setup.model`; writes `adapter/` and `checkpoints/` under `setup.folder`.

    `find_request` is called between steps. Raises a StudioError where memory or numbers leave no way on. Whatever is raised, the
    last whole step is saved first, or an event says which checkpoint is the last.
    """
    return TrainingLoop(setup, emit, find_request).run()


class TrainingLoop:
    """One run, from its first or its resumed step to its last."""

    def __init__(self, setup: Setup, emit: Emit, find_request: Callable[[], Request]) -> None:
        config, plan, model = setup.config, setup.plan, setup.model
        self.setup, self.emit, self.find_request = setup, emit, find_request
        self.objective = find_objective(setup.objective)
        lengths = token_lengths(setup.train)
        self.steps = plan_unit_steps(self.objective.units(len(setup.train)), lengths, config.optim)
        model.train()
        self.loss_function = LossFunction(model)
        self.ladder = MemoryLadder(
            model,
            setup.accelerator,
            planned_limits(plan, model),
            self._emit_descent,
            offload=plan.offload in ("boundaries", "both"),
        )
        self.accumulator = Accumulator(
            self.objective, self.loss_function, setup.train, self.ladder, seed=config.optim.seed
        )
        optimizer = make_optimizer(trained_groups(model, config.optim), config, plan.optimizer)
        fp16 = self.loss_function.head.dtype == torch.float16
        scaler = torch.amp.GradScaler(setup.accelerator.device.type, enabled=fp16)
        self.updates = Updates(optimizer, config.optim, len(self.steps), scaler)
        self.saving = Saving(setup, self.updates, self.ladder, emit)
        self.evaluate_at = evaluation_steps(len(self.steps), config.evaluation.every_steps)
        self.started = time.monotonic()
        self.step = self.first_step = 0
        self.refused_in_a_row = 0
        self.updating = False
        """Whether an update is under way, so that the weights may be those of no whole step."""
        self.loss: float | None = None
        self.held_out = HeldOut()

    def run(self) -> Outcome:
        try:
            return self._run()
        except Exception:
            if self.step != self.first_step:
                self.saving.keep_last_whole_step(self.step, self.held_out, updating=self.updating)
            raise

    def _run(self) -> Outcome:
        if self.setup.resume is not None and (limits := read_position(self.setup.resume).limits) is not None:
            self.ladder.set_limits(self.ladder.limits.smaller_of(limits))
        self._probe()
        if (request := self.find_request()) in ENDINGS:
            return self._outcome(ENDINGS[request])
        if self.setup.resume is not None:
            self._resume(self.setup.resume)  # after the probe, which may draw random numbers
        if self.step == 0 and self.held_out.before is None and self._measures(self.setup.config.evaluation.before):
            self.held_out = replace(self.held_out, before=self._evaluate(adapter=False))
        if self.step == 0:
            write_samples(self.setup, self.emit, 0, "base")
        self._evaluate_if_due()  # one that an error cut off is made up for
        self.emit(ev.PhaseEntered(phase="training"))
        while self.step < len(self.steps) and not self._lost_patience:
            request = self.find_request()
            if request in ENDINGS:
                return self._leave(ENDINGS[request])
            if request == "save":
                self.saving.save_if_possible(self.step, self.held_out)
            self._take(self.steps[self.step])
            self._evaluate_if_due()
            if self.step in self.evaluate_at:
                write_samples(self.setup, self.emit, self.step, "tuned")
            if self.saving.pacing.is_due:
                self.saving.save_if_possible(self.step, self.held_out)
        return self._leave("early" if self.step < len(self.steps) else "finished")

    def _leave(self, ending: Ending) -> Outcome:
        """Saves what belongs to this end: a checkpoint to go on from, and the adapter but for a pause."""
        leaves_steps = ending in ("stopped", "paused")
        if self.saving.checkpoints.newest_step != self.step:
            save = self.saving.save if leaves_steps else self.saving.save_if_possible
            save(self.step, self.held_out)
        if ending != "paused":
            self.emit(ev.PhaseEntered(phase="saving the adapter"))
            self.saving.save_adapter(self.step, self.held_out, going_on=leaves_steps)
        return self._outcome(ending)

    def _outcome(self, ending: Ending) -> Outcome:
        return Outcome(ending, self.step, len(self.steps), self.loss, self.held_out)

    def _probe(self) -> None:
        """Runs the largest micro-batch forward and backward without an update."""
        self.emit(ev.PhaseEntered(phase="trying the largest step"))
        accelerator, lengths = self.setup.accelerator, self.accumulator.lengths
        accelerator.reset_peak()
        layout = self.accumulator.layout
        largest = layout.largest(self.steps, lengths, self.ladder.limits.micro_batch_tokens)
        if (reason := self.loss_function.padded_because) is not None:
            self.emit(ev.Noted(text=f"Rows are padded and not packed: {reason}."))
        if (slow := report_slow_paths(self.setup.model)) is not None:
            self.emit(ev.Noted(text=slow))
        self.accumulator.add_gradients(StepRows(largest, 0))
        self.accumulator.refuse_changed()
        self.setup.model.zero_grad(set_to_none=True)
        states = self.setup.plan.estimate.part_bytes("optimizer")  # not there yet: the first update makes them
        self.emit(
            ev.ProbeMeasured(
                predicted_bytes=self.setup.plan.comparable_bytes,
                measured_bytes=accelerator.peak().reserved_bytes + states,
                tokens=layout.tokens_of([lengths[row] for row in largest]),
                row_tokens=max(lengths[row] for row in largest),
                trained_tokens=self._trained_tokens(largest),
                padded=not layout.packed,
            )
        )

    def _resume(self, checkpoint: Path) -> None:
        """Weights, optimizer, schedule and random numbers as they were after the checkpoint's step."""
        position = self.saving.checkpoints.load(checkpoint, self.updates.optimizer)
        self.step = self.first_step = position.step
        self.held_out = position.held_out
        self.updates.load_state(position.updates)
        self.emit(ev.Resumed(step=self.step))
        now = read_numerics(self.setup.model, self.setup.accelerator)
        if (change := describe_change(position.numerics, now)) is not None:
            self.emit(ev.Noted(text=change))

    def _take(self, step: Step) -> None:
        """One optimizer step, and its event."""
        begun = time.monotonic()
        fault("step.begin")
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
        self._log(step, measured, rate, time.monotonic() - begun)  # before what may fail: a saved step is a logged one
        fault("step.end")
        every = self.setup.accelerator.release_every_steps
        if every is not None and self.step % every == 0:
            self.setup.accelerator.release()

    def _apply(self) -> None:
        self.updating = True
        try:
            fault("step.update")
            self.updates.apply()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise StudioError(
                f"Memory ran out in the update of step {self.step + 1}.",
                "Lower the rank, or choose the optimizer adamw_8bit.",
            ) from error

    def _measure(self, step: Step) -> Measured:
        """The step's gradients, computed again at half the loss scale for as long as they overflow fp16."""
        while True:
            scale = self.updates.scaler.scale
            sums = self.accumulator.add_gradients(StepRows(step.rows, self.step + 1), scale)
            if fault("step.loss"):
                sums = StepSums(sums.loss * math.nan, sums.metrics)
            measured = self.updates.measure(sums)
            if measured.finite or not self.updates.lower_scale(measured):
                return measured
            halved = self.updates.scaler.get_scale()
            text = f"Step {self.step + 1}: the gradient overflowed fp16; it is computed again at loss scale {halved:g}."
            self.emit(ev.Noted(text=text))

    def _refuse(self, step: Step, measured: Measured) -> None:
        """Says that an update is not finite and is left out; stops the run when that goes on."""
        self.accumulator.refuse_changed()
        self.refused_in_a_row += 1
        rows = ", ".join(str(self.setup.train[row].source) for row in step.rows[:3])
        reason = f"Loss {measured.loss} and gradient {measured.grad_norm} are not finite; rows {rows}."
        self.emit(ev.UpdateSkipped(step=self.step + 1, reason=reason))
        if self.refused_in_a_row == NON_FINITE_LIMIT:
            self.saving.save_adapter(self.step, self.held_out)
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

    def _emit_descent(self, descent: Descent) -> None:
        self.emit(
            ev.StepRetriedSmaller(
                step=self.step + 1,
                change=descent.change,
                micro_batch_tokens=descent.limits.micro_batch_tokens,
                checkpointed_layers=descent.limits.checkpointed_layers,
                tiled_mlp=descent.limits.tiled_mlp,
                reason=descent.reason,
            )
        )

    def _measures(self, wanted: bool) -> bool:
        return wanted and bool(self.setup.held_out)

    @property
    def _lost_patience(self) -> bool:
        return self.held_out.is_exhausted(self.setup.config.evaluation.patience)

    def _evaluate_if_due(self) -> None:
        """The evaluation that belongs to this step, once; where it is the best yet, its checkpoint is kept."""
        newest = self.held_out.newest
        if not self._measures(self.step in self.evaluate_at) or (newest and newest[0] == self.step):
            return
        self.held_out = self.held_out.add(self.step, self._evaluate(adapter=True))
        if self.held_out.since_best == 0:
            self.saving.save_if_possible(self.step, self.held_out)
        if self._lost_patience and self.step < len(self.steps):
            best = self.held_out.best
            after = f" since step {best[0]}" if best else ""
            text = f"The held-out loss has not become better{after}: the run ends here, as its patience says."
            self.emit(ev.Noted(text=text))
        self.emit(ev.PhaseEntered(phase="training"))

    def _evaluate(self, *, adapter: bool) -> float:
        """Held-out loss with or without the adapter; dropout is off and comes back."""
        self.emit(ev.PhaseEntered(phase="measuring the held-out loss"))
        held_out = self.setup.held_out
        off = nullcontext() if adapter else self.setup.model.disable_adapter()
        with evaluating(self.setup.model), off:
            fault("evaluate")
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
