"""A run's adapter and training states on disk: saved whole, kept to a number, read back exactly.

A checkpoint is the adapter in PEFT's format, the optimizer's tensors as safetensors and the position as JSON: no pickle,
so nothing can run on loading.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qlora_studio.core.errors import StudioError
from qlora_studio.core.held_out import HeldOut
from qlora_studio.core.series import Point
from qlora_studio.engine.accelerator.protocol import Accelerator
from qlora_studio.engine.ladder import Limits
from qlora_studio.engine.manifest import find_damage, remove, write_folder
from qlora_studio.engine.numerics import Numerics
from qlora_studio.engine.oom import is_out_of_memory
from qlora_studio.faults import fault

RANDOM = "rng."
"""Prefix of the generators' states among the tensors of a checkpoint."""
CHECKPOINT = re.compile(r"step-(\d{6,})")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A model with its adapter, and the name of its base that the adapter carries on disk."""

    model: PeftModel
    base: str
    """A hub id or a model's name, never a path of this machine."""
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """Everything besides tensors that the next step depends on."""

    step: int
    """Whole steps taken."""
    held_out: HeldOut
    """What was measured so far: it decides which step is best and when patience ends."""
    updates: Mapping[str, Any]
    """Schedule and loss scale, as `Updates.state` gives them."""
    limits: Limits | None = None
    """The limits in force; None in a checkpoint of an earlier version."""
    numerics: Numerics = field(default_factory=dict)
    """With what the steps were computed; empty in a checkpoint of an earlier version."""

    def to_json(self) -> dict[str, Any]:
        limits = None if self.limits is None else asdict(self.limits)
        measured = {"held_out_before": self.held_out.before, "evaluations": self.held_out.evaluations}
        return {"step": self.step, **measured, **self.updates, "limits": limits, "numerics": dict(self.numerics)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Position:
        updates = {name: values[name] for name in ("schedule", "scaler")}
        limits = Limits(**values["limits"]) if values.get("limits") else None
        evaluations = tuple((int(step), float(loss)) for step, loss in values.get("evaluations", ()))
        held_out = HeldOut(values["held_out_before"], evaluations)
        return cls(values["step"], held_out, updates, limits, dict(values.get("numerics", {})))


@dataclass(frozen=True, slots=True)
class Keeping:
    """Which checkpoints stay: the newest `newest`, the best, and those that `pinned` names."""

    newest: int
    pinned: Callable[[], Collection[int]] = tuple


class RunCheckpoints:
    """The adapter and the checkpoints of one run's folder."""

    def __init__(self, folder: Path, tuned: TunedModel, accelerator: Accelerator, keeping: Keeping) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.tuned = tuned
        self.accelerator = accelerator
        self.keeping = keeping
        self.newest_step: int | None = None
        """The step of the last checkpoint written or loaded here; None where there is none yet."""

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies, whether it is there or not."""
        return self.checkpoints / f"step-{step:06d}"

    def save_adapter(self, also: Callable[[Path], None] = lambda stage: None) -> None:
        """Writes the weights of now to `adapter/`, and what `also` writes. A StudioError where it cannot; an older stays."""

        def fill(stage: Path) -> None:
            save_adapter(self.tuned, stage)
            also(stage)

        self._write(self.folder / "adapter", fill)

    def copy_adapter(self, step: int, also: Callable[[Path], None] = lambda stage: None) -> None:
        """The same with the weights of a step's checkpoint, byte for byte."""

        def fill(stage: Path) -> None:
            for name in ADAPTER_FILES:
                shutil.copyfile(self.path(step) / name, stage / name)
            also(stage)

        self._write(self.folder / "adapter", fill)

    def save(self, optimizer: torch.optim.Optimizer, position: Position) -> str:
        """Writes the checkpoint of a step and gives its path in the run folder; those not to be kept go.

        Raises a StudioError where it cannot be written; those before it stay.
        """

        def fill(stage: Path) -> None:
            save_adapter(self.tuned, stage)
            save_state(stage, optimizer, position, self.accelerator)

        target = self.path(position.step)
        self.checkpoints.mkdir(exist_ok=True)
        self._write(target, fill)
        self.newest_step = position.step
        with contextlib.suppress(OSError):  # what is too many costs room, never the run
            self._rotate(position)
        return f"{self.checkpoints.name}/{target.name}"

    def best_kept(self, held_out: HeldOut) -> Point | None:
        """Step and loss of the best evaluation whose checkpoint is there."""
        return held_out.best_of(checkpoint_steps(self.checkpoints))

    def load(self, checkpoint: Path, optimizer: torch.optim.Optimizer) -> Position:
        """Puts adapter, optimizer and random numbers back as they were when saved; gives the position.

        The folder must have passed `find_damage`.
        """
        state = load_file(checkpoint / "adapter_model.safetensors")
        set_peft_model_state_dict(self.tuned.model, state, adapter_name="default")
        position = load_state(checkpoint, optimizer, self.accelerator)
        self.newest_step = position.step
        return position

    def describe_newest(self) -> str:
        """Where the run can go on from, in a sentence."""
        step = self.newest_step
        return "There is no checkpoint yet." if step is None else f"The last checkpoint is that of step {step}."

    def _rotate(self, position: Position) -> None:
        """Removes what need not be kept. Checkpoints of later steps are damaged ones that a resume passed over: they

        count for nothing, or a whole one would have to go for them.
        """
        steps = [step for step in checkpoint_steps(self.checkpoints) if step <= position.step]
        best = self.best_kept(position.held_out)
        kept = {*steps[-self.keeping.newest :], *self.keeping.pinned(), *([best[0]] if best else [])}
        for step in steps:
            if step not in kept:
                remove(self.path(step))

    def _write(self, target: Path, fill: Callable[[Path], None]) -> None:
        try:
            write_folder(target, fill)
        except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise StudioError(
                f"Saving failed: {reason}.",
                f"Make room on that disk or in memory, then resume the run. {self.describe_newest()}",
                where=str(target),
            ) from error


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, rising. What is not named like one is passed over."""
    names = [CHECKPOINT.fullmatch(path.name) for path in folder.glob("step-*")]
    return sorted(int(found[1]) for found in names if found)


def read_position(checkpoint: Path) -> Position:
    """The position of a checkpoint, without its tensors."""
    return Position.from_json(_read_state(checkpoint)["position"])


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every byte is as written, and what was wrong with those passed over."""
    damages: list[str] = []
    for step in reversed(checkpoint_steps(folder)):
        path = folder / f"step-{step:06d}"
        damage = find_damage(path) or _find_disorder(path)
        if not damage:
            return path, damages
        damages.append(damage)
    return None, damages


def _find_disorder(checkpoint: Path) -> str:
    """What keeps a checkpoint whose every byte is as written from being one; empty for one that is."""
    try:
        read_position(checkpoint)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"{checkpoint / 'state.json'} holds no position."
    return ""


def save_adapter(tuned: TunedModel, folder: Path) -> None:
    """The adapter in PEFT's format, loadable by PEFT itself; names the base by id, never by a path of this machine."""
    model = tuned.model
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    fault("save.adapter")
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    values: dict[str, Any] = model.peft_config["default"].to_dict()
    values |= {"base_model_name_or_path": tuned.base, "revision": tuned.revision, "inference_mode": True}
    values["target_modules"] = sorted(values["target_modules"])
    (folder / "adapter_config.json").write_text(
        json.dumps(values, indent=1, sort_keys=True, default=_plain), encoding="utf-8"
    )


def save_state(folder: Path, optimizer: torch.optim.Optimizer, position: Position, accelerator: Accelerator) -> None:
    """Optimizer states and random states as safetensors, the position in the run as JSON."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {}
    for key, value in _leaves(optimizer.state_dict()["state"], ()):
        if isinstance(value, torch.Tensor):
            tensors[key] = value.detach().cpu().clone()  # bitsandbytes shares its code tables between states
        else:
            plain[key] = value
    tensors |= {f"{RANDOM}{name}": state for name, state in accelerator.random_state().items()}
    fault("save.optimizer")
    save_file(tensors, folder / "optimizer.safetensors")
    fault("save.state")
    values = {"position": position.to_json(), "plain": plain}
    (folder / "state.json").write_text(json.dumps(values, indent=1), encoding="utf-8")


def load_state(folder: Path, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> Position:
    """Puts optimizer and random states back; gives the position."""
    values, tensors = _read_state(folder), load_file(folder / "optimizer.safetensors")
    random = {name: tensors.pop(name) for name in list(tensors) if name.startswith(RANDOM)}
    accelerator.set_random_state({name.removeprefix(RANDOM): state for name, state in random.items()})
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *values["plain"].items()):
        index, *path = key.split("/")
        place = state.setdefault(int(index), {})
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Position.from_json(values["position"])


def _read_state(checkpoint: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return values


def _leaves(values: dict[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The values of nested dictionaries, by their path."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, str(name)))
        else:
            yield "/".join((*path, str(name))), value


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else getattr(value, "value", str(value))
