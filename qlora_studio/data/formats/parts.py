"""The parts of a message's content: text, thinking, tool calls and their results, as the chat APIs write them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from qlora_studio.core.conversation import ToolCall, Turn
from qlora_studio.data.formats.fields import Fields, kind_of

_TEXT_TYPES = frozenset({"text", "input_text", "output_text"})
_TEXT_KEYS = ("text", "value", "content")
_MEDIA = frozenset(
    {"image", "image_url", "input_image", "audio", "input_audio", "audio_url", "video", "video_url", "file"}
)
_MEDIA_KEYS = ("inlineData", "inline_data", "fileData", "file_data", "image_url", "image", "audio", "video")


@dataclass
class Parts:
    """What a list of parts holds, in the order of each kind."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    results: list[Turn] = field(default_factory=list)
    """What tools said; a message of a user may carry it (Anthropic)."""


def read_parts(fields: Fields, items: list[Any], place: str) -> Parts:
    """The parts of a content list. Raises a StudioError that names the first that is none this studio can learn."""
    found = Parts()
    for index, item in enumerate(items):
        _read_part(fields, item, f"{place}[{index}]", found)
    return found


def _read_part(fields: Fields, item: Any, place: str, found: Parts) -> None:
    if isinstance(item, str):
        found.text += item
        return
    if not isinstance(item, dict):
        raise fields.wrong(f"This part is {kind_of(item)}, not an object.", "Fix or remove this row.", place)
    kind = item.get("type", "text")
    if kind in _MEDIA or any(item.get(key) is not None for key in _MEDIA_KEYS):
        raise media(fields, str(kind if kind in _MEDIA else "a file"), place)
    if kind == "thinking" and isinstance(item.get("thinking"), str):
        found.reasoning += item["thinking"]
        _keep_rest(fields, item, {"type", "thinking"}, place)
    elif kind == "tool_use":
        found.calls.append(_call(fields, item, item.get("input"), place))
    elif kind == "tool_result":
        found.results.append(_result(fields, item, place))
    elif isinstance(call := item.get("functionCall", item.get("function_call")), dict):
        found.calls.append(_call(fields, call, call.get("args"), place))
    elif isinstance(response := item.get("functionResponse", item.get("function_response")), dict):
        found.results.append(Turn("tool", _as_text(response.get("response")), name=_name(response)))
    else:
        key = next((key for key in _TEXT_KEYS if isinstance(item.get(key), str)), None)
        if kind not in _TEXT_TYPES or key is None:
            raise fields.wrong(f"This part is {kind!r}; only text is learned.", "Remove this row or the part.", place)
        found.text += item[key]
        _keep_rest(fields, item, {"type", key}, place)


def media(fields: Fields, kind: str, place: str) -> Exception:
    """The refusal of a row that holds more than text."""
    return fields.wrong(f"This row holds {kind}, and this studio trains text.", "Leave such rows out.", place)


def _call(fields: Fields, item: dict[str, Any], arguments: Any, place: str) -> ToolCall:
    name = _name(item)
    if not name:
        raise fields.wrong("This tool call names no function.", "Fix this row.", f"{place}.name")
    identity = item.get("id")
    return ToolCall(name, _as_text(arguments if arguments is not None else {}), str(identity) if identity else None)


def _result(fields: Fields, item: dict[str, Any], place: str) -> Turn:
    content = item.get("content")
    text = read_parts(fields, content, f"{place}.content").text if isinstance(content, list) else _as_text(content)
    identity = item.get("tool_use_id")
    _keep_rest(fields, item, {"type", "content", "tool_use_id"}, place)
    return Turn("tool", text, tool_call_id=identity if isinstance(identity, str) else None)


def _name(item: dict[str, Any]) -> str | None:
    name = item.get("name")
    return name if isinstance(name, str) and name else None


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _keep_rest(fields: Fields, item: dict[str, Any], used: set[str], place: str) -> None:
    for name in set(item) - used:
        fields.leftover[f"{place}.{name}"] = item[name]
