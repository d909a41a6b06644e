"""One conversation through templates written in Python: prompts, closed answers, what is refused and with which hint."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qlora_studio.core.conversation import Conversation, Source, ToolCall, Turn
from qlora_studio.core.errors import Problem, StudioError, TemplateStopped
from qlora_studio.data.render.control import ControlTokenTyped
from qlora_studio.data.render.templated_row import RowRefused, TemplatedRow, _without
from qlora_studio.data.render.traits import Traits

S, U, A, V, B = (
    Turn("system", "s1"),
    Turn("user", "q1"),
    Turn("assistant", "a1"),
    Turn("user", "q2"),
    Turn("assistant", "a2"),
)
CALL = Turn("assistant", "", tool_calls=(ToolCall("f", '{"x": "y9"}'),))
TOLD = Turn("tool", "t9")
PLAIN = Traits(end_of_turn=";", ends=(";",))
AT = Source("r", 5)


def say(message):
    calls = "".join(
        f"<{call['function']['name']}>{call['function']['arguments']}" for call in message.get("tool_calls", ())
    )
    thought = message.get("reasoning_content")
    return f"{message['role'][0]}:{f'({thought})' if thought else ''}{message['content']}{calls};"


def plain(messages, tools=(), add_generation_prompt=False, variables=None):
    opened = "".join(f"[{tool['name']}]" for tool in tools)
    return opened + "".join(map(say, messages)) + ("a:" if add_generation_prompt else "")


def row_of(*turns, render=plain, traits=PLAIN, policy="keep", controls=(), **more):
    tokenizer = SimpleNamespace(render=render, control_tokens=dict.fromkeys(controls, 1))
    return TemplatedRow(Conversation(turns=turns, source=AT, **more), tokenizer, traits, policy)


def spans_of(draft):
    return [draft.text[start:end] for start, end in draft.spans]


def refusal(call):
    with pytest.raises(RowRefused) as caught:
        call()
    (problem,) = caught.value.problems
    return caught.value.finding, problem.message, problem.hint, problem.where, problem.field


@pytest.mark.parametrize(
    ("turns", "wanted", "train_on", "text", "spans", "starts"),
    [
        ((U, A), {1}, "answers", "u:q1;a:a1;", ["a1;"], (7,)),
        ((S, U, A, V, B), {2, 4}, "answers", "s:s1;u:q1;a:a1;u:q2;a:a2;", ["a1;", "a2;"], (12, 22)),
        ((U, A, V, B), {3}, "last_answer", "u:q1;a:a1;u:q2;a:a2;", ["a2;"], (7, 17)),
        ((U, A, V, B), {1}, "answers", "u:q1;a:a1;", ["a1;"], (7,)),
        ((U, A), {0, 1}, "answers", "u:q1;a:a1;", ["q1", "a1;"], (7,)),
        ((U, A, V), {0, 1, 2}, "everything", "u:q1;a:a1;u:q2;", ["u:q1;a:a1;u:q2;"], (7,)),
        ((U, A, V), {0, 2}, "everything", "u:q1;a:a1;u:q2;", ["u:q1;a:", "u:q2;"], (7,)),
        ((U, A), {1}, "everything", "u:q1;a:a1;", ["u:", ";a:a1;"], (7,)),
        ((A, U, B), {0, 2}, "answers", "a:a1;u:q1;a:a2;", ["a1;", "a2;"], (2, 12)),
    ],
)
def test_a_row_that_is_rendered_whole(turns, wanted, train_on, text, spans, starts):
    row = row_of(*turns)
    (draft,) = row.whole(wanted, train_on)
    assert (draft.text, spans_of(draft), draft.starts) == (text, spans, starts)
    assert (draft.conversation, draft.escapes, draft.ends_at_span) == (row.conversation, row.escapes, True)


def rewriting(messages, **more):
    """Only the last turn carries its number: earlier turns are rewritten."""
    words = [
        {**message, "content": message["content"] + ("!" if at == len(messages) - 1 else "")}
        for at, message in enumerate(messages)
    ]
    return plain(words, **more)


def test_a_template_that_rewrites_makes_a_draft_of_each_answer():
    row = row_of(
        U,
        A,
        V,
        B,
        render=lambda messages, **more: rewriting(messages, **more).replace("q1!", "q1").replace("q2!", "q2"),
    )
    assert row.whole({1, 3}, "answers") == []
    drafts = [row.single(1), row.single(3)]
    assert [(draft.text, spans_of(draft), draft.starts) for draft in drafts] == [
        ("u:q1;a:a1!;", ["a1!;"], (7,)), ("u:q1;a:a1;u:q2;a:a2!;", ["a2!;"], (7, 17)),
    ]  # fmt: skip
    assert refusal(lambda: row.single(2)) == (
        "template-rewrites", "This template rewrites earlier turns, so only answers can be trained with it.",
        "Train on answers, or choose another template.", "r:5", "turn 3",
    )  # fmt: skip


CHOOSE = "Choose another template, or leave such rows out."


@pytest.mark.parametrize(
    ("turns", "change", "problem"),
    [
        ((S, U, A), ("s1", ""), ("The chat template drops or reorders turn 1 (system).", CHOOSE, "turn 1")),
        ((U, A, V, B), ("q2", ""), ("The chat template drops or reorders turn 3 (user).", CHOOSE, "turn 3")),
        ((U, CALL), ("y9", ""), (
            "The chat template drops the argument 'y9' of 'f' of turn 2.",
            "Choose a template with tools (chatml-tools), give the row its tools, or leave such rows out.", "turn 2",
        )),
        ((CALL, TOLD, B), ("y9", ""), (
            "The chat template drops the argument 'y9' of 'f' of turn 1.",
            "Choose a template with tools (chatml-tools), give the row its tools, or leave such rows out.", "turn 1",
        )),
        ((U, CALL, TOLD, B), ("t9", ""), ("The chat template drops what the tool said of turn 3.", CHOOSE, "turn 3")),
        ((U, CALL, TOLD, B), ("<f>", ""), (
            "The chat template drops the call of 'f' of turn 2.",
            "Choose a template with tools (chatml-tools), give the row its tools, or leave such rows out.", "turn 2",
        )),
    ],
)  # fmt: skip
def test_what_a_template_drops_is_named_by_its_turn(turns, change, problem):
    row = row_of(*turns, render=lambda messages, **more: plain(messages, **more).replace(*change))
    answers = {at for at, turn in enumerate(turns) if turn.role == "assistant"}
    message, hint, field = problem
    assert refusal(lambda: row.whole(answers, "answers")) == ("template-drops", message, hint, "r:5", field)
    assert refusal(lambda: row.single(max(answers)))[:2] == ("template-drops", message)


def test_reasoning_that_is_dropped_has_a_hint_of_its_own():
    hint = "Choose another template, move the reasoning into the answer, or leave such rows out."
    row = row_of(U, Turn("assistant", "a1", reasoning="r1"), traits=Traits(end_of_turn=";", ends=(";",), knows_reasoning=True),
                 render=lambda messages, **more: plain(messages, **more).replace("(r1)", ""))  # fmt: skip
    expected = ("template-drops", "The chat template drops the reasoning of turn 2.", hint, "r:5", "turn 2")
    assert refusal(lambda: row.whole({1}, "answers")) == expected
    lost = row_of(U, Turn("assistant", "a1", reasoning="r1"), traits=Traits(end_of_turn=";", ends=(";",), knows_reasoning=True),
                  render=lambda messages, **more: plain(messages, **more).replace("a1", ""))  # fmt: skip
    assert refusal(lambda: lost.whole({1}, "answers"))[2] == CHOOSE


TOOLED = Traits(end_of_turn=";", ends=(";",), knows_tools=True)


def test_tools_are_given_to_the_template_and_must_come_back():
    row = row_of(U, A, traits=TOOLED, tools=({"name": "look"},))
    assert row.whole({1}, "answers")[0].text == "[look]u:q1;a:a1;"
    dropped = row_of(
        U, A, traits=TOOLED, tools=({"name": "look"},), render=lambda messages, tools, **more: plain(messages, **more)
    )
    assert refusal(lambda: dropped.whole({1}, "answers")) == (
        "template-drops", "The chat template drops the tool 'look'.", CHOOSE, "r:5", "turn 1",
    )  # fmt: skip
    said = row_of(
        U, A, traits=TOOLED, tools=({"name": "a1"},), render=lambda messages, tools, **more: plain(messages, **more)
    )
    assert refusal(lambda: said.single(1))[1] == "The chat template drops the tool 'a1'.", (
        "the answer's words are its own"
    )
    assert refusal(lambda: row_of(U, A, tools=({"name": "look"},))) == (
        "tools-unknown", "This row brings tools, and the chat template knows none.",
        "Choose a model or a template with tools (chatml-tools), or leave such rows out.", "r:5", "tools",
    )  # fmt: skip


def test_a_system_prompt_may_move_and_a_tool_may_be_spelled_anew():
    moved = row_of(
        U,
        S,
        A,
        render=lambda messages, **more: "s1 " + plain([one for one in messages if one["role"] != "system"], **more),
    )
    assert spans_of(moved.whole({2}, "answers")[0]) == ["a1;"]
    told = Turn("tool", '{"k": "t9"}')
    spelled = row_of(
        U, CALL, told, B, render=lambda messages, **more: plain(messages, **more).replace('{"k": "t9"}', "k=t9")
    )
    assert spans_of(spelled.whole({1, 3}, "answers")[0])[-1] == "a2;"
    assert (
        refusal(lambda: spelled.whole({2, 3}, "answers"))[1] == "The chat template writes this turn in its own words."
    )


def test_the_first_turn_that_the_template_words_anew_is_named_where_it_was_to_be_trained():
    def spelling(messages, **more):
        return plain(messages, **more).replace('{"k": "t9"}', "k=t9").replace('{"k": "t8"}', "k=t8")

    turns = (U, CALL, Turn("tool", '{"k": "t9"}'), Turn("tool", '{"k": "t8"}'), B)
    row = row_of(*turns, render=spelling)
    assert refusal(lambda: row.whole({2, 3, 4}, "answers")) == (
        "template-drops", "The chat template writes this turn in its own words.", CHOOSE, "r:5", "turn 3",
    )  # fmt: skip
    (draft,) = row_of(*turns[:3], render=spelling).whole({2}, "everything")
    assert (draft.text, spans_of(draft)) == ("u:q1;a:<f>{'x': 'y9'};t:k=t9;", ["u:", ";a:", "t:k=t9;"])


def test_words_may_stand_at_the_very_beginning_of_the_text():
    bare = row_of(U, A, render=lambda messages, **more: plain(messages, **more).removeprefix("u:"))
    assert bare.whole({0, 1}, "answers")[0].spans == ((0, 2), (5, 8))
    told = row_of(TOLD, B, render=lambda messages, **more: plain(messages, **more).removeprefix("t:"))
    assert told.whole({0, 1}, "answers")[0].spans == ((0, 2), (5, 8))
    system = row_of(S, U, A, render=lambda messages, **more: plain(messages, **more).removeprefix("s:"))
    assert system.whole({0, 2}, "answers")[0].spans == ((0, 2), (10, 13))


def thinking(messages, add_generation_prompt=False, variables=None, end="\n", **more):
    """A prompt opens the reasoning where it is asked for; the whole conversation shows none."""
    prompt = "a:<think>" + end if (variables or {}).get("enable_thinking") else "a:"
    words = [{name: value for name, value in message.items() if name != "reasoning_content"} for message in messages]
    return plain(words, **more) + (prompt if add_generation_prompt else "")


THINKS = Traits(
    end_of_turn=";",
    ends=(";",),
    knows_thinking=True,
    knows_reasoning=True,
    knows_reasoning_in_calls=True,
    knows_tools=True,
)


@pytest.mark.parametrize(("end", "closing"), [("\n", "\n</think>\n\n"), ("", "\n\n</think>\n\n")])
def test_an_answer_closes_the_reasoning_that_its_prompt_opens(end, closing):
    reasoned = Turn("assistant", "a1", reasoning="r1")
    row = row_of(U, reasoned, traits=THINKS, render=lambda messages, **more: thinking(messages, end=end, **more))
    draft = row.single(1)
    assert (draft.text, spans_of(draft)) == (f"u:q1;a:<think>{end}r1{closing}a1;", [f"r1{closing}a1;"])
    calling = Turn("assistant", "", reasoning="r1", tool_calls=CALL.tool_calls)
    row = row_of(U, calling, traits=THINKS, render=lambda messages, **more: thinking(messages, end=end, **more))
    assert spans_of(row.single(1)) == [f"r1{closing}<f>{{'x': 'y9'}};"]


def test_an_answer_that_does_not_follow_its_prompt_is_refused():
    row = row_of(
        U,
        A,
        V,
        B,
        render=lambda messages, add_generation_prompt=False, **more: (
            plain(messages) + ("x:" if add_generation_prompt else "")
        ),
    )
    assert refusal(lambda: row.single(1)) == (
        "prompt-not-prefix", "With this template the prompt before turn 2 is not how the whole conversation begins.",
        "Training would show the model a context that chat never produces: choose another template.", "r:5", "turn 2",
    )  # fmt: skip


def test_earlier_turns_that_are_written_otherwise_once_they_are_answered():
    """The prompt is kept, and what the whole conversation has behind the answer's opening follows it."""

    def render(messages, add_generation_prompt=False, **more):
        answered = bool(messages) and messages[-1]["role"] == "assistant"
        text = plain(messages, add_generation_prompt=add_generation_prompt)
        return text.replace("q", "Q") if answered else text

    draft = row_of(U, A, V, B, render=render).single(3)
    assert (draft.text, spans_of(draft)) == ("u:q1;a:a1;u:q2;a:a2;", ["a2;"])


