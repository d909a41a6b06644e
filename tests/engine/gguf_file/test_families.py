"""What the GGUF header is told of each family's configuration, key by key, and what is refused."""

import math

import gguf
import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.gguf_file import families
from qlora_studio.engine.gguf_file.families import find_family, rope_tensors, write_configuration
from tests.engine.gguf_file.small_models import FAMILIES, GEMMA, LLAMA3, LONG, SIZES

GENERAL = {
    "block_count": 6, "context_length": 256, "embedding_length": 128, "feed_forward_length": 256,
    "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 32, "attention.value_length": 32,
    "rope.freq_base": 10000.0, "rope.dimension_count": 32,
}  # fmt: skip


def config_of(model_type, **changes):
    return AutoConfig.for_model(model_type, **(SIZES | changes))


def written(model_type, **changes):
    """The header's keys for this configuration, without the architecture's name before them."""
    family = find_family(model_type)
    arch = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[family.arch]]
    writer = gguf.GGUFWriter(None, arch)
    write_configuration(writer, config_of(model_type, **changes), family)
    found = {
        key: value.value for part in writer.kv_data for key, value in part.items() if key != "general.architecture"
    }
    assert all(key.startswith(f"{arch}.") for key in found)
    found = {key.removeprefix(f"{arch}."): value for key, value in found.items()}
    assert found.pop("attention.layer_norm_rms_epsilon") == config_of(model_type, **changes).rms_norm_eps
    return found


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("llama", {}),
        ("llama 3.1", {"rope.freq_base": 500000.0}),
        ("llama with linear positions", {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}),
        ("mistral", {"attention.key_length": 48, "attention.value_length": 48, "rope.dimension_count": 48}),
        ("qwen2", {}),
        ("qwen3", {"attention.key_length": 48, "attention.value_length": 48, "rope.dimension_count": 48}),
        (
            "gemma2",
            {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention.sliding_window": 16},
        ),
        (
            "gemma3",
            {"attention.sliding_window": 16, "rope.freq_base": 1000000.0, "rope.freq_base_swa": 10000.0},
        ),
        ("phi3", {"rope.scaling.original_context_length": 256, "attention.sliding_window": 300}),
        ("smollm3", {"rope.freq_base": 2000000.0}),
        ("olmo2", {}),
        (
            "granite",
            {"attention.scale": 0.2, "embedding_scale": 3.0, "residual_scale": 0.5, "logit_scale": 4.0},
        ),
    ],
)  # fmt: skip
def test_the_header_says_exactly_this_of_a_family(name, more):
    model_type, changes = FAMILIES[name]
    assert written(model_type, **changes) == GENERAL | more


def test_mistral_says_its_window_where_it_has_one():
    assert written("mistral", sliding_window=64) == GENERAL | {"attention.sliding_window": 64}


def test_gemma_3_says_a_cap_on_its_logits_where_it_has_one():
    assert written("gemma3_text", **GEMMA, final_logit_softcapping=7.0)["final_logit_softcapping"] == 7.0


def test_phi_4_has_long_positions_whose_attention_grows_with_them():
    model_type, changes = FAMILIES["phi4-mini"]
    found = written(model_type, **changes)
    assert found["rope.scaling.attn_factor"] == pytest.approx(math.sqrt(1 + 2 * math.log(2) / (9 * math.log(2))))
    assert (found["rope.dimension_count"], found["rope.scaling.original_context_length"]) == (24, 512)
    given = {"rope_parameters": LONG | {"attention_factor": 1.5}}
    assert written(model_type, **(changes | given))["rope.scaling.attn_factor"] == 1.5
    for positions, expected in ((256, 1.0), (512, 1.0), (768, math.sqrt(1 + math.log(1.5) / math.log(512)))):
        other = written(model_type, **(changes | {"max_position_embeddings": positions}))
        assert other["rope.scaling.attn_factor"] == pytest.approx(expected)
    assert written("phi3", sliding_window=None, original_max_position_embeddings=256)["attention.sliding_window"] == 0


