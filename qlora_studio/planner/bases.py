"""Looking a base up: once, as a job, with what was found and what failed kept; afterwards only files are read.

A family that the formulas know needs its `config.json` and nothing else. Another family is measured by a dry run, which
the caller hands in because it needs torch. A Hub ID is asked for its `config.json`, size and licence.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qlora_studio.bases import (
    Base,
    find_weights_problem,
    folder_name,
    locate_base,
    read_base_files,
    read_tensor_shapes,
)
from qlora_studio.core.bases import BaseFacts, BaseRef, FailedBase, ResolvedBase, UnresolvedBase
from qlora_studio.core.config import DEMO_BASE
from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import MeasuredShape, ModelShape
from qlora_studio.home import Home
from qlora_studio.hub import HubModel, circumstances, fetch_model_file, look_up_model
from qlora_studio.planner.families import list_linears
from qlora_studio.planner.kept import write_whole
from qlora_studio.planner.limits import describe_limits, find_unmergeable
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.shape import read_shape

FORMAT = "v5"
"""Part of every file name here; raised whenever results of before mean something else."""
DEMO_DOWNLOAD_BYTES = 270_000_000
"""Of the embedded model: 135 million numbers in 16 bits and its tokenizer."""

Measure = Callable[[Path], MeasuredShape]
"""A dry run of the model in a folder with a `config.json`. Raises a StudioError where it cannot be made."""
Announce = Callable[[str], None]


class _Kept(BaseModel):
    """One file: what was found, or why nothing could be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measured: MeasuredShape | None = None
    failed: FailedBase | None = None
    circumstances: str = ""
    """What a failure depends on besides the file's name; another one makes it worth another try."""


def find_resolved(base: BaseRef, home: Home) -> BaseFacts:
    """What is known of a base without network, child or torch: a few small files are read, in milliseconds."""
    try:
        located = locate_base(base.name, home.models)
        if located.folder is not None:
            return _from_folder(base, located, located.folder, home)
        if base.name == DEMO_BASE:
            return _demo()
        return _from_hub_record(base, home)
    except StudioError as error:
        return _failed(base, error, "files")


def resolve(
    base: BaseRef, home: Home, measure: Measure, announce: Announce, *, again: bool = False
) -> ResolvedBase | FailedBase:
    """Finds out what `find_resolved` misses, keeps it, and returns what it then finds. Never raises a StudioError.

    `announce` is called with what is being done. What is kept is final, a failure too, until what it depends on
    changes; `again` forgets it first.
    """
    if again:
        _forget(base, home)
    facts = find_resolved(base, home)
    if isinstance(facts, UnresolvedBase) and _is_remote(base, home) and not _hub_config(base, home).is_file():
        announce(f"asking the hub about {base.name}")
        _ask_hub(base, home)
        facts = find_resolved(base, home)
    if isinstance(facts, UnresolvedBase):
        announce("measuring an architecture that no formula knows")
        _run_dry(base, home, measure)
        facts = find_resolved(base, home)
    if isinstance(facts, UnresolvedBase):
        return FailedBase(name=base.name, stage="files", message=facts.needs, hint="Look it up again.")
    return facts


def measurement_file(shape: ModelShape, home: Home) -> Path:
    """Where a dry run of this `config.json` under the installed transformers is kept."""
    version = importlib.metadata.version("transformers")
    return home.cache / "bases" / "measured" / f"{shape.config_hash}-{FORMAT}-transformers-{version}.json"


def _from_folder(base: BaseRef, located: Base, folder: Path, home: Home) -> BaseFacts:
    """A folder's facts, its shape measured where no formula knows the family."""
    files = read_base_files(folder)
    shape = _shape_of(base, folder, home)
    if isinstance(shape, UnresolvedBase | FailedBase):
        return shape
    problem = find_weights_problem(folder)
    tensors = (read_tensor_shapes(folder) or None) if problem is None else None
    return ResolvedBase(
        name=located.name,
        shape=shape,
        weights="missing" if problem else "on_disk",
        weights_problem=str(problem) if problem else "",
        weights_bytes=files.weights_bytes,
        revision=files.commit,
        licence=files.licence,
        has_template=files.has_template,
        unmergeable=tuple(find_unmergeable(list_linears(shape), tensors)),
        limits=describe_limits(shape, tensors),
    )


def _shape_of(base: BaseRef, folder: Path, home: Home) -> ModelShape | UnresolvedBase | FailedBase:
    shape = read_shape(folder, base.name)
    if shape.exact:
        return shape
    kept = _read(measurement_file(shape, home))
    if kept is None:
        return UnresolvedBase(name=base.name, needs=f"The family '{shape.family}' has to be measured by a dry run.")
    if kept.failed is not None:
        return kept.failed.model_copy(update={"name": base.name})
    return shape.model_copy(update={"measured": kept.measured})


