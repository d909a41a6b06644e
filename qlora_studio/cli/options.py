"""The flags that describe a run. Their help is that of the TrainConfig fields; `--set` reaches every other field."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from qlora_studio.core import config as cf
from qlora_studio.core.errors import StudioError
from qlora_studio.studio import Studio

Checkpoint = Annotated[
    str,
    typer.Option("--checkpoint", help="Which weights: best, last or step-N; without it, the run's adapter."),
]


def help_of(section: type[cf.Section], field: str) -> str:
    return section.model_fields[field].description or ""


Model = Annotated[str | None, typer.Option("--model", "-m", help=help_of(cf.ModelConfig, "base"))]
Rank = Annotated[str | None, typer.Option("--rank", "-r", help="Rank preset (light, balanced, strong) or a number.")]
Memory = Annotated[str | None, typer.Option("--memory", help="Memory preset (6gb … 24gb, cpu) or a budget in GiB.")]
Format = Annotated[str | None, typer.Option("--format", "-f", help=help_of(cf.DataConfig, "format"))]
Column = Annotated[list[str] | None, typer.Option("--column", help=help_of(cf.DataConfig, "columns"))]
MaxLength = Annotated[int | None, typer.Option("--max-length", help=help_of(cf.DataConfig, "max_length"))]
Epochs = Annotated[float | None, typer.Option("--epochs", help=help_of(cf.OptimConfig, "epochs"))]
Seed = Annotated[int | None, typer.Option("--seed", help=help_of(cf.OptimConfig, "seed"))]
Name = Annotated[str | None, typer.Option("--name", help=help_of(cf.SavingConfig, "name"))]
Alpha = Annotated[int | None, typer.Option("--alpha", help=help_of(cf.LoraSettings, "alpha"))]
Dropout = Annotated[float | None, typer.Option("--dropout", help=help_of(cf.LoraSettings, "dropout"))]
RsLora = Annotated[bool | None, typer.Option("--rslora/--no-rslora", help=help_of(cf.LoraSettings, "use_rslora"))]
Dora = Annotated[bool | None, typer.Option("--dora/--no-dora", help=help_of(cf.LoraSettings, "use_dora"))]
Start = Annotated[str | None, typer.Option("--init", help=help_of(cf.LoraSettings, "init"))]
TargetModules = Annotated[str | None, typer.Option("--target-modules", help=help_of(cf.LoraSettings, "target_modules"))]
Layers = Annotated[str | None, typer.Option("--layers", help=help_of(cf.LoraSettings, "layers"))]
LoraPlus = Annotated[float | None, typer.Option("--lora-plus", help=help_of(cf.OptimConfig, "loraplus_ratio"))]
Neftune = Annotated[float | None, typer.Option("--neftune", help=help_of(cf.OptimConfig, "neftune_alpha"))]
LearningRate = Annotated[
    str | None, typer.Option("--learning-rate", "--lr", help=help_of(cf.OptimConfig, "learning_rate"))
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any other setting: --set optim.schedule=linear")]


METHODS: Mapping[str, tuple[str, Any]] = {
    "learning_rate": ("optim.learning_rate", LearningRate),
    "alpha": ("lora.alpha", Alpha),
    "dropout": ("lora.dropout", Dropout),
    "rslora": ("lora.use_rslora", RsLora),
    "dora": ("lora.use_dora", Dora),
    "init": ("lora.init", Start),
    "target_modules": ("lora.target_modules", TargetModules),
    "layers": ("lora.layers", Layers),
    "lora_plus": ("optim.loraplus_ratio", LoraPlus),
    "neftune": ("optim.neftune_alpha", Neftune),
}
"""How the adapter learns: parameter of a command, the field it sets and its flag."""


def takes_methods(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the flags of METHODS; it finds what was given in `methods`, by field."""

    @functools.wraps(command)
    def with_flags(**given: Any) -> None:
        chosen = {field: given.pop(name) for name, (field, _) in METHODS.items()}
        command(**given, methods=chosen)

    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "methods"]
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=flag)
        for name, (_, flag) in METHODS.items()
    ]
    with_flags.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    with_flags.__annotations__ = {one.name: one.annotation for one in (*own, *flags)}
    return with_flags


def build_config(
    studio: Studio,
    rank: str | None,
    memory: str | None,
    changes: dict[str, Any],
    settings: list[str] | None,
    start: cf.TrainConfig | None = None,
) -> cf.TrainConfig:
    """Presets, then flags, then `--set`: the later wins.

    The presets are those that suit this machine, unless others are named. With a `start` to change, such as that of an
    earlier run, only those that are named are laid over it.
    """
    names = studio.presets.defaults() if start is None else {}
    extra: dict[str, Any] = {}
    if rank is not None:
        if rank.isdigit():
            extra["lora.rank"] = int(rank)
        else:
            names["rank"] = rank
    if memory is not None:
        if memory.replace(".", "", 1).isdigit():
            extra["memory.budget_gib"] = float(memory)
        else:
            names["memory"] = memory
    config = studio.presets.apply(start or cf.TrainConfig(), names)
    extra |= {field: value for field, value in changes.items() if value is not None}
    extra |= dict(parse_setting(text) for text in settings or [])
    return config.replace(extra)


def parse_setting(text: str) -> tuple[str, Any]:
    """`lora.rank=8` as a dotted field and its value; the value is JSON where it can be, else text."""
    field, sign, value = text.partition("=")
    if not sign or "." not in field:
        raise StudioError(f"'{text}' is not a setting.", "Write it as section.field=value, such as lora.rank=8.")
    try:
        return field.strip(), json.loads(value)
    except json.JSONDecodeError:
        return field.strip(), value


def parse_columns(pairs: list[str] | None) -> dict[str, str]:
    """`instruction=question` pairs as a mapping from part to the file's column."""
    columns = {}
    for pair in pairs or []:
        part, sign, column = pair.partition("=")
        if not sign or not part or not column:
            raise StudioError(
                f"'{pair}' does not map a column.", "Write it as part=column, such as instruction=question."
            )
        columns[part] = column
    return columns
