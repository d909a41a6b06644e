"""Exports: what a run leaves for use elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from qlora_studio.bases import read_base_files
from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import ExportWish, LoadCommand, find_export_kind, load_commands, suggest_merge
from qlora_studio.core.jobs import ExportRequest, JobRef, MergeInto, PushRequest
from qlora_studio.core.push import Destination, default_name
from qlora_studio.core.readiness import ExportFacts, ExportReadiness
from qlora_studio.core.words import without_quotes
from qlora_studio.home import Home, read_path
from qlora_studio.planner.machine import free_bytes_at
from qlora_studio.planner.readiness import assess_export
from qlora_studio.studio.bases import Bases
from qlora_studio.studio.jobs import Jobs
from qlora_studio.studio.runs import Runs


def find_target(to: str) -> Path:
    """The folder an export is to be written to. Raises a StudioError for one that names none, or lies below a file."""
    if not without_quotes(to):
        raise StudioError("The folder is empty.", "Name a new folder.")
    target = read_path(to).absolute()
    if (file := next((place for place in target.parents if place.is_file()), None)) is not None:
        raise StudioError(
            f"{file.name} is a file, and no folder can be below it.", "Name a new folder.", where=str(target)
        )
    return target


class Exports:
    """The exports of a home's runs."""

    def __init__(self, home: Home, jobs: Jobs, bases: Bases, runs: Runs) -> None:
        self.home, self.jobs, self.bases, self.runs = home, jobs, bases, runs

    def start(self, name: str, wish: ExportWish, to: str, prompts: Sequence[str] = ()) -> JobRef:
        """Starts writing a run into a new or empty folder; the check asks the prompts, and the rows held out."""
        wish.check()
        view = self.runs.with_weights(name, wish.checkpoint)
        run = view.folder
        target = find_target(to)
        if target.is_dir() and any(target.iterdir()):
            raise StudioError(
                "This folder is not empty, and an export never mixes with what is there.",
                "Name a new folder.",
                where=str(target),
            )
        if target.exists() and not target.is_dir():
            raise StudioError("This is a file.", "Name a new folder.", where=str(target))
        request = ExportRequest(
            run=run,
            to=target,
            kind=wish.kind.name,
            merge_into=wish.merge_into,
            gguf=wish.gguf,
            parts=wish.parts if wish.kind.name == "pack" else (),
            prompts=tuple(prompts),
            checkpoint=wish.checkpoint,
        )
        return self.jobs.start(run / "exports", request, card=view.config.memory.card)

    def push(self, folder: str, destination: Destination, name: str = "", *, public: bool = False) -> JobRef:
        """Starts handing a finished export on, under this name or one made of the folder's."""
        export = read_path(folder).absolute()
        if not export.is_dir():
            raise StudioError("There is no such folder.", "Name the folder of an export.", where=str(export))
        known = name.strip() or default_name(destination.name, export.name)
        request = PushRequest(export=export, to=destination.name, name=known, public=public)
        return self.jobs.start(self.home.cache / "pushes", request)

    def readiness(self, name: str, wish: ExportWish, to: str, checks: int = 0) -> ExportReadiness:
        """Size, time and disk of an export before its start; `checks` is how many prompts chat and artefact are asked."""
        view = self.runs.with_adapter(name)
        adapter, merged = self.sizes(name)
        facts = ExportFacts(
            kind=wish.kind.title,
            result_bytes=wish.result_bytes(adapter, merged),
            read_bytes=adapter + ((merged or 0) if wish.kind.merges else 0),
            checks=checks,
            free_bytes=free_bytes_at(find_target(to)),
            encoded_values=(merged or 0) // 2 if wish.searches_blocks else 0,
            cores=os.cpu_count() or 1,
            gguf=wish.writes_gguf,
        )
        base = self.bases.facts(view.config.model.base, view.config.model.revision)
        return assess_export(base, facts, needs_base=wish.kind.needs_base)

    def sizes(self, name: str) -> tuple[int, int | None]:
        """Bytes of a run's adapter, and about those of its merged model; None while its base is not on this machine."""
        view = self.runs.open(name)
        base = self.bases.find(view.config.model.base).folder
        adapter = sum(path.stat().st_size for path in (view.folder / "adapter").glob("*") if path.is_file())
        return adapter, read_base_files(base).weights_bytes if base else None

    def suggest_merge(self, name: str) -> tuple[MergeInto, str]:
        """Which weights should take this run's adapter, and why, from what its earlier exports were found to be."""
        jobs = reversed(self.runs.jobs_of(name, "exports"))  # the oldest first
        return suggest_merge([check for job in jobs for check in self.jobs.look(job).progress.checks])

    def load_commands(self, name: str, wish: ExportWish, to: str) -> list[LoadCommand]:
        """How the export in this folder is opened, for every program that can."""
        base = self.bases.find(self.runs.open(name).config.model.base).name
        return load_commands(wish, str(find_target(to)), name, base)

    def wish_of(self, job: JobRef) -> ExportWish:
        """What an export was asked for."""
        request = self.jobs.request(job)
        assert isinstance(request, ExportRequest)
        return ExportWish(
            find_export_kind(request.kind), request.merge_into, request.gguf, request.parts, request.checkpoint
        )
