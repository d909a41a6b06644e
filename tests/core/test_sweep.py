"""A sweep as people write it."""

from __future__ import annotations

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.sweep import describe_value, parse_sweep


def test_settings_and_their_values_are_read_each_value_once():
    lines = ["lora.rank=8, 16,8", "optim.learning_rate=1e-4,2e-4", "optim.schedule=cosine"]
    assert parse_sweep(lines) == {
        "lora.rank": [8, 16],
        "optim.learning_rate": [1e-4, 2e-4],
        "optim.schedule": ["cosine"],
    }


@pytest.mark.parametrize("line", ["", "rank=8", "lora.rank", "lora.rank=", "lora.rank= , "])
def test_what_is_none_is_refused_as_it_was_written(line):
    with pytest.raises(StudioError, match="is no sweep") as refused:
        parse_sweep([line])
    assert f"'{line}'" in refused.value.message


def test_a_setting_named_twice_is_refused():
    with pytest.raises(StudioError, match=r"'lora\.rank' is named twice"):
        parse_sweep(["lora.rank=8", "lora.rank=16"])


def test_mixtures_of_sets_are_swept_by_their_weights():
    values = parse_sweep(["data.sources=mine:3+other, mine"])["data.sources"]
    assert values == [
        [{"name": "mine", "weight": 3.0}, {"name": "other", "weight": 1.0}],
        [{"name": "mine", "weight": 1.0}],
    ]
    assert [describe_value(value) for value in values] == ["mine:3+other:1", "mine:1"]
    assert TrainConfig().replace({"data.sources": values[0]}).data.sources[0].weight == 3
    for wrong in ("mine:x", "mine:0", ":3", "mine:-1", "a++b"):
        with pytest.raises(StudioError, match="is no mixture of sets"):
            parse_sweep([f"data.sources={wrong}"])
