"""What transformers and PEFT are asked for when a base and an adapter are loaded, and what is done to them afterwards."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM, BitsAndBytesConfig

from qlora_studio.core.config import LoraSettings
from qlora_studio.core.errors import StudioError
from qlora_studio.engine import load
from qlora_studio.engine.checkpoints import TunedModel, save_adapter
from qlora_studio.engine.kernels.attention import ONE_QUERY, REPEATED_HEADS
from qlora_studio.engine.load import Device, attach_adapter, choose_attention, load_adapter, load_base
from tests.engine.adapter_variants import Variant
from tests.engine.architectures import config_of
from tests.engine.conftest import FP32
from tests.engine.kernels.test_attention import OLD
from tests.engine.test_load import META, Elsewhere

BF16 = Device(FP32.accelerator, torch.bfloat16)


class Asked(Exception):
    """Carries what a library was asked for, in place of an answer."""


@pytest.fixture
def asked(monkeypatch):
    """What `from_pretrained` is asked for by a call that is given."""

    def refuse(folder, **options):
        raise Asked(folder, options)

    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", refuse)

    def ask(call):
        with pytest.raises(Asked) as caught:
            call()
        return caught.value.args

    return ask


PLAIN = {
    "use_safetensors": True, "trust_remote_code": False, "local_files_only": True, "output_loading_info": True,
}  # fmt: skip


@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
def test_a_base_is_asked_for_in_nf4_with_double_quantisation_from_local_safetensors(tiny_folder, asked, device):
    folder, options = asked(lambda: load_base(tiny_folder, device))
    quantisation, config = options.pop("quantization_config"), options.pop("config")
    assert folder == tiny_folder and config.model_type == "llama"
    expected = PLAIN | {"dtype": device.dtype, "attn_implementation": "sdpa", "device_map": {"": torch.device("cpu")}}
    assert options == expected
    assert (
        quantisation.to_dict()
        == BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=device.dtype,
            llm_int8_enable_fp32_cpu_offload=False,
        ).to_dict()
    )


def test_a_base_in_16_bits_or_already_quantised_is_not_quantised_here(tiny_folder, asked, monkeypatch):
    assert asked(lambda: load_base(tiny_folder, FP32, four_bit=False))[1]["quantization_config"] is None
    config = load.read_text_config(tiny_folder)
    config.quantization_config = {"quant_method": "bitsandbytes"}
    monkeypatch.setattr(load, "read_text_config", lambda folder: config)
    assert asked(lambda: load_base(tiny_folder, FP32))[1]["quantization_config"] is None


def test_only_embeddings_on_the_host_allow_a_layer_there(tiny_folder, asked, monkeypatch):
    card = Device(Elsewhere(), torch.bfloat16)
    places = {"lm_head": META, "model.embed_tokens": "cpu"}
    monkeypatch.setattr(load, "place_embeddings_on_host", lambda config, device: places)
    for on_host, device, expected in (
        (True, card, places),
        (False, card, {"": META}),
        (True, FP32, {"": torch.device("cpu")}),
    ):
        _, options = asked(lambda on=on_host, to=device: load_base(tiny_folder, to, embeddings_on_host=on))
        assert options["device_map"] == expected
        assert options["quantization_config"].llm_int8_enable_fp32_cpu_offload == (expected is places)


def test_a_loaded_base_is_frozen_and_keeps_no_cache(tiny_folder):
    model = load_base(tiny_folder, FP32)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config.use_cache is False
    assert {module.support_avx512bf16_for_cpu for module in model.modules() if hasattr(module, "compute_dtype")} == {
        False
    }
    assert not hasattr(model.model.norm, "support_avx512bf16_for_cpu")


def test_a_folder_whose_weights_are_not_what_they_seem_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "read_text_config", lambda folder: pytest.fail("looked further"))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(StudioError, match="so that transformers would load another model in its place"):
        load_base(tmp_path, FP32)


def test_only_what_was_not_quantised_is_copied_out_of_its_file():
    plain, quantised = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    quantised.quant_state = "nf4"
    model = nn.ParameterList([plain, quantised, nn.Parameter(torch.empty(3, device="meta"))])
    before = [parameter.data_ptr() for parameter in model]
    load.leave_file(model)
    assert [new.data_ptr() == old for new, old in zip(model, before, strict=True)] == [False, True, True]
    assert plain.tolist() == [1, 1, 1] and model[2].device == META


def test_repeated_heads_are_made_known_when_they_are_chosen(monkeypatch):
    monkeypatch.delitem(AttentionInterface._global_mapping, REPEATED_HEADS, raising=False)
    assert choose_attention(config_of("llama"), OLD) == REPEATED_HEADS
    assert REPEATED_HEADS in AttentionInterface._global_mapping


@pytest.mark.parametrize(
    ("heads", "kv_heads", "grouped"),
    [(4, 2, True), (4, 4, False), (4, None, False), (4, 0, False), (None, None, False)],
)
def test_queries_are_grouped_where_fewer_heads_have_keys(heads, kv_heads, grouped):
    text = SimpleNamespace(num_attention_heads=heads, num_key_value_heads=kv_heads)
    assert load._groups_queries(SimpleNamespace(get_text_config=lambda: text)) == grouped
    assert not load._groups_queries(SimpleNamespace(get_text_config=SimpleNamespace))


def test_answers_are_written_by_one_query_on_a_processor_and_where_attention_was_torch_s():
    def modules(*names, model_type="llama"):
        found = nn.ModuleList([nn.Identity() for _ in names])
        for module, name in zip(found, names, strict=True):
            module.config = SimpleNamespace(_attn_implementation=name, model_type=model_type)
        return found

    def names_after(model, device=FP32):
        load.prepare_answers(model, device)
        return [module.config._attn_implementation for module in model]

    assert names_after(modules("sdpa", "eager", REPEATED_HEADS)) == [ONE_QUERY, "eager", REPEATED_HEADS]
    assert names_after(modules("sdpa", model_type="falcon")) == ["sdpa"]
    assert names_after(modules("sdpa"), Device(Elsewhere(), torch.bfloat16)) == ["sdpa"]
    assert ONE_QUERY in AttentionInterface._global_mapping


@pytest.mark.parametrize("text", ["{", '{"model_type": "not_a_family"}'])
def test_a_config_that_is_none_or_of_no_known_family_is_a_sentence(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(StudioError, match="The model is of a kind this version does not know: ") as caught:
        load.read_text_config(tmp_path)
    assert caught.value.problems[0].where == str(tmp_path)


def test_a_fresh_adapter_is_that_of_its_seed_in_its_own_format_and_alone_is_trained(tiny_folder):
    def fresh(seed, dtype=torch.float32):
        model = attach_adapter(load_base(tiny_folder, BF16), LoraSettings(rank=2), dtype, seed)
        return {name: value for name, value in model.named_parameters() if value.requires_grad}

    torch.manual_seed(99)
    first = fresh(3)
    torch.manual_seed(98)
    again, other = fresh(3), fresh(4, torch.bfloat16)
    assert all(".lora_" in name for name in first) and len(first) == 2 * 7 * 2
    for name, value in first.items():
        assert torch.equal(value, again[name]) and value.dtype == torch.float32
        assert other[name].dtype == torch.bfloat16
        assert bool((value == 0).all()) == (".lora_B." in name), "only A is random"
    assert any(not torch.equal(value.bfloat16(), other[name]) for name, value in first.items())


@pytest.fixture
def saved(tiny_adapter_model, tmp_path):
    save_adapter(TunedModel(tiny_adapter_model, "tiny"), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("stored", "dtype", "expected"),
    [
        (torch.float32, None, torch.float32),
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
    ],
)
def test_an_adapter_is_loaded_in_the_format_it_has_or_another_that_is_wanted(
    tiny_folder, saved, stored, dtype, expected
):
    file = saved / "adapter_model.safetensors"
    save_file({name: value.to(stored) for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    model = load_adapter(load_base(tiny_folder, BF16), saved, dtype)
    found = {name: value for name, value in model.named_parameters() if ".lora_" in name}
    state = load_file(file)
    assert {value.dtype for value in found.values()} == {expected} and len(found) == len(state)
    for name, value in found.items():
        assert torch.equal(value, state[name.replace(".default", "")].to(expected))


def test_a_tensor_too_few_or_too_many_is_an_adapter_of_another_base(tiny_folder, saved):
    file = saved / "adapter_model.safetensors"
    state = load_file(file)
    first = min(state)
    for changed, named in (
        ({name: value for name, value in state.items() if name != first}, first),
        (state | {"base_model.model.elsewhere.weight": torch.ones(1)}, "base_model.model.elsewhere.weight"),
    ):
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(StudioError) as caught:
            load_adapter(load_base(tiny_folder, FP32), saved)
        assert caught.value.problems[0].message == (
            f"This adapter was made for another base: 1 weights do not match, first {named}."
        )
        assert caught.value.problems[0].where == str(file)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_that_lacks_a_file_has_no_adapter_to_load(tmp_path, missing):
    for name in {"adapter_config.json", "adapter_model.safetensors"} - {missing}:
        (tmp_path / name).write_text("{}")
    with pytest.raises(StudioError, match="There is no adapter in this folder"):
        load_adapter(AutoModelForCausalLM, tmp_path)


def test_a_saved_module_wins_over_its_twin_and_the_base_s_own_values_are_left(tmp_path):
    one, two, three, four = (torch.full((2,), float(number)) for number in range(4))
    file = tmp_path / "x.safetensors"
    save_file({"a.head.weight": one, "a.head.modules_to_save.weight": two, "a.head.original_module.weight": three, "b": four}, file)  # fmt: skip
    found = load._read_tensors(file)
    assert {name: value.tolist() for name, value in found.items()} == {"a.head.weight": [1, 1], "b": [3, 3]}


def test_embeddings_of_single_tokens_stay_in_the_base_s_format(tmp_path):
    base, adapter = Variant({"target_modules": ["q_proj"], "trainable_token_indices": [3, 90]}).write(tmp_path)
    model = load_adapter(load_base(base, BF16), adapter)
    (delta,) = (value for name, value in model.named_parameters() if "trainable_tokens_delta" in name)
    assert delta.dtype == torch.bfloat16 and len(delta) == 2


def test_what_the_libraries_warn_of_while_they_load_is_not_shown(tiny_folder, monkeypatch):
    inner = load.AutoModelForCausalLM.from_pretrained

    def warn(*where, **options):
        warnings.warn("a new name is coming", FutureWarning, stacklevel=1)
        return inner(*where, **options)

    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_base(tiny_folder, FP32)
