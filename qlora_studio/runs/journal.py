"""The journal of a job: one event a line, appended with its time, read from wherever the reader stopped."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from qlora_studio.core.events import Event, parse_event
from qlora_studio.core.progress import Progress, advance
from qlora_studio.faults import fault


class Journal:
    """The writing end, held by the worker."""

    def __init__(self, path: Path) -> None:
        self.path = path
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self.file = path.open("ab", buffering=0)
        self.waiting = b"\n" if torn else b""  # an earlier worker died inside a line: start on a new one
        """What is not on the disk yet."""

    def append(self, event: Event) -> None:
        """Writes one event. While the disk is full it waits in memory, and costs the run nothing."""
        line = json.dumps({"time": time.time(), **event.to_json()}, ensure_ascii=False) + "\n"
        self.waiting += line.encode(errors="replace")
        self.catch_up()

    def catch_up(self) -> bool:
        """Writes what waits; whether all of it is on the disk now."""
        try:
            while self.waiting:
                fault("journal")
                written = self.file.write(self.waiting)
                self.waiting = self.waiting[written:]
        except OSError:
            return False
        return True

    def close(self) -> None:
        self.file.close()


class Follower:
    """The reading end: keeps its offset and the state that the events so far amount to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.progress = Progress()
        self.started_at: float | None = None
        self.last_at: float | None = None

    def read(self) -> list[Event]:
        """The events since the last call. A last line without its end is left for the next."""
        try:
            if self.path.stat().st_size < self.offset:  # the folder was replaced
                self.__init__(self.path)  # type: ignore[misc]
            with self.path.open("rb") as file:
                file.seek(self.offset)
                block = file.read()
        except OSError:
            return []
        whole, _, _ = block.rpartition(b"\n")
        if not whole:
            return []
        self.offset += len(whole) + 1
        events = []
        for line in whole.split(b"\n"):
            values = _parse(line)
            event = parse_event(values)
            if event is None:
                continue
            self.last_at = values.get("time")
            self.started_at = self.started_at or self.last_at
            self.progress = advance(self.progress, event)
            events.append(event)
        return events


def _parse(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
