"""What a tab would export, where to, and what to know before: the chosen run, the options, the folder, the notes."""

from __future__ import annotations

from pathlib import Path

from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import (
    MERGE_CHOICES,
    ExportOptions,
    ExportSizes,
    LoadCommand,
    find_export_kind,
    find_gguf,
    find_merge,
)
from qlora_studio.core.jobs import JobRef
from qlora_studio.core.verdict import could_agree_better
from qlora_studio.core.words import without_quotes
from qlora_studio.ui import fields
from qlora_studio.ui.server.messages import notify
from qlora_studio.ui.server.sync import Scene
from qlora_studio.ui.server.view import View
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.views.export import Note
from qlora_studio.ui.views.html import gib

CHECK_PROMPTS = 3
"""What chat and export are both asked."""


def export_options(shown: View, suggested: str | None, *, weighs: bool = False) -> ExportOptions:
    """What this tab would export; `suggested` and `weighs` are the merge and the matrix that suit the run, where nothing was
    chosen.
    """
    merge = find_merge(shown.export_merge or suggested or MERGE_CHOICES[0].name)
    kind, gguf = find_export_kind(shown.export_what), find_gguf(shown.export_gguf)
    importance = weighs if shown.export_importance is None else shown.export_importance
    return ExportOptions(kind, merge.into, gguf, shown.export_parts, shown.export_weights, importance)


def chosen_run(scene: Scene) -> str | None:
    """The run this tab would export."""
    names = scene.world.with_adapter
    return scene.view.export_run if scene.view.export_run in names else next(iter(names), None)


def suggested_merge(scene: Scene) -> str | None:
    """The name of the merge that suits the run."""
    run = chosen_run(scene)
    if run is None:
        return None
    into, _ = scene.workspace.studio.exports.suggest_merge(run)
    return next(choice.name for choice in MERGE_CHOICES if choice.into == into)


def current_options(scene: Scene) -> ExportOptions:
    run = chosen_run(scene)
    weighs = run is not None and scene.workspace.studio.exports.suggest_importance(run)
    return export_options(scene.view, suggested_merge(scene), weighs=weighs)


def offered_folder(scene: Scene) -> Path | None:
    run = chosen_run(scene)
    return default_folder(scene.workspace.studio.home.exports, run, current_options(scene)) if run else None


def default_folder(exports: Path, run: str, options: ExportOptions) -> Path:
    """`<home>/exports/<run>-<what>`, numbered where that is taken."""
    words = [run, options.kind.name]
    if options.kind.name == "gguf":
        words.append(options.gguf.lower())
    if options.kind.merges and options.merge_into == "original":
        words.append("original")
    stem, number = exports / "-".join(words), 1
    while (place := stem if number == 1 else stem.with_name(f"{stem.name}-{number}")).exists():
        number += 1
    return place


def current_folder(scene: Scene) -> str:
    """Where this tab would export to."""
    typed = scene.view.export_folder
    return typed if typed is not None else str(offered_folder(scene) or "")


def settled_folder(scene: Scene, shown: str) -> str:
    """Where to export: what the page shows, unless that is an offer made for a choice that has changed since."""
    offered = Path(shown).parent == scene.workspace.studio.home.exports and scene.view.export_folder is None
    return current_folder(scene) if offered else shown


def written_names(scene: Scene) -> list[tuple[str, str]]:
    """The exports of the chosen run that still lie where they were written."""
    run = chosen_run(scene)
    exports = scene.workspace.studio.exports.written(run) if run else []
    return [(f"{Path(one.path).name}: {one.kind}, {gib(one.bytes)}", one.path) for one in exports]


def export_facts(scene: Scene, folder: str) -> list[str]:
    """What goes with an export, and what refers to it."""
    studio = scene.workspace.studio
    size = gib(studio.exports.find_written(folder).bytes)
    gone = f"{size} in {folder} go. The run stays, and what was measured of the export."
    return [gone, *studio.references.to_export(folder)]


def current_sizes(scene: Scene) -> ExportSizes | None:
    run = chosen_run(scene)
    return scene.workspace.studio.exports.sizes(run) if run else None


