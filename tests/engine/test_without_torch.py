"""Tokens made in a process without torch are those of one that has it."""

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qlora_studio.engine import without_torch as without_torch_module
from qlora_studio.engine.tokenizer import load_tokenizer
from tests.engine.architectures import ALL, config_of

PROGRAM = """
import json, sys
from pathlib import Path
from qlora_studio.engine.without_torch import leave_torch_out
leave_torch_out()
from qlora_studio.engine.tokenizer import load_tokenizer
print(json.dumps([describe(load_tokenizer(Path(folder))) for folder in sys.argv[1:]]))
assert sys.modules["torch"] is None
"""
MESSAGES = [
    {"role": "user", "content": "O\u00f9 est l'\u00e9t\u00e9 ?"},
    {"role": "assistant", "content": "hier \u4e2d"},
]
CLASSES = ["GPT2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", None]


def describe(tokenizer):
    text = tokenizer.render(MESSAGES, add_generation_prompt=True)
    ids = [one.ids for one in tokenizer.encode([text, "<|im_end|> typed"])]
    return [tokenizer.digest, tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocabulary, text, ids]


def without_torch(folders):
    program = f"MESSAGES = {MESSAGES!r}\n{inspect.getsource(describe)}\n{PROGRAM}"
    command = [sys.executable, "-c", program, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_every_family_has_the_same_tokens(smollm2, tmp_path):
    for family in ALL:
        config_of(family).save_pretrained(tmp_path / family)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (smollm2 / name).exists():
                shutil.copy(smollm2 / name, tmp_path / family)
    for name in CLASSES:
        folder = tmp_path / f"class-{name}"
        shutil.copytree(tmp_path / "llama", folder)
        values = json.loads((folder / "tokenizer_config.json").read_text())
        values.pop("tokenizer_class", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(values | ({"tokenizer_class": name} if name else {})))
    folders = sorted(tmp_path.iterdir())
    found = dict(zip([folder.name for folder in folders], without_torch(folders), strict=True))
    assert found == {folder.name: describe(load_tokenizer(folder)) for folder in folders}
    assert len(found) == len(ALL) + len(CLASSES)


@pytest.mark.slow
def test_the_small_model_has_the_same_tokens(smollm2):
    assert without_torch([Path(smollm2)]) == [describe(load_tokenizer(smollm2))]


@pytest.mark.parametrize(
    ("there", "after"),
    [
        ({"json"}, {"json", "torch"}),
        ({"torch"}, {"torch"}),
        ({"transformers"}, {"transformers"}),
        ({"torch", "transformers"}, {"torch", "transformers"}),
    ],
)
def test_torch_is_left_out_only_where_nobody_has_imported_it_or_what_looks_for_it(monkeypatch, there, after):
    modules = dict.fromkeys(there, "imported")
    monkeypatch.setattr(without_torch_module, "sys", SimpleNamespace(modules=modules))
    without_torch_module.leave_torch_out()
    assert set(modules) == after
    assert [name for name, module in modules.items() if module is None] == (["torch"] if there == {"json"} else [])
