"""Every setting of a run as a control. One table says where each stands; help, default and bounds are TrainConfig's."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import gradio as gr
from pydantic.fields import FieldInfo

from qlora_studio.core.config import TrainConfig

Place = Literal["model", "data", "main", "rows", "adapter", "learning", "memory", "measuring", "saving"]
ADVANCED: dict[Place, str] = {
    "learning": "Learning",
    "adapter": "Adapter",
    "rows": "Rows and tokens",
    "memory": "Memory",
    "measuring": "Measuring",
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
    Setting("data.eval_share", "Held out", "data", (0, 0.5, 0.01)),
    Setting("data.mix_by", "Shares count", "data"),
    Setting("lora.rank", "LoRA rank", "main", (4, 256, 4)),
    Setting("data.max_length", "Max tokens a row", "main", (64, 8192, 64)),
    Setting("optim.batch_tokens", "Effective batch, tokens", "main", (256, 32768, 256)),
    Setting("optim.epochs", "Epochs", "main", (0.5, 10, 0.5)),
    Setting("optim.learning_rate", "Learning rate", "main"),
    Setting("memory.budget_gib", "Memory budget, GiB", "main"),
    Setting("optim.optimizer", "Optimizer", "learning"),
    Setting("optim.schedule", "Schedule", "learning"),
    Setting("optim.warmup_share", "Warm-up", "learning"),
    Setting("optim.weight_decay", "Weight decay", "learning"),
    Setting("optim.max_grad_norm", "Gradient clip", "learning"),
    Setting("optim.max_steps", "Stop after steps", "learning"),
    Setting("optim.seed", "Seed", "learning"),
    Setting("lora.alpha", "Alpha", "adapter"),
    Setting("lora.dropout", "Dropout", "adapter"),
    Setting("lora.use_rslora", "rsLoRA", "adapter"),
    Setting("data.train_on", "Train on", "rows"),
    Setting("data.too_long", "Rows that are too long", "rows"),
    Setting("data.control_tokens", "Control tokens in the text", "rows"),
    Setting("model.template", "Chat template", "rows"),
    Setting("model.revision", "Revision", "rows"),
    Setting("memory.card", "Card", "memory"),
    Setting("memory.keep_free_gib", "Leave free, GiB", "memory"),
    Setting("memory.micro_batch_tokens", "Tokens at once", "memory"),
    Setting("memory.gradient_checkpointing", "Layers computed twice", "memory"),
    Setting("memory.adapter_precision", "Adapter precision", "memory"),
    Setting("memory.offload", "Offload", "memory"),
    Setting("model.compute_dtype", "Arithmetic", "memory"),
    Setting("evaluation.every_steps", "Measure every, steps", "measuring"),
    Setting("evaluation.before", "Measure before the first step", "measuring"),
    Setting("saving.name", "Name of the run", "saving"),
    Setting("saving.every_minutes", "Checkpoint every, minutes", "saving"),
    Setting("saving.keep", "Checkpoints to keep", "saving"),
)
ELSEWHERE: dict[str, str] = {
    "data.sources": "chosen among the imported sets",
    "data.format": "taken from the import",
    "data.columns": "taken from the import",
    "data.accepted": "ticked beside the findings",
}
"""Fields that are not typed in but follow from what was done on the Data page."""

BY_NAME: dict[str, Setting] = {setting.dotted: setting for setting in SETTINGS}


def at(place: Place) -> list[Setting]:
    return [setting for setting in SETTINGS if setting.place == place]


def field_info(dotted: str) -> FieldInfo:
    """The pydantic field behind a dotted name."""
    section, _, name = dotted.partition(".")
    model = TrainConfig.model_fields[section].annotation
    return model.model_fields[name]  # type: ignore[union-attr]


def defaults() -> dict[str, Any]:
    """Every field of a TrainConfig as it stands when nothing was chosen, by dotted name, as JSON values."""
    return flatten(TrainConfig())


def flatten(config: TrainConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    return {f"{section}.{name}": value for section, fields in values.items() for name, value in fields.items()}


def element(dotted: str) -> str:
    """The page's id of a control: `lora.use_rslora` is `lora-use-rslora`."""
    return dotted.replace(".", "-").replace("_", "-")


