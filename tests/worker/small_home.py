"""A home with a tiny base and a few rows, and jobs of it that are done in this process, as a worker does them in its own."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.home import Home
from qlora_studio.runs.folder import JobFolder, create_job
from qlora_studio.runs.journal import Journal
from qlora_studio.studio import Studio
from qlora_studio.worker.context import Context

ROWS = [(f"Count {number}", "abcdefgh"[: 2 + number % 6] * (1 + number % 4)) for number in range(20)]
"""Prompt and answer of each row: a token of the tiny base is a byte."""
SETTINGS: dict[str, Any] = {
    "model.base": "tiny", "model.compute_dtype": "fp32", "data.sources": [{"name": "rows"}], "data.eval_share": 0.2,
    "data.max_length": 256, "lora.rank": 4, "optim.optimizer": "adamw", "optim.learning_rate": 4e-3,
    "optim.batch_tokens": 400, "optim.max_steps": 3, "memory.micro_batch_tokens": 400, "evaluation.every_steps": 2,
}  # fmt: skip


@dataclass
class SmallHome:
    """The home, and the config of a run of three steps in it."""

    home: Home
    config: TrainConfig

    @classmethod
    def make(cls, root: Path, make_base: Any) -> SmallHome:
        home = Home(root)
        make_base(home.models / "tiny")
        rows = root / "rows.jsonl"
        rows.write_text("".join(json.dumps({"instruction": said, "output": answer}) + "\n" for said, answer in ROWS))
        Studio(home).data.import_rows(str(rows), name="rows")
        return cls(home, TrainConfig().replace(SETTINGS))

    def copy(self, root: Path) -> SmallHome:
        shutil.copytree(self.home.root, root)
        return SmallHome(Home(root), self.config)

    def context(self, request: Any, name: str = "one", **settings: Any) -> Done:
        """The context of a new job, which keeps its events in its journal and in a list."""
        config = self.config.replace({key.replace("__", "."): value for key, value in settings.items()})
        place = self.home.runs if request.job == "train" else self.home.root / "jobs"
        folder = create_job(place, name, request, {"config.json": config.model_dump(mode="json")})
        return Done(folder, self.home)


@dataclass
class Done:
    """A job and the events that it gave so far."""

    folder: JobFolder
    home: Home
    events: list[Any] = field(default_factory=list)
    context: Any = None

    def __post_init__(self) -> None:
        self.context = Context(self.folder, self.write, os.getppid(), home=self.home)

    def write(self, event: ev.Event) -> None:
        self.events.append(event)
        journal = Journal(self.folder.events)
        journal.append(event)
        journal.close()

    def work(self, module: Any) -> Any:
        """Does the job; its last event, which is in the journal as well."""
        last = module.run(self.context)
        self.write(last)
        return last

    def phases(self) -> list[str]:
        return [event.phase for event in self.events if isinstance(event, ev.PhaseEntered)]

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def notes(self) -> list[str]:
        return [event.text for event in self.of(ev.Noted)]
