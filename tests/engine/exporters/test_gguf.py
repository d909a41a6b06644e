"""A GGUF file beside the chat: what is asked of whom, where it is read into, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from qlora_studio.core import events as ev
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.exporters import gguf
from qlora_studio.engine.exporters.gguf import EXPORTER, ask_gguf, gguf_name
from qlora_studio.engine.exporters.protocol import ExportSource
from qlora_studio.engine.load import Device
from tests.engine.conftest import FP32


class Record:
    """Two answers, or none."""

    options = "options"

    def __init__(self, *answers) -> None:
        self.answers = answers


@pytest.fixture
def checked(monkeypatch, tmp_path):
    """A GGUF check whose parts only note what they are given."""
    calls, source = [], ExportSource(tmp_path, tmp_path, FP32, "as_chatted", "Q5_K_M", name="run")
    nothing = type("Planned", (), {"__enter__": lambda self: "file", "__exit__": lambda *_: None})()
    for name in ("check_words", "compare_with_chat"):
        monkeypatch.setattr(gguf, name, lambda *a, name=name: calls.append((name, *a)))
    monkeypatch.setattr(gguf, "load_tokenizer", lambda folder: ("tokenizer", folder))
    monkeypatch.setattr(gguf, "plan_gguf", lambda source: nothing)
    monkeypatch.setattr(gguf, "ask_gguf", lambda *a: ("asked", *a))
    monkeypatch.setattr(gguf, "measure_gguf", lambda file, path: (file, path))
    monkeypatch.setattr(gguf, "look_at_layers", lambda like, found: (like, found))
    monkeypatch.setattr(gguf, "compare_with_llama_cpp", lambda path, answers: f"llama.cpp on {len(answers)}")
    return calls, source


@pytest.mark.parametrize(
    ("answers", "installed", "notes"),
    [
        ((1, 2), True, ["llama.cpp on 2"]),
        ((1, 2), False, ["llama.cpp itself was not asked: it comes with `pip install xllamacpp`."]),
        ((), True, []),
        ((), False, []),
    ],
)
def test_a_file_is_checked_against_the_chat_and_by_llama_cpp_where_it_is(
    checked, monkeypatch, tmp_path, answers, installed, notes
):
    (calls, source), heard, record = checked, [], Record(*answers)
    monkeypatch.setattr(gguf, "is_installed", lambda: installed)
    EXPORTER.check(source, tmp_path, record, heard.append)
    path = tmp_path / "run.Q5_K_M.gguf"
    like = ev.Checked(what="Q5_K_M, as chatted", as_chatted=True, precision="Q5_K_M")
    emit = heard.append
    assert calls == [
        ("check_words", record, ("tokenizer", tmp_path)),
        ("compare_with_chat", record, ("asked", path, source, record, emit), (like, ("file", path)), emit),
    ]
    assert heard == [ev.PhaseEntered(phase="checking Q5_K_M"), *(ev.Noted(text=text) for text in notes)]
    calls.clear()
    EXPORTER.check(source, tmp_path, None, heard.append)
    assert calls == []


@pytest.mark.parametrize(
    ("kind", "into", "expected"),
    [
        ("F16", "original", {"what": "F16, original", "as_chatted": False, "precision": "16-bit"}),
        ("BF16", "original", {"what": "BF16, original", "as_chatted": False, "precision": "16-bit"}),
        ("F32", "as_chatted", {"what": "F32, as chatted", "as_chatted": True, "precision": "16-bit"}),
        ("Q8_0", "original", {"what": "Q8_0, original", "as_chatted": False, "precision": "Q8_0"}),
    ],
)
def test_a_check_says_what_was_merged_into_and_how_precise_it_is(checked, tmp_path, kind, into, expected):
    calls, _ = checked
    source = ExportSource(tmp_path, tmp_path, FP32, into, kind, name="run")
    EXPORTER.check(source, tmp_path, Record(), print)
    assert calls[-1][3][0] == ev.Checked(**expected) and gguf_name(source) == f"run.{kind}.gguf"


@pytest.mark.parametrize("room", [True, False])
def test_a_file_is_asked_whole_where_it_fits_and_else_by_layers(monkeypatch, tmp_path, room):
    heard, sizes, source = (
        [],
        [],
        ExportSource(tmp_path, tmp_path, Device(CpuAccelerator(), torch.bfloat16), name="run"),
    )
    shapes = [type("Tensor", (), {"shape": shape})() for shape in ((3, 4), (5,))]
    opened = type("Opened", (), {"tensors": shapes, "__enter__": lambda self: self, "__exit__": lambda *_: None})()
    monkeypatch.setattr(gguf, "open_merged", lambda one: opened)
    monkeypatch.setattr(gguf, "fits_in_memory", lambda size: sizes.append(size) or room)
    monkeypatch.setattr(gguf, "load_tokenizer", lambda folder: "tokenizer")
    monkeypatch.setattr(gguf, "load_gguf", lambda *a: ("whole", *a))
    monkeypatch.setattr(gguf, "layers_of_gguf", lambda *a: ("layers", *a))
    monkeypatch.setattr(gguf, "ask_model", lambda chat, record: (chat.model, chat.tokenizer, chat.options, record))
    monkeypatch.setattr(gguf, "ask_layers", lambda *a: a)
    record, path = Record(), tmp_path / "x.gguf"
    found = ask_gguf(path, source, record, heard.append)
    assert sizes == [2 * 17]
    if room:
        assert found == (("whole", path, tmp_path, source.device), "tokenizer", "options", record) and heard == []
    else:
        text = "The model in the file does not fit into memory; it is checked layer by layer from its files."
        assert found[:3] == (("layers", path, tmp_path, source.device), "tokenizer", record)
        assert heard == [ev.Noted(text=text)]


def test_a_file_is_written_with_its_licence_and_its_modelfile_and_told_as_it_goes(monkeypatch, tmp_path):
    calls, heard = [], []

    class File:
        bytes = 900

        def write(self, path, advanced):
            calls.append(("write", path))
            advanced(300, 900)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            calls.append("closed")

    base, stage = tmp_path / "base", tmp_path / "stage"
    source = ExportSource(tmp_path, base, FP32, "as_chatted", "Q6_K", name="run")
    monkeypatch.setattr(gguf, "plan_gguf", lambda source: File())
    monkeypatch.setattr(gguf, "load_tokenizer", lambda folder: ("tokenizer", folder))
    monkeypatch.setattr(gguf, "copy_licences", lambda *a: calls.append(("licences", *a)))
    monkeypatch.setattr(gguf, "write_modelfile", lambda *a: calls.append(("modelfile", *a)))
    EXPORTER.write(source, stage, heard.append)
    assert heard == [ev.PhaseEntered(phase="writing Q6_K"), ev.Advanced(done=300, total=900, unit="bytes")]
    assert calls == [
        ("write", stage / "run.Q6_K.gguf"),
        "closed",
        ("licences", base, stage),
        ("modelfile", stage, "run.Q6_K.gguf", ("tokenizer", source.tokenizer_folder()), source),
    ]
    assert EXPORTER.size_bytes(source) == 900
