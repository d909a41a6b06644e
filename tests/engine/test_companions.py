"""What travels with weights: the adapter's tokenizer before the base's, licences, and no word of this machine or of code."""

import json

import pytest

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.engine.companions import copy_companions, copy_licences


def test_the_copy_names_no_place_and_no_code_and_keeps_all_else(tmp_path):
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    for folder in (base, adapter, out):
        folder.mkdir()
    values = {"eos_token": "é", "model_max_length": 9}
    harmful = {"name_or_path": str(base), "auto_map": {"AutoTokenizer": "x.Y"}, "is_local": True}
    (base / "tokenizer_config.json").write_text(json.dumps(values | harmful))
    for folder, text in ((base, "of the base"), (adapter, "of the adapter")):
        (folder / "chat_template.jinja").write_text(text)
    for name in ("LICENSE.txt", "use_policy.md", "README.md", "generation_config.json"):
        (base / name).write_text("{}")
    copy_companions(base, adapter, out)
    assert json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8")) == values
    assert (out / "chat_template.jinja").read_text() == "of the adapter"
    names = ["LICENSE.txt", "chat_template.jinja", "generation_config.json", "tokenizer_config.json", "use_policy.md"]
    assert sorted(path.name for path in out.iterdir()) == names


def test_a_config_that_names_nothing_stays_byte_for_byte(tmp_path):
    for name in ("base", "adapter", "out"):
        (tmp_path / name).mkdir()
    text = '{"eos_token":   "x"}\n'
    (tmp_path / "base" / "tokenizer_config.json").write_text(text)
    copy_companions(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == text


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("tokenizer.json", 256),
        ("tokenizer.model", 64),
        ("vocab.json", 64),
        ("merges.txt", 64),
        ("added_tokens.json", 64),
        ("special_tokens_map.json", 4),
        ("tokenizer_config.json", 64),
        ("chat_template.jinja", 4),
        ("generation_config.json", 1),
        ("NOTICE", 4),
    ],
)
def test_a_file_that_is_far_too_large_is_not_copied(tmp_path, name, most):
    base, adapter, out = (tmp_path / folder for folder in ("base", "adapter", "out"))
    for folder in (base, adapter, out):
        folder.mkdir()
    with (base / name).open("wb") as file:
        file.truncate(most << 20)  # sparse: nothing is written
    if name in ("chat_template.jinja", "generation_config.json", "special_tokens_map.json", "NOTICE"):
        copy_companions(base, adapter, out)
        assert (out / name).stat().st_size == most << 20
    with (base / name).open("r+b") as file:
        file.truncate((most << 20) + 1)
    with pytest.raises(StudioError) as caught:
        copy_companions(base, adapter, out)
    size = f"{(most << 20) + 1:,}"
    assert caught.value.problems[0] == Problem(
        f"A file that belongs to the model cannot be copied: {name} has {size} bytes, and none has so many.",
        "Put the real file in its place, or download the model again.",
        str(base),
    )


def test_licences_are_named_in_order(tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    for name in ("USE_POLICY.md", "LICENCE", "License-2.txt", "LICENSING", "readme"):
        (base / name).write_text(name)
    assert copy_licences(base, out) == ["LICENCE", "License-2.txt", "USE_POLICY.md"]
    assert sorted(path.name for path in out.iterdir()) == ["LICENCE", "License-2.txt", "USE_POLICY.md"]


def test_every_file_of_a_tokenizer_and_how_answers_are_made_go_along(tmp_path):
    base, adapter, out = (tmp_path / folder for folder in ("base", "adapter", "out"))
    names = [
        "added_tokens.json", "chat_template.jinja", "generation_config.json", "merges.txt", "special_tokens_map.json",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
    ]  # fmt: skip
    for folder in (base, adapter, out):
        folder.mkdir()
    for name in (*names, "config.json", "model.safetensors"):
        (base / name).write_text("{}")
    copy_companions(base, adapter, out)
    assert sorted(path.name for path in out.iterdir()) == names
