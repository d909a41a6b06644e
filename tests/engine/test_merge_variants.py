"""Every kind of adapter: merged to PEFT's own result, or refused by name. The logits decide, through transformers."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.merge import MergedWeights, MergeRecipe, write_merged
from tests.engine.adapter_variants import MERGEABLE, REFUSED, Variant
from tests.matrix import mostly_slow

IDS = torch.arange(3, 43).unsqueeze(0)


def merged_model(variant_base, adapter, out, into="original"):
    out.mkdir()
    merged = MergedWeights(MergeRecipe(variant_base, adapter, into, torch.float32))
    write_merged(merged, out)
    merged.close()
    model, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


QUICK = (
    "many shards", "rank and alpha patterns", "dora with rslora and patterns", "biases trained", "saved head, tied",
    "saved embeddings, untied", "lora on embeddings, tied", "single tokens, untied", "grown and saved",
    "transposed layers", "base without prefix", "joined projections",
)  # fmt: skip


@pytest.mark.parametrize("name", mostly_slow(MERGEABLE, *QUICK))
@torch.no_grad()
def test_a_merge_equals_pefts_own(name, tmp_path):
    variant = MERGEABLE[name]
    base, adapter = variant.write(tmp_path)
    model, reference = merged_model(base, adapter, tmp_path / "out"), variant.reference(base, adapter)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    expected = reference(IDS).logits  # (1, length, vocab)
    assert (model(IDS).logits - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
    assert (plain(IDS).logits - expected[..., : plain.config.vocab_size]).abs().max() > 1e-2, "the adapter does nothing"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_refused_by_name_and_nothing_is_written(name, tmp_path):
    variant, message = REFUSED[name]
    base, adapter = variant.write(tmp_path)
    with pytest.raises(StudioError, match=message):
        MergedWeights(MergeRecipe(base, adapter, "original", torch.float32))


def test_there_are_at_least_22_variants():
    assert len(MERGEABLE) >= 22


@pytest.mark.parametrize("key", ["use_qalora", "arrow_config", "use_bdlora", "kasa_config", "a_setting_of_next_year"])
def test_a_setting_that_is_not_understood_is_never_passed_over(key, tmp_path):
    base, adapter = Variant().write(tmp_path)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: {"on": 1}}))
    with pytest.raises(StudioError, match=f"This adapter uses {key}"):
        MergedWeights(MergeRecipe(base, adapter, "original", torch.float32))
