"""The merged file against the live model: exact where it should be, refused where it cannot be."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qlora_studio.core.errors import StudioError
from qlora_studio.engine import merge as merge_module
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.adapter_file import AdapterFile
from qlora_studio.engine.checkpoints import TunedModel, save_adapter
from qlora_studio.engine.compare import agreement, log_probabilities, mean_loss, probe_answer, probe_rows
from qlora_studio.engine.load import Device, load_adapter, load_base
from qlora_studio.engine.manifest import write_folder
from qlora_studio.engine.merge import MergedWeights, MergeRecipe, nf4_round_trip, write_merged
from qlora_studio.engine.safetensors_stream import SafetensorsFile, round_fairly
from tests.engine.adapter_variants import MERGEABLE, Variant
from tests.engine.conftest import FP32, make_examples
from tests.matrix import mostly_slow

IDS = torch.arange(3, 43).unsqueeze(0)


@pytest.fixture
def adapter_folder(tiny_adapter_model, tmp_path):
    write_folder(tmp_path / "adapter", lambda stage: save_adapter(TunedModel(tiny_adapter_model, "tiny"), stage))
    return tmp_path / "adapter"


def merge(base, adapter, out, kind, compute):
    merged = MergedWeights(MergeRecipe(base, adapter, kind, compute))
    try:
        write_merged(merged, out)
    finally:
        merged.close()


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


@pytest.mark.parametrize("kind", ["original", "as_chatted"])
def test_a_merge_keeps_the_whole_of_the_delta_in_16_bits(tiny_folder, adapter_folder, tmp_path, kind):
    """The share of the change that survives rounding to bf16, over all adapted layers: the guard against a merge that
    loses the training in silence, as one into the live 4-bit weights does."""
    base = tmp_path / "bf16"
    AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16).save_pretrained(base)
    file = adapter_folder / "adapter_model.safetensors"
    small = {name: value * (0.1 if "lora_B" in name else 1) for name, value in load_file(file).items()}
    save_file(small, file, metadata={"format": "pt"})  # as small as a real one
    (tmp_path / "out").mkdir()
    merge(base, adapter_folder, tmp_path / "out", kind, torch.bfloat16)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    adapter, kept, lost, rounded = AdapterFile(adapter_folder), [], [], []
    for module in adapter.pairs:
        a, b, scale = adapter.factors(module)
        delta, name = scale * b @ a, f"{module}.weight"
        old = nf4_round_trip(before[name], torch.bfloat16) if kind == "as_chatted" else before[name]
        kept.append(share(after[name].float() - old.float(), delta))
        grid = nf4_round_trip(old, torch.bfloat16).float()
        lost.append(share(nf4_round_trip((grid + delta).bfloat16(), torch.bfloat16).float() - grid, delta))
        rounded.append(float(delta.norm() / old.float().norm()))
    assert max(rounded) < 0.02, "the change is as small beside the weights as that of a real adapter"
    assert min(kept) > 0.99 and sum(kept) / len(kept) > 0.995
    assert sum(lost) / len(lost) < 0.7, "a merge into the 4-bit grid would have been noticed"


def share(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """How much of the wanted change is in the one found: 1 where it is whole, 0 where it is lost."""
    return float((found * wanted).sum() / wanted.square().sum())


@pytest.mark.parametrize("kind", ["original", "as_chatted"])
def test_a_base_that_exists_only_in_4_bits_is_merged_as_chatted_and_else_refused(
    tiny_folder, tiny_adapter_model, adapter_folder, tmp_path, kind
):
    load_base(tiny_folder, FP32).save_pretrained(tmp_path / "four")
    if kind == "original":
        with pytest.raises(StudioError, match="exists only in 4 bits"):
            merged_model(tmp_path / "four", adapter_folder, tmp_path / "merged", kind)
        return
    model = merged_model(tmp_path / "four", adapter_folder, tmp_path / "merged", kind)
    tiny_adapter_model.eval()
    assert torch.allclose(model(IDS).logits, tiny_adapter_model(IDS).logits, atol=2e-4)


def test_as_chatted_rounds_every_layer_the_chat_has_in_4_bits_not_only_the_adapted_ones(tiny_folder, tmp_path):
    variant = Variant({"target_modules": ["q_proj"]})
    base, adapter = variant.write(tmp_path)
    live = load_adapter(load_base(base, FP32), adapter).eval()
    model = merged_model(base, adapter, tmp_path / "merged", "as_chatted")
    assert torch.allclose(model(IDS).logits, live(IDS).logits, atol=2e-4)


def test_as_chatted_turns_transposed_layers_round_as_the_loader_does(tmp_path):
    base, adapter = MERGEABLE["transposed layers"].write(tmp_path)
    live = load_adapter(load_base(base, FP32), adapter).eval()
    model = merged_model(base, adapter, tmp_path / "merged", "as_chatted")
    assert torch.allclose(model(IDS).logits, live(IDS).logits, atol=2e-4)


def test_a_cut_off_weights_file_is_named(tiny_folder, tmp_path):
    data = (tiny_folder / "model.safetensors").read_bytes()
    for length in (4, 100, len(data) - 1):
        file = tmp_path / f"{length}.safetensors"
        file.write_bytes(data[:length])
        with pytest.raises(StudioError, match=f"{length}.safetensors: This weights file"):
            SafetensorsFile(file)


def test_agreement_of_a_model_with_itself_is_whole_and_with_another_is_not(tiny_folder, tiny_adapter_model):
    probes = [
        probe_answer(range(3, 20), range(30, 40), stopped=False),
        probe_answer((5, 6), (7, 8, 9), stopped=True),
        *probe_rows(make_examples(1), most=5),
    ]
    tiny_adapter_model.eval()
    tuned = log_probabilities(tiny_adapter_model, probes)
    assert tuned.shape == (10 + 4 + 5, 256)
    assert agreement(tuned, tuned) == (1.0, 0.0)
    with tiny_adapter_model.disable_adapter():
        base = log_probabilities(tiny_adapter_model, probes)
    same, kl = agreement(tuned, base)
    assert same < 1 and kl > 0.01


def test_probes_look_at_the_tokens_that_are_trained_and_their_loss_is_that_of_transformers(tiny_folder):
    model = load_base(tiny_folder, FP32, four_bit=False).eval()
    (example,) = make_examples(1)
    probes = probe_rows([example])
    assert probes[0].targets() == [label for label in example.labels() if label >= 0]
    ids = torch.tensor([example.input_ids])
    expected = model(input_ids=ids, labels=torch.tensor([example.labels()])).loss
    assert mean_loss(log_probabilities(model, probes), probes) == pytest.approx(float(expected), rel=1e-5)
    assert mean_loss(torch.empty(0, 0), []) is None


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


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2])
def test_a_change_smaller_than_half_a_step_is_kept_in_the_mean(size):
    torch.manual_seed(0)
    before = torch.randn(512, 512).bfloat16()
    wanted = before.float() + size * before.float().abs()
    (after,) = round_fairly(wanted, torch.bfloat16, torch.Generator().manual_seed(1))
    change = after.reshape(512, 512).float() - before.float()
    assert share(change, wanted - before.float()) == pytest.approx(1, abs=0.02)
    (again,) = round_fairly(wanted, torch.bfloat16, torch.Generator().manual_seed(1))
    assert torch.equal(after, again), "the same export twice is the same file"
    if size < 1e-3:
        nearest = wanted.bfloat16().float() - before.float()
        assert share(nearest, wanted - before.float()) < 0.5


def test_rounding_leaves_what_is_not_finite_and_what_is_on_the_grid():
    odd = torch.tensor([float("inf"), float("-inf"), float("nan"), 3.3895e38, -0.0, 1.0])
    (rounded,) = round_fairly(odd, torch.bfloat16, torch.Generator())
    assert torch.equal(rounded.isfinite(), odd.isfinite()) and rounded[-1] == 1 and rounded[-2] == 0


@pytest.mark.parametrize("into", ["original", "as_chatted"])
@pytest.mark.parametrize("name", mostly_slow(MERGEABLE, "plain", "dora"))
def test_in_pieces_of_a_few_rows_a_merge_is_the_same(name, into, tmp_path, monkeypatch):
    """Pieces are as small as they come here: every kind of adapter crosses many of their borders."""
    base, adapter = MERGEABLE[name].write(tmp_path)
    merged = MergedWeights(MergeRecipe(base, adapter, into, torch.float32))
    whole = {tensor.name: torch.cat(list(merged.pieces(tensor))) for tensor in merged.tensors}
    monkeypatch.setattr(merge_module, "PIECE_VALUES", 300)
    for tensor in merged.tensors:
        pieces = list(merged.pieces(tensor))
        assert torch.allclose(torch.cat(pieces), whole[tensor.name], atol=1e-6, rtol=1e-6), tensor.name
        splits = len(tensor.shape) == 2 and tensor.parameter not in merged.layout.transposed
        assert len(pieces) > 1 or not splits or into == "as_chatted" or torch.cat(pieces).numel() < 600
    merged.close()
