"""Findings are kept beside a set, and cleaning rewrites all of it or nothing."""

from __future__ import annotations

import hashlib
import json
from array import array

import pytest

from qlora_studio.core.conversation import Conversation, Turn
from qlora_studio.core.errors import StudioError
from qlora_studio.data.cleaning.clean import apply_steps, lint_dataset
from qlora_studio.data.cleaning.steps import cleaned
from qlora_studio.data.sets.importer import import_file
from qlora_studio.data.sets.sides import prompt_hash
from qlora_studio.data.sets.store import find_dataset, load_conversations


@pytest.fixture
def home(tmp_path):
    """Four rows and a separate evaluation file of three; one of each has no answer."""
    rows = [{"prompt": f"q\u00e9{row}", "completion": "" if row == 1 else f"a{row}"} for row in range(7)]
    for name, part in (("rows", rows[:4]), ("held", [*rows[4:6], {"prompt": "z", "completion": " "}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    import_file(tmp_path / "rows.jsonl", tmp_path / "sets", eval_path=tmp_path / "held.jsonl")
    return tmp_path / "sets"


def test_findings_are_read_back_as_long_as_the_content_is_the_same(home):
    kept = find_dataset(home, "rows") / "findings.json"
    first = lint_dataset(home, "rows")
    assert [finding.name for finding in first] == ["empty-answer"]
    values = json.loads(kept.read_text(encoding="utf-8"))
    values["findings"][0]["count"] = 99
    kept.write_text(json.dumps(values))
    assert lint_dataset(home, "rows")[0].count == 99, "they were looked for again"
    for other in (
        {**values, "sha256": "0"},
        {"sha256": values["sha256"]},
        [],
        {**values, "findings": [{}]},
        {**values, "findings": 3},
    ):
        kept.write_text(json.dumps(other))
        assert lint_dataset(home, "rows") == first
        assert json.loads(kept.read_text())["findings"][0]["count"] == 1, "what was found anew is kept"
    assert not kept.with_suffix(".part").exists()


def test_findings_are_kept_as_people_write_them(tmp_path):
    (tmp_path / "more.jsonl").write_text('{"prompt": "q", "completion": "Caf\u00c3\u00a9"}\n')
    import_file(tmp_path / "more.jsonl", tmp_path / "sets")
    lint_dataset(tmp_path / "sets", "more")
    assert "\u00c3\u00a9" in (find_dataset(tmp_path / "sets", "more") / "findings.json").read_text(encoding="utf-8")


def test_cleaning_rewrites_rows_held_out_rows_hashes_and_report(home):
    before = {side: list(load_conversations(home, "rows", side)) for side in ("train", "eval")}
    report = apply_steps(home, "rows", ["drop-empty-answers"])
    place = find_dataset(home, "rows")
    after = {side: list(load_conversations(home, "rows", side)) for side in ("train", "eval")}
    assert after == {side: list(cleaned(rows, ["drop-empty-answers"])) for side, rows in before.items()}
    files = [(place / name).read_bytes() for name in ("conversations.jsonl", "evaluation.jsonl")]
    held_out = hashlib.sha256(files[1]).digest()
    assert report.sha256 == hashlib.sha256(files[0] + held_out).hexdigest()
    assert (report.rows, report.eval_rows, report.details["rows_imported"]) == (3, 2, 4)
    assert (place / "first-prompts.bin").read_bytes() == array("Q", map(prompt_hash, after["train"])).tobytes()
    assert json.loads((place / "report.json").read_text()) == report.model_dump(mode="json")
    assert (place / "report.json").read_text().startswith('{\n  "name"'), "for people to read"
    again = apply_steps(home, "rows", ["drop-copies"])
    assert again.details["cleaned_by"] == ["drop-empty-answers", "drop-copies"]
    assert (again.rows, again.details["rows_imported"], again.sha256) == (3, 4, report.sha256)


def test_a_set_without_held_out_rows_gets_none(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "q{row}", "completion": "a"}}\n' for row in range(4)))
    import_file(tmp_path / "rows.jsonl", tmp_path / "sets")
    report = apply_steps(tmp_path / "sets", "rows", ["drop-copies"])
    assert (report.rows, report.eval_rows) == (4, 0)
    assert (
        report.sha256 == hashlib.sha256((tmp_path / "sets" / "rows" / "conversations.jsonl").read_bytes()).hexdigest()
    )


def test_a_step_that_does_not_exist_is_refused_before_any_row_is_read(home):
    (find_dataset(home, "rows") / "conversations.jsonl").write_text("damaged")
    with pytest.raises(StudioError, match=r"There is no cleaning step 'magic'\."):
        apply_steps(home, "rows", ["drop-copies", "magic"])


def test_cleaning_leaves_nothing_half_done(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "completion": ""}\n')
    import_file(tmp_path / "rows.jsonl", tmp_path / "sets")
    before = {path.name: path.read_bytes() for path in (tmp_path / "sets" / "rows").iterdir()}
    with pytest.raises(StudioError) as caught:
        apply_steps(tmp_path / "sets", "rows", ["drop-empty-answers"])
    assert str(caught.value) == "rows: These steps would leave no row. Clean the source instead."
    assert {path.name: path.read_bytes() for path in (tmp_path / "sets" / "rows").iterdir()} == before
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["rows"]


U, A = Turn("user", "q"), Turn("assistant", "a")


@pytest.mark.parametrize(
    ("turns", "left"),
    [((U, A, U), 2), ((U, A, U, A, U, U), 4), ((A, U), 1), ((U, A), 2), ((U, U), 2), ((), 0)],
)
def test_questions_behind_the_last_answer_go(turns, left):
    row = Conversation(turns=turns, text=None if turns else "raw")
    (made,) = cleaned([row], ["drop-unanswered-end"])
    assert made == Conversation(turns=turns[:left], text=row.text)