def test_an_answer_may_end_where_the_next_role_opens():
    traits = Traits(end_of_turn="<u>", call_end="<t>", ends=("<u>", "<t>"), stops_at_next_role=True, knows_tools=True)
    open_ended = row_of(U, A, traits=traits, render=lambda messages, **more: plain(messages, **more).replace(";", ""))
    assert spans_of(open_ended.single(1)) == ["a1<u>"]
    calling = row_of(U, CALL, traits=traits, render=lambda messages, **more: plain(messages, **more).replace(";", ""))
    assert spans_of(calling.single(1)) == ["<f>{'x': 'y9'}<t>"]


def test_what_the_template_refuses_is_the_rows_and_what_stops_it_is_not():
    def fail(error):
        def render(messages, **more):
            raise error

        return render

    refusing = row_of(U, A, render=fail(StudioError("No.", "Hint.")))
    assert refusal(lambda: refusing.whole({1}, "answers")) == ("template-refuses", "No.", "Hint.", "r:5", "")
    with pytest.raises(TemplateStopped) as caught:
        row_of(U, A, render=fail(TemplateStopped("Too long.", "Hint."))).whole({1}, "answers")
    assert caught.value.problems == (Problem("Too long.", "Hint.", "r:5"),)


def test_the_switch_for_thinking_is_given_to_templates_that_have_it():
    seen = []

    def render(messages, variables=None, **more):
        seen.append(variables)
        return plain(messages, **more)

    row_of(U, A, render=render).prompt(1, True)
    known = row_of(U, A, render=render, traits=THINKS)
    for thinks in (True, False, True):
        known.prompt(1, thinks)
    assert (known.whole_text(1), known.whole_text(2)) == ("u:q1;", "u:q1;a:a1;")
    assert seen == [{}, {"enable_thinking": True}, *[{"enable_thinking": False}] * 3], "prompts are kept"


