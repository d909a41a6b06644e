"""The job `chat`: requests come as JSON lines on standard input, pieces of answers go out as JSON lines."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from typing import IO

from qlora_studio.core import events as ev
from qlora_studio.core.chat import CHAT_MESSAGES, ChatPiece, ChatRequest, StopAnswer
from qlora_studio.core.conversation import Turn
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import ChatJobRequest, ChatReport
from qlora_studio.engine.load import prepare_answers
from qlora_studio.engine.oom import is_out_of_memory
from qlora_studio.runs.folder import JobFolder
from qlora_studio.worker.context import Context
from qlora_studio.worker.loaded_run import LoadedRun, open_run


def run(context: Context) -> ev.Event:
    out = _take_stdout()
    try:
        job = context.request(ChatJobRequest)
        live = open_run(context, JobFolder(job.run), job.checkpoint)
    except StudioError as error:
        _send(out, ChatPiece(error=error.message, hint=error.hint))
        raise
    prepare_answers(live.model, live.device)
    context.phase("ready")
    requests: queue.Queue[ChatRequest | None] = queue.Queue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(requests, stop), daemon=True).start()
    while (request := requests.get()) is not None:
        if not _tried(live, request, stop, out):
            live.device.accelerator.release()  # outside the handler, so that what the failed answer held is gone
            if not _tried(live, request, stop, out):
                hint = "Start a new chat, shorten it, or allow fewer new tokens."
                _send(out, ChatPiece(error="There is not enough memory for this answer.", hint=hint))
    return ev.Finished(report=ChatReport())


def _tried(live: LoadedRun, request: ChatRequest, stop: threading.Event, out: IO[str]) -> bool:
    """Answers, or says what is wrong with the request. False where memory ran out."""
    try:
        _answer(live, request, stop, out)
    except StudioError as error:
        _send(out, ChatPiece(error=error.message, hint=error.hint))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _answer(live: LoadedRun, request: ChatRequest, stop: threading.Event, out: IO[str]) -> None:
    turns = [Turn(turn.role, turn.content) for turn in request.turns]
    begun, count, text = time.monotonic(), 0, ""
    for text in live.answer(turns, request.side, request.sampling, stop.is_set):
        count += 1
        _send(out, ChatPiece(text=text, tokens=count))
    seconds = max(time.monotonic() - begun, 1e-9)
    prompt = live.tokenizer.decode(live.prompt(turns))
    _send(out, ChatPiece(text=text, done=True, tokens=count, tokens_per_second=count / seconds, prompt=prompt))


def _listen(requests: queue.Queue[ChatRequest | None], stop: threading.Event) -> None:
    """Reads standard input for as long as the parent lives; its end is the end of the chat."""
    for line in sys.stdin:
        if not line.strip():
            continue
        message = CHAT_MESSAGES.validate_json(line)
        if isinstance(message, StopAnswer):
            stop.set()
        else:
            stop.clear()  # here and not when the answer begins: a stop that follows at once must not be lost
            requests.put(message)
    requests.put(None)


def _take_stdout() -> IO[str]:
    """Standard output for the answers alone: what libraries print goes to the log."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _send(out: IO[str], piece: ChatPiece) -> None:
    out.write(piece.model_dump_json() + "\n")
    out.flush()
