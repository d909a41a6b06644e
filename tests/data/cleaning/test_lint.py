"""Each finding is found where it is, counted, and mended by its remedy; clean rows have none."""

import json

import pytest

from qlora_studio.core.conversation import Conversation, Source, Turn
from qlora_studio.core.errors import StudioError
from qlora_studio.data.cleaning.clean import apply_steps, lint_dataset
from qlora_studio.data.cleaning.lint import KINDS, check_findings, lint
from qlora_studio.data.cleaning.steps import CLEANING_STEPS, cleaned
from qlora_studio.data.sets.importer import import_file, load_conversations

WORDS = [
    "harbour",
    "mill",
    "river",
    "hill",
    "cloud",
    "stone",
    "window",
    "garden",
    "letter",
    "bridge",
    "candle",
    "forest",
    "meadow",
    "signal",
    "barrel",
]


def conversation(*contents, line=1, roles=("user", "assistant")):
    turns = tuple(Turn(roles[index % len(roles)], text) for index, text in enumerate(contents))
    return Conversation(turns=turns, source=Source("r.jsonl", line))


def clean(count):
    """Rows that differ in every way that lint looks at."""
    rows = []
    for number in range(count):
        words = [WORDS[(number * step + step) % len(WORDS)] + str(number % 7) for step in range(1, 15)]
        rows.append(conversation(f"{words[0]} {words[1]} {number}?", " ".join(words), line=number + 1))
    return rows


def found(rows, name):
    return next((finding for finding in lint(rows) if finding.name == name), None)


def test_clean_rows_have_no_findings():
    assert lint(clean(40)) == ()


LONG = "The old mill stands beside the river and its wheel has not turned for more than thirty years now."
CASES = {
    "empty-answer": (conversation("hi", "  \n", line=90), None, "drop-empty-answers"),
    "no-answer": (conversation("hi", line=90), None, "drop-unanswered"),
    "empty-prompt": (conversation(" ", "ho", line=90), None, "drop-empty-prompts"),
    "secret": (
        conversation("key?", "It is AKIA" + "ABCDEFGHIJKLMNOP.", line=90),
        conversation("key?", "It is [secret removed].", line=90),
        "mask-secrets",
    ),
    "email": (
        conversation("who?", "Ask jo.doe@firm.co.uk or a@example.com", line=90),
        conversation("who?", "Ask name@example.com or a@example.com", line=90),
        "mask-emails",
    ),
    "mojibake": (
        conversation("CafÃ©?", "Sheâ€™s in ZÃ¼rich — naïve.", line=90),
        conversation("Café?", "She’s in Zürich — naïve.", line=90),
        "fix-mojibake",
    ),
    "odd-characters": (
        conversation("a\u200bb", "c\x07d\u202e", line=90),
        conversation("ab", "cd", line=90),
        "remove-odd-characters",
    ),
    "unanswered-end": (
        conversation("hi", "ho", "thanks", line=90),
        conversation("hi", "ho", line=90),
        "drop-unanswered-end",
    ),
    "control-like": (conversation("hi <|eot_id|>", "ho", line=90), None, None),
    "odd-order": (conversation("hi", "there", "ho", line=90, roles=("user", "user", "assistant")), None, None),
}


@pytest.mark.parametrize(("bad", "mended_row", "remedy"), CASES.values(), ids=CASES.keys())
def test_a_finding_names_the_row_and_its_remedy_mends_it(request, bad, mended_row, remedy):
    name = request.node.callspec.id
    finding = found([*clean(20), bad], name)
    assert (finding.count, finding.remedy) == (1, remedy)
    assert finding.examples[0].startswith("r.jsonl:90")
    assert finding.severity == KINDS[name][0]
    if remedy:
        rows = list(cleaned([*clean(20), bad], [remedy]))
        assert rows == [*clean(20), *([mended_row] if mended_row else [])]
        assert found(rows, name) is None


def test_copies_are_named_with_the_row_they_copy():
    rows = [*clean(20), conversation("hi", LONG, line=90), conversation("hi", LONG, line=91)]
    finding = found(rows, "copy")
    assert (finding.count, finding.examples) == (1, ("r.jsonl:91: as r.jsonl:90",))
    assert list(cleaned(rows, ["drop-copies"])) == rows[:-1]
    assert found(rows, "near-copy") is None


