"""The plan tells the truth for every architecture: bytes by format to the byte, and every limit by name beforehand."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from qlora_studio.bases import read_tensor_shapes
from qlora_studio.core.config import LoraSettings, TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import GIB, MeasuredShape, ModelShape, Moment, PlanSettings, StepCosts
from qlora_studio.core.words import gib
from qlora_studio.engine import load
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.adapter_file import AdapterFile
from qlora_studio.engine.architecture import check_adapter, count_model
from qlora_studio.engine.loaded_bytes import check_loaded, count_loaded, find_differences
from qlora_studio.planner.estimate import estimate
from qlora_studio.planner.families import list_linears
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.limits import describe_limits, find_unmergeable
from qlora_studio.planner.shape import read_shape
from tests.engine.architectures import ALL, DENSE, MIXTURES, SIZES, write_model
from tests.matrix import mostly_slow

RANK = 4
COSTS = StepCosts(0, 0, 0, 0, 0, 0, (Moment(0),), Moment(0))
SETTINGS = PlanSettings(rank=RANK, device="cpu")


def shape_of(folder: Path, family: str) -> ModelShape:
    """The shape that a plan would have, without the costs of a step, which are another test's."""
    shape = read_shape(folder, family)
    if shape.exact:
        return shape
    counted = count_model(AutoConfig.from_pretrained(folder))
    costs = {"bf16": COSTS, "fp32": COSTS}
    measured = MeasuredShape(
        linears=counted.linears, other_bytes=counted.other_bytes, stacked=counted.stacked, costs=costs, rank=RANK
    )
    return shape.model_copy(update={"measured": measured})


def load_with_adapter(folder: Path):
    model = load.load_base(folder, load.Device(CpuAccelerator(), torch.bfloat16))
    return load.attach_adapter(model, LoraSettings(rank=RANK), torch.float32, seed=0)


@pytest.mark.parametrize("family", mostly_slow(ALL, *list(ALL)[::3]))
def test_what_is_planned_is_what_is_loaded(family, tmp_path):
    folder = write_model(family, tmp_path)
    shape = shape_of(folder, family)
    bill = estimate(shape, SETTINGS)
    found = count_loaded(load_with_adapter(folder))
    assert {part: bill.part_bytes(part) for part in found.parts} == dict(found.parts)
    sentences = describe_limits(shape, read_tensor_shapes(folder))
    assert (sentences == ()) == (family in DENSE or family == "gpt2")


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_are_named_before_anything_is_trained(family, tmp_path):
    shape = shape_of(write_model(family, tmp_path), family)
    (sentence,) = describe_limits(shape)
    assert re.fullmatch(
        r"The experts stay as they are, in 16 bit and untrained: model\.layers\.\*\.\w+\.experts\.down_proj, "
        r"model\.layers\.\*\.\w+\.experts\.gate_up_proj, 0\.0 billion numbers in \d+ MiB\. Only the other layers are "
        r"quantised and adapted\.",
        sentence,
    )
    assert all(one.active == 0.5 for one in shape.measured.stacked)


def test_a_linear_layer_of_its_own_kind_is_counted_in_16_bit_and_said(tmp_path):
    folder = write_model("falcon", tmp_path)
    shape = shape_of(folder, "falcon")
    assert estimate(shape, SETTINGS).part_bytes("weights_4bit") == 0
    (sentence,) = describe_limits(shape, read_tensor_shapes(folder))
    assert sentence == (
        "Linear layers of a kind of their own stay in 16 bit: transformer.h.*.mlp.dense_4h_to_h, "
        "transformer.h.*.mlp.dense_h_to_4h, transformer.h.*.self_attention.dense and 1 more, 1 MiB. "
        "They are adapted all the same."
    )


def test_transposed_layers_have_no_limits(tmp_path):
    folder = write_model("gpt2", tmp_path)
    assert describe_limits(shape_of(folder, "gpt2"), read_tensor_shapes(folder)) == ()


