"""Findings that need tokens: what rendering refused, what is too long, what would be learned without an end."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_studio.core.conversation import Conversation
from qlora_studio.core.dataset import Finding, Severity
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.data.render.tokenizer import Tokenizer

EXAMPLES_SHOWN = 5

LEAVE_OUT = "data.accepted"
"""The setting that accepts a finding by name: the rows concerned are then not trained, and the run records it."""

KINDS: dict[str, tuple[Severity, str, str, str | None]] = {
    "tools-unknown": (
        "error",
        "Tools stand in {rows}, and the chat template knows none.",
        "Choose a model or a template with tools, or leave such rows out.",
        "data.accepted",
    ),
    "template-refuses": (
        "error",
        "The chat template refuses {rows}.",
        "Fix the rows or choose another template.",
        "data.accepted",
    ),
    "template-drops": (
        "error",
        "The chat template drops or reorders turns of {rows}.",
        "Choose another template, or leave such rows out.",
        "data.accepted",
    ),
    "template-rewrites": (
        "error",
        "The chat template rewrites earlier turns of {rows}, so prompts cannot be trained.",
        "Train on answers only.",
        None,
    ),
    "prompt-not-prefix": (
        "error",
        "The prompt is not how the whole conversation begins in {rows}.",
        "Choose another template.",
        "data.accepted",
    ),
    "control-tokens": (
        "error",
        "Control tokens are typed inside the text of {rows}.",
        "Escape them (data.control_tokens = escape), or keep them if the text was rendered before.",
        "data.control_tokens=escape",
    ),
    "nothing-trained": (
        "error",
        "Nothing would be trained in {rows}.",
        "Add an answer, or leave such rows out.",
        "data.accepted",
    ),
    "unknown-token": (
        "error",
        "Token ids in {rows} are not in the model's vocabulary.",
        "These tokens were made for another model: give the text instead.",
        "data.accepted",
    ),
    "double-bos": (
        "warning",
        "{rows} of given tokens {are} begun twice.",
        "Give the text instead, or make the tokens again.",
        None,
    ),
    "bad-example": (
        "warning",
        "{rows} labelled as bad {are} left out.",
        "Only good answers are learned; keep them for preference training.",
        None,
    ),
    "held-out-elsewhere": (
        "note",
        "{rows} with a prompt that another set holds out for evaluation {are} left out.",
        "",
        None,
    ),
    "missing-end": (
        "error",
        "Answers of {rows} end without a token that ends an answer.",
        "The model would never learn to stop: choose another template.",
        None,
    ),
    "too-long": (
        "warning",
        "{rows} longer than the limit {are} left out, with {lost} trained tokens.",
        "Raise data.max_length, or cut them.",
        None,
    ),
    "text-blocks": (
        "note",
        "{rows} of raw text longer than the limit {are} cut into blocks; every token of them is trained.",
        "Set data.text_overlap to let blocks overlap.",
        None,
    ),
    "cut": (
        "warning",
        "{rows} longer than the limit {are} cut by {lost} trained tokens.",
        "Raise data.max_length to train them whole.",
        None,
    ),
}


class TokenFindings:
    """Counts while rows are rendered. Made for one preparation."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.stops = frozenset(tokenizer.control_tokens.values())
        self.vocabulary, self.bos = tokenizer.vocabulary, tokenizer.bos_id
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}
        self.lost: dict[str, int] = {}
        """Trained tokens that a limit takes away."""

    def note(self, name: str, where: str, error: StudioError | None = None) -> None:
        """One row with this finding."""
        self.counts[name] = self.counts.get(name, 0) + 1
        shown = self.examples.setdefault(name, [])
        if len(shown) < EXAMPLES_SHOWN:
            message = error.problems[0].message if error else ""
            shown.append(f"{where}: {message}" if message else where)

    def add(self, later: TokenFindings) -> None:
        """Takes what was found in rows that come after these."""
        for name, count in later.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
            shown = self.examples.setdefault(name, [])
            shown += later.examples[name][: EXAMPLES_SHOWN - len(shown)]
        for name, lost in later.lost.items():
            self.lost[name] = self.lost.get(name, 0) + lost

    def unusable(self, example: Example) -> str:
        """The finding that keeps a rendered row from being trained, or an empty string."""
        if not example.trained_tokens:
            return "nothing-trained"
        return "unknown-token" if max(example.input_ids) >= self.vocabulary else ""

    def look(self, example: Example, conversation: Conversation) -> None:
        """What a rendered row shows."""
        if self.bos is not None and example.input_ids[:2] == (self.bos, self.bos):
            self.note("double-bos", str(conversation.source))
        if (
            conversation.tokens is None
            and conversation.turns
            and example.input_ids[example.spans[-1][1] - 1] not in self.stops
        ):
            self.note("missing-end", str(conversation.source))

    def too_long(self, where: str, whole: Example, limit: int, shorter: Example | None) -> None:
        """A row over the limit, and what was left of it."""
        tokens = len(whole.input_ids)
        name = "too-long" if shorter is None else "cut"
        self.lost[name] = self.lost.get(name, 0) + whole.trained_tokens - (shorter.trained_tokens if shorter else 0)
        if shorter is None:
            self.note(name, f"{where}: {tokens} tokens, limit {limit}")
        else:
            self.note(name, f"{where}: {tokens} tokens cut to {len(shorter.input_ids)}")

    def findings(self) -> tuple[Finding, ...]:
        return tuple(self._finding(name) for name in KINDS if name in self.counts)

    def _finding(self, name: str) -> Finding:
        severity, message, hint, setting = KINDS[name]
        count = self.counts[name]
        filled = message.format(
            rows=f"{count} row{'s' if count != 1 else ''}",
            are="is" if count == 1 else "are",
            lost=self.lost.get(name, 0),
        )
        shown: Sequence[str] = self.examples[name]
        return Finding(
            name=name,
            severity=severity,
            count=count,
            message=filled,
            examples=tuple(shown),
            hint=hint,
            setting=f"{setting}={name}" if setting == LEAVE_OUT else setting or "",
        )
