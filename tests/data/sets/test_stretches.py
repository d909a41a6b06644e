"""Several processes tokenise one set: what comes out is what one process makes, whatever becomes of the others."""

import json
import mmap
import os
import signal
import sys
import time
from dataclasses import replace

import pytest

from qlora_studio.core.config import DataConfig, DataSource
from qlora_studio.core.errors import LawBroken, StudioError
from qlora_studio.data.render.layout import LayoutMistaken
from qlora_studio.data.sets import prepare as preparing
from qlora_studio.data.sets import row_tokeniser, stretches
from qlora_studio.data.sets.importer import import_file
from qlora_studio.data.sets.prepare import RowsRequest, Stopped, Watch
from qlora_studio.data.sets.token_cache import COUNTS, tokenise_rows
from tests.matrix import mostly_slow

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked on Linux alone")


@pytest.fixture
def request_rows(tmp_path, letters, monkeypatch):
    """Two sets that share prompts, with rows that are too long or typed badly, in stretches of 64 rows."""
    monkeypatch.setattr(stretches, "STRETCH_ROWS", 64)
    monkeypatch.setattr(stretches, "LEAST_ROWS", 200)

    def write(name, first, count):
        rows = [
            {"prompt": f"p{number}", "completion": "long " * 90 if number % 50 == 9 else f"yes {number}"}
            for number in range(first, first + count)
        ]
        rows += [{"prompt": f"typed {number}", "completion": "[E] here"} for number in range(first, first + 9)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        import_file(tmp_path / f"{name}.jsonl", tmp_path / "sets")

    write("one", 0, 400)
    write("two", 350, 150)
    config = DataConfig(sources=(DataSource(name="one"), DataSource(name="two")), eval_share=0.1, max_length=100)
    return RowsRequest(tmp_path / "sets", letters, config, processes=3)


def alone(request, place):
    return tokenise_rows(replace(request, processes=1), place)


def assert_same(one, other):
    for left, right in ((one.train, other.train), (one.held_out, other.held_out)):
        assert left.sha256 == right.sha256
        assert list(left.examples) == list(right.examples)
        assert left.lengths == right.lengths
        for name in (*COUNTS, "findings", "stop_ids", "mixture"):
            assert getattr(left, name) == getattr(right, name), name


def in_helpers(monkeypatch, act, after=1):
    """Lets `act` happen in every process but this one, instead of rendering the row after so many.

    This one waits for the first of them, or it could have made all on a busy machine before another has begun.
    """
    here, drafts, seen, begun = os.getpid(), row_tokeniser.drafts, [], mmap.mmap(-1, 1)
    write = stretches._Stretches._write

    def wait_and_write(self, *values):
        until = time.monotonic() + 60
        while os.getpid() == here and not begun[0] and time.monotonic() < until:
            time.sleep(0.01)
        write(self, *values)

    def render(*values):
        if os.getpid() != here:
            begun[0] = 1
            seen.append(1)
            if len(seen) > after:
                act()
        return drafts(*values)

    monkeypatch.setattr(row_tokeniser, "drafts", render)
    monkeypatch.setattr(stretches._Stretches, "_write", wait_and_write)


def test_several_processes_make_what_one_makes(tmp_path, request_rows, monkeypatch):
    plain = alone(request_rows, tmp_path / "alone")
    assert plain.train.refused and plain.train.too_long and plain.train.mixture
    forks = []
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: forks.append(fork()) or forks[-1])
    assert_same(tokenise_rows(request_rows, tmp_path / "cache"), plain)
    assert len(forks) == 2, "the held-out side is too small to be shared"


def test_helpers_take_part(tmp_path, request_rows, monkeypatch):
    """A helper marks what it makes; were all made here, the other tests would show nothing."""
    here, write, marks = os.getpid(), stretches._Stretches._write, tmp_path / "marks"
    marks.mkdir()

    def note(self, number, *values):
        mine, until = os.getpid() == here, time.monotonic() + 60
        while mine and not list(marks.glob("*.helper")) and time.monotonic() < until:
            time.sleep(0.01)  # on a busy machine all could be made before a helper has begun
        (marks / f"{number}.{'here' if mine else 'helper'}").touch()
        write(self, number, *values)

    monkeypatch.setattr(stretches._Stretches, "_write", note)
    tokenise_rows(request_rows, tmp_path / "cache")
    made = [path.stem for path in marks.iterdir()]
    assert sorted(map(int, made)) == list(range(len(made))), "each stretch is made once"
    assert list(marks.glob("*.helper"))


@pytest.mark.parametrize("after", mostly_slow([0, 1, 63, 64, 100], 1, 64))
def test_a_killed_helper_costs_nothing(tmp_path, request_rows, monkeypatch, after):
    plain = alone(request_rows, tmp_path / "alone")
    in_helpers(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL), after)
    assert_same(tokenise_rows(request_rows, tmp_path / "cache"), plain)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_helper_that_meets_an_error_costs_nothing(tmp_path, request_rows, monkeypatch):
    plain = alone(request_rows, tmp_path / "alone")

    def fail():
        raise MemoryError

    in_helpers(monkeypatch, fail)
    assert_same(tokenise_rows(request_rows, tmp_path / "cache"), plain)