def test_a_base_whose_files_name_their_weights_otherwise_is_said_to_be_unmergeable(tmp_path):
    folder = write_model("llama", tmp_path)
    shape, files = shape_of(folder, "llama"), read_tensor_shapes(folder)
    assert find_unmergeable(list_linears(shape), files) == []
    without_prefix = {name.removeprefix("model."): size for name, size in files.items()}
    assert find_unmergeable(list_linears(shape), without_prefix) == []
    elsewhere = {name.replace("model.", "body."): size for name, size in files.items()}
    assert len(find_unmergeable(list_linears(shape), elsewhere)) == 7
    one_short = {name: size for name, size in files.items() if "layers.3.mlp.up_proj" not in name}
    assert find_unmergeable(list_linears(shape), one_short) == ["model.layers.*.mlp.up_proj"]
    other_size = files | {"model.layers.0.mlp.up_proj.weight": (256, 64)}
    assert find_unmergeable(list_linears(shape), other_size) == ["model.layers.*.mlp.up_proj"]


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_text", "qwen3_moe", "olmo2", "opt"])
def test_what_is_said_to_be_mergeable_has_a_place_for_every_pair(family, tmp_path):
    """The names that a merge looks for are those of the adapter that is really saved."""
    folder = write_model(family, tmp_path / "base")
    load_with_adapter(folder).save_pretrained(tmp_path / "adapter")
    pairs = AdapterFile(tmp_path / "adapter").pairs
    files = read_tensor_shapes(folder)
    assert {f"{module}.weight" for module in pairs} <= set(files)
    assert not find_unmergeable(list_linears(shape_of(folder, family)), files)
    assert len(pairs) == sum(linear.count for linear in list_linears(shape_of(folder, family)))


def test_an_adapter_that_would_go_elsewhere_is_refused_before_it_is_trained():
    deepseek = {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "q_lora_rank": 32,
        "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32, "n_group": 1,
        "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4,
    }  # fmt: skip
    with pytest.raises(StudioError, match="An adapter would not reach a deepseek_v3 model's layers as it should"):
        check_adapter(AutoConfig.for_model("deepseek_v3", **(SIZES | deepseek)))


# what is loaded, held against the plan


@pytest.fixture
def loaded(tmp_path):
    folder = write_model("llama", tmp_path)
    machine = Machine(memory_bytes=16 * GIB, memory_available_bytes=12 * GIB, cpu_bf16=True)
    config = TrainConfig().replace({"lora.rank": RANK, "data.max_length": 64, "memory.budget_gib": 4.0})
    return load_with_adapter(folder), make_plan(config, shape_of(folder, "llama"), machine)


def test_a_model_as_planned_has_nothing_to_say(loaded):
    model, plan = loaded
    assert check_loaded(model, plan) == ()


class Grown(nn.Module):
    """A model that holds more than it should: as experts do that nobody quantised."""

    def __init__(self, model: nn.Module, numbers: int) -> None:
        super().__init__()
        self.model = model
        self.experts = nn.Parameter(torch.zeros(4, numbers // 4, dtype=torch.bfloat16), requires_grad=False)


def test_more_than_two_percent_is_said_by_module_and_format(loaded):
    model, plan = loaded
    (sentence,) = check_loaded(Grown(model, 4 << 20), plan)
    planned = gib(plan.estimate.part_bytes("weights_16bit"))
    assert sentence.startswith(
        f"Other weights: 8 MiB loaded, {planned} planned; most of it experts (torch.bfloat16) 8 MiB"
    )


def test_over_the_budget_it_is_a_refusal(loaded):
    model, plan = loaded
    tight = plan.model_copy(update={"budget_bytes": plan.estimate.total_bytes + (4 << 20)})
    with pytest.raises(StudioError, match="The model takes more than was planned: Other weights: 8 MiB loaded"):
        check_loaded(Grown(model, 4 << 20), tight)


def test_layers_that_were_not_quantised_are_noticed(loaded):
    """More was planned in four bits than there is: the quantiser has left something out."""
    model, plan = loaded
    wider = plan.estimate.model_copy(
        update={
            "parts": tuple(
                part.model_copy(update={"bytes": part.bytes + (8 << 20)}) if part.key == "weights_4bit" else part
                for part in plan.estimate.parts
            )
        }
    )
    (sentence,) = find_differences(count_loaded(model), plan.model_copy(update={"estimate": wider}))
    assert sentence.startswith("Weights in 4 bit: 0 MiB loaded, 8 MiB planned; most of it model.layers.*.")


def test_what_is_offloaded_does_not_count_on_the_card(loaded):
    model, _ = loaded
    assert sum(count_loaded(model, torch.device("cuda")).parts.values()) == 0
    assert count_loaded(model, torch.device("cpu")).parts == count_loaded(model).parts


def test_a_plan_of_a_real_mixture_is_true(tmp_path):
    """Mixtral 8x7B: 45 billion numbers in experts, 84 GiB in 16 bit; it fitted 8 GB by the count of a dense Llama."""
    config = AutoConfig.for_model(
        "mixtral", vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    counted = count_model(config)
    assert sum(one.numbers * one.count for one in counted.stacked) == 8 * 3 * 4096 * 14336 * 32
    assert counted.other_bytes > 84 * GIB
    assert sum(linear.count for linear in counted.linears) == 4 * 32
