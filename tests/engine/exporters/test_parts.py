"""A record that is kept, an artefact's words, and a pack's parts: with small stand-ins for models and exporters."""

import dataclasses
from contextlib import contextmanager

import pytest
import torch

from qlora_studio.core import events as ev
from qlora_studio.core.conversation import Turn
from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import lora_file_name
from qlora_studio.data.render.prompt import RenderOptions, prompt_ids, stop_ids
from qlora_studio.engine.compare import Probe
from qlora_studio.engine.exporters import adapter, gguf_lora, pack
from qlora_studio.engine.exporters.comparison import Answer, ChatRecord, check_words
from qlora_studio.engine.exporters.pack import EXPORTER
from qlora_studio.engine.exporters.protocol import ExportSource
from qlora_studio.engine.manifest import write_folder
from qlora_studio.engine.tokenizer import load_tokenizer
from tests.engine.conftest import FP32
from tests.engine.gguf_file.small_tokenizers import save


@pytest.fixture
def record():
    return ChatRecord(
        answers=(Answer("one", (1, 2), (3, 4), True), Answer("two", (5,), (6, 7), False)),
        rows=(Probe((8, 9, 10), (1, 2)),),
        log_probabilities=torch.randn(9, 12).log_softmax(-1).T.contiguous().T,
        base_loss=1.25,
        options=RenderOptions(train_on="everything", thinking=True),
        template="{{ words }} ä",
        stops=(4, 11),
    )


def test_a_kept_record_is_the_one_that_was_made(record, tmp_path):
    record.save(tmp_path)
    again = ChatRecord.load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.json", "chat.safetensors"]
    assert torch.equal(again.log_probabilities, record.log_probabilities)
    assert dataclasses.replace(again, log_probabilities=0) == dataclasses.replace(record, log_probabilities=0)


def test_the_loss_of_the_rows_is_read_behind_the_positions_of_the_answers(record):
    """Two tokens and the end of the first answer, two tokens of the second, then the row's last token."""
    assert [len(probe.positions) for probe in record.probes] == [3, 2, 2]
    distributions = torch.full((7, 12), -50.0)
    distributions[5, 10] = -0.75
    assert record.loss(distributions) == pytest.approx(0.75)
    assert record.chat_loss == record.loss(record.log_probabilities)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"template": "other"}, "The exported model's chat template is not that of training"),
        ({"stops": (0,)}, "The exported model's answers end with other tokens than in training"),
        ({"answers": (Answer("Hello", (5, 6), (7,), True),)}, "tokenizer writes a prompt in other tokens"),
    ],
    ids=["the same", "template", "stops", "prompt"],
)
def test_an_artefact_must_speak_in_the_words_of_training(tmp_path, changes, message):
    save("gpt-2", tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tuple(prompt_ids([Turn("user", "Hello")], tokenizer, options=RenderOptions()))
    stops = tuple(sorted(stop_ids(tokenizer)))
    answers = (Answer("Hello", ids, (7,), True),)
    record = ChatRecord(answers, (), torch.empty(0, 0), None, RenderOptions(), tokenizer.template, stops)
    if message is None:
        check_words(record, tokenizer)
        return
    with pytest.raises(StudioError, match=message) as caught:
        check_words(dataclasses.replace(record, **changes), tokenizer)
    assert caught.value.hint == "Report this: it should be impossible."


class Part:
    """An exporter that notes what it is called with."""

    def __init__(self, name, size, calls):
        self.name, self.size, self.calls = name, size, calls

    def size_bytes(self, source):
        return self.size

    def write(self, source, stage, emit):
        assert stage.is_dir()
        (stage / f"{self.name}.bin").write_text(self.name)
        self.calls.append(("write", self.name, source, stage, emit))

    def check(self, source, stage, record, emit):
        self.calls.append(("check", self.name, source, stage, record, emit))


def test_a_pack_writes_and_checks_its_parts_each_in_its_place(tmp_path, monkeypatch):
    calls, sizes = [], {"adapter": 1, "merged": 20, "gguf": 300}
    monkeypatch.setattr(pack, "find_exporter", lambda name: Part(name, sizes[name], calls))
    base, stage = tmp_path / "base", tmp_path / "stage"
    for folder in (base, stage):
        folder.mkdir()
    (base / "LICENSE").write_text("the licence")
    source = ExportSource(tmp_path / "adapter", base, FP32, parts=("merged", "gguf"))
    assert EXPORTER.size_bytes(source) == 320
    assert EXPORTER.size_bytes(dataclasses.replace(source, parts=("adapter",))) == 1
    EXPORTER.write(source, stage, print)
    found = sorted(str(path.relative_to(stage)) for path in stage.rglob("*"))
    assert found == ["LICENSE", "gguf.bin", "merged", "merged/merged.bin"]
    assert calls == [
        ("write", "merged", source, stage / "merged", print),
        ("write", "gguf", source, stage, print),
    ]
    calls.clear()
    EXPORTER.check(source, stage, "the record", print)
    assert calls == [
        ("check", "merged", source, stage / "merged", "the record", print),
        ("check", "gguf", source, stage, "the record", print),
    ]


def test_an_adapter_is_copied_byte_for_byte_and_held_against_its_manifest(tmp_path):
    source, stage, heard = ExportSource(tmp_path / "adapter", None, FP32), tmp_path / "stage", []
    write_folder(source.adapter, lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"12345") and None)
    stage.mkdir()
    adapter.EXPORTER.write(source, stage, heard.append)
    assert heard == [ev.PhaseEntered(phase="copying the adapter")]
    files = {path.name: path.read_bytes() for path in source.adapter.iterdir()}
    assert {path.name: path.read_bytes() for path in stage.iterdir()} == files and len(files) == 2
    assert adapter.EXPORTER.size_bytes(source) == sum(map(len, files.values()))
    adapter.EXPORTER.check(source, stage, None, heard.append)
    (stage / "adapter_model.safetensors").write_bytes(b"12346")
    with pytest.raises(StudioError, match=r"adapter_model\.safetensors is not what was written\. Export again"):
        adapter.EXPORTER.check(source, stage, None, heard.append)


def test_an_adapter_as_gguf_is_written_beside_the_licence_whatever_is_merged_into(tmp_path, monkeypatch):
    calls, heard = [], []

    class File:
        bytes = 40

        def write(self, path):
            calls.append(("write", path))

        def check(self, path):
            calls.append(("check", path))

    @contextmanager
    def plan(source):
        yield File()

    monkeypatch.setattr(gguf_lora, "plan_adapter", plan)
    monkeypatch.setattr(gguf_lora, "copy_licences", lambda *folders: calls.append(("licences", *folders)))
    source, stage = ExportSource(tmp_path, tmp_path / "base", FP32, name="run"), tmp_path / "stage"
    path = stage / lora_file_name("run")
    gguf_lora.EXPORTER.write(source, stage, heard.append)
    gguf_lora.EXPORTER.check(source, stage, None, heard.append)
    assert calls == [("write", path), ("licences", tmp_path / "base", stage), ("check", path)]
    assert heard == [ev.PhaseEntered(phase="writing the adapter as GGUF")]
    assert gguf_lora.EXPORTER.size_bytes(source) == 40