def start(workspace: Workspace, run: str | None, options: ExportOptions, folder: str, *, check: bool) -> JobRef:
    """Starts the export. Raises a StudioError where something stands against it."""
    if not run:
        raise StudioError("There is no run to export.", "Train one first, or choose one above.")
    folder = without_quotes(folder)
    if not folder:
        raise StudioError("The folder is empty.", "Name a new folder.")
    job = workspace.world().newest_job(run, "exports")
    if job is not None and job.at_work:
        raise StudioError("An export is under way.", "Wait for it, or stop it.")
    compares = options.kind.compares_with_chat
    prompts = workspace.studio.data.demo().prompts[:CHECK_PROMPTS] if check and compares else ()
    if compares:
        workspace.refuse_while_training("Export")
        workspace.chat.close()
    started = workspace.studio.exports.start(run, options, folder, prompts)
    notify("The export has begun.")
    return started


def find_notes(workspace: Workspace, run_name: str, options: ExportOptions, folder: str) -> list[Note]:
    """What to know before this export."""
    run = workspace.studio.runs.open(run_name)
    place = Path(without_quotes(folder)).expanduser()
    readiness = workspace.studio.exports.readiness(run.name, options, str(place))
    sizes = workspace.studio.exports.sizes(run.name)
    merged = sizes.merged
    notes = [
        Note(
            "good",
            f"The adapter is saved: {gib(sizes.adapter)}, rank {run.config.lora.rank}, {run.progress.step} steps.",
        )
    ]
    notes += [Note("bad", fields.sentence(problem)) for problem in readiness.blocks]
    if merged is None and options.kind.needs_base:
        notes.append(
            Note("warn", f"The base {run.config.model.base} is not on this machine; a merge fetches it first.")
        )
    elif merged is not None and options.kind.needs_base:
        notes.append(Note("good", f"The base {run.config.model.base} is here: {gib(merged)}."))
    if run.state not in ("finished", "stopped"):
        notes.append(Note("warn", f"The run is {run.state}; what it saved last is exported."))
    notes.append(_folder_note(place))
    if options.kind.name == "pack" and not options.parts:
        notes.append(Note("bad", "A pack holds at least one part; choose one."))
    if options.kind.merges:
        into, why = workspace.studio.exports.suggest_merge(run.name)
        if options.merge_into == into:
            notes.append(Note("good", why))
        elif options.merge_into == "original":
            text = "With the original weights answers can differ from the chat's; the comparison says how much."
            notes.append(Note("warn", text))
    return [*notes, Note("warn", "The base's licence stays in force for what you make of it.")]


def _folder_note(place: Path) -> Note:
    if not place.is_absolute():
        return Note("bad", "Give the folder with its whole path.")
    if place.exists() and (place.is_file() or any(place.iterdir())):
        return Note("bad", "The folder is not empty; name a new one.")
    return Note("good", "The folder is new or empty.")


def is_exporting(scene: Scene) -> bool:
    job = scene.world.newest_job(chosen_run(scene), "exports")
    return job is not None and job.at_work


def export_mark(scene: Scene) -> object:
    """An export that has ended leaves a folder behind, so another one is offered."""
    shown = scene.view
    chosen = (
        shown.export_what, shown.export_merge, shown.export_gguf, shown.export_importance, shown.export_parts,
    )  # fmt: skip
    job = scene.world.newest_job(chosen_run(scene), "exports")
    return chosen_run(scene), chosen, job and job.state, scene.world.training is not None


def newest_commands(scene: Scene, run: str) -> list[LoadCommand]:
    """How the newest export is opened; nothing where it is not there."""
    ref, job = scene.world.newest_ref(run, "exports"), scene.world.newest_job(run, "exports")
    if ref is None or job is None or not job.progress.exported:
        return []
    exports = scene.workspace.studio.exports
    return exports.load_commands(run, exports.export_options(ref), job.progress.exported[-1].path)


def newest_disagrees(scene: Scene) -> bool:
    """Whether the newest export says something else than the chat, and another one would not."""
    job = scene.world.newest_job(chosen_run(scene), "exports")
    return job is not None and job.state == "finished" and any(map(could_agree_better, job.progress.checks))


def newest_folder(scene: Scene) -> str | None:
    """Where the newest finished export of the chosen run lies; None where there is none, or it was taken away."""
    job = scene.world.newest_job(chosen_run(scene), "exports")
    if job is None or job.state != "finished" or not job.progress.exported:
        return None
    folder = job.progress.exported[-1].path
    return folder if Path(folder).is_dir() else None
