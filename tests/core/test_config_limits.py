"""Every setting as it is where nobody sets it, and both sides of each of its limits."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from qlora_studio.core.config import DataSource, TrainConfig
from qlora_studio.core.errors import StudioError
from tests.core.frozen import stays


def test_what_nobody_sets_is_this():
    assert TrainConfig().model_dump() == {
        "model": {
            "base": "smollm2-135m-instruct", "revision": None, "compute_dtype": "auto", "template": None, "adapter": None,
        },
        "data": {
            "sources": (), "mix_by": "rows", "format": "auto", "columns": {}, "max_length": 1024, "too_long": "drop",
            "text_overlap": 0, "train_on": "answers", "control_tokens": "refuse", "eval_share": 0.05, "accepted": (),
        },
        "lora": {
            "rank": 16, "alpha": 32, "dropout": 0.0, "use_rslora": False, "use_dora": False, "init": "zero",
            "target_modules": "", "layers": "",
        },
        "optim": {
            "objective": "supervised", "optimizer": "adamw_8bit", "learning_rate": None, "schedule": "cosine",
            "warmup_share": 0.03, "loraplus_ratio": 1.0, "neftune_alpha": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0,
            "epochs": 3.0, "max_steps": None, "ended_at": (), "batch_tokens": 4096, "seed": 42,
        },
        "memory": {
            "card": None, "budget_gib": None, "keep_free_gib": 0.0, "micro_batch_tokens": None,
            "gradient_checkpointing": "auto", "adapter_precision": "auto", "offload": "auto",
        },
        "evaluation": {"every_steps": None, "before": True, "patience": None, "prompts": "", "answer_tokens": 64},
        "saving": {"name": "", "every_minutes": 10.0, "keep": 2, "adapter": "best", "tracker": "none"},
    }  # fmt: skip
    assert DataSource(name="a").model_dump() == {"name": "a", "weight": 1.0, "max_repeats": 1}


LIMITS = {
    "data.max_length": ((8, 1_048_576), (7, 1_048_577)),
    "data.text_overlap": ((0,), (-1,)),
    "data.eval_share": ((0, 0.5), (-0.01, 0.51)),
    "lora.rank": ((1, 1024), (0, 1025)),
    "lora.alpha": ((1, 4096), (0, 4097)),
    "lora.dropout": ((0, 0.99), (-0.01, 1)),
    "lora.target_modules": (("x" * 1000,), ("x" * 1001,)),
    "lora.layers": (("1" * 200,), ("1" * 201,)),
    "optim.learning_rate": ((1e-9, 1), (0, 1.01)),
    "optim.warmup_share": ((0, 0.99), (-0.01, 1)),
    "optim.loraplus_ratio": ((1, 1000), (0.99, 1000.5)),
    "optim.neftune_alpha": ((0, 1000), (-0.01, 1000.5)),
    "optim.weight_decay": ((0, 1), (-0.01, 1.01)),
    "optim.max_grad_norm": ((1e-9,), (0,)),
    "optim.epochs": ((0.1, 1000), (0, 1000.5)),
    "optim.max_steps": ((1, None), (0,)),
    "optim.batch_tokens": ((1, 16_777_216), (0, 16_777_217)),
    "optim.seed": ((0, 4_294_967_295), (-1, 4_294_967_296)),
    "memory.budget_gib": ((0.01, None), (0,)),
    "memory.keep_free_gib": ((0,), (-0.01,)),
    "memory.micro_batch_tokens": ((1024, None), (0,)),
    "evaluation.every_steps": ((1, None), (0,)),
    "evaluation.patience": ((1, None), (0,)),
    "evaluation.prompts": (("x" * 20_000,), ("x" * 20_001,)),
    "evaluation.answer_tokens": ((1, 4096), (0, 4097)),
    "saving.name": (("x" * 120,), ("x" * 121,)),
    "saving.every_minutes": ((0.01,), (0,)),
    "saving.keep": ((1, 1000), (0, 1001)),
}


@pytest.mark.parametrize("field", LIMITS)
def test_a_setting_takes_what_lies_in_its_limits_and_nothing_beyond(field):
    taken, refused = LIMITS[field]
    section, _, name = field.partition(".")
    for value in taken:
        assert getattr(getattr(TrainConfig().replace({field: value}), section), name) == value
    for value in refused:
        with pytest.raises(StudioError) as caught:
            TrainConfig().replace({field: value})
        assert [problem.field for problem in caught.value.problems] == [field]


def test_a_micro_batch_may_be_a_single_token():
    shortest = {"memory.micro_batch_tokens": 8, "data.max_length": 8}
    assert TrainConfig().replace(shortest).memory.micro_batch_tokens == 8
    with pytest.raises(StudioError, match="cannot hold a row of 8"):
        TrainConfig().replace({**shortest, "memory.micro_batch_tokens": 1})


def test_a_source_counts_for_something_and_is_repeated_at_most_a_hundred_times():
    assert DataSource(name="a", weight=0.5, max_repeats=100).weight == 0.5
    for wrong in ({"weight": 0}, {"max_repeats": 0}, {"max_repeats": 101}):
        with pytest.raises(ValidationError):
            DataSource(name="a", **wrong)


def test_settings_stay_as_they_were_made():
    config = TrainConfig()
    sections = [getattr(config, name) for name in TrainConfig.model_fields]
    assert all(map(stays, (config, DataSource(name="a"), *sections)))
