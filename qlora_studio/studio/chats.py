"""Chats with a run's base and adapter."""

from __future__ import annotations

from qlora_studio.core.chat import Chat
from qlora_studio.core.jobs import ChatJobRequest
from qlora_studio.home import Home
from qlora_studio.runs.chat import ChatPipe
from qlora_studio.runs.folder import create_job
from qlora_studio.studio.jobs import Jobs
from qlora_studio.studio.runs import Runs


class Chats:
    """The chats of a home."""

    def __init__(self, home: Home, jobs: Jobs, runs: Runs) -> None:
        self.home, self.jobs, self.runs = home, jobs, runs

    def open(self, name: str, checkpoint: str = "") -> Chat:
        """A worker that answers as this run, or as a checkpoint of it, and as its base; the caller closes it."""
        run = self.runs.with_weights(name, checkpoint)
        job = create_job(self.home.chats, name, ChatJobRequest(run=run.folder, checkpoint=checkpoint))
        return ChatPipe(job, card=self.jobs.card_of(run.config.memory.card))
