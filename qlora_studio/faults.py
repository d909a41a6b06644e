"""Faults on request, for proving that none of them costs a run anything. Off unless `QLORA_STUDIO_FAULT` is set.

`QLORA_STUDIO_FAULT=save.swap:kill@3` kills the process when it comes to that point for the third time; several are
separated by commas, and `*` is any point. The points stand in our own saving, stepping and importing code.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter

VARIABLE = "QLORA_STUDIO_FAULT"
ERRORS = {"full": errno.ENOSPC, "io": errno.EIO, "denied": errno.EACCES}
"""Actions that are an error of the system."""
SLEEP_SECONDS = 3600
_passed: Counter[str] = Counter()
"""How often each point was come to: a count has to live as long as the process it counts in."""


class InjectedError(RuntimeError):
    """An exception that nobody foresaw."""


def fault(point: str) -> bool:
    """Does here what is asked for; True where the caller shall make its value NaN. Does nothing unless asked.

    Raises an OSError for `full`, `io` and `denied`, a MemoryError for `oom`, an InjectedError for `error`; `kill` and
    `sleep` do not come back. An order that cannot be read is a ValueError.
    """
    orders = os.environ.get(VARIABLE)
    if not orders:
        return False
    _passed[point] += 1
    _passed["*"] += 1
    due = [action for name, action, number in map(_parse, orders.split(",")) if _is_due(name, point, number)]
    return "nan" in {_act(action, point) for action in due}


def _parse(order: str) -> tuple[str, str, int]:
    point, _, rest = order.strip().partition(":")
    action, _, number = rest.partition("@")
    return point, action, int(number or 1)


def _is_due(name: str, point: str, number: int) -> bool:
    return name in ("*", point) and _passed[name] == number


def _act(action: str, point: str) -> str:
    if action in ERRORS:
        raise OSError(ERRORS[action], os.strerror(ERRORS[action]), point)
    if action == "oom":
        raise MemoryError(f"out of memory at {point}")
    if action == "error":
        raise InjectedError(f"injected at {point}")
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    elif action == "sleep":
        time.sleep(SLEEP_SECONDS)
    elif action != "nan":
        raise ValueError(f"{VARIABLE} knows no action '{action}'")
    return action
