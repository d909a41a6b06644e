"""Checkpoints: what is in them comes back, the newest whole one is found, and only so many are kept."""

from __future__ import annotations

import pytest
import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.core.held_out import HeldOut
from qlora_studio.engine.checkpoints import (
    Keeping,
    Position,
    RunCheckpoints,
    TunedModel,
    newest_checkpoint,
    read_position,
)
from qlora_studio.engine.ladder import Limits
from tests.engine.conftest import FP32

HELD_OUT = HeldOut(1.5, ((2, 1.25),))
UPDATES = {"schedule": {"last_epoch": 3}, "scaler": {}}


def make_checkpoints(model, folder, keep=2) -> RunCheckpoints:
    folder.mkdir(exist_ok=True)
    return RunCheckpoints(folder, TunedModel(model, "tiny/base", "abc"), FP32.accelerator, Keeping(keep))


def position(step: int) -> Position:
    return Position(step, HELD_OUT, UPDATES, Limits(100, 1, 2), {"torch": "2.13.0"})


def test_weights_optimizer_random_numbers_and_position_come_back(tiny_adapter_model, optimizer, tmp_path):
    checkpoints = make_checkpoints(tiny_adapter_model, tmp_path / "run")
    name, parameter = next((n, p) for n, p in tiny_adapter_model.named_parameters() if p.requires_grad)
    before = {"weight": parameter.clone(), "moment": optimizer.state[parameter]["exp_avg"].clone()}
    assert checkpoints.save(optimizer, position(3)) == "checkpoints/step-000003"
    number = torch.rand(1)
    optimizer.step()
    assert not torch.equal(parameter, before["weight"]), name
    assert checkpoints.load(tmp_path / "run" / "checkpoints" / "step-000003", optimizer) == position(3)
    assert torch.equal(parameter, before["weight"])
    assert torch.equal(optimizer.state[parameter]["exp_avg"], before["moment"])
    assert torch.equal(torch.rand(1), number)


@pytest.mark.parametrize("keep", [1, 3])
def test_only_the_newest_are_kept_by_step_and_not_by_time(tiny_adapter_model, optimizer, tmp_path, keep):
    checkpoints = make_checkpoints(tiny_adapter_model, tmp_path / "run", keep)
    assert (checkpoints.newest_step, checkpoints.describe_newest()) == (None, "There is no checkpoint yet.")
    for step in (9, 10, 99, 100):
        checkpoints.save(optimizer, position(step))
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [f"step-{step:06d}" for step in (9, 10, 99, 100)][-keep:]
    assert (checkpoints.newest_step, checkpoints.describe_newest()) == (100, "The last checkpoint is that of step 100.")


def test_a_step_that_is_saved_twice_is_one_whole_checkpoint(tiny_adapter_model, optimizer, tmp_path):
    checkpoints = make_checkpoints(tiny_adapter_model, tmp_path / "run", keep=1)
    checkpoints.save(optimizer, position(5))
    checkpoints.save(optimizer, position(5))
    found, damages = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert found is not None and read_position(found) == position(5) and damages == []


def test_saving_that_fails_is_a_sentence_with_the_place_to_go_on_from(
    tiny_adapter_model, optimizer, tmp_path, monkeypatch
):
    checkpoints = make_checkpoints(tiny_adapter_model, tmp_path / "run")
    checkpoints.save(optimizer, position(4))
    for error, message in (
        (OSError(28, "No space left on device"), r"Saving failed: \[Errno 28\] No space left on device\."),
        (MemoryError(), r"Saving failed: MemoryError\."),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), r"Saving failed: CUDA out of memory\. Tried\."),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("qlora_studio.engine.checkpoints.save_file", fail)
        with pytest.raises(StudioError, match=message) as caught:
            checkpoints.save(optimizer, position(5))
        assert caught.value.hint.endswith("then resume the run. The last checkpoint is that of step 4.")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000004"]


def test_a_mistake_in_the_program_is_not_called_a_full_disk(tiny_adapter_model, optimizer, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("qlora_studio.engine.checkpoints.save_file", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        make_checkpoints(tiny_adapter_model, tmp_path / "run").save(optimizer, position(5))


def test_a_position_of_an_earlier_version_has_no_limits_and_no_numerics():
    values = position(3).to_json()
    assert Position.from_json(values) == position(3)
    del values["limits"], values["numerics"]
    assert Position.from_json(values) == Position(3, HELD_OUT, UPDATES, None, {})


def test_states_within_states_and_plain_numbers_come_back(tiny_adapter_model, optimizer, tmp_path):
    (parameter, *_) = [parameter for parameter in tiny_adapter_model.parameters() if parameter.requires_grad]
    inner = {"deep": {"table": torch.arange(3.0), "count": 7}}
    optimizer.state[parameter]["inner"] = inner
    checkpoints = make_checkpoints(tiny_adapter_model, tmp_path / "run")
    checkpoints.save(optimizer, position(1))
    optimizer.state[parameter]["inner"] = {}
    checkpoints.load(tmp_path / "run" / "checkpoints" / "step-000001", optimizer)
    back = optimizer.state[parameter]["inner"]["deep"]
    assert back["count"] == 7 and torch.equal(back["table"], inner["deep"]["table"])


def test_damaged_checkpoints_are_named_and_an_older_whole_one_is_found(tiny_adapter_model, optimizer, tmp_path):
    checkpoints = make_checkpoints(tiny_adapter_model, tmp_path / "run", keep=3)
    for step in (1, 2, 3):
        checkpoints.save(optimizer, position(step))
    folder = tmp_path / "run" / "checkpoints"
    (folder / "step-000003" / "state.json").unlink()
    (folder / "step-000002" / "MANIFEST.json").unlink()
    assert newest_checkpoint(folder) == (
        folder / "step-000001",
        [
            f"{folder}/step-000003/state.json is missing or of another size.",
            f"{folder}/step-000002/MANIFEST.json is missing or unreadable.",
        ],
    )
