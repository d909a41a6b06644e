"""Data: files looked at, imported, tokenised, checked, cleaned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from qlora_studio.bases import HUB_ID
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.conversation import Conversation
from qlora_studio.core.dataset import DatasetReport, Finding
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import JobRef, TokeniseRequest
from qlora_studio.data.cleaning import clean, steps
from qlora_studio.data.cleaning.lint import check_findings
from qlora_studio.data.formats import registry
from qlora_studio.data.sets import importer, store
from qlora_studio.home import Home, bundled, read_path
from qlora_studio.studio.bases import Bases
from qlora_studio.studio.jobs import Jobs

DEMO_SETTINGS: dict[str, Any] = {
    "data.max_length": 256,
    "data.eval_share": 0.1,
    "optim.epochs": 2,
    "optim.batch_tokens": 768,
    "evaluation.every_steps": 12,
    "optim.optimizer": "adamw",
}


@dataclass(frozen=True, slots=True)
class Demo:
    """The small data set that travels with the program, and what to ask before and after."""

    rows: Path
    pattern: str
    """A regular expression that an answer in the taught form matches."""
    prompts: tuple[str, ...]
    settings: Mapping[str, Any]
    """What suits it, by dotted field: the model is small, the rows are few, and one form is all it has to learn."""


@dataclass(frozen=True, slots=True)
class HubChoice:
    """Which part of a hub's data set is meant."""

    subset: str | None = None
    split: str = "train"
    revision: str | None = None


class Data:
    """The data sets of a home."""

    def __init__(self, home: Home, jobs: Jobs, bases: Bases) -> None:
        self.home, self.jobs, self.bases = home, jobs, bases

    def is_hub_id(self, source: str) -> bool:
        """Whether this names a data set of the hub: it looks like one, and no such path exists."""
        return HUB_ID.fullmatch(source) is not None and not read_path(source).exists()

    def import_rows(
        self, source: str, *, hub: HubChoice | None = None, eval_file: str = "", **choices: Any
    ) -> DatasetReport:
        """Reads, converts, checks and keeps a file, a folder or, where no such path exists, a data set of the hub.

        `choices` are those of `data.sets.importer.import_file`: name, format, columns, skip_bad, drop_overlap, replace.
        """
        if self.is_hub_id(source):
            wanted = importer.HubSet(source, **asdict(hub or HubChoice()))
            return importer.import_hub(wanted, self.home.datasets, **choices)
        evaluation = read_path(eval_file) if eval_file else None
        return importer.import_file(read_path(source), self.home.datasets, eval_path=evaluation, **choices)

    def inspect(
        self, source: str, *, format: str = "auto", columns: Mapping[str, str] | None = None, rows: int = 20
    ) -> importer.Preview:
        """The guessed format, the first conversations and what is wrong among them; nothing is written."""
        return importer.preview_file(read_path(source), format=format, columns=columns, rows=rows)

    def tokenise_file(self, source: str, config: TrainConfig, previews: int = 20) -> JobRef:
        """Starts turning a file into tokens, for looking at it: it goes into the cache, not among the data sets."""
        place = self.home.cache / "inspected"
        report = importer.import_file(
            read_path(source), place, format=config.data.format, columns=config.data.columns, skip_bad=True
        )
        return self.tokenise(config.replace({"data.sources": [{"name": report.name}]}), previews, place)

    def tokenise(self, config: TrainConfig, previews: int = 20, datasets: Path | None = None) -> JobRef:
        """Starts turning the data sets of a config into tokens; its report has counts, lengths, findings, previews."""
        self.bases.find(config.model.base)
        request = TokeniseRequest(datasets=datasets or self.home.datasets, previews=previews)
        return self.jobs.start(self.home.cache / "tokenised", request, {"config.json": config.model_dump(mode="json")})

    def findings(self, name: str) -> tuple[Finding, ...]:
        """What is wrong with the rows of an imported set, as far as it shows without a tokenizer."""
        return clean.lint_dataset(self.home.datasets, name)

    def check(self, config: TrainConfig) -> None:
        """Raises a StudioError for data sets that do not exist and for error-level findings that nobody accepted."""
        if not config.data.sources:
            raise StudioError("There is no data to train on.", "Import a file first.", field="data.sources")
        for source in config.data.sources:
            check_findings(self.findings(source.name), config.data.accepted)

    def sets(self) -> list[DatasetReport]:
        """All imported data sets by name."""
        return store.list_datasets(self.home.datasets)

    def conversations(self, name: str, rows: int) -> list[Conversation]:
        """The first rows of an imported set."""
        return list(islice(store.load_conversations(self.home.datasets, name, "all"), rows))

    def format_parts(self, format: str) -> tuple[str, ...]:
        """The parts of a format that a column mapping may name; none for a format there is not."""
        return registry.FORMATS[format].parts if format in registry.FORMATS else ()

    def clean(self, name: str, names: Sequence[str]) -> DatasetReport:
        """Changes an imported set by these steps, whole or not at all."""
        return clean.apply_steps(self.home.datasets, name, names)

    def remove(self, name: str) -> None:
        """Deletes an imported set."""
        store.remove_dataset(self.home.datasets, name)

    def remedy_titles(self) -> dict[str, str]:
        """What each cleaning step does, in a few words, by name."""
        return {name: step.title for name, step in steps.CLEANING_STEPS.items()}

    def demo(self) -> Demo:
        """The rows that travel with the program."""
        folder = bundled("assets") / "demo"
        values = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
        return Demo(folder / "pip.json", values["format"], tuple(values["prompts"]), DEMO_SETTINGS)
