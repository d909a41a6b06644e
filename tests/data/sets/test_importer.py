"""An import is whole or not at all, the same content twice is one set, no prompt stands on both sides of a split."""

import json

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.data.readers.hub_set import HubSet
from qlora_studio.data.sets.importer import (
    import_file,
    import_hub,
    list_datasets,
    load_conversations,
    preview_file,
)
from qlora_studio.data.sets.sides import prompt_hash
from qlora_studio.data.sets.store import eval_prompts, remove_dataset


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(count, start=0):
    return [
        {"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(start, start + count)
    ]


@pytest.fixture
def home(tmp_path):
    return tmp_path / "datasets"


def test_the_same_content_twice_is_one_set(tmp_path, home):
    path = write(tmp_path / "Meine Daten.jsonl", pairs(5))
    first = import_file(path, home)
    assert (first.name, first.rows, first.format, first.unchanged) == ("meine-daten", 5, "prompt-completion", False)
    again = import_file(path, home)
    assert again == first.model_copy(update={"unchanged": True})
    copy = write(tmp_path / "meine daten.jsonl", pairs(5))
    assert import_file(copy, home).unchanged
    assert [report.name for report in list_datasets(home)] == ["meine-daten"]


def test_new_content_under_the_same_name_is_a_new_set(tmp_path, home):
    path = write(tmp_path / "rows.jsonl", pairs(5))
    stat = path.stat()
    first = import_file(path, home)
    changed = [{**row, "completion": row["completion"].replace("answer", "ANSWER")} for row in pairs(5)]
    write(path, changed)
    import os

    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    second = import_file(path, home)
    assert second.name == f"rows-{second.source_sha256[:8]}"
    assert next(load_conversations(home, second.name, "all")).turns[1].content == "ANSWER 0"
    assert next(load_conversations(home, first.name, "all")).turns[1].content == "answer 0"
    with pytest.raises(StudioError, match="There is already a data set 'rows' with other content"):
        import_file(path, home, name="rows")
    assert import_file(path, home, name="rows", replace=True).name == "rows"


def test_bad_rows_are_counted_and_nothing_is_written(tmp_path, home):
    rows = [*pairs(3), *({"prompt": f"q{number}"} for number in range(25))]
    with pytest.raises(StudioError) as caught:
        import_file(write(tmp_path / "rows.jsonl", rows), home)
    problems = caught.value.problems
    assert len(problems) == 11
    assert str(problems[0]) == ("rows.jsonl:4: field 'completion': This row has no such field. It has: prompt.")
    assert problems[-1].message == "25 rows cannot be imported; the first 10 are shown."
    assert list_datasets(home) == []


def test_bad_rows_are_skipped_by_choice_and_counted(tmp_path, home):
    path = write(tmp_path / "rows.jsonl", [*pairs(3), {"prompt": "q"}])
    report = import_file(path, home, skip_bad=True)
    assert (report.rows, report.skipped) == (3, 1)
    assert report.problems[0].startswith("rows.jsonl:4: field 'completion'")
    assert import_file(path, home, skip_bad=True).unchanged


def test_unused_columns_are_kept_and_listed(tmp_path, home):
    rows = [{**row, "topic": "x"} for row in pairs(3)]
    report = import_file(write(tmp_path / "rows.jsonl", rows), home)
    assert report.extra_fields == {"topic": 3}
    assert next(load_conversations(home, report.name)).extra == {"topic": "x"}


@pytest.mark.parametrize(("rows", "held_out"), [(1, 0), (2, 0), (3, 1), (10, 1), (100, 5), (1000, 50)])
def test_the_split_has_an_exact_size_and_a_minimum(tmp_path, home, rows, held_out):
    name = import_file(write(tmp_path / "rows.jsonl", pairs(rows)), home).name
    assert len(list(load_conversations(home, name, "eval"))) == held_out
    assert len(list(load_conversations(home, name, "train"))) == rows - held_out
    assert len(list(load_conversations(home, name, "all"))) == rows
    assert len(list(load_conversations(home, name, "eval", eval_share=0))) == 0


def test_no_prompt_stands_on_both_sides(tmp_path, home):
    rows = [{"prompt": f"question {number % 20}", "completion": f"answer {number}"} for number in range(200)]
    name = import_file(write(tmp_path / "rows.jsonl", rows), home).name
    sides = [{prompt_hash(row) for row in load_conversations(home, name, side, 0.3)} for side in ("train", "eval")]
    assert [len(side) for side in sides] == [14, 6]
    assert not sides[0] & sides[1]
    assert eval_prompts(home, name, 0.3) == sides[1]


def test_overlap_with_a_given_evaluation_file_is_counted_and_dropped_by_choice(tmp_path, home):
    train, held = write(tmp_path / "train.jsonl", pairs(20)), write(tmp_path / "eval.jsonl", pairs(6, start=16))
    report = import_file(train, home, eval_path=held)
    assert (report.rows, report.eval_rows, report.details["overlap"]) == (20, 6, 4)
    dropped = import_file(train, home, name="clean", eval_path=held, drop_overlap=True)
    assert (dropped.rows, dropped.eval_rows, dropped.details["overlap"]) == (16, 6, 4)
    assert len(list(load_conversations(home, "clean", "eval"))) == 6


def test_an_unknown_set_is_answered_with_the_known_ones(tmp_path, home):
    import_file(write(tmp_path / "rows.jsonl", pairs(3)), home)
    for name in ("other", "../other", "", "."):
        with pytest.raises(StudioError) as caught:
            load_conversations(home, name)
        assert caught.value.hint == "There are: rows."
    remove_dataset(home, "rows")
    assert list_datasets(home) == []


def test_a_preview_of_unknown_columns_offers_them_for_mapping(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"frage": "hi", "antwort": "ho"}])
    preview = preview_file(path)
    assert (preview.guess.format, preview.columns, preview.conversations) == ("", ("frage", "antwort"), ())
    mapped = preview_file(path, columns={"prompt": "frage", "completion": "antwort"})
    assert mapped.guess.format == "prompt-completion"
    assert [turn.content for turn in mapped.conversations[0].turns] == ["hi", "ho"]


