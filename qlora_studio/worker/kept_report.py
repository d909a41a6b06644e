"""The report of a `tokenise` job, kept: asked again about the same rows, not even the tokenizer's libraries are imported."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from qlora_studio import __version__
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.jobs import TokeniseReport, TokeniseRequest
from qlora_studio.data.sets.token_cache import rows_key

KEPT = 40
"""Reports that are kept; the oldest go first."""
SUFFIXES = {".json", ".jinja", ".model", ".txt", ".tiktoken", ".vocab"}
"""Of the files that decide a tokenizer: everything beside the weights that is no prose."""
LIBRARIES = ("transformers", "tokenizers")


@dataclass(frozen=True, slots=True)
class KeptReport:
    """Where the report of these rows lies, or would."""

    file: Path

    @classmethod
    def of(cls, request: TokeniseRequest, config: TrainConfig, base: Path, cache: Path) -> KeptReport:
        """Named by all that decides it: rows, choices, number of previews, the base's small files, versions."""
        digest = hashlib.sha256(f"{config.model.template}|{request.previews}|{__version__}".encode())
        for library in LIBRARIES:
            digest.update(f"|{library} {version(library)}".encode())
        for path in sorted([*base.iterdir(), *base.glob("additional_chat_templates/*")]):
            if path.suffix in SUFFIXES and path.is_file():
                digest.update(f"|{path.name}|".encode() + hashlib.sha256(path.read_bytes()).digest())
        key = rows_key(request.datasets, config.data, config.optim.seed, digest.hexdigest())
        return cls(cache / "token-reports" / f"{key}.json")

    def read(self) -> TokeniseReport | None:
        """The report; None where there is none, or where it is damaged."""
        with suppress(OSError, ValueError):
            return TokeniseReport.model_validate_json(self.file.read_bytes())
        return None

    def write(self, report: TokeniseReport) -> None:
        """Keeps the report; a full disk costs no more than the time that it would have saved."""
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            stage = self.file.with_suffix(".part")
            stage.write_text(report.model_dump_json(), encoding="utf-8")
            stage.replace(self.file)
            newest_first = sorted(self.file.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in newest_first[KEPT:]:
                path.unlink()
