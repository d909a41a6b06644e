"""Shapes of architectures that no formula knows: measured once by a dry run in a child, kept by the config's hash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pydantic import ValidationError

from qlora_studio.core.plan import MeasuredShape, ModelShape
from qlora_studio.planner.shape import find_config, read_shape

SECONDS = 180
"""A dry run takes 5 to 15 seconds; one that takes this long is given up."""
FORMAT = "v1"
"""Part of a result's file name; raised whenever results of before mean something else."""
PACKAGE_PARENT = Path(__file__).resolve().parents[2]


def read_measured_shape(base: str, models_folder: Path, cache: Path) -> ModelShape:
    """A model's shape as `read_shape` gives it, with a dry run's result where its family is not known by formula.

    The first time this takes seconds. Where the dry run fails, the shape comes without it and counts like a Llama.
    """
    shape = read_shape(base, models_folder)
    if shape.exact:
        return shape
    kept = cache / "dry-runs" / f"{shape.config_hash}-{FORMAT}.json"
    measured = _read(kept)
    if measured is None and (config := find_config(base, models_folder)) is not None:
        measured = _measure(config, kept)
    return shape.model_copy(update={"measured": measured})


def _read(kept: Path) -> MeasuredShape | None:
    """A result of before; None where there is none or where it cannot be read."""
    try:
        return MeasuredShape.model_validate_json(kept.read_bytes())
    except (OSError, ValidationError):
        return None


def _measure(config: Path, kept: Path) -> MeasuredShape | None:
    """Runs the child; its result, or None where it failed or took too long."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": "",
        "GOMP_SPINCOUNT": "0",
        "HF_HUB_OFFLINE": "1",
        "USE_HUB_KERNELS": "0",
    }
    command = [sys.executable, "-m", "qlora_studio.engine.dry_run", str(config), str(kept)]
    try:
        subprocess.run(command, env=environment, capture_output=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return _read(kept)
