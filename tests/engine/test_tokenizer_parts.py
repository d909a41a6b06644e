"""What the data room is told of a tokenizer, and both ways by which a conversation is rendered."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.engine import tokenizer as module
from qlora_studio.engine.tokenizer import ChatTokenizer, _first_line, load_tokenizer
from tests.engine.test_tokenizer import folder  # noqa: F401

PLAIN = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "look"}}
SHOWING = (
    "{{ bos_token }}|{{ tools }}|{{ documents }}|{{ add_generation_prompt }}|{{ colour }}|"
    "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one.\ntwo"), "one."),
        (ValueError("no dot"), "no dot."),
        (ValueError(), "ValueError."),
        (KeyError("name"), "'name'."),
    ],
)
def test_of_a_library_s_error_one_line_is_said_that_is_never_empty(error, line):
    assert _first_line(error) == line


@pytest.mark.parametrize(
    ("bos", "ids", "found"),
    [
        (7, [7, 1], 7),
        (7, [1, 7], None),
        (7, [7], 7),
        (None, [None], None),
        (None, [1], None),
        (0, [0, 1], 0),
        (7, [], None),
    ],
)
def test_a_beginning_token_is_named_and_put_first(bos, ids, found):
    class Inner(SimpleNamespace):
        def __call__(self, text):
            return {"input_ids": ids}

    assert ChatTokenizer(Inner(bos_token_id=bos)).bos_id == found


def test_a_digest_is_of_tokenizer_template_and_special_tokens(folder):  # noqa: F811
    loaded = load_tokenizer(folder)
    inner = loaded.inner
    text = "\0".join((inner.backend_tokenizer.to_str(), "None", str(inner.special_tokens_map)))
    assert loaded.digest == hashlib.sha256(text.encode()).hexdigest()
    assert load_tokenizer(folder, "instruction").digest != loaded.digest
    assert loaded.vocabulary == len(inner) == 259 and loaded.where == str(folder)


def test_plain_conversations_and_others_are_given_the_same(folder, monkeypatch):  # noqa: F811
    loaded = load_tokenizer(folder)
    loaded.inner.chat_template = SHOWING
    asked, apply = [], loaded.inner.apply_chat_template
    monkeypatch.setattr(
        loaded.inner, "apply_chat_template", lambda *a, **named: asked.append((a, named)) or apply(*a, **named)
    )
    assert loaded.render(PLAIN) == "<s>|None|None|False||user=hi;" and asked == []
    variables = {"colour": "red"}
    plain = loaded.render(PLAIN, add_generation_prompt=True, variables=variables)
    assert plain == "<s>|None|None|True|red|user=hi;" and asked == []
    other = [{**PLAIN[0], "name": "me"}]
    assert loaded.render(other, add_generation_prompt=True, variables=variables) == plain
    assert asked == [((other,), {"tools": None, "add_generation_prompt": True, "tokenize": False, "colour": "red"})]
    assert "look" in loaded.render(PLAIN, tools=[TOOL])
    assert asked[1] == ((PLAIN,), {"tools": [TOOL], "add_generation_prompt": False, "tokenize": False})
    assert loaded.render(PLAIN, variables={"bos_token": "x"}).startswith("x|")


def test_several_templates_by_purpose_go_the_long_way(folder):  # noqa: F811
    loaded = load_tokenizer(folder)
    loaded.inner.chat_template = {"default": "one {{ messages[0].content }}", "tool_use": "two"}
    assert loaded._compiled is None and loaded.template == "one {{ messages[0].content }}"
    assert loaded.render(PLAIN) == "one hi"


@pytest.mark.parametrize("words", ["1 / 0", "messages[0].content + 1", "messages[5].content.x", "none.x.y"])
def test_whatever_a_template_stumbles_over_is_a_sentence(folder, words):  # noqa: F811
    loaded = load_tokenizer(folder)
    loaded.inner.chat_template = "{{ " + words + " }}"
    with pytest.raises(StudioError, match=r"^The chat template refuses this conversation: .+\.") as caught:
        loaded.render(PLAIN)
    assert caught.value.hint == "Change the row, or choose another template."


def test_many_texts_are_shared_and_few_not(folder, monkeypatch):  # noqa: F811
    loaded = load_tokenizer(folder)
    monkeypatch.setattr(loaded._shared, "encode", lambda texts: ["shared"] * len(texts))
    assert loaded.encode(["a"] * 16) == ["shared"] * 16
    (*ids,) = (one.ids for one in loaded.encode(["a"] * 15))
    assert ids == [loaded.inner("a", add_special_tokens=False)["input_ids"]] * 15


def test_ids_are_decoded_with_their_special_tokens_and_every_space(folder):  # noqa: F811
    loaded = load_tokenizer(folder)
    ids = loaded.inner("a , b .")["input_ids"]
    assert loaded.decode(ids) == "<s>a , b ."


def test_a_tokenizer_without_a_fast_form_is_refused(folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", lambda *_, **__: SimpleNamespace(is_fast=False))
    with pytest.raises(StudioError, match="has no fast form"):
        load_tokenizer(folder)
    monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", lambda *_, **__: SimpleNamespace())
    with pytest.raises(StudioError, match="has no fast form"):
        load_tokenizer(folder)


def test_only_local_files_are_read_and_no_code_is_run(folder, monkeypatch):  # noqa: F811
    asked = []

    def read(*arguments, **options):
        asked.append((arguments, options))
        return SimpleNamespace(is_fast=True)

    monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", read)
    load_tokenizer(folder)
    assert asked == [((str(folder),), {"trust_remote_code": False, "local_files_only": True})]
