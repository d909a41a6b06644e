"""Formats whose rows hold texts: instruction and output, question and answer, segments, raw text, token ids."""

from __future__ import annotations

from qlora_studio.core.conversation import Conversation, Pretokenised, Segment, Turn
from qlora_studio.core.example import IGNORED
from qlora_studio.data.formats.chat import ends_with_answer, system_turn, turns_or_text
from qlora_studio.data.formats.fields import Fields, kind_of
from qlora_studio.data.formats.turn_parts import read_tools

ALPACA_ANSWERS = ("output", "response", "answer", "completion", "target", "code")
ALPACA_INPUTS = ("input", "context")
ALPACA_QUESTIONS = ("instruction", "INSTRUCTION")
PAIRS: tuple[tuple[str, str], ...] = (
    ("question", "answer"),
    ("question", "response"),
    ("question", "solution"),
    ("question", "explanation"),
    ("query", "response"),
    ("query", "answer"),
    ("source", "target"),
    ("article", "summary"),
    ("document", "summary"),
    ("message_1", "message_2"),
    ("INSTRUCTION", "RESPONSE"),
    ("input", "output"),
    ("input", "response"),
    ("user", "assistant"),
    ("problem", "solution"),
    ("problem", "generated_solution"),
    ("problem", "answer"),
    ("question", "generated_solution"),
    ("question", "answers"),
    ("prompt", "code"),
)
"""Column pairs that mean question and answer, in the order they are tried."""
CONTEXTS = ("context", "passage")
COMPLETIONS = ("completion", "response", "generation", "answer", "output")


def fits_alpaca(fields: Fields) -> str:
    answer = fields.first(ALPACA_ANSWERS)
    question = fields.first(("instruction",))
    if question and answer:
        return f"the rows have '{fields.column(question)}' and '{fields.column(answer)}'"
    return ""


def alpaca(fields: Fields) -> Conversation:
    """`instruction`, `input`, `output`, and where given `system` and `history` of [question, answer] pairs."""
    turns = [*system_turn(fields), *_history(fields)]
    instruction, given = fields.text("instruction"), fields.optional_text(fields.first(ALPACA_INPUTS) or "input")
    turns.append(Turn("user", f"{instruction}\n\n{given}" if given and instruction else instruction or given))
    answer = fields.first(ALPACA_ANSWERS) or next((name for name in ALPACA_ANSWERS if name in fields.values), "output")
    turns.append(Turn("assistant", fields.answer(answer)))
    return Conversation(turns=tuple(turns))


def _history(fields: Fields) -> list[Turn]:
    turns: list[Turn] = []
    if not fields.has("history"):
        fields.take("history")
        return turns
    for index, pair in enumerate(fields.items("history")):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise fields.wrong(
                "This pair is not [question, answer].",
                "Fix or remove this row.",
                f"{fields.column('history')}[{index}]",
            )
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return turns


def fits_prompt_completion(fields: Fields) -> str:
    answer = fields.first(COMPLETIONS)
    return (
        f"the rows have '{fields.column('prompt')}' and '{fields.column(answer)}'"
        if fields.has("prompt") and answer
        else ""
    )


def prompt_completion(fields: Fields) -> Conversation:
    """`prompt` and `completion`: texts, or lists of turns."""
    answer = fields.first(COMPLETIONS) or next((name for name in COMPLETIONS if name in fields.values), "completion")
    prompt = turns_or_text(fields, "prompt", "user")
    completion = ends_with_answer(fields, turns_or_text(fields, answer, "assistant"), fields.column(answer))
    return Conversation(turns=(*system_turn(fields), *prompt, *completion), tools=read_tools(fields))


def _pair(fields: Fields) -> tuple[str, str] | None:
    return next(((question, answer) for question, answer in PAIRS if fields.has(question) and fields.has(answer)), None)


def fits_question_answer(fields: Fields) -> str:
    pair = _pair(fields)
    return f"the rows have '{fields.column(pair[0])}' and '{fields.column(pair[1])}'" if pair else ""


