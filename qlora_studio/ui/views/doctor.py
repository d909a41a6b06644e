"""The machine in figures."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_studio.core.plan import GpuInfo
from qlora_studio.ui.machine import Machine
from qlora_studio.ui.views.html import Html, Tile, card, empty, gib, join, number, table, tag, tiles


def machine_cards(cards: Sequence[GpuInfo], machine: Machine, home: str) -> Html:
    """Every card with who holds its memory, then the computer itself."""
    figures = tiles(
        [
            Tile("Memory", gib(machine.memory_total), f"{gib(machine.memory_used)} in use"),
            Tile("Disk", gib(machine.disk_free), "free where the studio keeps its things"),
            Tile(
                "Cards",
                str(len(cards)),
                cards[0].driver and f"driver {cards[0].driver}" if cards else "no NVIDIA driver answers",
            ),
        ]
    )
    if not cards:
        shown = empty(
            "No NVIDIA card",
            "Training runs on the CPU. If this machine has a card, install its driver.",
        )
    else:
        shown = join(_gpu(gpu) for gpu in cards)
    return join((figures, shown, tag("p", f"The studio keeps everything in {home}", class_="qs-small")))


def _gpu(gpu: GpuInfo) -> Html:
    capability = ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else "?"
    rows = [
        (process.name, number(process.pid), number(gib(process.used_bytes) if process.used_bytes else "–"))
        for process in gpu.processes
    ]
    held = (
        table(("Process", "Number", "Holds"), rows, f"Who uses {gpu.name}")
        if rows
        else tag("p", "No other process holds memory of it.", class_="qs-small")
    )
    return card(
        gpu.name,
        tag(
            "p",
            f"{gib(gpu.free_bytes)} of {gib(gpu.total_bytes)} free, compute capability {capability}.",
            class_="qs-small",
        ),
        held,
        aside=number(f"card {gpu.index}"),
    )
