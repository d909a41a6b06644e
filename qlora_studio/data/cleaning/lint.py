"""Findings about the rows of a set, before any token is made and before any time on the card is spent."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from statistics import quantiles

from qlora_studio.core.conversation import Conversation, Source
from qlora_studio.core.dataset import Finding, Severity
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.cleaning.duplicates import find_equal, text_hash
from qlora_studio.data.cleaning.steps import NearCopies, all_text, all_trained, answers, is_empty_answer
from qlora_studio.data.cleaning.text import (
    find_control_like,
    find_emails,
    find_mojibake,
    find_odd,
    find_secrets,
    find_unfinished,
    fix_mojibake,
    language_of,
)
from qlora_studio.data.sets.sides import prompt_hash

EXAMPLES_SHOWN = 5
REPEATED_FROM_ROWS = 10
REPEATED_SHARE = 0.2
"""An answer that this share of all rows gives is worth a look."""
UNFINISHED_SHARE = 0.12
"""Where more rows than this end without a stop, that is how answers are written there."""
_FIRST_ANSWERS = 1000
"""Answers whose words are kept: one that a fifth of all rows give is among the first."""
_WORST_FIRST = ("error", "warning", "note")
_LINE_BITS = 40
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
        "Decode it again.",
        "fix-mojibake",
    ),
    "lost-characters": (
        "warning",
        "{rows} text that was decoded wrongly and cannot be brought back from it.",
        "Take it from the source again.",
        None,
    ),
    "unfinished-answer": (
        "note",
        "{rows} an answer that seems to end in the middle: the model would learn to break off.",
        "Look at these rows; a limit may have cut them where they were made.",
        None,
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


class _Places:
    """Where each row came from, in eight bytes a row."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.names: list[str] = []
        self.lines = array("q")

    def append(self, source: Source) -> None:
        if source.file not in self.files:
            self.files[source.file] = len(self.names)
            self.names.append(source.file)
        self.lines.append(self.files[source.file] << _LINE_BITS | source.line)

    def __getitem__(self, row: int) -> str:
        file, line = divmod(self.lines[row], 1 << _LINE_BITS)
        return str(Source(self.names[file], line))


