"""Formats whose rows hold texts: instruction and output, prompt and completion, raw text."""

from __future__ import annotations

from qlora_studio.core.conversation import Conversation, Turn
from qlora_studio.data.fields import Fields


def fits_alpaca(fields: Fields) -> str:
    return "the rows have instruction and output" if fields.has("instruction") and fields.has("output") else ""


def alpaca(fields: Fields) -> Conversation:
    """`instruction`, `input`, `output`, and where given `system` and `history` of [question, answer] pairs."""
    turns = []
    if system := fields.optional_text("system"):
        turns.append(Turn("system", system))
    if fields.has("history"):
        for number, pair in enumerate(fields.items("history"), 1):
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
                raise fields.wrong(
                    f"Pair {number} of the history is not [question, answer].",
                    "Mend or remove this row.",
                    fields.column("history"),
                )
            turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    else:
        fields.take("history")
    instruction, given = fields.text("instruction"), fields.optional_text("input")
    turns.append(Turn("user", f"{instruction}\n\n{given}" if given and instruction else instruction or given))
    turns.append(Turn("assistant", fields.text("output")))
    return Conversation(turns=tuple(turns))


def fits_prompt_completion(fields: Fields) -> str:
    return "the rows have prompt and completion" if fields.has("prompt") and fields.has("completion") else ""


def prompt_completion(fields: Fields) -> Conversation:
    turns = [Turn("system", system)] if (system := fields.optional_text("system")) else []
    turns += [Turn("user", fields.text("prompt")), Turn("assistant", fields.text("completion"))]
    return Conversation(turns=tuple(turns))


def fits_text(fields: Fields) -> str:
    return (
        "the rows have text and nothing that answers it"
        if isinstance(fields.values.get(fields.column("text")), str)
        else ""
    )


def text(fields: Fields) -> Conversation:
    return Conversation(text=fields.text("text"))
