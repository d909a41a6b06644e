"""One side of a run's rows in stretches, which several processes tokenise: each takes the next that nobody has.

The processes are forks of this one, so that they begin with all it has imported. They own nothing and report nothing: a
stretch is there when its account is. One whose process was killed or met an error is made here once more, where an error
goes its usual way. What comes out does not depend on who made it: the parts are put together in the order of the rows.
"""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import shutil
import signal
import struct
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from qlora_studio.data.cleaning.row_findings import TokenFindings
from qlora_studio.data.render.layout import LayoutMistaken
from qlora_studio.data.render.prompt import stop_ids
from qlora_studio.data.render.tokenizer import EncodingMistaken
from qlora_studio.data.sets.canonical import StoredRow
from qlora_studio.data.sets.prepare import (
    Prepared,
    Progress,
    RowsRequest,
    Split,
    Watch,
    batches_without,
    check_rows,
    count_side,
    held_out_elsewhere,
    read_side,
)
from qlora_studio.data.sets.row_tokeniser import Counts, RowTokeniser, make_prepared
from qlora_studio.data.sets.sides import Sides
from qlora_studio.data.sets.token_table import PartNames, TokenWriter

LEAST_ROWS = 8192
"""Fewer are done by one process as soon."""
STRETCH_ROWS = 2048
MOST_STRETCHES = 4096
"""Their numbers lie in a pipe, which holds 64 KiB."""
LOOK_SECONDS = 0.02
MISTAKEN = 3
"""The exit code of a helper that found a quick way to be a mistake."""
_NUMBER = struct.Struct("<q")


@dataclass(frozen=True, slots=True)
class Account:
    """What a stretch came to, beside its tokens."""

    counts: Counts
    found: TokenFindings
    sides: Sides
    names: PartNames


