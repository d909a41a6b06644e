"""Bringing rows in: open a file, read it as a format, import it, choose it, mend it. Works on the desk alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qlora_studio.core.errors import StudioError
from qlora_studio.studio.data import HubChoice
from qlora_studio.ui.server.messages import sentences, tell
from qlora_studio.ui.server.session import Desk, Looked

ROWS = 12
"""Rows in the preview."""


def look_at(desk: Desk, source: str, format: str, mapped: Sequence[str | None]) -> Looked:
    """A file without importing it; where it cannot be read as a whole, the sentences that say why."""
    if desk.studio.data.is_hub_id(source):
        return Looked(source, format, hub=True)
    columns = columns_of(desk, source, format, mapped)
    try:
        seen = desk.studio.data.inspect(source, format=format, columns=columns, rows=ROWS)
    except StudioError as error:
        return Looked(source, format, refused=sentences(error))
    if not seen.guess.format:
        problems = [str(problem) for problem in seen.problems] or [seen.guess.reason]
        return Looked(source, format, names=seen.columns, refused=problems)
    return Looked(
        source,
        format,
        guess=seen.guess,
        names=seen.columns,
        columns=columns,
        conversations=seen.conversations,
        problems=seen.problems,
    )


def columns_of(desk: Desk, source: str, format: str, mapped: Sequence[str | None]) -> dict[str, str]:
    """The column map that the controls say; what was said about another file or format is forgotten."""
    if desk.looked is None or (desk.looked.source, desk.looked.format) != (source, format):
        return {}
    parts = desk.studio.data.format_parts(desk.looked.format_in_use)
    return {part: column for part, column in zip(parts, mapped, strict=False) if column}


def import_rows(
    desk: Desk, name: str, skip_bad: bool, eval_file: str, drop_overlap: bool, subset: str, split: str, revision: str
) -> None:
    """Imports what is looked at. What stands against it is kept with it as sentences."""
    looked = desk.looked
    if looked is None:
        raise StudioError("There is nothing to import.", "Drop a file on the left, or type where it lies.")
    choices: dict[str, Any] = {"name": name.strip(), "format": looked.format, "columns": looked.columns}
    if looked.hub:
        choices["hub"] = HubChoice(subset.strip() or None, split.strip() or "train", revision.strip() or None)
    elif eval_file.strip():
        choices |= {"eval_file": eval_file.strip(), "drop_overlap": drop_overlap}
    try:
        report = desk.studio.data.import_rows(looked.source, skip_bad=skip_bad, **choices)
    except StudioError as error:
        desk.look(replace(looked, refused=sentences(error)))
        return
    desk.change({"data.format": report.format, "data.columns": report.columns})
    take_in(desk, report.name)
    came = f"{report.rows} rows are imported as '{report.name}'."
    tell(f"'{report.name}' was here already, unchanged." if report.unchanged else came)


def take_in(desk: Desk, name: str) -> None:
    """Makes a set the one the next run learns from, and has its tokens counted; others are added to it by hand."""
    desk.look(None)
    desk.change({"data.sources": [{"name": name, "weight": 1.0}], "data.accepted": []})
    if desk.running() is None:  # counting beside a run would take its cores
        desk.count_tokens()


def mend_sets(desk: Desk, names: Sequence[str]) -> None:
    """Applies remedies to every chosen set and counts anew. Raises a StudioError where none was ticked."""
    if not names:
        raise StudioError("No remedy is ticked.", "Tick what shall be mended.")
    if (running := desk.running()) is not None:
        raise StudioError(f"The run '{running}' may be reading these rows.", "Mend them when it has ended.")
    before = sum(report.rows for report in desk.chosen_sets())
    after = sum(desk.studio.data.clean(report.name, names).rows for report in desk.chosen_sets())
    tell(f"Mended: {before} rows became {after}." if after != before else f"Mended; all {after} rows are kept.")
    desk.tokens.forget()
    desk.count_tokens()
