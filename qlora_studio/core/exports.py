"""What a run can be exported as. The work behind each name is the module of that name in `engine/exporters/`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qlora_studio.core.errors import StudioError
from qlora_studio.core.events import Checked
from qlora_studio.core.jobs import GgufType, MergeInto
from qlora_studio.core.verdict import find_verdict


@dataclass(frozen=True, slots=True)
class ExportKind:
    """One kind of artefact, as a person chooses it."""

    name: str
    """In requests and on the command line; the module that writes it has this name, with `_` for `-`."""
    title: str
    description: str
    """What it is good for, in a sentence."""
    needs_base: bool
    """Whether the base's folder is needed for it."""
    compares_with_chat: bool
    """Whether it computes in its own way, so that it is asked what the chat was asked."""
    as_large_as: Literal["adapter", "base", "gguf", "parts"] = "adapter"
    """What its size goes by before it is written."""
    merges: bool = False
    """Whether a person chooses which weights take the adapter."""


EXPORT_KINDS: tuple[ExportKind, ...] = (
    ExportKind("adapter", "adapter", "The small part on top of the base, in PEFT's format.", False, False),
    ExportKind("merged", "merged model", "A whole model in safetensors that runs alone.", True, True, "base", True),
    ExportKind("gguf", "GGUF file", "One file for llama.cpp, Ollama and LM Studio.", True, True, "gguf", True),
    ExportKind("gguf-lora", "LoRA as GGUF", "The adapter alone for llama.cpp, beside a GGUF of its base.", True, False),
    ExportKind("pack", "pack", "One folder of these with a model card, to share.", True, True, "parts", True),
)
"""In the order they are offered."""
PACK_PARTS = ("adapter", "merged", "gguf")
"""What a pack can hold."""


@dataclass(frozen=True, slots=True)
class MergeChoice:
    """One way to merge, as it is offered."""

    name: str
    """On the command line."""
    into: MergeInto
    title: str
    description: str


