import pytest

from qlora_studio.core.config import LoraSettings, TrainConfig
from qlora_studio.planner.rates import choose_rate, suited_rate
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

EIGHT = REFERENCE_SHAPES["Llama-3.1-8B"]
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
