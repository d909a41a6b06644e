"""What PEFT is told of an adapter, what it starts as, and what it may go on from."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_studio.core.config import LoraSettings
from qlora_studio.core.errors import StudioError
from qlora_studio.engine.adapters import (
    ADAPTER,
    adapted_layers,
    file_name,
    largest_directions,
    linear_names,
    orthonormal_directions,
    peft_settings,
    saved_tensors,
    start_from,
    stored_alpha,
)
from qlora_studio.engine.checkpoints import TunedModel, save_adapter
from qlora_studio.engine.kernels.linear import dense_weight
from qlora_studio.engine.load import attach_adapter, load_base
from tests.engine.conftest import FP32

EVERY = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("changes", "alpha", "kind"),
    [
        ({"rank": 8, "alpha": 16}, 16, int),
        ({"rank": 8, "alpha": 16, "init": "pissa"}, 32, int),
        ({"rank": 8, "alpha": 16, "init": "pissa", "use_rslora": True}, 16 * 2**0.5, float),
        ({"rank": 8, "alpha": 3, "use_rslora": True}, 3, int),
    ],
)
def test_the_alpha_that_is_stored_keeps_the_scale_and_is_whole_where_it_can_be(changes, alpha, kind):
    lora = LoraSettings(**changes)
    found = stored_alpha(lora)
    assert (found, type(found)) == (alpha, kind)
    power = 0.5 if lora.use_rslora else 1
    assert found / lora.stored_rank**power == pytest.approx(lora.alpha / lora.rank**power)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"target_modules": EVERY, "layers_to_transform": None}),
        ({"target_modules": "v_proj, q_proj, absent"}, {"target_modules": {"v_proj", "q_proj"}}),
        ({"layers": "1-"}, {"layers_to_transform": [1]}),
        ({"layers": " "}, {"layers_to_transform": None}),
        ({"use_dora": True, "dropout": 0.25}, {"use_dora": True, "lora_dropout": 0.25}),
        ({"use_rslora": True, "init": "olora"}, {"use_rslora": True, "r": 16, "lora_alpha": 16 * 2**0.5}),
    ],
    ids=lambda values: ", ".join(values),  # names alone: sets come in another order in each process
)
def test_peft_is_told_what_the_settings_say(tiny_folder, changes, expected):
    model = load_base(tiny_folder, FP32, four_bit=False)
    usual = {
        "r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "use_rslora": False, "use_dora": False, "bias": "none",
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    found = peft_settings(model, LoraSettings(rank=8, alpha=16, **changes)).to_dict()
    whole = usual | expected
    assert {name: found[name] for name in whole} == whole
    names = linear_names(model)
    assert len(names) == 14 and {name.rpartition(".")[2] for name in names} == EVERY


def test_the_largest_directions_are_those_of_the_decomposition():
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(9, 4)).Q, torch.linalg.qr(torch.randn(6, 4)).Q
    values = torch.tensor([8.0, 4, 0.02, 0.01])
    weight = left * values @ right.t()
    b, a = largest_directions(weight, 2, 0.5)
    assert b.shape == (9, 2) and a.shape == (2, 6)
    torch.testing.assert_close(0.5 * b @ a, left[:, :2] * values[:2] @ right[:, :2].t(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(b.norm(dim=0), (values[:2] / 0.5).sqrt(), rtol=1e-3, atol=1e-3)
    b, a = largest_directions(weight, 99, 1.0)
    assert b.shape == (9, 6) and a.shape == (6, 6)


@pytest.mark.parametrize(("rank", "found"), [(2, 2), (99, 4)])
def test_orthonormal_directions_are_the_first_of_a_qr_decomposition(rank, found):
    torch.manual_seed(0)
    weight = torch.randn(4, 6)
    b, a = orthonormal_directions(weight, rank)
    whole = torch.linalg.qr(weight)
    assert b.shape == (4, found) and a.shape == (found, 6)
    torch.testing.assert_close(b, whole.Q[:, :found])
    torch.testing.assert_close(a, whole.R[:found])


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_start_from_the_base_stands_twice_and_is_nothing_in_sum_and_one_half_is_trained(tiny_folder, init):
    lora = LoraSettings(rank=48, alpha=8, init=init, target_modules="k_proj")  # k_proj is (32, 64): 32 directions
    model = attach_adapter(load_base(tiny_folder, FP32), lora, torch.float32, seed=1)
    for layer in adapted_layers(model):
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        assert a.shape == (96, 64) and b.shape == (32, 96)
        torch.testing.assert_close(b @ a, torch.zeros(32, 64), atol=1e-5, rtol=0)
        assert torch.equal(a[:32], a[48:80]) and torch.equal(b[:, :32], -b[:, 48:80])
        assert not a[80:].any(), "what has no direction adds nothing"
        assert b[:, :32].any() and layer.scaling[ADAPTER] == 8 / 48
        if init == "olora":
            left, right = orthonormal_directions(dense_weight(layer.base_layer, torch.float32), 48)
            assert torch.equal(b[:, :32], left) and torch.equal(a[:32], right)
        (a.sum() + b.sum()).backward()
        assert not a.grad[48:].any() and bool((a.grad[:48] == 1).all())
        assert not b.grad[:, 48:].any() and bool((b.grad[:, :48] == 1).all())


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        ("a.lora_A.default.weight", "a.lora_A.weight"),
        ("a.lora_magnitude_vector.default.weight", "a.lora_magnitude_vector"),
    ],
)
def test_a_file_names_no_adapter(parameter, name):
    assert file_name(parameter) == name


@pytest.fixture
def saved(tiny_adapter_model, tmp_path):
    save_adapter(TunedModel(tiny_adapter_model, "tiny"), tmp_path)
    return tmp_path


def fresh(tiny_folder, **changes):
    return attach_adapter(load_base(tiny_folder, FP32), LoraSettings(**({"rank": 4, "alpha": 8} | changes)), torch.float32, seed=9)  # fmt: skip


def test_a_run_goes_on_from_the_numbers_of_an_adapter(tiny_folder, saved):
    model = fresh(tiny_folder)
    start_from(model, saved)
    expected = load_file(saved / "adapter_model.safetensors")
    found = saved_tensors(model)
    assert set(found) == set(expected) and all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("changes", "field", "there", "wanted"),
    [
        ({"rank": 8}, "lora.rank", 4, 8),
        ({"alpha": 9}, "lora.alpha", 8, 9),
        ({"use_rslora": True}, "lora.use_rslora", False, True),
        ({"use_dora": True}, "lora.use_dora", False, True),
    ],
)
def test_an_adapter_of_another_shape_is_refused_with_the_field(tiny_folder, saved, changes, field, there, wanted):
    with pytest.raises(StudioError) as caught:
        start_from(fresh(tiny_folder, **changes), saved)
    assert caught.value.problems[0].message == (
        f"The adapter to start from has {field} {there}, and the settings say {wanted}."
    )
    assert caught.value.hint == f"Set {field} to {there}."


def test_a_setting_that_an_older_file_does_not_name_is_off(tiny_folder, saved):
    values = json.loads((saved / "adapter_config.json").read_text())
    del values["use_dora"]
    (saved / "adapter_config.json").write_text(json.dumps(values))
    start_from(fresh(tiny_folder), saved)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda state, first: state | {first: torch.ones(1)}, "{} does not fit."),
        (lambda state, first: {"other" if name == first else name: one for name, one in state.items()}, "other does not fit."),
        (lambda state, first: {name: one for name, one in state.items() if name != first}, "The adapter to start from holds no {}."),
    ],
    ids=["another shape", "another name", "one too few"],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(tiny_folder, saved, harm, message):
    file = saved / "adapter_model.safetensors"
    state = load_file(file)
    save_file(harm(state, min(state)), file)
    with pytest.raises(StudioError) as caught:
        start_from(fresh(tiny_folder), saved)
    assert caught.value.problems[0].message.endswith(message.format(min(state)))
    assert caught.value.problems[0].where == str(saved)
