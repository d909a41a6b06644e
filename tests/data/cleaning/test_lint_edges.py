"""Where each finding about rows begins and ends, and what exactly it shows."""

import pytest

from qlora_studio.core.conversation import Conversation, Source, Turn
from qlora_studio.core.dataset import Finding
from qlora_studio.core.errors import StudioError
from qlora_studio.data.cleaning import lint as lint_module
from qlora_studio.data.cleaning.lint import check_findings, lint


def chat(prompt, answer, line=1, file="r.jsonl"):
    turns = (Turn("user", prompt), Turn("assistant", answer))
    return Conversation(turns=turns, source=Source(file, line))


def text_row(text, line=1):
    return Conversation(text=text, source=Source("r.txt", line))


def findings(rows):
    return {finding.name: finding for finding in lint(rows)}


def test_a_finding_whole():
    rows = [chat(f"q{line} is?", "" if line == 2 else f"a{line}", line) for line in range(1, 5)]
    assert lint(rows) == (
        Finding(
            name="empty-answer",
            severity="error",
            count=1,
            message="1 row has an answer that is empty or blank: the model would learn to say nothing.",
            examples=("r.jsonl:2",),
            hint="Leave these rows out, or write the answers.",
            remedy="drop-empty-answers",
        ),
    )


def test_five_rows_are_shown_and_all_are_counted():
    found = findings(chat(f"q{line} is?", " ", line) for line in range(1, 8))["empty-answer"]
    assert found.examples == tuple(f"r.jsonl:{line}" for line in range(1, 6))
    assert found.message.startswith("7 rows have an answer")
    assert found.count == 7


def test_the_worst_is_shown_first_and_the_rest_in_the_order_of_the_table():
    rows = [
        chat("q1 is?", "one </s>", 1),
        chat("q2 is?", "", 2),
        Conversation(turns=(Turn("user", "q3"), Turn("user", "q4"), Turn("assistant", "a")), source=Source("r", 3)),
        Conversation(turns=(*chat("q5", "b").turns, Turn("user", "so")), source=Source("r", 4)),
        chat(" ", "jo@firm.de", 5),
    ]
    assert [(finding.name, finding.severity) for finding in lint(rows)] == [
        ("empty-answer", "error"),
        ("empty-prompt", "warning"),
        ("control-like", "warning"),
        ("email", "warning"),
        ("unanswered-end", "note"),
        ("odd-order", "note"),
    ]


def test_a_copy_in_another_file_is_named_with_both():
    rows = [
        chat("q1", "a1", 1, "one.jsonl"),
        chat("q2", "a2", 2, "one.jsonl"),
        chat("q3", "a3", 1, "two.jsonl"),
        chat("q1", "a1", 2, "two.jsonl"),
        chat("q2", "a2", 2**35, "three.jsonl"),
        chat("q3", "a3", 4, "one.jsonl"),
    ]
    assert findings(rows)["copy"].examples == (
        "two.jsonl:2: as one.jsonl:1",
        f"three.jsonl:{2**35}: as one.jsonl:2",
        "one.jsonl:4: as two.jsonl:1",
    )


@pytest.mark.parametrize(
    ("roles", "odd"),
    [
        ("user assistant", False),
        ("system user assistant user assistant", False),
        ("user assistant tool tool assistant", False),
        ("user system assistant", True),
        ("user assistant system user assistant", True),
        ("assistant user assistant", True),
        ("user user assistant", True),
        ("user assistant assistant", True),
        ("tool user assistant", True),
        ("system system user assistant", True),
    ],
)
def test_which_orders_of_turns_are_unusual(roles, odd):
    turns = tuple(Turn(role, f"{role} {number}") for number, role in enumerate(roles.split()))
    found = findings([Conversation(turns=turns, source=Source("r", 1)), chat("q", "a"), chat("p", "b")])
    assert set(found) == ({"odd-order"} if odd else set())


@pytest.mark.parametrize(
    ("turns", "names"),
    [
        ((Turn("user", "q"),), {"no-answer"}),
        ((Turn("user", "q"), Turn("assistant", "a"), Turn("user", "z")), {"unanswered-end"}),
        ((Turn("user", "\n"), Turn("assistant", "a"), Turn("user", "q"), Turn("assistant", "")), {"empty-answer", "empty-prompt"}),
        ((Turn("system", ""), Turn("user", "q"), Turn("assistant", "a")), set()),
    ],
)  # fmt: skip
def test_what_a_row_without_words_is_called(turns, names):
    assert set(findings([Conversation(turns=turns), chat("w", "x"), chat("y", "z")])) == names


