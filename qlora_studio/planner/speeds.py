"""How fast runs on this machine really were, kept for the next estimate of time: by card or processor, and by model."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from qlora_studio.core.machine import Speed
from qlora_studio.core.plan import GpuInfo
from qlora_studio.planner.kept import machine_key, read_kept, write_kept

FILE = "speeds.json"
MOST_MODELS = 8
"""Models that are remembered for a machine; the one measured longest ago leaves."""


def read_speeds(cache: Path, card: GpuInfo | None) -> tuple[Speed, ...]:
    """What was measured with this card, or with the processor where there is none, the newest first."""
    kept = read_kept(cache / FILE).get(machine_key(card))
    speeds = []
    for values in kept if isinstance(kept, list) else []:
        try:
            speeds.append(Speed.model_validate(values))
        except ValidationError:
            continue
    return tuple(speeds)


def learn_speed(cache: Path, card: GpuInfo | None, speed: Speed) -> None:
    """Keeps a measurement in front of the earlier ones, in place of an earlier one of the same model."""
    earlier = [one for one in read_speeds(cache, card) if one.model != speed.model]
    kept = read_kept(cache / FILE)
    kept[machine_key(card)] = [one.model_dump() for one in (speed, *earlier)[:MOST_MODELS]]
    write_kept(cache / FILE, kept)
