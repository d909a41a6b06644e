"""The sidebar: the device, the current run, and the same in one line for phones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qlora_studio.core.plan import GpuInfo
from qlora_studio.core.runs import RunView
from qlora_studio.core.words import clock
from qlora_studio.ui.views.html import Html, bar, big_of, card, gib_of, join, number, tag


@dataclass(frozen=True, slots=True)
class Memory:
    """The computer's own memory at one moment, in bytes."""

    used: int
    total: int


BRAND = Html(
    '<div class="qs-brand"><svg viewBox="0 0 32 32" width="32" height="32" aria-hidden="true">'
    '<rect width="32" height="32" rx="8" fill="#0c8073"/>'
    '<g fill="none" stroke="#fff" stroke-width="2.8" stroke-linecap="round">'
    '<circle cx="15" cy="15" r="8"/><path d="M20.5 20.5 26 26"/></g>'
    '<path fill="#8ff0dc" d="M11.2 11.2h3v3h-3zM15.8 11.2h3v3h-3zM11.2 15.8h3v3h-3zM15.8 15.8h3v3h-3z"/></svg>'
    "<div><b>QLoRA Studio</b><small>local fine-tuning</small></div></div>"
)
FOOT = Html('<p class="qs-foot">Offline: no telemetry, nothing is uploaded.<br>Alt+1 … 6 switches pages.</p>')
KINDS = {
    "starting": "good",
    "running": "good",
    "stopping": "warn",
    "finished": "good",
    "stopped": "warn",
    "paused": "warn",
    "interrupted": "warn",
    "failed": "bad",
}


def state_chip(state: str, **attributes: object) -> Html:
    return tag("span", state, class_=f"qs-chip {KINDS.get(state, '')}".strip(), **attributes)


def device_card(cards: Sequence[GpuInfo], memory: Memory) -> Html:
    """The first card, or the computer's own memory where there is none."""
    if not cards:
        share = memory.used / max(memory.total, 1)
        return card(
            "CPU",
            big_of(memory.used, memory.total, "memory in use"),
            bar(share, "Memory in use", "warn" if share > 0.9 else ""),
            tag("p", "No NVIDIA card was found. Small models train here, slowly.", class_="qs-small"),
            aside=number("no card"),
            label="Device",
        )
    gpu = cards[0]
    used = gpu.total_bytes - gpu.free_bytes
    share = used / max(gpu.total_bytes, 1)
    facts = [
        f"{gpu.temperature_c} °C" if gpu.temperature_c is not None else "",
        f"{gpu.power_watts:.0f} W" if gpu.power_watts is not None else "",
    ]
    busy = gpu.utilisation_percent
    return card(
        gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce "),
        big_of(used, gpu.total_bytes, "VRAM"),
        bar(share, "VRAM used", "warn" if share > 0.92 else ""),
        join(
            (
                tag("div", tag("span", "Compute"), number(f"{busy} %"), class_="qs-line"),
                bar(busy / 100, "GPU utilisation", "thin second"),
            )
        )
        if busy is not None
        else "",
        aside=number(" · ".join(fact for fact in facts if fact)),
        label="Device",
    )


def run_card(run: RunView | None) -> Html:
    if run is None:
        return card(
            "No run yet",
            tag("p", "Choose your data, then press Start on the Train page.", class_="qs-small"),
            label="Current run",
        )
    progress = run.progress
    steps = f"{progress.step}/{progress.total_steps}" if progress.total_steps else "–"
    loss = f"{progress.last.loss:.3f}" if progress.last else "–"
    left = clock(progress.last.seconds_left) if progress.last and run.at_work else "–"
    return card(
        run.title,
        bar(progress.share, "Training progress"),
        tag("p", f"{progress.phase} …", class_="qs-small")
        if run.at_work and not progress.total_steps and progress.phase
        else "",
        tag(
            "div",
            *(
                tag("div", tag("small", name), tag("b", value, class_="qs-number"))
                for name, value in (("Step", steps), ("Loss", loss), ("Left", left))
            ),
            class_="qs-facts",
        ),
        aside=state_chip(run.state, id="run-state"),
        label="Current run",
    )


def mini_line(run: RunView | None, cards: Sequence[GpuInfo], memory: Memory) -> Html:
    """Device and run in one line, for narrow screens."""
    used, total = (
        (cards[0].total_bytes - cards[0].free_bytes, cards[0].total_bytes) if cards else (memory.used, memory.total)
    )
    state, share = (run.state, run.progress.share) if run else ("no run", 0.0)
    return tag(
        "div",
        state_chip(state),
        bar(share, "Progress", "thin"),
        number(gib_of(used, total)),
        class_="qs-mini",
    )
