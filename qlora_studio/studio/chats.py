"""Chats with a run's base and adapter."""

from __future__ import annotations

from qlora_studio.core.chat import Chat
from qlora_studio.core.jobs import ChatJobRequest
from qlora_studio.home import Home
from qlora_studio.runs.chat import ChatPipe
from qlora_studio.runs.folder import create_job
from qlora_studio.studio.runs import Runs


class Chats:
    """The chats of a home."""

    def __init__(self, home: Home, runs: Runs) -> None:
        self.home, self.runs = home, runs

    def open(self, name: str) -> Chat:
        """A worker that answers as this run and as its base; the caller closes it."""
        run = self.runs.with_adapter(name).folder
        return ChatPipe(create_job(self.home.chats, name, ChatJobRequest(run=run)))