class Lint:
    """Looks at rows one by one. Made for one pass over one set."""

    def __init__(self, eval_prompts: frozenset[int] = frozenset()) -> None:
        self.eval_prompts = eval_prompts
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.detail: dict[str, str] = {}
        self.places = _Places()
        self.near = NearCopies()
        self.row_hashes, self.answer_hashes = array("Q"), array("Q")
        self.answer_rows, self.lengths = array("q"), array("q")
        self.first_answers: dict[int, str] = {}
        self.openings: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()

    def look(self, row: Conversation) -> None:
        """Everything one row shows."""
        where, number, text = str(row.source), self.rows, all_text(row)
        self.rows += 1
        self.places.append(row.source)
        self.lengths.append(len(text))
        self.row_hashes.append(text_hash(all_trained(row, text)))
        self.near.remember(row, text, number)
        if row.turns:
            self._look_at_turns(row, where)
        if row.tokens is None:
            self._look_at_text(text, where, number)
        if self.eval_prompts and prompt_hash(row) in self.eval_prompts:
            self.note("eval-overlap", where)

    def note(self, name: str, where: str, detail: str = "") -> None:
        """One row with this finding."""
        self.counts[name] += 1
        shown = self.examples.setdefault(name, [])
        if len(shown) < EXAMPLES_SHOWN:
            shown.append(f"{where}: {detail}" if detail else where)

    def _look_at_turns(self, row: Conversation, where: str) -> None:
        given = answers(row)
        if not given:
            self.note("no-answer", where)
        elif any(map(is_empty_answer, given)):
            self.note("empty-answer", where)
        questions = [turn for turn in row.turns if turn.role == "user"]
        if any(not turn.content.strip() for turn in questions):
            self.note("empty-prompt", where)
        if given and row.turns[-1].role != "assistant":
            self.note("unanswered-end", where)
        roles = [turn.role for turn in row.turns if turn.role != "system"]
        calm = all(one != other or one == "tool" for one, other in pairwise(roles))
        if not calm or (roles and roles[0] != "user") or any(turn.role == "system" for turn in row.turns[1:]):
            self.note("odd-order", where)
        if given and (answer := given[-1].content.strip()):
            mark = text_hash(answer)
            self.answer_hashes.append(mark)
            if len(self.first_answers) < _FIRST_ANSWERS:
                self.first_answers.setdefault(mark, answer[:60])
            self.answer_rows.append(self.rows - 1)
            if sign := find_unfinished(answer):
                self.note(f"unfinished-{sign}", where, f"…{answer[-40:]!r}")
        if questions:
            self.openings[" ".join(questions[0].content.split(maxsplit=2)[:2]).lower()] += 1

    def _look_at_text(self, text: str, where: str, number: int) -> None:
        if found := find_secrets(text):
            self.note("secret", where, f"{found[0][:7]}…")
        if addresses := find_emails(text):
            self.note("email", where, addresses[0])
        if broken := find_mojibake(text):
            can_be_fixed = find_mojibake(fix_mojibake(text)) is None
            self.note("mojibake" if can_be_fixed else "lost-characters", where, repr(broken))
        if odd := find_odd(text.replace("\x1e", "").replace("\x1f", "")):
            self.note("odd-characters", where, f"U+{ord(odd):04X}")
        if control := find_control_like(text):
            self.note("control-like", where, control)
        if number % _LANGUAGE_EVERY == 0:
            self.languages[language_of(text)] += 1

    def findings(self) -> tuple[Finding, ...]:
        """What was found in all rows, the worst first."""
        self._compare_rows()
        found = [self._finding(name) for name in KINDS if self.counts[name]]
        return tuple(sorted(found, key=lambda finding: _WORST_FIRST.index(finding.severity)))

    def _compare_rows(self) -> None:
        """Findings that need all rows at once."""
        copies = find_equal(self.row_hashes)
        known = {late for late, _ in copies}
        for late, early in copies:
            self.note("copy", self.places[late], f"as {self.places[early]}")
        for late, early in self.near.found():
            if late not in known:
                self.note("near-copy", self.places[late], f"like {self.places[early]}")
        self._compare_answers()
        self._judge_unfinished()
        for opening, count in self.openings.items():
            if opening and count >= REPEATED_FROM_ROWS and count > self.rows / 2:
                self.counts["one-opening"], self.examples["one-opening"] = count, [repr(opening)]
        if 0 < self.rows < 3:
            self.counts["few-rows"] = self.rows
        if len(self.lengths) >= 20:
            low, _, high = quantiles(self.lengths, n=4)
            bound = max(high + 6 * (high - low), 4 * high)
            for row, length in enumerate(self.lengths):
                if length > bound:
                    where = self.places[row]
                    self.note("length-outlier", where, f"{length} characters, three in four rows have under {high:.0f}")
        if len(self.languages) > 1:
            seen = self.languages.total()
            shares = [f"{name} {100 * count / seen:.0f} %" for name, count in self.languages.most_common(5)]
            self.counts["languages"], self.detail["languages"] = seen, ", ".join(shares)

    def _compare_answers(self) -> None:
        """The answer that most rows give."""
        repeats = Counter(first for _, first in find_equal(self.answer_hashes))
        for first, count in repeats.most_common(1):
            if count + 1 >= REPEATED_FROM_ROWS and count + 1 >= REPEATED_SHARE * self.rows:
                place, answer = self.places[self.answer_rows[first]], self.first_answers.get(self.answer_hashes[first])
                shown = f"{place}: {answer!r}" if answer else place
                self.counts["repeated-answer"], self.examples["repeated-answer"] = count + 1, [shown]

    def _judge_unfinished(self) -> None:
        """Answers that end in the middle. Where many end without a stop, that is a manner and no fault."""
        sure, likely = self.counts.pop("unfinished-sure", 0), self.counts.pop("unfinished-likely", 0)
        examples = self.examples.pop("unfinished-sure", []), self.examples.pop("unfinished-likely", [])
        if likely > max(3, UNFINISHED_SHARE * self.rows):
            likely, examples = 0, (examples[0], [])
        if sure + likely:
            self.counts["unfinished-answer"] = sure + likely
            self.examples["unfinished-answer"] = [*examples[0], *examples[1]][:EXAMPLES_SHOWN]

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
    checks = Lint(eval_prompts)
    for row in rows:
        checks.look(row)
    return checks.findings()


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
