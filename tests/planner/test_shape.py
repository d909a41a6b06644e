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


def shape_of(**values):
    return shape_from_config({key: value for key, value in (SMOL | values).items() if value is not ...}, "x")


def test_what_a_file_leaves_out_has_the_usual_value():
    shape = shape_of(
        intermediate_size=..., num_key_value_heads=..., max_position_embeddings=..., tie_word_embeddings=...,
        architectures=...,
    )  # fmt: skip
    assert (shape.intermediate, shape.kv_heads, shape.max_positions, shape.tied_embeddings) == (4 * 576, 9, 2048, False)
    assert (shape.head_dim, shape.rotary_dim, shape.sliding_window, shape.sliding_layers) == (64, None, None, 0)
    assert (shape.qk_norm, shape.attention_bias, shape.output_bias, shape.mlp_bias) == (False,) * 4
    assert (shape.whole_logits, shape.exact, shape.config_hash, shape.measured) == (False, True, "", None)
    assert [shape_of(model_type=family, tie_word_embeddings=...).tied_embeddings for family in ("gemma3_text", "gemma")] == [
        True, True,
    ]  # fmt: skip
    assert not shape_of(model_type="gemma", tie_word_embeddings=False).tied_embeddings


@pytest.mark.parametrize(
    ("family", "given", "head_dim"),
    [("llama", ..., 64), ("llama", 80, 80), ("gemma3_text", ..., 256), ("qwen3", ..., 128), ("qwen3", 96, 96)],
)
def test_the_width_of_a_head_is_given_or_that_of_its_family_or_an_even_share(family, given, head_dim):
    assert shape_of(model_type=family, head_dim=given).head_dim == head_dim


def test_sizes_go_by_several_names_of_which_the_first_that_is_a_size_counts():
    others = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_inner": 99, "n_positions": 77}
    shape = shape_from_config(others | {"model_type": "gpt2", "n_head_kv": 2}, "x")
    assert (shape.hidden, shape.layers, shape.heads, shape.vocab) == (64, 2, 4, 100)
    assert (shape.intermediate, shape.max_positions, shape.kv_heads) == (99, 77, 2)
    assert shape_of(hidden_size=0, n_embd=True, d_model=-3, dim=90).hidden == 90
    assert shape_of(hidden_size=1, n_embd=90).hidden == 1


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("hidden_size", 131_072), ("num_hidden_layers", 1000), ("num_attention_heads", 4096), ("vocab_size", 4_194_304),
        ("num_key_value_heads", 4096), ("head_dim", 16_384), ("intermediate_size", 1_048_576),
        ("max_position_embeddings", 1 << 40),
    ],
)  # fmt: skip
def test_a_size_may_be_as_large_as_the_largest_and_no_larger(name, most):
    shape_of(**{name: most})
    with pytest.raises(StudioError) as caught:
        shape_of(**{name: most + 1})
    (problem,) = caught.value.problems
    assert problem.message == f"This config.json says {name} {most + 1:,}, and no model has more than {most:,}."
    assert (problem.hint, problem.field) == ("Fetch the model again from where you trust it.", name)


@pytest.mark.parametrize(
    ("values", "window", "layers"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, 4096, 30),
        ({"model_type": "mistral", "sliding_window": None}, None, 0),
        ({"model_type": "mistral", "sliding_window": 0}, None, 0),
        ({"model_type": "gemma3_text", "sliding_window": 512}, 512, 25),
        ({"model_type": "gemma3_text", "sliding_window": 512, "num_hidden_layers": 26}, 512, 22),
        ({"model_type": "qwen3", "sliding_window": 512}, None, 0),
        ({"model_type": "qwen3", "sliding_window": 512, "use_sliding_window": True}, 512, 0),
        (
            {"model_type": "qwen3", "sliding_window": 512, "use_sliding_window": True, "max_window_layers": 20},
            512, 10,
        ),
        (
            {"model_type": "qwen3", "sliding_window": 512, "use_sliding_window": True, "max_window_layers": 40},
            512, 0,
        ),
        (
            {"sliding_window": 512, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 10},
            512, 20,
        ),
        ({"layer_types": ["sliding_attention"] * 30}, None, 0),
    ],
)  # fmt: skip
def test_how_many_layers_look_back_no_further_than_a_window(values, window, layers):
    shape = shape_of(**values)
    assert (shape.sliding_window, shape.sliding_layers) == (window, layers)


