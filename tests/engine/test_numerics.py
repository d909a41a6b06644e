"""A run that goes on with other hardware, libraries or kernels says that its curve is no longer the identical one."""

import dataclasses

import pytest
import torch

from qlora_studio.core import events as ev
from qlora_studio.engine import loop
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.checkpoints import newest_checkpoint, read_position
from qlora_studio.engine.numerics import LIBRARIES, describe_change, read_numerics
from tests.engine.test_loop import Recorder, setup

HERE = {"hardware": "a card", "torch": "2.13.0", "gated MLPs": "torch's kernels"}


def test_what_is_the_same_or_was_not_known_is_no_change():
    assert describe_change(HERE, HERE) is None
    assert describe_change({}, HERE) is None
    assert describe_change(HERE, {"hardware": "a card"}) is None


def test_every_change_is_named_with_what_was_before():
    now = {**HERE, "torch": "2.14.0", "gated MLPs": "Triton's kernels"}
    assert describe_change(HERE, now) == (
        "The run goes on with torch 2.14.0 instead of 2.13.0 and gated MLPs Triton's kernels instead of torch's kernels: "
        "from here on the last digits of its curve may differ from those of a run that was never interrupted."
    )


def test_hardware_libraries_and_kernels_are_read(tiny_adapter_model):
    found = read_numerics(tiny_adapter_model, CpuAccelerator())
    assert list(found) == ["hardware", *LIBRARIES, "gated MLPs"]
    assert found["torch"] == torch.__version__ and found["gated MLPs"] == "torch's kernels"
    assert found["hardware"].endswith(f" and {torch.get_num_threads()} threads")
    assert "gated MLPs" not in read_numerics(torch.nn.Linear(2, 2), CpuAccelerator())


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_checkpoint_knows_what_computed_it_and_a_run_that_goes_on_elsewhere_says_so(
    elsewhere, tiny_adapter_model, tmp_path, monkeypatch
):
    first = Recorder(stop_after=1)
    made = setup(tiny_adapter_model, tmp_path / "run")
    loop.train(made, first.emit, first.find_request)
    checkpoint, _ = newest_checkpoint(tmp_path / "run" / "checkpoints")
    before = read_position(checkpoint).numerics
    assert before == read_numerics(tiny_adapter_model, made.accelerator)
    if elsewhere:
        monkeypatch.setattr(CpuAccelerator, "arithmetic", "another processor")
    rest = Recorder(stop_after=1)
    loop.train(dataclasses.replace(made, resume=checkpoint), rest.emit, rest.find_request)
    notes = [event.text for event in rest.of(ev.Noted) if event.text.startswith("The run goes on with")]
    assert len(notes) == elsewhere
    if elsewhere:
        assert f"hardware another processor instead of {before['hardware']}: " in notes[0]
