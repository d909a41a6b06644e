"""What lies in a checkpoint and in an adapter's folder, value by value, and which checkpoints stay."""

from __future__ import annotations

import json

import pytest
import torch
from peft import TaskType
from safetensors import safe_open
from safetensors.torch import load_file

from qlora_studio.core.held_out import HeldOut
from qlora_studio.engine import checkpoints as checkpoints_module
from qlora_studio.engine.checkpoints import (
    Keeping,
    Position,
    RunCheckpoints,
    TunedModel,
    checkpoint_steps,
    newest_checkpoint,
    read_position,
)
from qlora_studio.engine.ladder import Limits
from qlora_studio.engine.manifest import find_damage, write_folder
from tests.engine.conftest import FP32
from tests.engine.test_checkpoints import HELD_OUT, UPDATES, make_checkpoints, position


def also(stage):
    (stage / "beside.txt").write_text("beside")


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_adapter_of_now_has_its_settings_its_numbers_and_what_stands_beside_it(tiny_adapter_model, tmp_path):
    checkpoints = make_checkpoints(tiny_adapter_model, tmp_path / "run")
    checkpoints.save_adapter(also)
    folder = tmp_path / "run" / "adapter"
    assert names(folder) == ["MANIFEST.json", "adapter_config.json", "adapter_model.safetensors", "beside.txt"]
    assert (folder / "beside.txt").read_text() == "beside" and find_damage(folder) == ""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert list(config) == sorted(config)
    expected = {
        "base_model_name_or_path": "tiny/base", "revision": "abc", "inference_mode": True, "r": 4, "lora_alpha": 8,
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none",
        "target_modules": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    state = load_file(folder / "adapter_model.safetensors")
    mine = {name: value for name, value in tiny_adapter_model.named_parameters() if value.requires_grad}
    assert {name.replace(".default", "") for name in mine} == set(state)
    assert all(torch.equal(value, state[name.replace(".default", "")]) for name, value in mine.items())
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    checkpoints.save_adapter()
    assert names(folder) == ["MANIFEST.json", "adapter_config.json", "adapter_model.safetensors"]


def test_the_adapter_of_a_step_is_its_checkpoint_s_byte_for_byte(tiny_adapter_model, optimizer, tmp_path):
    checkpoints = make_checkpoints(tiny_adapter_model, tmp_path / "run")
    checkpoints.save(optimizer, position(3))
    optimizer.step()
    checkpoints.copy_adapter(3, also)
    folder = tmp_path / "run" / "adapter"
    assert names(folder) == ["MANIFEST.json", "adapter_config.json", "adapter_model.safetensors", "beside.txt"]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / name).read_bytes() == (checkpoints.path(3) / name).read_bytes()
    checkpoints.copy_adapter(3)
    assert "beside.txt" not in names(folder)


def test_a_checkpoint_holds_the_position_the_generators_and_every_state_of_the_optimizer(
    tiny_adapter_model,
    optimizer,
    tmp_path,
):
    checkpoints = make_checkpoints(tiny_adapter_model, tmp_path / "run")
    checkpoints.save(optimizer, position(3))
    folder = checkpoints.path(3)
    assert folder.name == "step-000003" and checkpoints.newest_step == 3
    assert names(folder) == [
        "MANIFEST.json", "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    assert json.loads((folder / "state.json").read_text()) == {
        "position": {
            "step": 3, "held_out_before": 1.5, "evaluations": [[2, 1.25]], **UPDATES,
            "limits": {"micro_batch_tokens": 100, "checkpointed_layers": 1, "layers": 2, "tiled_mlp": False, "can_tile": False},
            "numerics": {"torch": "2.13.0"},
        },
        "plain": {},
    }  # fmt: skip
    tensors, states = load_file(folder / "optimizer.safetensors"), optimizer.state_dict()["state"]
    assert torch.equal(tensors.pop("rng.cpu"), torch.get_rng_state())
    assert set(tensors) == {f"{place}/{name}" for place, state in states.items() for name in state}
    assert all(torch.equal(value, states[int(key.split("/")[0])][key.split("/")[1]]) for key, value in tensors.items())


