"""What the worker makes of a plan: smaller after a kill, corrected by the probe, said and kept."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.jobs import TrainRequest
from qlora_studio.core.machine import Machine
from qlora_studio.home import Home
from qlora_studio.planner.corrections import read_correction
from qlora_studio.planner.estimate import estimate
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.runs.folder import create_job, read_json, write_json
from qlora_studio.worker import plans
from qlora_studio.worker.context import Context, FetchedBase
from qlora_studio.worker.guard import LIMITS, count_rungs, shrink
from qlora_studio.worker.loaded_run import compute_of
from qlora_studio.worker.plans import Planned, learn_from_probe, shrink_plan

SHAPE = REFERENCE_SHAPES["SmolLM2-135M"]
MACHINE = Machine(memory_bytes=16 << 30, memory_available_bytes=12 << 30)


@pytest.fixture
def events() -> list[ev.Event]:
    return []


@pytest.fixture
def context(tmp_path, events):
    folder = create_job(tmp_path / "runs", "one", TrainRequest())
    return Context(folder, events.append, guard=0, home=Home(tmp_path))


def make(**changes: Any):
    config = TrainConfig().replace({"data.max_length": 512, "optim.batch_tokens": 4096, **changes})
    return make_plan(config, SHAPE, MACHINE, [512, 100])


def test_without_a_kill_the_plan_stays(context, events):
    plan = make()
    assert shrink_plan(context, plan, SHAPE, 512) == plan and events == []


@pytest.mark.parametrize(
    ("rungs", "tokens", "checkpointed"),
    [(1, 2048, 0), (2, 1024, 0), (3, 512, 0), (4, 512, 8), (5, 512, 16), (7, 512, 30), (99, 512, 30)],
)
def test_each_kill_takes_the_plan_one_rung_down(context, events, rungs, tokens, checkpointed):
    plan = make(**{"memory.micro_batch_tokens": 4096, "memory.gradient_checkpointing": "none"})
    assert (plan.micro_batch_tokens, plan.checkpointed_layers, plan.layers) == (4096, 0, 30)
    write_json(context.folder.path / LIMITS, {"rungs": rungs})
    smaller = shrink_plan(context, plan, SHAPE, 512)
    assert (smaller.micro_batch_tokens, smaller.checkpointed_layers) == (tokens, checkpointed)
    assert smaller.settings.micro_batch_tokens == tokens and smaller.settings.checkpointed_layers == checkpointed
    assert smaller.estimate == estimate(SHAPE, smaller.settings) != plan.estimate
    assert len(events) == min(rungs, 7) and all(isinstance(event, ev.Noted) for event in events)


def test_the_last_rung_is_tiles_where_a_row_is_longer_than_one(context, events):
    plan = make(**{"memory.micro_batch_tokens": 2048, "memory.gradient_checkpointing": "full"})
    write_json(context.folder.path / LIMITS, {"rungs": 9})
    smaller = shrink_plan(context, plan, SHAPE, 2000)
    assert (smaller.micro_batch_tokens, smaller.tiled_mlp, smaller.settings.tiled_mlp) == (2000, True, True)
    assert smaller.estimate == estimate(SHAPE, smaller.settings)
    assert [event.text for event in events][-1] == "With MLPs in tiles of 1024 tokens."
    with_dropout = plan.model_copy(update={"settings": plan.settings.model_copy(update={"dropout": True})})
    assert not shrink_plan(context, with_dropout, SHAPE, 2000).tiled_mlp


def test_the_guard_counts_its_kills_and_says_so(context):
    assert count_rungs(context.folder) == 0
    shrink(context.folder, 3)
    shrink(context.folder, 5)
    assert count_rungs(context.folder) == 2
    notes = [json.loads(line)["text"] for line in context.folder.events.read_text().splitlines()]
    assert notes[0].startswith("The system ended the worker in step 3 because memory ran out.")


def test_what_the_probe_measured_corrects_this_plan_and_the_next(context, events):
    plan = make()
    longest = {"tokens": plan.micro_batch_tokens, "row_tokens": 512, "trained_tokens": plan.micro_batch_tokens}
    planned = Planned(plan, SHAPE, None)
    high = ev.ProbeMeasured(predicted_bytes=1, measured_bytes=plan.estimate.total_bytes * 2, **longest)
    learn_from_probe(context, planned, high)
    factor = read_correction(context.home.cache, None)
    assert 1 < factor <= 1.5
    (event,) = events
    assert isinstance(event, ev.PlanMade) and event.plan.settings.correction == factor
    assert event.plan.estimate.part_bytes("activations") > plan.estimate.part_bytes("activations")
    assert event.plan.reasons[-1].startswith("Corrected by what the largest step took here")
    kept = json.loads((context.folder.path / "plan.json").read_text())
    assert kept == event.plan.model_dump(mode="json")


def test_a_probe_that_agrees_changes_nothing(context, events):
    plan = make()
    step = {"tokens": plan.micro_batch_tokens, "row_tokens": 512, "trained_tokens": plan.micro_batch_tokens}
    learn_from_probe(context, Planned(plan, SHAPE, None), ev.ProbeMeasured(predicted_bytes=1, measured_bytes=1, **step))
    assert events == [] and not (context.folder.path / "plan.json").exists()


def test_chat_and_export_compute_as_training_did(context):
    plan = make(**{"model.compute_dtype": "fp32"})
    config = TrainConfig()
    assert compute_of(context.folder, config) == "auto"
    write_json(context.folder.path / "plan.json", plan.model_dump(mode="json"))
    assert plan.settings.compute == "fp32" == compute_of(context.folder, config)
    elsewhere = plan.model_copy(update={"device": "cuda"})
    write_json(context.folder.path / "plan.json", elsewhere.model_dump(mode="json"))
    assert compute_of(context.folder, config) == "auto"
    (context.folder.path / "plan.json").write_text("{}")
    assert compute_of(context.folder, config) == "auto"


def test_the_plan_with_other_settings_is_the_plan_of_the_same_run():
    plan = make()
    settings = plan.settings.model_copy(update={"micro_batch_tokens": 600, "checkpointed_layers": 7})
    again = Planned(plan, SHAPE, None).again(settings)
    assert again.settings == settings and again.estimate == estimate(SHAPE, settings)
    assert (again.micro_batch_tokens, again.checkpointed_layers) == (600, 7)
    assert (again.budget_bytes, again.reasons, again.layers) == (plan.budget_bytes, plan.reasons, 30)


def test_the_plan_of_a_run_is_made_for_its_lengths_on_this_machine_and_kept(context, events, monkeypatch):
    """Under the name by which the base goes, and with the rungs that kills have cost."""
    shape = SHAPE.model_copy(update={"name": "/a/place"})
    monkeypatch.setattr(plans, "read_machine", lambda home: MACHINE)
    monkeypatch.setattr(plans, "resolve_base", lambda context, base: SimpleNamespace(shape=shape))
    monkeypatch.setattr(plans, "token_lengths", lambda examples: examples)
    config = TrainConfig().replace({"data.max_length": 512, "optim.batch_tokens": 4096})
    base = FetchedBase(Path("/a/place"), "org/name", None)
    for rungs in (0, 9):
        write_json(context.folder.path / LIMITS, {"rungs": rungs})
        planned = plans.plan_run(context, config, base, SimpleNamespace(examples=[100, 300]))
        assert (planned.shape.name, planned.gpu) == ("org/name", None)
        made = make_plan(config, planned.shape, MACHINE, [100, 300])
        assert planned.plan == (shrink_plan(context, made, planned.shape, 300) if rungs else made)
        assert read_json(context.folder.path / "plan.json") == planned.plan.model_dump(mode="json")
        kept = [event for event in events if isinstance(event, ev.PlanMade)]
        assert kept[-1] == ev.PlanMade(plan=planned.plan)
    assert planned.plan.micro_batch_tokens == 300, "no smaller than the longest row"


def test_a_plan_from_before_plans_kept_their_settings_learns_nothing(context, events):
    plan = make().model_copy(update={"settings": None})
    probe = ev.ProbeMeasured(predicted_bytes=1, measured_bytes=9 << 30, tokens=512, row_tokens=512, trained_tokens=512)
    learn_from_probe(context, Planned(plan, SHAPE, None), probe)
    assert events == [] and not (context.home.cache).exists()
    write_json(context.folder.path / LIMITS, {"rungs": 3})
    assert shrink_plan(context, plan, SHAPE, 512) is plan
