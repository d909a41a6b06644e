"""The Train page: presets, readiness, start."""

import pytest

from qlora_studio.cli.app import run as run_cli
from qlora_studio.core.dataset import Finding
from qlora_studio.core.errors import StudioError
from qlora_studio.core.machine import Machine, TorchBuild
from qlora_studio.core.plan import GIB, GpuInfo
from qlora_studio.core.words import gib, gib_of
from qlora_studio.ui.tabs import train as train_tab
from tests.ui.test_views import token_report


def buttons(tab):
    """Whether Start can be pressed, and whether Start anyway is there."""
    return tab.props["start-btn"]["interactive"], tab.props["start-anyway-btn"]["visible"]


def presets(tab):
    return tab.value("preset-rank"), tab.value("preset-memory")


def count(tab, *findings, **more):
    """Has the token job found this for the draft as it stands."""
    tab.workspace.tokens.keep(tab.workspace.draft.config(), token_report(findings=findings, **more))
    return tab.look()


def test_without_data_the_page_says_where_to_begin(tab):
    assert tab.words("train-data") == "No data chosen yet: begin on the Data page."
    assert tab.words("readiness") == "Start waits: Training data: There is no data to train on. Import a file first."
    assert buttons(tab) == (False, False) and presets(tab) == ("balanced", "cpu")
    assert "Memory plan" in tab.words("plan")
    with pytest.raises(StudioError, match="There is no data to train on"):
        train_tab.start(tab.workspace, anyway=True)


def test_with_data_and_a_plan_that_fits_it_can_start(ready):
    plan = ready.workspace.outlook().plan
    amount = gib_of(plan.estimate.total_bytes, plan.budget_bytes)
    assert ready.words("train-data") == "Learns from demo (120 rows) ."
    assert ready.words("readiness").startswith("120 rows, not tokenised yet, ") and amount in ready.words("readiness")
    assert buttons(ready) == (True, False)


def test_what_was_counted_is_said_before_the_start(ready):
    count(ready, rows=120, examples=80, dropped=40, too_long=40, lengths=(90,) * 80)
    assert ready.words("readiness").startswith("80 of 120 rows, 40 too long, ")
    assert "step" in ready.words("readiness") and " GiB" in ready.words("readiness")


def test_over_budget_start_is_blocked_and_starting_anyway_is_a_control_of_its_own(ready):
    ready.type("memory.budget_gib", "0,5")
    assert "over budget by" in ready.value("plan") and "What would make it fit" in ready.value("plan")
    assert ready.words("readiness").startswith("Start is blocked: The plan is ")
    assert buttons(ready) == (False, True) and presets(ready) == ("balanced", None)
    with pytest.raises(StudioError, match="The plan does not fit, so nothing was started"):
        train_tab.start(ready.workspace, anyway=False)
    assert ready.workspace.studio.runs.all() == []


def test_a_wrong_value_is_said_under_its_field_and_in_the_words_of_the_page(ready):
    ready.type("optim.learning_rate", "5")
    assert ready.props["optim-learning-rate"]["elem_classes"] == ["qs-wrong"]
    assert ready.props["optim-learning-rate"]["info"] == "5.0 is not allowed: should be less than or equal to 1."
    assert ready.words("readiness").startswith("Start waits: Learning rate: 5.0 is not allowed")
    assert buttons(ready) == (False, False)
    ready.type("optim.learning_rate", "2e-4")
    assert ready.props["optim-learning-rate"]["elem_classes"] == []
    assert ready.props["optim-learning-rate"]["info"].startswith("Size of an update")


def test_a_rate_that_is_left_open_shows_the_one_that_is_taken(ready):
    info = ready.props["optim-learning-rate"]["info"]
    assert ready.value("optim-learning-rate") == ""
    assert info.startswith("Size of an update") and info.endswith(" suits this model, 576 wide, at this alpha.")
    ready.type("optim.learning_rate", "2e-4")
    assert "suits this model" not in ready.props["optim-learning-rate"]["info"]
    ready.type("optim.learning_rate", "auto")
    assert "suits this model" in ready.props["optim-learning-rate"]["info"]


