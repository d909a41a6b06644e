"""Exporters: by name, with their size, whole, and asked what the chat was asked."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qlora_studio.core import events as ev
from qlora_studio.core.chat import Sampling
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.core.exports import EXPORT_KINDS
from qlora_studio.data.render.prompt import RenderOptions, stop_ids
from qlora_studio.engine import layerwise
from qlora_studio.engine.checkpoints import TunedModel, save_adapter
from qlora_studio.engine.exporters import comparison, merged
from qlora_studio.engine.exporters.comparison import (
    Answer,
    ChatModel,
    ChatRecord,
    ask_model,
    check_words,
    compare_with_chat,
    record_chat,
)
from qlora_studio.engine.exporters.protocol import ExportSource
from qlora_studio.engine.exporters.registry import find_exporter
from qlora_studio.engine.load import load_adapter, load_base
from qlora_studio.engine.manifest import write_folder
from qlora_studio.engine.tokenizer import load_tokenizer
from tests.engine.conftest import FP32
from tests.engine.gguf_file.small_models import small_adapter, small_base
from tests.matrix import mostly_slow
from tests.modelfile_reader import read_modelfile

PROMPTS = ("What can you do?", "Explain what a bicycle is.")


@pytest.fixture
def source(tiny_folder, tiny_adapter_model, tmp_path) -> ExportSource:
    write_folder(tmp_path / "adapter", lambda stage: save_adapter(TunedModel(tiny_adapter_model, "tiny"), stage))
    return ExportSource(tmp_path / "adapter", tiny_folder, FP32)


@pytest.fixture
def stage(tmp_path):
    folder = tmp_path / "stage"
    folder.mkdir()
    return folder


def size_of(folder) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_names_are_unique_found_and_refused_with_those_there_are():
    names = [kind.name for kind in EXPORT_KINDS]
    assert len(set(names)) == len(names) and all(find_exporter(name) is find_exporter(name) for name in names)
    with pytest.raises(StudioError, match=r"^'gguff' cannot be exported\. Choose one of: adapter, merged"):
        find_exporter("gguff")


def test_the_adapter_is_copied_byte_for_byte_and_needs_no_base(source, stage):
    exporter, events = find_exporter("adapter"), []
    source = dataclasses.replace(source, base=None)
    exporter.write(source, stage, events.append)
    exporter.check(source, stage, None, events.append)
    assert {path.name: path.read_bytes() for path in stage.iterdir()} == {
        path.name: path.read_bytes() for path in source.adapter.iterdir()
    }
    assert exporter.size_bytes(source) == size_of(stage)
    assert events == [ev.PhaseEntered(phase="copying the adapter")]


def test_a_copy_that_is_not_what_was_written_is_refused(source, stage):
    exporter = find_exporter("adapter")
    exporter.write(source, stage, lambda event: None)
    file = stage / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(StudioError, match=r"adapter_model\.safetensors is not what was written"):
        exporter.check(source, stage, None, lambda event: None)


@pytest.mark.parametrize("merge_into", ["original", "as_chatted"])
def test_the_merged_model_is_as_large_as_said_and_computes_as_asked(
    source, stage, tiny_adapter_model, tiny_folder, merge_into
):
    exporter, events = find_exporter("merged"), []
    source = dataclasses.replace(source, merge_into=merge_into)
    exporter.write(source, stage, events.append)
    exporter.check(source, stage, None, events.append)
    assert type(events[0]) is ev.PhaseEntered and {type(event) for event in events[1:]} == {ev.Advanced}
    assert events[-1].done == events[-1].total == exporter.size_bytes(source)
    assert exporter.size_bytes(source) == pytest.approx((stage / "model.safetensors").stat().st_size, rel=0.05)
    ids = torch.arange(3, 43).unsqueeze(0)
    four_bit = merge_into == "as_chatted"
    live = load_adapter(load_base(tiny_folder, FP32, four_bit=four_bit), source.adapter).eval()
    exported = AutoModelForCausalLM.from_pretrained(stage, dtype=torch.float32)
    assert torch.allclose(exported(ids).logits, live(ids).logits, atol=2e-4)


def test_a_merge_without_its_base_is_refused(source, stage):
    exporter = find_exporter("merged")
    with pytest.raises(StudioError, match="needs the base model"):
        exporter.write(dataclasses.replace(source, base=None), stage, lambda event: None)


def test_a_merged_model_that_does_not_fit_the_card_is_checked_in_the_computers_memory(source, stage, monkeypatch):
    find_exporter("merged").write(source, stage, lambda event: None)

    class Card:
        """A card with no room at all."""

        name, released = "card", 0

        def release(self) -> None:
            self.released += 1

    card, load, events = Card(), merged.load_base, []

    def no_room(folder, device, **how):
        if device.accelerator is card:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return load(folder, device, **how)

    monkeypatch.setattr(merged, "load_base", no_room)
    model = merged.load_merged(stage, dataclasses.replace(FP32, accelerator=card), events.append)
    assert model.device.type == "cpu" and not model.training and card.released == 1
    assert [event.text for event in events] == [
        "The merged model does not fit the card; it is checked in the computer's memory."
    ]


@pytest.fixture
def short(monkeypatch):
    """Answers of eight tokens: the tests run on a processor."""
    monkeypatch.setattr(comparison, "GREEDY", Sampling(temperature=0.0, max_new_tokens=8))


@pytest.mark.slow
def test_a_model_agrees_with_itself_and_disagrees_with_another(smollm2, short, stage):
    tokenizer = load_tokenizer(smollm2)
    chat = ChatModel(load_base(smollm2, FP32).eval(), tokenizer, RenderOptions())
    record = record_chat(chat, PROMPTS, make_rows(2))
    assert tuple(answer.text for answer in record.answers) == PROMPTS
    assert [len(answer.answer) for answer in record.answers] == [8, 8]
    record.save(stage)
    again = ChatRecord.load(stage)
    assert torch.equal(again.log_probabilities, record.log_probabilities)
    assert dataclasses.replace(again, log_probabilities=0) == dataclasses.replace(record, log_probabilities=0)
    events: list[ev.Event] = []
    compare_with_chat(again, ask_model(chat, again), ev.Checked(what="itself"), events.append)
    assert [event.prompt for event in events[:-1]] == list(PROMPTS)
    itself = events[-1]
    assert (itself.same_top1, itself.identical_answers, itself.answers) == (1.0, 2, 2)
    assert abs(itself.kl) < 1e-6 and itself.loss == pytest.approx(record.chat_loss) and itself.positions > 16
    with torch.no_grad():
        chat.model.model.norm.weight.mul_(torch.linspace(-1, 1, chat.model.config.hidden_size))
    compare_with_chat(record, ask_model(chat, record), ev.Checked(what="broken"), events.append)
    broken = events[-1]
    assert broken.same_top1 < 0.5 and broken.kl > 1 and broken.identical_answers == 0 and broken.loss > itself.loss


def make_rows(count: int) -> list[Example]:
    return [Example(tuple(range(100 + row, 140 + row)), ((20, 40),)) for row in range(count)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "{{ other }}"}, "chat template is not that of training"),
        ({"stops": (0,)}, "answers end with other tokens"),
        ({"answers": (Answer(PROMPTS[0], (5, 6), (7,), True),)}, "writes a prompt in other tokens"),
    ],
)
def test_an_artefact_that_would_speak_in_other_words_is_refused(smollm2, changes, message):
    tokenizer = load_tokenizer(smollm2)
    stops = tuple(sorted(stop_ids(tokenizer)))
    record = ChatRecord((), (), torch.empty(0, 0), None, RenderOptions(), tokenizer.template, stops)
    check_words(record, tokenizer)
    with pytest.raises(StudioError, match=message):
        check_words(dataclasses.replace(record, **changes), tokenizer)


def test_another_error_than_memory_is_not_answered_by_another_place(source, stage, monkeypatch):
    find_exporter("merged").write(source, stage, lambda event: None)

    def broken(folder, device, **how):
        raise StudioError("The model cannot be loaded.")

    monkeypatch.setattr(merged, "load_base", broken)
    with pytest.raises(StudioError, match="cannot be loaded"):
        merged.load_merged(stage, dataclasses.replace(FP32, accelerator=object()), lambda event: None)


@pytest.mark.parametrize("known", [True, False])
def test_a_merged_model_that_does_not_fit_the_computers_memory_is_left_in_its_files(source, stage, known, monkeypatch):
    find_exporter("merged").write(source, stage, lambda event: None)
    events, tries = [], []

    def no_room(folder, device, **how):
        tries.append(device)
        raise MemoryError

    monkeypatch.setattr(merged, "load_base", no_room)
    if known:
        monkeypatch.setattr(layerwise.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    assert isinstance(merged.load_merged(stage, FP32, events.append), layerwise.LayerwiseModel)
    assert len(tries) == (0 if known else 1) and "layer by layer" in events[0].text


@pytest.fixture
def written(tmp_path) -> ExportSource:
    """A small base with tokenizer and licence, and an adapter as a run saves it."""
    base = small_base("llama", tmp_path / "base")
    (base / "LICENSE").write_text("the licence")

    def fill(folder):
        small_adapter(base, folder)
        (folder / "README.md").unlink()
        config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": "org/base"}
        (folder / "adapter_config.json").write_text(json.dumps(config))

    write_folder(tmp_path / "adapter", fill)
    return ExportSource(
        tmp_path / "adapter",
        base,
        FP32,
        gguf="Q8_0",
        parts=("adapter", "merged", "gguf"),
        name="pip",
        base_name="org/base",
    )


def record_of(source: ExportSource, tokenizer) -> ChatRecord:
    chat = load_adapter(load_base(source.base_folder(), FP32, four_bit=False), source.adapter).eval()
    return record_chat(ChatModel(chat, tokenizer, RenderOptions()), PROMPTS[:1], make_rows(1))


def test_a_gguf_file_comes_with_modelfile_and_licence_and_is_asked(written, stage, short):
    exporter, events = find_exporter("gguf"), []
    exporter.write(written, stage, events.append)
    assert sorted(path.name for path in stage.iterdir()) == ["LICENSE", "Modelfile", "pip.Q8_0.gguf"]
    assert exporter.size_bytes(written) == pytest.approx((stage / "pip.Q8_0.gguf").stat().st_size, rel=0.2)
    assert events[-1].done == events[-1].total == exporter.size_bytes(written)
    parsed = dict(read_modelfile((stage / "Modelfile").read_text()))
    assert parsed["from"] == "./pip.Q8_0.gguf" and parsed["stop"] == "<|im_end|>"
    exporter.check(written, stage, record_of(written, load_tokenizer(written.base_folder())), events.append)
    (check,) = [event for event in events if isinstance(event, ev.Checked)]
    assert (check.what, check.precision, check.as_chatted) == ("Q8_0, original", "Q8_0", False) and check.kl < 0.05
    assert any(isinstance(event, ev.Noted) and "llama.cpp" in event.text for event in events)


@pytest.mark.slow
def test_a_pack_holds_its_parts_and_names_no_place_of_this_machine(written, stage, short, tmp_path):
    exporter, events = find_exporter("pack"), []
    exporter.write(written, stage, events.append)
    assert sorted(path.name for path in stage.iterdir()) == [
        "LICENSE",
        "Modelfile",
        "adapter",
        "merged",
        "pip.Q8_0.gguf",
    ]
    exporter.check(written, stage, record_of(written, load_tokenizer(written.base_folder())), events.append)
    assert len([event for event in events if isinstance(event, ev.Checked)]) == 2, "the adapter is the chat's own"
    for path in stage.rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path.name


@pytest.mark.slow
def test_a_file_that_lost_a_layer_is_noticed(written, stage, short):
    exporter, events = find_exporter("gguf"), []
    record = record_of(written, load_tokenizer(written.base_folder()))
    state = load_file(written.adapter / "adapter_model.safetensors")
    save_file({name: value * 0 for name, value in state.items()}, written.adapter / "adapter_model.safetensors")
    exporter.write(written, stage, events.append)
    exporter.check(written, stage, record, events.append)
    (check,) = [event for event in events if isinstance(event, ev.Checked)]
    assert check.kl > 0.05


@pytest.mark.parametrize("kind", mostly_slow(["merged", "gguf"], "merged"))
@pytest.mark.parametrize("broken", mostly_slow([False, True], True))
def test_a_check_by_layers_comes_to_the_numbers_of_one_in_memory(kind, broken, written, stage, short, monkeypatch):
    source = dataclasses.replace(written, gguf="F32", merge_into="original")
    record = record_of(written, load_tokenizer(written.base_folder()))
    if broken:
        turn_adapter_round(written)
    exporter, events = find_exporter(kind), []
    exporter.write(source, stage, lambda event: None)
    exporter.check(source, stage, record, events.append)
    monkeypatch.setattr(layerwise.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    exporter.check(source, stage, record, events.append)
    whole, by_layers = [event for event in events if isinstance(event, ev.Checked)]
    assert any(isinstance(event, ev.Noted) and "layer by layer" in event.text for event in events)
    assert by_layers.kl == pytest.approx(whole.kl, abs=1e-5) and by_layers.loss == pytest.approx(whole.loss, abs=1e-4)
    same = ("same_top1", "identical_answers", "answers", "stops", "stops_kept", "positions")
    assert [getattr(by_layers, name) for name in same] == [getattr(whole, name) for name in same]
    assert (whole.kl > 0.05) == broken
    assert whole.identical_answers == (0 if broken else 1)


def turn_adapter_round(source: ExportSource) -> None:
    file = source.adapter / "adapter_model.safetensors"
    save_file({name: value * (-1 if "lora_B" in name else 1) for name, value in load_file(file).items()}, file)


def test_a_tokenizer_in_the_folder_of_the_adapter_wins(written):
    assert written.tokenizer_folder() == written.base_folder()
    (written.adapter / "tokenizer_config.json").write_text("{}")
    assert written.tokenizer_folder() == written.adapter