REASONED = Turn("assistant", "a1", reasoning="r1")


@pytest.mark.parametrize(
    ("turns", "template", "act", "asked"),
    [
        # turns that are shown, whether an answer is asked for behind them, and whether it may reason
        ((U, REASONED), plain, lambda row: row.whole({1}, "answers"), [(1, True, True), (2, False, True)]),
        ((U, REASONED, V), plain, lambda row: row.whole({1, 2}, "answers"), [(3, False, False), (1, True, True), (2, False, True)]),
        ((U, REASONED, V, B), plain, lambda row: row.single(3), [(3, True, False), (4, False, False), (1, True, True)]),
        ((U, A, V, REASONED), plain, lambda row: row.single(1), [(1, True, False), (2, False, False)]),
        ((U, A, V, REASONED), plain, lambda row: row.whole({3}, "answers"),
         [(3, True, True), (4, False, True), (1, True, False), (2, False, False)]),
        ((U, Turn("assistant", "", reasoning="r1", tool_calls=CALL.tool_calls)), thinking, lambda row: row.single(1),
         [(1, True, True), (2, False, True), (2, False, False)]),
    ],
)  # fmt: skip
def test_a_text_is_asked_for_with_the_switch_of_its_own_answer(turns, template, act, asked):
    seen = []

    def render(messages, add_generation_prompt=False, variables=None, **more):
        seen.append((len(messages), add_generation_prompt, variables["enable_thinking"]))
        return template(messages, add_generation_prompt=add_generation_prompt, variables=variables, **more)

    act(row_of(*turns, render=render, traits=THINKS))
    assert seen == asked


