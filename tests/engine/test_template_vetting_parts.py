"""The report of a trial, and the process that a trial runs in: what it is started with and how its words are taken."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.engine import template_vetting
from qlora_studio.engine.template_vetting import TemplateReport, try_template, vet_template
from qlora_studio.engine.tokenizer import load_tokenizer
from tests.engine.test_template_vetting import GOOD, model  # noqa: F401

REPORT = TemplateReport(True, False, True, False, "<|im_end|>", "a sample", ())
REWRITING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ 'old ' if m.role == 'assistant' and not loop.last else '' }}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}{% endfor %}"


def test_a_template_s_report_says_all_of_it(model):  # noqa: F811
    good = try_template(load_tokenizer(model(GOOD)))
    sample = (
        "<|im_start|>user\nQk1 where is the harbour<|im_end|>\n<|im_start|>assistant\nWz2 behind the hill<|im_end|>\n"
    )
    assert good == TemplateReport(
        knows_tools=False, knows_thinking=False, knows_system=True, rewrites_turns=False, end_of_turn="<|im_end|>",
        sample=sample, problems=(),
    )  # fmt: skip
    assert try_template(load_tokenizer(model(NO_SYSTEM + GOOD))) == replace(good, knows_system=False)
    rewriting = try_template(load_tokenizer(model(REWRITING)))
    assert rewriting == replace(good, rewrites_turns=True)
    tools = try_template(load_tokenizer(model(GOOD), "chatml-tools"))
    assert tools.knows_tools and tools.problems == ()


def test_a_long_sample_is_cut(model):  # noqa: F811
    long = try_template(load_tokenizer(model("{{ 'x' * 5000 }}" + GOOD)))
    assert long.sample == "x" * 4000


class Child:
    """A trial that says these lines and ends with this code."""

    def __init__(self, lines, code=0) -> None:
        self.stdout, self.code, self.killed = io.StringIO("".join(f"{line}\n" for line in lines)), code, 0

    def __call__(self, command, **options):
        self.command, self.options = command, options
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        assert self.killed, "it is not waited for while it may still run"

    def wait(self):
        return self.code

    def kill(self):
        self.killed += 1


def start(monkeypatch, *messages, code=0) -> Child:
    child = Child([json.dumps(message) for message in messages], code)
    monkeypatch.setattr(subprocess, "Popen", child)
    return child


READY = {"awaited": "ready"}


@pytest.mark.parametrize(("template", "last"), [(None, ""), ("chatml", "chatml")])
def test_a_trial_is_a_process_of_this_python_without_a_hub_and_its_report_is_taken(
    monkeypatch, tmp_path, template, last
):
    child = start(monkeypatch, READY, asdict(REPORT))
    assert vet_template(tmp_path, template) == REPORT and child.killed == 1
    assert child.command == [sys.executable, "-m", "qlora_studio.engine.template_vetting", str(tmp_path), last]
    environment = child.options.pop("env")
    assert (environment["TOKENIZERS_PARALLELISM"], environment["HF_HUB_OFFLINE"]) == ("false", "1")
    assert "PATH" in environment
    assert child.options == {
        "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True,
    }  # fmt: skip


def test_what_a_trial_found_wrong_is_raised_as_it_is(monkeypatch, tmp_path):
    problems = (Problem("one", "do", "here", "field"), Problem("two"))
    start(monkeypatch, READY, asdict(replace(REPORT, problems=problems)))
    with pytest.raises(StudioError) as caught:
        vet_template(tmp_path)
    assert caught.value.problems == problems
    start(monkeypatch, READY, {"error": {"message": "bad", "hint": "do", "where": "x", "field": "y"}})
    with pytest.raises(StudioError) as caught:
        vet_template(tmp_path)
    assert caught.value.problems == (Problem("bad", "do", "x", "y"),)


@pytest.mark.parametrize("messages", [(), (READY,)])
def test_a_trial_that_ends_without_a_report_is_told_by_its_code(monkeypatch, tmp_path, messages):
    child = start(monkeypatch, *messages, code=3)
    with pytest.raises(StudioError, match="takes more than 512 MB of memory"):
        vet_template(tmp_path)
    assert child.killed == 1


def test_memory_is_bounded_to_what_there_is_and_half_a_gibibyte(monkeypatch):
    resource = pytest.importorskip("resource")

    asked = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, bounds: asked.append((kind, bounds)))
    monkeypatch.setattr(template_vetting.Path, "exists", lambda path: True)
    monkeypatch.setattr(template_vetting.Path, "read_text", lambda path: "1000 7 7 7")
    monkeypatch.setattr(template_vetting.os, "sysconf", {"SC_PAGE_SIZE": 4096}.__getitem__)
    template_vetting._limit_memory()
    bound = 1000 * 4096 + 512 * 1024 * 1024
    assert asked == [(resource.RLIMIT_AS, (bound, bound))]
    monkeypatch.setattr(template_vetting.Path, "exists", lambda path: False)
    template_vetting._limit_memory()
    assert len(asked) == 1, "where the system does not say how much there is"


DROPPING = GOOD.replace("{{ m.content }}", "{{ m.content if m.role != 'user' else 'x' }}")


def test_a_template_that_drops_questions_is_found_by_a_short_conversation_and_by_a_long_one(model):  # noqa: F811
    report = try_template(load_tokenizer(model(DROPPING)))
    assert [problem.message for problem in report.problems] == [
        "The chat template drops or reorders turn 1 (user)."
    ] * 2
    assert (report.knows_system, report.rewrites_turns) == (False, False)


def test_each_message_of_a_trial_is_one_line_that_is_sent_at_once(monkeypatch):
    class Pipe(io.StringIO):
        sent = ""

        def flush(self):
            self.sent = self.getvalue()

    pipe = Pipe()
    monkeypatch.setattr(template_vetting.sys, "stdout", pipe)
    template_vetting._send({"awaited": "ready"})
    template_vetting._send({"a": "two\nlines"})
    assert pipe.sent == '{"awaited": "ready"}\n{"a": "two\\nlines"}\n'
