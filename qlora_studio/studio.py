"""The verbs that command line and page share. Delegates to the rooms below and decides nothing itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from qlora_studio import presets
from qlora_studio.bases import HUB_ID, Base, find_base
from qlora_studio.core.bases import BaseFacts, BaseRef, FailedBase, ResolvedBase
from qlora_studio.core.chat import Sampling
from qlora_studio.core.config import DEMO_BASE, TrainConfig
from qlora_studio.core.conversation import Conversation
from qlora_studio.core.dataset import DatasetReport, Finding
from qlora_studio.core.doctor import Check
from qlora_studio.core.errors import StudioError
from qlora_studio.core.events import Event
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import GpuInfo, MemoryPlan, ModelShape
from qlora_studio.core.progress import Progress
from qlora_studio.data.cleaning import clean, remedies
from qlora_studio.data.cleaning.lint import check_findings
from qlora_studio.data.formats import registry as formats
from qlora_studio.data.sets import importer
from qlora_studio.data.sets import store as sets
from qlora_studio.home import Home, bundled
from qlora_studio.planner import bases, doctor, fit, tables
from qlora_studio.planner.machine import read_machine
from qlora_studio.presets import Preset
from qlora_studio.runs import folder, store, supervisor
from qlora_studio.runs.chat import ChatPipe
from qlora_studio.runs.folder import JobFolder
from qlora_studio.runs.store import RunView

ExportWhat = Literal["adapter", "merged"]
MergeKind = Literal["original", "as_chatted"]


@dataclass(frozen=True, slots=True)
class Demo:
    """The small data set that travels with the program, and what to ask before and after."""

    rows: Path
    pattern: str
    """A regular expression that an answer in the taught form matches."""
    prompts: tuple[str, ...]
    settings: Mapping[str, Any]
    """What suits it, by dotted field: the model is small, the rows are few, and one form is all it has to learn."""


DEMO_SETTINGS: dict[str, Any] = {
    "data.max_length": 256,
    "data.eval_share": 0.1,
    "optim.epochs": 2,
    "optim.batch_tokens": 768,
    "optim.learning_rate": 1e-3,
    "evaluation.every_steps": 12,
    "optim.optimizer": "adamw",
}


@dataclass(frozen=True, slots=True)
class HubChoice:
    """Which part of a hub's data set is meant."""

    subset: str | None = None
    split: str = "train"
    revision: str | None = None


