"""The runs that lie in a home: list them, open one, say where it stands. What was read is kept until a file changes."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.progress import JobView, Progress, find_state
from qlora_studio.core.runs import RunSummary, RunView
from qlora_studio.runs.folder import JobFolder, find_job, read_json, write_json
from qlora_studio.runs.journal import Follower

CACHE = "run-summaries.json"
CACHE_VERSION = 4
"""Raised whenever summaries of before mean something else."""
Mark = list[int]
"""Time and size of the files that a summary was made from."""


@dataclass(slots=True)
class _Kept:
    """A summary, and what its files were like."""

    mark: Mark
    summary: RunSummary


class RunStore:
    """Reads run folders. Safe to ask from several threads; looking again costs only what is new.

    Summaries of runs that have ended are also kept in a file, so that a fresh process need not read their journals.
    """

    def __init__(self, runs: Path, cache: Path | None = None) -> None:
        self.runs = runs
        self.cache = cache / CACHE if cache else None
        self.followers: dict[Path, Follower] = {}
        self.lock = threading.RLock()
        self.kept: dict[str, _Kept] | None = None

    def names(self) -> list[str]:
        """Names of all runs, newest first."""
        return [summary.name for summary in self.summaries()]

    def summaries(self) -> list[RunSummary]:
        """All runs, the pinned first, then the newest; one that cannot be read is listed with that fact."""
        with self.lock:
            if self.kept is None:
                self.kept = self._read_cache()
            found, fresh = {}, False
            for folder in self._folders():
                mark = _mark(folder)
                kept = self.kept.get(folder.name)
                if kept is None or kept.mark != mark or kept.summary.at_work:
                    kept = _Kept(mark, self._summarise(folder))
                    fresh = fresh or not kept.summary.at_work
                found[folder.name] = kept
            gone = self.kept.keys() - found.keys()
            self.kept = found
            if fresh or gone:
                self._write_cache(found)
            summaries = [kept.summary for kept in found.values()]
        return sorted(summaries, key=lambda summary: (not summary.pinned, -summary.created, summary.name))

    def open(self, name: str) -> RunView:
        """One run. Raises a StudioError for a name that is none, and for a run whose files cannot be read."""
        folder = find_job(self.runs, name, "run")
        job = folder.read_job()
        config = TrainConfig.parse(read_json(folder.config_file), str(folder.config_file))
        labels = folder.read_labels()
        title, adapter = labels.title or job.title, _has_adapter(folder)
        return RunView(folder.name, title, job.created, config, self.look(folder), folder.path, adapter, labels)

    def look(self, folder: JobFolder) -> JobView:
        """Progress, state and duration of any job folder. The state is derived, never stored."""
        with self.lock:
            follower = self.followers.setdefault(folder.path, Follower(folder.events))
            alive = folder.worker_lives()  # before reading, so that a last event cannot fall in between
            follower.read()
            progress = follower.progress
            seconds = None
            if follower.started_at is not None and follower.last_at is not None:
                seconds = max(0.0, follower.last_at - follower.started_at)  # a clock may be set back in between
        state = find_state(
            progress,
            alive=alive,
            queued=folder.queue_file.exists(),
            seen=bool(progress.job) or folder.was_seen(),
            stop_requested=folder.is_requested("stop") or folder.is_requested("pause"),
        )
        return JobView(state, progress, seconds)

    def forget(self, folder: JobFolder) -> None:
        """Drops what was read of a job, to give its memory back."""
        with self.lock:
            self.followers.pop(folder.path, None)

    def _folders(self) -> list[JobFolder]:
        try:
            places = sorted(self.runs.iterdir())
        except OSError:
            return []
        folders = [JobFolder(path) for path in places if not path.name.startswith(".")]
        return [folder for folder in folders if folder.job_file.is_file()]

    def _summarise(self, folder: JobFolder) -> RunSummary:
        watched = folder.path in self.followers
        view = self.look(folder)
        values: dict[str, Any] = {"name": folder.name, "title": folder.name, "created": 0.0, "state": view.state}
        try:
            job = folder.read_job()
            values |= {"title": job.title, "created": job.created}
            config = TrainConfig.parse(read_json(folder.config_file), str(folder.config_file))
            values |= {"base": config.model.base.rstrip("/").rpartition("/")[2], "rank": config.lora.rank}
        except StudioError as error:
            values["unreadable"] = str(error)
            values["created"] = values["created"] or folder.job_file.stat().st_mtime
        if not watched and not view.at_work:
            self.forget(folder)  # hundreds of ended runs need not stay in memory
        labels = folder.read_labels()
        values |= {"note": labels.note, "tags": labels.tags, "pinned": labels.pinned}
        values["title"] = labels.title or values["title"]
        return RunSummary(**values, **_figures(view.progress), seconds=view.seconds, has_adapter=_has_adapter(folder))

    def _read_cache(self) -> dict[str, _Kept]:
        """What an earlier process knew; nothing where the file is missing, broken or of another version."""
        try:
            values = json.loads(self.cache.read_text(encoding="utf-8")) if self.cache else {}
            if values.get("version") != CACHE_VERSION:
                return {}
            return {
                name: _Kept(kept["mark"], RunSummary.model_validate(kept["summary"]))
                for name, kept in values["runs"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError):
            return {}

    def _write_cache(self, found: dict[str, _Kept]) -> None:
        """Keeps the summaries of runs that are over. A cache that cannot be written costs time, nothing else."""
        if self.cache is None:
            return
        over = {
            name: {"mark": kept.mark, "summary": kept.summary.model_dump(mode="json")}
            for name, kept in found.items()
            if not kept.summary.at_work
        }
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.cache, {"version": CACHE_VERSION, "runs": over})
        except OSError:
            return


def _figures(progress: Progress) -> dict[str, Any]:
    return {
        "step": progress.step,
        "total_steps": progress.total_steps,
        "loss": progress.last.loss if progress.last else None,
        "held_out": progress.evaluations[-1][1] if progress.evaluations else None,
        "best_held_out": progress.held_out.best[1] if progress.held_out.best else None,
        "peak_bytes": progress.peak_bytes,
        "has_curve": bool(progress.losses),
    }


def _mark(folder: JobFolder) -> Mark:
    """Changes whenever the run's summary would: its own time, and time and size of journal, config and job file."""
    mark = []
    for path in (
        folder.job_file,
        folder.config_file,
        folder.labels_file,
        folder.events,
        folder.queue_file,
        folder.adapter / "MANIFEST.json",
    ):
        try:
            facts = path.stat()
        except OSError:
            mark += [0, 0]
        else:
            mark += [facts.st_mtime_ns, facts.st_size]
    return mark


def _has_adapter(folder: JobFolder) -> bool:
    return (folder.adapter / "MANIFEST.json").is_file()
