"""What is shown of a message equals the message."""

import re
from html import unescape

import pytest

from qlora_studio.ui.views.chat import FOLDS, Message, Part, pane, show_text, split_folds

SAID = [
    "a<b and c>d",
    '<tool_call>\n{"name": "find"}\n</tool_call>',
    "<think>first</think>\n\nthen <div class='x'>\n  - one\n    - two\n</div>",
    "- a\n  - b\n    - c\n\n1. x",
    "<think>never closed & <b>bold",
    "</think> &lt; &amp; <script>alert(1)</script>",
    "$x_1$ **not bold** `code`\n```python\nprint('<a>')\n```",
    "  spaces  kept \n\n\n",
    "![x](https://evil.example/x.png) [y](javascript:alert(1)) <https://evil.example>",
    "",
]


def visible(html):
    """The text a reader sees, without the names of folded blocks."""
    return unescape(re.sub(r"<[^>]+>", "", re.sub(r"<summary>.*?</summary>", "", html)))


@pytest.mark.parametrize("text", SAID)
def test_what_is_shown_equals_what_was_said(text):
    assert visible(show_text(text)) == text
    assert "".join(part.text for part in split_folds(text)) == text


@pytest.mark.parametrize("text", SAID)
def test_formatting_drops_no_word_and_loads_nothing(text):
    html = show_text(text, formatted=True)
    markup = {"python", "1"}  # the language of a code block, the number of a list
    assert set(re.findall(r"\w+", text)) - markup <= set(re.findall(r"\w+", visible(html)))
    assert "<img" not in html and "<a " not in html and "<script" not in html


def test_thinking_and_tool_blocks_are_folded():
    assert split_folds("<think>a</think>b<tool_call>c</tool_call>") == [
        Part("<think>a</think>", "think"),
        Part("b"),
        Part("<tool_call>c</tool_call>", "tool_call"),
    ]
    assert show_text("<think>a") == (
        '<details class="qs-fold"><summary>Thinking …</summary><div class="qs-fold-text">&lt;think&gt;a</div></details>'
    )
    assert set(FOLDS) == {"think", "thinking", "tool_call", "tool_response", "tools"}


def test_formatting_is_of_answers_only_and_lays_markdown_out():
    shown = pane("Base", [Message("user", "**q**"), Message("assistant", "**a**")], "", formatted=True)
    assert "<span>**q**</span>" in shown and "<strong>a</strong>" in shown


def test_an_empty_pane_says_what_it_is_for():
    assert "how it answers" in pane("Base", [], "how it answers")
