"""The Runs page: what can be done with a run, what waits, what a sweep came to. Real folders, no worker."""

from __future__ import annotations

import base64
import json
import os
import re

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.home import Home
from qlora_studio.runs import queue
from qlora_studio.runs.folder import JobFolder
from qlora_studio.runs.journal import Journal
from qlora_studio.studio import Studio
from qlora_studio.ui.app import stop_run
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.tabs.queue import put_into_queue
from qlora_studio.ui.tabs.run_actions import train_more, use_settings
from tests.runs.holders import held
from tests.runs.made import make_run
from tests.ui.fakes import Tab


@pytest.fixture
def tab(home):
    studio = Studio(Home.find())
    for name, best, rank in (("first", 1.7, 8), ("second", 1.6, 16)):
        make_run(studio, name, best, lora__rank=rank)
        studio.runs.label(name, tags=("ranks",))
    return Tab(Workspace.open(studio))


def shows(tab: Tab, run: str) -> Tab:
    tab.view.run = run
    return tab.look()


def test_a_run_says_its_best_step_and_that_it_went_past_it(tab):
    shown = shows(tab, "first").words("run-details")
    assert "1.700 best, step 5, base 2.000" in shown and "step 5 rank 8" in shown
    assert "The run overfits: its held-out loss was 1.7000 at step 5 and 2.0000 at step 10." in shown
    assert "The adapter is that of step 5." in shown


def test_its_weights_can_be_chosen_wherever_they_are_used(tab):
    choices = [("the adapter, step 5", ""), ("step 10, held-out loss 2.000, last", "step-10"),
               ("step 5, held-out loss 1.700, best", "step-5")]  # fmt: skip
    shows(tab, "first")
    assert tab.props["run-weights"]["choices"] == choices
    tab.workspace.chat.choose("first", "step-10")
    tab.look()
    assert (tab.props["chat-weights"]["choices"], tab.value("chat-weights")) == (choices, "step-10")


def test_title_note_tags_and_pin_are_shown_and_stand_in_the_table(tab):
    tab.workspace.studio.runs.label(
        "first", title="Ranks, small", note="keep me\nand this", tags=("a", "b"), pinned=True
    )
    shows(tab, "first")
    shown = [tab.value(element) for element in ("run-title", "run-tags", "run-pinned", "run-note")]
    assert shown == ["Ranks, small", "a, b", True, "keep me\nand this"]
    assert tab.value("runs-table")[0][0] == "first" and tab.value("runs-table")[0][-1] == "★ #a #b keep me"


def test_deletion_asks_first_and_says_what_goes(tab):
    shows(tab, "first")
    assert (tab.props["run-delete-now-btn"]["visible"], tab.value("run-holds")) == (False, "")
    (JobFolder(tab.workspace.studio.home.runs / "first").path / "large").write_bytes(bytes(3 << 20))
    tab.view.deleting = "first"
    tab.look()
    assert tab.props["run-delete-now-btn"]["visible"] and "3.0 MiB of checkpoints" in tab.words("run-holds").replace(
        "3 MiB", "3.0 MiB"
    )
    assert "Exports of it lie in folders of their own and stay." in tab.words("run-holds")
    shows(tab, "second")
    assert not tab.props["run-delete-now-btn"]["visible"], "the question is about the run it was asked of"


def test_the_record_is_a_file_to_save_that_can_be_run_again(tab):
    html = shows(tab, "first").value("run-record")
    data = re.search(r'href="data:application/json;base64,([^"]+)"', html)
    assert data and 'download="first.record.json"' in html
    record = json.loads(base64.b64decode(data[1]))
    assert record["config"]["lora"]["rank"] == 8 and record["evaluations"] == [[5, 1.7], [10, 2.0]]


def test_compared_runs_show_what_tells_them_apart(tab):
    tab.view.compared = ("first", "second")
    shown = tab.look().words("runs-differences")
    assert "Rank 8 16" in shown and "1.7000 at step 5 1.6000 at step 5" in shown
    for name in tab.view.compared:
        journal = Journal(JobFolder(tab.workspace.studio.home.runs / name).events)
        journal.append(ev.SampleWritten(step=10, prompt="Hi <b>", answer=f"I am the {name}.", side="tuned"))
        journal.close()
    tab.view.compared_loss = "evaluation"
    shown = tab.look().words("runs-differences")
    assert shown.endswith("Hi <b> I am the first. I am the second.")
    tab.view.compared = ("first",)
    assert tab.look().value("runs-differences") == ""


def test_the_results_of_a_tag_come_best_first(tab):
    shown = tab.words("queue-results")
    assert tab.value("queue-tag") == "ranks" and shown.index("second") < shown.index("first")
    assert "Rank" in shown and "1.6000" in shown


