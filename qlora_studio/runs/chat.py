"""A conversation with a worker over its pipe: one request out, pieces of the answer back, stoppable in between."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator

from qlora_studio.core.chat import ChatPiece, ChatRequest, StopAnswer
from qlora_studio.core.errors import StudioError
from qlora_studio.runs.folder import JobFolder
from qlora_studio.runs.supervisor import detached, last_line, worker_command, worker_environment

CLOSE_SECONDS = 5
"""How long a worker may take to leave once nobody asks any more."""


class ChatPipe:
    """A chat worker. Closing it, or the end of this process, ends the worker and gives its memory back."""

    def __init__(self, folder: JobFolder, command: list[str] | None = None, *, card: str | None = None) -> None:
        """`command` is the worker's own, unless another program shall answer; `card` the UUID of the card it uses."""
        self.folder = folder
        self.busy = threading.Lock()
        with folder.log.open("ab") as log:
            self.process = subprocess.Popen(
                command or worker_command(folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=worker_environment(card),
                cwd=folder.path,
                **detached(),  # type: ignore[call-overload]
            )

    @property
    def lives(self) -> bool:
        return self.process.poll() is None

    def ask(self, request: ChatRequest) -> Iterator[ChatPiece]:
        """The answer as it grows; the last piece is `done`. Raises a StudioError for what went wrong in the worker.

        Who stops reading early stops the answer too: what is left of it never stands in the next one.
        """
        with self.busy:
            self._write(request)
            over = False
            try:
                for piece in self._pieces():
                    over = piece.done or bool(piece.error)
                    if piece.error:
                        raise StudioError(piece.error, piece.hint)
                    yield piece
                    if piece.done:
                        return
                raise self._ended()
            finally:
                if not over and self.lives:
                    self._write(StopAnswer())
                    next((piece for piece in self._pieces() if piece.done or piece.error), None)

    def _pieces(self) -> Iterator[ChatPiece]:
        """What the worker sends, until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield ChatPiece.model_validate_json(line)

    def _ended(self) -> StudioError:
        last = last_line(self.folder.log)
        return StudioError("The chat worker has ended.", f"Open the chat again. Its log says: {last}")

    def stop(self) -> None:
        """Ends the answer that is being written; what is there stays."""
        if self.lives and self.busy.locked():
            self._write(StopAnswer())

    def close(self) -> None:
        """Ends the worker and gives its memory back; one that is gone already is no trouble."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _write(self, message: ChatRequest | StopAnswer) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(message.model_dump_json().encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise self._ended() from None
