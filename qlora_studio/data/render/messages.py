"""A turn as chat templates expect it: the message dictionaries of the transformers convention."""

from __future__ import annotations

import json
from typing import Any

from qlora_studio.core.conversation import ToolCall, Turn
from qlora_studio.data.render.traits import Traits


def message_of(turn: Turn, traits: Traits) -> dict[str, Any]:
    """The message of one turn. Reasoning goes into the answer where the template has no place of its own for it."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.reasoning:
        if traits.knows_reasoning:
            message["reasoning_content"] = turn.reasoning
        else:
            message["content"] = f"<think>\n{turn.reasoning}\n</think>\n\n{turn.content}"
    if turn.tool_calls:
        message["tool_calls"] = [_call(call) for call in turn.tool_calls]
    if turn.name:
        message["name"] = turn.name
    if turn.tool_call_id:
        message["tool_call_id"] = turn.tool_call_id
    return message


def _call(call: ToolCall) -> dict[str, Any]:
    """Arguments go as an object where they are one: that is what templates turn into JSON themselves."""
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = call.arguments
    spoken = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
    return {"id": call.id, **spoken} if call.id else spoken
