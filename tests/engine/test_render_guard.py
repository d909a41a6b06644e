"""A template that hangs or swells on one row only is stopped on that row, and the job with it."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from qlora_studio.core.conversation import Conversation, Turn
from qlora_studio.core.errors import TemplateStopped
from qlora_studio.data.render.prompt import RenderOptions, render
from qlora_studio.data.render.traits import read_traits
from qlora_studio.engine import render_guard
from qlora_studio.engine.tokenizer import load_tokenizer
from tests.engine.gguf_file.small_tokenizers import save

PLAIN = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
LONG = "{% if messages[0].content | length > 1000 %}"
LOOPS = LONG + "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
NO_BOUND = pytest.mark.skipif(sys.platform != "linux", reason="no bound")
SWELLS = LONG + "{% set x = 'x' * 8000000000 %}{{ x }}{% endif %}"
GROWS = LONG + (
    "{% set ns = namespace(t='x' * 1000) %}{% for a in range(90) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}{% endif %}"
)


def tokenizer_with(template, folder):
    save("gpt-2", folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.inner.chat_template = template
    return tokenizer


def conversation(text):
    return Conversation(turns=(Turn("user", text), Turn("assistant", "Aye")))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(render_guard, "ROW_SECONDS", 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trap", "message"),
    [
        (LOOPS, "does not come to an end: it was stopped after 1 seconds"),
        pytest.param(SWELLS, "takes more than 1024 MB of memory", marks=[pytest.mark.slow, NO_BOUND]),
        pytest.param(GROWS, "takes more than 1024 MB of memory", marks=[pytest.mark.slow, NO_BOUND]),
    ],
)  # fmt: skip
def test_a_template_that_passed_on_short_rows_is_stopped_on_a_long_one(trap, message, tmp_path, monkeypatch):
    if trap == LOOPS:
        monkeypatch.setattr(render_guard, "ROW_SECONDS", 1.0)
    tokenizer = tokenizer_with(trap + PLAIN, tmp_path)
    traits = read_traits(tokenizer)
    assert render(conversation("short"), tokenizer, RenderOptions(), traits)
    begun = time.monotonic()
    with pytest.raises(TemplateStopped, match=message):
        render(conversation("long " * 300), tokenizer, RenderOptions(), traits)
    assert time.monotonic() - begun < 60
    assert render(conversation("short again"), tokenizer, RenderOptions(), traits), "nothing of it is left behind"
    assert len("y" * (1400 << 20)) > 0, "the bound on memory ends with the rendering"


@pytest.mark.slow
def test_several_threads_are_watched_each_for_itself(tmp_path, quick):
    tokenizer = tokenizer_with(LOOPS + PLAIN, tmp_path)
    rendered: list[str] = []

    def hang() -> None:
        try:
            tokenizer.render([{"role": "user", "content": "long " * 300}])
        except TemplateStopped as error:
            rendered.append(error.message)

    threads = [threading.Thread(target=hang) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert "short" in tokenizer.render([{"role": "user", "content": "short"}])
    assert len(rendered) == 2


def test_a_rendering_that_fails_by_itself_fails_as_before(tmp_path):
    guard = render_guard.RenderGuard()
    with pytest.raises(KeyError):
        guard.run(lambda: {}["x"])
    assert guard.run(lambda: "fine") == "fine"
