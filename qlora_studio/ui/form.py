"""The settings of a run as controls. What they are called, where they stand and how they are read is in `fields`."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args, get_origin

import gradio as gr

from qlora_studio.core.errors import Problem
from qlora_studio.ui.fields import Setting, as_text, element, field_info, help_of, kind_of, sentence, stretched

MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~])")


def make(setting: Setting, value: Any) -> gr.components.Component:
    """The control of one setting, showing `value`."""
    info = field_info(setting.dotted)
    kind, optional = kind_of(info.annotation)
    common: dict[str, Any] = {
        "label": setting.label,
        "info": help_of(setting),
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
    if setting.slider:
        low, high, step = stretched(setting, value)
        return gr.Slider(low, high, value, step=step, buttons=[], **common)
    empty = ("empty" if kind is str else "automatic") if optional else None
    return gr.Textbox(as_text(value), max_lines=1, placeholder=empty, **common)


def show(setting: Setting, value: Any) -> Any:
    """The update that makes a control show `value`."""
    if setting.slider:
        low, high, _ = stretched(setting, value)
        return gr.update(value=value, minimum=low, maximum=high)
    kind, _ = kind_of(field_info(setting.dotted).annotation)
    is_text = kind in (str, int, float)
    return gr.update(value=as_text(value) if is_text else value)


def show_below(setting: Setting, problem: Problem | None, unusual: Problem | None = None, chosen: str = "") -> Any:
    """The update that puts what is wrong with a field under its label, else what is unusual, else its help.

    The help is followed by what is taken for a field that was left open.
    """
    if (shown := problem or unusual) is None:
        return gr.update(info=" ".join(part for part in (help_of(setting), chosen) if part), elem_classes=[])
    info = MARKDOWN.sub(r"\\\1", sentence(shown, with_field=False))
    return gr.update(info=info, elem_classes=["qs-wrong" if problem else "qs-unusual"])
