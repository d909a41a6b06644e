"""A config that is written for a shape is read as that shape again."""

import pytest

from qlora_studio.engine.copies import config_for
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
