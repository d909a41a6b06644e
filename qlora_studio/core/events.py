"""What a job says while it runs. Frozen and tagged; the journal adds the time, a reader skips tags it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from qlora_studio.core.jobs import Report
from qlora_studio.core.plan import MemoryPlan


class Event(BaseModel):
    """A fact about a job. Each kind has a tag that stands in the journal."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    tag: ClassVar[str] = ""
    ends: ClassVar[bool] = False
    """Whether a job is over with it."""

    def to_json(self) -> dict[str, Any]:
        return {"event": self.tag, **self.model_dump(mode="json")}


class JobStarted(Event):
    tag = "started"
    job: str
    pid: int = 0


class PhaseEntered(Event):
    """A new stretch of work, named for people: "loading the model"."""

    tag = "phase"
    phase: str


class Advanced(Event):
    """Progress inside a phase; `total` 0 where the end is not known."""

    tag = "advanced"
    done: int
    total: int = 0
    unit: str = ""
    seconds_left: float | None = None
    """How long the rest of the phase takes at the pace so far; None where nobody knows."""


class Noted(Event):
    """A sentence worth showing, such as a choice that was made for the person."""

    tag = "noted"
    text: str


class PlanMade(Event):
    tag = "plan"
    plan: MemoryPlan


class ProbeMeasured(Event):
    """The largest step was run once without an update; what was planned and what it took."""

    tag = "probe"
    predicted_bytes: int
    measured_bytes: int
    """Peak of the probe, with the optimizer's states that the first update will add."""
    tokens: int = 0
    """Of the step that was tried, padding included."""
    row_tokens: int = 0
    trained_tokens: int = 0
    padded: bool = False
    """Whether its rows were padded and not packed."""


class Resumed(Event):
    """The run goes on from a checkpoint; what was logged after its step is computed again."""

    tag = "resumed"
    step: int


class StepLogged(Event):
    """One optimizer step. `loss` is the mean over the trained tokens of the whole accumulated batch, in nats."""

    tag = "step"
    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    """Tokens of the step without padding."""
    trained_tokens: int
    tokens_per_second: float
    peak_bytes: int
    """Most memory held since the run began: the allocator's peak on CUDA, the process's on a CPU."""
    seconds_left: float | None = None
    metrics: dict[str, float] = {}
    """What the objective shows beside its loss, by name."""


class EvaluationLogged(Event):
    """Held-out loss: the sum over all trained tokens by their number: any batch size gives the same."""

    tag = "evaluation"
    step: int
    loss: float
    tokens: int
    rows: int
    adapter: bool = True
    """False where the base alone was measured."""


class SampleWritten(Event):
    tag = "sample"
    step: int
    prompt: str
    answer: str
    side: str
    """`base`, `tuned` or `merged`."""


class CheckpointSaved(Event):
    tag = "checkpoint"
    step: int
    path: str


class Extended(Event):
    """A run that had ended was given more epochs, this many in all; it can go on."""

    tag = "extended"
    epochs: float


class AdapterSaved(Event):
    """`adapter/` is there, or a newer one in its place; `step` is the step whose weights it holds."""

    tag = "adapter"
    step: int
    held_out: float | None = None
    """Its held-out loss, where that step was measured."""


class StepRetriedSmaller(Event):
    """Memory ran out; the same step is computed again in smaller parts. Its result stays what it was."""

    tag = "retried"
    step: int
    change: str = Field("", validation_alias=AliasChoices("change", "lever"))
    """What was made smaller, in words."""
    micro_batch_tokens: int
    checkpointed_layers: int
    tiled_mlp: bool = False
    reason: str


class UpdateSkipped(Event):
    """The gradient was not finite; the weights stay as they were."""

    tag = "skipped"
    step: int
    reason: str


class Exported(Event):
    tag = "exported"
    what: str
    path: str
    bytes: int


class Checked(Event):
    """What was chatted with beside what was exported, on the same tokens. Losses are means in nats over held-out rows."""

    tag = "checked"
    what: str
    same_top1: float = 0.0
    """Share of positions where both predict the same token."""
    kl: float = 0.0
    """Mean KL divergence in nats, chatted || exported."""
    identical_answers: int = 0
    answers: int = 0
    as_chatted: bool = False
    """Whether it was merged into the weights that the chat computes with, so that it owes the same answers."""
    precision: str = "16-bit"
    """Of the weights: `16-bit`, or a GGUF type such as `Q4_K_M`."""
    positions: int = 0
    """Tokens at which the two were compared."""
    stops: int = 0
    """Answers that the chat came to the end of."""
    stops_kept: int = 0
    """Of these, those where the exported model's likeliest token is an end as well."""
    base_loss: float | None = None
    """Of the base without the adapter; None where the run holds nothing out."""
    chat_loss: float | None = None
    loss: float | None = None
    """Of the exported model."""
    layers: int = 0
    """Layers whose trained change was looked for in the file; 0 where nobody looked."""
    layers_off: int = 0
    """Of these, those where it is missing or of another strength."""
    layer_off: str = ""
    """The one that is furthest off."""
    share_off: float = 1.0
    """How much of its change is there, where rounding alone would leave `share_wanted`."""
    share_wanted: float = 1.0


class Finished(Event):
    tag = "finished"
    ends = True
    report: Report | None = None
    """None in the journal of a version that wrote no report."""


class Stopped(Event):
    tag = "stopped"
    ends = True
    step: int = 0
    saved: str = ""
    paused: bool = False
    """Whether the job shall go on later, so that only what that takes was saved."""


class Failed(Event):
    tag = "failed"
    ends = True
    message: str
    hint: str = ""


KINDS: dict[str, type[Event]] = {kind.tag: kind for kind in Event.__subclasses__()}


def parse_event(values: Mapping[str, Any]) -> Event | None:
    """The event in a journal line, or None where its tag or shape is not known to this version."""
    kind = KINDS.get(str(values.get("event")))
    if kind is None:
        return None
    try:
        return kind.model_validate(values)
    except ValidationError:
        # A report of another version must not make a finished job look like one that vanished.
        return Finished() if kind is Finished else None