def test_an_error_of_a_row_is_met_here_too(tmp_path, request_rows, monkeypatch):
    def refuse(*_):
        raise StudioError("This row breaks the job.")

    monkeypatch.setattr(row_tokeniser, "drafts", refuse)
    with pytest.raises(StudioError, match="This row breaks the job"):
        tokenise_rows(request_rows, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "tokens").iterdir())


def test_a_mistake_that_a_helper_notices_is_mended_here(tmp_path, request_rows, monkeypatch):
    plain = alone(request_rows, tmp_path / "alone")

    def notice():
        raise LayoutMistaken

    in_helpers(monkeypatch, notice)
    collected, quick, stopped, make = [], [], [], row_tokeniser.make_layouts
    monkeypatch.setattr(request_rows.tokenizer, "stop_caching", lambda: stopped.append("caching"))
    monkeypatch.setattr(stretches, "make_prepared", lambda *_: collected.append("a stretch"))
    monkeypatch.setattr(row_tokeniser, "make_layouts", lambda *values: quick.append("layouts") or make(*values))
    assert_same(tokenise_rows(request_rows, tmp_path / "cache"), plain)
    assert not collected, "nothing that a helper made is used"
    assert len(quick) == 2, "layouts are made for the stretches and the other side, not for the rows again"
    assert stopped, "nor is what the mistaken cache knew"


def test_a_stop_ends_all_of_them_at_once(tmp_path, request_rows, monkeypatch):
    in_helpers(monkeypatch, lambda: time.sleep(60))
    answers = iter([False] * 3)
    began = time.monotonic()
    with pytest.raises(Stopped):
        tokenise_rows(request_rows, tmp_path / "cache", Watch(stopped=lambda: next(answers, True)))
    assert time.monotonic() - began < 30
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert not list((tmp_path / "cache" / "tokens").iterdir())


def test_the_law_of_sides_holds_over_all_processes(tmp_path, request_rows, monkeypatch):
    load_rows = preparing.load_rows

    def leak(folder, name, split, share):
        return load_rows(folder, name, "all" if split == "train" else split, share)

    monkeypatch.setattr(preparing, "load_rows", leak)
    monkeypatch.setattr(preparing, "eval_prompts", lambda *_: frozenset())
    with pytest.raises(LawBroken):
        tokenise_rows(request_rows, tmp_path / "cache")


@pytest.mark.parametrize("killed", [False, True])
def test_progress_comes_to_the_end_and_not_beyond(killed, tmp_path, request_rows, monkeypatch):
    reports = []
    monkeypatch.setattr("qlora_studio.data.sets.prepare._SECONDS_BETWEEN_WORDS", 0)
    if killed:
        in_helpers(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL), 63)
        monkeypatch.setattr("qlora_studio.data.sets.prepare._BATCH_ROWS", 16)
    tokenise_rows(request_rows, tmp_path / "cache", Watch(lambda done, total: reports.append((done, total))))
    total = reports[0][1]
    of_training = [done for done, whole in reports if whole == total]
    assert of_training == sorted(of_training) and of_training[-1] == total
    assert all(done <= whole for done, whole in reports)
    assert len(of_training) > 3


def test_without_room_for_another_process_one_does_it_all(tmp_path, request_rows, monkeypatch):
    def refuse():
        raise BlockingIOError("Resource temporarily unavailable")

    plain = alone(request_rows, tmp_path / "alone")
    monkeypatch.setattr(os, "fork", refuse)
    assert_same(tokenise_rows(request_rows, tmp_path / "cache"), plain)


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("lose", [True, False], ids=["lost", "twice"])
def test_the_law_of_rows_holds_while_they_become_tokens(tmp_path, request_rows, monkeypatch, processes, lose):
    batches = preparing._batches

    def broken(rows):
        for number, batch in enumerate(batches(rows)):
            yield batch if number else batch[1:] if lose else [*batch, batch[0]]

    monkeypatch.setattr(preparing, "_batches", broken)
    with pytest.raises(LawBroken, match="rows were to be tokenised, and"):
        tokenise_rows(replace(request_rows, processes=processes), tmp_path / "cache")


@pytest.mark.parametrize("rows", [-3, 3])
def test_a_set_with_other_rows_than_it_says_is_damaged_here_too(tmp_path, request_rows, rows):
    file = tmp_path / "sets" / "two" / "conversations.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:rows] if rows < 0 else lines + lines[:rows]))
    with pytest.raises(StudioError, match="The data set 'two' is damaged"):
        tokenise_rows(request_rows, tmp_path / "cache")