def write_stretches(
    request: RowsRequest, split: Split, writer: TokenWriter, sides: Sides, watch: Watch
) -> Prepared | None:
    """Gives the examples of one side, unmixed, to `writer`; the counts. `sides` learns their prompts.

    None, with nothing given or learned, where there are few rows or only one process is wanted: then one does it all
    (`prepare.write_examples`). Raises what that raises, and LayoutMistaken or EncodingMistaken, with nothing given or
    learned either, where any of the processes found a quick way to be a mistake.
    """
    rows = count_side(request, split)
    if request.processes < 2 or rows < LEAST_ROWS:
        return None
    folder = writer.folder.with_suffix(".stretches")
    try:
        with _Stretches(request, split, folder, rows) as work, _one_thread_each():
            work.make_all(Progress(watch, rows))
        return work.collect(writer, sides)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Stretches:
    """The stretches of one side in a folder. After a fork each process has this object for itself, but for two things:
    the pipe of numbers that nobody has taken, and the memory that counts the rows each process has done.
    """

    def __init__(self, request: RowsRequest, split: Split, folder: Path, rows: int) -> None:
        self.request, self.split, self.folder, self.rows = request, split, folder, rows
        self.stretch_rows = max(STRETCH_ROWS, -(-rows // MOST_STRETCHES))
        self.count = -(-rows // self.stretch_rows)
        self.held_out = held_out_elsewhere(request, split)
        self.parent = os.getpid()
        self.helpers: list[int] = []

    def __enter__(self) -> _Stretches:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.done = mmap.mmap(-1, _NUMBER.size * self.request.processes)
        self.untaken, put = os.pipe()
        os.write(put, b"".join(map(_NUMBER.pack, range(self.count))))
        os.close(put)
        return self

    def __exit__(self, *_: object) -> None:
        for helper in self.helpers:
            with suppress(ProcessLookupError):
                os.kill(helper, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(helper, 0)
        os.close(self.untaken)

    def make_all(self, progress: Progress) -> None:
        """Makes every stretch, here and in forks. Raises Stopped, and what a stretch raises."""

        def advance(rows: int) -> None:
            self._note_done(0, rows)
            self._look(progress)

        for slot in range(1, self.request.processes):
            self._fork(slot)
        self._make_untaken(advance)
        while self.helpers:
            self._look(progress)
            time.sleep(LOOK_SECONDS)
        missing = [number for number in range(self.count) if not self._account(number).exists()]
        self._make(missing, advance)
        progress.look(self.rows)

    def collect(self, writer: TokenWriter, sides: Sides) -> Prepared:
        """Puts the stretches together, in their order."""
        work = self._tokeniser()
        counts, found = work.counts, work.found
        for number in range(self.count):
            account: Account = pickle.loads(self._account(number).read_bytes())
            counts.add(account.counts)
            found.add(account.found)
            sides.add(account.sides)
            writer.add_part(self._part(number), account.names)
            shutil.rmtree(self._part(number))
        check_rows(counts.rows, self.rows)
        return make_prepared(counts, found, stop_ids(work.tokenizer, work.traits))

    def _fork(self, slot: int) -> None:
        try:
            helper = os.fork()
        except OSError:  # no room for another process: those that are there do it
            return
        if helper:
            self.helpers.append(helper)
            return
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            gc.freeze()  # what the parent has made stays in pages that both share
            self._make_untaken(lambda rows: self._advance_helper(slot, rows))
            code = 0
        except (LayoutMistaken, EncodingMistaken):
            code = MISTAKEN
        except BaseException:  # the parent makes what is missing, and meets the same error there
            traceback.print_exc()
        finally:
            os._exit(code)

    def _advance_helper(self, slot: int, rows: int) -> None:
        self._note_done(slot, rows)
        if os.getppid() != self.parent:
            os._exit(1)

    def _note_done(self, slot: int, rows: int) -> None:
        (before,) = _NUMBER.unpack_from(self.done, slot * _NUMBER.size)
        _NUMBER.pack_into(self.done, slot * _NUMBER.size, before + rows)

    def _look(self, progress: Progress) -> None:
        """Raises Stopped, or LayoutMistaken where a helper found a quick way to be a mistake."""
        codes = {helper: _exit_code(helper) for helper in self.helpers}
        self.helpers = [helper for helper, code in codes.items() if code is None]
        if MISTAKEN in codes.values():
            raise LayoutMistaken
        progress.look(min(sum(number for (number,) in _NUMBER.iter_unpack(self.done[:])), self.rows - 1))

    def _make_untaken(self, advance: Callable[[int], None]) -> None:
        taken = iter(lambda: os.read(self.untaken, _NUMBER.size), b"")
        self._make((number for one in taken for number in _NUMBER.unpack(one)), advance)

    def _make(self, numbers: Iterable[int], advance: Callable[[int], None]) -> None:
        """Makes the stretches of these ascending numbers."""
        work, rows, position = self._tokeniser(), read_side(self.request, self.split), 0
        for number in numbers:
            begin = number * self.stretch_rows
            deque(islice(rows, begin - position), maxlen=0)
            position = begin + self.stretch_rows
            self._write(number, islice(rows, self.stretch_rows), work, advance)

    def _write(
        self, number: int, rows: Iterable[StoredRow], work: RowTokeniser, advance: Callable[[int], None]
    ) -> None:
        writer, sides = TokenWriter(self._part(number)), Sides()
        try:
            work.begin(writer, (sides, self.split))
            work.go(batches_without(rows, self.held_out, work, advance))
            names = writer.pause()
        except BaseException:
            writer.close()
            raise
        stage = self._part(number) / "account.part"
        stage.write_bytes(pickle.dumps(Account(work.counts, work.found, sides, names)))
        stage.replace(self._account(number))

    def _tokeniser(self) -> RowTokeniser:
        return RowTokeniser(self.request.tokenizer, self.request.config, [])

    def _part(self, number: int) -> Path:
        return self.folder / str(number)

    def _account(self, number: int) -> Path:
        return self._part(number) / "account"


def _exit_code(process: int) -> int | None:
    """That of a child, the signal as a negative number; None while it runs."""
    ended, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Threads of the tokenizer would be one too many for each core, and do not survive a fork."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
