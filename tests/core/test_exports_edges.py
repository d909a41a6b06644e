"""What an export is said to be, opened with and weighed by, case by case; and the card that goes with it, whole."""

from __future__ import annotations

import pytest

from qlora_studio.core.card import CardFacts, write_card
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.events import Checked
from qlora_studio.core.exports import (
    EXPORT_KINDS,
    ExportOptions,
    find_export_kind,
    find_gguf_limit,
    list_choices,
    load_commands,
    parse_weights,
    suggest_merge,
)
from qlora_studio.core.labels import Labels
from qlora_studio.core.record import DataRecord, RunRecord


def options(kind, **changes):
    return ExportOptions(find_export_kind(kind), **changes)


@pytest.mark.parametrize(
    ("kind", "parts", "writes", "searches"),
    [
        ("adapter", (), False, False),
        ("merged", ("gguf",), False, False),
        ("gguf", (), True, True),
        ("gguf-lora", (), True, False),
        ("pack", ("adapter", "gguf"), True, True),
        ("pack", ("adapter", "merged"), False, False),
    ],
)
def test_what_llama_cpp_must_know_and_what_takes_a_search(kind, parts, writes, searches):
    asked = options(kind, parts=parts, gguf="Q4_K_M")
    assert (asked.writes_gguf, asked.searches_blocks) == (writes, searches)
    assert not asked.measures_importance
    assert options(kind, parts=parts, gguf="Q4_K_M", importance=True).measures_importance == searches
    assert not options(kind, parts=parts, gguf="Q8_0", importance=True).measures_importance


def test_a_pack_of_every_part_is_no_fault():
    options("pack", parts=("adapter", "merged", "gguf")).check()
    options("pack", parts=("gguf",)).check()


def test_families_that_llama_cpp_does_not_know_are_named():
    assert find_gguf_limit("llama") == ""
    assert find_gguf_limit("mamba").startswith("No GGUF file can be made of a mamba model here, for LM Studio,")


def test_all_kinds_are_offered():
    assert list_choices() == EXPORT_KINDS
    with pytest.raises(
        StudioError, match=r"'onnx' cannot be exported\. Choose one of: adapter, merged, gguf, gguf-lora, pack\."
    ):
        find_export_kind("onnx")


@pytest.mark.parametrize(
    ("text", "count", "weights"),
    [("", 3, [1.0, 1.0, 1.0]), (" ", 1, [1.0]), ("0.7, 0.3", 2, [0.7, 0.3]), ("1;-2", 2, [1.0, -2.0]), ("0", 1, [0.0])],
)
def test_weights_are_read_between_commas(text, count, weights):
    assert parse_weights(text, count) == weights


@pytest.mark.parametrize("text", ["1", "1,2,3", "1,x", "1,inf", "nan,1", "1,"])
def test_weights_that_are_none_or_too_many_are_refused(text):
    with pytest.raises(StudioError) as caught:
        parse_weights(text, 2)
    assert caught.value.message == f"'{text}' is not 2 weights."


def test_an_equal_loss_is_no_reason_to_leave_what_was_chatted_with():
    def check(loss):
        return Checked(what="m", chat_loss=2.0, base_loss=3.0, loss=loss, precision="16-bit")

    assert suggest_merge([check(2.0)])[0] == "as_chatted"
    assert suggest_merge([check(1.9999)])[0] == "original"
    assert suggest_merge([check(2.0)])[1] == (
        "As chatted is chosen: with the original weights an earlier export measured loss 2.000 on this run's held-out rows "
        "beside the chat's 2.000."
    )


GGUF = [
    ("llama.cpp", 'llama-cli -m "/o/n.Q8_0.gguf" --jinja'),
    ("Ollama", 'ollama create n -f "/o/Modelfile"\nollama run n'),
    ("LM Studio", 'lms import "/o/n.Q8_0.gguf" --user-repo me/n --copy -y'),
]
LORA = [("llama.cpp", 'llama-cli -m BASE.gguf --lora "/o/n.lora.gguf" --jinja  # on b')]


