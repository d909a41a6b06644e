"""The file asked by llama.cpp itself, where the optional package xllamacpp brings it: through the template it carries."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.exporters.comparison import GREEDY, Answer

CONTEXT_TOKENS = 4096
ENOUGH_ANSWERS = 3
"""Short answers that must all run on before a missing end is a fault: one may differ in words, and so in length."""


@dataclass(frozen=True, slots=True)
class LlamaCppAnswer:
    """What llama.cpp said to a prompt."""

    text: str
    prompt_tokens: int
    stopped: bool


def is_installed() -> bool:
    """Whether llama.cpp can be asked on this machine."""
    return importlib.util.find_spec("xllamacpp") is not None


def ask_llama_cpp(path: Path, prompts: Sequence[str]) -> list[LlamaCppAnswer]:
    """Its answers without chance. Raises a StudioError where it refuses a prompt.

    A file that it cannot load ends this process, which is the one that asks exports and nothing else.
    """
    import xllamacpp

    settings: Any = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_predict, settings.warmup = CONTEXT_TOKENS, GREEDY.max_new_tokens, False
    settings.sampling.temp = 0.0
    try:
        server: Any = xllamacpp.Server(settings)
        return [_ask(server, prompt) for prompt in prompts]
    except (RuntimeError, ValueError, KeyError) as error:
        raise StudioError(
            f"llama.cpp refuses the file: {str(error).splitlines()[0] if str(error) else type(error).__name__}.",
            "Export the merged model instead, and report this.",
        ) from error


def compare_with_llama_cpp(path: Path, answers: Sequence[Answer]) -> str:
    """What llama.cpp makes of the file, as a sentence.

    Raises a StudioError where it cannot load it, writes a prompt in other tokens, or never comes to an end.
    """
    found = ask_llama_cpp(path, [answer.text for answer in answers])
    for answer, other in zip(answers, found, strict=True):
        if other.prompt_tokens != len(answer.prompt):
            raise StudioError(
                f"llama.cpp writes a prompt in {other.prompt_tokens} tokens where training wrote {len(answer.prompt)}.",
                "Export the merged model instead, and report this.",
            )
    both = [(answer, other.stopped) for answer, other in zip(answers, found, strict=True) if answer.stopped]
    ended = [stopped for _, stopped in both]
    short = [stopped for answer, stopped in both if 2 * len(answer.answer) <= GREEDY.max_new_tokens]
    if len(short) >= ENOUGH_ANSWERS and not any(short):
        raise StudioError("llama.cpp does not come to an end where the chat did.", "Report this: it is a fault.")
    return (
        f"llama.cpp loads the file, writes the prompts in the tokens of training and ends {sum(ended)} of {len(ended)} "
        "answers where the chat came to an end."
    )


def _ask(server: Any, prompt: str) -> LlamaCppAnswer:
    completion = server.handle_chat_completions(
        {
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": GREEDY.max_new_tokens,
            "reasoning_format": "none",
        }
    )
    choice = completion["choices"][0]
    return LlamaCppAnswer(
        str(choice["message"].get("content") or ""),
        completion["usage"]["prompt_tokens"],
        choice["finish_reason"] == "stop",
    )
