"""What is advised where nothing fits: each ladder from its mildest step, and where it begins and ends."""

from dataclasses import replace

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.plan import GIB, GpuProcess
from qlora_studio.planner import changes
from qlora_studio.planner.changes import find_changes
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.search import Situation, smallest_bytes
from qlora_studio.planner.tables import imagine_machine

EIGHT, SMOL = REFERENCE_SHAPES["Llama-3.1-8B"], REFERENCE_SHAPES["SmolLM2-135M"]


def config(**values):
    return TrainConfig().replace({name.replace("__", "."): value for name, value in values.items()})


def words(run_config, row, device="cuda", shape=EIGHT):
    """All ladders of a situation, each as the words of its steps."""
    situation = Situation(shape, run_config, device, "bf16", GIB, row)
    return [[change.words for change in ladder] for ladder in changes._ladders(situation)]


NOTHING = {"lora__rank": 8, "optim__optimizer": "adamw_8bit", "data__max_length": 256}
"""A run of which nothing can be made smaller, at a row of 256 tokens."""


def test_a_run_that_is_as_small_as_it_may_be_has_nothing_to_change():
    assert words(config(**NOTHING), 256) == []


@pytest.mark.parametrize(
    ("values", "step", "field", "value"),
    [
        ({"memory__budget_gib": 5.5}, "what is free instead of a budget of 5.5 GiB", "memory.budget_gib", None),
        ({"memory__keep_free_gib": 0.5}, "keeping nothing free instead of 0.5 GiB", "memory.keep_free_gib", 0.0),
        (
            {"memory__gradient_checkpointing": "half"}, "gradient checkpointing auto instead of half",
            "memory.gradient_checkpointing", "auto",
        ),
        (
            {"memory__micro_batch_tokens": 257}, "a micro-batch of 256 tokens instead of 257",
            "memory.micro_batch_tokens", None,
        ),
        ({"memory__offload": "none"}, "offload auto instead of none", "memory.offload", "auto"),
        ({"optim__optimizer": "adamw"}, "optimizer adamw_8bit instead of adamw", "optim.optimizer", "adamw_8bit"),
        (
            {"memory__adapter_precision": "fp32"}, "adapter precision auto instead of fp32",
            "memory.adapter_precision", "auto",
        ),
        ({"lora__dropout": 0.25}, "dropout 0 instead of 0.25", "lora.dropout", 0.0),
        ({"lora__rank": 9}, "rank 8 instead of 9", "lora.rank", 8),
    ],
)  # fmt: skip
def test_one_choice_of_a_person_is_one_ladder(values, step, field, value):
    run_config = config(**(NOTHING | values))
    assert words(run_config, 256) == [[step]]
    situation = Situation(EIGHT, run_config, "cuda", "bf16", GIB, 256)
    ((change,),) = changes._ladders(situation)
    assert change.values == ((field, value),)


def test_what_changes_nothing_here_is_not_advised():
    assert words(config(**NOTHING, memory__micro_batch_tokens=256), 256) == [], "it is the longest row already"
    assert words(config(**NOTHING, memory__offload="none"), 256, device="cpu") == [], "it is all the same memory"
    assert words(config(**NOTHING, memory__adapter_precision="bf16"), 256) == []
    assert words(config(**NOTHING, memory__keep_free_gib=0.0), 256) == []


def test_ranks_and_lengths_fall_step_by_step_below_what_there_is():
    ranks, lengths = words(config(**(NOTHING | {"lora__rank": 64})), 512)
    assert ranks == ["rank 32 instead of 64", "rank 16 instead of 64", "rank 8 instead of 64"]
    assert lengths == ["max sequence length 384 instead of 512", "max sequence length 256 instead of 512"]
    assert words(config(**NOTHING), 257) == [["max sequence length 256 instead of 257"]]


def crowded(free, *used):
    machine = imagine_machine(8)
    processes = tuple(GpuProcess(pid=pid, name=f"p{pid}", used_bytes=size) for pid, size in enumerate(used, 1))
    card = machine.cards[0].model_copy(update={"free_bytes": free, "processes": processes})
    return machine.model_copy(update={"cards": (card,)})


def closing(machine, missing, **values):
    situation = Situation(EIGHT, config(**values), "cuda", "bf16", GIB, 256)
    return list(changes._close_programs(situation, machine, missing))


def test_a_program_is_named_where_its_memory_closes_the_gap_to_the_byte():
    machine = crowded(3 * GIB, GIB - 1, GIB, None, 0, 3 * GIB)
    assert closing(machine, GIB) == [
        "Closing p2 (process 2) frees 1.00 GiB, which is enough.",
        "Closing p5 (process 5) frees 3.00 GiB, which is enough.",
    ]


def test_closing_programs_is_no_advice_where_the_budget_is_a_person_s_own():
    machine = crowded(3 * GIB, 7 * GIB)
    for budget, helps in ((3.0, False), (2.0, False), (3.1, True), (None, True)):
        assert bool(closing(machine, GIB, memory__budget_gib=budget)) == helps
    assert closing(machine.model_copy(update={"cards": ()}), GIB) == []


def test_a_smaller_model_is_named_only_if_it_fits_and_takes_less():
    roomy = Situation(SMOL, TrainConfig(), "cuda", "bf16", GIB, 512)
    needed = smallest_bytes(roomy)
    assert changes._smaller_model(replace(roomy, budget_bytes=needed)) is None, "it would be the same one"
    larger = replace(roomy, shape=EIGHT, budget_bytes=needed)
    assert changes._smaller_model(larger) == (
        f"A smaller model fits with these settings: SmolLM2-135M, {needed / GIB:.1f} of {needed / GIB:.1f} GiB."
        if needed >= GIB
        else f"A smaller model fits with these settings: SmolLM2-135M, {needed / 2**20:.0f} of {needed / 2**20:.0f} MiB."
    )
    assert changes._smaller_model(replace(larger, budget_bytes=needed - 1)) is None
    long_rows = replace(larger, longest_row=100_000)
    at_its_longest = smallest_bytes(replace(roomy, longest_row=SMOL.max_positions))
    assert changes._smaller_model(replace(long_rows, budget_bytes=at_its_longest)) is not None


def test_what_is_missing_is_said_first_and_that_nothing_helps():
    situation = Situation(SMOL, config(**NOTHING), "cuda", "bf16", GIB // 2, 256)
    needed = smallest_bytes(situation)
    assert find_changes(situation, imagine_machine(6)) == (
        f"{(needed - GIB // 2) / 2**20:.0f} MiB are missing: the smallest settings need {needed / 2**20:.0f} MiB, "
        "the budget is 512 MiB.",
        "No other setting closes that gap with this model.",
    )


def test_fields_that_allow_no_plan_at_all_are_no_way_out_and_rows_only_get_shorter():
    situation = Situation(EIGHT, config(memory__budget_gib=2.0), "cuda", "bf16", 2 * GIB, 300)
    machine = crowded(GIB)

    def changed(field, value):
        return changes._changed(situation, machine, [changes.Change("", ((field, value),))])

    assert changed("memory.keep_free_gib", 20.0) is None
    assert changed("lora.rank", 0) is None
    assert changed("data.max_length", 1024).longest_row == 300
    assert changed("data.max_length", 256).longest_row == 256
    freed = changed("memory.budget_gib", None)
    assert (freed.budget_bytes, freed.longest_row, freed.config.memory.budget_gib) == (GIB, 300, None)
