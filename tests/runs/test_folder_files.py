"""A job folder value by value: where its files lie, what is in them, and how it comes and goes."""

import json
import os
import stat
import time
from pathlib import Path

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import DoctorRequest, TrainRequest
from qlora_studio.core.labels import Labels
from qlora_studio.runs import folder as folders
from qlora_studio.runs.folder import (
    STARTING_SECONDS,
    Job,
    JobFolder,
    create_job,
    delete_job,
    find_job,
    read_json,
    slug,
    write_json,
)


@pytest.fixture
def job(tmp_path) -> JobFolder:
    return create_job(tmp_path / "runs", "My run", TrainRequest(), {"config.json": {"a": "é"}})


def test_every_file_of_a_job_has_its_place():
    made = JobFolder(Path("runs") / "one")
    places = (
        made.job_file, made.events, made.log, made.lock_file, made.control, made.config_file, made.labels_file,
        made.queue_file, made.adapter,
    )  # fmt: skip
    assert [place.relative_to(made.path).as_posix() for place in places] == [
        "job.json", "events.jsonl", "worker.log", "worker.lock", "control", "config.json", "labels.json",
        "queued.json", "adapter",
    ]  # fmt: skip
    assert made.name == "one"


def test_a_new_job_says_what_it_is_for_and_belongs_to_its_owner(job, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1234.5)
    second = create_job(job.path.parent, "My run", DoctorRequest())
    assert (job.name, second.name) == ("my-run", "my-run-2")
    assert second.read_job() == Job("My run", 1234.5, DoctorRequest())
    assert read_json(second.job_file) == {
        "schema": 2, "title": "My run", "created": 1234.5, "request": {"job": "doctor"} | DoctorRequest().model_dump(),
    }  # fmt: skip
    assert stat.S_IMODE(job.path.stat().st_mode) == 0o700
    assert job.config_file.read_text(encoding="utf-8") == '{\n "a": "é"\n}'
    assert sorted(path.name for path in job.path.parent.iterdir()) == ["my-run", "my-run-2"]  # nothing half made


def test_a_job_that_cannot_be_put_into_place_is_an_error_and_no_loop(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        create_job(tmp_path / "runs", "x", TrainRequest())


def test_a_place_that_is_taken_at_the_last_moment_is_passed_over(tmp_path, monkeypatch):
    rename = Path.rename

    def late(stage, target):
        if target.name == "x":
            target.mkdir()
            raise OSError("not empty")
        return rename(stage, target)

    monkeypatch.setattr(Path, "rename", late)
    assert create_job(tmp_path / "runs", "x", TrainRequest()).name == "x-2"


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"schema": 3}, "schema 3"), ({"schema": None}, "schema None"), ({"title": ...}, "'title'"), ({"request": {"job": "fly"}}, "")],
)  # fmt: skip
def test_a_job_of_another_version_is_refused_with_what_is_wrong(job, changes, named):
    values = {key: value for key, value in {**read_json(job.job_file), **changes}.items() if value is not ...}
    write_json(job.job_file, values)
    with pytest.raises(StudioError) as refused:
        job.read_job()
    (problem,) = refused.value.problems
    assert problem.message.startswith("This job was written by another version (") and named in problem.message
    assert (problem.hint, problem.where) == ("Start it anew.", str(job.job_file))


def test_what_a_person_wrote_about_a_run_is_kept_and_a_broken_file_says_nothing(job):
    assert job.read_labels() == Labels()
    labels = Labels(note="good", tags=("a",), pinned_steps=(3,))
    job.write_labels(labels)
    assert job.read_labels() == labels
    job.labels_file.write_text("{")
    assert job.read_labels() == Labels()


def test_a_size_counts_every_file_and_follows_no_link(job, tmp_path):
    before = job.size_bytes()
    assert before == sum(path.stat().st_size for path in (job.job_file, job.config_file))
    (job.path / "checkpoints" / "step-1").mkdir(parents=True)
    (job.path / "checkpoints" / "step-1" / "file").write_bytes(b"12345")
    (tmp_path / "large").write_bytes(b"x" * 10_000)
    (job.path / "link").symlink_to(tmp_path / "large")
    assert before + 5 < job.size_bytes() < before + 5 + 1000


