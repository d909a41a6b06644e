"""What can be exported: its size before it is written, which merge suits a run, and how each program opens it."""

from __future__ import annotations

import json

import pytest

from qlora_studio.core.card import CardFacts, write_card
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.events import Checked
from qlora_studio.core.exports import (
    EXPORT_KINDS,
    ExportOptions,
    ExportSizes,
    find_export_kind,
    find_gguf,
    find_merge,
    load_commands,
    suggest_merge,
)
from qlora_studio.core.record import DataRecord, RunRecord


def options(kind: str, **changes) -> ExportOptions:
    return ExportOptions(find_export_kind(kind), **changes)


def test_sizes_are_known_before_anything_is_written():
    known = ExportSizes(10, 1600)
    sizes = {kind.name: ExportOptions(kind).result_bytes(known) for kind in EXPORT_KINDS}
    assert sizes == {"adapter": 10, "merged": 1600, "gguf": 490, "gguf-lora": 10, "pack": 2100}
    assert options("gguf", gguf="Q8_0").result_bytes(known) == 850
    assert options("gguf").result_bytes(ExportSizes(10, 1600, odd_rows=True)) == 620
    assert options("pack", parts=("adapter", "gguf")).result_bytes(known) == 500
    assert [ExportOptions(kind).result_bytes(ExportSizes(10, None)) for kind in EXPORT_KINDS] == [
        10,
        None,
        None,
        10,
        None,
    ]


def test_only_k_quants_are_searched_for():
    assert [options("gguf", gguf=name).searches_blocks for name in ("Q4_K_M", "Q6_K", "Q8_0", "F16")] == [
        True,
        True,
        False,
        False,
    ]
    assert not options("merged").searches_blocks and options("pack").searches_blocks
    assert not options("pack", parts=("merged",)).searches_blocks


@pytest.mark.parametrize("parts", [(), ("adapter", "onnx")])
def test_a_pack_of_nothing_or_of_something_unknown_is_refused(parts):
    with pytest.raises(StudioError, match="A pack holds at least one part"):
        options("pack", parts=parts).check()
    options("merged", parts=parts).check()


def test_names_are_found_and_others_are_refused_with_those_there_are():
    assert find_gguf("q4_k_m") == "Q4_K_M" and find_merge("original").into == "original"
    with pytest.raises(StudioError, match="Choose one of: Q4_K_M"):
        find_gguf("q3")
    with pytest.raises(StudioError, match="Choose as-chatted or original"):
        find_merge("both")


@pytest.mark.parametrize(
    ("checks", "into", "reason"),
    [
        ([], "as_chatted", "it is the model you tried out"),
        ([{"loss": 1.9}], "original", "an earlier export measured loss 1.900 on this run's held-out rows beside the chat's 2.000"),
        ([{"loss": 2.1}], "as_chatted", "an earlier export measured loss 2.100"),
        ([{"loss": 1.9}, {"loss": 2.2}], "as_chatted", "an earlier export measured loss 2.200"),
        ([{"loss": 1.9}, {}], "original", "an earlier export measured loss 1.900"),
        ([{"loss": 2.2, "precision": "Q4_K_M"}], "as_chatted", "it is the model you tried out"),
        ([{"loss": 1.9, "as_chatted": True}], "as_chatted", "it is the model you tried out"),
    ],
)  # fmt: skip
def test_the_merge_that_suits_a_run_follows_from_what_was_measured_on_it(checks, into, reason):
    found, why = suggest_merge([Checked(what="m", chat_loss=2.0, base_loss=3.0, **check) for check in checks])
    assert found == into and reason in why


def test_every_program_that_can_open_it_is_told_how():
    gguf = {command.program: command.text for command in load_commands(options("gguf"), "/out", "pip", "org/base")}
    assert gguf["llama.cpp"] == 'llama-cli -m "/out/pip.Q4_K_M.gguf" --jinja'
    assert gguf["Ollama"].startswith('ollama create pip -f "/out/Modelfile"')
    assert [command.program for command in load_commands(options("pack"), "/out", "pip", "org/base")] == [
        "llama.cpp", "Ollama", "LM Studio", "transformers", "vLLM", "PEFT",
    ]  # fmt: skip
    (adapter,) = load_commands(options("adapter"), "/out", "pip", "org/base")
    assert '"/out"' in adapter.text and "on org/base" in adapter.text


def test_a_card_says_what_was_done_and_names_no_place():
    config = TrainConfig().replace({"model.base": "org/base", "data.sources": [{"name": "rows"}]})
    record = RunRecord(
        name="pip",
        config=config,
        fingerprint={
            "tokens_sha256": "ab12",
            "template_sha256": "cd34",
            "revision": "r1",
            "versions": {"torch": "2.13"},
        },
        data=(DataRecord(name="rows", sha256="ef56", rows=120),),
        losses=((1, 3.0), (40, 1.5)),
        evaluations=((0, 3.1), (40, 1.9)),
    )
    card = write_card(CardFacts(record, "org/base", "apache-2.0", ("LICENSE",)), options("pack"))
    front = card.split("---")[1]
    assert 'base_model: "org/base"' in front and "base_model_relation: finetune" in front
    assert 'license: "apache-2.0"' in front and json.loads(front.split("tags: ")[1]) == ["qlora", "gguf", "lora"]
    for part in (
        "| Data: rows | 120 rows, sha256 ef56 |", "| Tokens, sha256 | ab12 |", "| Steps | 40 |", "org/base at r1",
        "3.1000 at step 0, 1.9000 at step 40", "licence, apache-2.0, stays in force", "Its text is in LICENSE.",
        "llama-cli -m \"./pip.Q4_K_M.gguf\" --jinja", "vllm serve \"./merged\"", "ollama create pip",
    ):  # fmt: skip
        assert part in card
    bare = write_card(CardFacts(RunRecord(name="x", config=config), "b", ""), options("merged"))
    assert "The base names no licence" in bare and "nothing was measured" in bare and "license:" not in bare


def test_what_each_kind_needs_and_how_it_is_asked():
    found = {
        kind.name: (kind.needs_base, kind.compares_with_chat, kind.as_large_as, kind.merges) for kind in EXPORT_KINDS
    }
    assert found == {
        "adapter": (False, False, "adapter", False),
        "merged": (True, True, "base", True),
        "gguf": (True, True, "gguf", True),
        "gguf-lora": (True, False, "adapter", False),
        "pack": (True, True, "parts", True),
    }
    plain = ExportOptions(find_export_kind("pack"))
    assert (plain.merge_into, plain.gguf, plain.parts) == ("as_chatted", "Q4_K_M", ("adapter", "merged", "gguf"))
    assert (plain.checkpoint, plain.importance, ExportSizes(1, 2).odd_rows) == ("", False, False)


@pytest.mark.parametrize(
    ("kind", "changes", "measures"),
    [
        ("gguf", {"importance": True}, True),
        ("gguf", {}, False),
        ("gguf", {"importance": True, "gguf": "Q8_0"}, False),
        ("merged", {"importance": True}, False),
        ("pack", {"importance": True}, True),
    ],
)
def test_importance_is_measured_only_where_blocks_are_searched_for(kind, changes, measures):
    assert options(kind, **changes).measures_importance is measures
