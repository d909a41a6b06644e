"""The merged file against the live model: exact where it should be, refused where it cannot be."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.checkpoints import TunedModel, save_adapter
from qlora_studio.engine.compare import Probe, agreement, answer_log_probabilities
from qlora_studio.engine.load import Device, load_base
from qlora_studio.engine.manifest import write_folder
from qlora_studio.engine.merge import merge
from qlora_studio.engine.safetensors_stream import SafetensorsFile
from tests.engine.conftest import FP32

IDS = torch.arange(3, 43).unsqueeze(0)


@pytest.fixture
def adapter_folder(tiny_adapter_model, tmp_path):
    write_folder(tmp_path / "adapter", lambda stage: save_adapter(TunedModel(tiny_adapter_model, "tiny"), stage))
    return tmp_path / "adapter"


def merged_model(base, adapter, out, kind):
    out.mkdir()
    merge(base, adapter, out, kind, torch.float32)
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)


def test_as_chatted_equals_the_live_4_bit_model_and_transformers_loads_it(
    tiny_folder, tiny_adapter_model, adapter_folder, tmp_path
):
    model = merged_model(tiny_folder, adapter_folder, tmp_path / "merged", "as_chatted")
    tiny_adapter_model.eval()
    assert torch.allclose(model(IDS).logits, tiny_adapter_model(IDS).logits, atol=2e-4)


def test_original_equals_pefts_own_merge_into_the_dense_base(tiny_folder, adapter_folder, tmp_path):
    from peft import PeftModel

    model = merged_model(tiny_folder, adapter_folder, tmp_path / "merged", "original")
    reference = PeftModel.from_pretrained(
        load_base(tiny_folder, FP32, four_bit=False), adapter_folder
    ).merge_and_unload()
    assert torch.allclose(model(IDS).logits, reference(IDS).logits, atol=1e-5)


def test_merging_keeps_the_change(tiny_folder, adapter_folder, tmp_path):
    """Merging into the live 4-bit weights would lose nearly all: the change is smaller than a step of the grid."""
    merged_model(tiny_folder, adapter_folder, tmp_path / "merged", "original")
    before, after = load_file(tiny_folder / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    config = json.loads((adapter_folder / "adapter_config.json").read_text())
    state = load_file(adapter_folder / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.mlp.up_proj"
    delta = config["lora_alpha"] / config["r"] * state[f"{key}.lora_B.weight"] @ state[f"{key}.lora_A.weight"]
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(after[name] - before[name], delta, atol=1e-6)
    assert float(delta.abs().max()) > 0
    untouched = "model.embed_tokens.weight"
    assert torch.equal(after[untouched], before[untouched])


def test_shards_stay_shards(tiny_folder, adapter_folder, tmp_path):
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).save_pretrained(
        sharded, max_shard_size="100KB"
    )
    assert len(list(sharded.glob("*.safetensors"))) > 1
    one = merged_model(tiny_folder, adapter_folder, tmp_path / "one", "as_chatted")
    many = merged_model(sharded, adapter_folder, tmp_path / "many", "as_chatted")
    assert torch.equal(one(IDS).logits, many(IDS).logits)


def test_an_adapter_without_a_place_in_the_base_is_refused(tiny_folder, adapter_folder, tmp_path):
    file = adapter_folder / "adapter_model.safetensors"
    state = {name.replace("layers.1.", "layers.7."): value for name, value in load_file(file).items()}
    save_file(state, file)
    (tmp_path / "out").mkdir()
    with pytest.raises(StudioError, match="7 weights of the adapter have no place in this base"):
        merge(tiny_folder, adapter_folder, tmp_path / "out", "original", torch.float32)


@pytest.mark.parametrize(
    ("key", "value"), [("use_dora", True), ("modules_to_save", ["lm_head"]), ("layer_replication", [[0, 1]])]
)
def test_what_cannot_be_merged_tensor_by_tensor_is_refused_by_name(tiny_folder, adapter_folder, tmp_path, key, value):
    file = adapter_folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(StudioError, match=f"This adapter uses {key}"):
        merge(tiny_folder, adapter_folder, tmp_path, "original", torch.float32)


def test_a_cut_off_weights_file_is_named(tiny_folder, tmp_path):
    data = (tiny_folder / "model.safetensors").read_bytes()
    for length in (4, 100, len(data) - 1):
        file = tmp_path / f"{length}.safetensors"
        file.write_bytes(data[:length])
        with pytest.raises(StudioError, match=f"{length}.safetensors: This weights file"):
            SafetensorsFile(file)


def test_agreement_of_a_model_with_itself_is_whole_and_with_another_is_not(tiny_folder, tiny_adapter_model):
    probes = [Probe(tuple(range(3, 20)), tuple(range(30, 40))), Probe((5, 6), (7, 8, 9))]
    tiny_adapter_model.eval()
    tuned = answer_log_probabilities(tiny_adapter_model, probes)
    assert tuned.shape == (13, 256)
    assert agreement(tuned, tuned) == (1.0, 0.0)
    with tiny_adapter_model.disable_adapter():
        base = answer_log_probabilities(tiny_adapter_model, probes)
    same, kl = agreement(tuned, base)
    assert same < 1 and kl > 0.01


def test_a_base_with_a_missing_weight_is_refused(tiny_folder, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    state = load_file(tiny_folder / "model.safetensors")
    state.pop("model.layers.1.mlp.down_proj.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        StudioError,
        match=r"1 weights of the model are missing or of another shape, first model\.layers\.1\.mlp\.down_proj\.weight",
    ):
        load_base(folder, Device(CpuAccelerator(), torch.float32))
