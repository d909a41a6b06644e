"""Where a merged model is asked: on the card, in the computer's memory, or with its weights in their files."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.exporters import merged
from qlora_studio.engine.exporters.merged import load_merged
from qlora_studio.engine.exporters.protocol import ExportSource
from qlora_studio.engine.layerwise import LayerwiseModel
from qlora_studio.engine.load import Device
from qlora_studio.engine.merge import MergeRecipe
from tests.engine.conftest import FP32


class Card(CpuAccelerator):
    """Counts how often it is asked to give memory back."""

    released = 0

    def release(self):
        Card.released += 1


class Loads:
    """Loads only on the places it is given, and notes what it is asked."""

    def __init__(self, *fits) -> None:
        self.fits, self.asked = fits, []

    def __call__(self, folder, place, *, four_bit):
        self.asked.append((type(place.accelerator).__name__, place.dtype, four_bit))
        if type(place.accelerator).__name__ not in self.fits:
            raise StudioError("It does not fit.") from torch.OutOfMemoryError("full")
        return torch.nn.Linear(1, 1).train()


class Elsewhere(Card):
    """Is no processor to `isinstance`."""


@pytest.fixture
def card(monkeypatch):
    Card.released = 0
    monkeypatch.setattr(merged, "CpuAccelerator", type("Host", (CpuAccelerator,), {}))
    return Device(Elsewhere(), torch.bfloat16)


CARD_NOTE = ev.Noted(text="The merged model does not fit the card; it is checked in the computer's memory.")
FILES_NOTE = ev.Noted(text="The merged model does not fit into memory; it is checked layer by layer from its files.")


@pytest.mark.parametrize(
    ("fits", "memory", "asked", "notes", "released"),
    [
        (("Elsewhere",), True, ["Elsewhere"], [], 0),
        (("Host",), True, ["Elsewhere", "Host"], [CARD_NOTE], 1),
        ((), True, ["Elsewhere", "Host"], [CARD_NOTE, FILES_NOTE], 1),
        (("Host",), False, ["Elsewhere"], [FILES_NOTE], 1),
    ],
)
def test_it_is_loaded_where_it_fits_and_else_left_in_its_files(
    monkeypatch, tiny_folder, card, fits, memory, asked, notes, released
):
    load, heard, sizes = Loads(*fits), [], []
    monkeypatch.setattr(merged, "load_base", load)
    monkeypatch.setattr(merged, "fits_in_memory", lambda size: sizes.append(size) or memory)
    monkeypatch.setattr(merged, "layers_of_merged", lambda folder, device: (folder, device))
    found = load_merged(tiny_folder, card, heard.append)
    assert load.asked == [(name, torch.bfloat16, False) for name in asked]
    assert (heard, Card.released) == (notes, released)
    assert sizes == [(tiny_folder / "model.safetensors").stat().st_size]
    if FILES_NOTE in notes:
        assert found == (tiny_folder, card)
    else:
        assert not found.training


def test_a_processor_is_tried_once_and_another_error_stands(monkeypatch, tiny_folder):
    load, heard = Loads(), []
    monkeypatch.setattr(merged, "load_base", load)
    monkeypatch.setattr(merged, "layers_of_merged", lambda folder, device: "layers")
    monkeypatch.setattr(merged, "fits_in_memory", lambda size: True)
    assert load_merged(tiny_folder, FP32, heard.append) == "layers" and len(load.asked) == 1 and heard == [FILES_NOTE]
    monkeypatch.setattr(merged, "fits_in_memory", lambda size: False)
    assert load_merged(tiny_folder, FP32, heard.append) == "layers" and len(load.asked) == 1

    def broken(*_, **__):
        raise StudioError("The weights are damaged.")

    monkeypatch.setattr(merged, "fits_in_memory", lambda size: True)
    monkeypatch.setattr(merged, "load_base", broken)
    with pytest.raises(StudioError, match="The weights are damaged"):
        load_merged(tiny_folder, FP32, heard.append)


class Opened:
    """Weights that note when they are closed."""

    def __init__(self, name, calls) -> None:
        self.name, self.calls, self.bytes = name, calls, 700

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.calls.append(("closed", self.name))


@pytest.fixture
def pretended(monkeypatch):
    """An exporter whose parts only note what they are given."""
    calls = []
    monkeypatch.setattr(merged, "open_merged", lambda source: Opened("merged", calls))
    monkeypatch.setattr(merged, "ModelWeights", lambda folder: Opened(folder, calls))
    for name in ("copy_companions", "check_words", "compare_with_chat"):
        monkeypatch.setattr(merged, name, lambda *a, name=name: calls.append((name, *a)))
    monkeypatch.setattr(merged, "load_tokenizer", lambda folder: ("tokenizer", folder))
    monkeypatch.setattr(merged, "measure_merged", lambda one, written: (one.name, written.name))
    monkeypatch.setattr(merged, "look_at_layers", lambda like, found: (like, found))
    monkeypatch.setattr(merged, "ask_layers", lambda *a: ("by layers", *a))
    monkeypatch.setattr(merged, "ask_model", lambda chat, record: ("whole", chat.model, chat.tokenizer, record))
    return calls


def test_a_merged_model_is_written_with_what_belongs_to_it_and_told_as_it_goes(pretended, monkeypatch, tmp_path):
    def write(one, stage, advanced):
        pretended.append(("written", one.name, stage))
        advanced(3, 700)

    heard, source = [], ExportSource(tmp_path / "adapter", tmp_path / "base", FP32)
    monkeypatch.setattr(merged, "write_merged", write)
    merged.EXPORTER.write(source, tmp_path / "stage", heard.append)
    assert heard == [ev.PhaseEntered(phase="merging"), ev.Advanced(done=3, total=700, unit="bytes")]
    assert pretended == [
        ("written", "merged", tmp_path / "stage"),
        ("closed", "merged"),
        ("copy_companions", tmp_path / "base", tmp_path / "adapter", tmp_path / "stage"),
    ]
    assert merged.EXPORTER.size_bytes(source) == 700


@pytest.mark.parametrize(
    ("into", "like"),
    [
        ("original", ev.Checked(what="merged model, original", as_chatted=False)),
        ("as_chatted", ev.Checked(what="merged model, as chatted", as_chatted=True)),
    ],
)
@pytest.mark.parametrize("layerwise", [True, False])
def test_a_merged_model_is_asked_what_the_chat_was_asked(pretended, monkeypatch, tmp_path, into, like, layerwise):
    model = LayerwiseModel.__new__(LayerwiseModel) if layerwise else "model"
    heard, record = [], SimpleNamespace(options="options")
    emit, tokenizer = heard.append, ("tokenizer", tmp_path)
    monkeypatch.setattr(merged, "load_merged", lambda folder, device, emit: model)
    source = ExportSource(tmp_path / "adapter", tmp_path / "base", FP32, into)
    merged.EXPORTER.check(source, tmp_path, record, emit)
    found = ("by layers", model, tokenizer, record, emit) if layerwise else ("whole", model, tokenizer, record)
    assert pretended == [
        ("check_words", record, tokenizer),
        ("closed", tmp_path),
        ("closed", "merged"),
        ("compare_with_chat", record, found, (like, ("merged", tmp_path)), emit),
    ]
    assert heard == [ev.PhaseEntered(phase="checking the merged model")]
    pretended.clear()
    merged.EXPORTER.check(source, tmp_path, None, emit)
    assert pretended == [] and len(heard) == 1


def test_merged_weights_are_of_the_run_s_own_recipe_and_closed_whatever_happens(monkeypatch, tmp_path):
    calls, source = [], ExportSource(tmp_path / "adapter", tmp_path / "base", FP32, "as_chatted")

    def make(recipe):
        assert recipe == MergeRecipe(tmp_path / "base", tmp_path / "adapter", "as_chatted", torch.float32)
        return Opened("merged", calls)

    monkeypatch.setattr(merged, "MergedWeights", make)
    with pytest.raises(KeyError), merged.open_merged(source) as found:
        assert found.name == "merged" and calls == []
        raise KeyError
    assert calls == [("closed", "merged")]