def question_answer(fields: Fields) -> Conversation:
    """A question and its answer under any of their usual names, and a `context` that stands before the question."""
    question, answer = _pair(fields) or _incomplete_pair(fields)
    before = fields.first(CONTEXTS) or (fields.first(("article",)) if question == "question" else None)
    prompt = fields.text(question)
    if before:
        prompt = f"{fields.text(before)}\n\n{prompt}"
    turns = [*system_turn(fields), Turn("user", prompt), Turn("assistant", _answer(fields, answer))]
    return Conversation(turns=tuple(turns))


def _answer(fields: Fields, part: str) -> str:
    """An answer that is text or a number, or the first of several (SQuAD); the others are kept beside it."""
    column = fields.column(part)
    value = fields.values.get(column)
    texts = value.get("text") if isinstance(value, dict) else value
    if not isinstance(texts, list):
        return fields.answer(part)
    fields.take(part)
    if not texts or not isinstance(texts[0], str):
        raise fields.wrong("This row has no answer.", "Leave it out, or write one.", column)
    if isinstance(value, dict):
        fields.leftover |= {f"{column}.{name}": inner for name, inner in value.items() if name != "text"}
    fields.leftover |= {f"{column}[{index}]": text for index, text in enumerate(texts[1:], 1)}
    return texts[0]


def _incomplete_pair(fields: Fields) -> tuple[str, str]:
    """The pair of which a row has at least the names, so that the error names the missing half."""
    for question, answer in PAIRS:
        if fields.column(question) in fields.values or fields.column(answer) in fields.values:
            return question, answer
    return "question", "answer"


def fits_segments(fields: Fields) -> str:
    value = fields.values.get(fields.column("segments"))
    if isinstance(value, list) and value and isinstance(value[0], dict) and "label" in value[0]:
        return "'segments' is a list of text with a label that says what is trained"
    return ""


def segments(fields: Fields) -> Conversation:
    """`segments` of `{text, label}`: literal text, trained where the label is true."""
    found = []
    column = fields.column("segments")
    for index, item in enumerate(fields.items("segments")):
        place = f"{column}[{index}]"
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            raise fields.wrong("This segment has no text.", "Fix this row.", f"{place}.text")
        if not isinstance(item.get("label"), bool):
            raise fields.wrong(
                f"The label is {kind_of(item.get('label'))}, not true or false.", "Fix this row.", f"{place}.label"
            )
        found.append(Segment(item["text"], item["label"]))
        for name in set(item) - {"text", "label"}:
            fields.leftover[f"{place}.{name}"] = item[name]
    if not found:
        raise fields.wrong("This row has no segments.", "Remove this row.", column)
    return Conversation(segments=tuple(found))


def fits_text(fields: Fields) -> str:
    value = fields.values.get(fields.column("text"))
    return "the rows have 'text' and nothing that answers it" if isinstance(value, str) else ""


def text(fields: Fields) -> Conversation:
    """Raw text that is learned whole."""
    return Conversation(text=fields.text("text"))


def fits_tokens(fields: Fields) -> str:
    value = fields.values.get(fields.column("input_ids"))
    return "the rows have 'input_ids'" if isinstance(value, list) else ""


def tokens(fields: Fields) -> Conversation:
    """`input_ids` with `labels`; without labels every token is trained. An attention mask must be all ones."""
    ids = _integers(fields, "input_ids", lowest=0)
    labels = _integers(fields, "labels", lowest=IGNORED) if fields.has("labels") else ids
    if len(labels) != len(ids):
        raise fields.wrong(
            f"There are {len(labels)} labels for {len(ids)} tokens.", "Fix this row.", fields.column("labels")
        )
    for index, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in (token, IGNORED):
            raise fields.wrong(
                f"Label {index} is {label} where the token is {token}.",
                "A label is the token itself or -100.",
                fields.column("labels"),
            )
    if fields.has("attention_mask") and any(mark != 1 for mark in _integers(fields, "attention_mask", lowest=0)):
        raise fields.wrong("The attention mask hides tokens.", "Remove the padding.", fields.column("attention_mask"))
    if not ids:
        raise fields.wrong("This row has no tokens.", "Remove this row.", fields.column("input_ids"))
    return Conversation(tokens=Pretokenised(ids, labels))


def _integers(fields: Fields, part: str, lowest: int) -> tuple[int, ...]:
    values = fields.items(part)
    for index, value in enumerate(values):
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise fields.wrong(f"Item {index} is {value!r}, not a token.", "Fix this row.", fields.column(part))
    return tuple(values)
