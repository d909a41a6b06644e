"""What is unusual begins right behind a bound, and nothing at the bound itself is called so."""

import pytest

from qlora_studio.core.bases import UnresolvedBase
from qlora_studio.core.config import TrainConfig
from qlora_studio.planner.rates import rates_to_try, steps_to_try, suited_rate
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.unusual import find_unusual
from tests.planner.test_readiness import BASE, CONFIG, counted

UNKNOWN = UnresolvedBase(name="x", needs="The hub has to be asked.")
ROWS = counted([150] * 300)
GOOD = suited_rate(576, "llama", CONFIG.lora)


def fields(changes, report=ROWS, base=BASE, steps=100):
    return [one.field for one in find_unusual(CONFIG.replace(changes), base, report, steps)]


@pytest.mark.parametrize(
    ("still_usual", "unusual"),
    [
        ({"optim.learning_rate": 10 * GOOD}, {"optim.learning_rate": 10.001 * GOOD}),
        ({"optim.learning_rate": GOOD / 100}, {"optim.learning_rate": GOOD / 100.001}),
        ({"lora.rank": 300}, {"lora.rank": 301}),
        ({"lora.alpha": 512}, {"lora.alpha": 513}),
        ({"lora.alpha": 2}, {"lora.alpha": 1}),
        ({"optim.epochs": 10.0}, {"optim.epochs": 10.1}),
        ({"optim.warmup_share": 0.5}, {"optim.warmup_share": 0.51}),
        ({"lora.dropout": 0.5}, {"lora.dropout": 0.51}),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_bound_is_still_usual(still_usual, unusual):
    assert fields(still_usual) == []
    assert fields(unusual) == list(unusual)


def test_the_rank_is_compared_with_the_width_where_it_is_known():
    assert fields({"lora.rank": 576}, counted([150] * 600)) == ["lora.rank"]
    assert fields({"lora.rank": 575}, counted([150] * 600)) == []
    assert fields({"lora.rank": 576}, counted([150] * 600), UNKNOWN) == []
    assert fields({"lora.rank": 500}, None) == []
    assert fields({"lora.rank": 500}, counted([])) == []


def test_a_rate_is_compared_with_that_of_a_middling_model_where_the_base_is_not_known():
    assert fields({"optim.learning_rate": 5e-3}, base=UNKNOWN) == []
    assert fields({"optim.learning_rate": 5.1e-3}, base=UNKNOWN) == ["optim.learning_rate"]


@pytest.mark.parametrize(("steps", "words"), [(1, "There is only 1 step"), (7, "There are only 7 steps"), (8, "")])
def test_few_steps(steps, words):
    found = [one.message for one in find_unusual(CONFIG, BASE, ROWS, steps)]
    assert found == ([f"{words}: little is learned."] if words else [])
    assert fields({}, steps=None) == []


def test_many_epochs_are_no_matter_where_the_steps_are_counted():
    assert fields({"optim.epochs": 40.0, "optim.max_steps": 20}) == []


@pytest.mark.parametrize(
    ("changes", "hint"),
    [({"lora.alpha": 1}, "32 is usual, whatever the rank."), ({"lora.use_rslora": True, "lora.alpha": 4096, "lora.rank": 64}, "4 is usual at this rank.")],
)  # fmt: skip
def test_the_alpha_that_is_usual_depends_on_the_rank_with_rslora_alone(changes, hint):
    assert [one.hint for one in find_unusual(CONFIG.replace(changes), BASE, ROWS, 100)] == [hint]


@pytest.mark.parametrize(
    ("report", "config", "field"),
    [
        (counted([150] * 300, 600, dropped=300), {}, ""),  # half of them
        (counted([150] * 300, 602, dropped=301, refused=1), {}, "data.max_length"),
        (counted([], 600, dropped=600), {}, ""),  # a block of its own
        (counted([150] * 300, cut=7), {}, ""),
        (counted([150] * 300, cut=1), {"data.too_long": "cut_answer"}, "data.too_long"),
        (counted([150] * 300, held_out_rows=1), {}, ""),
        (counted([], held_out_rows=0), {}, ""),
    ],
)
def test_rows_that_are_unusual(report, config, field):
    assert fields(config, report) == ([field] if field else [])


def test_rates_around_the_one_that_suits_and_steps_enough_to_tell_them_apart():
    shape = REFERENCE_SHAPES["SmolLM2-135M"]
    suited = suited_rate(shape.hidden, shape.family, TrainConfig().lora)
    assert rates_to_try(TrainConfig(), shape) == pytest.approx([suited * one for one in (0.25, 0.5, 1, 2, 4)], rel=0.05)
    assert suited == pytest.approx(5e-4 * (2000 / 576) ** 0.775, rel=0.05)
    assert [steps_to_try(steps) for steps in (None, 0, 1200, 1300, 2000, 6000, 9000)] == [12, 12, 12, 13, 20, 60, 60]
