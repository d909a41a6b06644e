"""The Export page: where to, what to know before, what stands against it."""

import time

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import ExportOptions, find_export_kind
from qlora_studio.core.jobs import ExportReport, ExportRequest, JobRef, PushReport, PushRequest, TrainRequest
from qlora_studio.runs.folder import create_job
from qlora_studio.ui.server import export as export_server
from qlora_studio.ui.server.sync import Scene
from qlora_studio.ui.tabs.export import EXPORTS
from tests.ui.fakes import Tab


def options(kind: str, **changes: object) -> ExportOptions:
    return ExportOptions(find_export_kind(kind), **changes)


def write_events(job, *events):
    import json

    lines = [json.dumps({**event.to_json(), "time": time.time()}) for event in events]
    (job.path / "events.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def run(workspace):
    """A finished run with an adapter, made of files as a worker leaves them."""
    job = create_job(
        workspace.studio.home.runs, "short", TrainRequest(), {"config.json": TrainConfig().model_dump(mode="json")}
    )
    write_events(job, ev.JobStarted(job="train"), ev.Finished())
    (job.path / "adapter").mkdir()
    (job.path / "adapter" / "MANIFEST.json").write_text("{}")
    (job.path / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 2048)
    workspace.forget_world()
    return job


@pytest.fixture
def exporting(workspace, run):
    return Tab(workspace)


def test_the_newest_run_and_a_new_folder_are_offered(exporting):
    exports = exporting.workspace.studio.home.exports
    assert exporting.value("export-run") == "short"
    assert exporting.value("export-folder") == str(exports / "short-merged")
    exporting.view.export_merge = "original"
    assert exporting.look().value("export-folder") == str(exports / "short-merged-original")
    exporting.view.export_what = "gguf"
    assert exporting.look().value("export-folder") == str(exports / "short-gguf-q4_k_m-original")
    (exports / "short-adapter").mkdir(parents=True)
    assert export_server.default_folder(exports, "short", options("adapter")) == exports / "short-adapter-2"


def test_what_belongs_to_another_kind_is_not_shown(exporting):
    shown = {}
    for kind in ("adapter", "merged", "gguf", "pack"):
        exporting.view.export_what = kind
        exporting.look()
        shown[kind] = [name for name in ("merge", "gguf", "parts") if exporting.props[f"export-{name}"]["visible"]]
    assert shown == {"adapter": [], "merged": ["merge"], "gguf": ["merge", "gguf"], "pack": ["merge", "gguf", "parts"]}
    exporting.view.export_parts = ("adapter",)
    assert exporting.look().props["export-gguf"]["visible"] is False


def test_the_merge_follows_what_was_measured_on_this_run(exporting, run, tmp_path):
    assert exporting.value("export-merge") == "as-chatted"
    assert "As chatted is chosen: it is the model you tried out." in exporting.words("export-checks")
    job = create_job(run.path / "exports", "export", ExportRequest(run=run.path, to=tmp_path / "out"))
    measured = ev.Checked(what="merged model, original", kl=0.2, base_loss=3.0, chat_loss=2.0, loss=1.9)
    write_events(job, ev.JobStarted(job="export"), measured, ev.Finished())
    exporting.workspace.forget_world()
    assert exporting.look().value("export-merge") == "original"
    assert "loss 1.900 on this run's held-out rows beside the chat's 2.000" in exporting.words("export-checks")


def test_a_finished_export_says_how_it_is_opened(exporting, run, tmp_path):
    job = create_job(run.path / "exports", "export", ExportRequest(run=run.path, to=tmp_path / "out", kind="gguf"))
    exported = ev.Exported(what="gguf", path=str(tmp_path / "out"), bytes=1)
    write_events(job, ev.JobStarted(job="export"), exported, ev.Finished())
    shown = exporting.look().words("export-state")
    assert f'llama-cli -m "{tmp_path}/out/short.Q4_K_M.gguf" --jinja' in shown
    assert "Open in Ollama" in shown and "Open in LM Studio" in shown and "vLLM" not in shown


def test_the_checklist_warns_of_what_would_fail(exporting, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "a").touch()
    notes = export_server.find_notes(exporting.workspace, "short", options("adapter"), f'"{full}"')
    assert {note.text: note.kind for note in notes}["The folder is not empty; name a new one."] == "bad"
    assert not [note for note in notes if "fetches" in note.text], "an adapter needs no base"
    notes = export_server.find_notes(
        exporting.workspace, "short", options("merged", merge_into="original"), str(tmp_path / "new")
    )
    kinds = {note.text: note.kind for note in notes}
    assert kinds["The base smollm2-135m-instruct is not on this machine; a merge fetches it first."] == "warn"
    relative = export_server.find_notes(exporting.workspace, "short", options("adapter"), "out")
    assert [note.text for note in relative if note.kind == "bad"] == ["Give the folder with its whole path."]


@pytest.mark.parametrize(
    ("what", "folder", "message"),
    [
        ("adapter", "  ", "The folder is empty."),
        ("pack", "/tmp/x", "A pack holds at least one part"),
    ],
)
def test_what_a_page_would_never_send_is_refused_all_the_same(exporting, what, folder, message):
    with pytest.raises(StudioError, match=message):
        export_server.start(exporting.workspace, "short", options(what, parts=()), folder, check=False)


def test_without_a_run_the_page_says_where_to_begin(tab):
    assert tab.words("export-checks").startswith("Nothing to export yet")
    assert tab.props["export-btn"]["interactive"] is False
    with pytest.raises(StudioError, match="There is no run to export"):
        export_server.start(tab.workspace, None, options("adapter"), "/tmp/x", check=False)


def test_an_export_that_has_just_been_started_is_never_called_interrupted(exporting, tmp_path):
    export_server.start(exporting.workspace, "short", options("adapter"), str(tmp_path / "out"), check=False)
    exporting.look()
    assert exporting.words("export-state").startswith("Exporting starting")
    assert (exporting.props["export-btn"]["interactive"], exporting.props["export-stop-btn"]["visible"]) == (
        False,
        True,
    )
    with pytest.raises(StudioError, match="An export is under way"):
        export_server.start(exporting.workspace, "short", options("adapter"), str(tmp_path / "two"), check=False)


def test_a_merge_that_disagrees_offers_the_export_as_chatted(exporting, run, tmp_path):
    folder = tmp_path / "out"
    job = create_job(run.path / "exports", "export", ExportRequest(run=run.path, to=folder))
    compared = ev.Checked(what="merged model, original", same_top1=0.7, kl=0.195, identical_answers=0, answers=3)
    exported = ev.Exported(what="merged model", path=str(folder), bytes=1)
    write_events(job, ev.JobStarted(job="export"), exported, compared, ev.Finished())
    exporting.look()
    assert "differs" in exporting.words("export-state") and exporting.props["export-again-btn"]["visible"]


def test_a_finished_export_can_be_handed_on_once_at_a_time(exporting, run, tmp_path):
    assert exporting.props["push"]["visible"] is False
    folder = tmp_path / "My Export"
    folder.mkdir()
    job = create_job(run.path / "exports", "export", ExportRequest(run=run.path, to=folder))
    write_events(job, ev.JobStarted(job="export"), ev.Exported(what="gguf", path=str(folder), bytes=1), ev.Finished())
    exporting.look()
    assert (
        exporting.props["push"]["visible"] and exporting.props["push-name"]["placeholder"] == "qlora-studio/my-export"
    )
    handed = create_job(tmp_path / "pushes", "push", PushRequest(export=folder, to="hub", name="me/model"))
    write_events(handed, ev.JobStarted(job="push"), ev.Finished(report=PushReport(place="https://hub/me/model")))
    exporting.view.push_job, exporting.view.push_to = JobRef(handed.path), "hub"
    exporting.look()
    assert (
        exporting.words("push-state") == "Handed on https://hub/me/model" and exporting.props["push-public"]["visible"]
    )
    refused = create_job(tmp_path / "pushes", "push", PushRequest(export=folder, to="hub", name="me/model"))
    exporting.view.push_job = JobRef(refused.path)
    write_events(refused, ev.JobStarted(job="push"), ev.Failed(message="The hub refuses access (403).", hint="Log in."))
    exporting.look()
    assert "not handed on" in exporting.words("push-state") and "403" in exporting.words("push-state")
    folder.rmdir()
    assert exporting.look().props["push"]["visible"] is False


def test_an_export_of_the_chosen_run_is_deleted_after_a_second_word(exporting, run, tmp_path):
    assert exporting.props["export-written"]["visible"] is False
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.gguf").write_bytes(b"x")
    job = create_job(run.path / "exports", "export", ExportRequest(run=run.path, to=folder))
    report = ExportReport(path=folder, bytes=1, files=("a.gguf",))
    write_events(job, ev.Exported(what="gguf", path=str(folder), bytes=1), ev.Finished(report=report))
    exporting.look()
    assert exporting.props["export-written"]["visible"]
    assert [name for _, name in exporting.props["export-delete"]["choices"]] == [str(folder)]
    exporting.view.deleted_next["export"] = str(folder)
    assert f"in {folder} go. The run stays" in exporting.look().words("export-holds")
    EXPORTS.delete(Scene(exporting.workspace, exporting.workspace.world(), exporting.view), str(folder))
    assert not folder.exists() and exporting.look().props["export-written"]["visible"] is False


def test_a_folder_offered_for_another_choice_is_not_taken(exporting, tmp_path):
    """The click on Export may overtake the answer to the click on a kind."""
    exports = exporting.workspace.studio.home.exports
    exporting.view.export_what = "adapter"
    scene = Scene(exporting.workspace, exporting.workspace.world(), exporting.view)
    assert export_server.settled_folder(scene, str(exports / "short-merged")) == str(exports / "short-adapter")
    assert export_server.settled_folder(scene, str(tmp_path / "mine")) == str(tmp_path / "mine")
    exporting.view.export_folder = str(exports / "named")
    assert export_server.settled_folder(scene, str(exports / "named")) == str(exports / "named")


def test_an_importance_matrix_is_offered_for_k_quants_and_made_where_the_rows_are_here(exporting):
    shown = {}
    for kind, gguf in (("gguf", "Q4_K_M"), ("gguf", "Q8_0"), ("pack", "Q6_K"), ("merged", "Q4_K_M")):
        exporting.view.export_what, exporting.view.export_gguf = kind, gguf
        shown[kind, gguf] = exporting.look().props["export-importance"]["visible"]
    assert list(shown.values()) == [True, False, True, False]
    assert exporting.value("export-importance") is False, "the run has no rows here"
    studio, folder = exporting.workspace.studio, exporting.workspace.studio.home.runs / "short"
    studio.data.import_rows(str(studio.data.demo().rows), name="mine")
    config = TrainConfig().replace({"data.sources": [{"name": "mine"}]})
    (folder / "config.json").write_text(config.model_dump_json())
    exporting.view.export_what, exporting.view.export_gguf = "gguf", "Q4_K_M"
    assert exporting.look().value("export-importance") is True
    exporting.view.export_importance = False
    assert exporting.look().value("export-importance") is False
    assert options("gguf", gguf="Q8_0", importance=True).measures_importance is False
    assert options("gguf", gguf="Q4_K_M", importance=True).measures_importance is True