def same_answers(same, rows, answer="Yes."):
    return [chat(f"q{row} {row}?", answer if row < same else f"a{row}", row + 1) for row in range(rows)]


@pytest.mark.parametrize(
    ("same", "rows", "named"),
    [(9, 12, False), (10, 12, True), (10, 50, True), (10, 51, False), (11, 51, True), (12, 60, True)],
)
def test_an_answer_is_repeated_from_ten_rows_and_a_fifth_of_all_on(same, rows, named):
    found = findings(same_answers(same, rows)).get("repeated-answer")
    assert (found is not None) == named
    if found:
        assert (found.count, found.examples) == (same, ("r.jsonl:1: 'Yes.'",))


def test_of_two_repeated_answers_the_commoner_is_named():
    rows = [*same_answers(10, 10, "No."), *same_answers(12, 12, "Yes.")]
    found = findings(rows)["repeated-answer"]
    assert (found.count, found.examples) == (12, ("r.jsonl:1: 'Yes.'",))


def test_a_long_repeated_answer_is_shown_by_its_first_sixty_characters():
    answer = "0123456789" * 7
    assert findings(same_answers(10, 10, answer))["repeated-answer"].examples == (f"r.jsonl:1: {answer[:60]!r}",)


def test_an_answer_whose_words_were_not_kept_is_shown_by_its_place(monkeypatch):
    monkeypatch.setattr(lint_module, "_FIRST_ANSWERS", 2)
    rows = [chat("p1", "one", 1), chat("p2", "two", 2), *same_answers(10, 10, "three")]
    assert findings(rows)["repeated-answer"].examples == ("r.jsonl:1",)
    assert findings(rows[1:])["repeated-answer"].examples == ("r.jsonl:1: 'three'",)


@pytest.mark.parametrize(
    ("same", "rows", "named"), [(9, 9, False), (10, 10, True), (10, 20, False), (11, 21, True), (10, 19, True)]
)
def test_questions_open_alike_from_ten_rows_and_more_than_half_on(same, rows, named):
    prompts = [f"What IS {row} here?" if row < same else f"w{row} x{row}" for row in range(rows)]
    found = findings(chat(prompt, f"a{row}") for row, prompt in enumerate(prompts)).get("one-opening")
    assert (found is not None) == named
    if found:
        assert (found.count, found.examples) == (same, ("'what is'",))


def test_rows_without_a_question_have_no_opening():
    assert "one-opening" not in findings(chat("", f"a{row}") for row in range(12))


@pytest.mark.parametrize(("rows", "few"), [(1, True), (2, True), (3, False)])
def test_fewer_than_three_rows_are_few(rows, few):
    found = findings(text_row("x" * (row + 1)) for row in range(rows)).get("few-rows")
    assert (found is not None) == few
    if found:
        assert (found.count, found.examples) == (rows, ())


def test_no_row_is_not_few():
    assert lint([]) == ()


@pytest.mark.parametrize(
    ("lengths", "outliers"),
    [
        # three quarters have 100 characters at most, and so has the first quarter: far more are more than four times as many
        ([100] * 19 + [401], {20: "401 characters, three in four rows have under 100"}),
        ([100] * 19 + [400], {}),
        ([100] * 18 + [401], {}),
        # the quarters are at 100 and 300: far more are more than 300 + 6 * 200
        ([100] * 12 + [300] * 10 + [1501], {23: "1501 characters, three in four rows have under 300"}),
        ([100] * 12 + [300] * 10 + [1500], {}),
        # at 100 and 110: 4 * 110 is further out than 110 + 6 * 10
        ([100] * 12 + [110] * 10 + [441], {23: "441 characters, three in four rows have under 110"}),
        ([100] * 12 + [110] * 10 + [440], {}),
    ],
)
def test_how_long_a_row_is_when_it_is_far_longer_than_the_others(lengths, outliers):
    found = findings(text_row("x" * length, line) for line, length in enumerate(lengths, 1)).get("length-outlier")
    shown = tuple(f"r.txt:{line}: {detail}" for line, detail in outliers.items())
    assert (found.examples if found else ()) == shown


