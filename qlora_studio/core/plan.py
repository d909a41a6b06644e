"""What is known about a card and a model, and what a run will take of the card. All sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

MIB, GIB = 1 << 20, 1 << 30


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
    peak_flops: float | None = None
    """Multiplications and additions a second in 16 bit with fp32 sums, as calculated from cores and clocks."""
    bandwidth: float | None = None
    """Bytes a second of its memory, as calculated from width and clock."""
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
    attention_bias: bool = False
    """Whether the query, key and value projections have a bias."""
    output_bias: bool = False
    """Whether the attention's output projection has a bias."""
    mlp_bias: bool = False
    sliding_window: int | None = None
    """Tokens that a local layer looks back; rows as long as that need a mask."""
    sliding_layers: int = 0
    """How many layers are local."""
    whole_logits: bool = False
    """Whether the model scales or caps its logits, so that its loss cannot be computed in chunks."""
    rotary_dim: int | None = None
    """How much of a head is rotated, where it is not all of it."""
    exact: bool = True
    """Whether the formulas know this family; if not, a dry run supplies what they would."""
    config_hash: str = ""
    """Hash of the `config.json` it was read from; empty for a shape that was written down."""
    measured: MeasuredShape | None = None
    """What a dry run found, where there was one."""


@dataclass(frozen=True, slots=True)
class LinearShape:
    """One kind of linear layer that gets an adapter, and how often the model has it."""

    name: str
    """Last part of its name, such as `q_proj`."""
    inputs: int
    outputs: int
    count: int
    bias: bool = False
    four_bit: bool = True
    """Whether it is quantised; else it is adapted all the same and stays in the compute format."""
    transposed: bool = False
    """Whether its file holds (inputs, outputs) and not the other way round, as GPT-2's Conv1D does."""
    path: str = ""
    """Its name in the model with `*` for every number, such as `model.layers.*.self_attn.q_proj`."""

    @property
    def weights(self) -> int:
        """Numbers in one such matrix."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class StackedShape:
    """Matrices of many experts in one parameter, which are neither quantised nor adapted: they stay as they are."""

    path: str
    """Its name with `*` for every number."""
    numbers: int
    """In one such parameter, all experts together."""
    count: int
    active: float = 1.0
    """Share of the experts that a token goes through."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of the backward pass: what it needs on top of everything that is kept."""

    per_token: float
    """Bytes per token of the micro-batch."""
    fixed: int = 0
    """Bytes whatever the number of tokens, such as one dequantised weight matrix."""
    per_pair: float = 0.0
    """Bytes per pair of tokens of a row: what attention without a fused kernel holds."""
    norm_width: float = 0.0
    """Numbers a token of a norm whose gradient is computed at this moment, in fp32 copies of a block at a time; else 0."""
    norm_fused: bool = False
    """Whether a card has one kernel for that norm, which needs no copies."""
    inner_width: float = 0.0
    """Numbers a token of each inner tensor of a gated MLP that is made again at this moment, in blocks; else 0."""
    tile_width: float = 0.0
    """Numbers a token of each of the two inner tensors that a tile of a gated MLP holds at this moment; else 0."""
    attention: bool = False
    """Whether fused attention goes backward at this moment."""


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What forward and backward hold, apart from the loss: bytes per token of the micro-batch, and fixed bytes."""

    boundary: float
    """A layer's input: all that is kept of a checkpointed layer."""
    saved: float
    """Kept from forward to backward by a layer that is not checkpointed."""
    saved_fixed: int
    """Kept by such a layer whatever the number of tokens: its adapter's weights in the compute format."""
    first_saved_less: float
    """What the first layer keeps less than the others, because nothing before it is trained."""
    around: float
    """Kept once for the whole model: positions, ids, labels."""
    ending: float
    """Kept by what follows the last layer, until the backward pass has gone through it."""
    layer: tuple[Moment, ...]
    """The worst moments of a layer's backward pass, on top of what is kept."""
    end: Moment
    """The worst moment of the backward pass through what follows the last layer."""
    forward: Moment | None = None
    """The worst moment of the forward pass, where it may be worse than any of the backward pass."""
    saved_pairs: float = 0.0
    """As `saved`, per pair of tokens of a row; 0 with fused attention."""
    around_pairs: float = 0.0
    """As `around`, per pair of tokens of a row: a mask."""


