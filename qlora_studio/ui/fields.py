"""Every setting of a run as the page calls and places it, and how its text is read. Knows no Gradio.

Help, default and bounds are TrainConfig's.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import Problem
from qlora_studio.core.words import without_quotes

Place = Literal["model", "data", "main", "rows", "adapter", "learning", "memory", "evaluation", "saving"]
ADVANCED: dict[Place, str] = {
    "learning": "Learning",
    "adapter": "Adapter",
    "rows": "Examples and tokens",
    "memory": "Memory",
    "evaluation": "Evaluation",
    "saving": "Name and checkpoints",
}
"""The parts of the Train page's Advanced section, with their titles."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of TrainConfig on the page."""

    dotted: str
    label: str
    place: Place
    slider: tuple[float, float, float] | None = None
    """Lowest, highest and step, where a slider is handier than a number."""
    words: Mapping[str, str] | None = None
    """Names for the values of a choice, where the value itself says little."""


SETTINGS: tuple[Setting, ...] = (
    Setting("model.base", "Base model", "model"),
    Setting("data.eval_share", "Evaluation share", "data", (0, 0.5, 0.01)),
    Setting("data.mix_by", "Mix by", "data"),
    Setting("lora.rank", "Rank", "main", (4, 256, 4)),
    Setting("data.max_length", "Max sequence length", "main", (64, 8192, 64)),
    Setting("optim.batch_tokens", "Effective batch, tokens", "main", (256, 32768, 256)),
    Setting("optim.epochs", "Epochs", "main", (0.5, 10, 0.5)),
    Setting("optim.learning_rate", "Learning rate", "main"),
    Setting("memory.budget_gib", "Memory budget, GiB", "main"),
    Setting("optim.objective", "Objective", "learning"),
    Setting("optim.optimizer", "Optimizer", "learning"),
    Setting("optim.schedule", "Learning rate schedule", "learning"),
    Setting("optim.warmup_share", "Warm-up share", "learning"),
    Setting("optim.loraplus_ratio", "LoRA+", "learning"),
    Setting("optim.neftune_alpha", "NEFTune", "learning"),
    Setting("optim.weight_decay", "Weight decay", "learning"),
    Setting("optim.max_grad_norm", "Gradient clipping", "learning"),
    Setting("optim.max_steps", "Max steps", "learning"),
    Setting("optim.seed", "Seed", "learning"),
    Setting("lora.alpha", "Alpha", "adapter"),
    Setting("lora.dropout", "Dropout", "adapter"),
    Setting("lora.use_rslora", "rsLoRA", "adapter"),
    Setting("lora.use_dora", "DoRA", "adapter"),
    Setting(
        "lora.init",
        "Start of the adapter",
        "adapter",
        words={"zero": "no change", "pissa": "PiSSA", "olora": "OLoRA"},
    ),
    Setting("lora.target_modules", "Target modules", "adapter"),
    Setting("lora.layers", "Layers", "adapter"),
    Setting("data.train_on", "Train on", "rows"),
    Setting("data.too_long", "Examples that are too long", "rows"),
    Setting("data.text_overlap", "Overlap of text blocks, tokens", "rows"),
    Setting("data.control_tokens", "Control tokens in the text", "rows"),
    Setting("model.template", "Chat template", "rows"),
    Setting("model.revision", "Revision", "rows"),
    Setting("model.adapter", "Start from the adapter of", "adapter"),
    Setting("memory.card", "Card", "memory"),
    Setting("memory.keep_free_gib", "Leave free, GiB", "memory"),
    Setting("memory.micro_batch_tokens", "Micro-batch, tokens", "memory"),
    Setting("memory.gradient_checkpointing", "Gradient checkpointing", "memory"),
    Setting("memory.adapter_precision", "Adapter precision", "memory"),
    Setting("memory.offload", "Offload", "memory"),
    Setting("model.compute_dtype", "Compute dtype", "memory"),
    Setting("evaluation.every_steps", "Evaluate every, steps", "evaluation"),
    Setting("evaluation.before", "Evaluate before the first step", "evaluation"),
    Setting("evaluation.patience", "Patience, evaluations", "evaluation"),
    Setting("evaluation.prompts", "Prompts for sample answers", "evaluation"),
    Setting("evaluation.answer_tokens", "Longest sample answer, tokens", "evaluation"),
    Setting("saving.name", "Run name", "saving"),
    Setting("saving.every_minutes", "Checkpoint every, minutes", "saving"),
    Setting("saving.keep", "Checkpoints to keep", "saving"),
    Setting("saving.adapter", "Adapter of", "saving", words={"best": "the best step", "last": "the last step"}),
    Setting("saving.tracker", "Tracker", "saving"),
)
ELSEWHERE: dict[str, str] = {
    "data.sources": "chosen among the imported sets",
    "data.format": "taken from the import",
    "data.columns": "taken from the import",
    "data.accepted": "ticked beside the findings",
    "optim.ended_at": "grows when a run is given more epochs",
}
"""Fields that are not typed in but follow from what was done on the Data page."""

