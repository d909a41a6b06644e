"""Reads the computer into a `Machine`: cards through NVML, memory, processor, disk, the torch that is installed.

No torch is imported and nothing is asked of the network. This is the only file of the room that looks at the world.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from qlora_studio.core.machine import Machine, TorchBuild
from qlora_studio.core.plan import GpuInfo
from qlora_studio.home import Home
from qlora_studio.planner.corrections import read_correction
from qlora_studio.planner.gpu import read_gpus
from qlora_studio.planner.speeds import read_speeds


def read_machine(home: Home, card: str | None = None) -> Machine:
    """This computer at this moment, with what earlier runs of this home measured on it. Milliseconds; never raises.

    `card` names the one a run shall use, which then stands first; a plan refuses one that is not there.
    """
    import psutil

    cards = named_first(read_cards(), card)
    first = cards[0] if cards else None
    memory = psutil.virtual_memory()
    return Machine(
        cards=tuple(cards),
        memory_bytes=int(memory.total),
        memory_available_bytes=int(memory.available),
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        cpu_bf16=_cpu_has_bf16(),
        disk_free_bytes=free_bytes_at(home.root),
        system=read_system(),
        torch=read_torch_build(),
        correction=read_correction(home.cache, first),
        speeds=read_speeds(home.cache, first),
    )


def read_cards() -> list[GpuInfo]:
    """The cards that a run may use, at this moment; none where no driver answers."""
    return visible_cards(read_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def named_first(cards: Sequence[GpuInfo], named: str | None) -> list[GpuInfo]:
    """The cards with those that go by this number or UUID before the others."""
    return sorted(cards, key=lambda card: named is None or not goes_by(card, named))


def goes_by(card: GpuInfo, named: str) -> bool:
    """Whether a card has this number, or a UUID that begins like this."""
    return bool(named) and (named == str(card.index) or card.uuid.startswith(named))


def visible_cards(cards: Sequence[GpuInfo], visible: str | None) -> list[GpuInfo]:
    """The cards that `CUDA_VISIBLE_DEVICES` leaves, in its order: by number or by the beginning of a UUID.

    As CUDA does, what follows an entry that names no card is not seen; an empty value hides all.
    """
    if visible is None:
        return list(cards)
    chosen: list[GpuInfo] = []
    for entry in (part.strip() for part in visible.split(",")):
        named = [card for card in cards if goes_by(card, entry)]
        if len(named) != 1 or named[0] in chosen:
            break
        chosen += named
    return chosen


def read_torch_build() -> TorchBuild | None:
    """The installed torch by its `version.py`, which is read and not run; None where there is none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    version = re.search(r"^__version__ = ['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    cuda = re.search(r"^cuda(?:: [^=]+)? = ['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return TorchBuild(version=version[1], cuda=cuda[1] if cuda else "") if version else None


def read_system() -> Literal["linux", "wsl", "windows", "macos"]:
    """The kind of system; Linux under Windows is told apart by its kernel's name."""
    if sys.platform == "win32":
        return "windows"
    if sys.platform == "darwin":
        return "macos"
    return "wsl" if "microsoft" in platform.release().lower() else "linux"


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself. Linux tells, other systems do not."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def free_bytes_at(path: Path) -> int:
    """Bytes free on the disk that a path is or will be on."""
    return shutil.disk_usage(existing(path)).free
