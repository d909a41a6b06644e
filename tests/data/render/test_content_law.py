"""No template loses a word in silence: the chat templates that travel with TRL, and some broken on purpose."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from qlora_studio.core.config import DataConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.data.render import prompt, templated_row
from qlora_studio.data.render.prompt import render
from qlora_studio.data.render.templated_row import RowRefused
from qlora_studio.data.render.templates import TEMPLATES
from qlora_studio.data.sets.prepare import prepare
from tests.data.render.template_rows import ROWS, conversation, find_losses, letters_for
from tests.matrix import mostly_slow

FOUND = importlib.util.find_spec("trl")
FOLDER = Path(FOUND.origin).parent / "chat_templates" if FOUND and FOUND.origin else Path("nowhere")
FILES = sorted(FOLDER.glob("*.jinja"))


def outcome(chat, kind):
    """`right`, `wrong`, or the finding by which the row is refused."""
    row = conversation(kind)
    try:
        examples = render(row, chat)
    except RowRefused as error:
        assert error.problems[0].where == "rows.jsonl:4" and error.hint
        return error.finding
    return "wrong: " + "; ".join(lost) if (lost := find_losses(row, examples, chat)) else "right"


@pytest.mark.slow
@pytest.mark.skipif(not FILES, reason="trl is not installed")
@pytest.mark.parametrize("every", mostly_slow([1, 4], 4))
def test_no_template_of_trl_loses_a_word_in_silence(every):
    outcomes, files = {}, FILES[::every]
    for file in files:
        chat = letters_for(file.read_text(encoding="utf-8"))
        outcomes |= {(file.stem, kind): outcome(chat, kind) for kind in ROWS}
    counts = Counter(result.partition(":")[0] for result in outcomes.values())
    assert len(outcomes) >= 1500 // every
    assert {case: result for case, result in outcomes.items() if result.startswith("wrong")} == {}
    plain = [kind for kind in ROWS if not conversation(kind).tools and "call" not in kind]
    assert sum(result == "right" for (_, kind), result in outcomes.items() if kind in plain) >= 0.99 * len(files) * 10
    sayable = counts["right"] + counts["prompt-not-prefix"]
    assert counts["prompt-not-prefix"] <= 0.05 * sayable
    assert counts["right"] >= 1300 // every


BROKEN = {
    "drops reasoning": ("{{ message.content }}", "{{ message.content.split('</think>')[-1] }}", "reasoning"),
    "drops the second call": ("message.tool_calls or []", "(message.tool_calls or [])[:1]", "two calls in one turn"),
    "drops all calls": ("message.tool_calls or []", "[]", "call, result, answer"),
    "drops the arguments": ("given if given is string else given | tojson", "'{}'", "call, result, answer"),
    "drops text beside a call": (
        "{{ '<|im_start|>assistant\\n' }}{{ message.content }}",
        "{{ '<|im_start|>assistant\\n' }}{{ '' if message.tool_calls else message.content }}",
        "text beside a call",
    ),
    "drops what tools say": ("tool\\n' }}{{ message.content }}", "tool\\n' }}{{ 'ok' }}", "call, result, answer"),
    "drops the system prompt": ("{{ first.content if first else '' }}", "", "system"),
    "drops a tool": ("for tool in tools", "for tool in tools[:1]", "tools that are not called"),
}


@pytest.mark.parametrize(("old", "new", "kind"), BROKEN.values(), ids=BROKEN.keys())
def test_a_template_broken_on_purpose_is_caught_by_the_program(old, new, kind, monkeypatch):
    source = TEMPLATES["chatml-tools"].source
    assert old in source and outcome(letters_for(source), kind) == "right"
    broken = letters_for(source.replace(old, new))
    assert outcome(broken, kind) == "template-drops"
    made = prepare([conversation(kind), conversation("one exchange")], broken, DataConfig())
    assert (len(made.examples), made.refused, [found.name for found in made.findings]) == (1, 1, ["template-drops"])

    monkeypatch.setattr(templated_row, "find_lost_of_answer", lambda *_: None)
    monkeypatch.setattr(templated_row, "find_lost_of_context", lambda *_: None)
    if kind != "system":  # that turns stand in order is looked at before
        assert outcome(broken, kind).startswith("wrong")


def test_what_is_lost_is_said_with_the_remedy():
    chat = letters_for(TEMPLATES["chatml"].source)
    with pytest.raises(RowRefused) as caught:
        render(conversation("call, result, answer"), chat)
    assert str(caught.value) == (
        "rows.jsonl:4: field 'tools': This row brings tools, and the chat template knows none. "
        "Choose a model or a template with tools (chatml-tools), or leave such rows out."
    )
    source = TEMPLATES["chatml-tools"].source.replace("message.tool_calls or []", "(message.tool_calls or [])[:1]")
    with pytest.raises(RowRefused) as caught:
        render(conversation("two calls in one turn"), letters_for(source))
    assert str(caught.value) == (
        "rows.jsonl:4: field 'turn 2': The chat template drops the call of 'read_clock' of turn 2. "
        "Choose a template with tools (chatml-tools), give the row its tools, or leave such rows out."
    )


def test_white_space_and_empty_thoughts_are_no_loss():
    from dataclasses import replace

    from qlora_studio.core.conversation import Turn

    chat = letters_for(TEMPLATES["chatml-tools"].source)
    row = replace(conversation("one exchange"), turns=(Turn("user", " hi \n"), Turn("assistant", "\n ho \n\n")))
    (made,) = render(row, chat)
    assert [made.text[start:end] for start, end in made.text_spans] == ["\n ho \n\n<|im_end|>"]


def test_the_next_role_ends_an_answer_where_nothing_else_does():
    source = (
        "{% for m in messages %}<|{{ 'observation' if m.role == 'tool' else m.role }}|>\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
        "{# tools <|user|> <|observation|> <|assistant|> <|system|> #}"
    )
    chat = letters_for(source)
    (made,) = render(conversation("two exchanges"), chat)
    assert [made.text[start:end] for start, end in made.text_spans] == [
        "Aone it is sunny.<|user|>",
        "Atwo it rains.<|user|>",
    ]
    (made,) = render(conversation("calls without tools"), chat)
    assert [made.text[start:end] for start, end in made.text_spans] == [
        '<call>find_weather {"city": "Vbern"}</call><|observation|>',
        "Aone it is sunny.<|user|>",
    ]
    wanted = {chat.added_tokens[token] for token in ("<|user|>", "<|observation|>", "<eos>")}
    assert prompt.stop_ids(chat) == wanted


@pytest.mark.slow
@pytest.mark.skipif(not FILES, reason="trl is not installed")
def test_the_short_way_to_the_template_gives_what_transformers_gives():
    for file in FILES:
        chat = letters_for(file.read_text(encoding="utf-8"))
        for turns in ([("user", "hi")], [("system", "s"), ("user", "hi"), ("assistant", "ho"), ("user", "and")]):
            messages = [{"role": role, "content": content} for role, content in turns]
            for add_generation_prompt in (False, True):
                try:
                    usual = chat.inner.apply_chat_template(
                        messages, add_generation_prompt=add_generation_prompt, tokenize=False
                    )
                except Exception:  # a template that refuses these messages refuses them either way
                    with pytest.raises(StudioError):
                        chat.render(messages, add_generation_prompt=add_generation_prompt)
                else:
                    assert chat.render(messages, add_generation_prompt=add_generation_prompt) == usual
