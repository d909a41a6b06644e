"""The layout of a job folder, and how its small files are written so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import Request, parse_request
from qlora_studio.core.labels import Labels
from qlora_studio.runs.lock import is_held

SCHEMA = 2
STARTING_SECONDS = 60
"""How long a job without any sign of a process counts as one that is starting."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,90}")
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10))}


@dataclass(frozen=True, slots=True)
class Job:
    """What a job file says."""

    title: str
    created: float
    """Seconds since the epoch."""
    request: Request


@dataclass(frozen=True, slots=True)
class JobFolder:
    """Where a job and its watchers meet. The worker writes, everyone else reads; `control` is the way back."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def job_file(self) -> Path:
        return self.path / "job.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "worker.log"

    @property
    def lock_file(self) -> Path:
        return self.path / "worker.lock"

    @property
    def control(self) -> Path:
        return self.path / "control"

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def labels_file(self) -> Path:
        return self.path / "labels.json"

    @property
    def queue_file(self) -> Path:
        """There while the run waits for the card."""
        return self.path / "queued.json"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    def read_job(self) -> Job:
        """What the job is asked to do. Raises a StudioError where the file is missing or of another version."""
        values = read_json(self.job_file)
        if values.get("schema") == 1:  # before requests had types: kind and arguments side by side
            values |= {"request": {"job": values.get("job")}, "schema": SCHEMA}
        try:
            if values.get("schema") != SCHEMA:
                raise ValueError(f"schema {values.get('schema')}")
            return Job(str(values["title"]), float(values["created"]), parse_request(values["request"]))
        except (KeyError, TypeError, ValueError) as error:
            raise StudioError(
                f"This job was written by another version ({error}).", "Start it anew.", where=str(self.job_file)
            ) from None

    def read_labels(self) -> Labels:
        """What a person said of this run; nothing where nobody did or where the file is broken."""
        try:
            return Labels.model_validate_json(self.labels_file.read_bytes())
        except (OSError, ValueError):
            return Labels()

    def write_labels(self, labels: Labels) -> None:
        write_json(self.labels_file, labels.model_dump(mode="json"))

    def size_bytes(self) -> int:
        """Bytes of everything in the folder, checkpoints and trash included; links are not followed."""
        return sum(path.lstat().st_size for path in self.path.rglob("*") if not path.is_dir())

    def worker_lives(self) -> bool:
        """Whether a worker holds the lock: the only sign of life that cannot be stale."""
        return is_held(self.lock_file)

    def was_seen(self) -> bool:
        """Whether a worker has ever held the lock, or none will come any more."""
        try:
            return self.lock_file.exists() or time.time() - self.job_file.stat().st_mtime > STARTING_SECONDS
        except OSError:
            return True

    def is_requested(self, request: str) -> bool:
        """Whether this request waits for the worker."""
        return (self.control / request).exists()

    def seconds_since_request(self, request: str) -> float:
        """How long this request has waited; 0 where it does not wait, or where the clock was set back."""
        try:
            return max(0.0, time.time() - (self.control / request).stat().st_mtime)
        except OSError:
            return 0.0

    def ask(self, request: str) -> None:
        """Leaves a request for the worker: `stop`, `pause` or `save`."""
        self.control.mkdir(exist_ok=True)
        (self.control / request).touch()


def create_job(parent: Path, title: str, request: Request, files: dict[str, Any] | None = None) -> JobFolder:
    """A new folder under `parent`, named after the title and never one that exists, with its job file and JSON files.

    The folder appears whole: it is filled under a hidden name and renamed.
    """
    parent.mkdir(parents=True, exist_ok=True)
    stage = parent / f".new-{os.getpid()}-{time.monotonic_ns()}"
    stage.mkdir(mode=0o700)
    values = {
        "schema": SCHEMA,
        "title": title,
        "created": time.time(),
        "request": request.model_dump(mode="json"),
    }
    for name, content in {"job.json": values, **(files or {})}.items():
        write_json(stage / name, content)
    stem, number = slug(title), 1
    while True:
        target = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            if not target.exists():
                stage.rename(target)
                return JobFolder(target)
        except OSError:
            if not target.exists():
                raise
        number += 1


def find_job(parent: Path, name: str, kind: str) -> JobFolder:
    """The job folder of that name. Raises a StudioError for a name that is none or does not exist."""
    folder = JobFolder(parent / name) if NAME.fullmatch(name) else None
    if folder is None or not folder.job_file.is_file():
        raise StudioError(f"There is no {kind} '{name}'.", f"`qlora-studio {kind}s list` shows them all.")
    return folder


def slug(title: str) -> str:
    """A folder name from a title: ASCII letters, digits, dots and dashes, never reserved, at most 60 characters."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9._]+", "-", plain).strip("-._")[:60].rstrip("-._")
    return f"run-{name}".rstrip("-") if not name or name.split(".")[0] in RESERVED else name


def write_json(path: Path, values: Any) -> None:
    """Writes JSON whole: temporary name, flush to disk, rename."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises a StudioError that names the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudioError(f"This file cannot be read: {error}.", where=str(path)) from None
    if not isinstance(values, dict):
        raise StudioError("This file does not hold an object.", where=str(path))
    return values


def delete_job(folder: JobFolder) -> None:
    """Removes a job with all it holds: out of sight first, so that a kill in between leaves no half of it visible."""
    trash = folder.path.parent / ".trash" / f"{folder.name}-{time.time_ns()}"
    trash.parent.mkdir(exist_ok=True)
    folder.path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)
    with contextlib.suppress(OSError):
        trash.parent.rmdir()
