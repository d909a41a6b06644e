"""The open chat: one worker at most, both conversations, and the answer that is being written.

The answer is read by a thread of its own, so a reloaded page finds it further along instead of cut.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from qlora_studio.core.chat import Chat, ChatPiece, ChatRequest, ChatTurn, Sampling, Side
from qlora_studio.core.errors import StudioError
from qlora_studio.studio import Studio

IDLE_SECONDS = 600
"""An idle worker is closed after this long: it holds the memory that a run would want."""
SIDES: tuple[Side, ...] = ("base", "tuned")


@dataclass(slots=True)
class Half:
    """One side of the comparison."""

    turns: list[ChatTurn] = field(default_factory=list)
    growing: str | None = None
    """The answer so far; None when nothing is being written."""
    prompt: str = ""
    """The exact text the model was last given."""
    tokens: int = 0
    tokens_per_second: float = 0.0

    def messages(self) -> list[dict[str, str]]:
        """What a chat component shows."""
        said = [{"role": turn.role, "content": turn.content} for turn in self.turns if turn.role != "system"]
        return said if self.growing is None else [*said, {"role": "assistant", "content": self.growing or "…"}]


class Talk:
    """What is said on the Chat page."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.run: str | None = None
        self.base = ""
        """The name of the run's base."""
        self.halves: dict[Side, Half] = {side: Half() for side in SIDES}
        self.pipe: Chat | None = None
        self.error: StudioError | None = None
        self.version = 0
        self.used = time.monotonic()
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        self.stopping = False

    @property
    def busy(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def ask(self, run: str, message: str, system: str, sides: tuple[Side, ...], sampling: Sampling) -> None:
        """Sends a message to these sides, one after the other, and returns at once. Raises a StudioError."""
        with self.lock:
            if self.busy:
                raise StudioError("An answer is being written.", "Wait for it, or stop it.")
            self._turn_to(run)
            if self.pipe is None or not self.pipe.lives:
                self.pipe = self.studio.chats.open(run)
            self.error, self.stopping = None, False
            for side in sides:
                half = self.halves[side]
                if system and not half.turns:
                    half.turns.append(ChatTurn(role="system", content=system))
                half.turns.append(ChatTurn(role="user", content=message))
            self.halves[sides[0]].growing = ""
            self.thread = threading.Thread(target=self._answer, args=(sides, sampling), daemon=True, name="chat")
            self.thread.start()
            self._touch()

    def choose(self, run: str | None) -> None:
        """Turns to another run; its conversation begins anew."""
        with self.lock:
            if run != self.run and not self.busy:
                self._turn_to(run)
                self._touch()

    def stop(self) -> None:
        """Ends the answer that is being written; what is there stays, and the other side is not asked."""
        self.stopping = True
        if self.pipe is not None:
            self.pipe.stop()

    def clear(self) -> None:
        with self.lock:
            if self.busy:
                raise StudioError("An answer is being written.", "Stop it first.")
            self.halves, self.error = {side: Half() for side in SIDES}, None
            self._touch()

    def close(self) -> None:
        """Ends the worker and gives its memory back; the conversation stays readable."""
        if self.busy:
            self.stop()
        with self.lock:
            self._close_pipe()

    def close_if_idle(self) -> None:
        if self.pipe is not None and not self.busy and time.monotonic() - self.used > IDLE_SECONDS:
            self.close()

    def _turn_to(self, run: str | None) -> None:
        if run == self.run:
            return
        self.base = self.studio.runs.open(run).config.model.base.rstrip("/").rsplit("/", 1)[-1] if run else ""
        self._close_pipe()
        self.run, self.halves = run, {side: Half() for side in SIDES}

    def _answer(self, sides: tuple[Side, ...], sampling: Sampling) -> None:
        pipe = self.pipe
        assert pipe is not None
        try:
            for side in sides:
                half = self.halves[side]
                if self.stopping:
                    half.turns.pop()  # a question that was never asked
                    continue
                half.growing = ""
                self._touch()
                for piece in pipe.ask(ChatRequest(turns=tuple(half.turns), side=side, sampling=sampling)):
                    self._grow(half, piece)
                    if self.stopping:  # again: a worker that was still loading did not hear it
                        pipe.stop()
                half.turns.append(ChatTurn(role="assistant", content=half.growing or ""))
                half.growing = None
        except StudioError as error:
            self.error = error
        finally:
            for half in self.halves.values():
                half.growing = None
                if half.turns and half.turns[-1].role == "user":  # not answered: it can be asked again
                    half.turns.pop()
            self._touch()

    def _grow(self, half: Half, piece: ChatPiece) -> None:
        half.growing = piece.text
        half.tokens, half.tokens_per_second = piece.tokens, piece.tokens_per_second
        if piece.prompt:
            half.prompt = piece.prompt
        self._touch()

    def _close_pipe(self) -> None:
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None

    def _touch(self) -> None:
        self.version += 1
        self.used = time.monotonic()
