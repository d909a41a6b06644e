"""TrainConfig: the one description of a run. Form, flags, presets, `config.json` and worker all go through it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qlora_studio.core.errors import Problem, StudioError

DEMO_BASE = "smollm2-135m-instruct"
"""The embedded model: fetched once, kept under the home folder, needs no account."""


RENAMED = {
    "data.max_tokens": "data.max_length",
    "memory.checkpointing": "memory.gradient_checkpointing",
    "model.compute": "model.compute_dtype",
}
"""Fields that had another name in runs and presets that people have on disk."""


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Section):
    """What is tuned."""

    base: str = Field(DEMO_BASE, description="Base model: path of a folder, or Hub ID.")
    revision: str | None = Field(None, description="Hub commit, tag or branch; empty takes the newest and pins it.")
    compute_dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto",
        description="Number format that 4-bit weights are dequantised to for computing; auto takes the fastest safe one.",
    )
    template: str | None = Field(
        None, description="Chat template by name, for a base that brings none; it is saved with the adapter."
    )
    adapter: str | None = Field(
        None,
        description="Run whose weights training starts from: NAME, NAME@best or NAME@step-12; empty starts a new adapter.",
    )


class DataSource(Section):
    """One imported data set and its share of the mixture."""

    name: str = Field(description="Name of an imported data set.")
    weight: float = Field(1.0, gt=0, description="Share in the mixture, relative to the other sets.")
    max_repeats: int = Field(
        1, ge=1, le=100, description="How often a row may stand in the mixture, so that a small set keeps its share."
    )


class DataConfig(Section):
    """What is learned from, and how a row becomes tokens."""

    sources: tuple[DataSource, ...] = Field((), description="Imported data sets, with their weights.")
    mix_by: Literal["rows", "tokens"] = Field(
        "rows", description="Whether the weights of a mixture count rows or tokens."
    )
    format: str = Field("auto", description="How rows become conversations; auto looks at the rows.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Column mapping, where your names differ: instruction=question."
    )
    max_length: int = Field(
        1024, ge=8, le=1_048_576, description="Max sequence length: the longest training example in tokens."
    )
    too_long: Literal["drop", "cut_oldest", "cut_answer"] = Field(
        "drop", description="Examples longer than that: drop them, drop their oldest turns, or truncate the answer."
    )
    text_overlap: int = Field(
        0, ge=0, description="Raw text longer than that is cut into blocks; tokens a block repeats from the one before."
    )
    train_on: Literal["answers", "last_answer", "everything"] = Field(
        "answers", description="Which tokens are learned: every answer, only the last one, or prompts too."
    )
    control_tokens: Literal["refuse", "escape", "keep"] = Field(
        "refuse", description="What to do with control tokens typed inside the text, such as <|im_end|>."
    )
    eval_share: float = Field(0.05, ge=0, le=0.5, description="Share of prompts held out as evaluation set.")
    accepted: tuple[str, ...] = Field((), description="Findings you accept by name although they are errors.")

    @field_validator("accepted", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        """Names in one text, as a person types them: `empty-answer, secret`."""
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value


LAYER_RANGE = re.compile(r"(\d{1,4})(?:\s*(-)\s*(\d{1,4})?)?")
"""`3`, `0-7` or `20-`, which goes to the last layer."""


class LoraSettings(Section):
    """How much the adapter can learn."""

    rank: int = Field(
        16, ge=1, le=1024, description="Rank of the adapter: a higher one can learn more and needs more memory."
    )
    alpha: int = Field(
        32, ge=1, le=4096, description="Scales the adapter by alpha / rank; 32 suits any rank, and so does one rate."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of adapter inputs dropped at random, against overfitting."
    )
    use_rslora: bool = Field(False, description="Scale by the root of the rank (rsLoRA); steadier at high ranks.")
    use_dora: bool = Field(
        False, description="Learn length and direction of each output apart (DoRA); slower, and keeps more."
    )
    init: Literal["zero", "pissa", "olora"] = Field(
        "zero",
        description="Start of the adapter: zero changes nothing; pissa trains the base's largest singular directions, "
        "olora orthonormal ones (QR); with both its file has twice the rank.",
    )
    target_modules: str = Field(
        "",
        max_length=1000,
        description="Linear layers with an adapter, by name: q_proj, v_proj; empty takes all but the output head.",
    )
    layers: str = Field(
        "", max_length=200, description="Decoder layers with an adapter, from 0: 0-7, 20-; empty takes all."
    )

    @property
    def module_names(self) -> tuple[str, ...]:
        """The names in `target_modules`; none for all."""
        return tuple(name.strip() for name in self.target_modules.split(",") if name.strip())

    @property
    def stored_rank(self) -> int:
        """Rank of the adapter in memory and on the disk: a start from the base stands in it a second time, negative."""
        return self.rank if self.init == "zero" else 2 * self.rank

    def layers_of(self, count: int) -> tuple[int, ...]:
        """The chosen ones of so many decoder layers, rising. Raises a StudioError for what is none of them."""
        if not self.layers.strip():
            return tuple(range(count))
        chosen: set[int] = set()
        for part in self.layers.split(","):
            found = LAYER_RANGE.fullmatch(part.strip())
            first, last = (int(found[1]), int(found[3] or count - 1 if found[2] else found[1])) if found else (1, 0)
            if not first <= last < count:
                raise StudioError(
                    f"'{part.strip()}' is no range of the layers 0 to {count - 1}.",
                    "Write it as 0-7, 20- or 3.",
                    field="lora.layers",
                )
            chosen.update(range(first, last + 1))
        return tuple(sorted(chosen))


class OptimConfig(Section):
    """How it learns."""

    objective: str = Field(
        "supervised", description="What is optimised: supervised is next-token loss on what is trained."
    )
    optimizer: Literal["adamw_8bit", "adamw"] = Field(
        "adamw_8bit", description="adamw_8bit keeps its states in one byte each; adamw in four."
    )
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="Size of an update; empty or auto takes what suits the model's width and alpha."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="How the learning rate falls.")
    warmup_share: float = Field(0.03, ge=0, lt=1, description="Share of the steps in which the learning rate warms up.")
    loraplus_ratio: float = Field(
        1.0, ge=1, le=1000, description="LoRA+: B learns at so many times the learning rate; with 1 as fast as A."
    )
    neftune_alpha: float = Field(
        0.0, ge=0, le=1000, description="NEFTune: noise on the token embeddings while training; 5 is usual, 0 is none."
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="Pull of the adapter towards zero.")
    max_grad_norm: float = Field(
        1.0, gt=0, description="Gradient clipping: a gradient with a larger norm is scaled down to it."
    )
    epochs: float = Field(3.0, gt=0, le=1000, description="How often each row is seen.")
    max_steps: int | None = Field(None, ge=1, description="Stop after so many steps; empty trains all epochs.")
    ended_at: tuple[float, ...] = Field((), description="Epochs at which the run once ended, before it was given more.")
    batch_tokens: int = Field(
        4096, ge=1, le=16_777_216, description="Effective batch: tokens that one update averages over."
    )
    seed: int = Field(42, ge=0, le=2**32 - 1, description="Same seed, same data, same settings: the same curve.")

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _leave_open(cls, value: object) -> object:
        """`auto`, as presets and people write it, for a rate that is chosen once the model is known."""
        return None if isinstance(value, str) and value.strip().lower() == "auto" else value


class MemoryConfig(Section):
    """What the run may take of the card. What is left open, the planner decides."""

    card: str | None = Field(
        None, description="Which card trains, by number or UUID as `doctor` lists them; empty takes the first."
    )
    budget_gib: float | None = Field(None, gt=0, description="Memory the run may use in GiB; empty takes what is free.")
    keep_free_gib: float = Field(0.0, ge=0, description="Memory to leave to the desktop in GiB.")
    micro_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens in one forward and backward pass; empty lets the plan choose. The result does not change.",
    )
    gradient_checkpointing: Literal["auto", "none", "half", "full"] = Field(
        "auto",
        description="Layers whose activations are recomputed in the backward pass: none is fastest, full is smallest.",
    )
    adapter_precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Number format of the adapter's own weights; fp32 is safer, bf16 smaller."
    )
    offload: Literal["auto", "none", "boundaries", "embeddings", "both"] = Field(
        "auto", description="What is offloaded from the card to the computer's memory."
    )


class EvaluationConfig(Section):
    """How the result is measured while it forms."""

    every_steps: int | None = Field(
        None, ge=1, description="Measure the held-out loss every so many steps; empty: five times."
    )
    before: bool = Field(True, description="Measure the held-out loss before the first step as well.")
    patience: int | None = Field(
        None,
        ge=1,
        description="End the run after so many evaluations without a better one; empty trains to the last step.",
    )
    prompts: str = Field(
        "",
        max_length=20_000,
        description="Prompts to answer at each evaluation, with | between; the answers are a timeline.",
    )
    answer_tokens: int = Field(64, ge=1, le=4096, description="Longest of these answers in tokens.")

    @property
    def sample_prompts(self) -> tuple[str, ...]:
        """The prompts, one by one."""
        return tuple(prompt.strip() for prompt in re.split(r"[|\n]", self.prompts) if prompt.strip())


class SavingConfig(Section):
    """What is kept, and under which name."""

    name: str = Field("", max_length=120, description="Name of the run; empty makes one from model, rank and time.")
    every_minutes: float = Field(10.0, gt=0, description="Write a checkpoint at least this often.")
    keep: int = Field(
        2, ge=1, le=1000, description="Checkpoints to keep: the newest so many, besides the best and the pinned."
    )
    adapter: Literal["best", "last"] = Field(
        "best", description="Which step becomes the adapter: that of the best held-out loss, or the last."
    )
    tracker: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = Field(
        "none",
        description="Tracker that hears the curves as well, in the run's folder and offline; its library must be installed.",
    )


class TrainConfig(Section):
    """One run, whole."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoraSettings = LoraSettings()
    optim: OptimConfig = OptimConfig()
    memory: MemoryConfig = MemoryConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    saving: SavingConfig = SavingConfig()

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "") -> TrainConfig:
        """A config from plain values. Raises one StudioError that names every wrong field."""
        try:
            config = cls.model_validate(_with_new_names(values))
        except ValidationError as error:
            raise StudioError.of(_problem(item, where) for item in error.errors()) from None
        if problems := config.find_problems(where):
            raise StudioError.of(problems)
        return config

    def replace(self, changes: Mapping[str, Any]) -> TrainConfig:
        """A copy with dotted fields changed, `{"lora.rank": 8}`, validated like any other."""
        values = self.model_dump(mode="json")
        for dotted, value in changes.items():
            section, _, name = RENAMED.get(dotted, dotted).partition(".")
            if section not in values or name not in values[section]:
                raise StudioError(f"There is no setting '{dotted}'.", "Run `qlora-studio train --help` for the list.")
            values[section][name] = value
        return type(self).parse(values)

    def find_problems(self, where: str = "") -> list[Problem]:
        """Every problem that no single field shows."""
        problems = []
        if not self.model.base.strip():
            problems.append(Problem("The base model is empty.", "Give a folder or a hub id.", where, "model.base"))
        micro = self.memory.micro_batch_tokens
        if micro is not None and micro < self.data.max_length:
            problems.append(
                Problem(
                    f"A micro-batch of {micro} tokens cannot hold a row of {self.data.max_length}.",
                    f"Raise it to {self.data.max_length} or lower data.max_length.",
                    where,
                    "memory.micro_batch_tokens",
                )
            )
        problems += self._find_start_problems(where)
        names = [source.name for source in self.data.sources]
        for name in sorted({name for name in names if names.count(name) > 1}):
            problems.append(
                Problem(
                    f"The data set '{name}' is listed twice.",
                    "List it once and raise its weight.",
                    where,
                    "data.sources",
                )
            )
        return problems

    def _find_start_problems(self, where: str) -> list[Problem]:
        """What cannot be together with an adapter that starts from the base's own weights."""
        if self.lora.init == "zero":
            return []
        against = {
            "optim.weight_decay": (self.optim.weight_decay, "would pull its fixed half towards zero", "Set it to 0"),
            "model.adapter": (self.model.adapter, "brings a start of its own", "Leave it empty"),
            "lora.use_dora": (self.lora.use_dora, "has a start of its own", "Switch it off"),
        }
        return [
            Problem(
                f"With lora.init {self.lora.init}, {field} {reason}.",
                f"{hint}, or set lora.init to zero.",
                where,
                field,
            )
            for field, (value, reason, hint) in against.items()
            if value
        ]


def _with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values with fields of an earlier version under the names they have now."""
    renewed = {name: dict(fields) if isinstance(fields, Mapping) else fields for name, fields in values.items()}
    for before, now in RENAMED.items():
        section, _, old = before.partition(".")
        fields = renewed.get(section)
        if isinstance(fields, dict) and old in fields:
            fields.setdefault(now.partition(".")[2], fields.pop(old))
    return renewed


def _problem(item: Mapping[str, Any], where: str) -> Problem:
    """A pydantic error as one sentence about the value seen."""
    field = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return Problem("There is no such setting.", "Remove it or mend its name.", where, field)
    message = re.sub(r"^(Input|Value error,) ?", "", item["msg"])
    return Problem(f"{item['input']!r} is not allowed: {message[:1].lower()}{message[1:]}.", "", where, field)
