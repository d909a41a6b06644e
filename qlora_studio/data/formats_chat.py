"""Formats whose rows hold a list of turns: chat messages of role and content, ShareGPT of from and value."""

from __future__ import annotations

import json
from typing import Any

from qlora_studio.core.conversation import Conversation, Role, Turn
from qlora_studio.data.fields import Fields, kind_of

ROLE_NAMES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "tool": "tool",
}


def fits_messages(fields: Fields) -> str:
    part = fields.first(("messages",))
    return "the rows have a list of role and content" if part and _first_turn_has(fields, part, "role") else ""


def fits_sharegpt(fields: Fields) -> str:
    part = fields.first(("conversations", "conversation"))
    return "the rows have a list of from and value" if part and _first_turn_has(fields, part, "from") else ""


def _first_turn_has(fields: Fields, part: str, key: str) -> bool:
    value = fields.values.get(fields.column(part))
    if isinstance(value, str):
        return value.lstrip().startswith("[") and f'"{key}"' in value
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]


def messages(fields: Fields) -> Conversation:
    return Conversation(turns=tuple(_turns(fields, "messages", "role", "content")), tools=_tools(fields))


def sharegpt(fields: Fields) -> Conversation:
    part = fields.first(("conversations", "conversation")) or "conversations"
    turns = _turns(fields, part, "from", "value")
    if system := fields.optional_text("system"):
        turns.insert(0, Turn("system", system))
    return Conversation(turns=tuple(turns), tools=_tools(fields))


def _turns(fields: Fields, part: str, role_key: str, content_key: str) -> list[Turn]:
    column, items = fields.column(part), fields.items(part)
    if not items:
        raise fields.wrong("This conversation has no turns.", "Remove this row.", column)
    return [_turn(fields, item, f"{column}[{index}]", role_key, content_key) for index, item in enumerate(items)]


def _turn(fields: Fields, item: Any, place: str, role_key: str, content_key: str) -> Turn:
    if not isinstance(item, dict):
        raise fields.wrong(f"This turn is {kind_of(item)}, not an object.", "Mend or remove this row.", place)
    role, content = item.get(role_key), item.get(content_key)
    if not isinstance(role, str) or role.strip().lower() not in ROLE_NAMES:
        raise fields.wrong(
            f"The role {role!r} is not known.", f"Known roles: {', '.join(ROLE_NAMES)}.", f"{place}.{role_key}"
        )
    if not isinstance(content, str):
        raise fields.wrong(f"This turn holds {kind_of(content)} where text is needed.", "", f"{place}.{content_key}")
    return Turn(ROLE_NAMES[role.strip().lower()], content)


def _tools(fields: Fields) -> tuple[dict[str, Any], ...]:
    value = fields.take("tools")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            raise fields.wrong("The tools are not JSON.", "Mend the JSON.", fields.column("tools")) from None
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise fields.wrong("The tools are not a list of objects.", "Mend this row.", fields.column("tools"))
    return tuple(value)
