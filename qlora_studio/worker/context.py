"""What every job is given: its folder, where its events go, the requests it must answer, and where things lie."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel

from qlora_studio.bases import find_base
from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.home import Home
from qlora_studio.runs.folder import JobFolder, read_json

RequestT = TypeVar("RequestT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class FetchedBase:
    """A base that lies on the disk."""

    folder: Path
    label: str
    """Hub id where known, else the folder's own name; never a path of this machine."""
    revision: str | None


@dataclass
class Context:
    """One job at work."""

    folder: JobFolder
    write: Callable[[ev.Event], None]
    guard: int
    """The process that holds the folder's lock; without it nobody may go on here."""
    all_written: Callable[[], bool] = lambda: True
    """Whether everything that was said is on the disk; tries again what is not."""
    stopped: bool = False
    """A signal asked for a stop."""
    home: Home = field(default_factory=Home.find)
    own_process: bool = False
    """Whether nothing but this job will ever happen in this process."""

    def emit(self, event: ev.Event) -> None:
        self.write(event)

    def request(self, kind: type[RequestT]) -> RequestT:
        """What the job is asked, which must be of this kind."""
        request = self.folder.read_job().request
        assert isinstance(request, kind), f"{type(request).__name__} is not {kind.__name__}"
        return request

    def config(self, folder: JobFolder | None = None) -> TrainConfig:
        file = (folder or self.folder).config_file
        return TrainConfig.parse(read_json(file), str(file))

    def pending_request(self) -> Literal["", "stop", "pause", "save"]:
        """The request that waits, if any. A `save` is answered once, the others stand; the end of the guard is a stop."""
        if os.getppid() != self.guard or self.stopped or self.folder.is_requested("stop"):
            return "stop"
        if self.folder.is_requested("pause"):
            return "pause"
        save = self.folder.control / "save"
        if save.exists():
            save.unlink(missing_ok=True)
            return "save"
        return ""

    def phase(self, phase: str) -> None:
        self.emit(ev.PhaseEntered(phase=phase))

    def fetch_base(self, config: TrainConfig) -> FetchedBase:
        """The base's folder, fetched first where it is not on the disk."""
        base = find_base(config.model.base, self.home.models)
        folder = base.folder
        if folder is None:
            self.phase("getting the base model")
            from qlora_studio.engine.fetch import fetch_base

            folder = fetch_base(base.name, self.home.models, config.model.revision, self.phase)
        source = folder / "source.json"
        facts = json.loads(source.read_text(encoding="utf-8")) if source.exists() else {}
        return FetchedBase(folder, facts.get("repo") or folder.name, facts.get("commit"))
