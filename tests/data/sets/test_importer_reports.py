"""An import's report, whole, and what makes another set of the same file; a preview of the same files beside it."""

from __future__ import annotations

import hashlib
import json
from array import array

import pytest

from qlora_studio.core.dataset import DatasetReport, FormatGuess, RowAccount
from qlora_studio.core.errors import LawBroken, Problem, StudioError
from qlora_studio.data.readers.hub_set import HubSet
from qlora_studio.data.sets import importer
from qlora_studio.data.sets.identity import hash_path, size_of, slug
from qlora_studio.data.sets.importer import import_file, import_hub, load_conversations, preview_file
from qlora_studio.data.sets.sides import prompt_hash


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(*numbers):
    return [{"prompt": f"q{number}", "completion": f"a{number}"} for number in numbers]


def sha(*contents):
    return hashlib.sha256(b"".join(contents)).hexdigest()


WHY = "the rows have 'prompt' and 'completion'"
BAD = "field 'completion': This row has no such field. It has: prompt."


def test_a_report_is_whole(tmp_path):
    rows = [{**pairs(0)[0], "turn[3].id": 1, "turn[4].id": 2}, *pairs(1, 2, 3), {"prompt": "q"}]
    held = [*pairs(3, 9), {"prompt": "z"}, {"prompt": "y"}]
    path, other = write(tmp_path / "My rows.jsonl", rows), write(tmp_path / "held.jsonl", held)
    home = tmp_path / "sets"
    report = import_file(path, home, eval_path=other, skip_bad=True, columns={"prompt": "prompt"})
    place = home / "my-rows"
    lines = [(place / name).read_bytes() for name in ("conversations.jsonl", "evaluation.jsonl")]
    choices = {
        "format": "auto",
        "columns": {"prompt": "prompt"},
        "skip_bad": True,
        "drop_overlap": False,
        "evaluation": sha(other.read_bytes()),
    }
    assert report == DatasetReport(
        name="my-rows", title="", format="prompt-completion", confidence=0.8, reason=WHY, rows=4, eval_rows=2,
        account=RowAccount(seen=9, imported=6, refused=3), skipped=3,
        problems=(f"My rows.jsonl:5: {BAD}", f"held.jsonl:3: {BAD}", f"held.jsonl:4: {BAD}"),
        extra_fields={"turn[].id": 2}, source_file="My rows.jsonl", source_sha256=sha(path.read_bytes()),
        source_bytes=path.stat().st_size, sha256=sha(lines[0], hashlib.sha256(lines[1]).digest()),
        columns={"prompt": "prompt"}, details={"overlap": 1, "overlap_dropped": False, "choices": choices},
    )  # fmt: skip
    assert DatasetReport.model_validate_json((place / "report.json").read_bytes()) == report
    assert (place / "report.json").read_text().startswith('{\n  "name"'), "for people to read"
    hashes = array("Q", map(prompt_hash, load_conversations(home, "my-rows", "train")))
    assert (place / "first-prompts.bin").read_bytes() == hashes.tobytes() and len(hashes) == 4
    refused = [json.loads(line) for line in (place / "refused.jsonl").read_text().splitlines()]
    assert [row["where"] for row in refused] == ["held.jsonl:3", "held.jsonl:4", "My rows.jsonl:5"]
    assert [entry.name for entry in home.iterdir()] == ["my-rows"]


