"""Hostile and broken templates are stopped in time and named; good ones are described."""

import json
import queue
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.engine import template_vetting
from qlora_studio.engine.template_vetting import try_template, vet_template
from qlora_studio.engine.tokenizer import load_tokenizer

GOOD = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def model(tmp_path):
    """A folder with a byte-level tokenizer; call it with a template."""

    def make(template):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>")
        fast.chat_template = template
        fast.save_pretrained(tmp_path)
        return tmp_path

    return make


@pytest.mark.slow
def test_a_good_template_is_described(model):
    report = vet_template(model(GOOD))
    assert (report.end_of_turn, report.knows_system, report.knows_tools) == ("<|im_end|>", True, False)
    assert (report.rewrites_turns, report.knows_thinking, report.problems) == (False, False, ())
    assert report.sample == (
        "<|im_start|>user\nQk1 where is the harbour<|im_end|>\n<|im_start|>assistant\nWz2 behind the hill<|im_end|>\n"
    )


@pytest.mark.slow
def test_a_built_in_template_is_tried_by_name(model):
    assert vet_template(model(GOOD), "chatml-tools").knows_tools


@pytest.mark.slow
def test_a_template_that_loops_is_stopped_after_two_seconds(model):
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
    folder = model(GOOD + loops)
    began = time.monotonic()
    with pytest.raises(StudioError, match="does not come to an end: it was stopped after 2 seconds"):
        vet_template(folder)
    assert time.monotonic() - began < 60  # starting the process takes most of it


@pytest.mark.slow
def test_a_template_that_builds_endless_text_is_refused(model):
    with pytest.raises(StudioError, match="takes more than 512 MB of memory"):
        vet_template(model(GOOD + '{{ "a" * 10000000000 }}'))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }", "The chat template refuses this conversation"),
        ("{{ raise_exception('no talking here') }}", "no talking here"),
        ("{{ ''.__class__.__mro__ }}", "The chat template refuses this conversation"),
        (
            "<|im_start|>{{ messages[-1].content }}<|im_end|>",
            "is not how the whole conversation begins|drops or reorders turn",
        ),
        (
            GOOD.replace("messages %}", "messages | reverse %}"),
            "is not how the whole conversation begins|drops or reorders",
        ),
        (GOOD.replace("{{ m.content }}", "{{ m.content if m.role != 'user' else 'x' }}"), "drops or reorders turn 1"),
        ("", "This model has no chat template"),
    ],
    ids=["syntax", "raises", "escape", "last turn only", "reversed", "drops questions", "none"],
)
def test_a_broken_template_is_refused_in_words(model, template, message):
    with pytest.raises(StudioError, match=message):
        raise StudioError.of(try_template(load_tokenizer(model(template))).problems)


@pytest.mark.slow
def test_the_trial_passes_on_what_it_found(model):
    folder = model(GOOD.replace("{{ m.content }}", "{{ m.content if m.role != 'user' else 'x' }}"))
    with pytest.raises(StudioError, match="drops or reorders turn 1") as caught:
        vet_template(folder)
    assert caught.value.problems[0].where == str(folder)


@pytest.fixture
def unbound(monkeypatch):
    """The trial in this process, whose memory is not bounded for it; counts how often that was to be."""
    calls = []
    monkeypatch.setattr(template_vetting, "_limit_memory", lambda: calls.append("bounded"))
    return calls


def messages_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_trial_says_that_it_is_ready_and_then_what_it_found(model, unbound, capsys):
    folder = model(GOOD)
    template_vetting.main(str(folder), "")
    ready, report = messages_of(capsys)
    assert ready == {"awaited": "ready"} and unbound == ["bounded"]
    assert (report["end_of_turn"], report["knows_system"], report["problems"]) == ("<|im_end|>", True, [])


def test_a_folder_without_a_tokenizer_is_an_error_after_ready(tmp_path, unbound, capsys):
    template_vetting.main(str(tmp_path), "")
    ready, error = messages_of(capsys)
    assert ready == {"awaited": "ready"} and unbound == []
    with pytest.raises(StudioError) as caught:
        load_tokenizer(Path(tmp_path))
    first = caught.value.problems[0]
    assert first.message
    assert error == {
        "error": {"message": first.message, "hint": first.hint, "where": first.where, "field": first.field}
    }


def test_a_template_that_fails_is_an_error_of_its_folder(model, unbound, capsys, monkeypatch):
    def fails(tokenizer):
        assert tokenizer.guard.row_bytes == 512 << 20
        raise StudioError.of([Problem("bad", "do better", "elsewhere", "base"), Problem("worse")])

    monkeypatch.setattr(template_vetting, "try_template", fails)
    folder = str(model(GOOD))
    template_vetting.main(folder, "")
    assert messages_of(capsys) == [
        {"awaited": "ready"},
        {"error": {"message": "bad", "hint": "do better", "where": folder, "field": "base"}},
    ]


def test_a_trial_whose_memory_runs_out_ends_with_its_own_code(model, unbound, capsys, monkeypatch):
    def runs_out(tokenizer):
        raise MemoryError

    codes = []
    monkeypatch.setattr(template_vetting, "try_template", runs_out)
    monkeypatch.setattr(template_vetting.os, "_exit", codes.append)
    template_vetting.main(str(model(GOOD)), "")
    assert codes == [3] and messages_of(capsys) == [{"awaited": "ready"}]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (3, "The chat template takes more than 512 MB of memory."),
        (1, "The trial of the chat template broke off (exit code 1)."),
    ],
)
def test_how_a_trial_ended_that_said_nothing(code, message):
    problem = template_vetting._ended(code, "folder").problems[0]
    assert problem == Problem(message, "Choose a built-in template by name.", "folder")


@pytest.mark.parametrize(
    ("awaited", "what"),
    [("done", "The chat template does not come to an end"), ("ready", "Reading the tokenizer takes too long")],
)
def test_what_was_waited_for_too_long_is_named(awaited, what):
    with pytest.raises(StudioError) as caught:
        template_vetting._wait(queue.Queue(), 0.01, "folder", awaited)
    problem = caught.value.problems[0]
    hint = "Choose a built-in template by name."
    assert problem == Problem(f"{what}: it was stopped after 0 seconds.", hint, "folder")
