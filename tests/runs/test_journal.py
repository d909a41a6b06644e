"""The two ends of a journal: what is written of an event, and how far a reader has read."""

import json

import pytest

from qlora_studio.core import events as ev
from qlora_studio.runs import journal as journals
from qlora_studio.runs.journal import Follower, Journal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


def append(path, *texts):
    journal = Journal(path)
    for text in texts:
        journal.append(ev.Noted(text=text))
    journal.close()


def test_a_line_is_the_time_and_the_event_as_it_is_written(path, monkeypatch):
    monkeypatch.setattr(journals.time, "time", lambda: 12.5)
    append(path, "für", "half \ud800 a pair")
    assert (
        path.read_bytes()
        == (
            '{"time": 12.5, "event": "noted", "text": "für"}\n{"time": 12.5, "event": "noted", "text": "half ? a pair"}\n'
        ).encode()
    )


@pytest.mark.parametrize(
    ("before", "after"), [(b"", b""), (b'{"a": 1}\n', b'{"a": 1}\n'), (b'{"a"', b'{"a"\n'), (b"\n", b"\n")]
)
def test_a_journal_goes_on_where_one_ended_and_begins_a_line_behind_one_that_was_torn(path, before, after):
    path.write_bytes(before)
    append(path)
    assert path.read_bytes() == before, "nothing is written before there is something to say"
    append(path, "x")
    whole = path.read_bytes()
    assert whole.startswith(after) and json.loads(whole[len(after) :])["text"] == "x"


class Disk:
    """Takes of each writing as many bytes as `room` says, then all; None is a disk that is full."""

    def __init__(self, write, room):
        self.write_on, self.room = write, room

    def write(self, data):
        allowed = self.room.pop(0) if self.room else len(data)
        if allowed is None:
            raise OSError(28, "No space left on device")
        return self.write_on(data[:allowed])


def test_what_does_not_fit_the_disk_is_written_as_soon_as_it_does(path, monkeypatch):
    journal = Journal(path)
    monkeypatch.setattr(journal, "file", Disk(journal.file.write, [None, 3, None]))
    journal.append(ev.Noted(text="one"))
    assert path.read_bytes() == b"" and not journal.catch_up() and path.stat().st_size == 3
    assert journal.catch_up() and journal.catch_up() and journal.waiting == b""
    assert Follower(path).read() == [ev.Noted(text="one")]


def test_a_reader_goes_on_behind_the_last_whole_line(path):
    follower = Follower(path)
    assert follower.read() == [] and follower.offset == 0, "there is no journal yet"
    append(path, "one", "two")
    size = path.stat().st_size
    assert [event.text for event in follower.read()] == ["one", "two"] and follower.offset == size
    assert follower.read() == [] and follower.offset == size
    with path.open("ab") as file:
        file.write(b'{"event": "noted", "te')
    assert follower.read() == [] and follower.offset == size
    with path.open("ab") as file:
        file.write(b'xt": "three"}\n')
    assert [event.text for event in follower.read()] == ["three"] and follower.offset == path.stat().st_size


def test_a_reader_knows_when_the_first_and_the_last_event_were_written(path):
    lines = [{"time": 5.0, "event": "of tomorrow"}, {"time": 7.0, "event": "noted", "text": "a"},
             {"time": 9.5, "event": "noted", "text": "b"}, {"time": 11.0}, 3]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "broken\n\n")
    follower = Follower(path)
    assert (follower.started_at, follower.last_at) == (None, None)
    assert len(follower.read()) == 2 and (follower.started_at, follower.last_at) == (7.0, 9.5)
    assert follower.progress.notes == ("a", "b")


def test_a_journal_of_the_same_size_is_read_on_and_a_shorter_one_anew(path):
    append(path, "one", "two")
    follower = Follower(path)
    follower.read()
    longer = path.read_bytes()
    path.write_bytes(longer.replace(b"one", b"ONE"))
    assert follower.read() == []
    path.unlink()
    assert follower.read() == [] and follower.progress.notes == ("one", "two"), "it may come back"
    append(path, "new")
    assert [event.text for event in follower.read()] == ["new"] and follower.progress.notes == ("new",)


def test_a_fault_that_is_tried_at_the_journal_is_taken_for_one_of_the_disk(path, monkeypatch):
    tried = []

    def fault(name):
        tried.append(name)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journals, "fault", fault)
        append(path, "one")
    assert tried == ["journal"] and path.read_bytes() == b""


def test_a_full_disk_costs_the_journal_nothing_once_there_is_room(path, monkeypatch):
    """Half a line fits, then nothing, then all: every event is there once, whole and in order."""
    journal = Journal(path)
    monkeypatch.setattr(journal, "file", Disk(journal.file.write, [10, None, 10_000, None]))
    for number in range(4):
        journal.append(ev.Noted(text=str(number)))
    assert [event.text for event in Follower(path).read()] == ["0", "1", "2", "3"]
