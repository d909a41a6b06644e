"""Where a sign in a text begins and ends: what is looked for at all, what is read again, how long is long enough."""

from __future__ import annotations

import pytest

from qlora_studio.data.cleaning.text import (
    _names_a_secret,
    _opens_a_secret,
    find_emails,
    find_mojibake,
    find_secrets,
    find_unfinished,
    fix_mojibake,
    language_of,
    mask_emails,
    mask_secrets,
    remove_odd,
)


@pytest.mark.parametrize(
    ("text", "looked"),
    [
        ("plain words", False),
        ("a_b-c.d:e/f=g", False),
        ("AKIA", True),
        ("see hf_x", True),
        ("sk-", True),
        ("SG.", True),
        ("1:AA", True),
        ("x redis://", True),
        ("hooks.slack.com/x", True),
        ("AccountKey=", True),
    ],
)
def test_a_text_without_any_opening_is_asked_for_nothing_else(text, looked):
    assert _opens_a_secret(text) == looked


@pytest.mark.parametrize(
    ("text", "looked"),
    [
        ("password = 'x'", True),
        ('PASSWORD: "x"', True),
        ("password: 'x'", True),
        ('Secret = "x"', True),
        ("my key='x'", True),
        ("a token:'x'", True),
        ("password 'x'", False),
        ('password "x"', False),
        ("password = x", False),
        ("password: x", False),
        ("name = 'x': \"y\"", False),
        ("password", False),
    ],
)
def test_a_secret_by_name_needs_a_word_a_sign_and_a_quote(text, looked):
    assert _names_a_secret(text) == looked


def test_every_key_of_a_text_is_found_and_hidden_and_nothing_else():
    text = "AKIAABCDEFGHIJKLMNOP and -----BEGIN RSA PRIVATE KEY-----\nx\n-----END RSA PRIVATE KEY----- end"
    assert find_secrets(text) == [
        "AKIAABCDEFGHIJKLMNOP",
        "-----BEGIN RSA PRIVATE KEY-----\nx\n-----END RSA PRIVATE KEY-----",
    ]
    assert mask_secrets(text) == "[secret removed] and [secret removed] end"


def test_addresses_of_people_are_found_and_those_of_examples_are_none():
    text = "a.b+c@firm.co.uk, jo@Example.COM, x@sub.test.com, d@firm.de, a.b+c@firm.co.uk"
    assert find_emails(text) == ["a.b+c@firm.co.uk", "d@firm.de", "a.b+c@firm.co.uk"]
    assert mask_emails(text) == "name@example.com, jo@Example.COM, x@sub.test.com, name@example.com, name@example.com"
    assert find_emails("nobody at home.de") == []


def test_what_nobody_sees_is_removed_and_what_joins_letters_stays():
    assert remove_odd("a\x00b\u200bc\u200dd\te\n\u202ef\ufeff") == "abc\u200dd\te\nf"


def read_as(text, codec):
    return text.encode("utf-8").decode(codec)


CUT = "\u00e0\u20ac\u20ac"
"""Bytes E0 80 80: what begins like a character of three bytes and is none."""


@pytest.mark.parametrize(
    ("text", "found", "fixed"),
    [
        ("\u00c3\u00a9 and \u00d0\u00b0", "\u00c3\u00a9", "\u00e9 and \u00d0\u00b0"),  # one pair alone may be meant
        (f"\u2192{CUT}", CUT, f"\u2192{CUT}"),
        (f"{CUT} \u00c3\u00a9", CUT, f"{CUT} \u00e9"),
        ("a\ufffdb", "\ufffd", "a\ufffdb"),
        (read_as("\u4f60\u597d\u4e16\u754c", "gb18030"), read_as("\u4f60\u597d\u4e16\u754c", "gb18030"), "\u4f60\u597d\u4e16\u754c"),
        # every pair of these bytes is half of a character and a letter: as many characters as before, so no sign
        (b"\xe4\xbd\xa0A\xe4\xbd\xa0A\xe4\xbd\xa0A".decode("gb18030"), None, b"\xe4\xbd\xa0A\xe4\xbd\xa0A\xe4\xbd\xa0A".decode("gb18030")),
        ("\u4f60\u597d\u4e16\u754c\u4f60\u597d", None, "\u4f60\u597d\u4e16\u754c\u4f60\u597d"),
    ],
)  # fmt: skip
def test_only_what_was_surely_read_wrongly_is_read_again(text, found, fixed):
    assert (find_mojibake(text), fix_mojibake(text)) == (found, fixed)


def test_a_cut_end_is_found_and_never_mended():
    """The last two bytes of the last character are missing, as they mostly are in such text."""
    cut = "\u65e5\u672c\u8a9e\u30c6\u30b9\u30c8".encode()[:-2].decode("gb18030")
    assert find_mojibake(cut) == cut and fix_mojibake(cut) == cut


NINE = "We went. After that we all went to see "
"""Nine words: a sentence that ended and the beginning of another one."""


@pytest.mark.parametrize(("length", "found"), [(79, ""), (80, "sure"), (81, "sure")])
def test_an_answer_of_80_characters_can_be_cut(length, found):
    answer = NINE + "x" * (length - len(NINE) - 4) + " the"
    assert len(answer) == length and find_unfinished(answer) == found


@pytest.mark.parametrize(("words", "found"), [(7, ""), (8, "likely")])
def test_a_line_of_eight_words_can_be_cut(words, found):
    answer = "This is what there is to say of it, and it was said at length. It is all told.\n" + "word " * words
    assert find_unfinished(answer.strip()) == found


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("x" * 480 + "\u044f" * 200, "unknown"),  # the first 600 characters count: a fifth of them is not enough
        ("x" * 479 + "\u044f" * 200, "Cyrillic"),
        ("the and " + "word " * 58, "unknown"),  # one small word in twenty
        ("the and of " + "word " * 57, "English"),
        ("the " + "word " * 5, "unknown"),  # and two at least
        ("the and " + "word " * 5, "English"),
        ("le la " + "mot " * 5, "French"),
    ],
)
def test_how_much_of_a_text_says_its_language(text, language):
    assert language_of(text) == language
