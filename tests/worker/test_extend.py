"""More of a run that has ended: on the same curve, or as a new run from its weights."""

from __future__ import annotations

import json
import shutil

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.core.events import Failed
from qlora_studio.core.steps import plan_steps
from qlora_studio.runs.folder import JobFolder
from qlora_studio.runs.journal import Journal
from qlora_studio.studio import Studio
from tests.engine.conftest import make_config

LENGTHS = [5, 9, 3, 7, 8, 6, 4, 9, 5, 7]


@pytest.mark.parametrize("epochs", [0.35, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("batch", [9, 17, 30, 1000])
def test_the_steps_of_a_run_stay_as_they_were_when_it_is_given_more(epochs, batch):
    short = plan_steps(LENGTHS, make_config(optim__epochs=epochs, optim__batch_tokens=batch).optim)
    longer = make_config(optim__epochs=epochs + 2, optim__batch_tokens=batch, optim__ended_at=(epochs,)).optim
    long = plan_steps(LENGTHS, longer)
    assert long[: len(short)] == short and len(long) > len(short)
    seen = sorted(row for step in long for row in step.rows)
    assert len(seen) == round(len(LENGTHS) * (epochs + 2)), "no row is lost where it once ended"
    whole = [row for row in range(len(LENGTHS)) if seen.count(row) < int(epochs + 2)]
    assert whole == []


@pytest.fixture
def ended(whole, tmp_path):
    """A copy of the home with its ended run."""
    home, _, record = whole
    shutil.copytree(home.root, tmp_path / "home")
    studio = Studio(type(home)(tmp_path / "home"))
    return studio, JobFolder(studio.home.runs / "run-0"), record


@pytest.mark.slow
def test_a_longer_schedule_goes_on_with_the_same_curve_however_it_is_cut(harness, ended):
    studio, folder, record = ended
    first = studio.runs.open("run-0").progress.last
    studio.runs.extend("run-0", 1.0)
    view = studio.runs.open("run-0")
    assert (view.state, view.config.optim.epochs, view.config.optim.ended_at) == ("stopped", 3.0, (2.0,))
    shutil.copytree(folder.path, folder.path.with_name("twin"))
    assert harness.end(harness.begin(folder, studio.home)) == 0, folder.log.read_text()
    made = harness.read_record(folder)
    steps = len(record.losses)
    assert {step: made.losses[step] for step in record.losses} == record.losses and len(made.losses) > steps
    rates = {one["step"]: one["learning_rate"] for one in harness.events(folder) if one.get("event") == "step"}
    assert rates[steps + 1] > first.learning_rate, "a longer schedule is higher at the same step"
    twin = JobFolder(folder.path.with_name("twin"))
    assert harness.end(harness.begin(twin, studio.home, "step.end:kill@2")) == -9
    assert harness.end(harness.begin(twin, studio.home)) == 0
    assert harness.read_record(twin) == made


@pytest.mark.slow
def test_a_new_run_starts_from_the_weights_of_another_and_needs_it_no_more(harness, ended):
    studio, folder, _ = ended
    config = studio.runs.anew("run-0", "last", **{"optim.epochs": 1.0})
    assert (config.model.adapter, config.optim.seed, config.saving.name) == ("run-0@last", 43, "run 0 more")
    new = studio.runs.create(config)
    assert harness.end(harness.begin(new, studio.home, "step.end:kill@2")) == -9, new.log.read_text()
    start = json.loads((new.path / "start" / "MANIFEST.json").read_text())["files"]["adapter_model.safetensors"][
        "sha256"
    ]
    kept = folder.path / "checkpoints"
    last = sorted(kept.glob("step-*"))[-1]
    assert start == json.loads((last / "MANIFEST.json").read_text())["files"]["adapter_model.safetensors"]["sha256"]
    studio.runs.delete("run-0")
    assert harness.end(harness.begin(new, studio.home)) == 0, new.log.read_text()
    losses = harness.read_record(new).losses
    assert losses[1] < studio.runs.open(new.name).progress.base_loss


@pytest.mark.slow
def test_what_cannot_be_started_from_is_refused_in_words(harness, ended):
    studio, _, _ = ended
    config = studio.runs.anew("run-0")
    for number, (changes, message) in enumerate(
        [
            ({"lora.rank": 8}, "The adapter to start from has lora.rank 4, and the settings say 8."),
            ({"model.adapter": "nobody"}, "There is no run 'nobody'."),
            ({"model.adapter": "run-0@step-999"}, "The run 'run-0' has kept no checkpoint 'step-999'."),
        ]
    ):
        folder = studio.runs.create(config.replace({**changes, "saving.name": f"wrong {number}"}))
        assert harness.end(harness.begin(folder, studio.home)) == 1
        assert studio.runs.open(folder.name).progress.message.endswith(message)
    with pytest.raises(StudioError, match="has kept no checkpoint"):
        studio.runs.anew("run-0", "step-999")


@pytest.mark.slow
def test_a_run_that_never_took_a_step_cannot_be_given_more(ended):
    studio, _, _ = ended
    empty = studio.runs.create(studio.runs.open("run-0").config.replace({"saving.name": "empty"}))
    journal = Journal(empty.events)
    journal.append(Failed(message="It never began."))
    journal.close()
    with pytest.raises(StudioError, match="has kept no checkpoint to go on from"):
        studio.runs.extend(empty.name, 1)
