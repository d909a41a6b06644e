"""What is known about a card and a model, and what a run will take of the card. All sizes in bytes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GpuProcess(_Value):
    """A process that holds memory on a card."""

    pid: int
    name: str
    used_bytes: int | None = None


class GpuInfo(_Value):
    """One card as its driver describes it at one moment."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    uuid: str = ""
    driver: str = ""
    compute_capability: tuple[int, int] | None = None
    temperature_c: int | None = None
    power_watts: float | None = None
    utilisation_percent: int | None = None
    processes: tuple[GpuProcess, ...] = ()


class ModelShape(_Value):
    """The sizes of a decoder-only transformer, read from `config.json` alone."""

    name: str
    family: str
    """`model_type` of the config: llama, qwen3, gemma3_text, …"""
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied_embeddings: bool
    max_positions: int
    qk_norm: bool = False
    exact: bool = True
    """Whether the formulas know this family; if not, a dry run supplies the activation constants."""


class MemoryPart(_Value):
    """One item of the bill."""

    key: str
    label: str
    bytes: int
    says: str = ""
    """Where the number comes from, in a sentence."""


class MemoryEstimate(_Value):
    """The bill of one training step, item by item."""

    parts: tuple[MemoryPart, ...]

    @property
    def total_bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    def part_bytes(self, key: str) -> int:
        """Bytes of one item; 0 where the bill has no such item."""
        return sum(part.bytes for part in self.parts if part.key == key)


class MemoryPlan(_Value):
    """The settings a run will use, what they take, and why they were chosen."""

    device: Literal["cuda", "cpu"]
    budget_bytes: int
    estimate: MemoryEstimate
    micro_batch_tokens: int
    checkpointed_layers: int
    """How many decoder layers are computed twice."""
    layers: int
    adapter_precision: Literal["fp32", "bf16"]
    optimizer: str
    offload: Literal["none", "boundaries", "embeddings", "both"] = "none"
    reasons: tuple[str, ...] = ()
    """Why each was chosen, in words."""
    changes: tuple[str, ...] = ()
    """Where nothing fits: what to change, and what it saves."""
    longest_context: int | None = None
    """Tokens of the longest row that would fit with everything else as it is."""
    largest_rank: int | None = None
    """The largest rank that would fit with everything else as it is."""

    @property
    def fits(self) -> bool:
        return self.estimate.total_bytes <= self.budget_bytes

    @property
    def spare_bytes(self) -> int:
        """What is left of the budget; negative where it does not fit."""
        return self.budget_bytes - self.estimate.total_bytes
