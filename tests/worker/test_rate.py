"""The job `rate`: a few steps at several learning rates, and nothing of them stays."""

from __future__ import annotations

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.jobs import RateReport, RateRequest
from qlora_studio.worker import rate


@pytest.fixture(autouse=True)
def passed(monkeypatch):
    """As if every template had been tried; who was asked about which."""
    calls = []
    monkeypatch.setattr(rate, "vet_once", lambda *arguments: calls.append(arguments))
    return calls


def test_each_rate_is_tried_and_said(small, passed, monkeypatch):
    monkeypatch.setattr(rate, "rates_to_try", lambda config, shape: [0.01, 0.001])
    done = small.context(RateRequest(steps=2))
    report = done.work(rate).report
    assert passed == [(done.context, small.home.models / "tiny", None)]
    assert done.phases() == ["tokenising the rows", "loading the model in 4 bits", "trying learning rates"]
    assert [(one.done, one.total) for one in done.of(ev.Advanced) if one.unit == "steps"] == [
        (1, 4), (2, 4), (3, 4), (4, 4),
    ]  # fmt: skip
    assert (report.steps, report.held_out) == (2, True) and [point.rate for point in report.points] == [0.001, 0.01]
    assert report.rate in (0.001, 0.01) and min(point.loss for point in report.points) < report.base_loss
    left = {path.name for path in done.folder.path.iterdir()}
    assert left == {"job.json", "config.json", "events.jsonl", "plan.json"}, "no adapter, no checkpoint"


def test_a_search_is_given_what_a_training_would_be(small, monkeypatch):
    """The rows, the plan and the device of the loaded model, and a config whose rate is settled."""
    made = []

    class Search:
        def __init__(self, setup, steps, advanced, should_stop):
            made.append((setup, steps, should_stop))

        def run(self, rates):
            made.append(rates)
            return found

    found = RateReport(steps=7, points=(), held_out=True)
    monkeypatch.setattr(rate, "RateSearch", Search)
    done = small.context(RateRequest(steps=7), optim__learning_rate=None)
    assert done.work(rate) == ev.Finished(report=found)
    (setup, steps, should_stop), rates = made
    assert (steps, setup.base, setup.folder, setup.objective) == (7, "tiny", done.folder.path, "supervised")
    assert len(setup.train) == 16 and len(setup.held_out) == 4 and setup.config.optim.learning_rate is not None
    assert setup.plan.settings is not None and setup.accelerator.device.type == "cpu"
    assert sorted(rates) == list(rates) and len(rates) > 2
    assert not should_stop()
    done.folder.ask("pause")
    assert should_stop(), "whoever wants the card back has it"


def test_a_stop_ends_it_while_rows_are_read_and_while_rates_are_tried(small):
    done = small.context(RateRequest(steps=1))
    done.folder.ask("stop")
    assert done.work(rate) == ev.Stopped() and done.phases() == ["tokenising the rows"]
    done = small.context(RateRequest(steps=1))
    write = done.context.write

    def hear(event):
        write(event)
        if isinstance(event, ev.PhaseEntered) and event.phase == "trying learning rates":
            done.folder.ask("stop")

    done.context.write = hear
    assert done.work(rate) == ev.Stopped()