class Studio:
    """One home and everything that can be done in it. Cheap to make; holds no model and no card."""

    def __init__(self, home: Home | None = None) -> None:
        self.home = home or Home.find()
        self.store = store.RunStore(self.home.runs)

    # data

    def import_data(
        self, source: str, *, hub: HubChoice | None = None, eval_file: str = "", **choices: Any
    ) -> DatasetReport:
        """Reads, converts, checks and keeps a file, a folder or, where no such path exists, a data set of the hub.

        `choices` are those of `data.importer.import_file`: name, format, columns, skip_bad, drop_overlap, replace.
        """
        path = Path(source).expanduser()
        if HUB_ID.fullmatch(source) and not path.exists():
            wanted = importer.HubSet(source, **asdict(hub or HubChoice()))
            return importer.import_hub(wanted, self.home.datasets, **choices)
        evaluation = Path(eval_file).expanduser() if eval_file else None
        return importer.import_file(path, self.home.datasets, eval_path=evaluation, **choices)

    def inspect(
        self, source: str, *, format: str = "auto", columns: Mapping[str, str] | None = None, rows: int = 20
    ) -> importer.Preview:
        """The guessed format, the first conversations and what is wrong among them; nothing is written."""
        return importer.preview_file(Path(source).expanduser(), format=format, columns=columns, rows=rows)

    def tokenise_file(self, source: str, config: TrainConfig, rows: int = 20) -> JobFolder:
        """Starts turning a file into tokens, for looking at it: it goes into the cache, not among the data sets."""
        looked_at = self.home.cache / "inspected"
        report = importer.import_file(
            Path(source).expanduser(), looked_at, format=config.data.format, columns=config.data.columns, skip_bad=True
        )
        return self.tokenise(config.replace({"data.sources": [{"name": report.name}]}), rows, looked_at)

    def tokenise(self, config: TrainConfig, rows: int = 20, datasets: Path | None = None) -> JobFolder:
        """Starts turning the data sets of a config into tokens: previews, lengths and findings are the job's result."""
        self.find_base(config.model.base)
        arguments = {"folder": str(datasets or self.home.datasets), "rows": rows}
        files = {"config.json": config.model_dump(mode="json")}
        return self._start(self.home.cache / "tokenised", "tokenise", arguments, files)

    def findings(self, name: str) -> tuple[Finding, ...]:
        """What is wrong with the rows of an imported set, as far as it shows without a tokenizer."""
        return clean.lint_dataset(self.home.datasets, name)

    def check_data(self, config: TrainConfig) -> None:
        """Raises a StudioError for data sets that do not exist and for error-level findings that nobody accepted."""
        if not config.data.sources:
            raise StudioError("There is no data to train on.", "Import a file first.", field="data.sources")
        for source in config.data.sources:
            check_findings(self.findings(source.name), config.data.accepted)

    def datasets(self) -> list[DatasetReport]:
        """All imported data sets by name."""
        return sets.list_datasets(self.home.datasets)

    def demo(self) -> Demo:
        values = json.loads((bundled("assets") / "demo" / "prompts.json").read_text(encoding="utf-8"))
        return Demo(bundled("assets") / "demo" / "pip.json", values["format"], tuple(values["prompts"]), DEMO_SETTINGS)

    # settings

    def presets(self, family: str) -> list[Preset]:
        return presets.list_presets(family, self.home)

    def with_presets(self, config: TrainConfig, names: Mapping[str, str]) -> TrainConfig:
        """The config with one preset of each named family laid over it: `{"rank": "light"}`."""
        return presets.apply_presets(
            config, [presets.find_preset(family, name, self.home) for family, name in names.items()]
        )

    def bases(self) -> list[str]:
        """Names of the bases on this machine, the demo model first."""
        kept = sorted(
            path.name.replace("--", "/", 1)
            for path in self.home.models.glob("[!.]*")
            if (path / "config.json").exists()
        )
        return [DEMO_BASE, *(name for name in kept if name != DEMO_BASE)]

    def find_base(self, name: str) -> Base:
        return find_base(name, self.home.models)

    def gpus(self) -> list[GpuInfo]:
        return list(self.machine().cards)

    def machine(self) -> Machine:
        """This computer at this moment."""
        return read_machine(self.home)

    def base_facts(self, config: TrainConfig) -> BaseFacts:
        """What is known of a config's base; files only, in milliseconds."""
        return bases.find_resolved(BaseRef(config.model.base, config.model.revision), self.home)

    def plan(self, config: TrainConfig, lengths: Sequence[int] | None = None) -> MemoryPlan:
        """What a run would take of this machine, as earlier runs have corrected it."""
        return fit.make_plan(config, self._shape(config), self.machine(), lengths)

    def plan_all_cards(self, config: TrainConfig) -> list[tables.Row]:
        """The plan of one model for every usual card, and for a CPU."""
        return tables.plan_all_cards(config, self._shape(config), self.machine())

    def plan_all_models(self, config: TrainConfig) -> list[tables.Row]:
        """The plan of every known model for this machine."""
        return tables.plan_all_models(config, self.machine())

    def _shape(self, config: TrainConfig) -> ModelShape:
        facts = self.base_facts(config)
        if isinstance(facts, ResolvedBase):
            return facts.shape
        if isinstance(facts, FailedBase):
            raise StudioError.of([facts.problem])
        raise StudioError(facts.needs, "Look the model up first.", field="model.base")

    def check_machine(self, config: TrainConfig | None = None) -> list[Check]:
        """What can be told of this machine at once: card, driver, memory, disk."""
        return doctor.check_machine(self.home.root, self.machine(), self._shape(config) if config else None)

    def check_engine(self) -> JobFolder:
        """Starts looking at what only torch can tell; the checks are the job's result."""
        return self._start(self.home.cache / "doctor", "doctor", {})

    # runs

    def start_training(self, config: TrainConfig) -> str:
        """Checks what can be checked here, makes the run's folder and starts its worker. Returns the run's name."""
        self.check_data(config)
        self.find_base(config.model.base)
        self.refuse_second_run()
        stem = Path(config.model.base).name.lower()
        title = config.saving.name.strip() or f"{stem}-r{config.lora.rank}-{time.strftime('%m%d-%H%M%S')}"
        job = folder.create_job(self.home.runs, "train", title, {}, {"config.json": config.model_dump(mode="json")})
        supervisor.start(job)
        return job.name

    def resume(self, name: str) -> None:
        """Starts a run's worker again: it goes on from the newest whole checkpoint, or from the start without one."""
        view = self.run(name)
        if view.state not in ("interrupted", "stopped", "failed"):
            raise StudioError(f"The run '{name}' is {view.state}.", "Only a run that did not finish can go on.")
        self.refuse_second_run()
        job = JobFolder(view.folder)
        supervisor.clear_requests(job)
        supervisor.start(job)

    def refuse_second_run(self) -> None:
        """One training at a time: two would not fit the plan of either."""
        for name in self.store.names():
            if supervisor.is_at_work(JobFolder(self.home.runs / name)):
                raise StudioError(f"The run '{name}' is still at work.", "Wait for it or stop it first.")

    def runs(self) -> list[RunView]:
        """All runs, newest first."""
        return self.store.list()

    def run(self, name: str) -> RunView:
        return self.store.open(name)

    def stop(self, name: str) -> None:
        """Asks a run to stop after its step; its adapter is saved."""
        supervisor.stop(folder.find_job(self.home.runs, name, "run"))

    def watch(self, name: str) -> Iterator[Event]:
        """All events of a run, past and coming, until it is over."""
        return supervisor.watch(folder.find_job(self.home.runs, name, "run"))

    # what a run is good for

    def evaluate(self, name: str, prompts: Sequence[str], sampling: Sampling) -> JobFolder:
        """Starts measuring a run: held-out loss and answers of base and adapter."""
        run = self._with_adapter(name)
        arguments = {"run": str(run), "prompts": list(prompts), "sampling": sampling.model_dump()}
        return self._start(run / "evaluations", "evaluate", arguments)

    def export(
        self, name: str, what: ExportWhat, to: str, kind: MergeKind = "original", prompts: Sequence[str] = ()
    ) -> JobFolder:
        """Starts writing the adapter or the merged model into a new or empty folder; the check asks the prompts."""
        run = self._with_adapter(name)
        target = Path(to).expanduser().absolute()
        if target.is_dir() and any(target.iterdir()):
            raise StudioError(
                "This folder is not empty, and an export never mixes with what is there.",
                "Name a new folder.",
                where=str(target),
            )
        if target.exists() and not target.is_dir():
            raise StudioError("This is a file.", "Name a new folder.", where=str(target))
        arguments = {"run": str(run), "what": what, "kind": kind, "to": str(target), "prompts": list(prompts)}
        return self._start(run / "exports", "export", arguments)

    def chat(self, name: str) -> ChatPipe:
        """A worker that answers as this run; the caller closes it."""
        run = self._with_adapter(name)
        return ChatPipe(folder.create_job(self.home.chats, "chat", name, {"run": str(run)}))

    def look(self, job: JobFolder) -> tuple[Progress, str, float | None]:
        """Where any job stands: progress, state, seconds."""
        return self.store.look(job)

    def watch_job(self, job: JobFolder) -> Iterator[Event]:
        return supervisor.watch(job)

    def stop_job(self, job: JobFolder) -> None:
        supervisor.stop(job)

    def _start(
        self, parent: Path, job: str, arguments: dict[str, Any], files: dict[str, Any] | None = None
    ) -> JobFolder:
        made = folder.create_job(parent, job, job, arguments, files)
        supervisor.start(made)
        return made

    def _with_adapter(self, name: str) -> Path:
        view = self.run(name)
        if not view.has_adapter:
            raise StudioError(f"The run '{name}' has saved no adapter.", "Wait until it ends, or choose another run.")
        return view.folder

    # what the page asks beside these

    @property
    def assets(self) -> Path:
        """The folder of styles, scripts and pictures."""
        return bundled("assets")

    def newest_run(self) -> RunView | None:
        """The newest run that can be read."""
        for name in self.store.names():
            with suppress(StudioError):
                return self.store.open(name)
        return None

    def conversations(self, name: str, rows: int) -> list[Conversation]:
        """The first rows of an imported set."""
        return list(islice(sets.load_conversations(self.home.datasets, name, "all"), rows))

    def format_parts(self, format: str) -> tuple[str, ...]:
        """The parts of a format that a column map may name; none for a format there is not."""
        return formats.FORMATS[format].parts if format in formats.FORMATS else ()

    def mend(self, name: str, names: Sequence[str]) -> DatasetReport:
        """Changes an imported set by these remedies, whole or not at all."""
        return clean.apply_remedies(self.home.datasets, name, names)

    def remedy_titles(self) -> dict[str, str]:
        """What each remedy does, in a few words, by name."""
        return {name: remedy.title for name, remedy in remedies.REMEDIES.items()}

    def jobs_of(self, name: str, kind: Literal["exports", "evaluations"]) -> list[JobFolder]:
        """What was started for a run, the newest first."""
        files = (self.run(name).folder / kind).glob("[!.]*/job.json")
        return [JobFolder(path.parent) for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)]

    def export_bytes(self, name: str) -> tuple[int, int | None]:
        """How large a run's adapter is, and about how large its merged model; None while its base is not on this machine."""
        view = self.run(name)
        base = self.find_base(view.config.model.base).folder
        adapter = sum(path.stat().st_size for path in (view.folder / "adapter").glob("*") if path.is_file())
        return adapter, sum(path.stat().st_size for path in base.glob("*.safetensors")) if base else None
