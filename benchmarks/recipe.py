"""Held-out loss at the rate that chooses itself, at the old default of 2e-4 and over a grid, through the engine.

    python benchmarks/recipe.py rows.json more.json --place FOLDER [--minutes 10] [--rank 8 --rank 64] [--alpha 16]

Each set is imported into the home under `--place`, and each rate is a training by the engine with one rate changed, all
of a model and a set in one process, from the same start. Models: the demo model, and two of other widths that are first trained here, briefly, on the rows behind those
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
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ["PYTHONPATH"] = str(ROOT)

from qlora_studio.planner.rates import suited_rate  # noqa: E402  (the path comes first)

OLD_DEFAULT, LOWEST, HIGHEST, MOST = 2e-4, 5e-4, 4e-3, 6.4e-2
WIDTHS = (128, 192)
BATCH_TOKENS, HELD_OUT = 512, 7
"""Of every so many rows one is held out."""
LAYERS, VOCABULARY, BLOCK, BATCH, UPDATES, PRETRAINING_RATE = 4, 4096, 256, 8, 800, 3e-3
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Cell:
    """One training of the table."""

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


class Trials:
    """Trainings of one model on one set: each from the same start over the same rows, on the same rows held out."""

    def __init__(self, folder: Path, conversations: list[Any], lora: dict[str, int], steps: int) -> None:
        from qlora_studio.core.config import TrainConfig
        from qlora_studio.data.sets.prepare import prepare
        from qlora_studio.engine.loaded import load_for_training
        from qlora_studio.engine.rate_search import RateSearch
        from qlora_studio.engine.setup import Setup
        from qlora_studio.engine.tokenizer import load_tokenizer
        from qlora_studio.home import Home
        from qlora_studio.planner.fit import make_plan
        from qlora_studio.planner.machine import read_machine
        from qlora_studio.planner.shape import read_shape

        config = TrainConfig().replace({
            "optim.batch_tokens": BATCH_TOKENS, "optim.epochs": 100, "optim.optimizer": "adamw",
            **{f"lora.{name}": value for name, value in lora.items()},
        })  # fmt: skip
        examples = list(prepare(conversations, load_tokenizer(folder), config.data).examples)
        held_out = examples[::HELD_OUT]
        train = [example for place, example in enumerate(examples) if place % HELD_OUT]
        shape = read_shape(folder, folder.name)
        machine = read_machine(Home.find()).model_copy(update={"cards": ()})
        plan = make_plan(config, shape, machine, [len(one.input_ids) for one in examples])
        loaded = load_for_training(folder, config, plan)
        accelerator = loaded.device.accelerator
        setup = Setup(config, plan, accelerator, loaded.model, train, held_out, folder, folder.name)
        self.search = RateSearch(setup, steps, lambda done, total: None, lambda: False)
        self.auto = suited_rate(shape.hidden, shape.family, config.lora)

    def measure(self, rate: float | str) -> tuple[float, float]:
        """The held-out loss before and after a training at this rate; infinite where it is not finite."""
        report = self.search.run([self.auto if isinstance(rate, str) else rate])
        loss = report.points[0].loss if report is not None else None
        return float(report.base_loss if report else 0), float("inf") if loss is None else loss


class Table:
    """The cells measured so far, on the disk."""

    def __init__(self, file: Path, ends_at: float) -> None:
        self.file, self.ends_at = file, ends_at
        self.lines: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []

    def measure(self, cell: Cell, trials: Callable[[], Trials]) -> float:
        """The held-out loss of this cell, measured unless it was; ends the program at its time."""
        for line in self.lines:
            if {name: line[name] for name in asdict(cell)} == asdict(cell):
                return float(line["after"])
        if time.monotonic() > self.ends_at:
            raise SystemExit(f"{len(self.lines)} trainings so far; the same command goes on")
        before, after = trials().measure(cell.rate)
        self.lines.append({**asdict(cell), "before": before, "after": after})
        self.file.write_text(json.dumps(self.lines, indent=1), encoding="utf-8")
        print(f"{name_of(cell)} {cell.rate!s:8} {before:.4f} -> {after:.4f}", flush=True)
        return after

    def grid(self, start: Cell, trials: Callable[[], Trials]) -> None:
        """Every rate for one model, set, rank and alpha; a last line says how far `auto` ends from the best."""

        def after(rate: float | str) -> float:
            return self.measure(replace(start, rate=rate), trials)

        auto, losses, rate = after("auto"), {OLD_DEFAULT: after(OLD_DEFAULT)}, LOWEST
        while rate <= HIGHEST or (min(losses, key=lambda one: losses[one]) == rate / 2 and rate <= MOST):
            losses[rate] = after(rate)
            rate *= 2
        best = min(losses, key=lambda one: losses[one])
        print(f"{name_of(start)} auto {auto / losses[best] - 1:+.2%} of {best:g}, the best of the grid", flush=True)


def name_of(cell: Cell) -> str:
    return f"{cell.model:22} {cell.set:24} r{cell.rank:<3} alpha {cell.alpha:<3}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--place", type=Path, required=True, help="Folder for models, sets and the table so far.")
    parser.add_argument("--minutes", type=float, default=600, help="Begin no further training after so long.")
    parser.add_argument("--rows", type=int, default=160, help="Rows of each set; the others train the small models.")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rank", type=int, action="append")
    parser.add_argument("--alpha", type=int, default=32)
    parser.add_argument("--only", action="append", help="Only models whose name contains this.")
    arguments = parser.parse_args()
    place = arguments.place.resolve()
    table = Table(place / "table.json", time.monotonic() + 60 * arguments.minutes)
    os.environ["QLORA_STUDIO_HOME"] = str(place)
    from qlora_studio.engine.accelerator.cpu import CpuAccelerator
    from qlora_studio.studio import Studio

    CpuAccelerator().prepare()
    studio = Studio()
    cut, texts = split_rows(arguments.files, arguments.rows, place / "rows")
    there = {one.name for one in studio.data.sets()}
    for file in cut:
        name = file.stem if file.stem in there else studio.data.import_rows(str(file), skip_bad=True).name
        conversations = studio.data.conversations(name, arguments.rows)
        for rank in arguments.rank or [16]:
            for folder in prepare_models(place / "models", texts):
                if arguments.only and not any(part in folder.name for part in arguments.only):
                    continue
                lora = {"rank": rank, "alpha": arguments.alpha}
                trials = cache(partial(Trials, folder, conversations, lora, arguments.steps))
                table.grid(Cell(folder.name, name, rank, arguments.alpha, "auto"), trials)


def prepare_models(place: Path, texts: list[str]) -> list[Path]:
    """The small models, made where they are not there yet, and the demo model."""
    from qlora_studio.bases import find_base
    from qlora_studio.core.config import DEMO_BASE
    from qlora_studio.engine.fetch import fetch_base

    place.mkdir(parents=True, exist_ok=True)
    small = [place / f"width-{width}" for width in WIDTHS]
    for folder, width in zip(small, WIDTHS, strict=True):
        if not (folder / "tokenizer.json").is_file():
            make_small_model(width, texts, folder)
    demo = find_base(DEMO_BASE, place).folder or fetch_base(DEMO_BASE, place, None, lambda text: None)
    return [*small, demo]


if __name__ == "__main__":
    main()
