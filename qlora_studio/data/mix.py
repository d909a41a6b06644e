"""Several data sets as one run's rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from qlora_studio.core.config import DataConfig
from qlora_studio.core.conversation import Conversation
from qlora_studio.data.importer import load_conversations


def load_mixture(
    folder: Path, config: DataConfig, seed: int, split: Literal["train", "eval"]
) -> Iterator[Conversation]:
    """The rows of one side of all data sets of a run, one set after the other."""
    for source in config.sources:
        yield from load_conversations(folder, source.name, split, config.eval_share)
