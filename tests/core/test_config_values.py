"""What is read out of settings that a person types as text, and what settings cannot stand together."""

from __future__ import annotations

import pytest

from qlora_studio.core.config import EvaluationConfig, LoraSettings, TrainConfig
from qlora_studio.core.errors import Problem, StudioError


def test_names_of_modules_are_read_between_commas():
    assert LoraSettings(target_modules=" q_proj,, v_proj , ").module_names == ("q_proj", "v_proj")
    assert LoraSettings().module_names == ()


@pytest.mark.parametrize(("init", "stored"), [("zero", 8), ("pissa", 16), ("olora", 16)])
def test_a_start_from_the_base_is_stored_a_second_time(init, stored):
    assert LoraSettings(rank=8, init=init).stored_rank == stored


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        ("", (0, 1, 2, 3, 4)),
        ("  ", (0, 1, 2, 3, 4)),
        ("3", (3,)),
        ("0", (0,)),
        ("4", (4,)),
        ("1-3", (1, 2, 3)),
        ("0-0", (0,)),
        ("3-", (3, 4)),
        ("0-4", (0, 1, 2, 3, 4)),
        ("3, 0-1, 1", (0, 1, 3)),
    ],
)
def test_layers_are_chosen_by_number_and_range(layers, chosen):
    assert LoraSettings(layers=layers).layers_of(5) == chosen


@pytest.mark.parametrize("wrong", ["5", "0-5", "3-1", "-3", "a", "1 - x", "1-2-3"])
def test_what_is_no_layer_is_refused_with_those_there_are(wrong):
    with pytest.raises(StudioError) as caught:
        LoraSettings(layers=f"1, {wrong} ").layers_of(5)
    assert caught.value.problems == (
        Problem(f"'{wrong}' is no range of the layers 0 to 4.", "Write it as 0-7, 20- or 3.", "", "lora.layers"),
    )


def test_prompts_are_read_between_bars_and_lines():
    assert EvaluationConfig(prompts=" a b | c\n\n|d ").sample_prompts == ("a b", "c", "d")


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_everything_that_a_start_from_the_base_cannot_stand_is_named(init):
    changes = {"lora.init": init, "optim.weight_decay": 0.1, "model.adapter": "a", "lora.use_dora": True}
    with pytest.raises(StudioError) as caught:
        TrainConfig().replace(changes)
    tail = ", or set lora.init to zero."
    assert caught.value.problems == (
        Problem(
            f"With lora.init {init}, optim.weight_decay would pull its fixed half towards zero.", "Set it to 0" + tail,
            "", "optim.weight_decay",
        ),
        Problem(f"With lora.init {init}, model.adapter brings a start of its own.", "Leave it empty" + tail, "", "model.adapter"),
        Problem(f"With lora.init {init}, lora.use_dora has a start of its own.", "Switch it off" + tail, "", "lora.use_dora"),
    )  # fmt: skip
    assert TrainConfig().replace({"lora.init": init, "optim.weight_decay": 0}).lora.init == init
    assert TrainConfig().replace({**changes, "lora.init": "zero"}).lora.use_dora


def test_a_micro_batch_as_large_as_the_longest_row_holds_it():
    changes = {"memory.micro_batch_tokens": 512, "data.max_length": 512}
    assert TrainConfig().replace(changes).memory.micro_batch_tokens == 512
    with pytest.raises(StudioError) as caught:
        TrainConfig().replace({**changes, "data.max_length": 513})
    assert caught.value.problems == (
        Problem(
            "A micro-batch of 512 tokens cannot hold a row of 513.", "Raise it to 513 or lower data.max_length.", "",
            "memory.micro_batch_tokens",
        ),
    )  # fmt: skip


def test_each_set_that_is_listed_twice_is_named_once():
    sources = [{"name": name} for name in ("b", "a", "b", "c", "a", "b")]
    with pytest.raises(StudioError) as caught:
        TrainConfig.parse({"data": {"sources": sources}, "model": {"base": " "}}, "run.json")
    assert [(problem.where, problem.message) for problem in caught.value.problems] == [
        ("run.json", "The base model is empty."),
        ("run.json", "The data set 'a' is listed twice."),
        ("run.json", "The data set 'b' is listed twice."),
    ]


def test_a_new_name_wins_over_an_old_one_beside_it():
    assert TrainConfig.parse({"data": {"max_tokens": 512, "max_length": 256}}).data.max_length == 256


def test_what_is_no_table_of_settings_is_refused_by_its_field():
    with pytest.raises(StudioError) as caught:
        TrainConfig.parse({"data": 3})
    assert [problem.field for problem in caught.value.problems] == ["data"]