ENGLISH, GERMAN, FRENCH = "the cat and the dog", "der Hund und die Katze", "le chat et la table"
SPANISH, ITALIAN, DUTCH = "el gato y los perros", "il gatto che non vola", "het huis van een man"


def in_languages(*texts):
    """Rows of which each twentieth, and no other, is looked at for its language."""
    return [text_row(texts[row // 20] if row % 20 == 0 else f"xyzzy {row}", row + 1) for row in range(20 * len(texts))]


def test_languages_are_shares_of_each_twentieth_row():
    found = findings(in_languages(ENGLISH, GERMAN, GERMAN))["languages"]
    assert found.message == "Languages, from a sample: German 67 %, English 33 %."
    assert found.count == 3


def test_one_language_is_no_finding_and_of_many_five_are_named():
    assert "languages" not in findings(in_languages(ENGLISH, ENGLISH))
    texts = [ENGLISH] * 3 + [GERMAN] * 3 + [FRENCH] * 2 + [SPANISH] * 2 + [ITALIAN] * 2 + [DUTCH]
    assert findings(in_languages(*texts))["languages"].message == (
        "Languages, from a sample: English 23 %, German 23 %, French 15 %, Spanish 15 %, Italian 15 %."
    )


STARTED = "There is much to say about this, and all of it was said at length before today. "
SURE = STARTED + "After that we went down to the shore and saw the"
LIKELY = STARTED + "After that we went down to the shore and saw {} boats"


def unfinished(sure, likely, rows):
    """The finding for a set in which so many answers end in the middle."""
    answers = [SURE] * sure + [LIKELY.format(row) for row in range(likely)] + ["Yes."] * (rows - sure - likely)
    return findings(chat(f"q{row}", answer, row + 1) for row, answer in enumerate(answers)).get("unfinished-answer")


@pytest.mark.parametrize(
    ("sure", "likely", "rows", "count"),
    [
        (1, 0, 5, 1),
        (1, 1, 5, 2),
        (0, 3, 5, 3),
        (0, 4, 5, 0),
        (2, 4, 6, 2),
        (0, 6, 50, 6),
        (0, 7, 50, 0),
        (1, 7, 50, 1),
    ],
)
def test_likely_ends_are_a_manner_where_more_than_an_eighth_have_them(sure, likely, rows, count):
    found = unfinished(sure, likely, rows)
    assert (found.count if found else 0) == count
    if found:
        lines = range(1, count + 1)  # those that are sure come first
        assert [one.partition(": …")[0] for one in found.examples] == [f"r.jsonl:{line}" for line in lines][:5]


def test_an_unfinished_answer_is_shown_by_its_last_forty_characters_the_sure_ones_first():
    rows = [chat("q1", LIKELY.format("big"), 1), chat("q2", SURE, 2), chat("q3", "Yes.", 3)]
    assert findings(rows)["unfinished-answer"].examples == (
        f"r.jsonl:2: …{SURE[-40:]!r}",
        f"r.jsonl:1: …{LIKELY.format('big')[-40:]!r}",
    )


def test_what_is_shown_of_signs_in_a_text():
    secret = "hf_" + "Zk3QpX9vLw2RtY7mNc4HbS8dFg6JxA1e"
    text = f"{secret} and AKIA{'A' * 16}, jo@firm.de and jim@firm.de, a\u200bb\u2060, </s> <s>, CafÃ© ZÃ¼rich"
    assert {name: finding.examples for name, finding in findings([chat("q", text, 7)]).items()} == {
        "secret": ("r.jsonl:7: hf_Zk3Q…",),
        "email": ("r.jsonl:7: jo@firm.de",),
        "odd-characters": ("r.jsonl:7: U+200B",),
        "control-like": ("r.jsonl:7: </s>",),
        "mojibake": ("r.jsonl:7: 'Ã©'",),
        "few-rows": (),
    }


def test_a_note_stops_nobody_and_an_error_without_a_place_is_said_without_one():
    note = Finding(name="languages", severity="note", count=1, message="Two.")
    warning = Finding(name="copy", severity="warning", count=1, message="Copies.")
    check_findings([note, warning])
    wrong = Finding(name="secret", severity="error", count=1, message="A  key.", hint="")
    with pytest.raises(StudioError) as caught:
        check_findings([note, wrong], ["copy"])
    assert str(caught.value) == "A key. Or accept it by name: data.accepted = secret."
