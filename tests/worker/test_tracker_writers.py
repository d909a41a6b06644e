"""What each tracker's library is asked for, heard by a stand-in of it."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from qlora_studio.worker.tracker_writers import WRITERS, Mlflow, TensorBoard, Trackio, WeightsAndBiases

SET = ("WANDB_MODE", "WANDB_SILENT", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "TRACKIO_DIR")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """None of the variables is set before, and what a writer sets is gone afterwards."""
    for name in SET:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


class Heard:
    """Anything: each call on it is written down with what it was given."""

    def __init__(self, **values):
        self.calls, self.values = [], values

    def __getattr__(self, name):
        def call(*given, **named):
            self.calls.append((name, *given, *([named] if named else [])))
            return self.values.get(name)

        return call


def install(monkeypatch, name, **values):
    module = ModuleType(name)
    vars(module).update(values)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def write_one(writer):
    writer.add_scalar("train/loss", 1.5, 3)
    writer.flush()
    writer.close()


def test_tensorboard_is_told_its_folder_and_flushed(tmp_path, monkeypatch):
    heard, places = Heard(), []
    install(monkeypatch, "tensorboard")
    install(monkeypatch, "tensorboard.summary", Writer=lambda place: places.append(place) or heard)
    writer = TensorBoard(tmp_path)
    write_one(writer)
    assert places == [str(tmp_path / "tensorboard")] and writer.errors == ()
    assert heard.calls == [("add_scalar", "train/loss", 1.5, 3), ("flush",), ("flush",)]


def test_weights_and_biases_stays_offline_unless_it_is_told_otherwise(tmp_path, monkeypatch):
    run, asked, error = Heard(), [], type("Error", (Exception,), {})
    install(
        monkeypatch, "wandb", Error=error, Settings=lambda **values: values,
        init=lambda **values: asked.append(values) or run,
    )  # fmt: skip
    folder = tmp_path / "my-run"
    writer = WeightsAndBiases(folder)
    assert (os.environ["WANDB_MODE"], os.environ["WANDB_SILENT"]) == ("offline", "true")
    assert asked == [
        {
            "project": "qlora-studio", "name": "my-run", "dir": str(folder), "id": "my-run", "resume": "allow",
            "settings": {"disable_git": True, "disable_code": True, "x_disable_stats": True},
        }
    ]  # fmt: skip
    write_one(writer)
    assert run.calls == [("log", {"train/loss": 1.5}, {"step": 3}), ("finish", {"quiet": True})]
    assert writer.errors == (error,)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    WeightsAndBiases(folder)
    assert os.environ["WANDB_MODE"] == "online" and asked[1]["project"] == "mine"


@pytest.mark.parametrize(("address", "known"), [("", False), ("", True), ("http://server", False)])
def test_mlflow_writes_beside_the_run_or_to_the_server_that_is_named(tmp_path, monkeypatch, address, known):
    client = Heard(
        get_experiment_by_name=SimpleNamespace(experiment_id="5") if known else None,
        create_experiment="6",
        create_run=SimpleNamespace(info=SimpleNamespace(run_id="r1")),
    )
    asked, error = [], type("Error", (Exception,), {})
    install(
        monkeypatch, "mlflow", MlflowException=error,
        MlflowClient=lambda tracking_uri: asked.append(tracking_uri) or client,
    )  # fmt: skip
    if address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    folder = tmp_path / "my-run"
    writer = Mlflow(folder)
    assert asked == [address or f"sqlite:///{folder / 'mlflow.db'}"] and writer.errors == (error,)
    made = ("create_experiment", "qlora-studio", {"artifact_location": (folder / "mlflow").as_uri()})
    assert client.calls == [
        ("get_experiment_by_name", "qlora-studio"), *([] if known else [made]),
        ("create_run", "5" if known else "6", {"run_name": "my-run"}),
    ]  # fmt: skip
    client.calls.clear()
    write_one(writer)
    assert client.calls == [("log_metric", "r1", "train/loss", 1.5, {"step": 3}), ("set_terminated", "r1")]


def test_trackio_writes_into_the_runs_folder(tmp_path, monkeypatch):
    run, asked = Heard(), []
    install(monkeypatch, "trackio", init=lambda **values: asked.append((os.environ["TRACKIO_DIR"], values)) or run)
    writer = Trackio(tmp_path / "my-run")
    assert asked == [
        (
            str(tmp_path / "my-run" / "trackio"),
            {"project": "qlora-studio", "name": "my-run", "resume": "allow", "embed": False},
        )
    ]
    write_one(writer)
    assert run.calls == [("log", {"train/loss": 1.5}, {"step": 3}), ("finish",)] and writer.errors == (RuntimeError,)


def test_each_setting_opens_its_own_writer():
    assert {name: opened for name, (_, _, opened) in WRITERS.items()} == {
        "tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": Mlflow, "trackio": Trackio,
    }  # fmt: skip
