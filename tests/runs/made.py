"""Runs as a worker leaves them, without one: folders with a journal that says how they went."""

from __future__ import annotations

from pathlib import Path

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.jobs import ExportReport, ExportRequest, TrainReport, TrainRequest
from qlora_studio.runs.folder import JobFolder, create_job
from qlora_studio.runs.journal import Journal
from qlora_studio.studio import Studio


def make_run(studio: Studio, name: str, best: float | None = None, **changes) -> JobFolder:
    """A finished run, or with `best` None one that only waits to be started."""
    config = TrainConfig().replace({"saving.name": name, **{key.replace("__", "."): v for key, v in changes.items()}})
    job = create_job(studio.home.runs, name, TrainRequest(), {"config.json": config.model_dump(mode="json")})
    if best is not None:
        journal = Journal(job.events)
        journal.append(ev.JobStarted(job="train"))
        for step, loss in ((0, 2.0), (5, best), (10, best + 0.3)):
            journal.append(ev.EvaluationLogged(step=step, loss=loss, tokens=1, rows=1, adapter=step > 0))
        journal.append(ev.AdapterSaved(step=5, held_out=best))
        journal.append(ev.Finished(report=TrainReport(steps=10)))
        journal.close()
        for place in ("adapter", "checkpoints/step-000005", "checkpoints/step-000010"):
            (job.path / place).mkdir(parents=True)
            (job.path / place / "MANIFEST.json").write_text("{}")
    return job


def write_export(studio: Studio, run: str, to: Path, *, named: bool = True) -> Path:
    """A finished export of a run, of two small files; `named` as of this version, which knows what it wrote."""
    folder = studio.home.runs / run
    (to / "below").mkdir(parents=True)
    (to / "a.gguf").write_bytes(b"12345")
    (to / "below" / "b.json").write_bytes(b"123")
    job = create_job(folder / "exports", "export", ExportRequest(run=folder, to=to))
    journal = Journal(job.events)
    files = ("a.gguf", "below/b.json") if named else ()
    for event in (
        ev.JobStarted(job="export"),
        ev.Exported(what="gguf", path=str(to), bytes=8),
        ev.Finished(report=ExportReport(path=to, bytes=8, files=files)),
    ):
        journal.append(event)
    journal.close()
    return to
