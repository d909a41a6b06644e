"""What keeps a base from loading, in a sentence with the file: libraries name neither the file nor what to do."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from qlora_studio.core.errors import StudioError
from qlora_studio.weight_files import find_weight_files

ASK_DOCTOR = "The files are not at fault: `qlora-studio doctor` says whether torch, driver and card go together."
LOAD_ERRORS = (OSError, ValueError, RuntimeError, MemoryError, KeyError, AttributeError, TypeError, SafetensorError)
"""What transformers and safetensors raise for files that are damaged, or that say what they do not know."""


def explain_fault(error: Exception, folder: Path) -> StudioError:
    """Why this base does not load."""
    if isinstance(error, SafetensorError):
        file = find_damaged(folder)
        return StudioError(
            f"The weights are damaged: {_first_line(error)}", "Download the model again.", where=str(file or folder)
        )
    if isinstance(error, KeyError | AttributeError | TypeError):  # a name that no table of transformers has
        named = f"'{error.args[0]}'" if isinstance(error, KeyError) and error.args else _first_line(error).rstrip(".")
        return StudioError(
            f"The model's config.json asks for something this version does not know: {named}.",
            "Choose another model, or update transformers.",
            where=str(folder / "config.json"),
        )
    hint = ASK_DOCTOR if _is_of_the_card(error) else "Download it again."
    return StudioError(f"The model cannot be loaded: {_first_line(error)}", hint, where=str(folder))


def _is_of_the_card(error: BaseException) -> bool:
    """Whether card, driver and torch do not go together, which no download mends."""
    return isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and "CUDA" in str(error))


def find_damaged(folder: Path) -> Path | None:
    """The first file of weights whose header cannot be read; None where all can."""
    for path in find_weight_files(folder).paths:
        try:
            with safe_open(path, framework="pt"):
                continue
        except (SafetensorError, OSError):
            return path
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."
