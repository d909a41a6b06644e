"""Rows that name their parent: every path once, every row counted once, and why a row is in none."""

from __future__ import annotations

import pytest

from qlora_studio.core.conversation import Conversation, Source
from qlora_studio.core.errors import Problem
from qlora_studio.data.formats.threads import join_threads
from qlora_studio.data.readers.rows import Row
from tests.data.formats.made import AT, A, S, U, read, reason, refused, turns_of


def joined(*rows, columns=None):
    items = [Row("t.jsonl", line, row) if isinstance(row, dict) else row for line, row in enumerate(rows, 1)]
    return list(join_threads(items, columns or {}))


def say(name, parent, role="user", **more):
    return {"id": name, "parent_id": parent, "role": role, "text": f"{role} {name}", **more}


def test_each_path_is_a_conversation_and_each_row_is_counted_once():
    rows = [say(1, None), say("a", "1", "assistant", lang="de"), say("b", 1, "assistant"), say("c", "a")]
    assert joined(*rows) == [
        (
            Conversation(
                turns=turns_of((U, "user 1"), (A, "assistant b")), source=Source("t.jsonl", 3),
                extra={"id.1": "1", "id.b": "b"},
            ),
            2,
        ),
        (
            Conversation(
                turns=turns_of((U, "user 1"), (A, "assistant a"), (U, "user c")), source=Source("t.jsonl", 4),
                extra={"id.1": "1", "id.a": "a", "lang": "de", "id.c": "c"},
            ),
            2,
        ),
    ]  # fmt: skip


def fault(message, line, hint="Fix the parent ids.", field="parent_id"):
    return Problem(message, hint, f"t.jsonl:{line}", field)


LOST = "The parent 'x' is not in this file."


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([say("a", "x")], [fault(LOST, 1, "Add it, or empty the field.")]),
        (
            [say("a", "x"), say("b", "a")],
            [fault(LOST, 1, "Add it, or empty the field."), fault(f"A row above this one cannot be used: {LOST}", 2)],
        ),
        (
            [say("b", "a"), say("a", "x")],
            [fault(f"A row above this one cannot be used: {LOST}", 1), fault(LOST, 2, "Add it, or empty the field.")],
        ),
        (
            [say("a", "b"), say("b", "a")],
            [fault("The parents go round in a circle.", 1), fault("The parents go round in a circle.", 2)],
        ),
        ([say("a", "a")], [fault("The parents go round in a circle.", 1)]),
        (
            [say("a", "b"), say("b", "a"), say("c", "a")],
            [
                fault("The parents go round in a circle.", 1),
                fault("The parents go round in a circle.", 2),
                fault("The parents go round in a circle.", 3),
            ],
        ),
        ([say(None, None)], [fault("This row has no id.", 1, "Give it one.", "id")]),
        (["known", say("a", "x")], ["known", fault(LOST, 2, "Add it, or empty the field.")]),
    ],
)
def test_why_a_row_is_in_no_conversation(rows, found):
    assert joined(*rows) == found


def test_an_id_that_comes_twice_is_refused_where_it_comes_again():
    first, again, *more = joined(say("a", ""), say("a", None))[::-1]
    assert again == Problem("The id 'a' stands at t.jsonl:1 as well.", "Give each row its own.", "t.jsonl:2", "id")
    assert first[0].turns == turns_of((U, "user a")) and first[1] == 1 and not more


def test_a_reply_that_cannot_be_read_takes_its_question_with_it():
    found = joined(say("a", None), say("b", "a", "pope"))
    assert [type(one) for one in found] == [Problem, tuple]
    assert found[0].where == "t.jsonl:2" and found[1][0].turns == turns_of((U, "user a"))


@pytest.mark.parametrize(
    ("values", "turns", "extra"),
    [
        ({"role": "bot", "text": "a", "n": 1}, ((A, "a"),), {"n": 1}),
        ({"role": "user", "content": "a"}, ((U, "a"),), {}),
        ({"prompt": "q", "output": "a", "system": "s"}, ((S, "s"), (U, "q"), (A, "a")), {}),
        ({"instruction": "do", "input": "x", "response": "a"}, ((U, "do\n\nx"), (A, "a")), {}),
        ({"instruction": "do", "input": "", "response": "a"}, ((U, "do"), (A, "a")), {}),
        ({"question": "q", "input": "x", "assistant": "a"}, ((U, "q"), (A, "a")), {"input": "x"}),
    ],
)
def test_one_row_alone(values, turns, extra):
    assert read(values, "thread") == Conversation(turns=turns_of(*turns), source=AT, extra=extra)


@pytest.mark.parametrize(
    ("values", "field"),
    [({"role": "user"}, "text"), ({"output": "a"}, "prompt"), ({"prompt": "q"}, "output"), ({"role": "x", "text": "a"}, "text.role")],
)  # fmt: skip
def test_what_a_row_of_a_thread_lacks(values, field):
    assert refused(values, "thread").field == field


@pytest.mark.parametrize(
    ("values", "parent"),
    [
        ({"id": 1, "parent_id": None, "role": "User ", "text": "a"}, "parent_id"),
        ({"message_id": 1, "parent": 2, "role": "bot", "content": "a"}, "parent"),
        ({"index": 1, "parent": 2, "question": "q", "answer": "a"}, "parent"),
        ({"id": 1, "parent_id": 2, "question": "q"}, ""),
        ({"id": 1, "parent_id": 2, "answer": "a"}, ""),
        ({"id": 1, "parent_id": 2, "role": "pope", "text": "a"}, ""),
        ({"id": 1, "parent_id": 2, "role": 3, "text": "a"}, ""),
        ({"id": 1, "parent_id": 2, "role": "user"}, ""),
        ({"id": None, "parent_id": 2, "role": "user", "text": "a"}, ""),
        ({"id": 1, "role": "user", "text": "a"}, ""),
    ],
)
def test_a_thread_has_ids_parents_and_something_said(values, parent):
    assert reason(values, "thread") == (f"the rows name their parent in '{parent}'" if parent else "")
