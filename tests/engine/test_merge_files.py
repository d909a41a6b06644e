"""What a merge writes beside the numbers: config, index, shards and the order of things, each value by itself."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_studio.engine import merge as merge_module
from qlora_studio.engine.merge import MergedWeights, MergeRecipe, nf4_round_trip, write_merged
from tests.engine.adapter_variants import TIED, UNTIED, Variant

Q = ["q_proj"]


def opened(folders, into="original"):
    return closing(MergedWeights(MergeRecipe(*folders, into, torch.float32)))


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_config_is_the_base_s_without_what_the_merged_files_are_not(tmp_path):
    base, adapter = Variant({"target_modules": Q}).write(tmp_path)
    before = json.loads((base / "config.json").read_text())
    edit(base, transformers_weights="model.safetensors", some={"vocab_size": 96})
    with opened((base, adapter)) as merged:
        assert merged.config == before | {"some": {"vocab_size": 96}}
        (tmp_path / "out").mkdir()
        write_merged(merged, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == before | {"some": {"vocab_size": 96}}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def test_a_grown_vocabulary_is_said_wherever_the_config_says_it(tmp_path):
    base, adapter = Variant({"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": Q}, grow=100, changes=UNTIED).write(tmp_path)  # fmt: skip
    edit(base, some={"vocab_size": 5, "else": 7}, other={"else": 1})
    with opened((base, adapter)) as merged:
        config = merged.config
    assert (config["vocab_size"], config["some"], config["other"]) == (100, {"vocab_size": 100, "else": 7}, {"else": 1})
    assert config["tie_word_embeddings"] is False


@pytest.mark.parametrize(("saved", "tied"), [(["lm_head"], False), (["embed_tokens", "lm_head"], False), ([], True)])
def test_weights_that_are_tied_no_more_are_said_to_be_wherever_the_config_says_it(tmp_path, saved, tied):
    base, adapter = Variant({"modules_to_save": saved, "target_modules": Q} if saved else {"target_modules": Q}, changes=TIED).write(tmp_path)  # fmt: skip
    edit(base, some={"tie_word_embeddings": True}, other={})
    with opened((base, adapter)) as merged:
        config, names = merged.config, [tensor.name for tensor in merged.tensors]
    assert (config["tie_word_embeddings"], config["some"], config["other"]) == (tied, {"tie_word_embeddings": tied}, {})
    assert merged.tied == tied and names.count("lm_head.weight") == (not tied) and len(set(names)) == len(names)


def test_shards_have_their_numbers_an_index_and_are_told_as_they_go(tmp_path):
    base, adapter = Variant({"target_modules": Q}, shards="20KB").write(tmp_path)
    out, told = tmp_path / "out", []
    out.mkdir()
    with opened((base, adapter)) as merged:
        write_merged(merged, out, lambda done, total: told.append((done, total)))
        total, changed = merged.bytes, [tensor for tensor in merged.tensors if tensor.changed]
        order = [merged.entry(tensor).bytes for file in merged.base.files.names for tensor in merged.tensors if tensor.source.file == file]  # fmt: skip
    assert {tensor.name.rpartition(".")[0][-6:] for tensor in changed} == {"q_proj"} and len(changed) == 2
    count = len(list(base.glob("*.safetensors")))
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)] and count > 2
    index = json.loads((out / "model.safetensors.index.json").read_text())
    places = {name: file for file in files for name in load_file(out / file)}
    assert index == {"metadata": {"total_size": total}, "weight_map": places}
    assert list(index["weight_map"]) == sorted(places)
    assert told == [(sum(order[: place + 1]), total) for place in range(len(order))]
    for file in files:
        assert (out / file).stat().st_size > 0
        assert (out / file).read_bytes()[8:].startswith(b'{"__metadata__":{"format":"pt"}')


@pytest.mark.parametrize(("values", "multiple", "rows"), [(64, 1, 2), (64, 4, 4), (1, 1, 1), (1 << 20, 1, 32), (200, 4, 4)])  # fmt: skip
def test_a_matrix_goes_in_pieces_of_whole_rows(tmp_path, monkeypatch, values, multiple, rows):
    base, adapter = Variant({"target_modules": Q}).write(tmp_path)
    monkeypatch.setattr(merge_module, "PIECE_VALUES", values)
    with opened((base, adapter)) as merged:
        (tensor, *_) = (one for one in merged.tensors if one.parameter.endswith("q_proj.weight"))
        pieces = list(merged.before(tensor, multiple))
        assert [(one.first, one.after, one.of) for one, _ in pieces] == [
            (first, min(32, first + rows), 32) for first in range(0, 32, rows)
        ]
        stored = merged.base.read(tensor.source.name)
        assert torch.equal(torch.cat([weight for _, weight in pieces]), stored)
        a, b, scale = merged.adapter.factors(tensor.parameter.removesuffix(".weight"))
        found = torch.cat(list(merged.pieces(tensor, multiple)))
        torch.testing.assert_close(found, stored + scale * b @ a)


@pytest.mark.parametrize("into", ["original", "as_chatted"])
def test_only_what_the_chat_has_in_4_bits_goes_through_them(tmp_path, into):
    base, adapter = Variant({"target_modules": Q}).write(tmp_path)
    with opened((base, adapter), into) as merged:
        changed = {tensor.name for tensor in merged.tensors if tensor.changed}
        linear = {tensor.name for tensor in merged.tensors if tensor.name.endswith("_proj.weight")}
        assert changed == (linear if into == "as_chatted" else {name for name in linear if "q_proj" in name})
        (up,) = (one for one in merged.tensors if one.name == "model.layers.1.mlp.up_proj.weight")
        (found,) = list(merged.pieces(up))
        stored = merged.base.read(up.name)
        assert torch.equal(found, nf4_round_trip(stored, torch.float32) if into == "as_chatted" else stored)
        (embedding,) = (one for one in merged.tensors if one.name == "model.embed_tokens.weight")
        assert torch.equal(torch.cat(list(merged.pieces(embedding))), merged.base.read(embedding.name))


def test_an_embedding_that_was_saved_twice_is_written_once_and_stays_tied(tmp_path):
    saved = {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": Q}
    base, adapter = Variant(saved, changes=TIED).write(tmp_path)
    file = adapter / "adapter_model.safetensors"
    state = load_file(file)
    head, embedding = (next(name for name in state if f"{part}.weight" in name) for part in ("lm_head", "embed_tokens"))
    state[head] = state[embedding].clone()
    save_file(state, file, metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    with opened((base, adapter)) as merged:
        assert merged.tied and "lm_head.weight" not in [tensor.name for tensor in merged.tensors]
        write_merged(merged, tmp_path / "out")
        assert merged.adapter.unused == []
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["model.embed_tokens.weight"].float(), state[embedding].float())
    assert merged.config["tie_word_embeddings"] is True


def test_closed_weights_are_read_no_more_neither_the_base_s_nor_the_adapter_s(tmp_path):
    merged = MergedWeights(MergeRecipe(*Variant({"target_modules": Q}).write(tmp_path), "original", torch.float32))
    merged.close()
    with pytest.raises(ValueError, match="closed file"):
        merged.base.read("model.norm.weight")
    with pytest.raises(ValueError, match="closed file"):
        merged.adapter.factors("model.layers.0.self_attn.q_proj")
