"""Where things lie: the person's home folder for the studio, and the files that travel with the program."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from qlora_studio.core.errors import StudioError
from qlora_studio.core.words import without_quotes

_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Home:
    """The data folder. Its rooms are made when something is first written into them."""

    root: Path

    @classmethod
    def find(cls) -> Home:
        """`QLORA_STUDIO_HOME`, else the platform's data folder. Creates it; a StudioError names it where that fails."""
        named = os.environ.get("QLORA_STUDIO_HOME")
        root = Path(named).expanduser() if named else platformdirs.user_data_path("qlora-studio", appauthor=False)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudioError(
                f"The studio's folder cannot be made: {error.strerror}.",
                "Set QLORA_STUDIO_HOME to a folder that can be written.",
                where=str(root),
            ) from None
        return cls(root.resolve())

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def exports(self) -> Path:
        return self.root / "exports"

    @property
    def chats(self) -> Path:
        return self.root / "chats"

    @property
    def presets(self) -> Path:
        return self.root / "presets"

    @property
    def cache(self) -> Path:
        return self.root / "cache"


def bundled(name: str) -> Path:
    """A folder that travels with the program (`presets`, `assets`), from the checkout or from the wheel."""
    for place in (_PACKAGE.parent / name, _PACKAGE / "bundled" / name):
        if place.is_dir() and (place.parent / "pyproject.toml").exists() | (place.parent.name == "bundled"):
            return place
    raise StudioError(
        f"The folder '{name}' of the program is missing.", "Install QLoRA Studio again.", where=str(_PACKAGE)
    )


def read_path(text: str) -> Path:
    """The path a person means: as it stands where it exists, else without quotes around it and with `~` resolved."""
    if text and Path(text).exists():
        return Path(text)
    try:
        return Path(without_quotes(text)).expanduser()
    except RuntimeError:  # ~ of somebody who is not known here
        return Path(without_quotes(text))
