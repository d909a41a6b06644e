"""Sizes and times as people read them, and paths as they type them."""

from __future__ import annotations

from qlora_studio.core.plan import GIB, MIB


def gib(size: float, digits: int = 2) -> str:
    """A size in words: `7.43 GiB`, or `512 MiB` where that is less than one."""
    return f"{size / GIB:.{digits}f} GiB" if abs(size) >= GIB else f"{size / MIB:.0f} MiB"


def gib_of(part: float, whole: float, digits: int = 1) -> str:
    """`1.2 of 4.0 GiB`, `96 of 512 MiB`: both sides in the unit of the larger."""
    unit, name, shown = (GIB, "GiB", digits) if max(abs(part), abs(whole)) >= GIB else (MIB, "MiB", 0)
    return f"{part / unit:.{shown}f} of {whole / unit:.{shown}f} {name}"


def clock(seconds: float | None) -> str:
    """`1 h 02 m`, `3 m 05 s`, `42 s`; a dash where nothing is known."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 60} m {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def about(seconds: float) -> str:
    """A time that is only foretold, no finer than it is known: `under a minute`, `5 min`, `2 h 10 min`, `3 days`."""
    minutes = seconds / 60
    if minutes < 1:
        return "under a minute"
    if minutes < 60:
        return f"{minutes:.0f} min"
    if minutes < 48 * 60:
        tens = round(minutes / 10) * 10
        return f"{tens // 60} h {tens % 60:02d} min" if tens % 60 else f"{tens // 60} h"
    return f"{minutes / 60 / 24:.0f} days"


def without_quotes(path: str) -> str:
    """A path without the quotes that "Copy as path" puts around it, and without space at its ends."""
    path = path.strip()
    return path[1:-1].strip() if len(path) > 1 and path[0] == path[-1] and path[0] in "\"'" else path