def test_typed_control_tokens_are_refused_with_their_turn_and_hidden_where_asked():
    thought = Turn("assistant", "a1", reasoning="r<x>")
    for turns, field in (
        ((U, Turn("assistant", "a<x>")), "turn 2"),
        ((U, thought), "turn 2"),
        ((Turn("user", "<x>"), A), "turn 1"),
    ):
        with pytest.raises(ControlTokenTyped) as caught:
            row_of(*turns, policy="refuse", controls=("<x>",))
        assert (caught.value.problems[0].where, caught.value.problems[0].field) == ("r:5", field)
    row = row_of(Turn("user", "<x>"), thought, A, policy="escape", controls=("<x>",))
    mark = chr(0xF0000)
    assert row.turns == [Turn("user", mark), Turn("assistant", "a1", reasoning=f"r{mark}"), A]
    assert row.turns[2] is A, "a turn without any stays itself"


def test_a_row_from_nowhere_has_no_place():
    tokenizer = SimpleNamespace(render=plain, control_tokens={})
    assert TemplatedRow(Conversation(turns=(U, A)), tokenizer, PLAIN, "keep").where == ""


@pytest.mark.parametrize(
    ("holes", "left"),
    [
        ((), ((2, 9),)),
        (((2, 4),), ((4, 9),)),
        (((4, 9),), ((2, 4),)),
        (((3, 5), (5, 7)), ((2, 3), (7, 9))),
        (((3, 6), (4, 5)), ((2, 3), (6, 9))),
        (((2, 9),), ()),
    ],
)
def test_what_is_left_of_a_span_without_its_holes(holes, left):
    assert _without((2, 9), holes) == left
