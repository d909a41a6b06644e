"""Held-out loss at the rate that chooses itself, at the old default of 2e-4 and over a grid, through real runs.

python benchmarks/recipe.py rows.json more.json [--rows 240] [--steps 32] [--rank 8 --rank 64] [--out result.json]

Every set is imported into a home of its own, and each rate is a run of the studio: its worker, its recipe, one rate
changed. Models: the demo model, and two of other widths that are first trained here, briefly, on the rows behind those
that are tuned on. A loss is the mean over trained tokens of the rows held out, in nats, after the last step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ["PYTHONPATH"] = str(ROOT)

RATES: tuple[float | str, ...] = (2e-4, 5e-4, 1e-3, 2e-3, 4e-3, "auto")
WIDTHS = (192, 384)
LAYERS, VOCABULARY, BLOCK, BATCH, UPDATES, PRETRAINING_RATE = 4, 4096, 256, 8, 400, 3e-3
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def split_rows(files: list[Path], rows: int, place: Path) -> tuple[list[Path], list[str]]:
    """Files with the first rows of each set, for tuning, and the text of the rest, for training models at all."""
    place.mkdir(parents=True, exist_ok=True)
    texts: list[str] = []
    cut = []
    for file in files:
        values = json.loads(file.read_text(encoding="utf-8"))
        cut.append(place / file.name)
        cut[-1].write_text(json.dumps(values[:rows]), encoding="utf-8")
        texts += [" ".join(strings(row)) for row in values[rows:]]
    return cut, texts


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


def measure(studio: Any, changes: dict[str, Any]) -> dict[str, float]:
    """One run from start to end: its rate, and the held-out loss before and after."""
    config = studio.presets.default_config().replace(changes)
    run = studio.runs.start(config)
    *_, last = studio.runs.watch(run)
    if last.tag != "finished":
        raise SystemExit(f"{run}: {last}")
    while studio.runs.open(run).state != "finished":
        time.sleep(0.2)  # its process still leaves
    return {"before": last.report.held_out_before, "after": last.report.held_out_after}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rank", type=int, action="append")
    parser.add_argument("--only", action="append", help="Only models whose name contains this.")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["QLORA_STUDIO_HOME"] = place
        from qlora_studio.core.config import DEMO_BASE
        from qlora_studio.engine.fetch import fetch_base
        from qlora_studio.studio import Studio

        studio, home = Studio(), Path(place)
        fetch_base(DEMO_BASE, home / "models", None, lambda said: None)
        cut, texts = split_rows(arguments.files, arguments.rows, home / "rows")
        models = [DEMO_BASE]
        models += [
            str(make_small_model(width, texts, home / "models" / f"width-{width}"))
            for width in WIDTHS
            if not arguments.only or any(part in f"width-{width}" for part in arguments.only)
        ]
        if arguments.only:
            models = [model for model in models if any(part in model for part in arguments.only)]
        sets = [studio.data.import_rows(str(file), skip_bad=True).name for file in cut]
        results: list[dict[str, Any]] = []
        for model in models:
            for name in sets:
                for rank in arguments.rank or [16]:
                    results += grid(
                        studio,
                        {"model.base": model, "data.sources": [{"name": name}], "lora.rank": rank},
                        arguments.steps,
                    )
                    if arguments.out:
                        arguments.out.write_text(json.dumps(results, indent=1))


def grid(studio: Any, changes: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """One line per rate for one model, set and rank; the last says how far `auto` ends from the best."""
    common = {
        **changes, "optim.batch_tokens": 1024, "data.max_length": 1024, "optim.epochs": 100, "optim.max_steps": steps,
        "data.eval_share": 0.15, "evaluation.every_steps": 10_000, "optim.optimizer": "adamw",
    }  # fmt: skip
    name, data, rank = Path(changes["model.base"]).name, changes["data.sources"][0]["name"], changes["lora.rank"]
    lines = []
    for rate in RATES:
        losses = measure(studio, {**common, "optim.learning_rate": rate})
        lines.append({"model": name, "set": data, "rank": rank, "rate": rate, **losses})
        print(f"{name:24} {data:28} r{rank:<3} {rate!s:8} {losses['before']:.4f} -> {losses['after']:.4f}", flush=True)
    best = min(line["after"] for line in lines)
    auto = lines[-1]["after"]
    print(f"{name:24} {data:28} r{rank:<3} auto ends {auto / best - 1:+.2%} from the best of the grid", flush=True)
    return lines


if __name__ == "__main__":
    main()
