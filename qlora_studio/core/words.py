"""Sizes and times as people read them."""

from __future__ import annotations

from qlora_studio.core.plan import GIB, MIB


def gib(size: float, digits: int = 2) -> str:
    """A size in words: `7.43 GiB`, or `512 MiB` where that is less than one."""
    return f"{size / GIB:.{digits}f} GiB" if abs(size) >= GIB else f"{size / MIB:.0f} MiB"


def clock(seconds: float | None) -> str:
    """`1 h 02 m`, `3 m 05 s`, `42 s`; a dash where nothing is known."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 60} m {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
