"""Where a merged model is asked: on the card, in the computer's memory, or with its weights in their files."""

from __future__ import annotations

import pytest
import torch

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.exporters import merged
from qlora_studio.engine.exporters.merged import load_merged
from qlora_studio.engine.load import Device
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
