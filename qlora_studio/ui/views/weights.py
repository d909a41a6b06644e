"""The weights of a run that can be chatted with, evaluated and exported: its adapter and the checkpoints it has kept."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_studio.core.runs import CheckpointView, RunView

Choice = tuple[str, str]
"""What a person reads, and the name that `--checkpoint` takes; the empty one is the adapter."""


def weight_choices(run: RunView | None, kept: Sequence[CheckpointView]) -> list[Choice]:
    """The adapter first, then the checkpoints, the newest first."""
    step = run.progress.adapter_step if run else None
    adapter = ("the adapter" + (f", step {step}" if step is not None else ""), "")
    return [adapter, *((_describe(one), one.name) for one in reversed(kept))]


def _describe(one: CheckpointView) -> str:
    words = [f"step {one.step}"]
    words += [f"held-out loss {one.held_out:.3f}"] if one.held_out is not None else []
    words += [word for word, it_is in (("best", one.best), ("last", one.newest), ("pinned", one.pinned)) if it_is]
    return ", ".join(words)
