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
    shape = read_shape(str(write_config(tmp_path / "smol", SMOL)), tmp_path / "models")
    assert shape == REFERENCE_SHAPES["SmolLM2-135M"].model_copy(
        update={"name": str(tmp_path / "smol"), "config_hash": shape.config_hash}
    )
    assert len(shape.config_hash) == 16


def test_a_name_is_looked_up_under_the_models_folder(tmp_path):
    write_config(tmp_path / "models" / "mine", SMOL)
    assert read_shape("mine", tmp_path / "models").layers == 30


def test_the_demo_model_has_a_shape_before_it_is_fetched(tmp_path):
    assert read_shape("smollm2-135m-instruct", tmp_path) == REFERENCE_SHAPES["SmolLM2-135M"]


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


def test_a_broken_file_is_named(tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    with pytest.raises(StudioError) as caught:
        read_shape(str(folder), tmp_path)
    assert str(folder / "config.json") in caught.value.message


def test_a_folder_without_config_is_named(tmp_path):
    with pytest.raises(StudioError) as caught:
        read_shape(str(tmp_path), tmp_path / "models")
    assert caught.value.message == f"{tmp_path}: This folder has no config.json."


def test_offline_is_one_sentence(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StudioError) as caught:
        read_shape("someone/some-model", tmp_path)
    assert str(caught.value) == (
        "The hub could not be reached, and 'someone/some-model' is not on this computer. "
        "Connect, or give the folder of a model."
    )
