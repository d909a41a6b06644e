"""What the page's process holds for all tabs: the studio, the draft of the next run, the chat, counted tokens.

Training, exports and data live on disk; losing this process loses an open chat, never a run or a setting.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from qlora_studio.core.bases import BaseFacts, ResolvedBase
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.dataset import DatasetReport
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.core.jobs import TokeniseReport
from qlora_studio.core.plan import MemoryPlan
from qlora_studio.core.readiness import DataFacts, Readiness
from qlora_studio.studio import Studio
from qlora_studio.ui import fields
from qlora_studio.ui.server.chat import ChatSession
from qlora_studio.ui.server.draft import Draft
from qlora_studio.ui.server.examination import Examination
from qlora_studio.ui.server.lookup import BaseLookup
from qlora_studio.ui.server.queue_watch import QueueWatch
from qlora_studio.ui.server.rate_search import RateFinder
from qlora_studio.ui.server.tokens import TokenCount
from qlora_studio.ui.server.world import World

COUNT_ROWS = 20_000
"""Sets of up to so many rows are tokenised by themselves whenever the settings say something else of their tokens."""
COUNT_SECONDS = 2.0
"""So long the settings have to stand still before that."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the draft amounts to."""

    readiness: Readiness | None
    """None where the settings themselves are wrong."""
    base: BaseFacts | None = None
    problems: tuple[Problem, ...] = ()
    """What is wrong with the settings."""

    @property
    def plan(self) -> MemoryPlan | None:
        return self.readiness.plan if self.readiness else None

    @property
    def blocks(self) -> tuple[Problem, ...]:
        """Why a run cannot start; an over-full plan is not among them."""
        return self.readiness.blocks if self.readiness else self.problems

    def problem_of(self, dotted: str) -> Problem | None:
        """What keeps a run from starting because of one field."""
        return next((problem for problem in self.blocks if problem.field == dotted), None)

    def chosen_for(self, dotted: str) -> str:
        """What is taken for a field that was left open; empty where nothing is settled yet."""
        return self.readiness.chosen.get(dotted, "") if self.readiness else ""

    def unusual_of(self, dotted: str) -> Problem | None:
        """What may be meant and rarely is."""
        unusual = self.readiness.unusual if self.readiness else ()
        return next((problem for problem in unusual if problem.field == dotted), None)


class Workspace:
    """One for the whole process."""

    def __init__(self, studio: Studio, draft: Draft) -> None:
        self.studio = studio
        self.draft = draft
        self.chat = ChatSession(studio)
        self.tokens = TokenCount(studio)
        self.examination = Examination(studio)
        self.lookup = BaseLookup(studio)
        self.rates = RateFinder(studio)
        self.queue_watch = QueueWatch(studio)
        self._still = (-1, 0.0)
        """The version of the draft, and since when it has been that."""
        self._counted_version = -1
        """The version of the draft whose tokens were last counted by themselves."""
        self._world: World | None = None
        self._outlook: Outlook | None = None
        self._outlook_of: object = None

    @classmethod
    def open(cls, studio: Studio) -> Workspace:
        """The workspace of a home: the draft as it was left, or one that suits this machine."""
        workspace = cls(studio, Draft.open(studio.home.root / "draft.json"))
        if workspace.draft.is_new:
            values = fields.flatten(studio.presets.default_config())
            names = list(workspace.world().datasets)
            sources = [{"name": names[0], "weight": 1.0}] if names else []
            workspace.draft.change({**values, "data.sources": sources}, studio.presets.defaults())
        return workspace

    def choose_preset(self, family: str, name: str) -> None:
        """Lays one preset over the draft. Raises a StudioError for a name there is not."""
        config = self.studio.presets.apply(self.draft.config(), {family: name})
        self.draft.change(fields.flatten(config), {family: name})

    def world(self) -> World:
        """The world at this tick."""
        if self._world is None or not self._world.is_fresh:
            self._world = World(self.studio)
        return self._world

    def forget_world(self) -> None:
        """Has the world read anew: something was done to it."""
        self._world = None

    def outlook(self, *, fresh: bool = False) -> Outlook:
        """What the draft as it stands amounts to; `fresh` asks the machine again what is free."""
        rows = [(report.name, report.rows) for report in self.chosen_sets()]
        basis = (self.draft.version, self.tokens.version, self.lookup.version, rows)
        if fresh or self._outlook is None or self._outlook_of != basis:
            self._outlook, self._outlook_of = self._make_outlook(), basis
        return self._outlook

    def chosen_sets(self) -> list[DatasetReport]:
        """The reports of the sets the next run learns from, in the order chosen."""
        known = self.world().datasets
        return [known[source["name"]] for source in self.draft["data.sources"] if source["name"] in known]

    def count_tokens(self) -> None:
        """Has the tokens of the chosen sets counted. Raises a StudioError where nothing is chosen."""
        if not self.draft["data.sources"]:
            raise StudioError("There is no data to count.", "Import a file, or use the demo rows.")
        self.tokens.start(self.draft.config())

    def counted(self) -> TokeniseReport | None:
        """What the token job found, where it was made for the draft as it stands."""
        config = self._config()
        return self.tokens.known_for(config) if config else None

    def settle(self) -> None:
        """Takes in what has ended by itself since the last look."""
        self.chat.close_if_idle()
        self.tokens.settle()
        self.examination.settle()
        self.lookup.settle()
        self.rates.settle()
        self.queue_watch.settle(self.world())
        self._count_if_still()

    def refuse_while_training(self, doing: str) -> None:
        if (run := self.world().training) is not None:
            raise StudioError(
                f"The run '{run.name}' is training and needs the memory for itself.",
                f"{doing} when it has ended, or stop it.",
            )

    def _config(self) -> TrainConfig | None:
        try:
            return self.draft.config()
        except StudioError:
            return None

    def _make_outlook(self) -> Outlook:
        try:
            config = self.draft.config()
        except StudioError as error:
            return Outlook(None, None, error.problems)
        base = self.lookup.facts(config.model)
        data = DataFacts(sum(report.rows for report in self.chosen_sets()), self.tokens.known_for(config))
        return Outlook(self.studio.plans.readiness(config, data), base)

    def _count_if_still(self) -> None:
        """Has the tokens counted that the draft as it stands would give, once nobody changes it any more."""
        if self.draft.version != self._still[0]:
            self._still = (self.draft.version, time.monotonic())
        if time.monotonic() - self._still[1] < COUNT_SECONDS or self._counted_version == self.draft.version:
            return
        rows = sum(report.rows for report in self.chosen_sets())
        config = self._config()
        idle = self.tokens.progress is None and self.world().training is None
        if config is None or not 0 < rows <= COUNT_ROWS or not idle or self.tokens.known_for(config) is not None:
            return
        if isinstance(self.outlook().base, ResolvedBase):
            self._counted_version = self.draft.version
            self.tokens.start(config)
