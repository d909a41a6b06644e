"""Signs in single texts: keys of many issuers, control tokens of many families, wrong decodings, answers that break off."""

import random

import pytest

from qlora_studio.core.conversation import Conversation, Source, Turn
from qlora_studio.data.cleaning.lint import lint
from qlora_studio.data.cleaning.steps import cleaned
from qlora_studio.data.cleaning.text import (
    find_control_like,
    find_mojibake,
    find_secrets,
    find_unfinished,
    fix_mojibake,
    language_of,
)

LETTERS = "Zk3QpX9vLw2RtY7mNc4HbS8dFg6JxA1eUoTiPqWn5CzB0yVhKsGfDlM"
SECRETS = [
    "AKIA" + "ABCDEFGHIJKLMNOP", "ASIA" + "ABCDEFGHIJKLMNOP", "hf_" + LETTERS[:34], "ghp_" + LETTERS[:36],
    "glpat-" + LETTERS[:20], "sk-" + LETTERS[:40], "sk_live_" + LETTERS[:24], "xoxb-" + "1234567890-" + LETTERS[:20],
    "AIza" + LETTERS[:35], "SG." + LETTERS[:22] + "." + LETTERS[:43], "npm_" + LETTERS[:36],
    "1234567890:AA" + LETTERS[:33], "postgres://admin:" + "s3cretpass" + "@db.firm.com/main",
    "https://hooks.slack.com/services/T0ABCDEF/B0ABCDEF/" + LETTERS[:24], 'api_key = "' + LETTERS[:24] + '"',
]  # fmt: skip
NO_SECRETS = [
    'api_key = "your_api_key_here_1234"', "password: hunter", "sk-learn is a library", "the key=value pairs",
    "https://example.com/a:b@c", 'token = "aaaaaaaaaaaaaaaaaaaaaaaa"', "hf_hub_download(repo_id)", "a://b",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
def test_a_key_is_found_in_a_sentence(secret):
    assert find_secrets(f"Use this: {secret} please.")


@pytest.mark.parametrize("text", NO_SECRETS)
def test_what_only_looks_like_a_key_is_none(text):
    assert find_secrets(text) == []


CONTROL = [
    "<|im_start|>", "<|eot_id|>", "<|start_header_id|>", "[INST]", "[/INST]", "<<SYS>>", "</s>", "<start_of_turn>",
    "<end_of_turn>", "<|START_OF_TURN_TOKEN|>", "<\uff5cUser\uff5c>", "<\uff5ctool\u2581calls\u2581begin\uff5c>",
    "<|user|>", "[gMASK]", "<sop>", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "<end_of_utterance>", "<|channel|>",
    "<turn|>", "<|turn>", "<SPECIAL_12>", "<|endoftext|>", "<fim_prefix>", "<extra_id_0>", "<unused99>",
]  # fmt: skip


@pytest.mark.parametrize("token", CONTROL)
def test_a_control_token_of_any_family_is_found(token):
    assert find_control_like(f"before {token} after") == token


@pytest.mark.parametrize(
    "text", ["a <- b |> c", "List<int>", "x[INSTALL]", "<think>hm</think>", "if a<b|c>d", "[1] [A]"]
)
def test_code_is_no_control_token(text):
    assert find_control_like(text) is None


GOOD = [
    "Café naïve Zürich Übermaß", "Привет, как дела? Съешь же ещё этих мягких французских булок.", "日本語のテキストです。",
    "你好，世界！今天天气很好，我们去公园散步吧。", "안녕하세요 세계", "Ελληνικά κείμενα", "„MENÜ“ «CAFÉ»", "naïve—“quoted” …", "שלום עולם",
    "Řeřicha žluťoučký kůň", "Ação, coração e Índia", "РСФСР и СССР", "𝔘𝔫𝔦 😀 emoji", "Tiếng Việt có dấu", "ñandú ¿qué?",
]  # fmt: skip
WRONG = [
    *((text, text.encode().decode("latin-1")) for text in ("Café", "Привет", "日本語", "Ελληνικά", "naïve “x”", "Ação")),
    *((text, text.encode().decode("cp1251", "strict")) for text in ("Привет, мир", "русский текст")),
    ("你好世界再见", "你好世界再见".encode().decode("gb18030")),
    ("日本語テスト", "日本語テスト".encode().decode("cp932", "ignore")),
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_good_text_of_any_script_is_left_alone(text):
    assert find_mojibake(text) is None and fix_mojibake(text) == text


@pytest.mark.parametrize(("right", "wrong"), WRONG, ids=[right for right, _ in WRONG])
def test_wrongly_decoded_text_is_found(right, wrong):
    assert find_mojibake(f"x {wrong} y") is not None
    fixed = fix_mojibake(f"x {wrong} y")
    assert fixed == f"x {right} y" or find_mojibake(fixed)  # what cannot be brought back stays found


def conversation(answer, line):
    return Conversation(turns=(Turn("user", f"question {line}?"), Turn("assistant", answer)), source=Source("r", line))


def test_no_step_is_offered_that_cannot_help():
    lost = "The caf\ufffd is closed."
    names = {
        finding.name: finding.remedy
        for finding in lint([conversation(lost, 1), conversation("CafÃ© is closed.", 2), conversation("ok", 3)])
    }
    assert names["lost-characters"] is None
    assert names["mojibake"] == "fix-mojibake"


PROSE = (
    "The old mill stands beside the river and its wheel has not turned for thirty years. Children play on the bridge "
    "while their parents talk about the harvest, and in the evening the lights of the village can be seen from the hill. "
    "Nobody knows who built it first. "
)


def test_answers_that_break_off_are_found_and_others_are_not():
    chance = random.Random(7)
    whole = [conversation(PROSE + f"That was in the year {1700 + number}.", number + 1) for number in range(200)]
    cut = []
    for number in range(20):
        words = PROSE.split()
        cut.append(conversation(" ".join(words[: chance.randrange(24, len(words) - 1)]).rstrip("."), 1000 + number))
    (finding,) = [found for found in lint([*whole, *cut]) if found.name == "unfinished-answer"]
    assert finding.count >= 18 and finding.severity == "note"
    assert not [found for found in lint(whole) if found.name == "unfinished-answer"]


LONG = "There is much to say about this, and all of it was said at length before today. "
"""80 characters, a sentence that has its end."""


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (LONG + "After that we went down to the shore and the", "sure"),
        (LONG + "After that we went down to the shore for the boats,", "sure"),
        (LONG + "After that we went down to the shore for (", "sure"),
        (LONG + "After that we went down to the shore and saw the boats", "likely"),
        (LONG.replace(".", ";") + "after that we went down to the shore and saw boats", ""),
        (LONG + "\nAfter that all of us went down again", "likely"),
        (LONG + "\nThese words are seven and stand alone", ""),
        (LONG + "\n- a point of a list may end in anything at all and the", ""),
        (LONG + "After that we went down to the shore for 5 €", ""),
        (LONG + "After that we went down to the shore for 5€", ""),
        ("We went down to the shore and looked at it for the", ""),
        ("Here it is: ```python and the rest is lost", "sure"),
        ("```x```" + LONG + "After that we went down to the shore and the", ""),
    ],
)
def test_an_answer_without_an_end_is_told_from_one_that_has_it(answer, found):
    assert find_unfinished(answer) == found


