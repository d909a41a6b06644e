"""Findings about the rows of a set, before any token is made and before any time on the card is spent."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from statistics import quantiles

from qlora_studio.core.conversation import Conversation
from qlora_studio.core.dataset import Finding, Severity
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.cleaning.duplicates import Duplicates
from qlora_studio.data.cleaning.remedies import NearCopies, all_text, all_trained, answers, is_empty_answer
from qlora_studio.data.cleaning.text import (
    find_control_like,
    find_emails,
    find_mojibake,
    find_odd,
    find_secrets,
    language_of,
)
from qlora_studio.data.sets.sides import prompt_hash

EXAMPLES_SHOWN = 5
REPEATED_FROM_ROWS = 10
REPEATED_SHARE = 0.2
"""An answer that this share of all rows gives is worth a look."""
_LANGUAGE_EVERY = 20
"""One row in so many is asked for its language: shares need no more."""

KINDS: dict[str, tuple[Severity, str, str, str | None]] = {
    "empty-answer": (
        "error",
        "{rows} an answer that is empty or blank: the model would learn to say nothing.",
        "Leave these rows out, or write the answers.",
        "drop-empty-answers",
    ),
    "no-answer": ("error", "{rows} no answer at all.", "Leave these rows out.", "drop-unanswered"),
    "secret": (
        "error",
        "{rows} something that looks like a key or password: a trained model can repeat it.",
        "Replace them by a marker, and revoke the keys.",
        "mask-secrets",
    ),
    "eval-overlap": (
        "warning",
        "{rows} a prompt that stands in the evaluation rows too, which makes the result look better than it is.",
        "Import again and drop the overlap.",
        None,
    ),
    "empty-prompt": (
        "warning",
        "{rows} a question that is empty or blank.",
        "Leave these rows out.",
        "drop-empty-prompts",
    ),
    "copy": ("warning", "{rows} exactly what an earlier row has.", "Keep the first of each.", "drop-copies"),
    "near-copy": ("note", "{rows} nearly what an earlier row has.", "Keep the first of each.", "drop-near-copies"),
    "repeated-answer": (
        "warning",
        "{rows} the same answer, word for word.",
        "Leave most of them out, or the model will give it everywhere.",
        None,
    ),
    "control-like": (
        "warning",
        "{rows} control tokens of some model typed in the text.",
        "Whether they are those of the chosen model is checked with its tokenizer, where they can be escaped.",
        None,
    ),
    "mojibake": (
        "warning",
        "{rows} text that was decoded wrongly, such as \u00c3\u00a9 for \u00e9.",
        "Decode it again; replacement characters need the source.",
        "mend-mojibake",
    ),
    "odd-characters": ("warning", "{rows} invisible characters.", "Remove them.", "remove-odd-characters"),
    "email": ("warning", "{rows} e-mail addresses of people.", "Replace them.", "mask-emails"),
    "unanswered-end": (
        "note",
        "{rows} a last question that nobody answers; it is not learned.",
        "Remove it, if you like.",
        "drop-unanswered-end",
    ),
    "odd-order": (
        "note",
        "{rows} turns in an unusual order (two questions in a row, an answer first); some templates refuse that.",
        "",
        None,
    ),
    "length-outlier": ("note", "{rows} far more text than the others.", "Look whether they belong here.", None),
    "few-rows": (
        "warning",
        "This set has {count} rows: nothing can be held out to measure the result.",
        "Add rows.",
        None,
    ),
    "one-opening": (
        "note",
        "{rows} a first question that opens with the same two words.",
        "Vary how it is asked.",
        None,
    ),
    "languages": ("note", "Languages, from a sample: {detail}.", "", None),
}
"""Severity, sentence, what to do and the remedy's name, in the order they are shown."""


