"""What the benchmarks for a card are made of: shared time, a search for the longest row, a verdict, drawn models."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import gpu_models
from benchmarks.gpu_forced import difference, judge
from benchmarks.gpu_longest import search_longest
from benchmarks.gpu_models import TimeBudget, draw_base, measure_alone, shape_of, write_base

CPU = torch.device("cpu")


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(gpu_models.time, "monotonic", lambda: self.now)


def test_a_measurement_takes_at_most_twice_its_part_and_leaves_the_others_enough_to_begin(monkeypatch):
    clock = Clock(monkeypatch)
    budget = TimeBudget(560, [1] * 8, least=25)
    assert budget.share() == 140
    clock.now += 140
    assert budget.share() == pytest.approx(120)
    clock.now += 10
    assert budget.share() == pytest.approx(2 * 410 / 6)


def test_where_each_takes_all_it_may_no_time_is_exceeded_and_the_last_are_left_out(monkeypatch):
    clock = Clock(monkeypatch)
    budget, allowed = TimeBudget(100, [1, 4, 1, 1, 1, 1], least=25), []
    for _ in range(6):
        allowed.append(budget.share())
        clock.now += allowed[-1] or 0
    assert clock.now <= 100 and allowed == [25, 25, 25, 25, None, None]


def test_the_search_for_a_heavy_measurement_leaves_what_the_others_need(monkeypatch):
    Clock(monkeypatch)
    assert TimeBudget(485, [4, 1, 1, 1], least=25).share() == 410


@pytest.mark.parametrize(
    ("holds", "planned", "most", "found", "tries"),
    [
        (1000, 1000, 10_000, 1000, 2),
        (1300, 1000, 10_000, 1248, 6),
        (900, 1000, 10_000, 876, 4),
        (0, 1000, 10_000, 0, 8),
        (5000, 1000, 1000, 1000, 1),
        (5000, 1000, 1100, 1062, 2),
    ],
    ids=["as planned", "longer", "shorter", "nothing", "at the model's end", "up to the model's end"],
)
def test_the_longest_row_is_found_to_a_sixteenth(holds, planned, most, found, tries):
    tried, told = [], []

    def fits(tokens):
        tried.append(tokens)
        return tokens <= holds

    assert search_longest(fits, planned, most, told.append) == found
    assert (len(tried), told[-1:]) == (tries, [found] if found else []) and max(tried) <= most
    assert min(holds, most) - found <= planned // 16 + 1


ROOMY = {"losses": [2.0, 1.5], "norms": [1.0, 1.0]}
CHANGES = [{"words": "a micro-batch of 512 instead of 1024 tokens"}]
FORCED = {"losses": [2.0002, 1.5], "norms": [1.01, 1.0], "changes": CHANGES, "bound": 1e-3}
REPLAYED = {"losses": [2.0002, 1.5], "norms": [1.01, 1.0]}
CUT = {"bf16": 2e-3, "fp32": 1e-7}


def test_what_a_cut_rounds_otherwise_is_no_fault():
    cells = judge(ROOMY, FORCED, REPLAYED, CUT)
    assert cells[:5] == ["2 of 2", "1", "a micro-batch of 512 instead of 1024 tokens", "0.0e+00", "0.0e+00"]
    assert cells[5:] == ["1.0e-04", "2.0e-03", "1.0e-07", "1.0e-03", "yes"]


@pytest.mark.parametrize(
    ("forced", "cut"),
    [
        (FORCED | {"losses": [2.01, 1.5]}, CUT),
        (FORCED | {"norms": [2.02, 1.0]}, CUT),
        (FORCED | {"losses": [2.0002]}, CUT),
        (FORCED | {"changes": []}, CUT),
        (FORCED | {"losses": [2.0002, float("nan")]}, CUT),
        (FORCED, {"bf16": 2e-3, "fp32": 2e-3}),
    ],
    ids=["retried otherwise", "gradient twice", "a step less", "had room", "not a number", "fault of the cut"],
)
def test_a_fault_is_none_of_rounding(forced, cut):
    assert judge(ROOMY, forced, REPLAYED, cut)[-1] == "no"


def test_curves_differ_by_their_worst_step():
    assert difference([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)


def test_a_model_is_drawn_alike_in_every_process():
    """Without a seed the two runs that were compared had two different bases, and differed by 4e-3."""
    shape = shape_of("Llama-3.2-1B", rehearse=True)
    torch.manual_seed(7)
    first = draw_base(shape, CPU, torch.float32).state_dict()
    torch.manual_seed(8)
    second = draw_base(shape, CPU, torch.float32).state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("model", ["Llama-3.1-8B", "Qwen3-4B", "Gemma-3-4B", "Phi-4-mini"])
def test_a_drawn_model_holds_nothing_that_was_not_drawn(model):
    base = draw_base(shape_of(model, rehearse=True), CPU, torch.bfloat16)
    everything = [*base.parameters(), *base.buffers()]
    assert not any(tensor.is_meta for tensor in everything)
    with torch.no_grad():
        assert torch.isfinite(base(torch.arange(16)[None]).logits).all()


def test_a_written_model_is_loaded_as_it_was_drawn(tmp_path):
    shape = shape_of("Llama-3.1-8B", rehearse=True)
    write_base(shape, CPU, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    drawn, ids = draw_base(shape, CPU, torch.bfloat16), torch.arange(32)[None]
    loaded.train(), drawn.train()
    assert loaded.is_loaded_in_4bit
    assert torch.equal(loaded(ids).logits, drawn(ids).logits)


SCRIPT = """
import sys, time
print("{'a trainer': 'prints'}")
print('{"tokens": 1}', flush=True)
if sys.argv[1] == "hangs": time.sleep(60)
if sys.argv[1] == "breaks": raise RuntimeError("out | of order")
"""


@pytest.mark.parametrize(
    ("how", "last"),
    [
        ("ends", {"tokens": 1}),
        pytest.param("hangs", {"says": "ran out of time after 3 s"}, marks=pytest.mark.slow),
        ("breaks", {"says": "exit 1: RuntimeError: out / of order"}),
    ],
)
def test_what_was_found_is_told_whatever_happens_then(tmp_path, how, last):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    seconds = 3 if how == "hangs" else 60
    found = list(measure_alone(str(script), [how], seconds, rehearse=False))
    assert (found[0], found[-1]) == ({"tokens": 1}, last)


def test_without_time_nothing_is_begun():
    assert json.dumps(list(measure_alone("no such script", [], None, rehearse=True))) == '[{"says": "no time left"}]'
