"""Held-out loss at the rate that chooses itself, at the old default of 2e-4 and over a grid, through real runs.

    python benchmarks/recipe.py rows.json more.json --place FOLDER [--minutes 10] [--rank 8 --rank 64] [--alpha 16]

Each set is imported into the home under `--place`, and each rate is a run of the studio: its worker, its recipe, one rate
changed. Models: the demo model, and two of other widths that are first trained here, briefly, on the rows behind those
that are tuned on and on Python's own manual. A loss is the mean over trained tokens of the rows held out, in nats, after
the last step. The grid doubles on while its highest rate is its best. What was measured stays in `--place`: the same
command goes on where it ended, so a long table can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data.topics
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ["PYTHONPATH"] = str(ROOT)

OLD_DEFAULT, LOWEST, HIGHEST, MOST = 2e-4, 5e-4, 4e-3, 6.4e-2
WIDTHS = (128, 192)
LAYERS, VOCABULARY, BLOCK, BATCH, UPDATES, PRETRAINING_RATE = 4, 4096, 256, 8, 800, 3e-3
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Cell:
    """One run of the table."""

    model: str
    set: str
    rank: int
    alpha: int
    rate: float | str


def split_rows(files: list[Path], rows: int, place: Path) -> tuple[list[Path], list[str]]:
    """Files with the first rows of each set, for tuning, and the text of the rest, for training models at all."""
    place.mkdir(parents=True, exist_ok=True)
    texts = list(pydoc_data.topics.topics.values())
    cut = []
    for file in files:
        values = [spell_out_tools(row) for row in json.loads(file.read_text(encoding="utf-8"))]
        cut.append(place / file.name)
        cut[-1].write_text(json.dumps(values[:rows]), encoding="utf-8")
        texts += [" ".join(strings(row)) for row in values[rows:]]
    return cut, texts


def spell_out_tools(row: dict[str, Any]) -> dict[str, Any]:
    """A row with tools as plain turns: these models' templates have no place for tools, calls and their answers."""
    if "tools" not in row:
        return row
    roles = {"function_call": "gpt", "observation": "human"}
    turns = [{**turn, "from": roles.get(turn["from"], turn["from"])} for turn in row["conversations"]]
    system = {"from": "system", "value": f"Tools: {row['tools']}"}
    return {"conversations": [system, *turns] if json.loads(row["tools"] or "[]") else turns}


def strings(value: Any) -> list[str]:
    """Every text in a row, in its order."""
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for child in children for text in strings(child)]