@pytest.mark.parametrize(
    ("format", "columns", "message"),
    [
        ("alpaca", {"frage": "prompt"}, "field 'frage': The format 'alpaca' has no part 'frage'."),
        ("alpaca", {"output": "nope"}, "rows.jsonl:1: field 'nope': There is no column 'nope'."),
        ("nope", {}, "field 'data.format': There is no format 'nope'."),
    ],
)
def test_a_wrong_column_map_is_refused(tmp_path, home, format, columns, message):
    with pytest.raises(StudioError) as caught:
        import_file(write(tmp_path / "rows.jsonl", pairs(1)), home, format=format, columns=columns)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("My set 2", "my-set-2"),
        ("../x", "x"),
        ("a/b", "a-b"),
        ("a\0b", "a-b"),
        ("con", "set-con"),
        ("nul.txt", "set-nul.txt"),
        ("x.", "x"),
        ("-rf", "rf"),
        ("x" * 100, "x" * 60),
        ("\u202eevil", "evil"),
        ("日本", "data-cf2abf"),
        (".hidden", "hidden"),
    ],
)
def test_any_title_becomes_a_name_for_every_file_system(tmp_path, home, title, name):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "Once."}\n')
    report = import_file(path, home, name=title)
    assert (report.name, report.title) == (name, title)
    assert [place.name for place in home.iterdir()] == [name]
    assert len(list(load_conversations(home, title, "all"))) == 1


@pytest.mark.parametrize("name", ["nothing.jsonl", "a\0b"])
def test_a_missing_file_is_one_sentence(tmp_path, home, name):
    with pytest.raises(StudioError) as caught:
        import_file(tmp_path / name, home)
    assert "file" in caught.value.message and len(caught.value.problems) == 1


def test_the_hub_that_is_switched_off_is_one_sentence(home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StudioError) as caught:
        import_hub(HubSet("someone/something"), home)
    assert (
        str(caught.value)
        == "someone/something: The hub is switched off (HF_HUB_OFFLINE). Switch it on, or give a file."
    )
    with pytest.raises(StudioError, match="is not the id of a hub data set"):
        import_hub(HubSet("../etc/passwd"), home)


def cut_conversations(place):
    text = (place / "conversations.jsonl").read_text()
    (place / "conversations.jsonl").write_text(text[: len(text) // 2])


def lose_a_row(place):
    lines = (place / "conversations.jsonl").read_text().splitlines(keepends=True)
    (place / "conversations.jsonl").write_text("".join(lines[:-1]))


def cut_the_hashes(place):
    (place / "first-prompts.bin").write_bytes(b"abc")


def test_a_set_of_an_older_version_gets_its_hashes(tmp_path, home):
    import_file(write(tmp_path / "rows.jsonl", pairs(9)), home)
    before = (home / "rows" / "first-prompts.bin").read_bytes()
    (home / "rows" / "first-prompts.bin").unlink()
    assert len(list(load_conversations(home, "rows", "all"))) == 9
    assert (home / "rows" / "first-prompts.bin").read_bytes() == before


@pytest.mark.parametrize("harm", [cut_conversations, lose_a_row, cut_the_hashes])
def test_a_damaged_set_is_one_sentence(tmp_path, home, harm):
    import_file(write(tmp_path / "rows.jsonl", pairs(9)), home)
    harm(home / "rows")
    with pytest.raises(StudioError, match="The data set 'rows' is damaged") as caught:
        list(load_conversations(home, "rows", "all"))
    assert caught.value.hint == "Import it again."


def test_a_damaged_report_does_not_hide_the_other_sets(tmp_path, home):
    import_file(write(tmp_path / "rows.jsonl", pairs(3)), home)
    import_file(write(tmp_path / "more.jsonl", pairs(4)), home)
    (home / "rows" / "report.json").write_text("{")
    assert [report.name for report in list_datasets(home)] == ["more"]
    assert import_file(tmp_path / "rows.jsonl", home).name == "rows"
    assert [report.name for report in list_datasets(home)] == ["more", "rows"]