def test_a_job_without_a_process_is_starting_for_a_minute(job):
    now = time.time()
    os.utime(job.job_file, (now, now - STARTING_SECONDS + 20))
    assert not job.was_seen()
    os.utime(job.job_file, (now, now - STARTING_SECONDS - 1))
    assert job.was_seen()
    os.utime(job.job_file, (now, now))
    job.lock_file.touch()
    assert job.was_seen() and not job.worker_lives()
    assert JobFolder(job.path / "gone").was_seen()


def test_how_long_a_request_waits(job):
    assert not job.is_requested("stop") and job.seconds_since_request("stop") == 0.0
    job.ask("stop")
    job.ask("stop")
    assert job.is_requested("stop") and not job.is_requested("save")
    now = time.time()
    os.utime(job.control / "stop", (now, now - 30))
    assert 30 <= job.seconds_since_request("stop") < 60
    os.utime(job.control / "stop", (now, now + 1000))
    assert job.seconds_since_request("stop") == 0.0


@pytest.mark.parametrize("name", ["my-run", "nobody", "../runs/my-run", "", "x" * 92])
def test_a_job_is_found_by_its_name_alone(job, name):
    if name == "my-run":
        assert find_job(job.path.parent, name, "run") == job
        return
    with pytest.raises(StudioError) as refused:
        find_job(job.path.parent, name, "run")
    (problem,) = refused.value.problems
    assert (problem.message, problem.hint) == (f"There is no run '{name}'.", "`qlora-studio runs list` shows them all.")


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("x" * 60, "x" * 60), ("x" * 61, "x" * 60), ("x" * 59 + "-y", "x" * 59), ("com1", "run-com1"),
        ("com0", "com0"), ("lpt9.txt", "run-lpt9.txt"), ("com10", "com10"), ("!!", "run"), (" é.Ä_ ", "e.a"),
    ],
)  # fmt: skip
def test_edges_of_a_safe_name(title, name):
    assert slug(title) == name


def test_json_is_written_whole_and_flushed(tmp_path, monkeypatch):
    path, flushed = tmp_path / "x.json", []
    monkeypatch.setattr(folders.os, "fsync", lambda number: flushed.append(os.fstat(number).st_size))
    write_json(path, {"a": [1]})
    assert flushed == [path.stat().st_size] and json.loads(path.read_text()) == {"a": [1]}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1]", "This file does not hold an object."), ("{", "This file cannot be read: "), (None, "This file cannot be read: ")],
)  # fmt: skip
def test_a_file_that_is_no_object_is_named(tmp_path, content, message):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StudioError) as refused:
        read_json(path)
    (problem,) = refused.value.problems
    assert problem.message.startswith(message) and problem.where == str(path)


def test_a_deleted_job_is_out_of_sight_first_and_then_gone(job, monkeypatch):
    seen = []
    remove = folders.shutil.rmtree

    def look(path, **options):
        seen.append((job.path.exists(), path.parent.name, path.name.startswith("my-run-")))
        remove(path, **options)

    monkeypatch.setattr(folders.shutil, "rmtree", look)
    delete_job(job)
    assert seen == [(False, ".trash", True)]
    assert list(job.path.parent.iterdir()) == []


def test_what_cannot_be_removed_stays_in_the_trash(job, monkeypatch):
    monkeypatch.setattr(folders.shutil, "rmtree", lambda path, **_: None)
    delete_job(job)
    assert [path.name for path in job.path.parent.iterdir()] == [".trash"]


def test_a_job_counts_as_starting_for_a_minute_to_the_second(job, monkeypatch):
    os.utime(job.job_file, (1000, 1000))
    for now, seen in ((1000 + STARTING_SECONDS, False), (1000.5 + STARTING_SECONDS, True)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert job.was_seen() == seen


def test_what_cannot_be_removed_stays_in_the_trash_and_is_no_error(job, monkeypatch):
    def stuck(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(path)

    monkeypatch.setattr(folders.shutil, "rmtree", stuck)
    delete_job(job)
    (left,) = (job.path.parent / ".trash").iterdir()
    assert left.name.startswith("my-run-") and not job.path.exists()


def test_the_trash_may_hold_what_an_earlier_deletion_left(job, monkeypatch):
    monkeypatch.setattr(folders.shutil, "rmtree", lambda path, ignore_errors: None)
    other = create_job(job.path.parent, "Other", TrainRequest())
    for one in (job, other):
        delete_job(one)
    names = sorted(path.name.rpartition("-")[0] for path in (job.path.parent / ".trash").iterdir())
    assert names == ["my-run", "other"]
