"""A studio whose chat answers from a table, for tests of what the page does with answers. Everything else is real."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from qlora_studio.core.chat import ChatPiece, ChatRequest
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.progress import JobView, Progress, State
from qlora_studio.core.runs import RunView
from qlora_studio.home import Home
from qlora_studio.studio import Studio


class FakePipe:
    """Answers `<side>: <question>`, word by word, as far as `may_go` lets it."""

    def __init__(self) -> None:
        self.lives = True
        self.asked: list[ChatRequest] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.stopped = False
        self.breaks = False

    def ask(self, request: ChatRequest) -> Iterator[ChatPiece]:
        self.asked.append(request)
        if self.breaks:
            raise StudioError("The chat worker has ended.", "Open the chat again.")
        words = f"{request.side}: {request.turns[-1].content}".split()
        for number in range(1, len(words) + 1):
            yield ChatPiece(text=" ".join(words[:number]), tokens=number)
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

    def _open_chat(self, name: str) -> FakePipe:
        self.pipes.append(FakePipe())
        return self.pipes[-1]
