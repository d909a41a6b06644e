"""Formats that judge answers: pairs of a chosen and a rejected answer, and answers labelled good or bad."""

from __future__ import annotations

import re
from typing import Any

from qlora_studio.core.conversation import Conversation, Turn
from qlora_studio.data.formats.chat import (
    MESSAGE_COLUMNS,
    ends_with_answer,
    read_turns,
    same_turn,
    system_turn,
    turns_or_text,
)
from qlora_studio.data.formats.fields import Fields, kind_of
from qlora_studio.data.formats.turn_parts import read_tools

CHOSEN, REJECTED = ("chosen", "chosen_response"), ("rejected", "rejected_response")
PROMPTS = ("prompt", "instruction", "question", "input", *MESSAGE_COLUMNS)
LABELS = ("label", "kto_tag")
COMPLETIONS = ("completion", "output", "response", "answer")


def fits_preference(fields: Fields) -> str:
    chosen, rejected = fields.first(CHOSEN), fields.first(REJECTED)
    if chosen and rejected:
        return f"the rows have '{fields.column(chosen)}' and '{fields.column(rejected)}'"
    return ""


def preference(fields: Fields) -> Conversation:
    """A prompt with a chosen and a rejected answer; a prompt that stands in both lists of turns is found there."""
    first, second = fields.first(CHOSEN) or "chosen", fields.first(REJECTED) or "rejected"
    chosen = _transcript(fields, first) or turns_or_text(fields, first, "assistant")
    rejected = _transcript(fields, second) or turns_or_text(fields, second, "assistant")
    prompt = _prompt(fields)
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and same_turn(chosen[shared], rejected[shared]):
        shared += 1
    if not prompt and not shared:
        raise fields.wrong(
            "This pair has no prompt: the answers share no turn, and there is no column for it.",
            "Name its column: prompt=your_column.",
            fields.column("prompt"),
        )
    if shared:
        prompt = _without_repeat(prompt, chosen[:shared])
        chosen, rejected = chosen[shared:], rejected[shared:]
    turns = (*system_turn(fields), *prompt, *ends_with_answer(fields, chosen, fields.column(first)))
    ends_with_answer(fields, rejected, fields.column(second))
    return Conversation(turns=turns, rejected=rejected, tools=read_tools(fields))


def _transcript(fields: Fields, part: str) -> tuple[Turn, ...]:
    """The turns of a conversation written as one text (hh-rlhf); none where it is no such text."""
    value = fields.values.get(fields.column(part))
    if not isinstance(value, str) or not value.startswith("\n\nHuman:"):
        return ()
    fields.take(part)
    pieces = re.split(r"\n\n(Human|Assistant):", value)[1:]
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return tuple(Turn("user" if who == "Human" else "assistant", text.strip()) for who, text in turns)


def _prompt(fields: Fields) -> tuple[Turn, ...]:
    part = fields.first(PROMPTS)
    if part is None:
        return ()
    prompt = turns_or_text(fields, part, "user")
    if part == "instruction" and fields.has("input"):
        given = fields.text("input")
        return (Turn("user", f"{prompt[0].content}\n\n{given}" if given else prompt[0].content),)
    return prompt


def _without_repeat(prompt: tuple[Turn, ...], shared: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """A prompt that stands in its own column and again before both answers is one prompt."""
    if len(prompt) <= len(shared) and all(map(same_turn, prompt, shared[len(shared) - len(prompt) :])):
        return shared
    return (*prompt, *shared)


def fits_labelled(fields: Fields) -> str:
    part = fields.first(LABELS)
    if part is None or _label(fields.values.get(fields.column(part))) is None:
        return ""
    answers = fields.first(COMPLETIONS) or fields.first(MESSAGE_COLUMNS)
    whole = isinstance(fields.values.get(fields.column(answers)), list) if answers else False
    if answers and (whole or fields.first(PROMPTS)):
        return f"the rows have an answer and '{fields.column(part)}' that says whether it is good"
    return ""


def labelled(fields: Fields) -> Conversation:
    """A prompt, an answer and whether it is good (`label` or `kto_tag`)."""
    part = fields.first(LABELS) or "label"
    value = fields.take(part)
    label = _label(value)
    if label is None:
        raise fields.wrong(f"The label is {kind_of(value)}, not true or false.", "Fix this row.", fields.column(part))
    completion = fields.first(COMPLETIONS)
    if completion:
        answer = turns_or_text(fields, completion, "assistant")
        prompt = _prompt(fields)
        turns = (*prompt, *ends_with_answer(fields, answer, fields.column(completion)))
        if not prompt and len(answer) < 2:
            raise fields.wrong("This row has no prompt.", "Fix or remove this row.", fields.column("prompt"))
    else:
        part = fields.first(MESSAGE_COLUMNS) or "messages"
        turns = ends_with_answer(fields, read_turns(fields, part), fields.column(part))
    return Conversation(turns=(*system_turn(fields), *turns), label=label, tools=read_tools(fields))


def _label(value: Any) -> bool | None:
    if isinstance(value, bool | int | float):
        return {0.0: False, 1.0: True}.get(float(value))
    words = {"true": True, "false": False, "1": True, "0": False, "good": True, "bad": False}
    return words.get(value.strip().lower()) if isinstance(value, str) else None