def test_a_loaded_checkpoint_is_the_newest_and_its_generators_go_on(tiny_adapter_model, optimizer, tmp_path):
    first = make_checkpoints(tiny_adapter_model, tmp_path / "run")
    first.save(optimizer, position(3))
    expected = torch.rand(2)
    second = RunCheckpoints(tmp_path / "run", TunedModel(tiny_adapter_model, "tiny/base"), FP32.accelerator, Keeping(2))
    assert second.newest_step is None
    assert second.load(second.path(3), optimizer) == position(3) and second.newest_step == 3
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("pinned", "held_out", "kept"),
    [
        ((), HeldOut(), [4, 5]),
        ((1,), HeldOut(), [1, 4, 5]),
        ((), HeldOut(None, ((2, 1.0), (3, 2.0))), [2, 4, 5]),
        ((1,), HeldOut(None, ((2, 1.0), (5, 0.5))), [1, 4, 5]),
        ((), HeldOut(None, ((2, float("nan")),)), [4, 5]),
    ],
    ids=["the newest", "a pinned one", "the best", "the best is new", "none is finite"],
)
def test_the_newest_the_best_and_the_pinned_stay(tiny_adapter_model, optimizer, tmp_path, pinned, held_out, kept):
    folder = tmp_path / "run" / "checkpoints"
    for step in (1, 2, 3, 4, 9):  # as empty as a checkpoint may be that only has to be counted
        (folder / f"step-{step:06d}").mkdir(parents=True)
    tuned = TunedModel(tiny_adapter_model, "tiny/base")
    checkpoints = RunCheckpoints(tmp_path / "run", tuned, FP32.accelerator, Keeping(2, lambda: pinned))
    checkpoints.save(optimizer, Position(5, held_out, UPDATES))
    assert checkpoint_steps(folder) == [*kept, 9], "those of later steps are damaged ones that a resume passed over"


def test_only_folders_that_are_named_like_a_checkpoint_count_by_their_number(tmp_path):
    for name in ("step-000010", "step-000009", "step-1000000", "step-12345", "step-000011.old", "step-x", "other"):
        (tmp_path / name).mkdir()
    assert checkpoint_steps(tmp_path) == [9, 10, 1_000_000]
    assert newest_checkpoint(tmp_path / "nowhere") == (None, [])


@pytest.mark.parametrize(
    "limits",
    [None, Limits(100, 1, 2), Limits(7, 0, 3, tiled_mlp=True, can_tile=True)],
)
def test_a_position_goes_through_its_file_unchanged(tmp_path, limits):
    whole = Position(7, HeldOut(None, ((1, 2.5), (3, 1.0))), {"schedule": {"a": 1}, "scaler": {"b": 2.0}}, limits)
    (tmp_path / "state.json").write_text(json.dumps({"position": whole.to_json()}))
    assert read_position(tmp_path) == whole
    assert Position.from_json(whole.to_json()).held_out == whole.held_out != HELD_OUT


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"position": 1}', '{"position": {"step": 1}}'])
def test_a_whole_folder_without_a_position_is_passed_over_by_name(tmp_path, text):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    write_folder(folder / "step-000002", lambda stage: (stage / "state.json").write_text(text) and None)
    assert newest_checkpoint(folder) == (None, [f"{folder}/step-000002/state.json holds no position."])


def test_settings_that_json_does_not_know_are_written_as_lists_values_or_words():
    assert checkpoints_module._plain({"v_proj", "q_proj"}) == ["q_proj", "v_proj"]
    assert checkpoints_module._plain(frozenset({"b", "a"})) == ["a", "b"]
    assert checkpoints_module._plain(TaskType.CAUSAL_LM) == "CAUSAL_LM"
    assert checkpoints_module._plain(torch.float16) == "torch.float16"
