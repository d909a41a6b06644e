"""The model card: what was tuned, on what, how, how well, under which licence, and how it is run. A page to publish.

Pure text. It holds names, hashes and numbers, never a path of the machine it comes from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from qlora_studio.core.exports import ExportOptions, load_commands
from qlora_studio.core.record import RunRecord

RELATIONS = {
    "adapter": "adapter",
    "merged": "finetune",
    "gguf": "quantized",
    "gguf-lora": "adapter",
    "pack": "finetune",
}
"""The hub's word for how a model comes from its base."""


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says."""

    record: RunRecord
    base: str
    """Hub id or name of the base."""
    licence: str
    """Of the base, as it names it; empty where it names none."""
    licence_files: tuple[str, ...] = ()
    """Those that came along."""


def write_card(facts: CardFacts, options: ExportOptions) -> str:
    """The card as Markdown with the hub's front matter."""
    record = facts.record
    name = record.labels.title or record.name
    sections = [
        _front_matter(facts, options),
        f"# {name}\n\nA QLoRA fine-tune of {facts.base}, made with QLoRA Studio.",
        "## Running it\n\n" + _running(facts, options),
        "## Training\n\n" + _training(facts),
        "## Evaluation\n\n" + _evaluation(facts),
        "## Licence\n\n" + _licence(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts, options: ExportOptions) -> str:
    parts = set(_parts(options))
    tags = ["qlora", *(["gguf"] if parts & {"gguf", "gguf-lora"} else [])]
    tags += ["lora"] if parts & {"adapter", "gguf-lora"} else []
    lines = [
        f"base_model: {json.dumps(facts.base)}",
        f"base_model_relation: {RELATIONS[options.kind.name]}",
        "library_name: " + ("peft" if options.kind.name == "adapter" else "transformers"),
        "pipeline_tag: text-generation",
        *([f"license: {json.dumps(facts.licence)}"] if facts.licence else []),
        f"tags: {json.dumps(tags)}",
    ]
    return "\n".join(["---", *lines, "---"])


def _running(facts: CardFacts, options: ExportOptions) -> str:
    commands = load_commands(options, ".", facts.record.name, facts.base)
    return "\n\n".join(f"{command.program}:\n\n```\n{command.text}\n```" for command in commands)


def _training(facts: CardFacts) -> str:
    config, known = facts.record.config, facts.record.fingerprint
    rows = [
        ("Base", facts.base + (f" at {known['revision']}" if known.get("revision") else "")),
        ("Method", f"QLoRA: NF4 with double quantisation, rank {config.lora.rank}, alpha {config.lora.alpha}"),
        ("rsLoRA", "yes" if config.lora.use_rslora else "no"),
        ("Learning rate", f"{config.optim.learning_rate or 'chosen by the studio'}"),
        ("Batch", f"{config.optim.batch_tokens:,} tokens"),
        ("Epochs", f"{config.optim.epochs}"),
        ("Steps", f"{facts.record.losses[-1][0]}" if facts.record.losses else "unknown"),
        ("Max sequence length", f"{config.data.max_length:,} tokens"),
        ("Seed", f"{config.optim.seed}"),
        *((f"Data: {one.name}", f"{one.rows:,} rows, sha256 {one.sha256 or 'unknown'}") for one in facts.record.data),
        ("Tokens, sha256", str(known.get("tokens_sha256") or "unknown")),
        ("Chat template, sha256", str(known.get("template_sha256") or "unknown")),
        *((f"Version of {name}", str(version)) for name, version in (known.get("versions") or {}).items()),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _evaluation(facts: CardFacts) -> str:
    losses = facts.record.evaluations
    if not losses:
        return "No rows were held out, so nothing was measured."
    first, last = losses[0], losses[-1]
    return (
        f"Held-out loss, mean over trained tokens in nats: {first[1]:.4f} at step {first[0]}, {last[1]:.4f} at step "
        f"{last[0]}."
    )


def _licence(facts: CardFacts) -> str:
    named = (
        f"The base's licence, {facts.licence}," if facts.licence else "The base names no licence; whatever it is, it"
    )
    files = f" Its text is in {', '.join(facts.licence_files)}." if facts.licence_files else ""
    return f"{named} stays in force for what is made of it.{files}"


def _parts(options: ExportOptions) -> tuple[str, ...]:
    return options.parts if options.kind.name == "pack" else (options.kind.name,)
