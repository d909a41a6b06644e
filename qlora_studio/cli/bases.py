"""Looking a base up from the terminal: at once where it is known, else as a job that is followed."""

from __future__ import annotations

from rich.console import Console

from qlora_studio.cli.jobs import follow
from qlora_studio.core.bases import FailedBase, ResolvedBase
from qlora_studio.core.config import ModelConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.studio import Studio


def look_up(studio: Studio, console: Console, model: ModelConfig) -> ResolvedBase:
    """What is known of a base. A command is a request, so a hub that refused before is asked again.

    Raises a StudioError with the reason where it cannot be used.
    """
    facts = studio.bases.facts(model.base, model.revision)
    refused = isinstance(facts, FailedBase) and facts.stage == "hub"
    if refused or facts.state == "unresolved":
        job = studio.bases.resolve(model.base, model.revision, again=refused)
        follow(console, lambda: studio.jobs.watch(job), lambda: studio.jobs.stop(job))
        facts = studio.bases.facts(model.base, model.revision)
    if isinstance(facts, ResolvedBase):
        return facts
    if isinstance(facts, FailedBase):
        raise StudioError.of([facts.problem])
    raise StudioError(facts.needs, "It was stopped before it was done; run the command again.")
