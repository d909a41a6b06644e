"""What training added to each layer is found in every kind of file, and a layer that lost it, or half of it, is noticed."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_studio.core import events as ev
from qlora_studio.core.verdict import find_verdict
from qlora_studio.engine.adapter_file import WEIGHTS
from qlora_studio.engine.exporters.comparison import look_at_layers
from qlora_studio.engine.gguf_file.strength import measure_gguf
from qlora_studio.engine.gguf_file.write import About, GgufFile, Precision
from qlora_studio.engine.merge import MergedWeights, MergeRecipe, write_merged
from qlora_studio.engine.model_weights import ModelWeights
from qlora_studio.engine.strength import measure_merged
from qlora_studio.engine.tokenizer import load_tokenizer
from tests.engine.gguf_file.small_models import small_adapter, small_base
from tests.matrix import mostly_slow

KINDS = ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "BF16", "F16"]
WIDE = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 8}
RIGHT, NONE, HALF, DOUBLE = 1.0, 0.0, 0.5, 2.0


@pytest.fixture(scope="module", params=mostly_slow(["llama", "gemma2"], "llama"))
def base(request, tmp_path_factory):
    """A base in bf16 whose rows fill the blocks of K-quants."""
    folder = small_base(request.param, tmp_path_factory.mktemp("base"), **WIDE, **MORE[request.param])
    values = {name: value.bfloat16() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


MORE = {"llama": {}, "gemma2": {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 16, "tie_word_embeddings": True}}  # fmt: skip


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """An adapter whose change is half a hundredth of each weight, as a real one's."""
    folder = small_adapter(base, tmp_path_factory.mktemp("adapter"))
    state, weights = load_file(folder / WEIGHTS), load_file(base / "model.safetensors")
    for name in [name for name in state if ".lora_B." in name]:
        weight = weights[name.removeprefix("base_model.model.").replace(".lora_B.weight", ".weight")].float()
        change = 2 * state[name] @ state[name.replace("lora_B", "lora_A")]
        state[name] *= 0.005 * weight.norm() / change.norm()
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def damaged(adapter, place, layer, strength):
    """The adapter with one layer at another strength."""
    place.mkdir()
    state = load_file(adapter / WEIGHTS)
    state = {name: value * strength if f"{layer}.lora_B." in name else value for name, value in state.items()}
    save_file(state, place / WEIGHTS, metadata={"format": "pt"})
    (place / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    return place


def strengths(base, written, wanted, kind, into, place):
    """What is found in a file that was written with one adapter, where another was wanted."""
    with (
        closing(MergedWeights(MergeRecipe(base, written, into, torch.bfloat16))) as found,
        closing(MergedWeights(MergeRecipe(base, wanted, into, torch.bfloat16))) as merged,
    ):
        if kind == "merged":
            write_merged(found, place)
            with closing(ModelWeights(place)) as weights:
                return list(measure_merged(merged, weights))
        path, about = place / "x.gguf", About("x")
        GgufFile(found, load_tokenizer(base), Precision(kind), about).write(path)
        return list(measure_gguf(GgufFile(merged, load_tokenizer(base), Precision(kind), about), path))


@pytest.mark.parametrize("into", mostly_slow(["original", "as_chatted"], "as_chatted"))
@pytest.mark.parametrize("kind", mostly_slow([*KINDS, "merged"], "merged"))
@pytest.mark.parametrize("strength", mostly_slow([RIGHT, NONE, HALF, DOUBLE], RIGHT, HALF))
def test_a_layer_at_another_strength_is_noticed_at_every_precision(strength, kind, into, base, adapter, tmp_path):
    if base.joinpath("config.json").read_text().find("gemma2") > 0 and (strength == DOUBLE or kind in ("Q6_K", "F16")):
        pytest.skip("one architecture is enough for these")
    layer = "layers.1.self_attn.q_proj"
    found = strengths(base, damaged(adapter, tmp_path / "other", layer, strength), adapter, kind, into, tmp_path)
    off = [one.layer for one in found if one.is_off]
    assert len(found) == 14 and off == ([] if strength == RIGHT else [f"model.{layer}"])
    verdict = find_verdict(look_at_layers(ev.Checked(what=kind, as_chatted=True, precision="Q4_K_M"), found))
    assert (verdict.word, verdict.kind) == (("agrees", "good") if strength == RIGHT else ("lost a layer", "bad"))
