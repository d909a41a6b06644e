"""One writer a tracker: each the library's own, told where to write. All stay on this machine unless its own settings say so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

PROJECT = "qlora-studio"


class Writer(Protocol):
    """What a tracker's library is asked for."""

    errors: tuple[type[Exception], ...]
    """What writing may raise besides an OSError: it costs a line, never the run."""

    def add_scalar(self, name: str, value: float, step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None:
        """Writes what is left; called when the worker ends."""


class TensorBoard:
    """Event files in `tensorboard/` of the run."""

    errors: tuple[type[Exception], ...] = ()

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary import Writer as Library

        self.writer: Any = Library(str(folder / "tensorboard"))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.flush()


class WeightsAndBiases:
    """A run in `wandb/` of the run's folder, offline unless WANDB_MODE says otherwise; `wandb sync` sends it later."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self.errors: tuple[type[Exception], ...] = (wandb.Error,)
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=folder.name, dir=str(folder), id=folder.name,
            resume="allow", settings=wandb.Settings(disable_git=True, disable_code=True, x_disable_stats=True),
        )  # fmt: skip

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.run.log({name: value}, step=step)

    def flush(self) -> None:
        """Its own process writes as it goes."""

    def close(self) -> None:
        self.run.finish(quiet=True)


class Mlflow:
    """A run of MLflow, in `mlflow.db` of the run's folder unless MLFLOW_TRACKING_URI names a server."""

    def __init__(self, folder: Path) -> None:
        import mlflow

        self.errors: tuple[type[Exception], ...] = (mlflow.MlflowException,)
        address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        self.client: Any = mlflow.MlflowClient(tracking_uri=address)
        experiment = self.client.get_experiment_by_name(PROJECT)
        number = (
            experiment.experiment_id
            if experiment
            else self.client.create_experiment(PROJECT, artifact_location=(folder / "mlflow").as_uri())
        )
        self.run: str = self.client.create_run(number, run_name=folder.name).info.run_id

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.client.log_metric(self.run, name, value, step=step)

    def flush(self) -> None:
        """Every value is written when it is given."""

    def close(self) -> None:
        self.client.set_terminated(self.run)


class Trackio:
    """A run of trackio, in `trackio/` of the run's folder."""

    errors: tuple[type[Exception], ...] = (RuntimeError,)

    def __init__(self, folder: Path) -> None:
        os.environ["TRACKIO_DIR"] = str(folder / "trackio")
        import trackio

        self.run: Any = trackio.init(project=PROJECT, name=folder.name, resume="allow", embed=False)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.run.log({name: value}, step=step)

    def flush(self) -> None:
        """Its own thread writes as it goes."""

    def close(self) -> None:
        self.run.finish()


WRITERS: dict[str, tuple[str, str, Callable[[Path], Writer]]] = {
    "tensorboard": ("TensorBoard", "tensorboard", TensorBoard),
    "wandb": ("Weights & Biases", "wandb", WeightsAndBiases),
    "mlflow": ("MLflow", "mlflow", Mlflow),
    "trackio": ("trackio", "trackio", Trackio),
}
"""By the setting's value: what it is called, its package, and how it is opened."""
