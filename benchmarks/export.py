"""How far exports are from the chat, faithful and broken on purpose: what the verdict's limits are set by.

    python benchmarks/export.py RUN [--home HOME]
    python benchmarks/export.py --memory

Asks the chat of a finished run (`qlora-studio demo` makes one named demo), then models merged from it in several ways, on
the same tokens: the answers to the demo's prompts and the rows that the run holds out. Prints a Markdown table. Figures
of one machine: distances are worth comparing, times only beside each other, in seconds of processor time.

`--memory` writes models as wide as a Llama 3.2 of 3 B, which decides the peak, with two layers and random weights, each
in a process of its own.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import psutil
import torch
from safetensors.torch import load_file, save_file

from qlora_studio.core import events as ev
from qlora_studio.core.config import LoraSettings
from qlora_studio.core.example import Example
from qlora_studio.core.exports import GGUF_CHOICES
from qlora_studio.core.verdict import find_verdict
from qlora_studio.engine import merge
from qlora_studio.engine.checkpoints import TunedModel, save_adapter
from qlora_studio.engine.compare import Probe, log_probabilities
from qlora_studio.engine.copies import write_random_model
from qlora_studio.engine.exporters.comparison import ChatModel, ChatRecord, compare, look_at_layers, record_chat
from qlora_studio.engine.exporters.gguf import gguf_name, plan_gguf
from qlora_studio.engine.exporters.merged import layers_of_merged, open_merged
from qlora_studio.engine.exporters.protocol import ExportSource
from qlora_studio.engine.gguf_file.read import load_gguf
from qlora_studio.engine.gguf_file.strength import measure_gguf
from qlora_studio.engine.gguf_file.write import About, GgufFile, Precision
from qlora_studio.engine.load import attach_adapter, choose_device, load_adapter, load_base
from qlora_studio.engine.model_weights import ModelWeights
from qlora_studio.engine.strength import Strength, measure_merged
from qlora_studio.engine.tokenizer import load_tokenizer
from qlora_studio.home import Home
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.runs.folder import JobFolder
from qlora_studio.studio import Studio
from qlora_studio.worker.context import Context
from qlora_studio.worker.loaded_run import open_run
from qlora_studio.worker.rows import tokenise
from tests.engine.gguf_file.small_tokenizers import save

ROOT = Path(__file__).resolve().parents[1]
LAYERS = 2
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
            "| artefact | KL to the chat, nats | same likeliest token | held-out loss | ends kept | change kept, of what "
            "rounding leaves | layers off | verdict | CPU s |"
        )
        print("|---|---|---|---|---|---|---|---|---|", flush=True)

    def add(self, like: ev.Checked, model: Any, seconds: float | None = None, found: Sequence[Strength] = ()) -> None:
        like = look_at_layers(like, found)
        kept = (
            "" if not found else f"{mean(one.share for one in found):.3f} of {mean(one.expected for one in found):.3f}"
        )
        check = compare(self.record, log_probabilities(model, self.record.probes), like)
        cost = "" if seconds is None else f"{seconds:.0f}"
        print(
            f"| {check.what} | {check.kl:.5f} | {check.same_top1:.1%} | {check.loss:.4f} | {check.stops_kept}/{check.stops} "
            f"| {kept} | {check.layers_off} of {check.layers} | {find_verdict(check).word} | {cost} |",
            flush=True,
        )


def merged(table: Table, source: ExportSource, what: str, wanted: ExportSource, *, chatted: bool) -> None:
    """A merged model of `source`, looked at beside the run whose change is wanted."""
    source, wanted = (replace(one, merge_into="as_chatted" if chatted else "original") for one in (source, wanted))
    with scratch() as place, open_merged(source) as weights, open_merged(wanted) as right:
        begun = time.process_time()
        merge.write_merged(weights, place)
        seconds = time.process_time() - begun
        with closing(ModelWeights(place)) as written:
            found = list(measure_merged(right, written))
        model = load_base(place, source.device, four_bit=False).eval()
        table.add(ev.Checked(what=what, as_chatted=chatted), model, seconds, found)


def gguf_file(table: Table, source: ExportSource, what: str, wanted: ExportSource) -> None:
    """A GGUF file of `source`, looked at beside the run whose change is wanted."""
    with scratch() as place, plan_gguf(source) as file, plan_gguf(wanted) as right:
        path = place / gguf_name(source)
        begun = time.process_time()
        file.write(path)
        seconds = time.process_time() - begun
        found = list(measure_gguf(right, path))
        model = load_gguf(path, source.base_folder(), source.device)
        precision = source.gguf if "Q" in source.gguf else "16-bit"
        like = ev.Checked(what=what, as_chatted=source.merge_into == "as_chatted", precision=precision)
        table.add(like, model, seconds, found)


def gguf_files(table: Table, source: ExportSource) -> None:
    for into in ("as_chatted", "original"):
        for choice in GGUF_CHOICES:
            one = replace(source, merge_into=into, gguf=choice.name)
            gguf_file(table, one, f"{choice.name}, {into.replace('_', ' ')}", one)
    for what, change in BROKEN.items():
        wanted = replace(source, merge_into="as_chatted", gguf="Q4_K_M")
        with changed(wanted, change) as broken:
            gguf_file(table, broken, f"Q4_K_M, {what}", wanted)


def peak_bytes() -> int:
    """Most memory this program has held since it was started; what its parent held does not count (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure_memory(kind: str, place: Path) -> None:
    """Writes one artefact in this process and prints what it took above the start."""
    torch.set_num_threads(2)
    source = ExportSource(
        place / "adapter", place / "base", choose_device("bf16"), merge_into="as_chatted", gguf="Q4_K_M", name="wide"
    )
    before, begun = psutil.Process().memory_info().rss, time.process_time()
    with scratch() as out, open_merged(source) as weights:
        values = sum(math.prod(tensor.shape) for tensor in weights.tensors)
        if kind == "gguf":
            GgufFile(weights, load_tokenizer(place / "base"), Precision("Q4_K_M"), About("wide")).write(
                out / "wide.gguf"
            )
        elif kind == "merged":
            merge.write_merged(weights, out)
        else:
            probes = [Probe(tuple(range(300, 400)), tuple(range(50, 99)))] * 6
            layers_of_merged(place / "base", source.device).log_probabilities(probes)
        size = sum(path.stat().st_size for path in out.iterdir())
    seconds, above = time.process_time() - begun, (peak_bytes() - before) / 2**20
    rate = values / seconds / 1e6
    what = {"merged": "merged, as chatted", "gguf": "Q4_K_M, as chatted", "check": "check by layers, 294 positions"}[
        kind
    ]
    print(f"| {what} | {size / 2**20:.0f} | {above:.0f} | {seconds:.0f} | {rate:.1f} |", flush=True)


def write_wide_model(place: Path) -> None:
    """`base` and `adapter` of a model as wide as a Llama 3.2 of 3 B."""
    shape = REFERENCE_SHAPES["Llama-3.2-3B"].model_copy(update={"layers": LAYERS})
    write_random_model(shape, place / "base")
    save("gpt-2", place / "base")
    plain = load_base(place / "base", choose_device("bf16"), four_bit=False)
    adapter = attach_adapter(plain, LoraSettings(rank=16), torch.float32, seed=0)
    (place / "adapter").mkdir()
    save_adapter(TunedModel(adapter, "wide"), place / "adapter")


def memory() -> None:
    """The peak of each way to write, above what the process held before."""
    with scratch() as place:
        write_wide_model(place)
        print("| artefact | MiB | peak above start, MiB | CPU s | million values a CPU second |\n|---|---|---|---|---|")
        for kind in ("merged", "gguf", "check"):
            command = [sys.executable, __file__, "--one", kind, str(place)]
            subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def open_source(run: str, home_folder: str | None) -> tuple[ExportSource, ChatRecord, Sequence[Example], Any]:
    """A run as it is exported, what its chat says, its training rows, and base and adapter in memory."""
    if home_folder:
        os.environ["QLORA_STUDIO_HOME"] = home_folder
    home = Home.find()
    folder = JobFolder(home.runs / run)
    context = Context(folder, lambda event: None, os.getppid(), home=home)
    live, config = open_run(context, folder), context.config(folder)
    rows = tokenise(context, config, live.tokenizer)
    chat = ChatModel(live.model, live.tokenizer, live.options)
    record = record_chat(chat, Studio().data.demo().prompts[:3], rows.held_out.examples)
    source = ExportSource(folder.adapter, live.base.folder, live.device, name=folder.name)
    return source, record, rows.train.examples, live.model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--home")
    arguments = parser.parse_args()
    if arguments.one:
        measure_memory(arguments.one[0], Path(arguments.one[1]))
        return
    if arguments.memory:
        memory()
        return
    if not arguments.run:
        parser.error("name a run, or ask for --memory")
    source, record, _, model = open_source(arguments.run, arguments.home)
    del model
    table = Table(record)
    whole = load_adapter(load_base(source.base_folder(), replace(source.device, dtype=torch.float32)), source.adapter)
    table.add(ev.Checked(what="noise: the chat itself in fp32", as_chatted=True), whole.eval())
    del whole
    merged(table, source, "as chatted", source, chatted=True)
    with patch.object(merge, "round_fairly", lambda tensor, dtype, seed: [tensor.to(dtype)]):
        merged(table, source, "as chatted, rounded to nearest", source, chatted=True)
    merged(table, source, "original", source, chatted=False)
    for what, change in BROKEN.items():
        with changed(source, change) as broken:
            merged(table, broken, what, source, chatted=True)
    gguf_files(table, source)


if __name__ == "__main__":
    main()
