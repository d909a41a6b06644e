"""A conversation as bubbles. What is shown equals the text: nothing is dropped, only thinking and tools are folded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt

from qlora_studio.ui.views.html import Html, card, join, number, tag

FOLDS = {
    "think": "Thinking",
    "thinking": "Thinking",
    "tool_call": "Tool call",
    "tool_response": "Tool result",
    "tools": "Tools",
}
"""Blocks that are folded, by the tag that models write around them."""
BLOCK = re.compile(rf"<({'|'.join(FOLDS)})>.*?(?:</\1>|\Z)", re.DOTALL)
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink", "entity"])
"""Writes tags as the text they are, and loads and links nothing."""


@dataclass(frozen=True, slots=True)
class Message:
    """One bubble."""

    role: str
    """`user` or `assistant`."""
    text: str
    note: str = ""
    """What a person should know of it: that it was stopped, or never asked."""
    growing: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a message; `fold` is the tag of a block that is folded, empty for plain text."""

    text: str
    fold: str = ""


def split_folds(text: str) -> list[Part]:
    """The message in stretches that together are the message, to the letter. An unclosed block lasts to the end."""
    parts, end = [], 0
    for found in BLOCK.finditer(text):
        if found.start() > end:
            parts.append(Part(text[end : found.start()]))
        parts.append(Part(found.group(), found.group(1)))
        end = found.end()
    return [*parts, Part(text[end:])] if end < len(text) or not parts else parts


def show_text(text: str, *, formatted: bool = False) -> Html:
    """A message as HTML: letter by letter, or with its Markdown laid out."""
    return join(_part(part, formatted) for part in split_folds(text))


def pane(name: str, messages: Sequence[Message], hint: str, *, formatted: bool = False) -> Html:
    """One side of the comparison, under its name."""
    shown = [_bubble(message, formatted) for message in messages]
    body = tag("div", *shown, class_="qs-conversation", role="log", aria_label=name, tabindex=0)
    waiting = tag("p", hint, class_="qs-conversation-hint")
    return tag("section", tag("header", tag("b", name)), body if shown else waiting, class_="qs-card qs-pane")


def prompts_card(name: str, prompt: str) -> Html:
    """The exact text one side was given."""
    return card(name, tag("pre", prompt or "Shown after the first answer.", class_="qs-log"))


def speeds(answers: Sequence[tuple[str, int, float]], *, loading: bool) -> Html:
    """Tokens and tokens a second of each side's last answer: `(name, tokens, tokens per second)`."""
    parts = [
        f"{name}: {tokens} tokens" + (f", {speed:.1f} a second" if speed else "")
        for name, tokens, speed in answers
        if tokens
    ]
    if loading:
        parts.append("the model is loading or reading the prompt …")
    return tag("p", number("   ".join(parts)), class_="qs-speed")


def _bubble(message: Message, formatted: bool) -> Html:
    laid_out = formatted and message.role == "assistant"
    text = tag(
        "div", show_text(message.text, formatted=laid_out), class_="qs-text formatted" if laid_out else "qs-text"
    )
    copy = tag("button", "Copy", class_="qs-copy", type="button", data_copy=message.text) if message.text else ""
    dots = tag("span", "…", class_="qs-dots") if message.growing else ""
    note = tag("small", message.note) if message.note else ""
    return tag("article", text, dots, note, copy, class_=f"qs-message {message.role}", aria_label=message.role)


def _part(part: Part, formatted: bool) -> Html:
    if part.fold:
        closed = part.text.endswith(f"</{part.fold}>")
        body = tag("div", part.text, class_="qs-fold-text")
        return tag("details", tag("summary", FOLDS[part.fold] + ("" if closed else " …")), body, class_="qs-fold")
    return Html(MARKDOWN.render(part.text)) if formatted else tag("span", part.text)
