"""What travels with weights: the adapter's tokenizer before the base's, licences, and no word of this machine or of code."""

import json

from qlora_studio.engine.companions import copy_companions


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
