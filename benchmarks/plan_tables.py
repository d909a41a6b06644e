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
    """Micro-batch in tokens, checkpointed layers, GiB planned; E and B where embeddings or layer inputs are offloaded."""
    config = TrainConfig().replace({"data.max_length": 1024})
    for name, shape in REFERENCE_SHAPES.items():
        cells = []
        for size in CARD_SIZES_GIB:
            plan = make_plan(config, shape, imagine_machine(size))
            layers = f"{plan.checkpointed_layers}/{plan.layers}"
            taken = f"{plan.estimate.total_bytes / GIB:.1f}"
            chosen = f"{plan.micro_batch_tokens} · {layers} · {taken} {MARKS[plan.offload]}".strip()
            cells.append(chosen if plan.fits else "–")
        print(f"| {name} | {' | '.join(cells)} |")


def print_longest() -> None:
    """The longest row that fits with the smallest settings."""
    config = TrainConfig()
    for name, shape in REFERENCE_SHAPES.items():
        longest = [make_plan(config, shape, imagine_machine(size)).longest_context or 0 for size in CARD_SIZES_GIB]
        print(f"| {name} | {' | '.join(f'{rows:,}' if rows >= SHORTEST else '–' for rows in longest)} |")


def print_architectures() -> None:
    """What of many families is quantised, adapted and mergeable; needs torch and takes a minute."""
    from qlora_studio.engine.architecture import count_model
    from tests.engine.architectures import ALL, config_of

    for family in ALL:
        found = count_model(config_of(family))
        four_bit = sum(linear.count for linear in found.linears if linear.four_bit)
        adapted = sum(linear.count for linear in found.linears)
        merges = "no: transposed" if any(linear.transposed for linear in found.linears) else "yes"
        stays = "experts" if found.stacked else "" if four_bit == adapted else "linear layers of its own kind"
        print(f"| {family} | {four_bit} | {adapted} | {stays or '–'} | {merges} |")


if __name__ == "__main__":
    print("Chosen:")
    print_chosen()
    print("Longest rows:")
    print_longest()
    print(
        "Architectures (tiny models of four layers): 4-bit layers, adapted layers, what else stays in 16 bit, mergeable:"
    )
    print_architectures()