def make(setting: Setting, value: Any) -> gr.components.Component:
    """The control of one setting, showing `value`."""
    info = field_info(setting.dotted)
    kind, optional = _kind(info.annotation)
    common: dict[str, Any] = {
        "label": setting.label,
        "info": info.description,
        "elem_id": element(setting.dotted),
        "interactive": True,
        "min_width": 150,
    }
    if get_origin(kind) is Literal:
        words = setting.words or {}
        return gr.Dropdown(
            [(words.get(one, one.replace("_", " ")), one) for one in get_args(kind)], value=value, **common
        )
    if kind is bool:
        return gr.Checkbox(value, **common)
    if kind is str:
        return gr.Textbox(value or "", max_lines=1, placeholder="empty" if optional else None, **common)
    if setting.slider:
        low, high, step = setting.slider
        return gr.Slider(min(low, value), max(high, value), value, step=step, buttons=[], **common)
    low_bound, high_bound = _bounds(info)
    whole = kind is int
    return gr.Number(
        value,
        precision=0 if whole else None,
        minimum=low_bound,
        maximum=high_bound,
        step=1 if whole else _step(value),
        placeholder="automatic" if optional else None,
        **common,
    )


def show(setting: Setting, value: Any) -> Any:
    """The update that makes a control show `value`, a slider stretched where the value lies beyond its ends."""
    if setting.slider:
        low, high, _ = setting.slider
        return gr.update(value=value, minimum=min(low, value), maximum=max(high, value))
    return gr.update(value="" if value is None and _kind(field_info(setting.dotted).annotation)[0] is str else value)


def clamp(setting: Setting, value: Any, current: Any) -> Any:
    """What a slider will show once its number is typed to the end: between its ends, stretched to where it stands."""
    if setting.slider is None or not isinstance(value, int | float):
        return value
    low, high, _ = setting.slider
    return min(max(value, min(low, current)), max(high, current))


def read(settings: Sequence[Setting], values: Sequence[Any]) -> dict[str, Any]:
    """What the controls say, by dotted name: empty text and numbers as None where a field may be empty."""
    return {setting.dotted: _read(setting, value) for setting, value in zip(settings, values, strict=True)}


def build_config(draft: Mapping[str, Any]) -> TrainConfig:
    """The config a draft amounts to. Raises a StudioError that names every wrong field."""
    return TrainConfig().replace(draft)


def _read(setting: Setting, value: Any) -> Any:
    info = field_info(setting.dotted)
    kind, optional = _kind(info.annotation)
    if isinstance(value, str):
        value = value.strip()
    if value in ("", None):
        return None if optional else ("" if kind is str else info.get_default())
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The type behind an annotation, and whether None is allowed."""
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [one for one in get_args(annotation) if one is not type(None)]
        return inner[0], len(inner) < len(get_args(annotation))
    return annotation, False


def _bounds(info: FieldInfo) -> tuple[float | None, float | None]:
    """Lowest and highest allowed value. An open bound is left to TrainConfig, which says what is wrong."""
    low = next((item.ge for item in info.metadata if isinstance(item, annotated_types.Ge)), None)
    high = next((item.le for item in info.metadata if isinstance(item, annotated_types.Le)), None)
    return low, high  # type: ignore[return-value]


def _step(value: Any) -> float:
    """What the arrows of a number add: a tenth of a small default's size, else 0.1."""
    if not value or value >= 0.01:
        return 0.01 if not value or value < 1 else 0.5
    return 10.0 ** (len(str(int(1 / value))) * -1)
