"""Which weights of a run can be chosen, by the names that people type."""

from __future__ import annotations

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.labels import Labels
from qlora_studio.runs.checkpoints import find_weights, list_checkpoints
from qlora_studio.runs.folder import JobFolder
from qlora_studio.runs.journal import Follower, Journal


@pytest.fixture
def folder(tmp_path) -> JobFolder:
    """A run that was best at step 20 and keeps 20, 30 and 40; 30 was not measured, and 50 is half a checkpoint."""
    folder = JobFolder(tmp_path / "run")
    for name in ("adapter", "checkpoints/step-000020", "checkpoints/step-000030", "checkpoints/step-000040"):
        (folder.path / name).mkdir(parents=True)
        (folder.path / name / "MANIFEST.json").write_text("{}")
    (folder.path / "checkpoints" / "step-000050").mkdir()
    (folder.path / "checkpoints" / ".stage").mkdir()
    folder.write_labels(Labels(pinned_steps=(30,)))
    journal = Journal(folder.events)
    journal.append(ev.JobStarted(job="train"))
    for step, loss in ((10, 1.0), (20, 2.0), (40, 3.0)):
        journal.append(ev.EvaluationLogged(step=step, loss=loss, tokens=1, rows=1))
    journal.close()
    return folder


def test_each_checkpoint_says_what_it_is(folder):
    follower = Follower(folder.events)
    follower.read()
    shown = [(one.name, one.held_out, one.best, one.newest, one.pinned)
             for one in list_checkpoints(folder, follower.progress)]  # fmt: skip
    assert shown == [
        ("step-20", 2.0, True, False, False),
        ("step-30", None, False, False, True),
        ("step-40", 3.0, False, True, False),
    ]


@pytest.mark.parametrize(
    ("choice", "place"),
    [
        ("", "adapter"),
        ("best", "checkpoints/step-000020"),
        ("last", "checkpoints/step-000040"),
        ("step-30", "checkpoints/step-000030"),
        ("step-000030", "checkpoints/step-000030"),
    ],
)
def test_a_name_finds_its_weights(folder, choice, place):
    assert find_weights(folder, choice) == folder.path / place


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("step-10", "The run 'run' has kept no checkpoint 'step-10'. There are: step-20, step-30, step-40."),
        ("newest", "'newest' is no checkpoint. Give best, last or step-N."),
        ("../../adapter", "'../../adapter' is no checkpoint. Give best, last or step-N."),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(folder, choice, message):
    with pytest.raises(StudioError) as caught:
        find_weights(folder, choice)
    assert f"{caught.value.message} {caught.value.hint}".endswith(message)


def test_a_run_without_any_says_so(tmp_path):
    with pytest.raises(StudioError, match="has saved no adapter yet"):
        find_weights(JobFolder(tmp_path / "none"), "")
    with pytest.raises(StudioError, match="It has kept none"):
        find_weights(JobFolder(tmp_path / "none"), "best")
