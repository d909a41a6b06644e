"""When a checkpoint is due, to the second, and which weights become the adapter of a run that ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.held_out import HeldOut
from qlora_studio.engine import saving
from qlora_studio.engine.saving import Pacing, Saving
from tests.engine.conftest import make_config


@pytest.fixture
def clock():
    return [100.0]


def due_at(pacing, clock) -> float:
    """The last second at which nothing is due yet."""
    low, high = 0, 100_000
    while high - low > 1:
        middle = (low + high) // 2
        clock[0] = middle
        low, high = (low, middle) if pacing.is_due else (middle, high)
    return low


def test_the_first_is_due_after_so_many_minutes(clock):
    assert due_at(Pacing(2.0, lambda: clock[0]), clock) == 220


@pytest.mark.parametrize(("seconds", "expected"), [(0, 320), (2, 320), (3, 350), (10, 700)])
def test_a_slow_save_puts_the_next_off_until_both_cost_no_more_than_their_share(clock, seconds, expected):
    pacing = Pacing(2.0, lambda: clock[0])
    clock[0] = 200.0
    pacing.saved(200.0 - seconds)
    assert due_at(pacing, clock) == expected


@pytest.mark.parametrize(("minutes", "expected"), [(2.0, 260), (0.5, 230), (1.0, 260)])
def test_a_failed_save_is_tried_again_after_a_minute_or_less(clock, minutes, expected):
    pacing = Pacing(minutes, lambda: clock[0])
    clock[0] = 200.0
    pacing.failed()
    assert due_at(pacing, clock) == expected


@pytest.fixture(autouse=True)
def numerics(monkeypatch):
    monkeypatch.setattr(saving, "read_numerics", lambda model, accelerator: {"read of": f"{model} on {accelerator}"})


class Kept:
    """Checkpoints that only note what is wanted of them; those of these steps are there."""

    newest_step = 7

    def __init__(self, steps, fails=False) -> None:
        self.steps, self.fails, self.calls = steps, fails, []

    def best_kept(self, held_out):
        return held_out.best_of(self.steps)

    def path(self, step):
        return Path(f"/checkpoints/{step}")

    def save(self, optimizer, position):
        if self.fails:
            raise StudioError("The disk is full.")
        self.calls.append(("save", position))
        return "checkpoints/x"

    def save_adapter(self, also):
        self.calls.append(("newest", also))

    def copy_adapter(self, step, also):
        self.calls.append(("copy", step, also))

    def describe_newest(self):
        return "The last is 7."


def made(kept, adapter="best", logged=True):
    """The saving of a run with these checkpoints, and what it says."""
    one, heard = Saving.__new__(Saving), []
    config = make_config(saving__adapter=adapter)
    one.setup = type("Setup", (), {"config": config, "also": "also", "all_logged": lambda self: logged, "model": "a model", "accelerator": "a card"})()  # fmt: skip
    one.updates = type("Updates", (), {"optimizer": "optimizer", "state": lambda self: {"schedule": 1, "scaler": 2}})()
    one.ladder = type("Ladder", (), {"limits": None})()
    one.checkpoints, one.emit, one.pacing = kept, heard.append, Pacing(1000.0, lambda: 0.0)
    return one, heard


CURVE = HeldOut(3.0, ((2, 1.0), (4, 1.5)))
FALLING = HeldOut(3.0, ((2, 2.0), (4, 1.5)))


@pytest.mark.parametrize(
    ("curve", "steps", "step", "changes", "expected"),
    [
        (CURVE, [2, 4], 5, {}, ("copy", 2, 1.0)),
        (CURVE, [2, 4], 2, {}, ("newest", 2, 1.0)),
        (CURVE, [4], 5, {}, ("copy", 4, 1.5)),
        (CURVE, [], 5, {}, ("newest", 5, None)),
        (CURVE, [2, 4], 4, {"adapter": "last"}, ("newest", 4, 1.5)),
        (CURVE, [2, 4], 5, {"going_on": True}, ("copy", 2, 1.0)),
        (FALLING, [2, 4], 5, {"going_on": True}, ("newest", 5, None)),
        (FALLING, [2, 4], 5, {}, ("copy", 4, 1.5)),
        (HeldOut(), [2, 4], 5, {}, ("newest", 5, None)),
    ],
)
def test_the_adapter_is_of_the_best_step_or_of_now(monkeypatch, curve, steps, step, changes, expected):
    monkeypatch.setattr(saving, "find_damage", lambda path: "")
    kept = Kept(steps)
    one, heard = made(kept, changes.get("adapter", "best"))
    one.save_adapter(step, curve, **{key: changes[key] for key in changes if key == "going_on"})
    way, of, loss = expected
    assert kept.calls == [("newest", "also")] if way == "newest" else [("copy", of, "also")]
    assert heard == [ev.AdapterSaved(step=of, held_out=loss)]


def test_a_damaged_best_step_is_named_and_now_is_taken(monkeypatch):
    monkeypatch.setattr(saving, "find_damage", lambda path: f"{path} is broken.")
    kept = Kept([2])
    one, heard = made(kept)
    one.save_adapter(5, CURVE)
    assert kept.calls == [("newest", "also")]
    text = "/checkpoints/2 is broken. So the adapter is that of step 5, not of the best step."
    assert heard == [ev.Noted(text=text), ev.AdapterSaved(step=5, held_out=None)]


def test_a_save_that_fails_costs_a_word_and_is_tried_soon(monkeypatch):
    one, heard = made(Kept([], fails=True))
    one.save_if_possible(3, CURVE)
    assert heard == [ev.Noted(text="Step 3: The disk is full. The last is 7. The run goes on.")]
    assert one.pacing._due_at == 60.0
    quiet, heard = made(Kept([]), logged=False)
    quiet.save_if_possible(3, CURVE)
    assert heard == [] and quiet.checkpoints.calls == [] and quiet.pacing._due_at == 60.0


def test_a_save_is_of_its_step_and_said(monkeypatch):
    monkeypatch.setattr(saving.time, "monotonic", lambda: 0.0)
    kept = Kept([])
    one, heard = made(kept)
    one.pacing._due_at = 5.0
    one.save_if_possible(3, CURVE)
    assert heard == [ev.CheckpointSaved(step=3, path="checkpoints/x")] and one.pacing._due_at == 60_000.0
    ((_, position),) = kept.calls
    assert (position.step, position.held_out, position.updates) == (3, CURVE, {"schedule": 1, "scaler": 2})
    assert position.numerics == {"read of": "a model on a card"}


@pytest.mark.parametrize(
    ("step", "updating", "fails", "texts"),
    [
        (7, False, False, []),
        (7, True, False, []),
        (8, True, False, ["The update of step 9 did not finish. The last is 7."]),
        (8, False, True, ["Step 8 could not be saved (StudioError). The last is 7."]),
    ],
    ids=["it is there", "it is there although an update broke", "in an update", "no room"],
)
def test_after_an_error_the_last_whole_step_is_there_or_named(step, updating, fails, texts):
    kept = Kept([], fails)
    one, heard = made(kept)
    one.keep_last_whole_step(step, CURVE, updating=updating)
    assert [event.text for event in heard] == texts and kept.calls == []
    one, heard = made(Kept([]))
    one.keep_last_whole_step(8, CURVE, updating=False)
    assert heard == [ev.CheckpointSaved(step=8, path="checkpoints/x")]