BY_NAME: dict[str, Setting] = {setting.dotted: setting for setting in SETTINGS}
OTHER_LABELS = {"data.sources": "Training data", "data.format": "Format", "data.columns": "Column mapping"}
GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
"""`12,345.6`: thousands set apart."""


def at(place: Place) -> list[Setting]:
    return [setting for setting in SETTINGS if setting.place == place]


def field_info(dotted: str) -> FieldInfo:
    """The pydantic field behind a dotted name."""
    section, _, name = dotted.partition(".")
    model: Any = TrainConfig.model_fields[section].annotation
    found: FieldInfo = model.model_fields[name]
    return found


def help_of(setting: Setting) -> str:
    """One sentence of help. Where it begins with the label, which stands above it already, that is left out."""
    description = field_info(setting.dotted).description or ""
    rest = description.removeprefix(f"{setting.label.partition(',')[0]}: ")
    return rest[:1].upper() + rest[1:]


def defaults() -> dict[str, Any]:
    """Every field of a TrainConfig as it stands when nothing was chosen, by dotted name, as JSON values."""
    return flatten(TrainConfig())


def flatten(config: TrainConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    return {f"{section}.{name}": value for section, fields in values.items() for name, value in fields.items()}


def label(dotted: str) -> str:
    """What the page calls a field; the dotted name for one that stands nowhere on it."""
    return BY_NAME[dotted].label if dotted in BY_NAME else OTHER_LABELS.get(dotted, dotted)


def in_labels(text: str) -> str:
    """A sentence with every dotted field name replaced by what the page calls it."""
    return DOTTED.sub(lambda found: f"“{label(found.group())}”", text)


def sentence(problem: Problem, *, with_field: bool = True) -> str:
    """A problem in the page's words; under its own field it need not name it."""
    field = f"{label(problem.field)}: " if problem.field and with_field else ""
    where = f"{problem.where}: " if problem.where else ""
    return where + field + in_labels(" ".join(part for part in (problem.message, problem.hint) if part))


def element(dotted: str) -> str:
    """The page's id of a control: `lora.use_rslora` is `lora-use-rslora`."""
    return dotted.replace(".", "-").replace("_", "-")


def stretched(setting: Setting, value: Any) -> tuple[float, float, float]:
    """Ends and step of a slider, stretched where its value lies beyond them."""
    assert setting.slider is not None
    low, high, step = setting.slider
    return (min(low, value), max(high, value), step) if isinstance(value, int | float) else setting.slider


def as_text(value: Any) -> str:
    """A value in a text field; nothing for None."""
    return "" if value is None else str(value)


def clamp(setting: Setting, value: Any, current: Any) -> Any:
    """What a slider will show once its number is typed to the end: between its ends, stretched to where it stands."""
    if setting.slider is None or not isinstance(value, int | float):
        return value
    low, high, _ = stretched(setting, current)
    return min(max(value, low), high)


def read(setting: Setting, value: Any) -> Any:
    """What a control says: text without its margins, numbers as numbers, None where a field may be empty."""
    info = field_info(setting.dotted)
    kind, optional = kind_of(info.annotation)
    if isinstance(value, str):
        value = value.strip()
    if value in ("", None):
        return None if optional else ("" if kind is str else info.get_default())
    if setting.dotted == "model.base":
        return without_quotes(value)
    if kind in (int, float) and isinstance(value, str):
        value = parse_number(value, whole=kind is int)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def parse_number(text: str, *, whole: bool = False) -> float | str:
    """The number somebody typed, with a comma or a point before the decimals; the text itself where it is none.

    `1,024` is 1024 where the field takes whole numbers. Elsewhere it could be either, so it stays a text, which
    TrainConfig refuses: a guess would be a number that nobody typed.
    """
    plain = text.replace("\u202f", "").replace("\u00a0", "").replace(" ", "").replace("_", "")
    if GROUPED.fullmatch(plain) and (whole or "." in plain):
        plain = plain.replace(",", "")
    elif GROUPED.fullmatch(plain) and not plain.lstrip("+-").startswith("0"):
        return text
    try:
        number = float(plain.replace(",", ".", 1))
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def build_config(draft: Mapping[str, Any]) -> TrainConfig:
    """The config a draft amounts to. Raises a StudioError that names every wrong field."""
    return TrainConfig().replace(draft)


def kind_of(annotation: Any) -> tuple[Any, bool]:
    """The type behind an annotation, and whether None is allowed."""
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [one for one in get_args(annotation) if one is not type(None)]
        return inner[0], len(inner) < len(get_args(annotation))
    return annotation, False


DOTTED = re.compile("|".join(sorted((re.escape(dotted) for dotted in defaults()), key=len, reverse=True)))