def merged(folder):
    return [
        ("transformers", f'from transformers import pipeline\nask = pipeline("text-generation", model="{folder}")'),
        ("vLLM", f'vllm serve "{folder}"'),
    ]


def adapter(folder):
    line = f'model = AutoPeftModelForCausalLM.from_pretrained("{folder}")  # on b'
    return [("PEFT", f"from peft import AutoPeftModelForCausalLM\n{line}")]


@pytest.mark.parametrize(
    ("kind", "parts", "commands"),
    [
        ("gguf", (), GGUF),
        ("gguf-lora", (), LORA),
        ("merged", (), merged("/o")),
        ("adapter", (), adapter("/o")),
        ("pack", ("adapter", "merged", "gguf"), [*GGUF, *merged("/o/merged"), *adapter("/o/adapter")]),
        ("pack", ("merged",), merged("/o/merged")),
    ],
)
def test_every_command_whole(kind, parts, commands):
    found = load_commands(options(kind, parts=parts, gguf="Q8_0"), "/o", "n", "b")
    assert [(command.program, command.text) for command in found] == commands


def test_a_card_whole():
    config = TrainConfig().replace(
        {"optim.learning_rate": 1e-4, "lora.use_rslora": True, "optim.seed": 5, "optim.epochs": 3}
    )
    record = RunRecord(
        name="run-1", labels=Labels(title="My run"), config=config,
        fingerprint={"revision": "r1", "tokens_sha256": "t1", "versions": {"torch": "2", "peft": "1"}},
        data=(DataRecord(name="rows", rows=1200),), losses=((10, 2.0), (40, 1.5)), evaluations=((0, 3.0), (40, 1.25)),
    )  # fmt: skip
    card = write_card(CardFacts(record, "org/base", "mit", ("LICENSE", "NOTICE")), options("adapter"))
    assert (
        card
        == f"""---
base_model: "org/base"
base_model_relation: adapter
library_name: peft
pipeline_tag: text-generation
license: "mit"
tags: ["qlora", "lora"]
---

# My run

A QLoRA fine-tune of org/base, made with QLoRA Studio.

## Running it

PEFT:

```
{load_commands(options("adapter"), ".", "run-1", "org/base")[0].text}
```

## Training

| | |
|---|---|
| Base | org/base at r1 |
| Method | QLoRA: NF4 with double quantisation, rank 16, alpha 32 |
| rsLoRA | yes |
| Learning rate | 0.0001 |
| Batch | {config.optim.batch_tokens:,} tokens |
| Epochs | 3.0 |
| Steps | 40 |
| Max sequence length | {config.data.max_length:,} tokens |
| Seed | 5 |
| Data: rows | 1,200 rows, sha256 unknown |
| Tokens, sha256 | t1 |
| Chat template, sha256 | unknown |
| Version of torch | 2 |
| Version of peft | 1 |

## Evaluation

Held-out loss, mean over trained tokens in nats: 3.0000 at step 0, 1.2500 at step 40.

## Licence

The base's licence, mit, stays in force for what is made of it. Its text is in LICENSE, NOTICE.
"""
    )


def test_a_card_of_what_little_is_known():
    record = RunRecord(name="run-1", config=TrainConfig())
    card = write_card(CardFacts(record, "b", ""), options("gguf-lora"))
    front = 'base_model: "b"\nbase_model_relation: adapter\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: ["qlora", "gguf", "lora"]\n---'
    assert front in card and "# run-1\n" in card and "| Base | b |" in card and "| rsLoRA | no |" in card
    assert "| Steps | unknown |" in card and "| Learning rate | chosen by the studio |" in card
    assert "\nThe base names no licence; whatever it is, it stays in force for what is made of it.\n" in card