MERGE_CHOICES: tuple[MergeChoice, ...] = (
    MergeChoice(
        "as-chatted", "as_chatted", "As chatted", "Into the 4-bit weights you chatted with: it answers as the chat did."
    ),
    MergeChoice(
        "original", "original", "Original", "Into the base's own 16-bit weights: its answers differ, often a little better."
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufChoice:
    """One precision of a GGUF file, as it is offered."""

    name: GgufType
    bits: float
    """A weight takes on average, scales included; from llama.cpp's own tables."""
    odd_bits: float
    """The same where the model's rows do not fill blocks of 256 and other types step in; of SmolLM2-135M's files."""
    description: str


GGUF_CHOICES: tuple[GgufChoice, ...] = (
    GgufChoice("Q4_K_M", 4.9, 6.2, "smallest, and the usual choice"),
    GgufChoice("Q5_K_M", 5.7, 6.6, "a little larger, a little nearer"),
    GgufChoice("Q6_K", 6.6, 8.2, "hard to tell from 8 bits"),
    GgufChoice("Q8_0", 8.5, 8.5, "hard to tell from 16 bits"),
    GgufChoice("BF16", 16.0, 16.0, "nothing lost"),
    GgufChoice("F16", 16.0, 16.0, "nothing lost, for older cards"),
)


@dataclass(frozen=True, slots=True)
class ExportSizes:
    """What the sizes of a run's exports go by."""

    adapter: int
    """Bytes."""
    merged: int | None
    """Bytes of the base's 16-bit weights, about; None while it is not on this machine."""
    odd_rows: bool = False
    """Whether the model's rows do not fill blocks of 256."""


IMPORTANCE_TOKENS = 8192
"""Of training rows from all over the set: what an importance matrix is measured on at most."""
GGUF_FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3", "olmo2", "granite",
)  # fmt: skip
"""The model types that are written as GGUF: those of `engine/gguf_file/families.py`, known here without torch."""


def find_gguf_limit(model_type: str) -> str:
    """Why no GGUF file can be made of such a model, as a sentence; empty where one can."""
    if model_type in GGUF_FAMILIES:
        return ""
    return (
        f"No GGUF file can be made of a {model_type} model here, for LM Studio, Ollama and llama.cpp; a merged model can, "
        "and llama.cpp's convert_hf_to_gguf.py may know it."
    )


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What a person wants of a run."""

    kind: ExportKind
    merge_into: MergeInto = "as_chatted"
    gguf: GgufType = "Q4_K_M"
    parts: tuple[str, ...] = PACK_PARTS
    """For a pack, what it holds."""
    checkpoint: str = ""
    """Which weights of the run: `step-000120`, `best` or `latest`; empty for its adapter."""
    importance: bool = False
    """Whether the blocks of a GGUF file are fitted by what training rows show of each column."""

    def check(self) -> None:
        """Raises a StudioError where nothing, or something unknown, is to be packed."""
        if self.kind.name != "pack":
            return
        if not self.parts or not set(self.parts) <= set(PACK_PARTS):
            raise StudioError("A pack holds at least one part.", f"Choose from: {', '.join(PACK_PARTS)}.")

    @property
    def writes_gguf(self) -> bool:
        """Whether the model's family must be known to llama.cpp."""
        holds = self.parts if self.kind.name == "pack" else (self.kind.name,)
        return "gguf" in holds or "gguf-lora" in holds

    @property
    def searches_blocks(self) -> bool:
        """Whether numbers are brought into K-quants, which takes longer than reading and writing them."""
        holds = "gguf" in self.parts if self.kind.name == "pack" else self.kind.name == "gguf"
        return holds and "_K" in self.gguf

    @property
    def measures_importance(self) -> bool:
        """Whether training rows go through the model first; types of 8 bits and more take no notice of them."""
        return self.importance and self.searches_blocks

    def result_bytes(self, known: ExportSizes) -> int | None:
        """About how large it becomes; None while that cannot be told."""
        sizes: dict[str, int | None] = {"adapter": known.adapter, "merged": known.merged, "gguf": None}
        if known.merged is not None:
            choice = next((one for one in GGUF_CHOICES if one.name == self.gguf), None)
            bits = 32.0 if choice is None else choice.odd_bits if known.odd_rows else choice.bits
            sizes["gguf"] = round(known.merged * bits / 16)
        whole = [sizes[part] for part in self.parts]
        sizes["pack"] = None if None in whole else sum(size for size in whole if size is not None)
        by = {"adapter": "adapter", "base": "merged", "gguf": "gguf", "parts": "pack"}
        return sizes[by[self.kind.as_large_as]]


@dataclass(frozen=True, slots=True)
class WrittenExport:
    """An export that was finished and still lies where it was written."""

    run: str
    kind: str
    path: str
    bytes: int
    written: float
    """Seconds since the epoch."""
    files: tuple[str, ...] = ()
    """What was written into its folder; none where an earlier version has written it."""


def list_choices() -> tuple[ExportKind, ...]:
    """Every kind, in the order in which page and command line offer them."""
    return EXPORT_KINDS


def find_export_kind(name: str) -> ExportKind:
    """The kind of this name. Raises a StudioError that lists the names there are."""
    for kind in EXPORT_KINDS:
        if kind.name == name:
            return kind
    names = ", ".join(kind.name for kind in EXPORT_KINDS)
    raise StudioError(f"'{name}' cannot be exported.", f"Choose one of: {names}.")


def find_merge(name: str) -> MergeChoice:
    """The way to merge of this name. Raises a StudioError that lists the names there are."""
    for choice in MERGE_CHOICES:
        if choice.name == name:
            return choice
    names = " or ".join(choice.name for choice in MERGE_CHOICES)
    raise StudioError(f"There is no merge '{name}'.", f"Choose {names}.", field="--merge")


def find_gguf(name: str) -> GgufType:
    """The GGUF type of this name, in any case. Raises a StudioError that lists the names there are."""
    for choice in GGUF_CHOICES:
        if choice.name == name.upper():
            return choice.name
    names = ", ".join(choice.name for choice in GGUF_CHOICES)
    raise StudioError(f"There is no GGUF type '{name}'.", f"Choose one of: {names}.", field="--gguf")


def parse_weights(text: str, count: int) -> list[float]:
    """`0.7, 0.3` as one weight for each of `count` adapters; 1 each where nothing is given. Raises a StudioError else."""
    if not text.strip():
        return [1.0] * count
    try:
        weights = [float(part) for part in text.replace(";", ",").split(",")]
    except ValueError:
        weights = []
    if len(weights) != count or not all(map(math.isfinite, weights)):
        raise StudioError(
            f"'{text}' is not {count} weights.", "Write one for each run, with commas between, such as 0.7, 0.3."
        )
    return weights


def suggest_merge(checks: Sequence[Checked]) -> tuple[MergeInto, str]:
    """Which weights should take the adapter of a run, and why in a sentence, from what its exports were found to be.

    The rule without a measurement is the merge that answers as the chat did: it is what was tried out.
    """
    measured = [check for check in checks if check.loss is not None and check.chat_loss is not None]
    measured = [check for check in measured if check.precision == "16-bit"]  # else coarser weights blur the comparison
    original = next((check for check in reversed(measured) if not check.as_chatted), None)
    if original is None or original.loss is None or original.chat_loss is None:
        return "as_chatted", "As chatted is chosen: it is the model you tried out."
    losses = f"loss {original.loss:.3f} on this run's held-out rows beside the chat's {original.chat_loss:.3f}"
    if original.loss < original.chat_loss and find_verdict(original).kind != "bad":
        return "original", f"The original weights are chosen: an earlier export measured {losses}."
    return "as_chatted", f"As chatted is chosen: with the original weights an earlier export measured {losses}."


def lora_file_name(run: str) -> str:
    """What a run's adapter is called as GGUF."""
    return f"{run}.lora.gguf"


@dataclass(frozen=True, slots=True)
class LoadCommand:
    """How one program opens an export."""

    program: str
    text: str
    """To copy: a command, or a few lines of Python."""


def load_commands(options: ExportOptions, folder: str, name: str, base: str) -> list[LoadCommand]:
    """How the export in `folder` of the run `name` is opened, for every program that can."""
    parts = options.parts if options.kind.name == "pack" else (options.kind.name,)
    below = {part: f"{folder}/{part}" if options.kind.name == "pack" else folder for part in PACK_PARTS}
    commands: list[LoadCommand] = []
    if "gguf" in parts:
        file = f"{folder}/{name}.{options.gguf}.gguf"
        commands += [
            LoadCommand("llama.cpp", f'llama-cli -m "{file}" --jinja'),
            LoadCommand("Ollama", f'ollama create {name} -f "{folder}/Modelfile"\nollama run {name}'),
            LoadCommand("LM Studio", f'lms import "{file}" --user-repo me/{name} --copy -y'),
        ]
    if "gguf-lora" in parts:
        adapter = f"{folder}/{lora_file_name(name)}"
        commands.append(LoadCommand("llama.cpp", f'llama-cli -m BASE.gguf --lora "{adapter}" --jinja  # on {base}'))
    if "merged" in parts:
        commands += [
            LoadCommand(
                "transformers",
                f'from transformers import pipeline\nask = pipeline("text-generation", model="{below["merged"]}")',
            ),
            LoadCommand("vLLM", f'vllm serve "{below["merged"]}"'),
        ]
    if "adapter" in parts:
        commands.append(
            LoadCommand(
                "PEFT",
                "from peft import AutoPeftModelForCausalLM\n"
                f'model = AutoPeftModelForCausalLM.from_pretrained("{below["adapter"]}")  # on {base}',
            )
        )
    return commands
