"""The locks a job takes before it uses the card: one of its home, and one of the card, which all homes of a person share."""

from __future__ import annotations

import re
from pathlib import Path

import platformdirs

from qlora_studio.core.jobs import RateRequest, Request, TrainRequest
from qlora_studio.runs.folder import JobFolder
from qlora_studio.runs.lock import ProcessLock
from qlora_studio.runs.supervisor import runs_of, training_lock

SEARCH = "search for a learning rate"
"""What others are told is at work."""


def trains(request: Request) -> bool:
    """Whether a job trains, and so needs the card for itself."""
    return isinstance(request, TrainRequest | RateRequest)


def card_lock(card: str) -> Path:
    """The lock of a card by its UUID, where every home of this person looks."""
    place = platformdirs.user_runtime_path("qlora-studio", appauthor=False)
    place.mkdir(parents=True, exist_ok=True)
    return place / f"card-{re.sub(r'[^A-Za-z0-9-]', '-', card)}.lock"


def needed_locks(folder: JobFolder, request: Request, card: str | None) -> list[ProcessLock]:
    """What this job must hold, in the order in which everybody takes them; none for a job that does not train.

    `card` is the UUID of the card it works on; None where it works on the processor.
    """
    if not trains(request):
        return []
    words = folder.name if isinstance(request, TrainRequest) else SEARCH
    locks = [ProcessLock(training_lock(folder), words)]
    if card is not None:
        locks.append(ProcessLock(card_lock(card), f"{words} of {runs_of(folder).parent}"))
    return locks