@pytest.mark.parametrize(
    ("values", "rotated"),
    [
        ({}, None), ({"partial_rotary_factor": 1.0}, None), ({"partial_rotary_factor": 1}, None),
        ({"partial_rotary_factor": 0.5}, 32), ({"partial_rotary_factor": 0.5, "head_dim": 100}, 50),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, 16), ({"rope_parameters": [0.25]}, None),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}, "partial_rotary_factor": 0.75}, 48),
        ({"partial_rotary_factor": "half"}, None),
    ],
)  # fmt: skip
def test_how_much_of_a_head_is_rotated(values, rotated):
    assert shape_of(**values).rotary_dim == rotated


def test_part_of_a_head_is_rotated_whatever_its_sizes_are_called():
    values = {"model_type": "odd", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100}
    assert shape_from_config(values | {"partial_rotary_factor": 0.5}, "x").rotary_dim == 8
    assert shape_of(model_type="qwen3", partial_rotary_factor=0.5).rotary_dim == 64


@pytest.mark.parametrize(
    ("family", "given", "biases"),
    [
        ("llama", ..., (False, False)), ("llama", True, (True, True)), ("qwen2", ..., (True, False)),
        ("qwen2", True, (True, False)), ("qwen2", False, (False, False)),
    ],
)  # fmt: skip
def test_where_attention_has_biases(family, given, biases):
    shape = shape_of(model_type=family, attention_bias=given, mlp_bias=family == "llama")
    assert (shape.attention_bias, shape.output_bias) == biases and shape.mlp_bias == (family == "llama")


@pytest.mark.parametrize("name", ["final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier"])
def test_logits_that_are_scaled_or_capped_are_computed_whole(name):
    assert [shape_of(**{name: value}).whole_logits for value in (None, 1, 1.0, 30.0, 0.5)] == [False] * 3 + [True] * 2


@pytest.mark.parametrize(
    ("values", "exact"),
    [
        ({"num_experts": 0}, True), ({"num_experts": 8}, False), ({"n_routed_experts": 2}, False),
        ({"layer_types": ["full_attention", "sliding_attention"]}, True), ({"layer_types": None}, True),
        ({"layer_types": ["full_attention", "mamba"]}, False), ({"audio_config": {}}, False),
    ],
)  # fmt: skip
def test_experts_other_layers_and_other_senses_are_measured(values, exact):
    assert shape_of(**values).exact is exact


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["LlamaForCausalLM", "Other"]}, None), ({"architectures": ["GPT2LMHeadModel"]}, None),
        ({"architectures": []}, None), ({"quantization_config": {"quant_method": "bitsandbytes"}}, None),
        ({"quantization_config": "gptq"}, None), ({"quantization_config": {}}, None),
        (
            {"architectures": ..., "is_encoder_decoder": True},
            "This is no causal language model but an encoder-decoder.",
        ),
        ({"architectures": ["T5Encoder", "Other"]}, "This is no causal language model but T5Encoder."),
        ({"quantization_config": {"quant_method": "awq"}}, "This model is already quantised with awq."),
    ],
)  # fmt: skip
def test_which_models_are_refused_for_what_they_are(values, message):
    if message is None:
        assert shape_of(**values).layers == 30
        return
    with pytest.raises(StudioError) as caught:
        shape_of(**values)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("hidden", "hidden_size, n_embd, d_model, dim"), ("layers", "num_hidden_layers, n_layer, n_layers, num_layers"),
        ("heads", "num_attention_heads, n_head, n_heads"), ("vocab", "vocab_size"),
    ],
)  # fmt: skip
def test_a_size_that_is_missing_is_named_with_all_its_names(key, names):
    first = names.split(", ")[0]
    with pytest.raises(StudioError) as caught:
        shape_of(**{first: ...})
    (problem,) = caught.value.problems
    assert problem.message == f"This config.json does not say its {key}." and problem.field == first
    assert problem.hint == f"One of {names} has to be a positive whole number."
