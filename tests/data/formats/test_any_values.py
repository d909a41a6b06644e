"""Whatever JSON stands in the known columns, a row is converted or refused in words."""

import random

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.data.formats.registry import FORMATS, convert, detect, find_format
from qlora_studio.data.readers.rows import Row
from qlora_studio.data.sets.canonical import from_line, to_line
from qlora_studio.data.sets.sides import prompt_hash

COLUMNS = sorted(
    {part for entry in FORMATS.values() for part in entry.parts} | {"contents", "answers", "image", "kto_tag"}
)
KEYS = [
    "role",
    "from",
    "content",
    "value",
    "text",
    "parts",
    "type",
    "name",
    "arguments",
    "function",
    "label",
    "rank",
    "score",
]
KEYS += [
    "tool_calls",
    "function_call",
    "weight",
    "train",
    "id",
    "input",
    "messages",
    "thinking",
    "functionCall",
    "answer",
]
WORDS = [
    "user",
    "assistant",
    "human",
    "gpt",
    "tool",
    "text",
    "tool_use",
    "tool_result",
    "[{",
    "[]",
    "{}",
    "",
    "hi",
    "\x00",
]
WORDS += [
    '[{"role": "user", "content": "a"}]',
    '[{"name": "f", "arguments": {}}]',
    "[" * 300,
    "\n\nHuman: a\n\nAssistant: b",
]


def value(chance, depth=0):
    kind = chance.randrange(11 if depth < 4 else 7)
    if kind < 4:
        return chance.choice(WORDS)
    if kind < 7:
        return chance.choice([None, True, False, 0, 1, 7, -1, 1.5, 10**30])
    if kind < 9:
        return [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(KEYS): value(chance, depth + 1) for _ in range(chance.randrange(5))}


@pytest.mark.parametrize("seed", range(20))
def test_any_values_are_converted_or_refused(seed):
    chance = random.Random(seed)
    converted = 0
    for _ in range(400):
        columns = chance.sample(COLUMNS, chance.randrange(1, 6))
        row = Row("rows.jsonl", 3, {column: value(chance) for column in columns})
        for name in ("auto", chance.choice(list(FORMATS))):
            try:
                entry = find_format(detect([row]).format if name == "auto" else name)
                made = convert(row, entry, {})
            except StudioError as error:
                assert str(error).startswith("rows.jsonl:3")
                continue
            converted += 1
            assert from_line(to_line(made)) == made
            prompt_hash(made)
    assert converted > 5
