"""What a chat template can say and how, found by rendering small conversations and looking where the words went."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qlora_studio.core.errors import StudioError
from qlora_studio.data.render.tokenizer import Tokenizer

_QUESTION, _ANSWER, _REASON, _PLACE, _OUTPUT = "Qx7 pebble", "Zk9 harbour", "Wm4 because", "Hv2 mill", "Rf9 found"
_TOOL = {
    "type": "function",
    "function": {
        "name": "find_place",
        "description": "Finds.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string", "description": "Which."}}},
    },
}


@dataclass(frozen=True, slots=True)
class Traits:
    """Facts about one template with one tokenizer."""

    knows_tools: bool = False
    knows_thinking: bool = False
    """It has the switch `enable_thinking`."""
    knows_reasoning: bool = False
    """It places reasoning itself; for others the reasoning stands in the answer between think tags."""
    knows_reasoning_in_calls: bool = False
    """The same for answers that call a tool, which some templates treat otherwise."""
    content_is_parts: bool = False
    """It wants content as a list of typed parts, as templates of image models do."""
    arguments_are_text: bool = False
    """It wants the arguments of a call as JSON text and not as an object."""
    end_of_turn: str = ""
    """The token that follows an answer; empty where the template ends answers with none."""
    end_of_turn_id: int | None = None
    call_end: str = ""
    """The token that ends a turn which calls a tool, for templates with tools."""
    call_end_id: int | None = None
    stops_at_next_role: bool = False
    """Nothing closes an answer but the token that opens the next turn, which chat stops at (the GLM family)."""
    ends: tuple[str, ...] = ()
    """Every token that may end a turn, longest first: tool calls end differently in some families."""

    def find_end(self, text: str, start: int) -> int:
        """Where the answer that begins at `start` and runs to the end of the text ends, its stop token included."""
        if self.end_of_turn:
            place = text.rfind(self.end_of_turn, start)
            if place >= 0:
                return place + len(self.end_of_turn)
        stripped = text.rstrip()
        if len(stripped) > start and stripped.endswith(self.ends):
            return len(stripped)
        return len(text)


def read_traits(tokenizer: Tokenizer) -> Traits:
    """The traits of the tokenizer's template, by about a dozen renders; worth keeping for many rows.

    Raises a StudioError where the template cannot even say one question and its answer.
    """
    source = tokenizer.template
    ends = tuple(sorted(tokenizer.control_tokens, key=len, reverse=True))
    return _Probe(tokenizer, ends).traits() if source else Traits(ends=ends)


class _Probe:
    """Small conversations on their way through a template."""

    def __init__(self, tokenizer: Tokenizer, ends: tuple[str, ...]) -> None:
        self.tokenizer, self.ends = tokenizer, ends
        self.knows_tools = bool(re.search(r"\btools\b", tokenizer.template))
        self.knows_thinking = bool(re.search(r"\benable_thinking\b", tokenizer.template))
        self.parts = False
        self.arguments_are_text = False

    def traits(self) -> Traits:
        plain = [self.user(_QUESTION), self.assistant(_ANSWER)]
        text = self.plain_text(plain)
        self.knows_tools = self.knows_tools and any(
            "find_place" in self.try_render(messages) for messages in (plain, plain[:1])
        )
        self.arguments_are_text = _PLACE not in self.try_render([self.user(_QUESTION), self.call()])
        if self.arguments_are_text and _PLACE not in self.try_render([self.user(_QUESTION), self.call()]):
            self.arguments_are_text = False
        reasons = {"reasoning_content": _REASON}
        end = _first_token(text.rpartition(_ANSWER)[2], self.tokenizer)
        call_end = self.end_of_call()
        by_role = not end
        if by_role:
            end = self.opening([*plain, self.user("Vp3 brook")], plain)
            call = [self.user(_QUESTION), self.call()]
            call_end = self.opening([*call, self.output()], call)
        tokens = self.tokenizer.added_tokens
        return Traits(
            knows_tools=self.knows_tools,
            knows_thinking=self.knows_thinking,
            knows_reasoning=_REASON in self.try_render([plain[0], {**plain[1], **reasons}], thinking=True, tools=False),
            knows_reasoning_in_calls=_REASON in self.try_render([plain[0], {**self.call(), **reasons}], thinking=True),
            content_is_parts=self.parts,
            arguments_are_text=self.arguments_are_text,
            end_of_turn=end,
            end_of_turn_id=tokens.get(end) if end else None,
            call_end=call_end,
            call_end_id=tokens.get(call_end) if call_end else None,
            stops_at_next_role=by_role and bool(end),
            ends=self.ends,
        )

    def plain_text(self, messages: list[dict[str, Any]]) -> str:
        """One exchange, with content as text or, where that loses it, as parts."""
        problem: StudioError | None = None
        text = ""
        try:
            text = self.tokenizer.render(messages)
        except StudioError as error:
            problem = error
        if _ANSWER in text and _QUESTION in text:
            return text
        as_parts = [{**message, "content": _as_parts(message["content"])} for message in messages]
        try:
            rendered = self.tokenizer.render(as_parts)
        except StudioError:
            rendered = ""
        if _ANSWER in rendered and _QUESTION in rendered:
            self.parts = True
            messages[:] = as_parts
            return rendered
        if problem:
            raise problem
        return text

    def try_render(self, messages: Sequence[dict[str, Any]], *, thinking: bool = False, tools: bool = True) -> str:
        """The text, or an empty one where the template refuses."""
        variables = {"enable_thinking": thinking} if self.knows_thinking else {}
        try:
            given = [_TOOL] if tools and self.knows_tools else []
            return self.tokenizer.render(messages, tools=given, variables=variables)
        except StudioError:
            return ""

    def opening(self, longer: Sequence[dict[str, Any]], shorter: Sequence[dict[str, Any]]) -> str:
        """The token with which the turn behind this conversation opens; empty where it opens with none."""
        whole, begun = self.try_render(longer), self.try_render(shorter)
        if not begun or not whole.startswith(begun):
            return ""
        rest = whole[len(begun) :]
        return next((end for end in self.ends if end and rest.startswith(end)), "")

    def end_of_call(self) -> str:
        """The control token with which the template ends a tool call; empty where it cannot say one."""
        text = self.try_render([self.user(_QUESTION), self.call()]).rstrip() if self.knows_tools else ""
        return next((end for end in self.ends if end and text.endswith(end)), "")

    def content(self, text: str) -> Any:
        return _as_parts(text) if self.parts else text

    def user(self, text: str) -> dict[str, Any]:
        return {"role": "user", "content": self.content(text)}

    def assistant(self, text: str) -> dict[str, Any]:
        return {"role": "assistant", "content": self.content(text)}

    def output(self) -> dict[str, Any]:
        return {"role": "tool", "name": "find_place", "tool_call_id": "call00001", "content": self.content(_OUTPUT)}

    def call(self) -> dict[str, Any]:
        arguments: Any = f'{{"name": "{_PLACE}"}}' if self.arguments_are_text else {"name": _PLACE}
        function = {"name": "find_place", "arguments": arguments}
        calls = [{"id": "call00001", "type": "function", "function": function}]
        return {"role": "assistant", "content": self.content(""), "tool_calls": calls}


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _first_token(text: str, tokenizer: Tokenizer) -> str:
    """The added token that stands first in a text; the longest of those that begin there."""
    places = sorted(
        (text.find(token), -len(token), token) for token in tokenizer.added_tokens if token and token in text
    )
    return places[0][2] if places else ""
