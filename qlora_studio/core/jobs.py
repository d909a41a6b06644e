"""What each job is asked and what it answers, as frozen types: all that crosses from one process to another.

A job is a request in `job.json`; its answer is the report in the last event of its journal. A new kind of job is a
request, a report, their two lines at the end of this file, and a module of its name in `worker/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from qlora_studio.core.bases import FailedBase, ResolvedBase
from qlora_studio.core.chat import Sampling
from qlora_studio.core.dataset import Finding
from qlora_studio.core.doctor import Check

MergeInto = Literal["original", "as_chatted"]
"""Which weights take the adapter: the base's own, or their 4-bit round trip that the chat computed with."""
GgufType = Literal["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]
"""How the numbers of a GGUF file are kept, by llama.cpp's names."""


CombineHow = Literal["cat", "linear"]
"""How adapters are combined, by PEFT's names: side by side, which is exact, or factor added to factor."""


PushTo = Literal["lmstudio", "ollama", "hub"]
"""Where a finished export can be handed on to."""


class _Request(BaseModel):
    """What a job is asked to do; paths are absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Report(BaseModel):
    """What a job found or made."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class TrainRequest(_Request):
    """Trains what the folder's `config.json` describes."""

    job: Literal["train"] = "train"


class TokeniseRequest(_Request):
    """Turns the data sets of the folder's `config.json` into tokens, for looking at them."""

    job: Literal["tokenise"] = "tokenise"
    datasets: Path
    """The folder that holds the imported sets."""
    previews: int = Field(20, ge=0)
    """How many examples to render with their text."""


class EvaluateRequest(_Request):
    """Measures a run: held-out loss and answers, of base and adapter."""

    job: Literal["evaluate"] = "evaluate"
    run: Path
    prompts: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    checkpoint: str = ""
    """Which weights: `best`, `last` or `step-N`; empty takes the run's adapter."""


class ExportRequest(_Request):
    """Writes a run's adapter, merged model, GGUF file or all of them into a new or empty folder."""

    job: Literal["export"] = "export"
    run: Path
    to: Path
    kind: str = "merged"
    """Name of one of `core.exports.EXPORT_KINDS`."""
    merge_into: MergeInto = "original"
    gguf: GgufType = "Q4_K_M"
    """For a GGUF file, how its numbers are kept."""
    parts: tuple[str, ...] = ()
    """For a pack, the kinds it holds."""
    prompts: tuple[str, ...] = ()
    """What chat and artefact are both asked; empty leaves the comparison out."""
    checkpoint: str = ""
    """Which weights: `best`, `last` or `step-N`; empty takes the run's adapter."""
    held_out: bool = True
    """Whether both are also measured on the rows that the run holds out."""
    importance: bool = False
    """Whether a GGUF file's blocks are fitted by an importance matrix of the run's training rows."""


class AdoptRequest(_Request):
    """Makes a run of an adapter that was trained elsewhere; the folder's `config.json` names its base."""

    job: Literal["adopt"] = "adopt"
    adapter: Path


class CombinePart(_Request):
    """One adapter of a combination."""

    run: Path
    weight: float = Field(allow_inf_nan=False)
    checkpoint: str = ""
    """Which weights: `best`, `last` or `step-N`; empty takes the run's adapter."""


class CombineRequest(_Request):
    """Makes a run of the adapters of several runs of one base; the folder's `config.json` names the base."""

    job: Literal["combine"] = "combine"
    parts: tuple[CombinePart, ...] = Field(min_length=2)
    how: CombineHow = "cat"


class PushRequest(_Request):
    """Hands a finished export on."""

    job: Literal["push"] = "push"
    export: Path
    to: PushTo
    name: str = Field(min_length=1, max_length=200)
    """What it is called there."""
    public: bool = False
    """On the hub: whether everybody may see it."""


class ChatJobRequest(_Request):
    """Loads a run's base and adapter and answers what comes through the pipe."""

    job: Literal["chat"] = "chat"
    run: Path
    checkpoint: str = ""
    """Which weights: `best`, `last` or `step-N`; empty takes the run's adapter."""


class DoctorRequest(_Request):
    """Looks at what only torch can tell about this machine."""

    job: Literal["doctor"] = "doctor"


class ResolveRequest(_Request):
    """Looks a base up, so that plans for it are arithmetic: hub, sizes, and a dry run where no formula knows it."""

    job: Literal["resolve"] = "resolve"
    base: str
    revision: str | None = None
    again: bool = False
    """Forget what is kept of it first, a failure too."""


class RateRequest(_Request):
    """Trains a few steps at each of several learning rates, with the settings of the folder's `config.json`."""

    job: Literal["rate"] = "rate"
    steps: int = Field(ge=1)
    """Of each rate."""


class RatePoint(_Report):
    """What a few steps at one learning rate came to."""

    rate: float
    loss: float | None = None
    """In nats; None where the loss or a gradient was not finite."""


class RateReport(_Report):
    """Losses by learning rate after the same few steps from the same start."""

    job: Literal["rate"] = "rate"
    steps: int
    points: tuple[RatePoint, ...]
    """By rising rate."""
    base_loss: float | None = None
    """Of the same rows before any step."""
    held_out: bool
    """Whether these are rows held out; else the last rows trained."""
    rate: float | None = None
    """The one to take; None where none was better than the base."""

    @property
    def sentence(self) -> str:
        """What was tried, and what to take."""
        tried = f"{self.steps} steps each from the same start"
        if self.rate is None:
            return f"After {tried} no rate is better than the base. Look at the rows, or train more steps."
        edge = ""
        if self.rate == self.points[0].rate:
            edge = " It is the lowest that was tried: a lower one may be better still."
        elif self.rate == self.points[-1].rate:
            edge = " It is the highest that was tried: a higher one may be better still."
        return f"After {tried}, {self.rate:g} is the lowest rate that does as well as the best.{edge}"


class TrainReport(_Report):
    """How a training ended. Losses are means over trained tokens in nats."""

    job: Literal["train"] = "train"
    steps: int
    loss: float | None = None
    """Training loss of the last step."""
    held_out_before: float | None = None
    held_out_after: float | None = None
    best_step: int | None = None
    """The step of the lowest held-out loss."""
    best_held_out: float | None = None
    stopped_early: bool = False
    """Ended by `evaluation.patience` before its last step."""


class LengthBin(_Report):
    """One column of a histogram of lengths: both ends included, in tokens."""

    first: int
    last: int
    rows: int


class TextPiece(_Report):
    """A stretch of an example's exact text that is trained or not."""

    text: str
    trained: bool


class ExamplePreview(_Report):
    """One example as the model sees it; its pieces together are all of its text."""

    source: str
    """`file:line`."""
    tokens: int
    trained: int
    """Tokens that carry loss."""
    pieces: tuple[TextPiece, ...]


class TokeniseReport(_Report):
    """What the model will see of some data sets: counts, lengths in tokens, findings, first examples."""

    job: Literal["tokenise"] = "tokenise"
    rows: int
    """Conversations read for training."""
    examples: int
    held_out_rows: int
    tokens: int
    trained_tokens: int
    limit: int
    """The max sequence length these counts hold for."""
    too_long: int
    dropped: int
    cut: int
    refused: int
    median: int
    p95: int
    longest: int
    padding_share: float
    """Share of padding in batches of eight as rows come."""
    histogram: tuple[LengthBin, ...]
    lengths: tuple[int, ...] = ()
    """Tokens of every example that is trained, where few enough to carry along."""
    findings: tuple[Finding, ...]
    previews: tuple[ExamplePreview, ...]


class EvaluateReport(_Report):
    """Held-out loss of base and adapter over the same rows; None where the run holds nothing out."""

    job: Literal["evaluate"] = "evaluate"
    rows: int
    base_loss: float | None = None
    tuned_loss: float | None = None


class ExportReport(_Report):
    """Where an export lies."""

    job: Literal["export"] = "export"
    path: Path
    bytes: int
    files: tuple[str, ...] = ()
    """Their names in its folder; none where an earlier version has written it."""


class AdoptReport(_Report):
    """What was adopted."""

    job: Literal["adopt"] = "adopt"
    layers: int
    """Layers that the adapter changes."""


class CombineReport(_Report):
    """What was combined."""

    job: Literal["combine"] = "combine"
    layers: int
    rank: int


class PushReport(_Report):
    """Where an export can be found now."""

    job: Literal["push"] = "push"
    place: str
    """A path, a command, or an address."""


class ChatReport(_Report):
    """A chat has nothing to report: its answers went through the pipe."""

    job: Literal["chat"] = "chat"


class ResolveReport(_Report):
    """What is known of a base now. A failure is an answer too: it is kept, and nobody looks again unasked."""

    job: Literal["resolve"] = "resolve"
    facts: ResolvedBase | FailedBase = Field(discriminator="state")


class DoctorReport(_Report):
    """The checks that need torch."""

    job: Literal["doctor"] = "doctor"
    checks: tuple[Check, ...]


Request = Annotated[
    TrainRequest
    | RateRequest
    | TokeniseRequest
    | EvaluateRequest
    | ExportRequest
    | AdoptRequest
    | CombineRequest
    | PushRequest
    | ChatJobRequest
    | DoctorRequest
    | ResolveRequest,
    Field(discriminator="job"),
]
Report = Annotated[
    TrainReport
    | RateReport
    | TokeniseReport
    | EvaluateReport
    | ExportReport
    | AdoptReport
    | CombineReport
    | PushReport
    | ChatReport
    | DoctorReport
    | ResolveReport,
    Field(discriminator="job"),
]
_REQUESTS: TypeAdapter[Request] = TypeAdapter(Request)


def parse_request(values: Mapping[str, Any]) -> Request:
    """The request in a job file. Raises ValueError where it is of a kind or shape that this version does not know."""
    try:
        return _REQUESTS.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


@dataclass(frozen=True, slots=True)
class JobRef:
    """Names a job that was started, for looking at it, following it and stopping it."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name