@pytest.mark.parametrize(
    "change",
    [{"format": "prompt-completion"}, {"columns": {"prompt": "prompt"}}, {"skip_bad": True}, {"drop_overlap": True}, {"eval_path": "held.jsonl"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_each_choice_makes_another_set_of_the_same_file(tmp_path, change):
    path, _ = write(tmp_path / "rows.jsonl", pairs(0, 1, 2)), write(tmp_path / "held.jsonl", pairs(8))
    change = {name: tmp_path / value if name == "eval_path" else value for name, value in change.items()}
    assert not import_file(path, tmp_path / "sets").unchanged
    assert import_file(path, tmp_path / "sets").unchanged
    assert not import_file(path, tmp_path / "sets", **change).unchanged
    assert import_file(path, tmp_path / "sets", **change).unchanged


def test_bad_rows_of_the_evaluation_file_stop_an_import_as_well(tmp_path):
    path, held = (
        write(tmp_path / "rows.jsonl", pairs(0, 1)),
        write(tmp_path / "held.jsonl", [*pairs(5), {"prompt": "z"}]),
    )
    with pytest.raises(StudioError) as caught:
        import_file(path, tmp_path / "sets", eval_path=held)
    assert caught.value.problems == (
        Problem("This row has no such field.", "It has: prompt.", "held.jsonl:2", "completion"),
        Problem(
            "1 row cannot be imported.",
            "Fix them, or choose to skip bad rows (on the command line, --skip-bad).",
            "rows.jsonl (evaluation)",
        ),
    )
    assert list((tmp_path / "sets").iterdir()) == []


def test_refused_rows_are_listed_as_people_write_them_in_a_home_that_was_not_there(tmp_path):
    path = write(tmp_path / "r\u00fc.jsonl", [*pairs(0), {"pr\u00e4mie": 1}])
    import_file(path, tmp_path / "deep" / "sets", skip_bad=True, format="prompt-completion")
    (place,) = (tmp_path / "deep" / "sets").iterdir()
    assert (place / "refused.jsonl").read_text(encoding="utf-8") == (
        '{"where": "r\u00fc.jsonl:2", "field": "prompt", "message": "This row has no such field."}\n'
    )


def test_overlap_is_dropped_from_training_rows_alone(tmp_path):
    path, held = write(tmp_path / "rows.jsonl", pairs(0, 1, 2)), write(tmp_path / "held.jsonl", pairs(1, 1))
    report = import_file(path, tmp_path / "sets", eval_path=held, drop_overlap=True)
    assert report.account == RowAccount(seen=5, imported=4, dropped=1)
    assert (report.rows, report.eval_rows, report.details["overlap"]) == (2, 2, 1)


def test_no_space_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", pairs(0, 1))

    def full(stage, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importer, "swap_in", full)
    with pytest.raises(StudioError) as caught:
        import_file(path, tmp_path / "sets")
    assert caught.value.message == f"{tmp_path / 'sets'}: The data set cannot be written: No space left on device."
    assert list((tmp_path / "sets").iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(StudioError, match="Nothing can be written here: "):
        import_file(path, tmp_path / "file" / "sets")


def test_a_set_of_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    from qlora_studio.data.readers.rows import Row

    def read(pinned, tally):
        tally.rows += 2
        return iter([Row(str(pinned), line, row) for line, row in enumerate(pairs(0, 1), 1)])

    monkeypatch.setattr(importer, "pin", lambda wanted: HubSet(wanted.id, wanted.subset, wanted.split, "c0ffee"))
    monkeypatch.setattr(importer, "read_hub", read)
    report = import_hub(HubSet("someone/Some.Set", "en"), tmp_path / "sets")
    assert (report.name, report.rows, report.source_bytes) == ("some.set", 2, 0)
    assert report.source_file == "someone/Some.Set/en:train@c0ffee"
    assert report.source_sha256 == sha(b"someone/Some.Set/en:train@c0ffee")
    assert import_hub(HubSet("someone/Some.Set", "en"), tmp_path / "sets").unchanged
    assert import_hub(HubSet("someone/Some.Set", "en"), tmp_path / "sets", name="Other").title == "Other"


def test_a_bad_row_of_the_hub_stops_an_import_unless_it_is_to_be_left_out(tmp_path, monkeypatch):
    from qlora_studio.data.readers.rows import Row

    def read(pinned, tally):
        tally.rows += 2
        return iter([Row(str(pinned), 1, pairs(0)[0]), Row(str(pinned), 2, {"prompt": "q"})])

    monkeypatch.setattr(importer, "pin", lambda wanted: HubSet(wanted.id, wanted.subset, wanted.split, "c0ffee"))
    monkeypatch.setattr(importer, "read_hub", read)
    with pytest.raises(StudioError) as caught:
        import_hub(HubSet("someone/set"), tmp_path / "sets")
    assert [str(problem) for problem in caught.value.problems] == [
        f"someone/set:train:2: {BAD}",
        "someone/set:train@c0ffee: 1 row cannot be imported. Fix them, or choose to skip bad rows (on the command line, --skip-bad).",
    ]
    report = import_hub(HubSet("someone/set"), tmp_path / "sets", skip_bad=True)
    assert report.account == RowAccount(seen=2, imported=1, refused=1)


def test_a_hub_set_of_which_nothing_can_be_made_says_which_fields_it_has(tmp_path, monkeypatch):
    from qlora_studio.data.readers.rows import Row

    def read(pinned, tally):
        tally.rows += 1
        return iter([Row(str(pinned), 1, {"what": 1})])

    monkeypatch.setattr(importer, "pin", lambda wanted: wanted)
    monkeypatch.setattr(importer, "read_hub", read)
    with pytest.raises(StudioError, match=r"The format of these rows is not known; their fields: what\."):
        import_hub(HubSet("someone/set"), tmp_path / "sets")
    assert list((tmp_path / "sets").iterdir()) == []


def test_files_of_a_folder_each_have_their_format_and_what_is_no_row_is_passed_over(tmp_path):
    source = tmp_path / "s"
    write(source / "a.jsonl", pairs(0, 1))
    write(source / "b.jsonl", [{"instruction": "i", "output": "o"}])
    write(source / "c.jsonl", [])
    write(source / "d.jsonl", [{"what": 1}])
    report = import_file(source, tmp_path / "sets")
    assert report.reason == f"{WHY}; b.jsonl is alpaca"
    assert report.account == RowAccount(
        seen=3, imported=3, passed_over=("c.jsonl: empty", "d.jsonl: one object that is no row")
    )
    preview = preview_file(source)
    assert (preview.guess.reason, preview.account) == (report.reason, report.account)
    write(source / "d.jsonl", [{"what": 1}, {"what": 2}])
    preview = preview_file(source)
    message = "The format of these rows is not known; their fields: what."
    assert [(problem.message, problem.where) for problem in preview.problems] == [
        (message, "d.jsonl:1"),
        (message, "d.jsonl:2"),
    ]
    assert str(preview.account) == "5 seen = 3 imported + 2 refused"


@pytest.mark.parametrize("looked_at", [1, 2, 3, 200])
def test_every_row_of_a_file_that_is_not_known_is_refused_however_many_are_looked_at(tmp_path, monkeypatch, looked_at):
    monkeypatch.setattr("qlora_studio.data.sets.conversion._DETECTION_ROWS", looked_at)
    source = tmp_path / "s"
    write(source / "a.jsonl", pairs(0))
    write(source / "d.jsonl", [{"what": 1}, {"what": 2}, {"what": 3}, {"what": 4}])
    preview = preview_file(source)
    assert [problem.where for problem in preview.problems] == [f"d.jsonl:{line}" for line in (1, 2, 3, 4)]
    assert preview.account == RowAccount(seen=5, imported=1, refused=4)


def test_a_preview_shows_the_first_rows_and_problems_and_counts_all(tmp_path):
    rows = [*pairs(*range(5)), *({"prompt": f"z{number}"} for number in range(12))]
    found = preview_file(write(tmp_path / "rows.jsonl", rows), rows=3)
    assert [row.turns[0].content for row in found.conversations] == ["q0", "q1", "q2"]
    assert [problem.where for problem in found.problems] == [f"rows.jsonl:{line}" for line in range(6, 16)]
    assert (found.account, found.columns, found.unseen) == (
        RowAccount(seen=17, imported=5, refused=12),
        ("prompt", "completion"),
        False,
    )
    assert len(preview_file(write(tmp_path / "many.jsonl", pairs(*range(30)))).conversations) == 20


def test_a_preview_of_what_cannot_be_imported_says_why(tmp_path):
    empty = preview_file(write(tmp_path / "e.jsonl", []))
    reason = "e.jsonl: There is no row in this file."
    assert (empty.guess, empty.columns) == (FormatGuess(format="", confidence=0, reason=reason), ())
    assert [problem.message for problem in empty.problems] == ["There is no row in this file."]
    (tmp_path / "cut.json").write_text('[{"prompt": "p", "completion": "c"},')
    cut = preview_file(tmp_path / "cut.json")
    assert cut.unseen and len(cut.conversations) == 1 and "ends inside the list" in cut.problems[0].message
    bad = preview_file(write(tmp_path / "bad.jsonl", ["x"]))
    assert bad.guess == FormatGuess(format="", confidence=0, reason="no row can be read")
    assert (len(bad.problems), bad.account.refused) == (1, 1)


def test_a_set_of_threads_may_go_on_in_the_next_file(tmp_path):
    source = tmp_path / "s"
    write(source / "a.jsonl", [{"id": "1", "parent_id": None, "role": "user", "text": "q"}])
    write(source / "b.jsonl", [{"id": "2", "parent_id": "1", "role": "assistant", "text": "a"}])
    report = import_file(source, tmp_path / "sets")
    assert (report.rows, report.account.imported) == (1, 2)


def test_what_a_source_is_known_by(tmp_path):
    source = tmp_path / "s"
    write(source / "a.jsonl", pairs(0))
    write(source / "b" / "c.jsonl", pairs(1))
    (source / "notes.pdf").write_text("not part of it")
    one, other = (sha(write(tmp_path / "x.jsonl", pairs(number)).read_bytes()) for number in (0, 1))
    assert hash_path(source) == sha(f"a.jsonl\0{one}\nb/c.jsonl\0{other}\n".encode())
    assert hash_path(source / "a.jsonl") == one
    assert size_of(source) == size_of(source / "a.jsonl") + size_of(source / "b" / "c.jsonl") == 74


@pytest.mark.parametrize(
    ("error", "reason"),
    [(PermissionError(13, "Permission denied"), "Permission denied"), (OSError("the drive is gone"), "the drive is gone")],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_a_sentence_with_the_systems_reason(tmp_path, monkeypatch, error, reason):
    path = write(tmp_path / "x.jsonl", pairs(0))

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(StudioError) as caught:
        hash_path(path)
    assert caught.value.problems == (Problem(f"This file cannot be read: {reason}.", "Check its rights.", str(path)),)


@pytest.mark.parametrize(
    ("text", "name"),
    [("a b", "a-b"), ("x" * 59 + "-y", "x" * 59), ("lpt1", "set-lpt1"), ("com10", "com10"), ("\u4f60", "data-" + sha("\u4f60".encode())[:6])],
)  # fmt: skip
def test_a_name_is_one_for_every_file_system(text, name):
    assert slug(text) == name


def test_rows_that_the_account_does_not_know_are_a_broken_law(tmp_path, monkeypatch):
    monkeypatch.setattr("qlora_studio.data.sets.conversion.convert_all", lambda items, entry, columns: iter([]))
    with pytest.raises((LawBroken, StudioError)):
        import_file(write(tmp_path / "rows.jsonl", pairs(0, 1)), tmp_path / "sets")
    assert list((tmp_path / "sets").iterdir()) == []
