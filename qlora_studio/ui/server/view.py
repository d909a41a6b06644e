"""What one tab of the browser looks at, and what it already shows. Lost with the tab; nothing of it is shared."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from qlora_studio.core.conversation import Conversation
from qlora_studio.core.dataset import FormatGuess
from qlora_studio.core.errors import Problem
from qlora_studio.core.jobs import JobRef, PushTo
from qlora_studio.core.series import Along


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """Rows that were opened but not imported yet."""

    source: str
    format: str
    """What was chosen; `auto` leaves it to the rows."""
    hub: bool = False
    guess: FormatGuess | None = None
    """None where the rows cannot be read like this."""
    names: tuple[str, ...] = ()
    """Their columns."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The column mapping: part to column."""
    conversations: tuple[Conversation, ...] = ()
    problems: tuple[Problem, ...] = ()
    """What is wrong with single rows among the first."""
    refused: tuple[str, ...] = ()
    """Why it cannot be imported as it is, in sentences."""

    @property
    def format_in_use(self) -> str:
        """The format chosen, else the one found; empty where none is known."""
        return self.format if self.format != "auto" else self.guess.format if self.guess else ""

    @property
    def can_be_imported(self) -> bool:
        return self.hub or self.guess is not None


class View:
    """One tab. Not a dataclass: Gradio would take one apart to send it to the browser."""

    def __init__(self) -> None:
        self.opened: OpenedSource | None = None
        self.run: str | None = None
        """The run shown whole on the Runs page; the newest where none was picked."""
        self.deleting: str | None = None
        """The run whose deletion waits for a second word."""
        self.to_delete: dict[str, str | None] = {}
        """What is chosen in each list of things that can be deleted."""
        self.deleted_next: dict[str, str | None] = {}
        """What waits there for a second word."""
        self.tag: str | None = None
        """Whose runs' results are shown; the first tag where none was chosen."""
        self.compared: tuple[str, ...] | None = None
        """Runs whose curves are compared; the newest where none were picked."""
        self.compared_loss = "train"
        """`train` or `evaluation`."""
        self.compared_along: Along = "step"
        self.export_run: str | None = None
        self.export_weights = ""
        """Which weights of it; empty for its adapter."""
        self.export_what = "merged"
        """What would be exported: the name of a kind."""
        self.export_merge: str | None = None
        """Which weights take the adapter, by name; None where it is left to what suits the run."""
        self.export_gguf = "Q4_K_M"
        self.export_importance: bool | None = None
        """Whether a GGUF file's blocks are fitted by what training rows show; None where it is left to what suits the run."""
        self.export_parts: tuple[str, ...] = ("adapter", "merged", "gguf")
        """What a pack holds."""
        self.export_folder: str | None = None
        """What was typed as its folder; None where one is offered."""
        self.push_to: PushTo = "lmstudio"
        """Where a finished export would be handed on to."""
        self.push_job: JobRef | None = None
        """The newest job that hands one on."""
        self.formatted = False
        """Whether answers of the chat have their Markdown laid out."""
        self.hidden = False
        """Whether the tab is in the background."""
        self.shown: dict[str, int] = {}
        """What the page already shows: a mark for each slot."""
        self.sent: dict[str, float] = {}
        """When each slot was last sent, for those that are not confirmed yet."""
        self.lock = threading.Lock()
        """Held while the page is told what changed: two events at once must not tell it in the wrong order."""

    def __deepcopy__(self, memo: object) -> View:
        """Each tab begins with a view of its own; Gradio copies the one it was given."""
        return View()
