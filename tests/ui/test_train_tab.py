"""The Train page: presets, readiness, start."""

import pytest

from qlora_studio.cli.app import run as run_cli
from qlora_studio.core.dataset import Finding
from qlora_studio.core.errors import StudioError
from qlora_studio.core.words import gib
from qlora_studio.ui.server.tick import Slot, slot, tick
from qlora_studio.ui.server.tokens import Tokens, mark_of
from qlora_studio.ui.tabs import train as train_tab
from tests.ui.test_views import token_report, words


@pytest.fixture
def ready(desk):
    """A desk with the demo rows chosen, nothing counted and nothing started."""
    report = desk.studio.data.import_rows(str(desk.studio.data.demo().rows), name="demo")
    desk.change({"data.sources": [{"name": report.name, "weight": 1.0}]})
    return desk


def page(desk):
    """What the page shows: data, plan, what blocks, the two buttons, the presets."""
    desk.make_plan()
    data, plan, blocked, start, anyway, *presets = train_tab.render(desk)
    return words(data), plan, words(blocked), start["interactive"], anyway["visible"], [one["value"] for one in presets]


def test_without_data_the_page_says_where_to_begin(desk):
    data, plan, blocked, start, anyway, presets = page(desk)
    assert data == "No data chosen yet: begin on the Data page." and blocked.startswith("Start waits for data")
    assert (start, anyway) == (False, False) and "Memory plan" in plan and presets == ["balanced", "cpu"]
    with pytest.raises(StudioError, match="There is no data to train on"):
        train_tab.start(desk, anyway=True)


def test_with_data_and_a_plan_that_fits_it_can_start(ready):
    data, _, blocked, start, anyway, _ = page(ready)
    assert data == "Learns from demo (120 rows) ." and (blocked, start, anyway) == ("", True, False)


def test_over_budget_start_is_blocked_and_starting_anyway_is_a_control_of_its_own(ready):
    ready.change({"memory.budget_gib": 0.5})
    _, plan, blocked, start, anyway, presets = page(ready)
    assert "over budget by" in plan and "What would make it fit" in plan and blocked.startswith("Start is blocked")
    assert (start, anyway) == (False, True) and presets == ["balanced", None]
    with pytest.raises(StudioError, match="The plan does not fit, so nothing was started"):
        train_tab.start(ready, anyway=False)
    assert ready.studio.runs.all() == []


def test_a_wrong_value_is_said_in_the_place_of_the_plan(ready):
    ready.change({"lora.rank": 0})
    _, plan, blocked, start, anyway, _ = page(ready)
    assert "lora.rank" in plan and blocked.startswith("Start waits for settings") and (start, anyway) == (False, False)


def test_an_unknown_base_is_said_in_the_place_of_the_plan(ready):
    ready.change({"model.base": "/nowhere/model"})
    assert "There is no model folder" in words(page(ready)[1])


def test_a_preset_changes_its_fields_and_is_recognised_by_them(ready):
    ready.choose_preset("rank", "strong")
    assert (ready.draft["lora.rank"], ready.draft["lora.alpha"]) == (64, 128)
    assert page(ready)[-1] == ["strong", "cpu"]
    ready.change({"lora.alpha": 64})
    assert page(ready)[-1] == [None, "cpu"]


def test_the_plan_follows_the_fields(ready):
    page(ready)
    small = ready.plan.estimate.part_bytes("adapter")
    ready.change({"lora.rank": 64})
    page(ready)
    assert ready.plan.estimate.part_bytes("adapter") == 4 * small


def test_an_error_among_the_findings_blocks_until_it_is_accepted_by_name(ready):
    finding = Finding(name="empty-answer", severity="error", count=2, message="2 rows have an empty answer.")
    report = token_report(findings=(finding,))
    ready.tokens = Tokens(ready.studio, result=report, mark=mark_of(ready.config()))
    _, _, blocked, start, _, _ = page(ready)
    assert "empty answer" in blocked and not start
    with pytest.raises(StudioError, match="empty-answer"):
        train_tab.start(ready, anyway=False)
    ready.change({"data.accepted": ["empty-answer"]})
    assert page(ready)[2:4] == ("", True)


def test_counted_lengths_make_the_plan_smaller(ready):
    page(ready)
    before = ready.plan.micro_batch_tokens
    ready.tokens = Tokens(ready.studio, result=token_report(), mark=mark_of(ready.config()))
    assert ready.tokens.lengths_for(ready.config()) == [90]
    page(ready)
    assert ready.plan.micro_batch_tokens <= before
    other = ready.config().replace({"model.base": "other/model"})
    assert ready.tokens.lengths_for(other) is None


def test_a_tick_sends_only_what_changed(desk):
    import gradio as gr

    shown = {"a": "one", "b": "two"}
    calls = []
    slots = [
        slot(gr.HTML(), lambda now: shown["a"]),
        Slot((gr.HTML(), gr.HTML()), lambda now: calls.append(1) or (shown["b"], shown["b"]), lambda now: shown["b"]),
    ]
    *first, seen = tick(desk, slots, {})
    assert first == ["one", "two", "two"]
    *second, seen = tick(desk, slots, seen)
    assert second == [gr.skip(), gr.skip(), gr.skip()] and len(calls) == 1
    shown["b"] = "three"
    *third, _ = tick(desk, slots, seen)
    assert third == [gr.skip(), "three", "three"]


@pytest.mark.parametrize(
    ("draft", "flags"),
    [
        ({}, []),
        ({"lora.rank": 64, "data.max_length": 2048}, ["lora.rank=64", "data.max_length=2048"]),
        ({"memory.budget_gib": 0.5}, ["memory.budget_gib=0.5"]),
    ],
    ids=["as it opens", "more rank and rows", "too little"],
)
def test_the_page_and_the_command_plan_the_same(desk, capsys, monkeypatch, draft, flags):
    desk.change(draft)
    desk.make_plan()
    settings = [part for flag in flags for part in ("--set", flag)]
    monkeypatch.setenv("QLORA_STUDIO_HOME", str(desk.studio.home.root))
    monkeypatch.setattr("sys.argv", ["qlora-studio", "plan", "--memory", "cpu", *settings])
    code = run_cli()
    said = capsys.readouterr().out
    assert code == (0 if desk.plan.fits else 1)
    for part in desk.plan.estimate.parts:
        assert f"{part.label} {gib(part.bytes)}" in " ".join(said.split())
    assert f"Together {gib(desk.plan.estimate.total_bytes)} of {gib(desk.plan.budget_bytes)}" in " ".join(said.split())