@pytest.mark.parametrize(
    "changes", [{}, {"factor": 4.0, "low_freq_factor": 2.0, "original_max_position_embeddings": 100}]
)
def test_llama_3_1_divides_the_frequencies_as_transformers_does(changes):
    config = config_of("llama", rope_parameters=LLAMA3 | changes)
    ((name, divisors),) = rope_tensors(config)
    plain = 500000.0 ** (-torch.arange(0, 32, 2) / 32)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    assert (name, divisors.dtype, divisors.shape) == ("rope_freqs.weight", torch.float32, (16,))
    assert torch.allclose(plain / divisors, scaled, rtol=1e-5)
    assert divisors.min() == 1 and divisors.max() == (LLAMA3 | changes)["factor"] and len(set(divisors.tolist())) > 2


def test_long_positions_are_two_tensors_and_others_none():
    model_type, changes = FAMILIES["phi4-mini"]
    found = dict(rope_tensors(config_of(model_type, **changes)))
    assert list(found) == ["rope_factors_long.weight", "rope_factors_short.weight"]
    for name, expected in zip(found, (LONG["long_factor"], LONG["short_factor"]), strict=True):
        assert found[name].dtype == torch.float32 and found[name].tolist() == pytest.approx(expected)
    assert list(rope_tensors(config_of("llama"))) == []


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("qwen3", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}, "sliding windows in a Qwen"),
        ("gemma2", GEMMA | {"layer_types": ["full_attention"] * 6}, "another pattern of sliding windows"),
        ("gemma2", GEMMA | {"hidden_activation": "silu"}, "the activation silu"),
        ("gemma2", GEMMA | {"num_hidden_layers": 46, "head_dim": 16, "query_pre_attn_scalar": 16}, "queries scaled in another way"),
        ("gemma3_text", GEMMA | {"attn_logit_softcapping": 50.0}, "capped attention in a Gemma 3"),
        ("gemma3_text", GEMMA | {"layer_types": ["sliding_attention", "full_attention"] * 3}, "another pattern of sliding windows"),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 16}, "sliding windows in a SmolLM 3"),
        ("llama", {"rope_parameters": LONG | {"long_factor": [1.0] * 16, "short_factor": [1.0] * 16, "partial_rotary_factor": 1.0, "original_max_position_embeddings": 64}}, "positions scaled by longrope"),
    ],
)  # fmt: skip
def test_what_the_header_cannot_say_is_refused(model_type, changes, message):
    with pytest.raises(StudioError, match=f"^This model has {message}, which is not written as GGUF here"):
        written(model_type, **changes)


@pytest.mark.parametrize(
    ("model_type", "layers", "windows"), [("gemma2", 46, 2), ("gemma3_text", 62, 6)], ids=["gemma2", "gemma3"]
)
def test_the_largest_gemma_scales_queries_by_the_hidden_size_a_head(model_type, layers, windows):
    kinds = ["full_attention" if layer % windows == 0 else "sliding_attention" for layer in range(1, layers + 1)]
    changes = GEMMA | {"num_hidden_layers": layers, "layer_types": kinds, "head_dim": 16}
    assert written(model_type, **changes)["block_count"] == layers


def test_what_llama_cpp_expects_of_the_numbers_of_each_family():
    """The pairs of rotated numbers beside each other, Gemma's norms with the one that transformers leaves out, the activation."""
    found = {
        name: (family.arch, family.interleaved, family.raised_norms, family.activation)
        for name, family in families.FAMILIES.items()
    }
    assert found == {
        "llama": ("LLAMA", True, False, "silu"), "mistral": ("LLAMA", True, False, "silu"),
        "qwen2": ("QWEN2", False, False, "silu"), "qwen3": ("QWEN3", False, False, "silu"),
        "gemma2": ("GEMMA2", False, True, "gelu_pytorch_tanh"), "gemma3_text": ("GEMMA3", False, True, "gelu_pytorch_tanh"),
        "phi3": ("PHI3", False, False, "silu"), "smollm3": ("SMOLLM3", True, False, "silu"),
        "olmo2": ("OLMO2", False, False, "silu"), "granite": ("GRANITE", True, False, "silu"),
    }  # fmt: skip
