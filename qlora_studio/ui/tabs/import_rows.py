"""Bringing rows in: open a file, read it as a format, import it, choose it, clean it. Knows no component."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qlora_studio.core.errors import StudioError
from qlora_studio.core.words import without_quotes
from qlora_studio.studio.data import HubChoice
from qlora_studio.ui import fields
from qlora_studio.ui.server.messages import notify, sentences
from qlora_studio.ui.server.view import OpenedSource, View
from qlora_studio.ui.server.workspace import Workspace

ROWS = 12
"""Rows in the preview."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What an import is asked to do, as the page's controls say it."""

    name: str = ""
    skip_bad: bool = False
    eval_file: str = ""
    drop_overlap: bool = False
    subset: str = ""
    split: str = ""
    revision: str = ""


def open_source(
    workspace: Workspace, source: str, format: str = "auto", columns: dict[str, str] | None = None
) -> OpenedSource:
    """A file without importing it; where it cannot be read as a whole, the sentences that say why."""
    columns = columns or {}
    if workspace.studio.data.is_hub_id(source):
        return OpenedSource(source, format, hub=True)
    try:
        seen = workspace.studio.data.inspect(source, format=format, columns=columns, rows=ROWS)
    except StudioError as error:
        return OpenedSource(source, format, refused=tuple(sentences(error)))
    if not seen.guess.format:
        problems = [str(problem) for problem in seen.problems] or [seen.guess.reason]
        return OpenedSource(source, format, names=seen.columns, refused=tuple(problems))
    return OpenedSource(
        source,
        format,
        guess=seen.guess,
        names=seen.columns,
        columns=columns,
        conversations=seen.conversations,
        problems=seen.problems,
    )


def show_source(workspace: Workspace, view: View, typed: str | None) -> None:
    """Turns a tab to a file, a folder or a Hub ID; to nothing where none is named. Its format is found anew."""
    source = without_quotes(typed or "")
    view.opened = open_source(workspace, source) if source else None


def read_as(workspace: Workspace, view: View, format: str) -> None:
    """Reads what is open in another format; the column mapping was made for the format of before."""
    if view.opened is not None:
        view.opened = open_source(workspace, view.opened.source, format)


def map_columns(workspace: Workspace, view: View, mapped: Sequence[str | None]) -> None:
    """Reads what is open with another column mapping, in the order of the format's parts."""
    if (opened := view.opened) is not None:
        parts = workspace.studio.data.format_parts(opened.format_in_use)
        columns = {part: column for part, column in zip(parts, mapped, strict=False) if column}
        view.opened = open_source(workspace, opened.source, opened.format, columns)


def import_rows(workspace: Workspace, view: View, options: ImportOptions) -> bool:
    """Imports what is open. What stands against it is kept with it as sentences; returns whether it was imported."""
    opened = view.opened
    if opened is None:
        raise StudioError("There is nothing to import.", "Drop a file on the left, or type its path.")
    choices: dict[str, Any] = {"name": options.name.strip(), "format": opened.format, "columns": dict(opened.columns)}
    eval_file = without_quotes(options.eval_file)
    if opened.hub:
        choices["hub"] = HubChoice(
            options.subset.strip() or None, options.split.strip() or "train", options.revision.strip() or None
        )
    elif eval_file:
        choices |= {"eval_file": eval_file, "drop_overlap": options.drop_overlap}
    try:
        report = workspace.studio.data.import_rows(opened.source, skip_bad=options.skip_bad, **choices)
    except StudioError as error:
        view.opened = replace(opened, refused=tuple(sentences(error)))
        return False
    view.opened = None
    choose_set(workspace, report.name, {"data.format": report.format, "data.columns": report.columns})
    came = f"{report.rows} rows are imported as '{report.name}'."
    notify(f"'{report.name}' was here already, unchanged." if report.unchanged else came)
    return True


def import_demo(workspace: Workspace, view: View) -> None:
    """Imports the rows that travel with the program, with settings that suit them."""
    demo = workspace.studio.data.demo()
    report = workspace.studio.data.import_rows(str(demo.rows), name="demo")
    view.opened = None
    choose_set(workspace, report.name, dict(demo.settings))
    notify("The demo rows are here, with settings that suit them.")


def choose_set(workspace: Workspace, name: str, settings: dict[str, Any]) -> None:
    """Makes a set the one the next run learns from, and has its tokens counted; others are added to it by hand."""
    workspace.forget_world()
    workspace.draft.change({**settings, "data.sources": [{"name": name, "weight": 1.0}], "data.accepted": []})
    if workspace.world().training is None:  # counting beside a run would take its cores
        workspace.count_tokens()


def choose_sets(workspace: Workspace, names: Sequence[str]) -> None:
    """Makes these sets what the next run learns from; those that stay keep their weights."""
    known = {source["name"]: source for source in workspace.draft["data.sources"]}
    sources = [known.get(name, {"name": name, "weight": 1.0}) for name in names]
    workspace.draft.change({"data.sources": sources})


def weigh_sets(workspace: Workspace, weights: Sequence[str]) -> None:
    """Gives the chosen sets these weights. Raises a StudioError for one that is no share."""
    sources = []
    for source, typed in zip(workspace.draft["data.sources"], weights, strict=False):
        weight = fields.parse_number(typed or "")
        if isinstance(weight, str) or weight <= 0:
            raise StudioError(f"'{typed}' is not a weight for {source['name']}.", "Type a number above 0, such as 0.5.")
        sources.append({**source, "weight": weight})
    if sources != workspace.draft["data.sources"]:
        workspace.draft.change({"data.sources": sources})


def clean_sets(workspace: Workspace, remedies: Sequence[str]) -> None:
    """Applies remedies to every chosen set and counts anew. Raises a StudioError where none was ticked."""
    if not remedies:
        raise StudioError("No remedy is ticked.", "Tick what shall be cleaned.")
    if (run := workspace.world().training) is not None:
        raise StudioError(f"The run '{run.name}' may be reading these rows.", "Clean them when it has ended.")
    before = sum(report.rows for report in workspace.chosen_sets())
    after = sum(workspace.studio.data.clean(report.name, remedies).rows for report in workspace.chosen_sets())
    notify(f"Cleaned: {before} rows became {after}." if after != before else f"Cleaned; all {after} rows are kept.")
    workspace.forget_world()
    workspace.tokens.forget()
    workspace.count_tokens()
