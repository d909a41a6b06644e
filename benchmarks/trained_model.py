"""A home with a small model of another family, first trained here from nothing, and a run tuned on it with the demo's rows.

    python benchmarks/trained_model.py qwen3 --home PLACE [--updates 400]

For `benchmarks/export.py` and `benchmarks/beside_llama_cpp.py`: limits that were measured on one trained model are to hold
on others, and random weights take rounding otherwise than trained ones. Its rows divide into K-quants' blocks of 256,
which those of SmolLM2 do not. The texts are Python's own manual; the demo's rows are not among them.
"""

from __future__ import annotations

import argparse
import os
import pydoc_data.topics
import random
from pathlib import Path
from typing import Any

import torch
from recipe import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_studio.core.progress import fold
from qlora_studio.studio import Studio

SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "qwen3": {}, "llama": {}, "gemma3_text": {"query_pre_attn_scalar": 64, "sliding_window": 128},
}  # fmt: skip
BLOCK, BATCH, RATE = 128, 8, 3e-3


def train(family: str, folder: Path, updates: int) -> None:
    """A model of this family and a tokenizer, both trained from nothing."""
    texts = list(pydoc_data.topics.topics.values())
    random.Random(0).shuffle(texts)
    tokenizer = make_tokenizer(texts)
    ids = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    blocks = torch.tensor(ids[: len(ids) // BLOCK * BLOCK]).view(-1, BLOCK)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, **SIZES, **MORE[family],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, updates)
    for update in range(updates):
        batch = blocks[torch.randint(len(blocks), (BATCH,))]
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if update % 50 == 49:
            print(f"update {update + 1}: {loss.item():.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=sorted(MORE))
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=400)
    chosen = parser.parse_args()
    os.environ["QLORA_STUDIO_HOME"] = str(chosen.home.resolve())
    studio = Studio()
    folder = studio.home.models / f"small-{chosen.family.partition('_')[0]}"
    if not (folder / "config.json").exists():
        train(chosen.family, folder, chosen.updates)
    demo = studio.data.demo()
    studio.data.import_rows(str(demo.rows), name="demo")
    config = studio.presets.default_config().replace(
        {**demo.settings, "data.sources": [{"name": "demo"}], "model.base": folder.name, "saving.name": folder.name}
    )
    run = studio.runs.start(config)
    state = fold(studio.runs.watch(run))
    print(
        f"{run} is {state.state}: held-out {state.base_loss} before, {state.held_out.best} at its best {state.message}"
    )


if __name__ == "__main__":
    main()
