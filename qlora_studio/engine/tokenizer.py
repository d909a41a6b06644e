"""The model's tokenizer and chat template, as the data room asks for them. Fast tokenizers only, no remote code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from qlora_studio.core.errors import StudioError
from qlora_studio.data.render.templates import find_template
from qlora_studio.data.render.tokenizer import Encoded
from qlora_studio.engine.render_guard import RenderGuard
from qlora_studio.engine.shared_encoding import SharedEncoding

_PLAIN = frozenset({"role", "content"})
_MANY = 16
"""Texts in one call from which on the work is shared."""


class ChatTokenizer:
    """A transformers tokenizer behind the `Tokenizer` protocol. `inner` is what is saved beside an adapter."""

    def __init__(self, inner: PreTrainedTokenizerBase, where: str = "") -> None:
        self.inner = inner
        self.where = where

    @cached_property
    def template(self) -> str:
        if not self.inner.chat_template:
            return ""
        return self.inner.get_chat_template()

    @cached_property
    def digest(self) -> str:
        known = (
            self.inner.backend_tokenizer.to_str(),
            str(self.inner.chat_template),
            str(self.inner.special_tokens_map),
        )
        return hashlib.sha256("\0".join(known).encode()).hexdigest()

    @cached_property
    def _compiled(self) -> Any:
        """The template as transformers compiles it, in its sandbox; None where it has several by purpose."""
        if not isinstance(self.inner.chat_template, str):
            return None
        template = _compile_jinja_template(self.template)
        template.globals = dict(template.globals)  # each rendering copies them, from a chain of maps item by item
        return template

    @cached_property
    def _special_tokens(self) -> dict[str, Any]:
        return dict(self.inner.special_tokens_map)

    @cached_property
    def bos_id(self) -> int | None:
        bos = self.inner.bos_token_id
        return bos if bos is not None and self.inner("a")["input_ids"][:1] == [bos] else None

    @property
    def eos_id(self) -> int | None:
        eos: int | None = self.inner.eos_token_id
        return eos

    @cached_property
    def vocabulary(self) -> int:
        return len(self.inner)

    @cached_property
    def added_tokens(self) -> Mapping[str, int]:
        return {str(token): index for index, token in self.inner.added_tokens_decoder.items()}

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        special = {str(token): index for index, token in self.inner.added_tokens_decoder.items() if token.special}
        return special | dict(zip(self.inner.all_special_tokens, self.inner.all_special_ids, strict=True))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Plain conversations go to the compiled template itself: what transformers does around it takes longer."""
        if not self.template:
            raise StudioError(
                "This model has no chat template.",
                "Choose a chat template by name; it is saved with the adapter.",
                where=self.where,
                field="model.template",
            )
        return self.guard.run(lambda: self._render(messages, tools, add_generation_prompt, variables or {}))

    @cached_property
    def guard(self) -> RenderGuard:
        """The clock and the bound on memory of every rendering."""
        return RenderGuard()

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        try:
            if self._compiled and not tools and all(message.keys() <= _PLAIN for message in messages):
                rendered = self._compiled.render(
                    messages=list(messages),
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **{**self._special_tokens, **variables},
                )
                return str(rendered)
            text = self.inner.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **variables,
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise StudioError(
                f"The chat template refuses this conversation: {error}.",
                "Change the row, or choose another template.",
            ) from None
        assert isinstance(text, str)
        return text

    @cached_property
    def _shared(self) -> SharedEncoding:
        return SharedEncoding(self.inner.backend_tokenizer)

    def encode(self, texts: Sequence[str]) -> Sequence[Encoded]:
        if len(texts) >= _MANY:
            return self._shared.encode(texts)
        return self.inner.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False) if texts else []

    def stop_caching(self) -> None:
        self._shared.cache = None

    def decode(self, ids: Sequence[int]) -> str:
        text = self.inner.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def load_tokenizer(folder: Path, template: str | None = None) -> ChatTokenizer:
    """The tokenizer of a model folder. `template` names a built-in chat template, which then replaces the model's own.

    Reads local files only and runs no code of the model. Raises a StudioError where the folder holds no fast tokenizer.
    """
    if not folder.is_dir():
        raise StudioError("There is no such model folder.", "Give the folder of a downloaded model.", where=str(folder))
    try:
        inner = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises anything here, from KeyError to a bare Exception of its Rust part
        raise StudioError(
            f"This folder holds no tokenizer that can be read: {_first_line(error)}",
            "It needs at least tokenizer.json and tokenizer_config.json.",
            where=str(folder),
        ) from None
    if not getattr(inner, "is_fast", False):
        raise StudioError(
            "This model's tokenizer has no fast form (tokenizer.json).",
            "Convert it once with transformers, or take a version of the model that has one.",
            where=str(folder),
        )
    if template:
        tokens = {str(token) for token in inner.added_tokens_decoder.values()}
        inner.chat_template = find_template(template, tokens).source
    return ChatTokenizer(inner, str(folder))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".") + "."