def _demo() -> ResolvedBase:
    """The embedded model before it was fetched; its shape is known."""
    return ResolvedBase(
        name=DEMO_BASE,
        shape=REFERENCE_SHAPES["SmolLM2-135M"].model_copy(update={"name": DEMO_BASE}),
        weights="to_download",
        weights_bytes=DEMO_DOWNLOAD_BYTES,
        licence="apache-2.0",
        has_template=True,
    )


# what the hub said, kept by name and revision


def _hub_folder(base: BaseRef, home: Home) -> Path:
    revision = f"@{folder_name(base.revision)}" if base.revision else ""
    return home.cache / "bases" / "hub" / f"{folder_name(base.name)}{revision}-{FORMAT}"


def _hub_config(base: BaseRef, home: Home) -> Path:
    return _hub_folder(base, home) / "config.json"


def _is_remote(base: BaseRef, home: Home) -> bool:
    return base.name != DEMO_BASE and locate_base(base.name, home.models).folder is None


def _from_hub_record(base: BaseRef, home: Home) -> BaseFacts:
    folder = _hub_folder(base, home)
    kept = _read(folder / "failure.json")
    if kept is not None and kept.failed is not None and kept.circumstances == circumstances():
        return kept.failed
    model = _read_hub_model(folder / "hub.json")
    if model is None or not (folder / "config.json").is_file():
        return UnresolvedBase(name=base.name, needs="The hub has to be asked for its config.json.")
    shape = _shape_of(base, folder, home)
    if isinstance(shape, UnresolvedBase | FailedBase):
        return shape
    return ResolvedBase(
        name=base.name,
        shape=shape,
        weights="to_download" if model.has_safetensors else "missing",
        weights_problem="" if model.has_safetensors else "This model has no safetensors weights on the hub.",
        weights_bytes=model.download_bytes,
        revision=model.commit,
        licence=model.licence,
        has_template=model.has_template,
        unmergeable=tuple(find_unmergeable(list_linears(shape))),
        limits=describe_limits(shape),
    )


def _ask_hub(base: BaseRef, home: Home) -> None:
    """Keeps what the hub says of the model, or why it does not."""
    folder = _hub_folder(base, home)
    try:
        model = look_up_model(base.name, base.revision)
        config = fetch_model_file(base.name, model.commit, "config.json")
    except StudioError as error:
        kept = _Kept(failed=_failed(base, error, "hub"), circumstances=circumstances())
        write_whole(folder / "failure.json", kept.model_dump_json().encode())
        return
    write_whole(folder / "hub.json", _HubFile(**asdict(model)).model_dump_json().encode())
    write_whole(folder / "config.json", config)
    (folder / "failure.json").unlink(missing_ok=True)


class _HubFile(BaseModel):
    """`HubModel` as it stands in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: str
    commit: str
    licence: str
    download_bytes: int
    has_safetensors: bool
    has_template: bool


def _read_hub_model(path: Path) -> HubModel | None:
    try:
        return HubModel(**_HubFile.model_validate_json(path.read_bytes()).model_dump())
    except (OSError, ValidationError):
        return None


# dry runs, kept by the hash of config.json


def _run_dry(base: BaseRef, home: Home, measure: Measure) -> None:
    """Keeps what a dry run finds, or why it fails."""
    folder = locate_base(base.name, home.models).folder or _hub_folder(base, home)
    shape = read_shape(folder, base.name)
    try:
        kept = _Kept(measured=measure(folder))
    except StudioError as error:
        kept = _Kept(failed=_failed(base, error, "dry_run"))
    write_whole(measurement_file(shape, home), kept.model_dump_json().encode())


def _forget(base: BaseRef, home: Home) -> None:
    """Removes all that is kept of a base."""
    try:
        folder = locate_base(base.name, home.models).folder or _hub_folder(base, home)
        measurement_file(read_shape(folder, base.name), home).unlink(missing_ok=True)
    except StudioError:
        pass  # what is wrong with it is wrong with its files, and no measurement is kept of those
    shutil.rmtree(_hub_folder(base, home), ignore_errors=True)


def _failed(base: BaseRef, error: StudioError, stage: Literal["files", "hub", "dry_run"]) -> FailedBase:
    first = error.problems[0]
    return FailedBase(
        name=base.name,
        stage=stage,
        message=first.message,
        hint=first.hint,
        where=first.where,
        field=first.field or "model.base",
    )


def _read(path: Path) -> _Kept | None:
    """What is kept; None where there is none or where it cannot be read."""
    try:
        return _Kept.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
