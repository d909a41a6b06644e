"""One message becomes its turns, whole: every way to write role, content, reasoning, calls, weights and tools."""

from __future__ import annotations

import pytest

from qlora_studio.core.conversation import ToolCall, Turn
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.formats.fields import Fields
from qlora_studio.data.formats.turn_parts import read_message, read_tools, read_turn
from qlora_studio.data.readers.rows import Row
from tests.data.formats.made import AT, A, S, T, U


def fields_of(values=None, columns=None):
    return Fields(Row(AT.file, AT.line, values or {}), columns or {})


F = ToolCall("f", "{}")
CALL = {"name": "f", "arguments": {}}
MESSAGES = {
    "plain": ({"role": "user", "content": "a"}, Turn(U, "a"), {}),
    "from and value": ({"from": "gpt", "value": "a", "content": "b"}, Turn(A, "a"), {"content": "b"}),
    "role and content": ({"role": "bot", "value": "a", "content": "b"}, Turn(A, "b"), {"value": "a"}),
    "speaker and text": ({"speaker": " HUMAN ", "text": "a", "n": 0}, Turn(U, "a"), {"n": 0}),
    "nulls": ({"role": "user", "content": None, "text": "a", "id": None, "name": ""}, Turn(U, "a"), {}),
    "a developer": ({"role": "developer", "content": "a", "name": "n"}, Turn(S, "a", name="n"), {}),
    "a tool": ({"role": "ipython", "content": "a", "tool_call_id": "c"}, Turn(T, "a", tool_call_id="c"), {}),
    "reasoning": ({"role": "ai", "content": "a", "reasoning_content": "r", "thinking": "t"}, Turn(A, "a", "r"), {"thinking": "t"}),
    "a number as reasoning": ({"role": "ai", "content": "a", "reasoning": 3, "thinking": "t"}, Turn(A, "a", "t"), {"reasoning": 3}),
    "reasoning in the text": ({"role": "ai", "content": " <think>\nr\n</think>\n\na"}, Turn(A, "a", "r"), {}),
    "no reasoning in the text": ({"role": "ai", "content": "<think></think>a"}, Turn(A, "a"), {}),
    "reasoning beside the text": ({"role": "ai", "content": "<think>x</think>a", "reasoning": "r"}, Turn(A, "<think>x</think>a", "r"), {}),
    "a question that thinks": ({"role": "user", "content": "<think>x</think>a"}, Turn(U, "<think>x</think>a"), {}),
    "text behind": ({"role": "ai", "content": "b<think>x</think>a"}, Turn(A, "b<think>x</think>a"), {}),
    "trained": ({"role": "ai", "content": "a", "train": True}, Turn(A, "a", train=True), {}),
    "not trained": ({"role": "ai", "content": "a", "training": False}, Turn(A, "a", train=False), {}),
    "weighed": ({"role": "ai", "content": "a", "weight": 1.0}, Turn(A, "a", train=True), {}),
    "weighed by 0": ({"role": "ai", "content": "a", "weight": 0, "train": None}, Turn(A, "a", train=False), {}),
    "a call": ({"role": "ai", "tool_calls": [CALL]}, Turn(A, "", tool_calls=(F,)), {}),
    "calls and text": ({"role": "ai", "content": "a", "tool_calls": [CALL, CALL]}, Turn(A, "a", tool_calls=(F, F)), {}),
    "no calls": ({"role": "ai", "content": "a", "tool_calls": []}, Turn(A, "a"), {}),
    "blank calls": ({"role": "ai", "content": "a", "tool_calls": " "}, None, {}),
    "calls as text": ({"role": "ai", "tool_calls": ' {"name": "f"}'}, Turn(A, "", tool_calls=(F,)), {}),
    "an older call": ({"role": "ai", "function_call": CALL}, Turn(A, "", tool_calls=(F,)), {}),
    "both calls": (
        {"role": "ai", "function_call": CALL, "tool_calls": [{"id": 7, "type": "function", "function": {"name": "g", "parameters": [1]}}]},
        Turn(A, "", tool_calls=(ToolCall("g", "[1]", "7"), F)), {},
    ),
    "a turn that is a call": ({"from": "function_call", "value": '{"name": "f"}'}, Turn(A, "", tool_calls=(F,)), {}),
    "a turn of calls": ({"role": "tool_call", "content": '[{"name": "f"}, {"name": "f"}]'}, Turn(A, "", tool_calls=(F, F)), {}),
    "a call's arguments as text": (
        {"role": "ai", "tool_calls": [{"name": "f", "arguments": "x = 1", "note": "n", "function": {"name": "f", "arguments": "\u00fc", "more": 1}}]},
        Turn(A, "", tool_calls=(ToolCall("f", "\u00fc"),)),
        {"tool_calls[0].note": "n", "tool_calls[0].more": 1},
    ),
    "a call's arguments as they were written": (
        {"role": "ai", "tool_calls": [{"name": "f", "arguments": ' {"a":1 }', "id": ""}]},
        Turn(A, "", tool_calls=(ToolCall("f", ' {"a":1 }', ""),)), {},
    ),
    "what only looks like JSON": (
        {"role": "ai", "tool_calls": [{"name": "f", "arguments": "{x"}]}, Turn(A, "", tool_calls=(ToolCall("f", "{x"),)), {},
    ),
    "not ASCII": (
        {"role": "ai", "tool_calls": [{"name": "f", "arguments": {"x": "\u00fc"}}]},
        Turn(A, "", tool_calls=(ToolCall("f", '{"x": "\u00fc"}'),)), {},
    ),
    "parts": ({"role": "user", "content": ["a", {"type": "text", "text": "b", "n": 1}]}, Turn(U, "ab"), {"content[1].n": 1}),
    "parts that think": (
        {"role": "ai", "content": [{"type": "thinking", "thinking": "r", "sign": "s"}, {"type": "thinking", "thinking": "q"}, "a"]},
        Turn(A, "a", "rq"), {"content[0].sign": "s"},
    ),
    "parts beside reasoning": ({"role": "ai", "content": [{"type": "thinking", "thinking": "r"}, "a"], "reasoning": "x"}, Turn(A, "a", "x"), {}),
    "parts beside calls": (
        {"role": "ai", "content": ["a", {"type": "tool_use", "name": "g", "id": 0}], "tool_calls": [CALL]},
        Turn(A, "a", tool_calls=(F, ToolCall("g", "{}"))), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_its_turn_and_the_rest_is_kept(name):
    item, turn, rest = MESSAGES[name]
    before, fields = repr(item), fields_of()
    if turn is None:
        with pytest.raises(StudioError, match="The tool calls are text, not a list"):
            read_turn(fields, item, "m")
        return
    assert read_turn(fields, item, "m") == turn
    assert fields.leftover == {f"m.{field}": value for field, value in rest.items()}
    assert repr(item) == before, "the row itself stays as it was"


def result(*contents, **more):
    return [
        {"type": "tool_result", "tool_use_id": f"t{at}", "content": text, **more} for at, text in enumerate(contents)
    ]


@pytest.mark.parametrize(
    ("item", "turns", "rest"),
    [
        ({"role": "user", "content": result("x", None)}, (Turn(T, "x", tool_call_id="t0"), Turn(T, "", tool_call_id="t1")), {}),
        ({"role": "user", "content": [*result([{"text": "x"}]), "a"], "id": 1}, (Turn(T, "x", tool_call_id="t0"), Turn(U, "a")), {"id": 1}),
        ({"role": "user", "content": result({"k": "\u00fc"}, is_error=True), "id": 1},
         (Turn(T, '{"k": "\u00fc"}', tool_call_id="t0"),), {"content[0].is_error": True, "id": 1}),
        ({"role": "model", "content": [*result("x"), {"functionCall": {"name": "g"}}]},
         (Turn(T, "x", tool_call_id="t0"), Turn(A, "", tool_calls=(ToolCall("g", "{}"),))), {}),
        ({"role": "user", "content": [{"type": "tool_result", "tool_use_id": 4, "content": "x"}]}, (Turn(T, "x"),), {}),
        ({"role": "user", "content": [{"function_response": {"name": "g", "response": "x"}}]}, (Turn(T, "x", name="g"),), {}),
        ({"role": "user", "content": []}, (Turn(U, ""),), {}),
    ],
)  # fmt: skip
def test_what_tools_said_comes_before_what_the_user_says(item, turns, rest):
    fields = fields_of()
    assert read_message(fields, item, "m") == turns
    assert fields.leftover == {f"m.{field}": value for field, value in rest.items()}


FIX = "Fix or remove this row."
REFUSED = {
    "a text": ("a", "This turn is text, not an object.", FIX, "m"),
    "several turns": ({"role": "user", "content": result("x", "y")}, "This message holds several turns.", "Give the row as a list of messages.", "m"),
    "no content": ({"role": "user"}, "This turn holds null where text is needed.", FIX, "m.content"),
    "no value": ({"from": "gpt"}, "This turn holds null where text is needed.", FIX, "m.value"),
    "a number": ({"role": "user", "text": 3}, "This turn holds the number 3 where text is needed.", FIX, "m.text"),
    "a number beside calls": ({"role": "ai", "content": 3, "tool_calls": [CALL]}, "This turn holds the number 3 where text is needed.", FIX, "m.content"),
    "no text but a call": ({"from": "function_call"}, "This turn holds null where text is needed.", FIX, "m.value"),
    "a name of 3": ({"role": "user", "content": "a", "name": 3}, "This field holds the number 3 where text is needed.", "Fix this row.", "m.name"),
    "a weight of 2": ({"role": "ai", "content": "a", "weight": 2}, "weight is 2; it may be 0 or 1.", "Fix this row.", "m.weight"),
    "a trained part": ({"role": "ai", "content": "a", "train_detail": []}, "Training parts of a turn (train_detail) is not known here.", "Write the row as segments.", "m.train_detail"),
    "calls of 3": ({"role": "ai", "tool_calls": 3}, "The tool calls are the number 3, not a list.", "Fix this row.", "m.tool_calls"),
    "a call of 3": ({"role": "ai", "tool_calls": [CALL, 3]}, "This tool call is the number 3, not an object.", "Fix this row.", "m.tool_calls[1]"),
    "a call without a name": ({"role": "ai", "tool_calls": [{"arguments": {}}]}, "This tool call names no function.", "Fix this row.", "m.tool_calls[0].name"),
    "a call with an empty name": ({"role": "ai", "function_call": {"name": ""}}, "This tool call names no function.", "Fix this row.", "m.function_call.name"),
    "a call named 3": ({"role": "ai", "function_call": {"name": 3}}, "This tool call names no function.", "Fix this row.", "m.function_call.name"),
    "a part of 3": ({"role": "ai", "content": ["a", 3]}, "This part is the number 3, not an object.", FIX, "m.content[1]"),
    "an unknown part": ({"role": "ai", "content": [{"type": "poem", "text": "a"}]}, "This part is 'poem'; only text is learned.", "Remove this row or the part.", "m.content[0]"),
    "a part without text": ({"role": "ai", "content": [{"type": "text", "text": 3}]}, "This part is 'text'; only text is learned.", "Remove this row or the part.", "m.content[0]"),
    "a thought without words": ({"role": "ai", "content": [{"type": "thinking"}]}, "This part is 'thinking'; only text is learned.", "Remove this row or the part.", "m.content[0]"),
    "a call in parts without a name": ({"role": "ai", "content": [{"type": "tool_use", "name": ""}]}, "This tool call names no function.", "Fix this row.", "m.content[0].name"),
    "a call in parts named 3": ({"role": "ai", "content": [{"type": "tool_use", "name": 3}]}, "This tool call names no function.", "Fix this row.", "m.content[0].name"),
    "a file": ({"role": "user", "content": [{"fileData": {}}]}, "This row holds a file, and this studio trains text.", "Leave such rows out.", "m.content[0]"),
    "a video": ({"role": "user", "content": [{"type": "video", "text": "x"}]}, "This row holds video, and this studio trains text.", "Leave such rows out.", "m.content[0]"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_turn_is_refused_with_its_place(name):
    item, message, hint, place = REFUSED[name]
    with pytest.raises(StudioError) as caught:
        read_turn(fields_of(), item, "m")
    assert caught.value.problems == (Problem(message, hint, str(AT), place),)


@pytest.mark.parametrize(
    ("role", "message"), [("pope", "The role 'pope' is not known."), (3, "The role 3 is not known."), (None, "This turn has no role.")]
)  # fmt: skip
def test_an_unknown_role_is_answered_with_those_there_are(role, message):
    with pytest.raises(StudioError) as caught:
        read_turn(fields_of(), {"role": role, "content": "a"}, "m")
    (problem,) = caught.value.problems
    assert (problem.message, problem.field) == (message, "m.role")
    assert problem.hint.startswith("Known roles: system, developer, user,") and problem.hint.endswith(
        "function_call, tool_call."
    )


def test_a_mapped_role_and_content_come_first():
    columns = {"turn.role": "who", "turn.content": "words", "role.Doctor": "assistant", "role.patient": "user"}
    for who, role in (("Doctor", A), ("PATIENT", U)):
        fields = fields_of(columns=columns)
        item = {"who": who, "role": "tool", "words": "a", "content": "b"}
        assert read_turn(fields, item, "m") == Turn(role, "a")
        assert fields.leftover == {"m.role": "tool", "m.content": "b"}


BARE = {"name": "f", "description": "d", "parameters": {}, "strict": True, "returns": {}}
WHOLE = {"type": "function", "function": BARE}


@pytest.mark.parametrize(
    ("values", "tools", "rest"),
    [
        ({}, (), {}),
        ({"tools": None}, (), {}),
        ({"tools": ""}, (), {}),
        ({"tools": " \n"}, (), {}),
        ({"tools": []}, (), {}),
        ({"tools": [BARE, WHOLE]}, (WHOLE, WHOLE), {}),
        ({"functions": BARE}, (WHOLE,), {}),
        ({"tools": '[{"name": "f"}]'}, ({"type": "function", "function": {"name": "f"}},), {}),
        ({"tools": ['{"name": "f"}']}, ({"type": "function", "function": {"name": "f"}},), {}),
        ({"tools": [{"name": "f", "code": "x"}]}, ({"name": "f", "code": "x"},), {}),
        ({"tools": [{"description": "d"}]}, ({"description": "d"},), {}),
        ({"tools": [{"name": "f", "function": 1}]}, ({"name": "f", "function": 1},), {}),
        ({"tools": [], "functions": [BARE]}, (), {"functions": [BARE]}),
    ],
)
def test_tools_are_told_in_one_form(values, tools, rest):
    fields = fields_of(values)
    assert read_tools(fields) == tools
    assert fields.rest() == rest


@pytest.mark.parametrize(
    ("tools", "message", "field"),
    [
        (3, "The tools are the number 3, not a list.", "tools"),
        ([WHOLE, 3], "This tool is the number 3, not an object.", "tools[1]"),
        (["[1]"], "This tool is a list, not an object.", "tools[0]"),
        ('"x"', "The tools are text, not a list.", "tools"),
    ],
)
def test_what_is_no_tool_is_refused(tools, message, field):
    with pytest.raises(StudioError) as caught:
        read_tools(fields_of({"tools": tools}))
    assert caught.value.problems == (Problem(message, "Fix this row.", str(AT), field),)
