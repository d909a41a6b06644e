"""A tab of the browser as the server sees it, and a studio whose chat answers from a table. Everything else is real."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

from qlora_studio.core.chat import ChatPiece, ChatRequest
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.progress import JobView, Progress, State
from qlora_studio.core.runs import RunView
from qlora_studio.home import Home
from qlora_studio.studio import Studio
from qlora_studio.ui.fields import SETTINGS, element
from qlora_studio.ui.server import settings
from qlora_studio.ui.server.settings import Control
from qlora_studio.ui.server.sync import Page
from qlora_studio.ui.server.view import View
from qlora_studio.ui.server.workspace import Workspace


class FakePipe:
    """Answers `<side>: <question>`, word by word, as far as `may_go` lets it."""

    def __init__(self) -> None:
        self.lives = True
        self.requests: list[ChatRequest] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.stopped = False
        self.breaks = False
        self.pauses_at = ""
        """The side that waits for `may_go`; empty for both."""

    def ask(self, request: ChatRequest) -> Iterator[ChatPiece]:
        self.requests.append(request)
        if self.breaks:
            raise StudioError("The chat worker has ended.", "Open the chat again.")
        words = f"{request.side}: {request.turns[-1].content}".split()
        for number in range(1, len(words) + 1):
            yield ChatPiece(text=" ".join(words[:number]), tokens=number)
            if request.side.startswith(self.pauses_at):
                self.may_go.wait(5)
            if self.stopped:
                words = words[:number]
                break
        yield ChatPiece(text=" ".join(words), done=True, tokens=len(words), tokens_per_second=9.0, prompt="<exact>")

    def stop(self) -> None:
        self.stopped = True
        self.may_go.set()

    def close(self) -> None:
        self.lives = False


def make_view(name: str, folder: Path, progress: Progress, state: State, *, created: float = 0.0) -> RunView:
    """A run as a face sees it, without a folder behind it."""
    return RunView(name, name, created, TrainConfig(), JobView(state, progress, 62.0), folder, has_adapter=True)


class StudioWithChat(Studio):
    """Runs of any name exist and can be talked to."""

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self.pipes: list[FakePipe] = []
        done = Progress(state="finished")
        self.runs.open = lambda name: make_view(name, home.root, done, "finished")  # type: ignore[method-assign]
        self.chats.open = self._open_chat  # type: ignore[method-assign, assignment]

    def _open_chat(self, name: str, checkpoint: str = "") -> FakePipe:
        self.pipes.append(FakePipe())
        return self.pipes[-1]


class CurrentWorkspace:
    """Whichever workspace the tab that was made last looks at: the page is built once for all tests over this."""

    workspace: Workspace

    def __getattr__(self, name: str) -> Any:
        return getattr(self.workspace, name)


CURRENT = CurrentWorkspace()


@cache
def assembled_page() -> tuple[Any, Page]:
    """The page as the program builds it. One for all tabs, as in the program: what differs is in their views."""
    from qlora_studio.ui.app import assemble

    return assemble(CURRENT)  # type: ignore[arg-type]


class Tab:
    """What one tab of the browser has been told to show, by the id of each element."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = CURRENT.workspace = workspace
        self.blocks, self.page = assembled_page()
        self.view = View()
        self.updated: list[str] = []
        """Ids of what the last look changed."""
        self.props: dict[str, dict[str, Any]] = {}
        self.look()

    def look(self) -> Tab:
        """As the clock does."""
        self.workspace.forget_world()
        return self.take(self.page.follow(self.view))

    def take(self, updates: Mapping[Any, Any]) -> Tab:
        self.updated = [component.elem_id for component in updates]
        for component, update in updates.items():
            is_update = isinstance(update, dict) and update.get("__type__") == "update"
            self.props.setdefault(component.elem_id, {}).update(update if is_update else {"value": update})
        return self

    def value(self, element: str) -> Any:
        """What an element shows now."""
        return self.props[element].get("value")

    def words(self, element: str) -> str:
        """The text a reader sees in an element."""
        return words(str(self.value(element)))

    def control(self, dotted: str) -> Control:
        """The control of a setting."""
        return next(one for one in self.controls if one.setting.dotted == dotted)

    @property
    def controls(self) -> list[Control]:
        """Every setting of the page with its component."""
        elements = {block.elem_id: block for block in self.blocks.blocks.values()}
        return [Control(setting, elements[element(setting.dotted)]) for setting in SETTINGS]

    def type(self, dotted: str, text: Any) -> Tab:
        """A person types into a setting, and the page follows."""
        settings.take(self.workspace, self.view, self.control(dotted), text)
        return self.look()


def words(html: str) -> str:
    """What a reader sees."""
    return re.sub(r"[ \n]+", " ", unescape(re.sub(r"<[^>]+>", " ", html))).strip()
