"""Formats whose rows hold a list of turns: chat messages of role and content, ShareGPT of from and value, dialogues."""

from __future__ import annotations

from qlora_studio.core.conversation import Conversation, Turn
from qlora_studio.data.formats.fields import Fields
from qlora_studio.data.formats.parts import read_parts
from qlora_studio.data.formats.turn_parts import ROLE_NAMES, read_message, read_tools, read_turn

MESSAGE_COLUMNS = (
    "messages",
    "conversations",
    "conversation",
    "dialog",
    "dialogue",
    "chat",
    "texts",
    "turns",
    "contents",
)


def fits_messages(fields: Fields) -> str:
    part = fields.first(MESSAGE_COLUMNS)
    if part and (
        _first_turn_has(fields, part, "role") or _first_turn_has(fields, part, fields.columns.get("turn.role", ""))
    ):
        return f"'{fields.column(part)}' is a list of turns with role and content"
    return ""


def fits_sharegpt(fields: Fields) -> str:
    part = fields.first(("conversations", *MESSAGE_COLUMNS))
    if part and _first_turn_has(fields, part, "from"):
        return f"'{fields.column(part)}' is a list of turns with from and value"
    return ""


def fits_dialogue(fields: Fields) -> str:
    part = fields.first(("dialog", *MESSAGE_COLUMNS))
    value = fields.values.get(fields.column(part)) if part else None
    if part and isinstance(value, list) and len(value) > 1 and all(isinstance(item, str) for item in value):
        return f"'{fields.column(part)}' is a list of texts, taken as user and assistant by turns"
    return ""


def _first_turn_has(fields: Fields, part: str, key: str) -> bool:
    value = fields.values.get(fields.column(part))
    if isinstance(value, str):
        return value.lstrip().startswith("[") and f'"{key}"' in value
    return isinstance(value, list) and any(isinstance(item, dict) and key in item for item in value[:4])


def messages(fields: Fields) -> Conversation:
    """A list of turns under `messages` or one of its other names, with `tools` and `system` where the row has them."""
    return _chat(fields, fields.first(MESSAGE_COLUMNS) or "messages")


def sharegpt(fields: Fields) -> Conversation:
    """ShareGPT: the same list, usually under `conversations`."""
    return _chat(fields, fields.first(("conversations", *MESSAGE_COLUMNS)) or "conversations")


def dialogue(fields: Fields) -> Conversation:
    """Texts by turns: the first is the user's."""
    part = fields.first(("dialog", *MESSAGE_COLUMNS)) or "dialog"
    turns = []
    for index, item in enumerate(fields.items(part)):
        if not isinstance(item, str):
            raise fields.wrong(
                "Not every turn of this dialogue is text.", "Fix this row.", f"{fields.column(part)}[{index}]"
            )
        turns.append(Turn("assistant" if index % 2 else "user", item))
    if not turns:
        raise fields.wrong("This conversation has no turns.", "Remove this row.", fields.column(part))
    return Conversation(turns=tuple(turns))


def _chat(fields: Fields, part: str) -> Conversation:
    turns = list(read_turns(fields, part))
    return Conversation(turns=(*system_turn(fields), *turns), tools=read_tools(fields))


def read_turns(fields: Fields, part: str) -> tuple[Turn, ...]:
    """The turns of a list column. Raises a StudioError that names the turn."""
    column, items = fields.column(part), fields.items(part)
    if not items:
        raise fields.wrong("This conversation has no turns.", "Remove this row.", column)
    return tuple(turn for index, item in enumerate(items) for turn in read_message(fields, item, f"{column}[{index}]"))


def system_turn(fields: Fields) -> tuple[Turn, ...]:
    """A system prompt that stands in a column of its own."""
    part = fields.first(("system", "system_prompt", "systemInstruction", "system_instruction")) or "system"
    value = fields.values.get(fields.column(part))
    if isinstance(value, dict) and isinstance(value.get("parts"), list):
        system = read_parts(fields, fields.take(part)["parts"], f"{fields.column(part)}.parts").text
    else:
        system = fields.optional_text(part)
    return (Turn("system", system),) if system else ()


def turns_or_text(fields: Fields, part: str, role: str) -> tuple[Turn, ...]:
    """A column that holds plain text, one turn, or a list of turns."""
    value = fields.values.get(fields.column(part))
    if isinstance(value, str) and not (value.lstrip().startswith("[{") and '"role"' in value):
        return (Turn(ROLE_NAMES[role], fields.text(part)),)
    if isinstance(value, dict):
        fields.take(part)
        return (read_turn(fields, value, fields.column(part)),)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        raise fields.wrong("This field is a list of texts without roles.", "Give each a role.", fields.column(part))
    if value is None:
        return (Turn(ROLE_NAMES[role], fields.text(part)),)
    return read_turns(fields, part)


def ends_with_answer(fields: Fields, turns: tuple[Turn, ...], place: str) -> tuple[Turn, ...]:
    """The turns, if the last is the assistant's. Raises a StudioError else."""
    if not turns or turns[-1].role != "assistant":
        raise fields.wrong("This does not end with an answer of the assistant.", "Fix or remove this row.", place)
    return turns


def same_turn(one: Turn, other: Turn) -> bool:
    return (one.role, one.content, one.tool_calls) == (other.role, other.content, other.tool_calls)
