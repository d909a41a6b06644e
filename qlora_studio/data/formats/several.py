"""Formats whose rows hold several answers or calls: choices, ranked answers, preferred outputs, function calls."""

from __future__ import annotations

from typing import Any

from qlora_studio.core.conversation import Conversation, Turn
from qlora_studio.data.formats.chat import ends_with_answer, read_turns, system_turn, turns_or_text
from qlora_studio.data.formats.fields import Fields
from qlora_studio.data.formats.turn_parts import calls_from_text, read_message, read_tools
from qlora_studio.data.readers.rows import Row

CHOICES, KEYS = ("choices", "options"), ("answerKey", "answer", "answer_index", "label")
RANKED, PROMPTS = ("completions", "answers", "responses"), ("prompt", "instruction", "question", "query")
_TEXTS = ("text", "content", "response", "answer", "completion", "value", "output")
_SCORES = ("score", "overall_score", "rating", "reward")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def fits_choices(fields: Fields) -> str:
    choices, key = fields.first(CHOICES), fields.first(KEYS)
    if fields.has("question") and choices and key and isinstance(fields.values[fields.column(choices)], list | dict):
        return f"the rows have 'question', '{fields.column(choices)}' and '{fields.column(key)}'"
    return ""


def choices(fields: Fields) -> Conversation:
    """A question with its choices, one on each line behind a letter, and the right one with its letter as the answer."""
    part, key = fields.first(CHOICES) or "choices", fields.first(KEYS) or "answer"
    column, value = fields.column(part), fields.take(part)
    texts, labels = value, list(LETTERS)
    if isinstance(value, dict):
        texts, labels = value.get("text"), value.get("label", labels)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise fields.wrong("The choices are not a list of texts.", "Fix this row.", column)
    if not isinstance(labels, list) or len(labels) < len(texts):
        raise fields.wrong("The choices do not all have a label.", "Fix this row.", column)
    names = [str(label) for label in labels[: len(texts)]]
    right = _find_choice(fields.take(key), texts, names)
    if right is None:
        raise fields.wrong("The answer is none of the choices.", "Fix this row.", fields.column(key))
    lines = [f"{name}. {text}" for name, text in zip(names, texts, strict=True)]
    prompt = "\n".join([fields.text("question"), "", *lines])
    return Conversation(turns=(*system_turn(fields), Turn("user", prompt), Turn("assistant", lines[right])))


def _find_choice(answer: Any, texts: list[str], names: list[str]) -> int | None:
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer if 0 <= answer < len(texts) else None
    for known in (names, texts):
        if answer in known:
            return known.index(answer)
    return None


def fits_ranked(fields: Fields) -> str:
    part = fields.first(RANKED)
    value = fields.values.get(fields.column(part)) if part else None
    if part and fields.first(PROMPTS) and isinstance(value, list) and len(value) > 1 and all(map(_rank, value)):
        return f"the rows have a prompt and '{fields.column(part)}', each with a rank or a score"
    return ""


def _rank(item: Any) -> tuple[float] | None:
    """Smaller is better; None where the item says neither rank nor score."""
    if not isinstance(item, dict) or not any(isinstance(item.get(name), str) for name in _TEXTS):
        return None
    for names, sign in ((("rank",), 1), (_SCORES, -1)):
        for name in names:
            if isinstance(item.get(name), int | float) and not isinstance(item[name], bool):
                return (sign * item[name],)
    return None


def ranked(fields: Fields) -> Conversation:
    """A prompt with ranked answers: the best is chosen, the worst rejected, those between are kept beside the row."""
    part = fields.first(RANKED) or "completions"
    column, items = fields.column(part), fields.items(part)
    ranks = [_rank(item) for item in items]
    ranked_items = [(rank[0], index) for index, rank in enumerate(ranks) if rank is not None]
    if len(ranked_items) < 2 or len(ranked_items) < len(items):
        raise fields.wrong("Not every answer has a text and a rank or score.", "Fix this row.", column)
    best, worst = min(ranked_items)[1], max(ranked_items)[1]
    if ranks[best] == ranks[worst]:
        raise fields.wrong("All answers rank alike: none is better.", "Leave this row out.", column)
    texts = [next(item[name] for name in _TEXTS if isinstance(item.get(name), str)) for item in items]
    fields.leftover |= {f"{column}[{index}]": item for index, item in enumerate(items) if index not in (best, worst)}
    prompt = turns_or_text(fields, fields.first(PROMPTS) or "prompt", "user")
    turns = (*system_turn(fields), *prompt, Turn("assistant", texts[best]))
    return Conversation(turns=turns, rejected=(Turn("assistant", texts[worst]),))


def fits_preferred(fields: Fields) -> str:
    given = fields.values.get(fields.column("input"))
    if fields.has("preferred_output") and fields.has("non_preferred_output") and isinstance(given, dict):
        return "the rows have 'input', 'preferred_output' and 'non_preferred_output'"
    return ""


def preferred(fields: Fields) -> Conversation:
    """OpenAI's preference rows: `input` with messages and tools, and two outputs."""
    given = fields.take("input")
    inner = Fields(Row(fields.source.file, fields.source.line, given if isinstance(given, dict) else {}), {})
    prompt, tools = read_turns(inner, "messages"), read_tools(inner)
    sides = []
    for part in ("preferred_output", "non_preferred_output"):
        items = fields.items(part)
        turns = tuple(t for i, item in enumerate(items) for t in read_message(fields, item, f"{part}[{i}]"))
        sides.append(ends_with_answer(fields, turns, part))
    fields.leftover |= {f"input.{name}": value for name, value in inner.rest().items()}
    return Conversation(turns=(*prompt, *sides[0]), rejected=sides[1], tools=tools)


def fits_function_calls(fields: Fields) -> str:
    value = fields.values.get(fields.column("answers"))
    written = isinstance(value, str) and value.lstrip().startswith("[{")
    if fields.has("query") and fields.has("tools") and (written or isinstance(value, list)):
        return "the rows have 'query', 'tools' and 'answers' that call them"
    return ""


def function_calls(fields: Fields) -> Conversation:
    """A query, the tools there are, and the calls that answer it (xLAM)."""
    calls = fields.take("answers")
    if not isinstance(calls, str):
        import json

        calls = json.dumps(calls)
    made = calls_from_text(fields, calls, fields.column("answers"))
    turns = (*system_turn(fields), Turn("user", fields.text("query")), Turn("assistant", "", tool_calls=made))
    return Conversation(turns=turns, tools=read_tools(fields))
