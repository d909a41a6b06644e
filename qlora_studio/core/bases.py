"""What is known of a base model before anything of it is loaded: resolved, not resolved yet, or why it cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from qlora_studio.core.errors import Problem
from qlora_studio.core.plan import ModelShape


@dataclass(frozen=True, slots=True)
class BaseRef:
    """A base as a config names it."""

    name: str
    """Path of a folder, or Hub ID."""
    revision: str | None = None
    """Commit, tag or branch of a Hub ID; empty takes the newest."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """As the person wrote it."""


class ResolvedBase(_Facts):
    """Everything a plan needs of a base, and what a person wants to know before choosing it."""

    state: Literal["resolved"] = "resolved"
    shape: ModelShape
    weights: Literal["on_disk", "to_download", "missing"]
    """Where its weights are; `missing` for a folder that holds none that may be loaded."""
    weights_problem: str = ""
    """Why they are missing, as a sentence."""
    weights_bytes: int | None = None
    """Of the weights on disk, or of the whole download; None where nobody says."""
    revision: str | None = None
    """The commit it was read from."""
    licence: str = ""
    """Short name, such as `apache-2.0`; empty where none is named."""
    has_template: bool | None = None
    """Whether it brings a chat template; None where that shows only after the download."""
    unmergeable: tuple[str, ...] = ()
    """Names of adapted layers that an adapter cannot be merged into."""
    limits: tuple[str, ...] = ()
    """What of it cannot be quantised, adapted or merged, a sentence each."""


class UnresolvedBase(_Facts):
    """Nobody has looked yet: a `resolve` job finds out."""

    state: Literal["unresolved"] = "unresolved"
    needs: str
    """What is still to be done, as a sentence."""


class FailedBase(_Facts):
    """It was looked at, and it cannot be used as it is. Kept until someone asks again or something changes."""

    state: Literal["failed"] = "failed"
    stage: Literal["files", "hub", "dry_run"]
    """What failed: its name or files, which nobody else can mend; the hub's answer; or its measurement. The last two
    are kept, and asking again may end otherwise."""
    message: str
    hint: str = ""
    where: str = ""
    field: str = "model.base"

    @property
    def problem(self) -> Problem:
        return Problem(self.message, self.hint, self.where, self.field)


BaseFacts = ResolvedBase | UnresolvedBase | FailedBase
