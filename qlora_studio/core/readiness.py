"""What a person reads before a start, and before an export: the same answer for page and command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qlora_studio.core.bases import BaseFacts
from qlora_studio.core.dataset import Finding
from qlora_studio.core.errors import Problem
from qlora_studio.core.jobs import TokeniseReport
from qlora_studio.core.plan import MemoryPlan
from qlora_studio.core.words import about, gib, gib_of


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What is known of the rows of a run."""

    rows: int = 0
    """Conversations in the chosen sets."""
    tokens: TokeniseReport | None = None
    """What tokenising them under these very settings found, where it was done."""
    findings: tuple[Finding, ...] = ()
    """What is wrong with them as far as it shows without a tokenizer; the report's own are taken where there is one."""


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """How long a run will take, as far as that can be foretold."""

    seconds: float
    tokens_per_second: float
    """While training, without padding."""
    measured: bool
    """Whether this machine was measured before; else a formula says it, and it is rough."""
    basis: str
    """Where it comes from, in words that follow the time."""

    def __str__(self) -> str:
        words = about(self.seconds)
        return words if words.startswith("under") else f"{'about' if self.measured else 'roughly'} {words}"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows that will not be trained, and why in a word or two."""

    rows: int
    why: str


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """Bytes that will be written, and bytes there are."""

    needed_bytes: int
    free_bytes: int

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.free_bytes


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a run can start, what it will do, what speaks against it. Nothing is known of what is None."""

    rows: int
    """Conversations in the chosen sets, those held out aside once they were counted."""
    trained_rows: int | None
    left_out: tuple[LeftOut, ...]
    cut_rows: int
    """Rows that are trained without their oldest turns or the end of their answer."""
    held_out_rows: int | None
    steps: int | None
    steps_exact: bool
    """False where there are too many rows to carry their lengths along: steps are then tokens by batch."""
    time: TimeEstimate | None
    plan: MemoryPlan | None
    disk: DiskNeed | None
    download_bytes: int
    """Of the base, where it has to be fetched first; not part of the time."""
    blocks: tuple[Problem, ...]
    """Why it cannot start, each with what to do; an over-full plan is not among them."""
    over_budget: Problem | None
    """That the plan does not fit. A person may start anyway."""
    unusual: tuple[Problem, ...]
    """What may be meant and rarely is."""
    chosen: Mapping[str, str] = field(default_factory=dict)
    """What was left open and is settled by now: a sentence by dotted field."""
    limits: tuple[str, ...] = ()
    """What of the base cannot be quantised, adapted or merged."""

    @property
    def ready(self) -> bool:
        """Whether it can start as it is."""
        return not self.blocks and self.over_budget is None

    @property
    def can_start_anyway(self) -> bool:
        """Whether nothing but the plan stands in the way."""
        return not self.blocks and self.over_budget is not None

    @property
    def sentence(self) -> str:
        """`137 of 200 rows, 63 too long, 40 steps, about 5 min, 1.8 of 4.0 GiB`, as far as each is known."""
        parts = [_rows(self.trained_rows, self.rows), *(f"{one.rows:,} {one.why}" for one in self.left_out)]
        if self.cut_rows:
            parts.append(f"{self.cut_rows:,} truncated")
        if self.steps is not None:
            parts.append(f"{'' if self.steps_exact else 'about '}{self.steps:,} step{'s' if self.steps != 1 else ''}")
        if self.time is not None:
            parts.append(str(self.time))
        if self.plan is not None:
            parts.append(gib_of(self.plan.estimate.total_bytes, self.plan.budget_bytes))
        if self.download_bytes:
            parts.append(f"{gib(self.download_bytes)} to download first")
        return ", ".join(parts)


def _rows(trained: int | None, rows: int) -> str:
    noun = "row" if rows == 1 else "rows"
    if trained is None:
        return f"{rows:,} {noun}, not tokenised yet"
    return f"{rows:,} {noun}" if trained == rows else f"{trained:,} of {rows:,} {noun}"


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """What an export is made of. Sizes in bytes."""

    kind: str
    """Name of the exporter, for people: `adapter`, `merged model`."""
    result_bytes: int | None
    """Of what is written; None where that shows only once the base is here."""
    read_bytes: int
    """Of what has to be read for it."""
    scratch_bytes: int = 0
    """Written on the way and removed again."""
    checks: int = 0
    """Prompts that chat and artefact are both asked."""
    free_bytes: int = 0
    """Where it is written."""
    encoded_values: int = 0
    """Numbers whose blocks of few bits are searched for: what takes the time of a small GGUF file."""
    cores: int = 1
    """That search for them."""
    gguf: bool = False
    """Whether a file for llama.cpp is among what is written."""
    read_tokens: int = 0
    """Of training rows that go through the model for an importance matrix."""
    tokens_per_second: float | None = None
    """That this run's own training reached; None where that is not known."""


@dataclass(frozen=True, slots=True)
class ExportReadiness:
    """Whether an export can start, how large it becomes, how long it takes."""

    base: BaseFacts
    kind: str
    result_bytes: int | None
    time: TimeEstimate | None
    disk: DiskNeed | None
    blocks: tuple[Problem, ...]

    @property
    def ready(self) -> bool:
        return not self.blocks

    @property
    def sentence(self) -> str:
        """`merged model, 269 MiB, under a minute, 12.40 GiB free`, as far as each is known."""
        parts = [self.kind]
        if self.result_bytes is not None:
            parts.append(gib(self.result_bytes))
        if self.time is not None:
            parts.append(str(self.time))
        if self.disk is not None:
            parts.append(f"{gib(self.disk.free_bytes)} free")
        return ", ".join(parts)