class Lint:
    """Looks at rows one by one. Made for one pass over one set."""

    def __init__(self, eval_prompts: frozenset[int] = frozenset()) -> None:
        self.eval_prompts = eval_prompts
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.detail: dict[str, str] = {}
        self.duplicates, self.near = Duplicates(), NearCopies()
        self.places: list[str] = []
        self.lengths: list[int] = []
        self.answers: Counter[int] = Counter()
        self.answer_example: dict[int, tuple[str, str]] = {}
        self.openings: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()

    def look(self, row: Conversation) -> None:
        """Everything one row shows."""
        where, number, text = str(row.source), self.rows, all_text(row)
        self.rows += 1
        self.places.append(where)
        self.lengths.append(len(text))
        if (earlier := self.duplicates.exact(all_trained(row), number)) is not None:
            self.note("copy", where, f"as {self.places[earlier]}")
        else:
            self.near.remember(row, number)
        if row.turns:
            self._look_at_turns(row, where)
        if row.tokens is None:
            self._look_at_text(text, where, number)
        if self.eval_prompts and prompt_hash(row) in self.eval_prompts:
            self.note("eval-overlap", where)

    def note(self, name: str, where: str, said: str = "") -> None:
        """One row with this finding."""
        self.counts[name] += 1
        shown = self.examples.setdefault(name, [])
        if len(shown) < EXAMPLES_SHOWN:
            shown.append(f"{where}: {said}" if said else where)

    def _look_at_turns(self, row: Conversation, where: str) -> None:
        given = answers(row)
        if not given:
            self.note("no-answer", where)
        elif any(map(is_empty_answer, given)):
            self.note("empty-answer", where)
        asked = [turn for turn in row.turns if turn.role == "user"]
        if any(not turn.content.strip() for turn in asked):
            self.note("empty-prompt", where)
        if given and row.turns[-1].role != "assistant":
            self.note("unanswered-end", where)
        roles = [turn.role for turn in row.turns if turn.role != "system"]
        calm = all(one != other or one == "tool" for one, other in pairwise(roles))
        if not calm or (roles and roles[0] != "user") or any(turn.role == "system" for turn in row.turns[1:]):
            self.note("odd-order", where)
        if given and (said := given[-1].content.strip()):
            key = hash(said)
            self.answers[key] += 1
            self.answer_example.setdefault(key, (where, said[:60]))
        if asked:
            self.openings[" ".join(asked[0].content.split(maxsplit=2)[:2]).lower()] += 1

    def _look_at_text(self, text: str, where: str, number: int) -> None:
        if found := find_secrets(text):
            self.note("secret", where, f"{found[0][:7]}…")
        if addresses := find_emails(text):
            self.note("email", where, addresses[0])
        if broken := find_mojibake(text):
            self.note("mojibake", where, repr(broken))
        if odd := find_odd(text.replace("\x1e", "").replace("\x1f", "")):
            self.note("odd-characters", where, f"U+{ord(odd):04X}")
        if control := find_control_like(text):
            self.note("control-like", where, control)
        if number % _LANGUAGE_EVERY == 0:
            self.languages[language_of(text)] += 1

    def findings(self) -> tuple[Finding, ...]:
        """What was found in all rows, the worst first."""
        self._compare_rows()
        order = {"error": 0, "warning": 1, "note": 2}
        found = [self._finding(name) for name in KINDS if self.counts[name]]
        return tuple(sorted(found, key=lambda finding: order[finding.severity]))

    def _compare_rows(self) -> None:
        """Findings that need all rows at once."""
        for late, early in self.near.found():
            self.note("near-copy", self.places[late], f"like {self.places[early]}")
        for key, count in self.answers.most_common(1):
            if count >= REPEATED_FROM_ROWS and count >= REPEATED_SHARE * self.rows:
                where, said = self.answer_example[key]
                self.counts["repeated-answer"], self.examples["repeated-answer"] = count, [f"{where}: {said!r}"]
        for opening, count in self.openings.most_common(1):
            if opening and count >= REPEATED_FROM_ROWS and count > self.rows / 2:
                self.counts["one-opening"], self.examples["one-opening"] = count, [repr(opening)]
        if 0 < self.rows < 3:
            self.counts["few-rows"] = self.rows
        if len(self.lengths) >= 20:
            low, _, high = quantiles(self.lengths, n=4)
            bound = max(high + 6 * (high - low), 4 * high)
            for where, length in zip(self.places, self.lengths, strict=True):
                if length > bound:
                    self.note("length-outlier", where, f"{length} characters, three in four rows have under {high:.0f}")
        if len(self.languages) > 1:
            seen = self.languages.total()
            shares = [f"{name} {100 * count / seen:.0f} %" for name, count in self.languages.most_common(5)]
            self.counts["languages"], self.detail["languages"] = seen, ", ".join(shares)

    def _finding(self, name: str) -> Finding:
        severity, message, hint, remedy = KINDS[name]
        count = self.counts[name]
        rows = f"{count} row{'s have' if count != 1 else ' has'}"
        return Finding(
            name=name,
            severity=severity,
            count=count,
            message=message.format(rows=rows, count=count, detail=self.detail.get(name, "")),
            examples=tuple(self.examples.get(name, ())),
            hint=hint,
            remedy=remedy,
        )


def lint(rows: Iterable[Conversation], eval_prompts: frozenset[int] = frozenset()) -> tuple[Finding, ...]:
    """The findings of these rows. `eval_prompts` are hashes of prompts that must not stand among them."""
    looked = Lint(eval_prompts)
    for row in rows:
        looked.look(row)
    return looked.findings()


def check_findings(findings: Iterable[Finding], accepted: Iterable[str] = ()) -> None:
    """Raises a StudioError that names every error-level finding which is not accepted by name."""
    known = set(accepted)
    standing = [finding for finding in findings if finding.severity == "error" and finding.name not in known]
    if standing:
        raise StudioError.of(
            Problem(
                re.sub(r"\s+", " ", finding.message),
                f"{finding.hint} Or accept it by name: data.accepted = {finding.name}.".strip(),
                finding.examples[0].partition(": ")[0] if finding.examples else "",
            )
            for finding in standing
        )
