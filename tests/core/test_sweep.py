"""A sweep as people write it."""

from __future__ import annotations

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.core.sweep import parse_sweep


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