@pytest.mark.parametrize(
    "answer",
    [
        "Paris", "1. one\n2. two\n3. three of the most beautiful places that I have ever seen in my life",
        PROSE + "\n\n- Name: Jo\n- Place: the mill beside the river near the old stone bridge", PROSE.strip(), "x = 1\n" * 40,
        "```python\n" + "x = 1\n" * 20 + "```",
    ],
)  # fmt: skip
def test_an_answer_without_a_stop_may_be_whole(answer):
    assert find_unfinished(answer) == ""


def test_one_word_in_thirty_makes_no_new_row():
    chance = random.Random(3)
    words = [f"{a}{b}" for a in ["ba", "ko", "mi", "ru", "te"] for b in ["lan", "dor", "fix", "gem", "hup", "jat"]]
    rows, pairs = [], 30
    for number in range(pairs):
        chosen = chance.choices(words, k=30)
        other = list(chosen)
        other[chance.randrange(30)] = "changed"
        rows += [conversation(" ".join(chosen), 2 * number + 1), conversation(" ".join(other), 2 * number + 2)]
    rows = [Conversation(turns=row.turns[1:], source=row.source) for row in rows]
    near = next(found for found in lint(rows) if found.name == "near-copy")
    assert near.count >= 28
    assert len(list(cleaned(rows, ["drop-near-copies"]))) == len(rows) - near.count


def test_good_and_bad_answers_to_one_question_are_a_pair():
    turns = (Turn("user", "question?"), Turn("assistant", PROSE))
    rows = [Conversation(turns=turns, label=label, source=Source("r", line)) for line, label in ((1, True), (2, False))]
    assert not {"copy", "near-copy"} & {finding.name for finding in lint(rows)}
    assert list(cleaned(rows, ["drop-copies", "drop-near-copies"])) == rows


def test_rows_with_other_tools_are_no_copies():
    turns = (Turn("user", "question?"), Turn("assistant", "answer"))
    rows = [Conversation(turns=turns, tools=({"name": name},), source=Source("r", 1)) for name in ("a", "b")]
    assert list(cleaned(rows, ["drop-copies"])) == rows


def read_as(text, codec):
    return text.encode("utf-8").decode(codec)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (f"He said {read_as('café', 'cp1252')} twice", "He said café twice"),
        (read_as("привет", "cp1251") + ", friend", "привет, friend"),
        (f"{read_as('é', 'cp1252')}→{read_as('ü', 'cp1252')}", "é→ü"),
        (f"→{read_as('привет', 'cp1251')}", "→привет"),
        ("→" + "\u00c3\u0080", "→À"),
        ("plain", "plain"),
        ("naïve café → fine", "naïve café → fine"),
        ("caf\ufffd", "caf\ufffd"),
    ],
)
def test_text_that_was_read_in_another_code_page_is_read_again(wrong, right):
    assert fix_mojibake(wrong) == right


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat sat on the mat and it was not there", "English"),
        ("Der Hund und die Katze sind nicht da", "German"),
        ("xyzzy plugh frobnicate", "unknown"),
        ("the xyzzy", "unknown"),
        ("Привет, как дела?", "Cyrillic"),
        ("ab" * 40 + "привет", "unknown"),
        ("x" * 600 + "привет " * 200, "unknown"),
        ("こんにちは", "Japanese"),
        ("the " + "word " * 100, "unknown"),
    ],
)
def test_the_language_follows_from_script_or_small_words(text, language):
    assert language_of(text) == language