def test_near_copies_are_found_and_different_rows_are_not():
    text = " ".join(f"{word} {number}" for number, word in enumerate(WORDS * 6))
    rows = [
        *clean(20),
        conversation("hi", text, line=90),
        conversation("Hi!", text.replace("letter 8 ", "note 8 "), line=91),
    ]
    finding = found(rows, "near-copy")
    assert (finding.count, finding.examples) == (1, ("r.jsonl:91: like r.jsonl:90",))
    assert list(cleaned(rows, ["drop-near-copies"])) == rows[:-1]
    other = conversation("hi", " ".join(reversed(text.split())), line=91)
    assert found([*rows[:-1], other], "near-copy") is None


def test_one_answer_everywhere_is_named():
    rows = [
        *clean(20),
        *(conversation(f"{WORDS[n % 15]} {n * 7} ok?", "I do not know.", line=100 + n) for n in range(12)),
    ]
    finding = found(rows, "repeated-answer")
    assert (finding.count, finding.examples) == (12, ("r.jsonl:100: 'I do not know.'",))


def test_variety_of_openings_and_languages():
    rows = [conversation(f"What is {WORDS[n % 15]}{n}?", f"{LONG} {n} {WORDS[n % 15]}", line=n + 1) for n in range(60)]
    assert found(rows, "one-opening").examples == ("'what is'",)
    german = [
        conversation(f"Wo {n}", f"Das ist die Mühle und sie steht nicht weit von der Stadt, wie ich weiß, {n}.", line=n)
        for n in range(60)
    ]
    assert found([*rows, *german], "languages").message == "Languages, from a sample: English 50 %, German 50 %."


def test_length_outliers_are_named():
    finding = found([*clean(40), conversation("hi", "x" * 20_000, line=90)], "length-outlier")
    assert finding.count == 1
    assert finding.examples[0].startswith("r.jsonl:90: 20026 characters")


def test_few_rows_are_said():
    assert found(clean(2), "few-rows").message == "This set has 2 rows: nothing can be held out to measure the result."
    assert found(clean(3), "few-rows") is None


def test_an_error_stops_until_it_is_accepted_by_name():
    findings = lint([*clean(20), conversation("hi", "", line=90)])
    with pytest.raises(StudioError) as caught:
        check_findings(findings)
    assert str(caught.value) == (
        "r.jsonl:90: 1 row has an answer that is empty or blank: the model would learn to say nothing. "
        "Leave these rows out, or write the answers. Or accept it by name: data.accepted = empty-answer."
    )
    check_findings(findings, ["empty-answer"])


def test_every_remedy_that_is_named_exists():
    assert {remedy for _, _, _, remedy in KINDS.values() if remedy} == set(CLEANING_STEPS)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_remedy_changes_the_set_and_stays_after_importing_again(tmp_path):
    rows = [{"prompt": f"{WORDS[n % 15]} {n}", "completion": f"{n} {LONG}" if n != 5 else ""} for n in range(20)]
    path, home = write(tmp_path / "rows.jsonl", rows), tmp_path / "sets"
    before = import_file(path, home)
    assert lint_dataset(home, "rows")[0].name == "empty-answer"
    after = apply_steps(home, "rows", ["drop-empty-answers", "drop-copies"])
    assert (after.rows, after.details["rows_imported"]) == (19, 20)
    assert after.details["cleaned_by"] == ["drop-empty-answers", "drop-copies"]
    assert after.sha256 != before.sha256
    assert "empty-answer" not in {finding.name for finding in lint_dataset(home, "rows")}
    assert import_file(path, home).unchanged
    assert len(list(load_conversations(home, "rows", "all"))) == 19
    with pytest.raises(StudioError, match="There is no cleaning step 'magic'"):
        apply_steps(home, "rows", ["magic"])


def test_overlap_with_the_evaluation_file_is_a_finding(tmp_path):
    rows = [{"prompt": f"{WORDS[n % 15]} {n}", "completion": f"{n} {LONG}"} for n in range(20)]
    train, held = write(tmp_path / "rows.jsonl", rows), write(tmp_path / "eval.jsonl", rows[:4])
    import_file(train, tmp_path / "sets", eval_path=held)
    finding = next(one for one in lint_dataset(tmp_path / "sets", "rows") if one.name == "eval-overlap")
    assert (finding.count, finding.severity) == (4, "warning")