def test_what_waits_is_listed_in_its_order_and_can_be_started_once_the_card_is_free(tab):
    studio = tab.workspace.studio
    assert "No run waits" in tab.words("queue-line") and not tab.props["queue-start-btn"]["visible"]
    for name in ("later", "latest"):
        queue.put(make_run(studio, name))
    tab.look()
    assert tab.props["queue-chosen"]["choices"] == ["later", "latest"] and tab.props["queue-start-btn"]["visible"]
    assert "2 waiting, the card is free" in tab.words("queue-line")
    studio.queue.move("latest", 1)
    tab.look()
    assert tab.words("queue-line").index("latest") < tab.words("queue-line").index("later ")
    assert [row[1] for row in tab.value("runs-table") if row[0] == "later"] == ["queued"]


def test_pause_and_save_stand_there_only_while_a_run_is_at_work(tab):
    doors = ("run-pause-btn", "run-save-btn", "run-queue-btn")
    shows(tab, "first")
    assert [tab.props[door]["visible"] for door in doors] == [False, False, False]
    folder = make_run(tab.workspace.studio, "going")
    journal = Journal(folder.events)
    journal.append(ev.JobStarted(job="train"))
    with held(folder.lock_file):
        shows(tab, "going")
        assert [tab.props[door]["visible"] for door in doors] == [True, True, False]
        tab.workspace.studio.runs.pause("going")
        assert folder.is_requested("pause")
    journal.append(ev.Stopped(step=4, paused=True))
    journal.close()
    assert [shows(tab, "going").props[door]["visible"] for door in doors] == [False, False, True]
    with pytest.raises(StudioError, match="The run 'going' is paused"):
        tab.workspace.studio.runs.pause("going")


def test_a_draft_that_cannot_start_is_not_queued_either(tab):
    with pytest.raises(StudioError):
        put_into_queue(tab.workspace, "lora.rank=8,16")
    assert tab.workspace.studio.queue.names() == []


@pytest.mark.parametrize("epochs", ["", "0", "-1", "many", "nan"])
def test_what_is_no_number_of_epochs_is_refused(tab, epochs):
    with pytest.raises(StudioError, match="is no number of epochs"):
        train_more(tab.workspace, "first", epochs, fresh=False)


def test_a_run_that_has_ended_can_be_trained_more_and_one_at_work_cannot(tab):
    assert shows(tab, "first").props["run-more-btn"]["interactive"]
    folder = JobFolder(tab.workspace.studio.home.runs / "first")
    with held(folder.lock_file):
        journal = Journal(folder.events)
        journal.append(ev.JobStarted(job="train"))
        journal.close()
        assert not tab.look().props["run-more-btn"]["interactive"]


def test_a_stop_that_is_not_answered_within_half_a_minute_offers_to_end_the_worker(tab, monkeypatch):
    folder = make_run(tab.workspace.studio, "deaf")
    journal = Journal(folder.events)
    journal.append(ev.JobStarted(job="train"))
    journal.close()
    ended = []
    monkeypatch.setattr("qlora_studio.runs.supervisor.end_now", lambda job: ended.append(job.name) or True)
    with held(folder.lock_file):
        tab.look()
        assert (tab.value("stop-btn"), tab.props["stop-btn"]["interactive"]) == ("Stop the run", True)
        stop_run(tab.workspace)
        tab.look()
        assert (tab.value("stop-btn"), tab.props["stop-btn"]["interactive"]) == ("Stopping after this step …", False)
        request_file = folder.control / "stop"
        os.utime(request_file, (request_file.stat().st_mtime - 31, request_file.stat().st_mtime - 31))
        tab.look()
        assert (tab.value("stop-btn"), tab.props["stop-btn"]["interactive"]) == ("End it now", True)
        stop_run(tab.workspace)
    assert ended == ["deaf"]


def test_the_settings_of_a_run_become_the_draft_of_the_next(tab):
    use_settings(tab.workspace, "first")
    assert tab.workspace.draft["lora.rank"] == 8 and tab.workspace.draft["saving.name"] == ""
    use_settings(tab.workspace, "second")
    assert tab.look().value("lora-rank") == 16


def test_a_checkpoint_that_is_pinned_says_so_wherever_it_is_chosen(tab):
    tab.workspace.studio.runs.pin_checkpoint("first", 10, pinned=True)
    shows(tab, "first")
    assert tab.props["run-checkpoint"]["choices"][0] == ("step 10, held-out loss 2.000, last, pinned", "step-10")
    tab.workspace.studio.runs.pin_checkpoint("first", 10, pinned=False)
    assert tab.look().props["run-checkpoint"]["choices"][0] == ("step 10, held-out loss 2.000, last", "step-10")
    with pytest.raises(StudioError, match="has kept no checkpoint 'step-7'"):
        tab.workspace.studio.runs.pin_checkpoint("first", 7, pinned=True)
