"""What a chat template can do, found by looking at it and by rendering one small conversation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from qlora_studio.core.errors import StudioError
from qlora_studio.data.render.tokenizer import Tokenizer

_QUESTION, _ANSWER = "Qx7 pebble", "Zk9 harbour"
_REASONING_NAMES = re.compile(r"\b(reasoning_content|reasoning|thinking)\b")


@dataclass(frozen=True, slots=True)
class Traits:
    """Facts about one template with one tokenizer."""

    knows_tools: bool = False
    knows_thinking: bool = False
    """It has the switch `enable_thinking`."""
    knows_reasoning: bool = False
    """It places reasoning itself; for others the reasoning stands in the answer between think tags."""
    end_of_turn: str = ""
    """The token that follows an answer; empty where the template ends answers with none."""
    end_of_turn_id: int | None = None
    call_end_id: int | None = None
    """The token that ends a turn which calls a tool, for templates with tools."""
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
    """The traits of the tokenizer's template. One render; cheap enough to repeat, worth keeping for many rows."""
    source = tokenizer.template
    ends = tuple(sorted(tokenizer.control_tokens, key=len, reverse=True))
    if not source:
        return Traits(ends=ends)
    knows_tools = bool(re.search(r"\btools\b", source))
    messages = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    after = tokenizer.render(messages).rpartition(_ANSWER)[2]
    places = sorted(
        (after.find(token), -len(token), token) for token in tokenizer.added_tokens if token and token in after
    )
    end = places[0][2] if places else ""
    return Traits(
        knows_tools=knows_tools,
        knows_thinking=bool(re.search(r"\benable_thinking\b", source)),
        knows_reasoning=bool(_REASONING_NAMES.search(source)),
        end_of_turn=end,
        end_of_turn_id=tokenizer.added_tokens.get(end),
        call_end_id=_call_end(tokenizer, ends) if knows_tools else None,
        ends=ends,
    )


def _call_end(tokenizer: Tokenizer, ends: tuple[str, ...]) -> int | None:
    """The control token with which the template ends a tool call; None where it cannot say one."""
    call = {"id": "call00001", "type": "function", "function": {"name": "find_place", "arguments": {"name": "mill"}}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": _QUESTION}]
    messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    tool = {"type": "function", "function": {"name": "find_place", "description": "Finds.", "parameters": {}}}
    try:
        text = tokenizer.render(messages, tools=[tool]).rstrip()
    except StudioError:
        return None
    return next((tokenizer.added_tokens.get(end) for end in ends if end and text.endswith(end)), None)
