"""What is found out about templates that are written in Python: each trait is there exactly where its words are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.data.render.traits import Traits, _first_token, read_traits

TOKENS = {";": 1, "<u>": 2, "<a>": 3, "<t>": 4, ";;": 5, "": 6}
ENDS = ("<u>", "<a>", "<t>", ";;", ";", "")


def words(content):
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


class Template:
    """Messages as `u:words;`, with switches for what a template may be like."""

    def __init__(self, source="", **likes):
        self.template, self.likes = source or "plain", likes
        self.added_tokens = self.control_tokens = TOKENS

    def render(self, messages, tools=(), variables=None, add_generation_prompt=False):
        likes, text = self.likes, ""
        if messages[0]["role"] != "user":
            raise StudioError("A question first, please.")
        if tools and likes.get("tools"):
            text += f"[{tools[0]['function']['name']}]"
        for message in messages:
            content = message["content"]
            if likes.get("parts_only") and isinstance(content, str) and message["role"] != "tool":
                if likes["parts_only"] == "refuses":
                    raise StudioError("Parts, please.")
                content = ""
            if message["role"] == likes.get("text_lost_of") and isinstance(content, str):
                content = ""
            if message["role"] == likes.get("parts_lost_of") and not isinstance(content, str):
                content = ""
            if likes.get("no_parts") and not isinstance(content, str):
                raise StudioError("No parts, please.")
            if message["role"] == "assistant":
                calls = message.get("tool_calls", ())
                reasons = likes.get("reasons_in_calls") if calls else likes.get("reasons")
                if reasons == "without tools":
                    reasons = not tools
                if reasons and (reasons is True or (variables or {}).get("enable_thinking")):
                    text += f"({message.get('reasoning_content', '')})"
                if calls and likes.get("calls") is str and not isinstance(calls[0]["function"]["arguments"], str):
                    raise StudioError("Text, please.")
                if calls and likes.get("calls"):
                    text += f"{calls[0]['function']['arguments']}"
            if likes.get("by_role"):
                text += f"<{message['role'][0]}>{words(content)}"
            else:
                end = likes.get("call_end", ";") if message.get("tool_calls") else likes.get("end", ";")
                text += f"{message['role'][0]}:{words(content)}{end}"
        return text + likes.get("tail", "")


USUAL = Traits(end_of_turn=";", end_of_turn_id=1, ends=ENDS, arguments_are_text=False)
KNOWS = "tools enable_thinking"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (Template(), {}),
        (Template(end="<t>\n"), {"end_of_turn": "<t>", "end_of_turn_id": 4}),
        (Template(end=" ;;\n"), {"end_of_turn": ";;", "end_of_turn_id": 5}),  # the longest of those that begin there
        (Template(end="", tail="!"), {"end_of_turn": "", "end_of_turn_id": None}),
        (Template(KNOWS), {"knows_thinking": True}),  # it names tools and does not show them
        (Template("tools", tools=True, calls=dict), {"knows_tools": True, "call_end": ";", "call_end_id": 1}),
        (Template("toolset", tools=True, calls=dict), {}),
        (Template("tools", tools=True, calls=dict, call_end="<t>\n"), {"knows_tools": True, "call_end": "<t>", "call_end_id": 4}),
        (Template("tools", tools=True, calls=dict, call_end="!"), {"knows_tools": True}),
        (Template("tools", tools=True, calls=str), {"knows_tools": True, "arguments_are_text": True, "call_end": ";", "call_end_id": 1}),
        (Template("tools", tools=True), {"knows_tools": True, "call_end": ";", "call_end_id": 1}),  # no arguments either way
        (Template(reasons=True), {"knows_reasoning": True}),
        (Template(calls=dict, reasons_in_calls=True), {"knows_reasoning_in_calls": True}),
        (Template("enable_thinking", reasons="asked"), {"knows_thinking": True, "knows_reasoning": True}),
        (Template("enable_thinking", reasons_in_calls="asked"), {"knows_thinking": True, "knows_reasoning_in_calls": True}),
        (Template("", reasons="asked"), {}),
        (Template("tools", tools=True, calls=dict, reasons="without tools"),
         {"knows_tools": True, "knows_reasoning": True, "call_end": ";", "call_end_id": 1}),
        (Template(parts_only=True), {"content_is_parts": True}),
        (Template(parts_only="refuses"), {"content_is_parts": True}),
        (Template(text_lost_of="user"), {"content_is_parts": True}),
        (Template(text_lost_of="assistant"), {"content_is_parts": True}),
        (Template(text_lost_of="user", parts_lost_of="assistant"), {}),  # neither way says the whole exchange
        (Template(text_lost_of="assistant", parts_lost_of="user"), {}),
        (Template(no_parts=True), {}),
        (Template(by_role=True), {"end_of_turn": "<u>", "end_of_turn_id": 2, "call_end": "<t>", "call_end_id": 4, "stops_at_next_role": True}),
        (Template(by_role=True, parts_only=True), {"end_of_turn": "<u>", "end_of_turn_id": 2, "call_end": "<t>", "call_end_id": 4,
                                                   "stops_at_next_role": True, "content_is_parts": True}),
    ],
)  # fmt: skip
def test_a_trait_is_there_where_the_template_has_it(template, expected):
    found = read_traits(template)
    usual = {name: getattr(USUAL, name) for name in Traits.__dataclass_fields__}
    assert found == Traits(**{**usual, **expected})


def test_a_model_without_a_template_has_no_traits_but_its_tokens():
    bare = SimpleNamespace(template="", control_tokens=TOKENS)
    assert read_traits(bare) == Traits(ends=ENDS)


def test_a_template_that_cannot_say_one_exchange_is_refused():
    class Refusing(Template):
        def render(self, messages, **more):
            raise StudioError("Never.")

    with pytest.raises(StudioError, match="Never"):
        read_traits(Refusing())


@pytest.mark.parametrize(
    ("text", "token"), [("", ""), ("abc", ""), ("a;", ";"), ("a;;", ";;"), ("a<t>;;", "<t>"), (";<t>", ";")]
)
def test_the_first_token_of_a_text(text, token):
    assert _first_token(text, SimpleNamespace(added_tokens=TOKENS)) == token


@pytest.mark.parametrize(
    ("traits", "text", "start", "end"),
    [
        (Traits(end_of_turn=";", ends=(";",)), "u:q;a:b;\n", 6, 8),
        (Traits(end_of_turn=";", ends=(";",)), "u:q;a:b;c;\n", 6, 10),  # the last one is the answer's end
        (Traits(end_of_turn=";", ends=(";",)), ";", 0, 1),
        (Traits(end_of_turn=";", ends=("<t>",)), "u:q;a:b<t>\n", 6, 10),
        (Traits(end_of_turn=";", ends=("<t>",)), "u:q;a:b\n", 6, 8),
        (Traits(ends=("<t>",)), "a:b<t> ", 2, 6),
        (Traits(ends=("<t>",)), "a<t> ", 4, 5),
        (Traits(ends=("<t>",)), "a<t>  ", 4, 6),  # it stands before the answer
        (Traits(), "a:b \n", 2, 5),
    ],
)
def test_where_an_answer_ends(traits, text, start, end):
    assert traits.find_end(text, start) == end
