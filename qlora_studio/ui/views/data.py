"""Rows as conversations, what was detected, what was found, and the sets there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from qlora_studio.core.conversation import Conversation, ToolCall, Turn
from qlora_studio.core.dataset import DatasetReport, Finding, FormatGuess
from qlora_studio.core.errors import Problem
from qlora_studio.core.jobs import TokeniseReport
from qlora_studio.ui.fields import in_labels
from qlora_studio.ui.views.html import (
    Html,
    Tile,
    bullets,
    card,
    chip,
    count,
    empty,
    error_card,
    join,
    more,
    number,
    plural,
    short_count,
    table,
    tag,
    tiles,
)

LONGEST = 1200
"""Characters of one turn in the preview; the rest is named, not shown."""
NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
SEVERITIES = {"error": "bad", "warning": "warn", "note": ""}


def nothing_imported() -> Html:
    return empty(
        "No data yet",
        "Drop a file on the left, type a path, or press “Use the demo rows” to see the whole way at once.",
    )


def hub_waits(source: str) -> Html:
    return empty(f"{source} is a data set of the hub", "It is fetched when you import it; its rows are shown then.")


def import_line(source: str, refused: bool) -> Html:
    """What stands beside the button that imports."""
    state = " cannot be imported like this." if refused else " is open and not imported yet."
    return tag("p", tag("b", Path(source).name), state, class_="qs-blocked" if refused else "qs-ready")


def columns_found(names: Sequence[str]) -> Html:
    """What a person can map where no format fits by itself."""
    if not names:
        return Html("")
    listed = join(tag("code", name) for name in names)
    return card(
        "", "The rows have these columns: ", listed, ". Choose a format on the left and say which column holds what."
    )


def guess_line(guess: FormatGuess, titles: Mapping[str, str]) -> Html:
    """What was detected, and why."""
    sure = f"{guess.confidence:.0%} of the rows looked at" if guess.reason != "chosen by hand" else "your choice"
    return tag(
        "p",
        "Read as ",
        tag("b", titles.get(guess.format, guess.format)),
        f" ({sure}). {_sentence(guess.reason)}",
        class_="qs-guess",
    )


def report_tiles(reports: Sequence[DatasetReport], tokens: TokeniseReport | None, eval_share: float) -> Html:
    """The chosen sets in figures; `tokens` is what the token job found, where it is known."""
    rows = sum(report.rows for report in reports)
    apart = sum(report.eval_rows for report in reports)
    held = f"{count(apart)} in a file of their own" if apart else f"about {count(round(rows * eval_share))} held out"
    name = reports[0].name if len(reports) == 1 else f"{len(reports)} sets mixed"
    first = Tile("Rows", count(rows), held)
    kind = Tile("Set", name, f"read as {reports[0].format}" if len(reports) == 1 else "with shares, below")
    if tokens is None:
        return tiles(
            [first, kind, Tile("Tokens", "–", "not counted yet"), Tile("Findings", "–", "come with the tokens")]
        )
    severities = [finding.severity for finding in tokens.findings]
    errors, warnings = severities.count("error"), severities.count("warning")
    found = "bad" if errors else "warn" if warnings else ""
    detail = f"{plural(errors, 'error')}, {plural(warnings, 'warning')}"
    fitting = 1 - tokens.too_long / max(1, tokens.rows)
    cost = f"{count(tokens.too_long)} longer" if tokens.too_long else "every row is whole"
    return tiles(
        [
            first,
            Tile(
                "Tokens",
                short_count(tokens.tokens),
                f"median {count(tokens.median)} · p95 {count(tokens.p95)}",
            ),
            Tile("Findings", count(len(severities)), detail, found),
            Tile(f"Fits {count(tokens.limit)}", f"{fitting:.0%}", cost, "" if fitting == 1 else "warn"),
        ]
    )


def sets_table(reports: Sequence[DatasetReport], chosen: Iterable[str]) -> Html:
    """All imported sets; the ones the next run learns from are marked."""
    if not reports:
        return empty("No imported sets yet", "What you import stays here, by name, and can be mixed.")
    picked = set(chosen)
    rows = [
        (
            join((tag("b", report.name), " ", chip("in use", "good") if report.name in picked else "")),
            report.format,
            number(count(report.rows)),
            report.source_file,
        )
        for report in reports
    ]
    return table(("Set", "Format", "Rows", "From"), rows, "Imported data sets")


def left_over(report: DatasetReport) -> Html:
    """What became of every row of an import, and the columns and rows of it that are not learned."""
    sentences = [f"Rows of {report.title or report.name}: {report.account}."] if report.account.seen else []
    sentences += [f"Passed over, for it holds no rows: {name}." for name in report.account.passed_over]
    sentences += report.account.notes
    if report.extra_fields:
        named = ", ".join(f"{name} ({plural(rows, 'row')})" for name, rows in report.extra_fields.items())
        sentences.append(f"Kept beside the conversations, never learned: {named}.")
    sentences += report.problems
    return card("Good to know", bullets(sentences)) if sentences else Html("")


def problems_card(problems: Sequence[Problem]) -> Html:
    """Rows that cannot be read, each with file and line."""
    if not problems:
        return Html("")
    return error_card(
        [str(problem) for problem in problems], f"{plural(len(problems), 'row')} among the first cannot be read"
    )


def conversations_list(conversations: Sequence[Conversation]) -> Html:
    """The rows as the model will meet them."""
    if not conversations:
        return empty("No row to show", "None of the first rows could be read in this format. Choose another one.")
    return tag(
        "div",
        *(_row(conversation) for conversation in conversations),
        class_="qs-rows",
        tabindex=0,
        aria_label="Preview of the rows",
    )


def findings_table(findings: Sequence[Finding], sets: Sequence[str]) -> Html:
    """What is wrong with the rows of these sets."""
    about = tag("p", "Findings in ", tag("b", ", ".join(sets)), ".", class_="qs-guess")
    if not findings:
        nothing = "No duplicate, empty or truncated rows, and nothing else that would spoil the run."
        return join((about, card("Nothing to report", tag("p", nothing, class_="qs-small"))))
    rows = [
        (
            chip(finding.severity, SEVERITIES.get(finding.severity, "")),
            join((tag("b", finding.name.replace("-", " ")), tag("div", finding.message))),
            number(count(finding.count)),
            join(
                (
                    tag("div", in_labels(finding.hint)),
                    more("Where", bullets(finding.examples, "quiet")) if finding.examples else "",
                )
            ),
        )
        for finding in findings
    ]
    return join((about, table(("", "Finding", "Rows", "What to do"), rows, "Findings")))


def _row(conversation: Conversation) -> Html:
    parts: list[object] = [tag("small", str(conversation.source), class_="qs-number")]
    if conversation.text is not None:
        parts.append(_part("Text", conversation.text, "assistant"))
    parts += [
        _part("Trained" if segment.train else "Given", segment.text, "assistant" if segment.train else "user")
        for segment in conversation.segments
    ]
    if conversation.tokens is not None:
        parts.append(
            _part("Tokens", f"{len(conversation.tokens.input_ids)} token ids that came with the row", "assistant")
        )
    if conversation.tools:
        parts.append(_part("Tools", plural(len(conversation.tools), "tool"), "system"))
    parts += [_turn(turn) for turn in conversation.turns]
    if conversation.rejected:
        parts += [tag("small", "Rejected instead:"), *(_turn(turn) for turn in conversation.rejected)]
    if conversation.label is not None:
        parts.append(
            chip("good answer" if conversation.label else "bad answer", "good" if conversation.label else "bad")
        )
    return tag("article", *parts)


def _turn(turn: Turn) -> Html:
    reasoning = tag("em", _short(turn.reasoning)) if turn.reasoning else ""
    calls = join(tag("code", _call(call)) for call in turn.tool_calls)
    name = NAMES[turn.role] + (f" {turn.name}" if turn.name else "")
    return _part(
        name, turn.content, turn.role, reasoning, calls, "" if turn.train is not False else chip("not trained")
    )


def _part(name: str, content: str, role: str, *more_parts: object) -> Html:
    return tag(
        "div",
        tag("b", name),
        tag("div", *more_parts[:1], tag("span", _short(content)), *more_parts[1:]),
        class_=f"qs-turn {role}",
    )


def _call(call: ToolCall) -> str:
    return f"{call.name}({call.arguments})"


def _short(content: str) -> str:
    return (
        content
        if len(content) <= LONGEST
        else f"{content[:LONGEST]} … ({count(len(content) - LONGEST)} characters more)"
    )


def _sentence(reason: str) -> str:
    reason = reason.strip()
    return (
        ""
        if not reason or reason == "chosen"
        else f"{reason[0].upper()}{reason[1:]}" + ("" if reason.endswith(".") else ".")
    )
