"""A config that is written for a shape is read as that shape again."""

import pytest
import torch
from safetensors.torch import load_file

from qlora_studio.engine.copies import config_for, write_random_model
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.shape import shape_from_config


@pytest.mark.parametrize("name", REFERENCE_SHAPES)
def test_the_config_of_a_shape_is_read_as_that_shape(name):
    shape = REFERENCE_SHAPES[name]
    if shape.sliding_layers:  # not the pattern that the family has by itself
        shape = shape.model_copy(update={"sliding_layers": 7, "sliding_window": 48})
    config = config_for(shape)
    assert shape_from_config(config.to_dict() | {"architectures": ["SomethingForCausalLM"]}, name) == shape
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert shape.sliding_layers or not getattr(config, "layer_types", None) or "sliding" not in str(config.layer_types)


def test_a_config_says_what_only_its_family_knows():
    llama, phi, qwen = (config_for(REFERENCE_SHAPES[name]) for name in ("Llama-3.2-1B", "Phi-4-mini", "Qwen3-4B"))
    assert (llama.attention_bias, llama.mlp_bias, qwen.attention_bias) == (False, False, False)
    assert phi.rope_parameters["partial_rotary_factor"] == 0.75 and not hasattr(phi, "mlp_bias")
    assert not hasattr(qwen, "mlp_bias")


def test_of_a_gemma_s_layers_the_first_ones_are_local():
    shape = REFERENCE_SHAPES["Gemma-3-4B"].model_copy(update={"layers": 3, "sliding_layers": 2})
    assert config_for(shape).layer_types == ["sliding_attention", "sliding_attention", "full_attention"]


def test_one_seed_gives_one_random_model(tmp_path):
    shape = REFERENCE_SHAPES["Llama-3.2-1B"].model_copy(
        update={"hidden": 16, "layers": 1, "intermediate": 8, "heads": 2, "kv_heads": 1, "head_dim": 8, "vocab": 32}
    )
    ways = {"plain": {}, "nought": {"seed": 0}, "one": {"seed": 1}}
    states = {}
    for name, seed in ways.items():
        assert write_random_model(shape, tmp_path / name, **seed) == tmp_path / name
        states[name] = load_file(tmp_path / name / "model.safetensors")
    query = "model.layers.0.self_attn.q_proj.weight"
    assert states["plain"][query].shape == (16, 16) and states["plain"][query].dtype == torch.bfloat16
    assert torch.equal(states["plain"][query], states["nought"][query])
    assert not torch.equal(states["plain"][query], states["one"][query])
