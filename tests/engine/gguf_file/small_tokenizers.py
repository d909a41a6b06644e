"""Tokenizers of every kind that is written as GGUF, trained in a second on the program's own texts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from qlora_studio.engine.gguf_file.vocabulary import SPLITS

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
REGEX = {name: pattern for pattern, name in SPLITS.items()}
KINDS = ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "tekken", "gpt-4o", "pieces", "pieces without prefix")


def texts() -> Iterator[str]:
    for path in sorted({*(ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "reference.md"}):  # that one is long
        yield from path.read_text(encoding="utf-8").splitlines(keepends=True)


def train(kind: str, size: int = 600) -> Tokenizer:
    """A tokenizer of this kind with at most so many tokens."""
    if kind.startswith("pieces"):
        return train_pieces(size, prefix=kind == "pieces")
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    split: list[Any] = []
    if kind == "smollm":
        split = [pre_tokenizers.Digits(individual_digits=True)]
    elif kind != "gpt-2":
        split = [pre_tokenizers.Split(Regex(REGEX["llama-bpe" if kind == "dbrx" else kind]), "isolated")]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in ("gpt-2", "smollm"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, last]) if split else last
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def train_pieces(size: int, *, prefix: bool) -> Tokenizer:
    """SentencePiece's kind, as transformers keeps it: spaces as signs, bytes for what has no piece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace]) if prefix else replace
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    state = tokenizer.to_str()
    import json

    values = json.loads(state)
    values["added_tokens"] = [token for token in values["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(values))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return tokenizer


def save(kind: str, folder: Path, size: int = 600) -> PreTrainedTokenizerFast:
    """The tokenizer in a model's folder, with a chat template."""
    pieces = kind.startswith("pieces")
    made = PreTrainedTokenizerFast(
        tokenizer_object=train(kind, size),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        **({"unk_token": "<unk>", "bos_token": "<s>"} if pieces else {}),
    )
    made.chat_template = TEMPLATE
    made.save_pretrained(folder)
    return made


def nasty_texts(count: int = 200) -> list[str]:
    """Texts in which tokenizers differ if they do: scripts, emoji, spaces, line ends, digits, quotes; none empty."""
    rng = random.Random(0)
    words = [
        "Hello", "world", "I'm", "You'LL", "it's", "naïve", "Straße", "мир", "我想在", "Apple工作", "ข้อความ", "🦙", "👩‍👩‍👧",
        "3", "33", "333", "12345678", "3.14", "a_b", "x=1;", "http://a.b/c?d=e", "...", "!!!", "—", "\t", "\n", "\n\n", "  ",
        "   ", " \n ", "<|im", "CamelCaseWord", "ALLCAPS", "e\u0301", "½", "\u00a0", "«quoted»", "'", '"', "`code`", "\\n",
    ]  # fmt: skip
    made = [rng.choice(["", " "]).join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(count - 3)]
    return [*(text or "a" for text in made), "<|im_start|>user\nHi<|im_end|>\n", " leading", "trailing "]
