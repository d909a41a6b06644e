"""The table of well-known models comes to the numbers of parameters that their makers publish."""

import pytest

from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

VISION = 416_866_032
"""Parameters of the tower through which Gemma 3 sees; a projector of 1152 x hidden + 1152 comes after it."""
PUBLISHED = {
    "SmolLM2-135M": (134_515_008, 9, 3),
    "Llama-3.2-1B": (1_235_814_400, 32, 8),
    "Qwen3-1.7B": (1_720_574_976, 16, 8),
    "Llama-3.2-3B": (3_212_749_824, 24, 8),
    "Phi-4-mini": (3_836_021_760, 24, 8),
    "Gemma-3-4B": (4_300_079_472 - VISION - 1152 * 2561, 8, 4),
    "Qwen3-4B": (4_022_468_096, 32, 8),
    "Mistral-7B-v0.3": (7_248_023_552, 32, 8),
    "Llama-3.1-8B": (8_030_261_248, 32, 8),
    "Qwen3-8B": (8_190_735_360, 32, 8),
    "Gemma-3-12B": (12_187_325_040 - VISION - 1152 * 3841, 16, 8),
    "Qwen3-14B": (14_768_307_200, 40, 8),
}
"""Parameters (of the text model, tied embeddings once), heads of queries, heads of keys and values."""
POSITIONS = {"SmolLM2-135M": 8192, "Mistral-7B-v0.3": 32768}


def count_parameters(shape):
    layer = shape.hidden * shape.head_dim * 2 * (shape.heads + shape.kv_heads) + 3 * shape.hidden * shape.intermediate
    layer += (4 if shape.family == "gemma3_text" else 2) * shape.hidden + 2 * shape.head_dim * shape.qk_norm
    return shape.layers * layer + shape.hidden + (1 if shape.tied_embeddings else 2) * shape.vocab * shape.hidden


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_as_many_parameters_as_its_makers_say(name):
    shape = REFERENCE_SHAPES[name]
    assert (count_parameters(shape), shape.heads, shape.kv_heads) == PUBLISHED[name]
    assert shape.max_positions == (40960 if name.startswith("Qwen3") else POSITIONS.get(name, 131072))


def test_the_table_holds_these_models_and_what_is_special_of_them():
    assert list(REFERENCE_SHAPES) == list(PUBLISHED)
    families = [shape.family for shape in REFERENCE_SHAPES.values()]
    assert families == ["llama", "llama", "qwen3", "llama", "phi3", "gemma3_text", "qwen3", "mistral", "llama", "qwen3", "gemma3_text", "qwen3"]  # fmt: skip
    assert [shape.qk_norm for shape in REFERENCE_SHAPES.values()] == [
        family in ("qwen3", "gemma3_text") for family in families
    ]
    windows = {name: (s.sliding_window, s.sliding_layers) for name, s in REFERENCE_SHAPES.items() if s.sliding_window}
    assert windows == {"Gemma-3-4B": (1024, 34 - 34 // 6), "Gemma-3-12B": (1024, 48 - 48 // 6)}
    assert {name: s.rotary_dim for name, s in REFERENCE_SHAPES.items() if s.rotary_dim} == {"Phi-4-mini": 128 * 3 // 4}
