"""What rendering refuses, and what stands in an example beside its tokens."""

from dataclasses import replace

import pytest

from qlora_studio.core.conversation import Conversation, Source, ToolCall, Turn
from qlora_studio.core.example import IGNORED
from qlora_studio.data.render.encode import _Edges
from qlora_studio.data.render.prompt import RenderOptions, prompt_ids, render, stop_ids
from qlora_studio.data.render.templated_row import RowRefused
from qlora_studio.data.render.templates import TEMPLATES
from qlora_studio.engine.tokenizer import ChatTokenizer

END = "<|im_end|>"


def with_template(letters, source):
    inner = letters.inner.__class__(tokenizer_object=letters.inner.backend_tokenizer, eos_token=END)
    inner.chat_template = source
    return ChatTokenizer(inner)


def row(*turns, **more):
    return Conversation(turns=turns, source=Source("rows.jsonl", 4), **more)


HI, HO = Turn("user", "hi"), Turn("assistant", "ho")


def test_an_example_carries_text_labels_and_origin(letters):
    (made,) = render(replace(row(HI, HO), origin="set"), letters)
    assert made.text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>"
    assert [made.text[start:end] for start, end in made.text_spans] == ["ho" + END]
    assert (made.source, made.origin, made.trained_tokens) == (Source("rows.jsonl", 4), "set", 3)
    assert made.labels() == [IGNORED] * 21 + list(made.input_ids[21:])
    assert prompt_ids([HI], letters) == list(made.input_ids[:21])


def test_an_answer_may_reason_first_only_where_that_is_asked_for(letters):
    source = letters.template + "{% if add_generation_prompt and enable_thinking %}<think>{% endif %}"
    chat = with_template(letters, source)
    for options, opened in ((RenderOptions(), ""), (RenderOptions(thinking=True), "<think>")):
        asked = chat.decode(prompt_ids([HI], chat, options=options))
        assert asked == f"<|im_start|>user\nhi{END}\n<|im_start|>assistant\n{opened}"


def test_escaped_control_tokens_are_shown_as_they_were_typed(letters):
    typed = row(Turn("user", f"a{END}b"), Turn("assistant", f"c{END}"))
    (made,) = render(typed, letters, RenderOptions(control_tokens="escape"))
    assert made.text.count(END) == 4
    assert [made.text[start:end] for start, end in made.text_spans] == [f"c{END}{END}"]
    assert made.input_ids.count(letters.added_tokens[END]) == 2
    with pytest.raises(Exception, match=r"rows.jsonl:4: field 'turn 1': The text holds the control token <\|im_end\|>"):
        render(typed, letters)


def test_a_tool_result_in_other_words_cannot_be_trained(letters):
    tools = "{% for m in messages %}{{ m.role }}: {{ m.content if m.role != 'tool' else m.content | tojson }}<|im_end|>{% endfor %}"
    tools += "{% if add_generation_prompt %}assistant: {% endif %}{{ tools | length if tools else '' }}"
    chat = with_template(letters, tools)
    call = Turn("assistant", "", tool_calls=(ToolCall("f", "{}"),))
    with pytest.raises(RowRefused, match="field 'turn 3': The chat template writes this turn in its own words"):
        render(row(HI, call, Turn("tool", 'say "x"', train=True), HO), chat)


def test_a_template_that_changes_words_is_refused(letters):
    chat = with_template(
        letters,
        letters.template.replace("{{ m.content }}", "{{ m.content | upper if m.role == 'user' else m.content }}"),
    )
    with pytest.raises(RowRefused) as caught:
        render(row(HI, HO), chat)
    assert caught.value.finding == "template-drops"
    assert str(caught.value) == (
        "rows.jsonl:4: field 'turn 1': The chat template drops or reorders turn 1 (user). "
        "Choose another template, or leave such rows out."
    )


def test_words_may_stand_at_the_very_beginning(letters):
    chat = with_template(letters, "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    for turns in ((HI, HO), (Turn("system", "s"), HI, HO)):
        (example,) = render(row(*turns), chat)
        assert example.text == END.join(turn.content for turn in turns) + END
        assert [example.text[slice(*span)] for span in example.text_spans] == ["ho" + END]


def test_an_edge_is_clean_where_the_prompt_has_the_same_tokens_alone(letters):
    edges, text = _Edges(letters), "<|im_start|>a b<|im_end|>c d"
    encoding = letters.encode([text])[0]
    assert edges.clean("hello there", 5, letters.encode(["hello there"])[0])
    assert edges.clean(text, len(text) - 1, encoding)
    assert list(edges.alone) == ["hello", "<|im_end|>c "], "looked back to the last control token, and kept"
    edges.alone["hello"] = [1]
    assert not edges.clean("hello there", 5, letters.encode(["hello there"])[0])


def test_a_template_without_end_is_seen(letters):
    from qlora_studio.core.config import DataConfig
    from qlora_studio.data.sets.prepare import prepare

    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    (finding,) = prepare([row(HI, HO)], with_template(letters, source), DataConfig()).findings
    assert (finding.name, finding.severity, finding.count) == ("missing-end", "error", 1)


def test_prompts_cannot_be_trained_where_earlier_turns_are_rewritten(letters):
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ '(thought)' if loop.last and m.role == 'assistant' else '' }}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = with_template(letters, source)
    made = render(row(HI, HO, Turn("user", "and"), Turn("assistant", "so")), chat)
    assert [chat.decode(one.input_ids[one.spans[0][0] :]) for one in made] == ["(thought)ho" + END, "(thought)so" + END]
    with pytest.raises(RowRefused, match="rewrites earlier turns"):
        render(row(HI, HO, Turn("user", "and"), Turn("assistant", "so")), chat, RenderOptions(train_on="everything"))


def test_tool_calls_end_where_the_template_ends_them(letters):
    chat = with_template(letters, TEMPLATES["chatml-tools"].source)
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
    call = Turn("assistant", "", tool_calls=(ToolCall("f", '{"a": 1}'),))
    (made,) = render(row(HI, call, Turn("tool", "2"), HO, tools=(tool,)), chat)
    assert [made.text[start:end] for start, end in made.text_spans] == [
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call><|im_end|>',
        "ho<|im_end|>",
    ]
    assert stop_ids(chat) == frozenset({chat.added_tokens[END]})
