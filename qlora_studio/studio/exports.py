"""Exports: what a run leaves for use elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from qlora_studio.bases import read_base_files
from qlora_studio.core.bases import ResolvedBase
from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import (
    IMPORTANCE_TOKENS,
    ExportOptions,
    ExportSizes,
    LoadCommand,
    WrittenExport,
    find_export_kind,
    load_commands,
    suggest_merge,
)
from qlora_studio.core.jobs import ExportReport, ExportRequest, JobRef, MergeInto, PushRequest
from qlora_studio.core.push import Destination, default_name
from qlora_studio.core.readiness import ExportFacts, ExportReadiness
from qlora_studio.core.words import without_quotes
from qlora_studio.home import Home, read_path
from qlora_studio.local_programs import open_folder
from qlora_studio.planner.machine import free_bytes_at
from qlora_studio.planner.readiness import assess_export
from qlora_studio.studio.bases import Bases
from qlora_studio.studio.jobs import Jobs
from qlora_studio.studio.runs import Runs

K_QUANT_VALUES = 256
"""Values of a K-quant's block: shorter rows are kept in other types."""


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


def find_others(folder: Path, export: WrittenExport) -> list[str]:
    """What lies in an export's folder and was not written with it, by name.

    Of an export of an earlier version only the bytes of all files together are known.
    """
    there = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }
    if folder.is_symlink():
        return [folder.name]
    if export.files:
        return sorted(set(there) - set(export.files))
    same = sum(path.lstat().st_size for path in there.values()) == export.bytes
    return [] if same else sorted(there)


