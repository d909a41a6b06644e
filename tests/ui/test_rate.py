"""The search for a learning rate on the Train page."""

from __future__ import annotations

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import RatePoint, RateReport
from qlora_studio.core.progress import Progress
from qlora_studio.ui.tabs import rate
from qlora_studio.ui.tabs import train as train_tab
from qlora_studio.ui.views import rate as rate_view
from tests.ui.fakes import words

REPORT = RateReport(
    steps=12,
    points=(RatePoint(rate=5e-4, loss=1.75), RatePoint(rate=1e-3, loss=1.7), RatePoint(rate=2e-3, loss=None)),
    base_loss=1.9,
    held_out=True,
    rate=1e-3,
)


def test_what_was_found_stands_with_every_rate_and_its_gain():
    shown = words(rate_view.rates(None, REPORT, ()))
    assert "base 1.9000" in shown and "0.001 1.7000 best choice" in shown and "0.002 not finite" in shown
    assert shown.endswith(
        "After 12 steps each from the same start, 0.001 is the lowest rate that does as well as the best."
    )


def test_the_search_shows_how_far_it_is_and_a_failure_what_to_do():
    doing = Progress(phase="trying learning rates", done=7, total=60)
    assert "trying learning rates … 7 of 60 steps" in words(rate_view.rates(doing, None, ()))
    assert "Memory ran out." in words(rate_view.rates(None, None, ("Memory ran out.",)))
    assert "which one learns best" in words(rate_view.rates(None, None, ()))


def test_the_rate_that_was_found_goes_into_the_draft_at_a_click(ready):
    ready.workspace.rates.report = REPORT
    ready.workspace.rates.version += 1
    ready.look()
    assert ready.props["take-rate-btn"]["visible"] and ready.value("take-rate-btn") == "Use 0.001"
    rate.take(ready.workspace)
    ready.look()
    assert ready.value("optim-learning-rate") == "0.001" and not ready.props["take-rate-btn"]["visible"]


def test_a_search_starts_only_where_a_run_could(ready):
    ready.type("memory.budget_gib", "0,5")
    with pytest.raises(StudioError, match="over budget"):
        rate.find(ready.workspace)
    ready.type("memory.budget_gib", "4")
    rate.find(ready.workspace)
    assert ready.workspace.started.count("rate") == 1
    ready.look()
    assert not ready.props["find-rate-btn"]["visible"] and ready.props["stop-rate-btn"]["visible"]
    with pytest.raises(StudioError, match="Learning rates are being tried"):
        train_tab.start(ready.workspace, anyway=False)
    assert ready.workspace.studio.runs.all() == []
