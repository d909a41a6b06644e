"""How far exports are from the chat, faithful and broken on purpose: what the verdict's limits are set by.

    python benchmarks/export.py RUN [--home HOME]

Asks the chat of a finished run (`qlora-studio demo` makes one named demo), then models merged from it in several ways, on
the same tokens: the answers to the demo's prompts and the rows that the run holds out. Prints a Markdown table. Figures
of one machine: distances are worth comparing, times only beside each other, in seconds of processor time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file

from qlora_studio.core import events as ev
from qlora_studio.core.exports import GGUF_CHOICES
from qlora_studio.core.verdict import find_verdict
from qlora_studio.engine import merge
from qlora_studio.engine.compare import log_probabilities
from qlora_studio.engine.exporters.comparison import ChatRecord, Speaker, compare, record_chat
from qlora_studio.engine.exporters.gguf import gguf_name, plan_gguf
from qlora_studio.engine.exporters.merged import open_merged
from qlora_studio.engine.exporters.protocol import ExportSource
from qlora_studio.engine.gguf_file.read import load_gguf
from qlora_studio.engine.load import load_adapter, load_base
from qlora_studio.home import Home
from qlora_studio.runs.folder import JobFolder
from qlora_studio.studio import Studio
from qlora_studio.worker.context import Context
from qlora_studio.worker.loaded_run import open_run
from qlora_studio.worker.rows import held_out

Change = Callable[[str, torch.Tensor], torch.Tensor]


def halved(name: str, value: torch.Tensor) -> torch.Tensor:
    return value / 2 if "lora_B" in name else value


def without_first_layers(name: str, value: torch.Tensor) -> torch.Tensor:
    first = any(f".layers.{layer}." in name for layer in range(3))
    return torch.zeros_like(value) if first and "lora_B" in name else value


def without(name: str, value: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(value) if "lora_B" in name else value


BROKEN: dict[str, Change] = {
    "broken: half the strength": halved,
    "broken: first three layers left out": without_first_layers,
    "broken: adapter left out": without,
}


@contextmanager
def changed(source: ExportSource, change: Change) -> Iterator[ExportSource]:
    """The run with another adapter."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "adapter"
        shutil.copytree(source.adapter, copy)
        file = copy / "adapter_model.safetensors"
        save_file({name: change(name, value) for name, value in load_file(file).items()}, file)
        yield replace(source, adapter=copy)


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


class Table:
    """One line an artefact."""

    def __init__(self, record: ChatRecord) -> None:
        self.record = record
        print(f"Base {record.base_loss:.4f}, chat {record.chat_loss:.4f}; {len(record.log_probabilities)} positions.\n")
        print(
            "| artefact | KL to the chat, nats | same likeliest token | held-out loss | ends kept | verdict | CPU s |"
        )
        print("|---|---|---|---|---|---|---|", flush=True)

    def add(self, like: ev.Checked, model: Any, seconds: float | None = None) -> None:
        check = compare(self.record, log_probabilities(model, self.record.probes), like)
        cost = "" if seconds is None else f"{seconds:.0f}"
        print(
            f"| {check.what} | {check.kl:.5f} | {check.same_top1:.1%} | {check.loss:.4f} | {check.stops_kept}/{check.stops} "
            f"| {find_verdict(check).word} | {cost} |",
            flush=True,
        )


def merged(table: Table, source: ExportSource, what: str, *, chatted: bool) -> None:
    source = replace(source, merge_into="as_chatted" if chatted else "original")
    with scratch() as place, open_merged(source) as weights:
        begun = time.process_time()
        merge.write_merged(weights, place)
        seconds = time.process_time() - begun
        model = load_base(place, source.device, four_bit=False).eval()
        table.add(ev.Checked(what=what, as_chatted=chatted), model, seconds)


def gguf_files(table: Table, source: ExportSource) -> None:
    for into in ("as_chatted", "original"):
        for choice in GGUF_CHOICES:
            one = replace(source, merge_into=into, gguf=choice.name)
            with scratch() as place, plan_gguf(one) as file:
                begun = time.process_time()
                file.write(place / gguf_name(one))
                seconds = time.process_time() - begun
                model = load_gguf(place / gguf_name(one), one.base_folder(), one.device)
                precision = "16-bit" if choice.bits == 16 else choice.name
                like = ev.Checked(what=f"{choice.name}, {into}", as_chatted=into == "as_chatted", precision=precision)
                table.add(like, model, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--home")
    asked = parser.parse_args()
    if asked.home:
        os.environ["QLORA_STUDIO_HOME"] = asked.home
    home = Home.find()
    folder = JobFolder(home.runs / asked.run)
    context = Context(folder, lambda event: None, 0, home=home)
    live, config = open_run(context, folder), context.config(folder)
    rows = held_out(context, config, live.tokenizer).examples
    record = record_chat(Speaker(live.model, live.tokenizer, live.options), Studio().data.demo().prompts[:3], rows)
    source = ExportSource(folder.adapter, live.base.folder, live.device, name=folder.name)
    del live
    table = Table(record)
    whole = load_adapter(load_base(source.base_folder(), replace(source.device, dtype=torch.float32)), source.adapter)
    table.add(ev.Checked(what="noise: the chat itself in fp32", as_chatted=True), whole.eval())
    del whole
    merged(table, source, "as chatted", chatted=True)
    with patch.object(merge, "round_fairly", lambda tensor, dtype, seed: tensor.to(dtype)):
        merged(table, source, "as chatted, rounded to nearest", chatted=True)
    merged(table, source, "original", chatted=False)
    for what, change in BROKEN.items():
        with changed(source, change) as broken:
            merged(table, broken, what, chatted=True)
    gguf_files(table, source)


if __name__ == "__main__":
    main()
