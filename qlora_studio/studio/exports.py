"""Exports: what a run leaves for use elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import find_export_kind
from qlora_studio.core.jobs import ExportRequest, JobRef, MergeInto
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

    def start(
        self,
        name: str,
        kind: str,
        to: str,
        merge_into: MergeInto = "original",
        prompts: Sequence[str] = (),
        checkpoint: str = "",
    ) -> JobRef:
        """Starts writing the adapter or the merged model into a new or empty folder; the check asks the prompts.

        `checkpoint` is as `Runs.with_weights` takes it.
        """
        find_export_kind(kind)
        view = self.runs.with_weights(name, checkpoint)
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
        request = ExportRequest(run=run, to=target, kind=kind, merge_into=merge_into, prompts=tuple(prompts))
        request = request.model_copy(update={"checkpoint": checkpoint})
        return self.jobs.start(run / "exports", request, card=view.config.memory.card)

    def readiness(self, name: str, kind: str, to: str, checks: int = 0) -> ExportReadiness:
        """Size, time and disk of an export before its start; `checks` is how many prompts chat and artefact are asked."""
        view, chosen = self.runs.with_adapter(name), find_export_kind(kind)
        adapter, merged = self.sizes(name)
        facts = ExportFacts(
            kind=chosen.title,
            result_bytes=merged if chosen.as_large_as == "base" else adapter,
            read_bytes=adapter + ((merged or 0) if chosen.needs_base else 0),
            checks=checks,
            free_bytes=free_bytes_at(find_target(to)),
        )
        base = self.bases.facts(view.config.model.base, view.config.model.revision)
        return assess_export(base, facts, needs_base=chosen.needs_base)

    def sizes(self, name: str) -> tuple[int, int | None]:
        """Bytes of a run's adapter, and about those of its merged model; None while its base is not on this machine."""
        view = self.runs.open(name)
        base = self.bases.find(view.config.model.base).folder
        adapter = sum(path.stat().st_size for path in (view.folder / "adapter").glob("*") if path.is_file())
        return adapter, sum(path.stat().st_size for path in base.glob("*.safetensors")) if base else None
