"""The Data page over a real home: open, refuse, map, import, mix, mend."""

import json

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.ui.tabs import data as data_tab
from qlora_studio.ui.tabs import import_rows as intake
from tests.ui.test_views import words

PLAIN = ("", False, "", False, "", "", "")
"""An import as the page asks for it when nothing was typed."""


def write(folder, name, rows):
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def look(desk, source, format="auto", mapped=()):
    desk.look(intake.look_at(desk, source, format, mapped))
    return data_tab.render(desk)


@pytest.fixture
def rows(tmp_path):
    values = [{"instruction": f"Question {number}?", "output": f"Answer {number}."} for number in range(6)]
    return write(tmp_path, "mine.jsonl", values)


@pytest.fixture
def quiet(desk, monkeypatch):
    """A desk that does not start counting by itself: no child process in these tests."""
    monkeypatch.setattr(type(desk.studio.data), "tokenise", lambda *_: pytest.fail("counting was started"))
    monkeypatch.setattr(type(desk), "count_tokens", lambda self: None)
    return desk


def test_an_empty_page_says_what_to_do_next(quiet):
    status, rows, *_ = data_tab.render(quiet)
    assert "Use the demo rows" in status and rows == ""


def test_an_opened_file_shows_its_format_with_the_reason_and_its_rows(quiet, rows):
    status, shown, *_ = look(quiet, rows)
    assert words(status) == "Read as Alpaca (100% of the rows looked at). The rows have 'instruction' and 'output'."
    assert words(shown).startswith("mine.jsonl:1 User Question 0? Assistant Answer 0. mine.jsonl:2")
    assert quiet.studio.data.sets() == []


def test_importing_makes_it_what_the_next_run_learns_from(quiet, rows):
    look(quiet, rows)
    intake.import_rows(quiet, *PLAIN)
    assert quiet.draft["data.sources"] == [{"name": "mine", "weight": 1.0}] and quiet.draft["data.format"] == "alpaca"
    assert quiet.looked is None
    assert words(data_tab.render(quiet)[0]).startswith("Rows 6 about 0 held out Set mine read as alpaca")


def test_a_refused_file_names_file_and_line_and_imports_nothing(quiet, tmp_path):
    source = write(tmp_path, "bad.jsonl", [{"instruction": "a", "output": "b"}, '{"instruction": "c", '])
    look(quiet, source)
    intake.import_rows(quiet, *PLAIN)
    status = words(data_tab.render(quiet)[0])
    assert "bad.jsonl cannot be imported like this" in status and "bad.jsonl:2" in status
    assert quiet.studio.data.sets() == [] and quiet.draft["data.sources"] == []
    intake.import_rows(quiet, "", True, *PLAIN[2:])
    assert [(report.rows, report.skipped) for report in quiet.studio.data.sets()] == [(1, 1)]


def test_a_missing_file_is_a_sentence(quiet, tmp_path):
    status, *_ = look(quiet, str(tmp_path / "none.json"))
    assert "There is no such file" in status and "Traceback" not in status


def test_unknown_columns_are_mapped_by_hand(quiet, tmp_path):
    source = write(tmp_path, "odd.jsonl", [{"ask": "Why?", "say": "Because."}])
    updates = look(quiet, source)
    assert "ask" in updates[0] and "say" in updates[0] and quiet.looked.guess is None
    look(quiet, source, "alpaca")
    parts = quiet.studio.data.format_parts("alpaca")
    assert parts[:3] == ("instruction", "input", "output")
    _, shown, *updates = look(quiet, source, "alpaca", ("ask", None, "say"))
    assert quiet.looked.columns == {"instruction": "ask", "output": "say"}
    assert words(shown) == "odd.jsonl:1 User Why? Assistant Because."
    mapped = [
        (update["label"], update["value"])
        for update in updates
        if isinstance(update, dict) and "choices" in update and update.get("label")
    ]
    assert mapped[:3] == [("instruction", "ask"), ("input", ""), ("output", "say")]
    intake.import_rows(quiet, *PLAIN)
    assert quiet.studio.data.sets()[0].columns == {"instruction": "ask", "output": "say"}


def test_a_hub_id_waits_for_the_import_and_asks_nobody(quiet):
    status, *_ = look(quiet, "owner/some-set")
    assert "owner/some-set is a data set of the hub" in status and quiet.looked.hub


def test_two_sets_show_their_shares(quiet, rows, tmp_path):
    other = write(tmp_path, "general.jsonl", [{"instruction": "Say hi", "output": "hi"}])
    for source in (rows, other):
        look(quiet, source)
        intake.import_rows(quiet, *PLAIN)
    quiet.change({"data.sources": [{"name": "mine", "weight": 1.0}, {"name": "general", "weight": 0.2}]})
    updates = data_tab.render(quiet)
    shares = [
        update for update in updates if isinstance(update, dict) and str(update.get("label", "")).startswith("Share")
    ]
    assert [(share["label"], share["value"], share["visible"]) for share in shares] == [
        ("Share of mine", 1.0, True),
        ("Share of general", 0.2, True),
    ]
    assert "2 sets mixed" in updates[0] and updates[-1]["visible"]


def test_nothing_to_import_is_a_sentence(quiet):
    with pytest.raises(StudioError, match="There is nothing to import"):
        intake.import_rows(quiet, *PLAIN)


def test_mending_changes_the_chosen_sets(quiet, tmp_path):
    values = [{"instruction": "a?", "output": "b"}, {"instruction": "a?", "output": "b"}]
    look(quiet, write(tmp_path, "twice.jsonl", values))
    intake.import_rows(quiet, *PLAIN)
    intake.mend_sets(quiet, ["drop-copies"])
    assert quiet.studio.data.sets()[0].rows == 1
    with pytest.raises(StudioError, match="No remedy is ticked"):
        intake.mend_sets(quiet, [])
