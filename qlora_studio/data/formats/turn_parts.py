"""One turn of a row, in any of the ways people write it: role aliases, parts, tool calls, reasoning, weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from qlora_studio.core.conversation import Role, ToolCall, Turn
from qlora_studio.data.formats.fields import Fields, kind_of
from qlora_studio.data.formats.parts import Parts, read_parts

ROLE_NAMES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "customer": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
CALL_NAMES = frozenset({"function_call", "tool_call"})
"""Turns in which the assistant calls a tool; their text is the call as JSON."""

ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text", "parts")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_THINK = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)


def read_turn(fields: Fields, item: Any, place: str) -> Turn:
    """The turn. Raises a StudioError that names the turn's field, also where one message holds several turns."""
    turns = read_message(fields, item, place)
    if len(turns) != 1:
        raise fields.wrong("This message holds several turns.", "Give the row as a list of messages.", place)
    return turns[0]


def read_message(fields: Fields, item: Any, place: str) -> tuple[Turn, ...]:
    """The turns of one message: one, but for tools' results that an API puts into a message of the user."""
    if not isinstance(item, dict):
        raise fields.wrong(f"This turn is {kind_of(item)}, not an object.", "Fix or remove this row.", place)
    left = {name: value for name, value in item.items() if value is not None}
    role_keys = (fields.columns.get("turn.role", ROLE_KEYS[0]), *ROLE_KEYS)
    role_key = next((key for key in role_keys if key in left), ROLE_KEYS[0])
    role, calls_tool = _role(fields, left.pop(role_key, None), f"{place}.{role_key}")
    usual = "value" if role_key == "from" else CONTENT_KEYS[0]
    content_keys = (fields.columns.get("turn.content", usual), *CONTENT_KEYS)
    content_key = next((key for key in content_keys if key in left), usual)
    content = left.pop(content_key, None)
    calls = _calls(fields, left, place)
    if calls_tool and isinstance(content, str):
        calls, content = (*calls, *calls_from_text(fields, content, f"{place}.{content_key}")), ""
    reasoning = next((left.pop(key) for key in _REASONING_KEYS if isinstance(left.get(key), str)), None)
    parts = Parts()
    if isinstance(content, list):
        parts = read_parts(fields, content, f"{place}.{content_key}")
        calls, text, reasoning = (*calls, *parts.calls), parts.text, reasoning or parts.reasoning
    else:
        text = _text(fields, content, f"{place}.{content_key}", may_be_missing=bool(calls))
    if role == "assistant" and not reasoning and (match := _THINK.fullmatch(text)):
        reasoning, text = match[1].strip("\n"), match[2]
    if parts.results and not text and not calls:
        results = tuple(parts.results)
        return _with_rest(fields, left, place, results)
    turn = Turn(
        role,
        text,
        reasoning or None,
        tuple(calls),
        _optional_text(fields, left, "name", place),
        _optional_text(fields, left, "tool_call_id", place),
        _train(fields, left, place),
    )
    return _with_rest(fields, left, place, (*parts.results, turn))


