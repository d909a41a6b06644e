"""What cannot be quantised, adapted or merged, said by name before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from qlora_studio.core.config import LoraSettings
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.core.plan import LinearShape, ModelShape
from qlora_studio.core.words import gib
from qlora_studio.planner.families import list_linears

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of the tensors in a model's files, by name."""


def describe_limits(shape: ModelShape, files: Shapes | None = None) -> tuple[str, ...]:
    """A sentence for each limit; none for a model that is quantised, adapted and mergeable throughout.

    `files` proves from names and shapes that an adapter can be merged; without them only what the architecture itself
    tells is said.
    """
    linears = list_linears(shape)
    sentences = []
    stacked = shape.measured.stacked if shape.measured is not None else ()
    if stacked:
        numbers = sum(one.numbers * one.count for one in stacked)
        names = _listed(sorted({one.path for one in stacked}))
        sentences.append(
            f"The experts stay as they are, in 16 bit and untrained: {names}, {numbers / 1e9:.1f} billion numbers in "
            f"{gib(2 * numbers)}. Only the other layers are quantised and adapted."
        )
    plain = [linear for linear in linears if not linear.four_bit]
    if plain:
        numbers = sum(linear.weights * linear.count for linear in plain)
        sentences.append(
            f"Linear layers of a kind of their own stay in 16 bit: {_listed(_names(plain))}, {gib(2 * numbers)}. "
            "They are adapted all the same."
        )
    unmergeable = find_unmergeable(linears, files)
    if unmergeable:
        sentences.append(
            f"The adapter trains and cannot be merged into this base: {_listed(unmergeable)}. It can be exported as it is."
        )
    return tuple(sentences)


def find_target_problem(lora: LoraSettings, shape: ModelShape) -> Problem | None:
    """What is wrong with the layers that were chosen for an adapter: names or numbers that this model does not have."""
    linears = list_linears(shape)
    names = sorted({linear.name for linear in linears})
    if foreign := sorted(set(lora.module_names) - set(names)):
        message = f"{shape.name} has no linear layer '{foreign[0]}'."
        return Problem(message, f"It has {', '.join(names)}.", field="lora.target_modules")
    if not lora.layers.strip():
        return None
    if any(linear.count != shape.layers for linear in linears):
        message = f"The layers of {shape.name} are not all alike, so they cannot be chosen by number."
        return Problem(message, "Leave it empty, or choose target modules.", field="lora.layers")
    try:
        lora.layers_of(shape.layers)
    except StudioError as error:
        return Problem(error.message, error.hint, field="lora.layers")
    return None


def find_unmergeable(linears: Sequence[LinearShape], files: Shapes | None = None) -> list[str]:
    """Names of adapted layers whose weight in the files is not the matrix that a merge adds to; none without files."""
    if files is None:
        return []
    sizes: dict[str, set[tuple[int, ...]]] = {}
    for linear in linears:
        sizes.setdefault(linear.path, set()).add(_size(linear))
    return _names([linear for linear in linears if not _is_there(linear, sizes[linear.path], files)])


def _size(linear: LinearShape) -> tuple[int, int]:
    """Of its weight, as the files have it."""
    return (linear.inputs, linear.outputs) if linear.transposed else (linear.outputs, linear.inputs)


def _is_there(linear: LinearShape, sizes: set[tuple[int, ...]], files: Shapes) -> bool:
    """Whether the files have this layer's weight as often as the model has the layer, and all of its name in one of the
    `sizes` that layers of this name have.

    The prefix that transformers adds to the names of a bare model may be missing.
    """
    if not linear.path:
        return True
    prefix, _, rest = re.escape(linear.path).replace(r"\*", r"\d+").partition(r"\.")
    pattern = re.compile(rf"({prefix}\.)?{rest}\.weight")
    found = [shape for name, shape in files.items() if pattern.fullmatch(name)]
    return found.count(_size(linear)) >= linear.count and set(found) <= sizes


def _names(linears: Sequence[LinearShape]) -> list[str]:
    return sorted({linear.path or linear.name for linear in linears})


def _listed(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