class Exports:
    """The exports of a home's runs."""

    def __init__(self, home: Home, jobs: Jobs, bases: Bases, runs: Runs) -> None:
        self.home, self.jobs, self.bases, self.runs = home, jobs, bases, runs

    def start(self, name: str, options: ExportOptions, to: str, prompts: Sequence[str] = ()) -> JobRef:
        """Starts writing a run into a new or empty folder; the check asks the prompts, and the rows held out."""
        options.check()
        view = self.runs.with_weights(name, options.checkpoint)
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
            kind=options.kind.name,
            merge_into=options.merge_into,
            gguf=options.gguf,
            parts=options.parts if options.kind.name == "pack" else (),
            prompts=tuple(prompts),
            checkpoint=options.checkpoint,
            importance=options.measures_importance,
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

    def written(self, run: str | None = None) -> list[WrittenExport]:
        """Every finished export of a run, or of all, that still lies where it was written, the newest first."""
        found = []
        for name in [run] if run else [one.name for one in self.runs.all()]:
            for job in self.runs.jobs_of(name, "exports"):
                view = self.jobs.look(job)
                report, ended = view.progress.report, view.progress.exported
                if view.state == "finished" and isinstance(report, ExportReport) and report.path.is_dir():
                    time = (job.folder / "events.jsonl").stat().st_mtime
                    found.append(
                        WrittenExport(
                            name,
                            ended[-1].what if ended else "",
                            str(report.path),
                            report.bytes,
                            time,
                            report.files,
                        )
                    )
        newest = {
            one.path: one for one in sorted(found, key=lambda one: one.written)
        }  # a folder may have been used again
        return sorted(newest.values(), key=lambda one: -one.written)

    def find_written(self, folder: str) -> WrittenExport:
        """The export in this folder. Raises a StudioError for a folder that no run was exported to."""
        path = str(read_path(folder).absolute())
        if (export := next((one for one in self.written() if one.path == path), None)) is None:
            raise StudioError(
                "No run of yours was exported to this folder.",
                "`qlora-studio exports list` shows them all.",
                where=path,
            )
        return export

    def open_folder(self, folder: str) -> None:
        """Shows a finished export in the file manager. Raises a StudioError where it is none, or nothing can show it."""
        open_folder(Path(self.find_written(folder).path))

    def delete(self, folder: str) -> None:
        """Removes a finished export; what was written down of it, with its run, stays.

        Raises a StudioError as `find_written` does, for a folder that holds something else as well, and where files stay.
        """
        export = self.find_written(folder)
        place = Path(export.path)
        if others := find_others(place, export):
            raise StudioError(
                f"{len(others)} files in this folder are not what was exported, first {others[0]}.",
                "Move them away, or delete the folder yourself.",
                where=export.path,
            )
        away = place.with_name(f".{place.name}.deleted")
        shutil.rmtree(away, ignore_errors=True)
        try:
            place.rename(away)  # out of sight first: a kill in between leaves no half of it visible
            shutil.rmtree(away)
        except OSError as error:
            raise StudioError(
                f"This export could not be deleted whole: {error.strerror}.",
                "Close what uses it, and delete what is left of it yourself.",
                where=str(away if away.exists() else place),
            ) from error

    def readiness(self, name: str, options: ExportOptions, to: str, checks: int = 0) -> ExportReadiness:
        """Size, time and disk of an export before its start; `checks` is how many prompts chat and artefact are asked."""
        view = self.runs.with_adapter(name)
        sizes = self.sizes(name)
        facts = ExportFacts(
            kind=options.kind.title,
            result_bytes=options.result_bytes(sizes),
            read_bytes=sizes.adapter + ((sizes.merged or 0) if options.kind.merges else 0),
            checks=checks,
            free_bytes=free_bytes_at(find_target(to)),
            encoded_values=(sizes.merged or 0) // 2 if options.searches_blocks else 0,
            cores=os.cpu_count() or 1,
            gguf=options.writes_gguf,
            read_tokens=IMPORTANCE_TOKENS if options.measures_importance else 0,
            tokens_per_second=view.progress.mean_tokens_per_second,
        )
        base = self.bases.facts(view.config.model.base, view.config.model.revision)
        return assess_export(base, facts, needs_base=options.kind.needs_base)

    def sizes(self, name: str) -> ExportSizes:
        """What the sizes of a run's exports go by."""
        view = self.runs.open(name)
        base = self.bases.find(view.config.model.base).folder
        adapter = sum(path.stat().st_size for path in (view.folder / "adapter").glob("*") if path.is_file())
        facts = self.bases.facts(view.config.model.base, view.config.model.revision)
        odd_rows = isinstance(facts, ResolvedBase) and facts.shape.hidden % K_QUANT_VALUES != 0
        return ExportSizes(adapter, read_base_files(base).weights_bytes if base else None, odd_rows)

    def suggest_merge(self, name: str) -> tuple[MergeInto, str]:
        """Which weights should take this run's adapter, and why, from what its earlier exports were found to be."""
        jobs = reversed(self.runs.jobs_of(name, "exports"))  # the oldest first
        return suggest_merge([check for job in jobs for check in self.jobs.look(job).progress.checks])

    def suggest_importance(self, name: str) -> bool:
        """Whether an importance matrix suits a run's GGUF files: on both models that were measured it brings them nearer to
        the chat, so wherever the run's training rows are still here. benchmarks/beside_llama_cpp.py, docs/export.md.
        """
        named = {source.name for source in self.runs.open(name).config.data.sources}
        return bool(named) and named <= {report.name for report in self.runs.data.sets()}

    def load_commands(self, name: str, options: ExportOptions, to: str) -> list[LoadCommand]:
        """How the export in this folder is opened, for every program that can."""
        base = self.bases.find(self.runs.open(name).config.model.base).name
        return load_commands(options, str(find_target(to)), name, base)

    def export_options(self, job: JobRef) -> ExportOptions:
        """What an export was asked for."""
        request = self.jobs.request(job)
        assert isinstance(request, ExportRequest)
        return ExportOptions(
            find_export_kind(request.kind),
            request.merge_into,
            request.gguf,
            request.parts,
            request.checkpoint,
            request.importance,
        )
