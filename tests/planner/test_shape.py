"""Shapes from config.json: what is read, what is refused, and in which words."""

import json

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.shape import read_shape, shape_from_config

SMOL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}


def write_config(folder, values):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_a_folder_gives_the_reference_shape(tmp_path):
    shape = read_shape(write_config(tmp_path / "smol", SMOL), "smol")
    assert shape == REFERENCE_SHAPES["SmolLM2-135M"].model_copy(
        update={"name": "smol", "config_hash": shape.config_hash}
    )
    assert len(shape.config_hash) == 16


def test_a_nested_text_config_is_read_with_its_own_family():
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "sliding_window": 1024,
        "max_position_embeddings": 131072,
    }
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    assert shape_from_config(outer, "Gemma-3-4B") == REFERENCE_SHAPES["Gemma-3-4B"]


def test_phi_rotates_part_of_a_head():
    values = SMOL | {
        "model_type": "phi3",
        "hidden_size": 3072,
        "num_attention_heads": 24,
        "partial_rotary_factor": 0.75,
    }
    assert shape_from_config(values, "phi").rotary_dim == 96


def test_qwen2_has_biases_where_llama_has_none():
    values = SMOL | {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}
    shape = shape_from_config(values, "qwen")
    assert (shape.attention_bias, shape.output_bias, shape.sliding_window, shape.exact) == (True, False, None, True)


@pytest.mark.parametrize(
    ("values", "exact"),
    [
        (SMOL, True),
        (SMOL | {"model_type": "granite"}, False),
        (SMOL | {"num_local_experts": 8}, False),
        (SMOL | {"layer_types": ["linear_attention"] * 30}, False),
        ({"architectures": ["XForConditionalGeneration"], "text_config": SMOL, "vision_config": {}}, False),
        ({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}, False),
    ],
    ids=["llama", "other family", "experts", "linear attention", "images", "gpt2"],
)
def test_only_the_dense_families_are_known_by_formula(values, exact):
    assert shape_from_config(values, "x").exact is exact


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {**SMOL, "architectures": ["BertForMaskedLM"]},
            "c.json: This is no causal language model but BertForMaskedLM.",
        ),
        ({**SMOL, "is_encoder_decoder": True}, "c.json: This is no causal language model but LlamaForCausalLM."),
        ({**SMOL, "hidden_size": "big"}, "c.json: field 'hidden_size': This config.json does not say its hidden."),
        ({**SMOL, "model_type": ""}, "c.json: This config.json does not say its model_type."),
        (
            {**SMOL, "quantization_config": {"quant_method": "gptq"}},
            "c.json: This model is already quantised with gptq.",
        ),
    ],
    ids=["encoder", "encoder-decoder", "no size", "no family", "gptq"],
)
def test_other_files_are_refused_in_a_sentence(values, message):
    with pytest.raises(StudioError) as caught:
        shape_from_config(values, "x", where="c.json")
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1,000,000,000, and no model has more than 1,000."),
        ({"hidden_size": 10**12}, "hidden_size 1,000,000,000,000, and no model has more than 131,072."),
        ({"vocab_size": 10**10}, "vocab_size 10,000,000,000, and no model has more than 4,194,304."),
        ({"intermediate_size": 10**9}, "intermediate_size 1,000,000,000, and no model has more than 1,048,576."),
        ({"num_key_value_heads": 10**6}, "num_key_value_heads 1,000,000, and no model has more than 4,096."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_absurd_file_is_refused_at_once(values, message):
    with pytest.raises(StudioError) as caught:
        shape_from_config(SMOL | values, "x", where="c.json")
    assert caught.value.message == f"c.json: field '{next(iter(values))}': This config.json says {message}"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, " " * (5 << 20)], ids=["broken", "nested deep", "far too large"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(StudioError) as caught:
        read_shape(tmp_path, "x")
    assert caught.value.message.startswith(f"{tmp_path / 'config.json'}: The model's config.json cannot be read: ")


def test_a_folder_without_config_is_named(tmp_path):
    with pytest.raises(StudioError) as caught:
        read_shape(tmp_path, "x")
    assert caught.value.message == f"{tmp_path}: This folder holds no config.json."
