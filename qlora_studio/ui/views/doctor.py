"""The machine in figures and checks."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_studio.core.doctor import Check
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import GpuInfo
from qlora_studio.ui.views.html import Html, Tile, bar, card, chip, gib, join, number, table, tag, tiles

WORDS = {"ok": ("fine", "good"), "warn": ("look", "warn"), "bad": ("broken", "bad")}


def machine_cards(machine: Machine, home: str) -> Html:
    """The computer, then every card with who holds its memory."""
    cards = machine.cards
    driver = f"driver {cards[0].driver}" if cards and cards[0].driver else "no NVIDIA driver answers"
    figures = tiles(
        [
            Tile("Memory", gib(machine.memory_bytes), f"{gib(machine.memory_available_bytes)} free"),
            Tile("Disk", gib(machine.disk_free_bytes), "free where the studio keeps its things"),
            Tile("Cards", str(len(cards)), driver),
        ]
    )
    return join((figures, *(_gpu(gpu) for gpu in cards), tag("p", f"Everything is kept in {home}", class_="qs-small")))


def checks_card(machine: Sequence[Check], engine: Sequence[Check], phase: str) -> Html:
    """Every check with its remedy; those of torch come once they were asked for."""
    rows = [_row(check) for check in (*machine, *engine)]
    listed = table(("", "Check", "Found"), rows, "Checks of this machine") if rows else Html("")
    if phase:
        return join((listed, card("Examining", bar(0.5, "Examination"), tag("p", f"{phase} …", class_="qs-small"))))
    return listed


def _row(check: Check) -> tuple[Html, Html, Html]:
    word, kind = WORDS[check.state]
    remedy = tag("div", tag("b", "Remedy: "), check.remedy, class_="qs-remedy") if check.remedy else ""
    return chip(word, kind), tag("b", check.name), join((check.finding, remedy))


def _gpu(gpu: GpuInfo) -> Html:
    capability = ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else "unknown"
    rows = [
        (process.name, number(process.pid), number(gib(process.used_bytes) if process.used_bytes else "–"))
        for process in gpu.processes
    ]
    nobody = tag("p", "No other process holds memory of it.", class_="qs-small")
    return card(
        gpu.name,
        tag(
            "p",
            f"{gib(gpu.free_bytes)} of {gib(gpu.total_bytes)} free, compute capability {capability}.",
            class_="qs-small",
        ),
        table(("Process", "Number", "Holds"), rows, f"Who uses {gpu.name}") if rows else nobody,
        aside=number(f"card {gpu.index}"),
    )
