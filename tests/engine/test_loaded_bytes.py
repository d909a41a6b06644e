"""What a loaded model holds, storage by storage, and when that is too far from its plan to keep silent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import GIB, MIB, MemoryEstimate, MemoryPart
from qlora_studio.engine.loaded_bytes import LoadedBytes, check_loaded, count_loaded, find_differences
from tests.engine.conftest import make_plan


def plan_of(budget=1 << 40, **parts):
    items = tuple(MemoryPart(key=key, label=key, bytes=size) for key, size in parts.items())
    return make_plan(100).model_copy(update={"estimate": MemoryEstimate(parts=items), "budget_bytes": budget})


def quantised(numbers: int, *, nested: bool) -> nn.Parameter:
    """A weight in four bits with bitsandbytes' description of it; scales of 8 bytes, a table of 16, an offset of 4."""
    one = nn.Parameter(torch.zeros(numbers // 2, dtype=torch.uint8), requires_grad=False)
    inner = SimpleNamespace(absmax=torch.zeros(3), code=torch.zeros(5))
    one.quant_state = SimpleNamespace(
        absmax=torch.zeros(2), code=torch.zeros(4), offset=torch.zeros(1), nested=nested, state2=inner
    )
    return one


class Model(nn.Module):
    """A layer in four bits with an adapter, a norm, and embeddings that the head shares."""

    def __init__(self, nested=True) -> None:
        super().__init__()
        layer = nn.Module()
        layer.base_layer = nn.Module()
        layer.base_layer.weight = quantised(64, nested=nested)
        layer.lora_A, layer.lora_B = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
        norm = nn.Module()
        norm.weight = nn.Parameter(torch.zeros(6, dtype=torch.bfloat16))
        self.base_model = nn.Module()
        self.base_model.model = nn.Module()
        self.base_model.model.layers = nn.ModuleList([nn.ModuleDict({"up": layer, "norm": norm})])
        self.base_model.model.embed, self.base_model.model.head = nn.Embedding(5, 2), nn.Linear(2, 5, bias=False)
        self.base_model.model.head.weight = self.base_model.model.embed.weight
        self.base_model.model.register_buffer("turns", torch.zeros(7))


@pytest.mark.parametrize("nested", [True, False])
def test_every_storage_counts_once_in_its_part_by_its_name_and_format(nested):
    found = count_loaded(Model(nested))
    tables = 4 * (2 + 4 + 1)
    inner = 4 * (3 + 5) if nested else 0
    assert found.parts == {"weights_4bit": 32 + tables + inner, "adapter": 4 * 12, "weights_16bit": 12 + 40 + 28}
    assert found.modules == {
        "weights_4bit": {"layers.*.up (torch.uint8)": 32, "layers.*.up (torch.float32)": tables + inner},
        "adapter": {"layers.*.up (torch.float32)": 48},
        "weights_16bit": {
            "layers.*.norm (torch.bfloat16)": 12, "embed (torch.float32)": 40, "turns (torch.float32)": 28,
        },
    }  # fmt: skip


def test_only_what_lies_on_the_device_counts_where_one_is_given():
    model = Model()
    model.base_model.model.embed.weight = nn.Parameter(torch.zeros(5, 2, device="meta"))
    assert count_loaded(model, torch.device("meta")).parts == {"weights_16bit": 40}
    assert count_loaded(model, torch.device("cpu")).parts["weights_16bit"] == 12 + 40 + 28  # the head's own is here


def loaded(**parts) -> LoadedBytes:
    found = LoadedBytes()
    for part, modules in parts.items():
        found.modules[part] = type(found.parts)(modules)
        found.parts[part] = sum(modules.values())
    return found


@pytest.mark.parametrize(
    ("planned", "there", "said"),
    [
        (100 * MIB, 102 * MIB, False),
        (100 * MIB, 102 * MIB + 1, True),
        (100 * MIB, 98 * MIB - 1, True),
        (10 * MIB, 11 * MIB, False),
        (10 * MIB, 11 * MIB + 1, True),
        (0, MIB, False),
    ],
)
def test_a_difference_is_said_beyond_two_hundredths_and_a_mebibyte(planned, there, said):
    found = find_differences(loaded(adapter={"a": there}), plan_of(adapter=planned))
    assert bool(found) == said


def test_a_difference_names_the_two_modules_that_hold_most():
    found = loaded(weights_4bit={"a (x)": GIB, "b (x)": 3 * GIB, "c (x)": 2 * GIB})
    assert find_differences(found, plan_of(weights_4bit=GIB, adapter=GIB)) == (
        "Weights in 4 bit: 6.00 GiB loaded, 1.00 GiB planned; most of it b (x) 3.00 GiB, c (x) 2.00 GiB.",
        "Adapter: 0 MiB loaded, 1.00 GiB planned.",
    )


@pytest.mark.parametrize(("room", "refused"), [(0, False), (-1, True)])
def test_a_step_that_goes_over_the_budget_is_refused_with_what_differs(room, refused):
    model = Model()
    model.base_model.model.more = nn.Parameter(torch.zeros(MIB, dtype=torch.float32))
    held = count_loaded(model).parts
    exact = {"weights_4bit": held["weights_4bit"], "adapter": held["adapter"]}
    wrong = plan_of(**exact, weights_16bit=0, activations=1000)
    total = 1000 + sum(held.values())
    wrong = wrong.model_copy(update={"budget_bytes": total + room})
    if refused:
        with pytest.raises(
            StudioError,
            match=r"The model takes more than was planned: Other weights: 4 MiB loaded, 0 MiB planned; most of it more .*\. With that a step takes 4 MiB",
        ):
            check_loaded(model, wrong)
    else:
        assert len(check_loaded(model, wrong)) == 1
    right = plan_of(**exact, weights_16bit=held["weights_16bit"], activations=1000)
    assert check_loaded(model, right.model_copy(update={"budget_bytes": 1})) == ()


def test_what_lies_elsewhere_than_the_adapter_is_no_difference():
    model = Model()
    model.base_model.model.more = nn.Parameter(torch.zeros(9 * MIB, device="meta"))
    assert check_loaded(model, plan_of()) == ()
