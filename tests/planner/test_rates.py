import pytest

from qlora_studio.core.config import LoraSettings, TrainConfig
from qlora_studio.planner.rates import choose_rate, effective_alpha, rates_to_try, suited_rate
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

EIGHT, SMOL = REFERENCE_SHAPES["Llama-3.1-8B"], REFERENCE_SHAPES["SmolLM2-135M"]
PLAIN = LoraSettings()


@pytest.mark.parametrize(
    ("width", "family", "rate"),
    [
        (2000, "llama", 5e-4),
        (576, "llama", 1.3e-3),
        (4096, "llama", 2.9e-4),
        (4096, "qwen3", 4.7e-4),
        (1, "llama", 0.18),
    ],
)
def test_the_rate_falls_with_width_as_published(width, family, rate):
    assert suited_rate(width, family, PLAIN) == rate


@pytest.mark.parametrize("rank", [1, 8, 64, 512])
def test_the_rate_does_not_move_with_rank_at_one_alpha(rank):
    assert suited_rate(2000, "llama", LoraSettings(rank=rank)) == 5e-4


@pytest.mark.parametrize(
    ("lora", "rate"),
    [
        (LoraSettings(rank=64, alpha=128), 1.25e-4),
        (LoraSettings(rank=8, alpha=16), 1e-3),
        (LoraSettings(rank=16, alpha=32, use_rslora=True), 1.25e-4),
        (LoraSettings(rank=16, alpha=8, use_rslora=True), 5e-4),
    ],
)
def test_another_scale_moves_the_rate_the_other_way(lora, rate):
    assert suited_rate(2000, "llama", lora) == pytest.approx(rate, rel=0.05)


def test_a_rate_that_was_given_stays():
    assert choose_rate(TrainConfig().replace({"optim.learning_rate": 7e-5}), EIGHT).optim.learning_rate == 7e-5
    assert choose_rate(TrainConfig(), EIGHT).optim.learning_rate == 2.9e-4


@pytest.mark.parametrize("typed", ["auto", " Auto ", None])
def test_auto_leaves_the_rate_open(typed):
    assert TrainConfig().replace({"optim.learning_rate": typed}).optim.learning_rate is None


@pytest.mark.parametrize(
    ("rates", "alpha"), [([0.0013 * one for one in (0.25, 0.5, 1, 2, 4)], 32), ([0.25, 0.5, 1.0, 1.0, 1.0], 1)]
)
def test_rates_around_the_one_that_suits_are_rounded_to_two_digits_and_never_above_one(rates, alpha):
    narrow = SMOL if alpha == 32 else SMOL.model_copy(update={"hidden": 1})
    tried = rates_to_try(TrainConfig().replace({"lora.alpha": alpha}), narrow)
    assert tried == tuple(float(f"{rate:.2g}") for rate in rates)


def test_an_alpha_counts_as_it_is_and_with_rslora_by_the_root_of_the_rank():
    assert effective_alpha(LoraSettings(rank=64, alpha=48)) == 48.0
    assert effective_alpha(LoraSettings(rank=64, alpha=48, use_rslora=True)) == 48 * 8
