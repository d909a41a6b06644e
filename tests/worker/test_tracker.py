"""A tracker is asked for, hears the curves through its own library, and can cost the run nothing."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from types import ModuleType

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.worker.tracker import Tracker, open_tracker

WITH = TrainConfig().replace({"saving.tracker": "tensorboard"})
STEP = ev.StepLogged(
    step=3, total_steps=9, epoch=0.5, loss=1.25, learning_rate=1e-4, grad_norm=2.0, tokens=9, trained_tokens=9,
    tokens_per_second=7.0, peak_bytes=11, metrics={"margin": 0.5},
)  # fmt: skip


class FakeWriter:
    errors = ()

    def __init__(self, folder: str = "") -> None:
        self.folder, self.written, self.full = folder, [], False

    def add_scalar(self, name, value, step):
        if self.full:
            raise OSError(28, "No space left on device")
        self.written.append((name, value, step))

    def flush(self):
        self.written.append("flushed")


def test_unasked_nothing_is_imported_or_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    open_tracker(TrainConfig(), tmp_path)(STEP)
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_missing_is_said_before_anything_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(StudioError, match="TensorBoard is not installed here") as refused:
        open_tracker(WITH, tmp_path)
    assert "pip install tensorboard" in refused.value.hint


def test_the_curves_are_told_by_step_to_the_librarys_own_writer(tmp_path, monkeypatch):
    writers = []
    module = ModuleType("tensorboard.summary")
    module.Writer = lambda folder: writers.append(FakeWriter(folder)) or writers[-1]
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "tensorboard.summary", module)
    at_the_end = []
    monkeypatch.setattr("atexit.register", at_the_end.append)
    track = open_tracker(WITH, tmp_path)
    for event in (
        STEP,
        ev.Noted(text="x"),
        ev.EvaluationLogged(step=0, loss=2.0, tokens=1, rows=1, adapter=False),
        ev.EvaluationLogged(step=3, loss=1.5, tokens=1, rows=1),
    ):
        track(event)
    (writer,) = writers
    assert writer.folder == str(tmp_path / "tensorboard")
    assert writer.written == [
        ("train/loss", 1.25, 3),
        ("train/learning_rate", 1e-4, 3),
        ("train/grad_norm", 2.0, 3),
        ("train/epoch", 0.5, 3),
        ("train/tokens_per_second", 7.0, 3),
        ("train/peak_bytes", 11.0, 3),
        ("train/margin", 0.5, 3),
        ("held_out/loss_of_base", 2.0, 0),
        "flushed",
        ("held_out/loss", 1.5, 3),
        "flushed",
    ]
    (close,) = at_the_end
    close()
    assert writer.written[-2:] == ["flushed"] * 2, "what is left is written when the worker ends"


def test_a_tracker_on_a_full_disk_costs_lines_and_no_step():
    writer = FakeWriter()
    writer.full = True
    Tracker(writer).track(STEP)


def test_tensorboard_itself_reads_back_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track = open_tracker(WITH, tmp_path)
    for number in (1, 2):
        track(STEP.model_copy(update={"step": number}))
    track(ev.EvaluationLogged(step=2, loss=1.5, tokens=1, rows=1))
    kept = EventAccumulator(str(tmp_path / "tensorboard"))
    kept.Reload()
    assert {"train/loss", "held_out/loss"} <= set(kept.Tags()["tensors"])
    assert [one.step for one in kept.Tensors("train/loss")] == [1, 2]


@pytest.mark.parametrize(
    ("name", "message"), [("wandb", "Weights & Biases"), ("mlflow", "MLflow"), ("trackio", "trackio")]
)
def test_every_tracker_that_is_missing_is_named_with_how_to_get_it(name, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    for variable in ("WANDB_MODE", "WANDB_SILENT", "TRACKIO_DIR"):
        monkeypatch.setenv(variable, "kept")  # restored afterwards
    with pytest.raises(StudioError, match=f"{message} is not installed here") as refused:
        open_tracker(TrainConfig().replace({"saving.tracker": name}), tmp_path)
    assert f"pip install {name}" in refused.value.hint


def hear_two_steps(name, folder):
    """A whole life of a tracker in a process of its own: the libraries have state of their own."""
    program = (
        "import sys; from pathlib import Path; from tests.worker.test_tracker import *;"
        f"track = open_tracker(TrainConfig().replace({{'saving.tracker': {name!r}}}), Path(sys.argv[1]));"
        "[track(STEP.model_copy(update={'step': number, 'loss': 1.0 / number})) for number in (1, 2)];"
        "track(ev.EvaluationLogged(step=2, loss=1.5, tokens=1, rows=1))"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "TRACKIO", "MLFLOW"))}
    home = folder.parent / "home"
    home.mkdir()
    folder.mkdir()
    subprocess.run(
        [sys.executable, "-c", program, str(folder)], check=True, env={**kept, "HOME": str(home)}, timeout=300
    )


def test_weights_and_biases_itself_writes_offline_into_the_runs_folder(tmp_path):
    pytest.importorskip("wandb")
    hear_two_steps("wandb", tmp_path / "run")
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"train/loss" in content and b"held_out/loss" in content


def test_mlflow_itself_reads_back_what_was_written(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    hear_two_steps("mlflow", tmp_path / "run")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("qlora-studio")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(1, 1.0), (2, 0.5)]
    assert run.info.status == "FINISHED" and run.data.metrics["held_out/loss"] == 1.5


def test_trackio_itself_writes_into_the_runs_folder(tmp_path):
    pytest.importorskip("trackio")
    hear_two_steps("trackio", tmp_path / "run")
    (file,) = (tmp_path / "run" / "trackio").rglob("qlora-studio.db")
    with sqlite3.connect(file) as base:
        rows = base.execute("select step, metrics from metrics order by step").fetchall()
    assert {step for step, _ in rows} == {1, 2} and any(
        b"held_out/loss" in (text if isinstance(text, bytes) else text.encode()) for _, text in rows
    )


def test_an_adapter_and_a_checkpoint_put_what_was_told_on_the_disk():
    writer = FakeWriter()
    for event in (ev.CheckpointSaved(step=1, path="x"), ev.AdapterSaved(step=1), ev.Noted(text="x")):
        Tracker(writer).track(event)
    assert writer.written == ["flushed"] * 2


def test_an_error_of_the_library_s_own_costs_a_line_and_any_other_is_a_fault():
    class Odd(Exception):
        pass

    writer = FakeWriter()
    writer.add_scalar = lambda *_: (_ for _ in ()).throw(Odd)
    with pytest.raises(Odd):
        Tracker(writer).track(STEP)
    writer.errors = (Odd,)
    Tracker(writer).track(STEP)
