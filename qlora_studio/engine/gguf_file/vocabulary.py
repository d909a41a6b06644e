"""A fast tokenizer as llama.cpp reads it: byte-level BPE by merges, SentencePiece BPE by scores.

How text is cut into words is a name that llama.cpp knows, found from the rule itself. A rule without a name is refused:
a wrong one would spoil the model in silence.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import gguf
from gguf import TokenType

from qlora_studio.core.errors import StudioError
from qlora_studio.data.render.traits import read_traits
from qlora_studio.engine.gguf_file.families import WAY_OUT
from qlora_studio.engine.tokenizer import ChatTokenizer

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LETTERS = r"[^\r\n\p{L}\p{N}]?"
SPLITS: dict[str, str] = {
    CONTRACTIONS + rf"|{LETTERS}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*" + TAIL: "llama-bpe",
    CONTRACTIONS + rf"|{LETTERS}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*" + TAIL: "qwen2",
    rf"{LETTERS}{UPPER}*{LOWER}+|{LETTERS}{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*" + TAIL: "tekken",
    (
        rf"{LETTERS}{UPPER}*{LOWER}+{CONTRACTIONS}?|{LETTERS}{UPPER}+{LOWER}*{CONTRACTIONS}?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    )
    + TAIL: "gpt-4o",
}
"""llama.cpp's name of the rule by which a tokenizer cuts text into words (src/llama-vocab.cpp)."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SPACE = "\u2581"
"""SentencePiece's sign for a space."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a GGUF file says of its tokens, one entry an id."""

    model: str
    """`gpt2` for byte-level BPE, `llama` for SentencePiece."""
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    space_prefix: bool | None = None


def read_vocabulary(tokenizer: ChatTokenizer, size: int) -> Vocabulary:
    """The vocabulary with `size` entries, unused ones filled in. Raises a StudioError for a kind that is not known."""
    values = json.loads(tokenizer.inner.backend_tokenizer.to_str())
    model = values["model"]
    if model.get("type") != "BPE":
        raise _unknown(f"a {model.get('type')} vocabulary")
    known = {index: token for token, index in model["vocab"].items()}
    added = {token["id"]: token for token in values.get("added_tokens", [])}
    if beyond := [index for index in (*known, *added) if index >= size]:
        raise StudioError(
            f"The tokenizer has {max(beyond) + 1:,} tokens and the model rows for {size:,}.",
            "Export the merged model instead.",
        )
    pieces = bool(model.get("byte_fallback"))
    tokens, types = [], []
    for index in range(size):
        text, kind = _token(index, known, added, model.get("unk_token") if pieces else None)
        tokens.append(text)
        types.append(int(kind))
    merges = [pair.split(" ") if isinstance(pair, str) else list(pair) for pair in model["merges"]]
    if pieces:
        scores = _scores(tokens, types, merges)
        return Vocabulary("llama", "default", tuple(tokens), tuple(types), (), scores, _prefixes_space(values))
    pre = name_of_split(values)
    joined = tuple(" ".join(part.replace(" ", "\u0120") for part in pair) for pair in merges)
    return Vocabulary("gpt2", pre, tuple(tokens), tuple(types), joined)


def write_vocabulary(writer: gguf.GGUFWriter, tokenizer: ChatTokenizer, size: int) -> None:
    """Tokens, special tokens, where an answer ends, and the chat template as it was trained with."""
    vocabulary = read_vocabulary(tokenizer, size)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.space_prefix)
    inner: Any = tokenizer.inner
    for index, add in (
        (inner.bos_token_id, writer.add_bos_token_id),
        (inner.eos_token_id, writer.add_eos_token_id),
        (inner.unk_token_id, writer.add_unk_token_id),
        (inner.pad_token_id, writer.add_pad_token_id),
        (read_traits(tokenizer).end_of_turn_id if tokenizer.template else None, writer.add_eot_token_id),
    ):
        if index is not None and index < size:
            add(index)
    writer.add_add_bos_token(tokenizer.bos_id is not None)
    if tokenizer.template:
        writer.add_chat_template(tokenizer.template)


def name_of_split(values: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer.json cuts text into words. Raises a StudioError for another way."""
    steps = values.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", []) if steps.get("type") == "Sequence" else [steps]
    kinds = [step.get("type") for step in steps]
    bytes_step = steps[-1] if kinds and kinds[-1] == "ByteLevel" else {}
    if not bytes_step or bytes_step.get("add_prefix_space"):
        raise _unknown("a rule for splitting words")
    if kinds == ["ByteLevel"] and bytes_step.get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and bytes_step.get("use_regex", True):
        return "smollm"
    pattern = (steps[0].get("pattern") or {}).get("Regex") if kinds == ["Split", "ByteLevel"] else None
    plain = pattern in SPLITS and steps[0].get("behavior") == "Isolated" and not steps[0].get("invert")
    if not plain or bytes_step.get("use_regex", True):
        raise _unknown("a rule for splitting words")
    name = SPLITS[str(pattern)]
    # llama.cpp takes whole words before merges under this name; OLMo 2 has the same rule and does not
    return "dbrx" if name == "llama-bpe" and not values["model"].get("ignore_merges") else name


def _token(index: int, known: dict[int, str], added: dict[int, Any], unknown: str | None) -> tuple[str, TokenType]:
    """Text and kind of one id; `unknown` is SentencePiece's token for what it has no piece for."""
    if index in added:
        text = str(added[index]["content"])
        if unknown is not None and text == unknown:
            return text, TokenType.UNKNOWN
        if added[index]["special"]:
            return text, TokenType.CONTROL
        return (text if unknown is None else text.replace(SPACE, " ")), TokenType.USER_DEFINED
    if index not in known:
        return f"[PAD{index}]", TokenType.UNUSED
    text = known[index]
    if unknown is not None and text == unknown:
        return text, TokenType.UNKNOWN
    return text, TokenType.BYTE if unknown is not None and BYTE.fullmatch(text) else TokenType.NORMAL


def _scores(tokens: list[str], types: list[int], merges: list[list[str]]) -> tuple[float, ...]:
    """SentencePiece's scores from the order of merges: what is merged earlier has the higher one."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    last = float(-len(merges) - 1)
    return tuple(
        (-float(ranks[token]) if token in ranks else last) if kind == TokenType.NORMAL
        else (-1000.0 if kind in (TokenType.CONTROL, TokenType.USER_DEFINED) else (0.0 if kind == TokenType.BYTE else -10000.0))
        for token, kind in zip(tokens, types, strict=True)
    )  # fmt: skip


def _prefixes_space(values: dict[str, Any]) -> bool:
    """Whether a space is put before the text, as Llama 2 does and Gemma does not."""
    text = json.dumps([values.get("normalizer"), values.get("pre_tokenizer")])
    if '"Prepend"' in text:
        return True
    return '"Metaspace"' in text and not re.search(r'"prepend_scheme": "never"|"add_prefix_space": false', text)


def _unknown(what: str) -> StudioError:
    return StudioError(f"This model's tokenizer has {what} that llama.cpp's names do not cover here.", WAY_OUT)
