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
from qlora_studio.ui.views.chat import Message

IDLE_SECONDS = 600
"""An idle worker is closed after this long: it holds the memory that a run would want."""
SIDES: tuple[Side, ...] = ("base", "tuned")
FORGOTTEN = "not part of the conversation"
BUSY = StudioError("An answer is being written.", "Wait for it, or stop it.")


@dataclass(slots=True)
class Answer:
    """What one side says to one question."""

    text: str = ""
    begun: bool = False
    done: bool = False
    """Whether it came to an end, be it by being stopped."""
    cut: bool = False
    """Whether a person stopped it."""
    tokens: int = 0
    tokens_per_second: float = 0.0
    prompt: str = ""
    """The exact text the model was given."""


@dataclass(slots=True)
class Exchange:
    """One question and the answers of the sides that were asked."""

    question: str
    answers: dict[Side, Answer]
    ended: bool = False
    """Whether nothing more will come of it."""

    @property
    def remembered(self) -> bool:
        """Whether the conversation goes on from here: for every side that was asked, or for none of them.

        Else one side would know of a question that the other never answered, and they could not be compared.
        """
        return all(answer.done for answer in self.answers.values())


@dataclass(slots=True)
class History:
    """A conversation with both sides."""

    system: str = ""
    exchanges: list[Exchange] = field(default_factory=list)

    def turns(self, side: Side) -> tuple[ChatTurn, ...]:
        """What a side has been told and has said, without what is not remembered."""
        kept = [one for one in self.exchanges if side in one.answers and one.remembered]
        turns = [
            turn
            for one in kept
            for turn in (
                ChatTurn(role="user", content=one.question),
                ChatTurn(role="assistant", content=one.answers[side].text),
            )
        ]
        return (*((ChatTurn(role="system", content=self.system),) if self.system else ()), *turns)

    def messages(self, side: Side) -> list[Message]:
        """What the page shows of one side: everything, with a note on what is not remembered."""
        shown: list[Message] = []
        for one in self.exchanges:
            if (answer := one.answers.get(side)) is None:
                continue
            forgotten = one.ended and not one.remembered
            if answer.begun:
                note = "; ".join([*(["stopped"] if answer.cut else []), *([FORGOTTEN] if forgotten else [])])
                growing = not answer.done and not one.ended
                shown += [Message("user", one.question), Message("assistant", answer.text, note, growing)]
            else:
                shown.append(Message("user", one.question, f"not answered; {FORGOTTEN}" if forgotten else ""))
        return shown

    def last(self, side: Side) -> Answer:
        """The newest answer of a side; an empty one before the first."""
        return next((one.answers[side] for one in reversed(self.exchanges) if side in one.answers), Answer())


class ChatSession:
    """The conversation on the Chat page, shared by every tab: there is memory for one model at a time."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.run: str | None = None
        self.checkpoint = ""
        """Which weights of the run answer; empty for its adapter."""
        self.base = ""
        """The name of the run's base."""
        self.history = History()
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

    @property
    def loading(self) -> bool:
        """Whether an answer is waited for of which nothing has come yet."""
        return self.busy and not any(one.begun and not one.done for one in self._newest().values())

    def ask(self, run: str, message: str, system: str, sides: tuple[Side, ...], sampling: Sampling) -> None:
        """Sends a message to these sides, one after the other, and returns at once. Raises a StudioError."""
        with self.lock:
            if self.busy:
                raise BUSY
            self._turn_to(run, self.checkpoint if run == self.run else "")
            if self.pipe is None or not self.pipe.lives:
                self.pipe = self.studio.chats.open(run, self.checkpoint)
            self.error, self.stopping = None, False
            if not any(one.remembered for one in self.history.exchanges):
                self.history.system = system
            self.history.exchanges.append(Exchange(message, {side: Answer() for side in sides}))
            self.thread = threading.Thread(target=self._answer, args=(self.pipe, sampling), daemon=True, name="chat")
            self.thread.start()
            self._touch()

    def choose(self, run: str | None, checkpoint: str = "") -> None:
        """Turns to another run, or to other weights of it; the conversation begins anew."""
        with self.lock:
            if (run, checkpoint) != (self.run, self.checkpoint) and not self.busy:
                self._turn_to(run, checkpoint)
                self._touch()

    def stop(self) -> None:
        """Ends the answer that is being written; what is there stays, and a side that waits is not asked."""
        self.stopping = True
        if self.pipe is not None:
            self.pipe.stop()
        self._touch()

    def clear(self) -> None:
        with self.lock:
            if self.busy:
                raise BUSY
            self.history, self.error = History(), None
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

    def _turn_to(self, run: str | None, checkpoint: str) -> None:
        if (run, checkpoint) == (self.run, self.checkpoint):
            return
        self.base = self.studio.runs.open(run).config.model.base.rstrip("/").rsplit("/", 1)[-1] if run else ""
        self._close_pipe()
        self.run, self.checkpoint, self.history = run, checkpoint, History()

    def _newest(self) -> dict[Side, Answer]:
        return self.history.exchanges[-1].answers if self.history.exchanges else {}

    def _answer(self, pipe: Chat, sampling: Sampling) -> None:
        """Asks every side of the newest exchange in turn; runs in a thread."""
        exchange = self.history.exchanges[-1]
        question = ChatTurn(role="user", content=exchange.question)
        try:
            for side, answer in exchange.answers.items():
                if self.stopping:
                    break
                turns = (*self.history.turns(side), question)
                for piece in pipe.ask(ChatRequest(turns=turns, side=side, sampling=sampling)):
                    self._grow(answer, piece)
                    if self.stopping:  # again: a worker that was still loading did not hear it
                        pipe.stop()
                answer.begun, answer.done, answer.cut = True, True, self.stopping
        except StudioError as error:
            self.error = error
        finally:
            exchange.ended = True
            self._touch()

    def _grow(self, answer: Answer, piece: ChatPiece) -> None:
        answer.begun, answer.text = True, piece.text
        answer.tokens, answer.tokens_per_second = piece.tokens, piece.tokens_per_second
        answer.prompt = piece.prompt or answer.prompt
        self._touch()

    def _close_pipe(self) -> None:
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None

    def _touch(self) -> None:
        self.version += 1
        self.used = time.monotonic()
