"""One description of a run: everything wrong with it is said at once, with field and reason."""

from __future__ import annotations

import json

import pytest

from qlora_studio.core.config import Section, TrainConfig
from qlora_studio.core.errors import StudioError


def sections() -> list[tuple[str, type[Section]]]:
    return [(name, field.annotation) for name, field in TrainConfig.model_fields.items()]


def test_a_config_survives_json():
    config = TrainConfig().replace({"data.sources": [{"name": "a", "weight": 2}], "lora.rank": 8})
    assert TrainConfig.parse(json.loads(json.dumps(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize(("section", "kind"), sections(), ids=lambda value: str(value))
def test_every_field_has_a_help_line(section, kind):
    for name, field in kind.model_fields.items():
        description = field.description or ""
        assert len(description.split()) >= 3 and description.endswith("."), f"{section}.{name}: {description!r}"


def test_all_problems_are_named_at_once():
    with pytest.raises(StudioError) as caught:
        TrainConfig.parse({"lora": {"rank": 0, "ranks": 3}, "optim": {"learning_rate": "fast"}}, "run.json")
    found = [(problem.where, problem.field) for problem in caught.value.problems]
    assert found == [("run.json", "lora.rank"), ("run.json", "lora.ranks"), ("run.json", "optim.learning_rate")]
    assert "0 is not allowed: should be greater than or equal to 1." in str(caught.value)
    assert "There is no such setting." in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory.micro_batch_tokens": 100}, "A micro-batch of 100 tokens cannot hold a row of 1024."),
        ({"model.base": " "}, "The base model is empty."),
        ({"data.sources": [{"name": "a"}, {"name": "a"}]}, "The data set 'a' is listed twice."),
        ({"lora.size": 3}, "There is no setting 'lora.size'."),
        ({"rank": 3}, "There is no setting 'rank'."),
    ],
)
def test_problems_that_no_field_shows_alone(changes, message):
    with pytest.raises(StudioError, match=message):
        TrainConfig().replace(changes)


def test_a_config_of_an_earlier_version_is_read_under_its_old_names():
    old = {"data": {"max_tokens": 512}, "memory": {"checkpointing": "full"}, "model": {"compute": "fp32"}}
    config = TrainConfig.parse(old)
    read = (config.data.max_length, config.memory.gradient_checkpointing, config.model.compute_dtype)
    assert read == (512, "full", "fp32")
    assert config.replace({"data.max_tokens": 256}).data.max_length == 256


def test_accepted_findings_may_be_typed_as_one_text():
    assert TrainConfig().replace({"data.accepted": "secret, empty-answer"}).data.accepted == ("secret", "empty-answer")
