"""The draft: the settings of the next run. One for all tabs of the browser, and kept on disk."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_studio.core.config import RENAMED, TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.ui import fields

SCHEMA = 1


class Draft:
    """Values by dotted field, as JSON has them, and the preset last chosen of each family.

    It may be wrong for a while, as what is half typed is; `config` says so.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.values: dict[str, Any] = fields.defaults()
        self.presets: dict[str, str] = {}
        self.version = 0
        """Counts the changes, for whoever keeps something that follows from the values."""
        self.is_new = True
        """Whether nothing was kept on disk."""
        self._lock = threading.Lock()

    @classmethod
    def open(cls, file: Path) -> Draft:
        """The draft as it was left. Fields this version does not know, and a file that is none, are left out."""
        draft = cls(file)
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            values, presets = dict(kept["values"]), dict(kept["presets"])
            if kept["schema"] != SCHEMA:
                return draft
        except (OSError, ValueError, KeyError, TypeError):
            return draft
        renamed = {RENAMED.get(dotted, dotted): value for dotted, value in values.items()}
        draft.values |= {dotted: value for dotted, value in renamed.items() if dotted in draft.values}
        draft.presets = {str(family): str(name) for family, name in presets.items()}
        draft.is_new = False
        return draft

    def __getitem__(self, dotted: str) -> Any:
        return self.values[dotted]

    def change(self, values: Mapping[str, Any], presets: Mapping[str, str] | None = None) -> None:
        """Changes fields, by dotted name, and keeps the whole on disk. Raises a StudioError where that fails."""
        with self._lock:
            self.values = {**self.values, **values}
            self.presets = {**self.presets, **(presets or {})}
            self.version += 1
            self._save()

    def config(self) -> TrainConfig:
        """The draft as a config. Raises a StudioError that names every wrong field."""
        return fields.build_config(self.values)

    def _save(self) -> None:
        """Writes the file whole: temporary name, flush to disk, rename."""
        part = self.file.with_name(f".{self.file.name}.part")
        try:
            with part.open("w", encoding="utf-8") as file:
                json.dump({"schema": SCHEMA, "values": self.values, "presets": self.presets}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.file)
        except OSError as error:
            raise StudioError(
                f"The settings cannot be kept: {error.strerror}.",
                "Make room on the disk, or let the studio write there.",
                where=str(self.file),
            ) from None
