"""A LoRA file on a GGUF of its base gives llama.cpp the logits of PEFT's model, whatever its scale is made of."""

from __future__ import annotations

import gguf
import pytest
import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.compare import agreement
from qlora_studio.engine.gguf_file.adapter import GgufAdapter
from qlora_studio.engine.gguf_file.write import About
from qlora_studio.engine.merge import MergedWeights, MergeRecipe
from tests.engine.gguf_file.small_models import FAMILIES, reference, small_adapter, small_base, write_gguf
from tests.llama_cpp import LlamaCpp
from tests.matrix import mostly_slow

IDS = [*range(300, 390)]
SAME_KL = 1e-5
SCALES = {
    "plain": {},
    "rsLoRA": {"use_rslora": True},
    "ranks and alphas of their own": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 8},
        "alpha_pattern": {"v_proj": 32, "down_proj": 1},
    },
    "rsLoRA with ranks and alphas of their own": {
        "use_rslora": True, "rank_pattern": {"k_proj": 8}, "alpha_pattern": {"k_proj": 3},
    },
}  # fmt: skip


def open_adapter(base, adapter):
    return GgufAdapter(
        MergedWeights(MergeRecipe(base, adapter, "as_chatted", torch.float32)), About("small", "org/Base")
    )


@torch.no_grad()
def kl_of(base, adapter, place) -> float:
    """How far llama.cpp with base and adapter apart is from PEFT's model of the two."""
    zero = small_adapter(base, place / "zero", init_lora_weights=True)
    (place / "base-file").mkdir()
    plain = write_gguf(base, place / "base-file", "F32", About("small"), adapter=silenced(zero))
    file = place / "small.lora.gguf"
    one = open_adapter(base, adapter)
    one.write(file)
    one.check(file)
    assert file.stat().st_size > one.bytes > 0
    read = LlamaCpp(plain, file)
    expected = reference(base, adapter)(torch.tensor([IDS])).logits[0].log_softmax(-1)
    kl = agreement(expected, read.logits(IDS).log_softmax(-1))[1]
    without = LlamaCpp(plain)
    assert agreement(expected, without.logits(IDS).log_softmax(-1))[1] > 100 * SAME_KL, "the adapter does nothing"
    read.close()
    without.close()
    return kl


def silenced(adapter):
    """The same adapter with B at zero: its merge is the base."""
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    save_file({name: value * ("lora_B" not in name) for name, value in load_file(file).items()}, file)
    return adapter


@pytest.mark.parametrize("name", mostly_slow(FAMILIES, "gemma3"))
def test_every_family_takes_its_adapter(name, tmp_path):
    model_type, changes = FAMILIES[name]
    base = small_base(model_type, tmp_path / "base", **changes)
    assert kl_of(base, small_adapter(base, tmp_path / "adapter"), tmp_path) < SAME_KL


@pytest.mark.parametrize("name", mostly_slow(SCALES, "rsLoRA with ranks and alphas of their own"))
def test_every_scale_is_the_one_that_was_trained(name, tmp_path):
    base = small_base("llama", tmp_path / "base")
    assert kl_of(base, small_adapter(base, tmp_path / "adapter", **SCALES[name]), tmp_path) < SAME_KL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "This adapter has DoRA"),
        ({"modules_to_save": ["lm_head"]}, "This adapter has modules saved whole"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "This adapter has factors on embeddings"),
        ({"trainable_token_indices": [3, 4]}, "This adapter has embeddings of single tokens"),
    ],
)
def test_what_two_factors_cannot_say_is_refused(changes, message, tmp_path):
    base = small_base("llama", tmp_path / "base")
    with pytest.raises(StudioError, match=message):
        open_adapter(base, small_adapter(base, tmp_path / "adapter", **changes))


def test_a_file_with_another_strength_or_factor_is_refused_and_none_names_a_place_of_this_machine(tmp_path):
    base = small_base("llama", tmp_path / "base")
    one = open_adapter(base, small_adapter(base, tmp_path / "adapter"))
    file = tmp_path / "small.lora.gguf"
    one.write(file)
    data = file.read_bytes()
    assert str(tmp_path).encode() not in data and b"org/Base" in data
    assert gguf.GGUFReader(file).fields["adapter.lora.alpha"].contents() == 8
    one.alpha = 16.0
    with pytest.raises(StudioError, match="does not hold the adapter"):
        one.check(file)
    one.alpha = 8.0
    one.check(file)
    file.write_bytes(data[:-4] + bytes(byte ^ 1 for byte in data[-4:]))
    with pytest.raises(StudioError, match="does not hold the adapter"):
        one.check(file)
