"""The Export page: where to, what to know before, what stands against it."""

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.ui.tabs import export as export_tab


@pytest.fixture
def exporting(desk):
    """A desk turned to a finished run with an adapter, made of files as a worker leaves them."""
    import json
    import time

    folder = desk.studio.home.runs / "short"
    (folder / "adapter").mkdir(parents=True)
    job = {"schema": 1, "job": "train", "title": "short", "created": time.time(), "arguments": {}}
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "config.json").write_text(TrainConfig().model_dump_json())
    (folder / "events.jsonl").write_text('{"event": "finished", "time": 1.0}\n')
    (folder / "adapter" / "MANIFEST.json").write_text("{}")
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 2048)
    desk.export_run = "short"
    return desk


def test_the_folder_offered_is_new_each_time(exporting):
    exports = exporting.studio.home.exports
    assert export_tab.default_folder(exporting, "merged-original") == exports / "short-merged"
    assert export_tab.default_folder(exporting, "merged-as-chatted") == exports / "short-merged-as-chatted"
    (exports / "short-adapter").mkdir(parents=True)
    assert export_tab.default_folder(exporting, "adapter") == exports / "short-adapter-2"


def test_the_checklist_warns_of_what_would_fail(exporting, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "a").touch()
    kinds = {check.says: check.kind for check in export_tab.find_checks(exporting, "adapter", str(full))}
    assert kinds["The folder is not empty; name a new one."] == "bad"
    assert kinds["The base smollm2-135m-instruct is not on this machine; a merge fetches it first."] == "warn"
    relative = [check.says for check in export_tab.find_checks(exporting, "adapter", "out") if check.kind == "bad"]
    assert relative == ["Give the folder with its whole path."]


@pytest.mark.parametrize(
    ("what", "folder", "said"),
    [
        ("everything", "/tmp/x", "Choose what to export."),
        ("adapter", "  ", "The folder is empty."),
    ],
)
def test_what_a_page_would_never_send_is_refused_all_the_same(exporting, what, folder, said):
    with pytest.raises(StudioError, match=said):
        export_tab.start(exporting, what, folder, check=False)


def test_without_a_run_the_page_says_where_to_begin(desk):
    assert "Nothing to export yet" in export_tab.render(desk, "adapter")[2]
    with pytest.raises(StudioError, match="There is no run to export"):
        export_tab.start(desk, "adapter", "/tmp/x", check=False)
