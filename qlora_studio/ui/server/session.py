"""What the page's process holds: the studio, the draft of the next run, what is being looked at, the chat.

Training, exports and data live on disk; losing this process loses a draft and an open chat, never a run.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.conversation import Conversation
from qlora_studio.core.dataset import DatasetReport, FormatGuess
from qlora_studio.core.doctor import Check
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.core.jobs import DoctorReport, JobRef, TokeniseReport
from qlora_studio.core.plan import MemoryPlan
from qlora_studio.core.runs import RunView
from qlora_studio.studio import Studio
from qlora_studio.ui import form
from qlora_studio.ui.server.chat import Talk
from qlora_studio.ui.server.machine import Machine, read_machine
from qlora_studio.ui.server.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Looked:
    """Rows that were opened but not imported yet."""

    source: str
    format: str
    """What was asked for; `auto` leaves it to the rows."""
    hub: bool = False
    guess: FormatGuess | None = None
    """None where the rows cannot be read like this."""
    names: tuple[str, ...] = ()
    """Their columns."""
    columns: dict[str, str] = field(default_factory=dict)
    """The column map: part to column."""
    conversations: tuple[Conversation, ...] = ()
    problems: tuple[Problem, ...] = ()
    """What is wrong with single rows among the first."""
    refused: list[str] = field(default_factory=list)
    """Why it cannot be imported as it is, in sentences."""

    @property
    def format_in_use(self) -> str:
        """The format asked for, else the one found; empty where none is known."""
        return self.format if self.format != "auto" else self.guess.format if self.guess else ""

    @property
    def can_be_tried(self) -> bool:
        return self.hub or self.guess is not None


@dataclass(slots=True)
class Desk:
    """One for the whole process: every tab of the browser looks at the same desk."""

    studio: Studio
    talk: Talk
    tokens: Tokens
    draft: dict[str, Any] = field(default_factory=form.defaults)
    presets: dict[str, str | None] = field(default_factory=dict)
    """The preset that was last chosen of each family."""
    looked: Looked | None = None
    version: int = 0
    """Counts the changes of everything above, for pages that follow them."""
    plan: MemoryPlan | None = None
    """Of the draft, as it was last made."""
    plan_problems: list[str] = field(default_factory=list)
    machine_checks: tuple[Check, ...] = ()
    engine_checks: tuple[Check, ...] = ()
    """What only torch can tell, once it was asked for."""
    examining: JobRef | None = None
    """The look at torch that is under way."""
    shown_run: str | None = None
    """The run the Runs page shows whole; the newest where none was picked."""
    export_run: str | None = None
    """The run the Export page is turned to."""
    export_what: str = "merged-original"
    """What it would export, by the name of its card."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, studio: Studio) -> Desk:
        desk = cls(studio, Talk(studio), Tokens(studio))
        for family, name in studio.presets.defaults().items():
            desk.choose_preset(family, name)
        names = [report.name for report in studio.data.sets()]
        if names:
            desk.draft["data.sources"] = [{"name": names[0], "weight": 1.0}]
        desk.make_plan()
        return desk

    def choose_preset(self, family: str, name: str) -> None:
        """Lays one preset over the draft. Raises a StudioError for a name there is not."""
        config = self.studio.presets.apply(form.build_config(self.draft), {family: name})
        with self.lock:
            self.draft.update(form.flatten(config))
            self.presets[family] = name
            self.version += 1

    def change(self, values: dict[str, Any]) -> None:
        """Changes fields of the draft, by dotted name."""
        with self.lock:
            self.draft.update(values)
            self.version += 1

    def look(self, looked: Looked | None) -> None:
        """Turns to a data file, or away from it."""
        with self.lock:
            self.looked = looked
            self.version += 1

    def config(self) -> TrainConfig:
        """The draft as a config. Raises a StudioError that names every wrong field."""
        return form.build_config(self.draft)

    def chosen_sets(self) -> list[DatasetReport]:
        """The reports of the sets the next run learns from, in the order chosen."""
        known = {report.name: report for report in self.studio.data.sets()}
        return [known[source["name"]] for source in self.draft["data.sources"] if source["name"] in known]

    def make_plan(self) -> None:
        """Makes the plan of the draft, or keeps the sentences that say why there is none."""
        try:
            config = self.config()
            self.plan, self.plan_problems = self.studio.plans.make(config, self.tokens.lengths_for(config)), []
        except StudioError as error:
            self.plan, self.plan_problems = None, [str(problem) for problem in error.problems]
        self.version += 1

    def count_tokens(self) -> None:
        """Has the tokens of the chosen sets counted. Raises a StudioError where nothing is chosen."""
        if not self.draft["data.sources"]:
            raise StudioError("There is no data to count.", "Import a file, or use the demo rows.")
        self.tokens.start(self.config())
        self.version += 1

    def tokens_known(self) -> TokeniseReport | None:
        """What the token job found, where it was made for the draft as it stands."""
        try:
            return self.tokens.known_for(self.config())
        except StudioError:
            return None

    def standing_errors(self) -> list[str]:
        """Findings that keep the next run from starting, by name: errors that nobody accepted."""
        report = self.tokens_known()
        errors = [finding.name for finding in report.findings if finding.severity == "error"] if report else []
        return [name for name in errors if name not in self.draft["data.accepted"]]

    def settle(self) -> None:
        """Takes in what has ended by itself since the last look."""
        self.talk.close_if_idle()
        if self.tokens.settle():
            self.make_plan()
        self._settle_examination()

    def examine(self) -> None:
        """Starts looking at torch and its kernels in a process of its own, unless that is under way."""
        if self.examining is None:
            self.engine_checks = ()
            self.examining = self.studio.machine.check_engine()

    def _settle_examination(self) -> None:
        if self.examining is None:
            return
        job = self.studio.jobs.look(self.examining)
        if job.at_work:
            return
        self.examining = None
        report = job.progress.report
        if isinstance(report, DoctorReport):
            self.engine_checks = report.checks
        else:
            says = job.progress.message or "The process that looks at torch exited unexpectedly."
            self.engine_checks = (Check(name="torch", state="bad", says=says, remedy=job.progress.hint),)

    def current_run(self) -> RunView | None:
        """The run the sidebar shows: the newest, which is the one at work where there is one."""
        newest = self.studio.runs.newest()
        return self.studio.runs.open(newest.name) if newest and not newest.unreadable else None

    def running(self) -> str | None:
        """The name of the run that is at work."""
        run = self.current_run()
        return run.name if run is not None and run.at_work else None

    def refuse_while_training(self, doing: str) -> None:
        if name := self.running():
            raise StudioError(
                f"The run '{name}' is at work and needs the memory for itself.",
                f"{doing} when it has ended, or stop it.",
            )

    def machine(self) -> Machine:
        return read_machine(self.studio.home.root)