def test_what_is_unusual_stands_under_its_field_and_does_not_block(ready):
    ready.type("optim.learning_rate", "1")
    assert ready.props["optim-learning-rate"]["elem_classes"] == ["qs-unusual"]
    assert "Look at this before you start" in ready.words("start-notes")
    assert buttons(ready) == (True, False)


def test_no_dotted_name_reaches_the_page(ready):
    ready.type("data.max_length", 512).type("memory.micro_batch_tokens", "128")
    shown = ready.words("readiness")
    assert "Micro-batch, tokens: " in shown and "“Max sequence length”" in shown and "data.max_length" not in shown


def test_an_unknown_base_is_said_in_the_place_of_the_plan(ready):
    ready.type("model.base", '"/nowhere/model"')
    assert ready.workspace.draft["model.base"] == "/nowhere/model"
    assert "There is no plan for these settings yet" in ready.words("plan")
    assert ready.props["model-base"]["elem_classes"] == ["qs-wrong"]


def test_a_base_that_nobody_knows_yet_is_looked_up_once(ready):
    for rank in ("8", "16"):
        ready.type("model.base", "owner/unheard-of").type("lora.rank", int(rank))
    assert ready.workspace.started.count("resolve") == 1
    assert ready.words("plan").startswith("Memory plan Looking up owner/unheard-of first.")


def test_a_preset_changes_its_fields_and_is_recognised_by_them(ready):
    ready.workspace.choose_preset("rank", "strong")
    ready.look()
    assert (ready.value("lora-rank"), ready.value("lora-alpha")) == (64, "32")
    assert presets(ready) == ("strong", "cpu")
    ready.type("lora.alpha", "64")
    assert presets(ready) == (None, "cpu")


def test_the_plan_follows_the_fields(ready):
    small = ready.workspace.outlook().plan.estimate.part_bytes("adapter")
    ready.type("lora.rank", 64)
    assert ready.workspace.outlook().plan.estimate.part_bytes("adapter") == 4 * small


def test_an_error_among_the_findings_blocks_until_it_is_accepted_by_name(ready):
    empty = Finding(name="empty-answer", severity="error", count=2, message="2 rows have an empty answer.")
    count(ready, empty)
    assert "2 rows have an empty answer." in ready.words("readiness") and buttons(ready) == (False, False)
    with pytest.raises(StudioError, match="2 rows have an empty answer"):
        train_tab.start(ready.workspace, anyway=False)
    ready.workspace.draft.change({"data.accepted": ["empty-answer"]})
    ready.look()
    assert buttons(ready) == (True, False)


def test_that_torch_cannot_use_the_card_stands_on_the_train_page_with_the_command(ready, monkeypatch):
    card = GpuInfo(index=0, name="NVIDIA GeForce RTX 3060", total_bytes=12 * GIB, free_bytes=11 * GIB)
    machine = Machine(
        cards=(card,), memory_bytes=32 * GIB, disk_free_bytes=99 * GIB, torch=TorchBuild(version="2.13.0+cpu")
    )
    monkeypatch.setattr("qlora_studio.studio.plans.read_machine", lambda *_: machine)
    ready.workspace.draft.change({})
    ready.look()
    for element in ("plan", "readiness"):
        shown = ready.words(element)
        assert "torch 2.13.0+cpu is built for processors only" in shown and "Run: pip install" in shown
    assert buttons(ready) == (False, False)


@pytest.mark.parametrize(
    ("draft", "flags"),
    [
        ({}, []),
        ({"lora.rank": 64, "data.max_length": 2048}, ["lora.rank=64", "data.max_length=2048"]),
        ({"memory.budget_gib": 0.5}, ["memory.budget_gib=0.5"]),
    ],
    ids=["as it opens", "more rank and rows", "too little"],
)
def test_the_page_and_the_command_plan_the_same(workspace, capsys, monkeypatch, draft, flags):
    workspace.draft.change(draft)
    plan = workspace.outlook().plan
    settings = [part for flag in flags for part in ("--set", flag)]
    monkeypatch.setenv("QLORA_STUDIO_HOME", str(workspace.studio.home.root))
    monkeypatch.setattr("sys.argv", ["qlora-studio", "plan", *settings])
    code = run_cli()
    output = " ".join(capsys.readouterr().out.split())
    assert code == (0 if plan.fits else 1)
    for part in plan.estimate.parts:
        assert f"{part.label} {gib(part.bytes)}" in output
