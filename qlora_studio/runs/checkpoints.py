"""Which weights of a run are there to be chosen: its adapter, and the checkpoints it has kept."""

from __future__ import annotations

import re
from pathlib import Path

from qlora_studio.core.errors import StudioError
from qlora_studio.core.progress import Progress
from qlora_studio.core.runs import CheckpointView
from qlora_studio.runs.folder import JobFolder
from qlora_studio.runs.journal import Follower

STEP = re.compile(r"step-(\d+)")


def list_checkpoints(folder: JobFolder, progress: Progress) -> list[CheckpointView]:
    """The checkpoints of a run, rising by step, each with what was measured of it."""
    steps = sorted(
        int(found[1])
        for path in (folder.path / "checkpoints").glob("step-*/MANIFEST.json")
        if (found := STEP.fullmatch(path.parent.name))
    )
    best, losses = progress.held_out.best_of(steps), dict(progress.evaluations)
    pinned = folder.read_labels().pinned_steps
    return [
        CheckpointView(
            step=step,
            held_out=losses.get(step),
            best=best is not None and best[0] == step,
            newest=step == steps[-1],
            pinned=step in pinned,
        )
        for step in steps
    ]


def find_weights(folder: JobFolder, choice: str) -> Path:
    """The folder of the weights that `choice` names: nothing for the run's adapter, `best`, `last`, or `step-N`.

    Raises a StudioError for what is not there, with what is.
    """
    if not choice:
        if not (folder.adapter / "MANIFEST.json").is_file():
            raise StudioError(
                f"The run '{folder.name}' has saved no adapter yet.", "Wait for it, or choose another run."
            )
        return folder.adapter
    follower = Follower(folder.events)
    follower.read()
    progress = follower.progress
    kept = list_checkpoints(folder, progress)
    wanted = STEP.fullmatch(choice)
    if choice not in ("best", "last") and wanted is None:
        raise StudioError(f"'{choice}' is no checkpoint.", "Give best, last or step-N.", field="checkpoint")
    for one in kept:
        if (
            (wanted and one.step == int(wanted[1]))
            or (choice == "best" and one.best)
            or (choice == "last" and one.newest)
        ):
            return folder.path / "checkpoints" / f"step-{one.step:06d}"
    there = ", ".join(f"step-{one.step}" for one in kept)
    raise StudioError(
        f"The run '{folder.name}' has kept no checkpoint '{choice}'.",
        f"There are: {there}." if kept else "It has kept none; its adapter is used without --checkpoint.",
        field="checkpoint",
    )
