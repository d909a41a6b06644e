"""The canonical set on disk: one conversation a line, a report beside it. Reading gives back what was written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from qlora_studio.core.conversation import Conversation, Pretokenised, Segment, Source, ToolCall, Turn
from qlora_studio.core.dataset import DatasetReport
from qlora_studio.core.errors import StudioError

CONVERSATIONS, EVALUATION, PROMPTS = "conversations.jsonl", "evaluation.jsonl", "first-prompts.bin"
REPORT, FINDINGS, REFUSED = "report.json", "findings.json", "refused.jsonl"
"""The files of a set."""
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def to_line(conversation: Conversation) -> str:
    """One conversation as a line of JSON. What has its usual value is left out."""
    values: dict[str, Any] = {}
    if conversation.turns:
        values["turns"] = [_turn_values(turn) for turn in conversation.turns]
    if conversation.text is not None:
        values["text"] = conversation.text
    if conversation.segments:
        values["segments"] = [[segment.text, segment.train] for segment in conversation.segments]
    if conversation.tokens is not None:
        values["tokens"] = [conversation.tokens.input_ids, conversation.tokens.labels]
    if conversation.tools:
        values["tools"] = conversation.tools
    if conversation.rejected:
        values["rejected"] = [_turn_values(turn) for turn in conversation.rejected]
    if conversation.label is not None:
        values["label"] = conversation.label
    if conversation.extra:
        values["extra"] = conversation.extra
    values["source"] = [conversation.source.file, conversation.source.line]
    return _ENCODER.encode(values)


def from_line(line: str, origin: str = "") -> Conversation:
    """The conversation of a line that `to_line` wrote."""
    values = json.loads(line)
    if len(values) == 2 and "turns" in values:  # most rows, and the rest takes as long again
        turns = tuple([_turn(turn) for turn in values["turns"]])
        return Conversation(turns=turns, source=Source(*values["source"]), origin=origin)
    tokens = values.get("tokens")
    return Conversation(
        turns=tuple(_turn(turn) for turn in values.get("turns", ())),
        text=values.get("text"),
        segments=tuple(Segment(text, train) for text, train in values.get("segments", ())),
        tokens=Pretokenised(tuple(tokens[0]), tuple(tokens[1])) if tokens else None,
        tools=tuple(values.get("tools", ())),
        rejected=tuple(_turn(turn) for turn in values.get("rejected", ())),
        label=values.get("label"),
        source=Source(*values["source"]),
        origin=origin,
        extra=values.get("extra", {}),
    )


def _turn_values(turn: Turn) -> dict[str, Any]:
    values: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.reasoning is not None:
        values["reasoning"] = turn.reasoning
    if turn.tool_calls:
        values["tool_calls"] = [[call.name, call.arguments, call.id] for call in turn.tool_calls]
    if turn.name is not None:
        values["name"] = turn.name
    if turn.tool_call_id is not None:
        values["tool_call_id"] = turn.tool_call_id
    if turn.train is not None:
        values["train"] = turn.train
    return values


def _turn(values: dict[str, Any]) -> Turn:
    if len(values) == 2:
        return Turn(values["role"], values["content"])
    calls = tuple(ToolCall(*call) for call in values.get("tool_calls", ()))
    rest = {name: values[name] for name in ("reasoning", "name", "tool_call_id", "train") if name in values}
    return Turn(values["role"], values["content"], tool_calls=calls, **rest)


def read_report(folder: Path) -> DatasetReport:
    """The report of a set. Raises a StudioError where the folder holds none that can be read."""
    try:
        return DatasetReport.model_validate_json((folder / REPORT).read_bytes())
    except (OSError, ValueError):
        raise StudioError(
            f"The data set '{folder.name}' is not complete.", "Import it again.", where=str(folder)
        ) from None


@dataclass(frozen=True, slots=True)
class StoredRow:
    """One line of a canonical file."""

    line: str
    path: Path
    number: int
    """From 1."""
    origin: str

    def read(self) -> Conversation:
        """Raises a StudioError where the line is damaged."""
        try:
            return from_line(self.line, self.origin)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise _damaged(self.path, self.number, self.origin) from None


def read_rows(path: Path, origin: str, wanted: Iterable[bool] | None = None) -> Iterator[StoredRow]:
    """The rows of a canonical file, one at a time and not parsed yet; only those that are `wanted`.

    Raises a StudioError where the file was damaged, or where it has not as many rows as `wanted`.
    """
    number = 0
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for line, is_wanted in zip(lines, repeat(True) if wanted is None else wanted, strict=wanted is not None):
                number += 1
                if is_wanted:
                    yield StoredRow(line, path, number, origin)
    except (OSError, ValueError):
        raise _damaged(path, number, origin) from None


def read_conversations(path: Path, origin: str, wanted: Iterable[bool] | None = None) -> Iterator[Conversation]:
    """The same as conversations. Raises what `read_rows` and `StoredRow.read` raise."""
    return (row.read() for row in read_rows(path, origin, wanted))


def _damaged(path: Path, number: int, origin: str) -> StudioError:
    return StudioError(f"The data set '{origin}' is damaged.", "Import it again.", where=f"{path.name}:{number}")


def swap_in(stage: Path, target: Path) -> None:
    """Puts a finished folder in the place of another, so that one of the two is always there."""
    away = target.with_name(f".away-{target.name}")
    shutil.rmtree(away, ignore_errors=True)
    if target.exists():
        target.replace(away)
    try:
        stage.replace(target)
    except OSError:
        if away.exists():
            away.replace(target)
        raise
    shutil.rmtree(away, ignore_errors=True)


def hashes_below(hashes: Iterable[int], share: float) -> int:
    """The bound under which a prompt's hash puts it into the evaluation split; 0 where there is none.

    Takes `share` of the distinct prompts, at least 1 and at most half, and none where there are fewer than 3.
    """
    distinct = sorted(set(hashes))
    if share <= 0 or len(distinct) < 3:
        return 0
    wanted = min(max(round(share * len(distinct)), 1), len(distinct) // 2)
    return distinct[wanted]
