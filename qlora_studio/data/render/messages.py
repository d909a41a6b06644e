"""A turn as chat templates expect it: the message dictionaries of the transformers convention."""

from __future__ import annotations

import json
from typing import Any

from qlora_studio.core.conversation import ToolCall, Turn
from qlora_studio.data.render.traits import Traits


def message_of(turn: Turn, traits: Traits) -> dict[str, Any]:
    """The message of one turn. Reasoning goes into the answer where the template has no place of its own for it."""
    content = turn.content
    message: dict[str, Any] = {"role": turn.role}
    if turn.reasoning:
        has_place = traits.knows_reasoning_in_calls if turn.tool_calls else traits.knows_reasoning
        if has_place:
            message["reasoning_content"] = turn.reasoning
        else:
            content = f"<think>\n{turn.reasoning}\n</think>\n\n{content}"
    message["content"] = [{"type": "text", "text": content}] if traits.content_is_parts else content
    if turn.tool_calls:
        message["tool_calls"] = [_call(call, traits.arguments_are_text) for call in turn.tool_calls]
    if turn.name:
        message["name"] = turn.name
    if turn.tool_call_id:
        message["tool_call_id"] = turn.tool_call_id
    return message


def _call(call: ToolCall, as_text: bool) -> dict[str, Any]:
    """Arguments go as an object where they are one, for templates that turn it into JSON themselves."""
    arguments: Any = call.arguments
    if not as_text:
        try:
            arguments = json.loads(call.arguments)
        except (ValueError, RecursionError):
            arguments = call.arguments
    described = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
    return {"id": call.id, **described} if call.id else described