def make_small_model(width: int, texts: list[str], place: Path) -> Path:
    """A Llama of this width and a tokenizer of its own, both trained from nothing on these texts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(texts)
    torch.manual_seed(width)
    random.Random(width).shuffle(texts)
    ids = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    blocks = torch.tensor(ids[: len(ids) // BLOCK * BLOCK]).view(-1, BLOCK)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=LAYERS,
        num_attention_heads=width // 64, tie_word_embeddings=True, max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PRETRAINING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PRETRAINING_RATE, UPDATES)
    for update in range(UPDATES):
        batch = blocks[torch.randint(len(blocks), (BATCH,))]
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if update % 100 == 99:
            print(f"  width {width}, update {update + 1}: {loss.item():.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def make_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE of these texts, with ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


class Table:
    """The cells measured so far, on the disk."""

    def __init__(self, file: Path, ends_at: float) -> None:
        self.file, self.ends_at = file, ends_at
        self.lines: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []

    def measure(self, studio: Any, cell: Cell, changes: dict[str, Any]) -> float:
        """The held-out loss after the run of this cell, which is made unless it was; ends the program at its time."""
        for line in self.lines:
            if {name: line[name] for name in asdict(cell)} == asdict(cell):
                return float(line["after"])
        if time.monotonic() > self.ends_at:
            raise SystemExit(f"{len(self.lines)} runs so far; the same command goes on")
        config = studio.presets.default_config().replace(
            {
                **changes, "model.base": cell.model, "data.sources": [{"name": cell.set}], "lora.rank": cell.rank,
                "lora.alpha": cell.alpha, "optim.learning_rate": cell.rate,
            }
        )  # fmt: skip
        run = studio.runs.start(config)
        *_, last = studio.runs.watch(run)
        if last.tag != "finished":
            raise SystemExit(f"{run}: {last}")
        while studio.runs.open(run).state != "finished":
            time.sleep(0.2)  # its process still leaves
        before, after = last.report.held_out_before, last.report.held_out_after
        self.lines.append({**asdict(cell), "before": before, "after": after})
        self.file.write_text(json.dumps(self.lines, indent=1), encoding="utf-8")
        print(f"{self._name(cell)} {cell.rate!s:8} {before:.4f} -> {after:.4f}", flush=True)
        return float(after)

    def grid(self, studio: Any, start: Cell, changes: dict[str, Any]) -> None:
        """Every rate for one model, set, rank and alpha; a last line says how far `auto` ends from the best."""

        def after(rate: float | str) -> float:
            return self.measure(studio, Cell(start.model, start.set, start.rank, start.alpha, rate), changes)

        auto, losses, rate = after("auto"), {OLD_DEFAULT: after(OLD_DEFAULT)}, LOWEST
        while rate <= HIGHEST or (min(losses, key=lambda one: losses[one]) == rate / 2 and rate <= MOST):
            losses[rate] = after(rate)
            rate *= 2
        best = min(losses, key=lambda one: losses[one])
        print(f"{self._name(start)} auto {auto / losses[best] - 1:+.2%} of {best:g}, the best of the grid", flush=True)

    @staticmethod
    def _name(cell: Cell) -> str:
        return f"{Path(cell.model).name:22} {cell.set:24} r{cell.rank:<3} alpha {cell.alpha:<3}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--place", type=Path, required=True, help="Folder for models, runs and the table so far.")
    parser.add_argument("--minutes", type=float, default=600, help="Begin no further run after so long.")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rank", type=int, action="append")
    parser.add_argument("--alpha", type=int, default=32)
    parser.add_argument("--only", action="append", help="Only models whose name contains this.")
    arguments = parser.parse_args()
    place = arguments.place.resolve()
    table = Table(place / "table.json", time.monotonic() + 60 * arguments.minutes)
    os.environ["QLORA_STUDIO_HOME"] = str(place)
    from qlora_studio.studio import Studio

    studio = Studio()
    cut, texts = split_rows(arguments.files, arguments.rows, place / "rows")
    models = [
        model
        for model in prepare_models(place / "models", texts)
        if not arguments.only or any(part in model for part in arguments.only)
    ]
    there = {one.name for one in studio.data.sets()}
    sets = [file.stem if file.stem in there else studio.data.import_rows(str(file), skip_bad=True).name for file in cut]
    changes = {
        "optim.batch_tokens": 512, "data.max_length": 1024, "optim.epochs": 100, "optim.max_steps": arguments.steps,
        "data.eval_share": 0.15, "evaluation.every_steps": 10_000, "optim.optimizer": "adamw",
    }  # fmt: skip
    for name in sets:
        for rank in arguments.rank or [16]:
            for model in models:
                table.grid(studio, Cell(model, name, rank, arguments.alpha, "auto"), changes)


def prepare_models(place: Path, texts: list[str]) -> list[str]:
    """The demo model and those of other widths, made where they are not there yet."""
    from qlora_studio.bases import find_base
    from qlora_studio.core.config import DEMO_BASE
    from qlora_studio.engine.fetch import fetch_base

    place.mkdir(parents=True, exist_ok=True)
    if find_base(DEMO_BASE, place).folder is None:
        fetch_base(DEMO_BASE, place, None, lambda text: None)
    small = [place / f"width-{width}" for width in WIDTHS]
    for folder, width in zip(small, WIDTHS, strict=True):
        if not (folder / "tokenizer.json").is_file():
            make_small_model(width, texts, folder)
    return [DEMO_BASE, *map(str, small)]


if __name__ == "__main__":
    main()
