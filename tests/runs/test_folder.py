"""Names that cannot escape, folders that appear whole, states that are derived."""

from __future__ import annotations

import json

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import TrainRequest
from qlora_studio.runs.folder import NAME, create_job, find_job, slug
from qlora_studio.runs.journal import Follower, Journal
from qlora_studio.runs.store import RunStore


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Pip, second try", "pip-second-try"),
        ("../../etc/passwd", "etc-passwd"),
        ("a/b\\c", "a-b-c"),
        ("Größe Ärger", "groe-arger"),
        ("con", "run-con"),
        ("nul.txt", "run-nul.txt"),
        ("...", "run"),
        ("🦙", "run"),
        ("-rf", "rf"),
        ("x" * 300, "x" * 60),
        ("trailing. ", "trailing"),
        ("a\x00b\u202ec", "a-bc"),
    ],
)
def test_any_title_becomes_a_safe_name(title, name):
    assert slug(title) == name
    assert NAME.fullmatch(slug(title))


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "", "A", "x\x00", "/etc", "-rf", "nothing"])
def test_a_name_that_is_no_run_is_said_to_be_none(tmp_path, name):
    (tmp_path / "runs").mkdir()
    with pytest.raises(StudioError, match="There is no run"):
        find_job(tmp_path / "runs", name, "run")


def test_a_second_job_of_the_same_title_gets_a_number(tmp_path):
    names = [create_job(tmp_path, "Same", TrainRequest()).name for _ in range(3)]
    assert names == ["same", "same-2", "same-3"]
    assert json.loads((tmp_path / "same-3" / "job.json").read_text())["title"] == "Same"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_journal_is_readable_text(tmp_path):
    journal = Journal(tmp_path / "events.jsonl")
    journal.append(ev.PhaseEntered(phase="für später"))
    journal.close()
    assert "für später" in (tmp_path / "events.jsonl").read_text(encoding="utf-8")


def test_a_torn_last_line_is_left_alone_and_written_around(tmp_path):
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    journal.append(ev.JobStarted(job="train"))
    journal.append(ev.PhaseEntered(phase="loading"))
    journal.close()
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        assert len(Follower(path).read()) == whole[:cut].count(b"\n")
    path.write_bytes(whole + b'{"event": "pha')
    again = Journal(path)
    again.append(ev.Finished())
    again.close()
    follower = Follower(path)
    assert [event.tag for event in follower.read()] == ["started", "phase", "finished"]
    assert follower.progress.state == "finished"


def test_unknown_events_are_skipped(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(
        '{"event": "of tomorrow", "x": 1}\n{"event": "step"}\n[1]\n{"event": "noted", "text": "hi", "more": 2}\n'
    )
    assert Follower(path).read() == [ev.Noted(text="hi")]


def test_runs_are_listed_newest_first_and_one_that_cannot_be_read_is_listed_as_such(tmp_path):
    for number, title in enumerate(("old", "new")):
        job = create_job(tmp_path, title, TrainRequest(), {"config.json": {}})
        values = json.loads(job.job_file.read_text()) | {"created": number}
        job.job_file.write_text(json.dumps(values))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "job.json").write_text('{"schema": 99}')
    foreign = RunStore(tmp_path).summaries()[0]
    assert [run.name for run in RunStore(tmp_path).summaries()][1:] == ["new", "old"]
    assert foreign.name == "foreign" and "written by another version" in foreign.unreadable


def test_a_journal_that_was_replaced_by_a_shorter_one_is_read_from_its_start(tmp_path):
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    for number in range(5):
        journal.append(ev.Noted(text=f"note {number}"))
    journal.close()
    follower = Follower(path)
    assert len(follower.read()) == 5
    path.unlink()
    journal = Journal(path)
    journal.append(ev.JobStarted(job="train"))
    journal.close()
    assert follower.read() == [ev.JobStarted(job="train")]
    assert follower.progress.notes == () and follower.progress.state == "running"


def test_a_job_of_the_first_version_is_read_and_one_of_the_next_is_not(tmp_path):
    job = create_job(tmp_path, "One", TrainRequest())
    old = {"schema": 1, "job": "train", "title": "One", "created": 5, "arguments": {}}
    job.job_file.write_text(json.dumps(old))
    read = job.read_job()
    assert (read.title, read.created, read.request) == ("One", 5.0, TrainRequest())
    for broken in ({"schema": 3}, {"schema": 2, "title": "x", "created": 1, "request": {"job": "dance"}}, {}):
        job.job_file.write_text(json.dumps(broken))
        with pytest.raises(StudioError, match="written by another version"):
            job.read_job()