def _with_rest(fields: Fields, left: Mapping[str, Any], place: str, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    for name, value in left.items():
        fields.leftover[f"{place}.{name}"] = value
    return turns


def _role(fields: Fields, role: Any, place: str) -> tuple[Role, bool]:
    name = role.strip().lower() if isinstance(role, str) else ""
    name = fields.columns.get(f"role.{role}", fields.columns.get(f"role.{name}", name))
    if name in CALL_NAMES:
        return "assistant", True
    if name not in ROLE_NAMES:
        message = "This turn has no role." if role is None else f"The role {role!r} is not known."
        raise fields.wrong(message, f"Known roles: {', '.join((*ROLE_NAMES, *sorted(CALL_NAMES)))}.", place)
    return ROLE_NAMES[name], False


def _text(fields: Fields, content: Any, place: str, may_be_missing: bool) -> str:
    """Content that is text."""
    if isinstance(content, str):
        return content
    if content is None and may_be_missing:
        return ""
    raise fields.wrong(f"This turn holds {kind_of(content)} where text is needed.", "Fix or remove this row.", place)


def _optional_text(fields: Fields, left: dict[str, Any], name: str, place: str) -> str | None:
    value = left.pop(name, None)
    if value is None or isinstance(value, str):
        return value or None
    raise fields.wrong(f"This field holds {kind_of(value)} where text is needed.", "Fix this row.", f"{place}.{name}")


def _train(fields: Fields, left: dict[str, Any], place: str) -> bool | None:
    """What the turn says about itself: `train` true or false, or `weight` 1 or 0."""
    if "train_detail" in left:
        raise fields.wrong(
            "Training parts of a turn (train_detail) is not known here.",
            "Write the row as segments.",
            f"{place}.train_detail",
        )
    for name in ("train", "training", "weight"):
        value = left.pop(name, None)
        if value is None:
            continue
        if value in (0, 1):  # True and False are 1 and 0
            return bool(value)
        raise fields.wrong(f"{name} is {value!r}; it may be 0 or 1.", "Fix this row.", f"{place}.{name}")
    return None


def _calls(fields: Fields, left: dict[str, Any], place: str) -> tuple[ToolCall, ...]:
    """Tool calls of a message: `tool_calls`, or the older `function_call`."""
    found: list[ToolCall] = []
    given = left.pop("tool_calls", None)
    if isinstance(given, str) and given.strip():
        return calls_from_text(fields, given, f"{place}.tool_calls")
    if given is not None and not isinstance(given, list):
        raise fields.wrong(f"The tool calls are {kind_of(given)}, not a list.", "Fix this row.", f"{place}.tool_calls")
    for index, call in enumerate(given or []):
        found.append(_call(fields, call, f"{place}.tool_calls[{index}]"))
    if (older := left.pop("function_call", None)) is not None:
        found.append(_call(fields, older, f"{place}.function_call"))
    return tuple(found)


def calls_from_text(fields: Fields, text: str, place: str) -> tuple[ToolCall, ...]:
    """Calls written as JSON text: one object or a list of them."""
    value = fields.json(text, place, "This tool call is not JSON")
    items = value if isinstance(value, list) else [value]
    return tuple(_call(fields, item, place) for item in items)


def _call(fields: Fields, item: Any, place: str) -> ToolCall:
    if not isinstance(item, dict):
        raise fields.wrong(f"This tool call is {kind_of(item)}, not an object.", "Fix this row.", place)
    inner = item.get("function")
    body: Mapping[str, Any] = inner if isinstance(inner, dict) else item
    name, arguments = body.get("name"), body.get("arguments", body.get("parameters"))
    if not isinstance(name, str) or not name:
        raise fields.wrong("This tool call names no function.", "Fix this row.", f"{place}.name")
    if arguments is None:
        arguments = {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    if isinstance(arguments, str) and arguments.lstrip()[:1] in ("{", "["):
        _check_arguments(fields, arguments, f"{place}.arguments")
    identity = item.get("id")
    known = {"name", "arguments", "parameters", "function", "id", "type"}
    for extra in set(item) - known | (set(body) - known):
        fields.leftover[f"{place}.{extra}"] = body.get(extra, item.get(extra))
    return ToolCall(name, text, str(identity) if identity is not None else None)


def _check_arguments(fields: Fields, text: str, place: str) -> None:
    """Raises for arguments that are JSON and would change when they are read; other text is kept as it is."""
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValueError):
            return
    fields.json(text, place, "The arguments cannot be read")


def read_tools(fields: Fields) -> tuple[dict[str, Any], ...]:
    """The tools of a row, as a list or as JSON text, each in the form `{"type": "function", "function": {...}}`."""
    part = fields.first(("tools", "functions"))
    if part is None:
        fields.take("tools")
        return ()
    value, column = fields.take(part), fields.column(part)
    if isinstance(value, str):
        if not value.strip():
            return ()
        value = fields.json(value, column, "The tools are not JSON")
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise fields.wrong(f"The tools are {kind_of(value)}, not a list.", "Fix this row.", column)
    return tuple(_tool(fields, tool, f"{column}[{index}]") for index, tool in enumerate(value))


def _tool(fields: Fields, tool: Any, place: str) -> dict[str, Any]:
    if isinstance(tool, str):
        tool = fields.json(tool, place, "This tool is not JSON")
    if not isinstance(tool, dict):
        raise fields.wrong(f"This tool is {kind_of(tool)}, not an object.", "Fix this row.", place)
    if (
        "function" not in tool
        and "name" in tool
        and set(tool) <= {"name", "description", "parameters", "strict", "returns"}
    ):
        return {"type": "function", "function": tool}
    return tool
