"""Answers to fixed prompts while a run is trained: a timeline that changes nothing of the run."""

from __future__ import annotations

from collections.abc import Callable

from qlora_studio.core import events as ev
from qlora_studio.core.chat import Side
from qlora_studio.engine.oom import is_out_of_memory
from qlora_studio.engine.setup import Setup


def write_samples(setup: Setup, emit: Callable[[ev.Event], None], step: int, side: Side) -> None:
    """Says what the model answers at this step; `base` before its adapter has learned anything.

    They touch no random state, and where memory runs out they cost a word.
    """
    accelerator, model = setup.accelerator, setup.model
    states = accelerator.random_state()
    model.eval()
    try:
        for prompt, answer in setup.answers():
            emit(ev.SampleWritten(step=step, prompt=prompt, answer=answer, side=side))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        emit(ev.Noted(text=f"Step {step}: there was not enough memory for the sample answers."))
    finally:
        model.train()
        accelerator.set_random_state(states)
