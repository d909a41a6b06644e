"""Rows that name their parent: each path from a first row to a last one is a conversation. Held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from qlora_studio.core.conversation import Conversation, Turn
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.formats.fields import Fields
from qlora_studio.data.formats.plain import ALPACA_ANSWERS, ALPACA_QUESTIONS
from qlora_studio.data.formats.turn_parts import ROLE_NAMES, read_turn
from qlora_studio.data.readers.rows import Row, RowOrProblem, Unseen

IDS, PARENTS = ("id", "message_id", "ID", "index"), ("parent_id", "parent")
QUESTIONS = ("prompt", *ALPACA_QUESTIONS, "question", "input", "user")
ANSWERS = (*ALPACA_ANSWERS, "assistant")


@dataclass(frozen=True, slots=True)
class _Node:
    conversation: Conversation
    parent: str | None
    place: str


def fits_thread(fields: Fields) -> str:
    parent = next((name for name in PARENTS if fields.column(name) in fields.values), None)
    if parent and fields.first(IDS) and (_turn_key(fields) or (fields.first(QUESTIONS) and fields.first(ANSWERS))):
        return f"the rows name their parent in '{fields.column(parent)}'"
    return ""


def _turn_key(fields: Fields) -> bool:
    role = fields.values.get(fields.column("role"))
    return (
        isinstance(role, str) and role.strip().lower() in ROLE_NAMES and (fields.has("text") or fields.has("content"))
    )


def node(fields: Fields) -> Conversation:
    """The turns of one row alone: one turn with a role, or a question and its answer."""
    if fields.has("role"):
        content = fields.first(("text", "content")) or "text"
        message = {"role": fields.take("role"), "content": fields.text(content)}
        return Conversation(turns=(read_turn(fields, message, fields.column(content)),))
    question = fields.first(QUESTIONS) or "prompt"
    turns = [Turn("user", fields.text(question))]
    if question == "instruction" and fields.has("input") and (given := fields.text("input")):
        turns = [Turn("user", f"{turns[0].content}\n\n{given}")]
    if system := fields.optional_text("system"):
        turns.insert(0, Turn("system", system))
    turns.append(Turn("assistant", fields.text(fields.first(ANSWERS) or "output")))
    return Conversation(turns=tuple(turns))


def join_threads(
    items: Iterable[RowOrProblem], columns: Mapping[str, str]
) -> Iterator[tuple[Conversation, int] | Problem | Unseen]:
    """One conversation for each row that is nobody's parent, its ancestors first, and problems.

    With each conversation goes the number of rows that no earlier one used, so that every row is counted once.
    """
    nodes: dict[str, _Node] = {}
    for item in items:
        if not isinstance(item, Row):
            yield item
            continue
        try:
            name, found = _read_node(item, columns)
            if name in nodes:
                raise StudioError(
                    f"The id '{name}' stands at {nodes[name].place} as well.", "Give each row its own.", field="id"
                )
            nodes[name] = found
        except StudioError as error:
            first = error.problems[0]
            yield replace(first, where=first.where or f"{item.file}:{item.line}")
    parents = {found.parent for found in nodes.values()}
    used: set[str] = set()
    for name in nodes:
        if name not in parents and isinstance(path := _path(name, nodes), list):
            yield _conversation([nodes[step] for step in path]), len(set(path) - used)
            used.update(path)
    for name, found in nodes.items():
        if name not in used:
            yield _why_unused(name, found, nodes)


def _read_node(row: Row, columns: Mapping[str, str]) -> tuple[str, _Node]:
    fields = Fields(row, columns)
    key = fields.first(IDS)
    if key is None:
        raise fields.wrong("This row has no id.", "Give it one.", fields.column("id"))
    name = str(fields.take(key))
    parent_key = next((part for part in PARENTS if fields.column(part) in fields.values), PARENTS[0])
    parent = fields.take(parent_key)
    conversation = replace(node(fields), source=fields.source)
    own = {f"id.{name}": name, **fields.rest()}
    return name, _Node(
        replace(conversation, extra=own), None if parent in (None, "") else str(parent), str(fields.source)
    )


def _path(name: str, nodes: Mapping[str, _Node]) -> list[str] | Problem:
    """The ids from the first row of a thread to this one, or why there is no such path."""
    path: dict[str, None] = {}
    step: str | None = name
    while step is not None:
        if step not in nodes:
            return Problem(
                f"The parent '{step}' is not in this file.",
                "Add it, or empty the field.",
                nodes[next(reversed(path))].place,
                "parent_id",
            )
        if step in path:
            return Problem("The parents go round in a circle.", "Fix the parent ids.", nodes[name].place, "parent_id")
        path[step] = None
        step = nodes[step].parent
    return list(reversed(path))


def _conversation(path: list[_Node]) -> Conversation:
    turns = tuple(turn for part in path for turn in part.conversation.turns)
    extra = {field: value for part in path for field, value in part.conversation.extra.items()}
    return Conversation(turns=turns, source=path[-1].conversation.source, extra=extra)


def _why_unused(name: str, found: _Node, nodes: Mapping[str, _Node]) -> Problem:
    """Why a row is in no conversation: its own parent is missing, or that of a row above it, or they go in a circle."""
    path = _path(name, nodes)
    if isinstance(path, Problem) and path.where == found.place:
        return path
    reason = path.message if isinstance(path, Problem) else "no reply to it can be used."
    return Problem(f"A row above this one cannot be used: {reason}", "Fix the parent ids.", found.place, "parent_id")
