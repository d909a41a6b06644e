"""Real workers one after the other: the one that ends starts the next, whatever became of it."""

from __future__ import annotations

import time

import pytest

from qlora_studio.studio import Studio

pytestmark = pytest.mark.slow


@pytest.fixture
def studio(harness, tmp_path, monkeypatch):
    """A studio over a home with the tiny model of the kill benchmark, and the config of a run of ten steps."""
    monkeypatch.setenv("QLORA_STUDIO_HOME", str(tmp_path))
    home, config = harness.make_home(tmp_path)
    return Studio(home), config


def until(true, seconds=180):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.2)
    assert true()


def test_runs_follow_each_other_also_past_one_that_fails(studio):
    studio, config = studio
    first = studio.queue.add(config.replace({"saving.name": "first"}))
    studio.queue.add(config.replace({"saving.name": "broken"}))
    studio.queue.add(config.replace({"saving.name": "third"}))
    assert studio.runs.open(first).at_work and studio.queue.names() == ["broken", "third"]
    (studio.home.runs / "broken" / "config.json").write_text("{}")  # nothing to train on
    until(lambda: studio.runs.open("third").state == "finished")
    assert studio.runs.open("broken").state == "failed" and studio.runs.open("first").state == "finished"
    ends = {name: studio.runs.jobs.store.followers[studio.home.runs / name].last_at for name in ("first", "third")}
    assert ends["first"] < ends["third"] and studio.queue.names() == []


def test_a_paused_run_leaves_the_card_free_and_goes_on_from_its_step(studio):
    studio, config = studio
    name = studio.queue.add(config.replace({"saving.name": "paused", "optim.epochs": 60}))
    studio.queue.add(config.replace({"saving.name": "next"}))
    until(lambda: studio.runs.open(name).progress.step >= 3)
    studio.runs.pause(name)
    until(lambda: studio.runs.open(name).state == "paused")
    until(lambda: studio.runs.at_work() is None)
    time.sleep(2)
    view = studio.runs.open(name)
    assert studio.queue.names() == ["next"], "who pauses wants the card: nobody else takes it"
    assert not view.has_adapter and [one.step for one in studio.runs.checkpoints(name)][-1] == view.progress.step
    studio.queue.add_again(name)
    studio.queue.move(name, 1)
    assert studio.queue.start_next() == name
    until(lambda: studio.runs.open(name).progress.step > view.progress.step)
    studio.runs.stop(name)
    until(lambda: studio.runs.open("next").state == "finished")
    losses = [step for step, _ in studio.runs.open(name).progress.losses]
    assert losses == list(range(1, len(losses) + 1))
