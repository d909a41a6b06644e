"""The runs that lie in a home: list them, open one, say where it stands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.progress import Progress
from qlora_studio.runs.folder import JobFolder, find_job, read_json
from qlora_studio.runs.journal import Follower


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as a face sees it."""

    name: str
    title: str
    created: float
    config: TrainConfig
    progress: Progress
    state: str
    """`running`, `finished`, `stopped`, `failed` or `interrupted`."""
    seconds: float | None
    folder: Path

    @property
    def has_adapter(self) -> bool:
        return (self.folder / "adapter" / "MANIFEST.json").is_file()


class RunStore:
    """Reads run folders; keeps how far each journal has been read, so that looking again costs only what is new."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.followers: dict[Path, Follower] = {}

    def names(self) -> list[str]:
        """Names of all runs, newest first."""
        if not self.runs.is_dir():
            return []
        files = [path for path in self.runs.glob("*/job.json") if not path.parent.name.startswith(".")]
        return [path.parent.name for path in sorted(files, key=lambda path: (-_created(path), path.parent.name))]

    def open(self, name: str) -> RunView:
        """One run. Raises a StudioError for a name that is none."""
        folder = find_job(self.runs, name, "run")
        job = folder.read_job()
        config = TrainConfig.parse(read_json(folder.config_file), str(folder.config_file))
        progress, state, seconds = self.look(folder)
        return RunView(
            folder.name, str(job["title"]), float(job["created"]), config, progress, state, seconds, folder.path
        )

    def list(self) -> list[RunView]:
        """All runs that can be read, newest first."""
        views = []
        for name in self.names():
            try:
                views.append(self.open(name))
            except StudioError:  # a folder that is not ours or of another version is left alone
                continue
        return views

    def look(self, folder: JobFolder) -> tuple[Progress, str, float | None]:
        """Progress, state and duration of any job folder. The state is derived, never stored."""
        follower = self.followers.setdefault(folder.path, Follower(folder.events))
        lives = folder.worker_lives()  # before reading, so that a last event cannot fall in between
        follower.read()
        progress = follower.progress
        seconds = None
        if follower.started_at is not None and follower.last_at is not None:
            seconds = follower.last_at - follower.started_at
        if progress.ended:
            return progress, progress.state, seconds
        state = "running" if lives else "interrupted"
        return replace(progress, state=state), state, seconds


def _created(job_file: Path) -> float:
    try:
        values: dict[str, Any] = read_json(job_file)
        return float(values.get("created", 0))
    except (StudioError, TypeError, ValueError):
        return 0.0
