"""The tables of docs/memory.md that are calculated: `python benchmarks/plan_tables.py`. Seconds, no card, no weights."""

from __future__ import annotations

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.plan import GIB
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.tables import CARD_SIZES_GIB, imagine_machine

MARKS = {"none": "", "embeddings": "E", "boundaries": "B", "both": "EB"}
SHORTEST = 256
"""A longest row below this is as good as none."""


def print_chosen() -> None:
    """Tokens at once, layers computed twice, GiB planned; E and B where embeddings or layer inputs wait outside."""
    config = TrainConfig().replace({"data.max_length": 1024})
    for name, shape in REFERENCE_SHAPES.items():
        cells = []
        for size in CARD_SIZES_GIB:
            plan = make_plan(config, shape, imagine_machine(size))
            twice = f"{plan.checkpointed_layers}/{plan.layers}"
            taken = f"{plan.estimate.total_bytes / GIB:.1f}"
            chosen = f"{plan.micro_batch_tokens} · {twice} · {taken} {MARKS[plan.offload]}".strip()
            cells.append(chosen if plan.fits else "–")
        print(f"| {name} | {' | '.join(cells)} |")


def print_longest() -> None:
    """The longest row that fits with the smallest settings."""
    config = TrainConfig()
    for name, shape in REFERENCE_SHAPES.items():
        longest = [make_plan(config, shape, imagine_machine(size)).longest_context or 0 for size in CARD_SIZES_GIB]
        print(f"| {name} | {' | '.join(f'{rows:,}' if rows >= SHORTEST else '–' for rows in longest)} |")


if __name__ == "__main__":
    print("Chosen:")
    print_chosen()
    print("Longest rows:")
    print_longest()
