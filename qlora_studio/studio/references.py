"""What refers to a run or a data set: what a person should know before it is deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qlora_studio.core.progress import RESUMABLE
from qlora_studio.core.runs import RunView
from qlora_studio.studio.jobs import Jobs
from qlora_studio.studio.runs import Runs


class References:
    """Who refers to what in a home."""

    def __init__(self, jobs: Jobs, runs: Runs) -> None:
        self.jobs, self.runs = jobs, runs

    def to_run(self, name: str) -> list[str]:
        """A sentence for all that refers to a run: runs that would start from it, and exports of it that still lie there."""
        sentences = []
        starting = [
            run.name
            for run in self._others(name)
            if (run.config.model.adapter or "").partition("@")[0] == name and _may_go_on(run)
        ]
        if starting:
            sentences.append(f"From its weights start {_named(starting)}, which could not begin or go on without them.")
        ended = (self.jobs.look(job).progress.exported for job in self.runs.jobs_of(name, "exports"))
        places = [one.path for exported in ended for one in exported if Path(one.path).exists()]
        if places:
            sentences.append(f"Exports of it stay, without the record of how they were made: {', '.join(places[:3])}.")
        return sentences

    def to_set(self, name: str) -> list[str]:
        """A sentence for the runs that refer to a data set: those that need it to go on, and those that were made of it."""
        using = [run for run in self._others("") if any(source.name == name for source in run.config.data.sources)]
        going = [run.name for run in using if _may_go_on(run)]
        done = [run.name for run in using if run.name not in going]
        sentences = []
        if going:
            sentences.append(f"Without {name} these cannot begin or be resumed: {_named(going)}.")
        if done:
            sentences.append(
                f"Trained on {name}, and not to be repeated or evaluated on its rows without it: {_named(done)}."
            )
        return sentences

    def to_export(self, folder: str) -> list[str]:
        """A sentence for the runs whose base is this exported model: they can neither go on nor be chatted with without it."""
        place = Path(folder)
        using = [
            run.name
            for run in self._others("")
            if (base := Path(run.config.model.base)) == place or place in base.parents
        ]
        return [f"Its weights are the base of {_named(using)}, which cannot be used without them."] if using else []

    def _others(self, name: str) -> Iterator[RunView]:
        """Every run that can be read, but the one of this name."""
        for summary in self.runs.all():
            if summary.name != name and not summary.unreadable:
                yield self.runs.open(summary.name)


def _may_go_on(run: RunView) -> bool:
    return run.state in (*RESUMABLE, "queued") or run.at_work


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
