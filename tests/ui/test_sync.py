"""From state to page: only what changed is sent, in one piece for each component."""

import threading

import gradio as gr
import pytest

from qlora_studio.core.runs import RunSummary
from qlora_studio.ui.server import settings
from qlora_studio.ui.server.sync import Scene, Slot, changes, components_of, has_changes, merged, slot
from qlora_studio.ui.server.view import View
from qlora_studio.ui.server.world import World


@pytest.fixture
def scene(workspace):
    return Scene(workspace, workspace.world(), View())


def test_a_tick_sends_only_what_changed(scene):
    state = {"a": "one", "b": "two"}
    calls = []
    a, b, c = gr.HTML(), gr.HTML(), gr.HTML()
    slots = [
        slot(a, lambda _: state["a"]),
        Slot((b, c), lambda _: calls.append(1) or {b: state["b"], c: state["b"]}, lambda _: state["b"]),
    ]
    assert has_changes(scene, slots) and has_changes(scene, slots)
    assert changes(scene, slots) == {a: "one", b: "two", c: "two"}
    assert not has_changes(scene, slots)
    assert changes(scene, slots) == {} and len(calls) == 1
    state["b"] = "three"
    assert has_changes(scene, slots)
    assert changes(scene, slots) == {b: "three", c: "three"}


def test_two_slots_of_one_component_are_told_apart_and_sent_together(scene):
    box = gr.Textbox()
    value = Slot((box,), lambda _: {box: gr.update(value="x")}, lambda _: 1, "value")
    info = Slot((box,), lambda _: {box: gr.update(info="y")}, lambda _: 1, "info")
    assert changes(scene, [value, info]) == {box: {"value": "x", "info": "y", "__type__": "update"}}
    assert merged({box: "old"}, {box: gr.update(info="y")})[box] == gr.update(info="y")


def test_the_world_is_read_once_for_all_tabs_and_slots(workspace, monkeypatch):
    reads = []
    real = workspace.studio.runs.all
    monkeypatch.setattr(workspace.studio.runs, "all", lambda: reads.append(1) or real())
    workspace.forget_world()
    world = workspace.world()
    assert [world.runs, world.training, world.run, world.with_adapter] == [{}, None, None, []]
    assert workspace.world() is world and len(reads) == 1


def test_a_world_that_is_older_than_a_tick_is_read_anew(workspace):
    world = workspace.world()
    world._read_at -= 1
    assert workspace.world() is not world


def test_a_run_that_is_gone_is_no_run(workspace):
    world = World(workspace.studio)
    assert world.view("none") is None and world.view(None) is None and world.newest_job("none", "exports") is None


def test_an_idle_and_a_hidden_tab_ask_less_often(tab):
    from qlora_studio.ui.app import HIDDEN_SECONDS, IDLE_SECONDS, _seconds

    def seconds():
        return _seconds(Scene(tab.workspace, tab.workspace.world(), tab.view))

    assert seconds() == IDLE_SECONDS
    tab.view.hidden = True
    assert seconds() == HIDDEN_SECONDS


def test_a_tick_carries_what_is_live_and_only_signals_the_rest(tab):
    signal = gr.Textbox()
    assert set(tab.page.follow_live(tab.view, signal)) <= set(components_of(tab.page.live))
    tab.workspace.draft.change({"lora.rank": 64})
    assert signal in tab.page.follow_live(tab.view, signal)
    assert tab.look().value("lora-rank") == 64
    assert signal not in tab.page.follow_live(tab.view, signal)
    assert len(components_of(tab.page.live)) <= 10


@pytest.mark.parametrize(
    ("state", "label", "can_be_stopped"),
    [("running", "Stop the run", True), ("stopping", "Stopping after this step …", False)],
)
def test_a_stop_that_was_asked_for_shows_at_once(tab, state, label, can_be_stopped):
    world = tab.workspace.world()
    world.__dict__["training"] = RunSummary(name="a", title="a", created=0.0, state=state)
    tab.take(tab.page.follow(tab.view))
    assert (tab.value("stop-btn"), tab.props["stop-btn"]["interactive"]) == (label, can_be_stopped)
    assert tab.value("start-btn") == ("Stopping …" if state == "stopping" else "Training …")


def test_what_changed_is_confirmed_once_a_moment_later_for_answers_may_overtake_each_other(scene, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("qlora_studio.ui.server.sync.CONFIRM_SECONDS", 1.0)
    monkeypatch.setattr("qlora_studio.ui.server.sync.time.monotonic", lambda: now[0])
    a, b = gr.HTML(), gr.CheckboxGroup()
    slots = [slot(a, lambda _: "one"), Slot((b,), lambda _: {b: gr.update(value=[])}, confirmed=False)]
    assert changes(scene, slots) == {a: "one", b: gr.update(value=[])}
    now[0] += 0.5
    assert changes(scene, slots) == {}
    now[0] += 1
    assert has_changes(scene, slots) and changes(scene, slots) == {a: "one"}
    now[0] += 60
    assert changes(scene, slots) == {}


def test_no_tick_sends_back_what_is_being_typed(tab, monkeypatch):
    """A tick that came between the draft's change and the note that the field shows it put the older value there."""
    tab.look()
    updates = []
    real = tab.workspace.draft.change

    def slow(values, presets=None):
        real(values, presets)
        tick = threading.Thread(target=lambda: updates.append(tab.page.follow(tab.view)))
        tick.start()
        tick.join(0.5)
        ticks.append(tick)

    ticks = []
    monkeypatch.setattr(tab.workspace.draft, "change", slow)
    settings.take(tab.workspace, tab.view, tab.control("data.eval_share"), 0.25)
    ticks[0].join()
    assert tab.workspace.draft["data.eval_share"] == 0.25
    field = tab.control("data.eval_share").component
    assert "value" not in updates[0].get(field, {})
