"""Sets that others wrote import whole and render whole. Set QLORA_STUDIO_REAL_DATA to their folder to run this."""

import json
import os
from pathlib import Path

import pytest

from qlora_studio.core.config import DataConfig
from qlora_studio.data.render.templates import TEMPLATES
from qlora_studio.data.sets.importer import import_file, load_conversations
from qlora_studio.data.sets.prepare import prepare
from qlora_studio.engine.tokenizer import ChatTokenizer

FOLDER = os.environ.get("QLORA_STUDIO_REAL_DATA", "")
SETS = {
    "alpaca_en_demo.json": ("alpaca", 999),
    "glaive_toolcall_en_demo.json": ("sharegpt", 299),
    "dpo_en_demo.json": ("preference", 299),
}


@pytest.mark.skipif(not FOLDER, reason="QLORA_STUDIO_REAL_DATA is not set")
@pytest.mark.parametrize("file", SETS)
def test_a_real_set_imports_and_renders_whole(tmp_path, letters, file):
    path = Path(FOLDER, file)
    if not path.exists():
        pytest.skip(f"{file} is not in the folder")
    format, rows = SETS[file]
    report = import_file(path, tmp_path)
    assert (report.format, report.confidence, report.rows, report.skipped) == (format, 1.0, rows, 0)
    assert report.extra_fields == {}

    conversations = list(load_conversations(tmp_path, report.name, "all"))
    source = json.loads(path.read_text(encoding="utf-8"))
    for row, conversation in zip(source, conversations, strict=True):
        whole = "\n".join(turn.content for turn in (*conversation.turns, *conversation.rejected))
        for text in texts(row):
            assert text in whole

    inner = letters.inner.__class__(tokenizer_object=letters.inner.backend_tokenizer, eos_token="<|im_end|>")
    inner.chat_template = TEMPLATES["chatml-tools"].source
    made = prepare(conversations, ChatTokenizer(inner), DataConfig(max_length=100_000))
    assert (len(made.examples), made.refused, made.too_long, made.findings) == (rows, 0, 0, ())


def texts(row):
    """What people and models say in a row; calls and tools are held as such and not as text."""
    for name in ("instruction", "input", "output"):
        if name in row:
            yield row[name]
    turns = [*row.get("conversations", ()), *(row[name] for name in ("chosen", "rejected") if name in row)]
    yield from (turn["value"] for turn in turns if turn["from"] != "function_call")
