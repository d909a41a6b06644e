"""What was measured moves the next plan, a little at a time, and a broken file moves nothing."""

import json
from types import SimpleNamespace

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.events import ProbeMeasured
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import MIB, GpuInfo, PlanSettings
from qlora_studio.planner import corrections
from qlora_studio.planner.activations import step_peak
from qlora_studio.planner.corrections import FILE, learn_correction, read_correction, step_settings
from qlora_studio.planner.estimate import CONTEXT_BYTES, SLACK, fixed_bytes, total_bytes
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.kept import read_kept, write_kept
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

CARD = GpuInfo(index=0, name="card", total_bytes=8 << 30, free_bytes=7 << 30, uuid="GPU-1")
SHAPE = REFERENCE_SHAPES["Qwen3-4B"]
STEP = PlanSettings(micro_batch_tokens=2048, checkpointed_layers=20)


def measured(factor):
    """What the allocator reserves where the moving part is `factor` times the formula."""
    return round((1 + SLACK["cuda"]) * (fixed_bytes(SHAPE, STEP) + factor * step_peak(SHAPE, STEP).total))


def test_nothing_measured_corrects_nothing(tmp_path):
    assert read_correction(tmp_path, CARD) == 1.0


def test_a_correction_goes_half_way_to_each_measurement(tmp_path):
    assert learn_correction(tmp_path, CARD, SHAPE, STEP, measured(1.2)) == pytest.approx(1.1, abs=1e-4)
    assert read_correction(tmp_path, CARD) == pytest.approx(1.1, abs=1e-4)
    assert learn_correction(tmp_path, CARD, SHAPE, STEP, measured(0.9)) == pytest.approx(1.0, abs=1e-4)


def test_the_plan_s_own_correction_does_not_count_twice(tmp_path):
    corrected = STEP.model_copy(update={"correction": 1.3})
    assert learn_correction(tmp_path, CARD, SHAPE, corrected, measured(1.2)) == pytest.approx(1.1, abs=1e-4)


def test_machines_are_kept_apart(tmp_path):
    learn_correction(tmp_path, CARD, SHAPE, STEP, measured(1.2))
    other = CARD.model_copy(update={"uuid": "GPU-2"})
    assert (read_correction(tmp_path, other), read_correction(tmp_path, None)) == (1.0, 1.0)


@pytest.mark.parametrize(("factor", "kept"), [(9.0, 1.25), (0.1, 0.9)])
def test_a_measurement_out_of_bounds_moves_it_no_further_than_the_bound(tmp_path, factor, kept):
    assert learn_correction(tmp_path, CARD, SHAPE, STEP, measured(factor)) == kept


def test_a_step_too_small_to_tell_is_not_learned(tmp_path):
    tiny = PlanSettings(micro_batch_tokens=16, checkpointed_layers=30, trained_tokens=4)
    small = REFERENCE_SHAPES["SmolLM2-135M"]
    assert learn_correction(tmp_path, CARD, small, tiny, 10 << 30) == 1.0
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"GPU-1": 3}', '{"GPU-1": {"factor": "much"}}'])
def test_a_broken_file_is_no_correction_and_is_written_anew(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    assert read_correction(tmp_path, CARD) == 1.0
    assert learn_correction(tmp_path, CARD, SHAPE, STEP, measured(1.2)) == pytest.approx(1.1, abs=1e-4)


def test_a_step_smaller_than_planned_is_measured_against_its_own_size():
    plan = make_plan(TrainConfig(), SHAPE, Machine(cards=(CARD,)))
    probe = ProbeMeasured(predicted_bytes=1, measured_bytes=1, tokens=700, row_tokens=350, trained_tokens=90)
    step = step_settings(plan, probe)
    assert (step.micro_batch_tokens, step.row_tokens, step.trained_tokens) == (700, 350, 90)
    assert (step.checkpointed_layers, step.rank) == (plan.checkpointed_layers, 16)
    assert step_settings(plan.model_copy(update={"settings": None}), probe) is None


def test_a_process_on_a_cpu_can_only_show_that_more_is_needed(tmp_path):
    step = STEP.model_copy(update={"device": "cpu"})
    planned = total_bytes(SHAPE, step)
    assert learn_correction(tmp_path, None, SHAPE, step, planned) == pytest.approx(1.0, abs=1e-4)
    assert learn_correction(tmp_path, None, SHAPE, step, planned // 2) == 1.0
    assert learn_correction(tmp_path, None, SHAPE, step, 2 * planned) == 1.25


@pytest.mark.parametrize(
    ("kept", "on_card", "on_processor"),
    [(9, 1.5, 1.5), (1.5, 1.5, 1.5), (1.2, 1.2, 1.2), (0.9, 0.9, 1.0), (0.8, 0.8, 1.0), (0.1, 0.8, 1.0)],
)
def test_what_is_kept_is_believed_only_inside_its_bounds(tmp_path, kept, on_card, on_processor):
    (tmp_path / FILE).write_text(json.dumps({"GPU-1": {"factor": kept}, "cpu": {"factor": kept}}))
    assert (read_correction(tmp_path, CARD), read_correction(tmp_path, None)) == (on_card, on_processor)


def test_what_is_learned_is_kept_with_what_was_found_and_of_which_model(tmp_path):
    write_kept(tmp_path / FILE, {"other": {"factor": 1.1}})
    for factor in (1.2, 9.0):
        learn_correction(tmp_path, CARD, SHAPE, STEP, measured(factor))
    assert read_kept(tmp_path / FILE) == {
        "other": {"factor": 1.1},
        "GPU-1": {"factor": pytest.approx(1.3, abs=1e-4), "last": pytest.approx(9, abs=1e-3), "model": "Qwen3-4B"},
    }


def test_a_step_is_large_enough_to_tell_from_64_mib_on(tmp_path, monkeypatch):
    for moving, learned in ((64 * MIB, True), (64 * MIB - 1, False)):
        peak = SimpleNamespace(total=moving)
        monkeypatch.setattr(corrections, "step_peak", lambda shape, settings, peak=peak: peak)
        place = tmp_path / str(moving)
        found = round((1 + SLACK["cuda"]) * (fixed_bytes(SHAPE, STEP) + 1.2 * moving))
        assert learn_correction(place, CARD, SHAPE, STEP, found) == pytest.approx(1.1 if learned else 1.0, abs=1e-3)
        assert (place / FILE).exists() == learned


def test_of_a_process_on_a_cpu_its_libraries_are_no_part_of_the_step(tmp_path):
    step = STEP.model_copy(update={"device": "cpu"})
    moving = step_peak(SHAPE, step).total
    taken = CONTEXT_BYTES["cpu"] + round((1 + SLACK["cpu"]) * (fixed_bytes(SHAPE, step) + 1.4 * moving))
    assert learn_correction(tmp_path, None, SHAPE, step, taken) == pytest.approx(1.2, abs=1e-4)


def test_a_padded_step_is_measured_as_one():
    plan = make_plan(TrainConfig(), SHAPE, Machine(cards=(CARD,)))
    for padded in (True, False):
        probe = ProbeMeasured(
            predicted_bytes=1, measured_bytes=1, tokens=700, row_tokens=350, trained_tokens=90, padded=padded
        )
        assert step_settings(plan, probe).packed is not padded


def test_four_digits_are_kept(tmp_path):
    assert learn_correction(tmp_path, CARD, SHAPE, STEP, measured(1.23456)) == 1.1173
    assert read_kept(tmp_path / FILE) == {"GPU-1": {"factor": 1.1173, "last": 1.2346, "model": "Qwen3-4B"}}