class MeasuredShape(_Value):
    """What a dry run found out about an architecture that no formula knows."""

    linears: tuple[LinearShape, ...]
    other_bytes: int
    """Bytes of everything that is not kept in four bits, in bf16, buffers included."""
    stacked: tuple[StackedShape, ...] = ()
    """Experts; their bytes are among the others."""
    padded_because: str | None = None
    """Why its rows will be padded; None where they will lie side by side in one sequence."""
    eager: bool = False
    """Whether its attention runs without a fused kernel, so that memory grows with the square of a row."""
    costs: dict[str, StepCosts]
    """By number format of the arithmetic: bf16 (which fp16 equals) and fp32."""
    tiled: dict[str, StepCosts] = {}
    """The same with gated MLPs in tiles, in bf16; empty where it has none that could be."""
    rank: int
    """The rank at which `costs` was measured."""


class PlanSettings(_Value):
    """What the size of a training step depends on, apart from the model."""

    device: Literal["cuda", "cpu"] = "cuda"
    compute: Literal["bf16", "fp16", "fp32"] = "bf16"
    rank: int = 16
    dropout: bool = False
    """Whether adapter inputs are left out at random: every linear layer then keeps its own input and a mask."""
    dora: bool = False
    """Whether the length of each output is learned apart from its direction."""
    adapted: tuple[str, ...] = ()
    """Names of the linear layers with an adapter; empty: all."""
    adapted_layers: int | None = None
    """Decoder layers with an adapter; empty: all."""
    micro_batch_tokens: int = 2048
    """Tokens computed at once, padding included."""
    row_tokens: int | None = None
    """Length of the longest row; empty: one row fills the micro-batch."""
    packed: bool = False
    """Whether rows lie side by side in one sequence; else below each other, padded to the longest."""
    cut_by_row: bool = False
    """Whether packed attention is one kernel a row, with masks of its own where a window is: a card without flash."""
    trained_tokens: int | None = None
    """Positions of the micro-batch that carry a loss; empty: all of them."""
    checkpointed_layers: int = 0
    adapter_precision: Literal["fp32", "bf16"] = "fp32"
    optimizer: str = "adamw_8bit"
    offload: Literal["none", "boundaries", "embeddings", "both"] = "none"
    tiled_mlp: bool = False
    """Whether the MLP keeps its input alone and is computed again in tiles."""
    repeats_kv: bool = False
    """Whether keys and values are repeated for every head: a card without flash attention has no grouped queries."""
    correction: float = 1.0
    """What earlier runs on this machine took of activations, loss and workspace, as a share of what was planned."""

    @property
    def compute_bytes(self) -> int:
        """Bytes of one number in the compute format."""
        return 4 if self.compute == "fp32" else 2

    @property
    def adapter_bytes(self) -> int:
        """Bytes of one number of the adapter."""
        return 4 if self.adapter_precision == "fp32" else 2


class MemoryPart(_Value):
    """One item of the bill."""

    key: str
    label: str
    bytes: int
    basis: str = Field("", validation_alias=AliasChoices("basis", "says"))
    """Where the number comes from, in a sentence."""


class MemoryEstimate(_Value):
    """The bill of one training step, item by item."""

    parts: tuple[MemoryPart, ...]

    @property
    def total_bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def allocator_bytes(self) -> int:
        """What the allocator hands out at the peak: the bill without context and slack."""
        return sum(part.bytes for part in self.parts if part.key not in ("context", "slack"))

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
    """On how many decoder layers there is gradient checkpointing."""
    layers: int
    adapter_precision: Literal["fp32", "bf16"]
    optimizer: str
    offload: Literal["none", "boundaries", "embeddings", "both"] = "none"
    tiled_mlp: bool = False
    """Whether MLPs are computed in tiles, forward and again backward."""
    host_bytes: int = 0
    """Memory of the computer that offloading takes."""
    host_budget_bytes: int | None = None
    """How much of it there may be."""
    settings: PlanSettings | None = None
    """Everything the estimate was made with, so that it can be made again for another step."""
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
        return self.missing_bytes == 0

    @property
    def missing_bytes(self) -> int:
        """What is missing, of the budget or of the memory that offloading may take; 0 where it fits."""
        offloaded = self.host_bytes - self.host_budget_bytes if self.host_budget_bytes is not None else 0
        return max(0, -self.spare_bytes, offloaded)

    @property
    def spare_bytes(self) -> int:
        """What is left of the budget; negative where it does not fit."""
        return self.budget_bytes - self.estimate.total_bytes

    @property
    def comparable_bytes(self) -> int:
        """What the plan says of the quantity that a run's peak measures.

        On a CPU that is the whole process; on a card what the allocator takes, CUDA's context not among it.
        """
        return self.estimate.total_bytes - self._unmeasured_bytes

    @property
    def comparable_budget_bytes(self) -> int:
        """The budget for that quantity."""
        return self.budget_bytes - self._unmeasured_bytes

    @property
    def _unmeasured_bytes(self) -> int:
        return 0 if self.device == "cpu" else self.estimate.part_bytes("context")
