"""Ollama's Modelfile: where the weights are, where answers end, what they were sampled with.

No TEMPLATE: Ollama reads the one in the GGUF file, which is exact. No ADAPTER: newer versions refuse it. Values are
plain or quoted and know no escapes, so a value that cannot be written is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qlora_studio.core.chat import Sampling
from qlora_studio.core.errors import StudioError
from qlora_studio.data.render.prompt import stop_ids
from qlora_studio.engine.exporters.protocol import ExportSource
from qlora_studio.engine.tokenizer import ChatTokenizer

NAME = "Modelfile"


def write_modelfile(folder: Path, gguf: str, tokenizer: ChatTokenizer, source: ExportSource) -> None:
    """Writes the Modelfile beside the GGUF file of this name; `ollama create NAME -f Modelfile` reads it."""
    stops = [tokenizer.decode([index]) for index in sorted(stop_ids(tokenizer))]
    text = modelfile(gguf, stops, Sampling(), source.context_tokens)
    (folder / NAME).write_text(text, encoding="utf-8")


def modelfile(gguf: str, stops: Sequence[str], sampling: Sampling, context_tokens: int) -> str:
    """The text. Raises a StudioError for a value that Ollama's syntax cannot hold."""
    lines = [
        f"FROM ./{gguf}",
        *(f"PARAMETER stop {quote(stop)}" for stop in dict.fromkeys(stops) if stop.strip()),
        f"PARAMETER temperature {sampling.temperature:g}",
        f"PARAMETER num_ctx {context_tokens}",
    ]
    return "\n".join(lines) + "\n"


def quote(value: str) -> str:
    """A value as Ollama reads it back: in quotes, in three where it holds any."""
    if '"""' in value:
        raise StudioError("A Modelfile cannot hold three quotes in a row.", "Export another kind.")
    return f'"""{value}"""' if '"' in value or "\n" in value else f'"{value}"'
