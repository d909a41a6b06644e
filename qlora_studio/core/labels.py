"""What a person says of a run: its title, a note, tags, whether it is pinned."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Labels(BaseModel):
    """Kept beside the run; changing them changes nothing of what was trained."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    title: str = Field("", max_length=120)
    """Shown instead of the title that the run began with; empty leaves that one."""
    note: str = Field("", max_length=20_000)
    tags: tuple[str, ...] = ()
    pinned_steps: tuple[int, ...] = ()
    """Checkpoints that are kept however many newer ones there are."""
    pinned: bool = False
    """Stands above the others, and cannot be deleted until it is unpinned."""
