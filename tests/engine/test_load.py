"""Loading a base: embeddings that never touch the card, and what is said where the memory does not suffice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.core.plan import GIB
from qlora_studio.engine import load
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.accelerator.protocol import Peak
from qlora_studio.engine.host_embeddings import look_tokens_up_on_host, place_embeddings_on_host
from qlora_studio.engine.load import Device, load_base
from qlora_studio.engine.oom import is_out_of_memory
from tests.engine.architectures import config_of, write_model
from tests.engine.conftest import FP32

META = torch.device("meta")


class Elsewhere(CpuAccelerator):
    """A card whose memory holds no numbers, so that what is loaded onto it can be told from what is not."""

    name, label, device = "cuda", "the card", META

    def peak(self):
        return Peak(GIB // 2, GIB // 2)


@pytest.fixture(scope="module")
def untied_folder(tmp_path_factory):
    return write_model("qwen3", tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


@pytest.mark.parametrize("four_bit", [True, False], ids=["4-bit", "16-bit"])
def test_offloaded_embeddings_never_touch_the_card(untied_folder, four_bit):
    device = Device(Elsewhere(), torch.bfloat16)
    model = load_base(untied_folder, device, four_bit=four_bit, embeddings_on_host=True)
    here = {name for name, parameter in model.named_parameters() if parameter.device.type == "cpu"}
    assert here == {"model.embed_tokens.weight"}
    wanted = load_base(untied_folder, FP32, four_bit=False).get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight.float(), wanted)
    assert not any(hasattr(module, "_hf_hook") for module in model.modules())
    assert model.get_input_embeddings()(torch.zeros(1, 3, dtype=torch.long)).device == META


def test_embeddings_that_are_not_offloaded_go_to_the_card(untied_folder):
    model = load_base(untied_folder, Device(Elsewhere(), torch.bfloat16), four_bit=False)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_tied_embeddings_stay_on_the_card_where_the_head_needs_them():
    assert place_embeddings_on_host(config_of("gemma3_text"), META) == {"": META}


@pytest.mark.parametrize("family", ["llama", "phi3", "starcoder2", "stablelm", "cohere2", "gpt_neox"])
def test_every_parameter_has_a_place_and_only_the_embeddings_are_on_the_host(family):
    config = config_of(family)
    config.tie_word_embeddings = False
    places = place_embeddings_on_host(config, META)
    with META:
        model = AutoModelForCausalLM.from_config(config)
    found = {
        name: [place for key, place in places.items() if name.startswith(f"{key}.")]
        for name, _ in [*model.named_parameters(), *model.named_buffers()]
    }
    assert {len(place) for place in found.values()} == {1}
    embeddings = model.get_input_embeddings().weight
    on_host = [parameter for name, parameter in model.named_parameters() if found[name] == ["cpu"]]
    assert len(on_host) == 1 and on_host[0] is embeddings


def test_weights_are_repacked_only_for_a_model_that_never_trains_again(tiny_folder, monkeypatch):
    """bitsandbytes repacks a layer that says it may, and what was repacked is read wrongly backward."""
    monkeypatch.setattr(load, "_packed_is_fast", lambda: True)

    def may_be_repacked():
        return {module.support_avx512bf16_for_cpu for module in model.modules() if hasattr(module, "compute_dtype")}

    model = load_base(tiny_folder, FP32)
    assert may_be_repacked() == {False}
    load.prepare_answers(model, FP32)
    assert may_be_repacked() == {True}
    monkeypatch.setattr(load, "_packed_is_fast", lambda: False)
    load.prepare_answers(model, FP32)
    assert may_be_repacked() == {False}


def test_layers_of_odd_shapes_answer_without_being_repacked(tmp_path, monkeypatch):
    """The layout has whole blocks of 32 outputs and 64 inputs; bitsandbytes ends in an assertion where a layer has not."""
    sizes = {
        "hidden_size": 96,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "intermediate_size": 160,
    }
    device = Device(CpuAccelerator(), torch.bfloat16)
    model = load_base(write_model("llama", tmp_path, **sizes, num_hidden_layers=1), device).eval()
    ids = torch.arange(3, 12).unsqueeze(0)
    with torch.no_grad():
        wanted = model(ids).logits
        load.prepare_answers(model, device)
        assert torch.allclose(model(ids).logits, wanted, atol=2**-5)
    monkeypatch.setattr(load, "_packed_is_fast", lambda: True)
    load.prepare_answers(model, device)
    layers = {name.split(".")[-1]: module for name, module in model.named_modules() if hasattr(module, "compute_dtype")}
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers.values())
    monkeypatch.setattr(layers["down_proj"], "in_features", 192)
    assert load.can_be_repacked(layers["down_proj"])
    monkeypatch.setattr(layers["down_proj"], "out_features", 80)
    assert not load.can_be_repacked(layers["down_proj"])


def test_tokens_looked_up_on_the_host_give_the_same_logits(tiny_folder):
    model, ids = load_base(tiny_folder, FP32), torch.arange(3, 40).unsqueeze(0)
    wanted = model(ids).logits
    look_tokens_up_on_host(model, torch.device("cpu"))
    assert torch.equal(model(ids).logits, wanted)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=["card", "host"])
def test_memory_that_runs_out_while_loading_is_said_in_words(tiny_folder, monkeypatch, error):
    def no_room(*_, **__):
        raise error

    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", no_room)
    with pytest.raises(StudioError) as caught:
        load_base(tiny_folder, Device(Elsewhere(), torch.bfloat16))
    (problem,) = caught.value.problems
    assert problem.message == (
        "The model does not fit: memory ran out on the card while it was loaded, after 0.50 GiB."
    )
    assert (problem.where, problem.field) == (str(tiny_folder), "memory.budget_gib")
    assert "set offload to both" in problem.hint
    assert is_out_of_memory(caught.value)  # so that the merged model is checked on the processor instead


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "The files are not"),
        (torch.AcceleratorError("device-side assert triggered"), "The files are not"),
        (OSError("Error while deserializing header"), "Download it again."),
    ],
    ids=["no kernel for the card", "an error of the card", "a broken file"],
)
def test_only_a_broken_file_is_to_be_downloaded_again(tiny_folder, monkeypatch, error, hint):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", fails)
    with pytest.raises(StudioError) as caught:
        load_base(tiny_folder, FP32)
    assert caught.value.problems[0].hint.startswith(hint)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
def test_the_weights_file_is_let_go_once_it_is_loaded(tiny_folder):
    model = load_base(tiny_folder, FP32)
    assert str(tiny_folder) not in Path("/proc/self/maps").read_text()
    assert model.lm_head.weight is model.model.embed_tokens.weight


def cut_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def make_config(**changes):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


@pytest.mark.parametrize(
    ("harm", "file", "message"),
    [
        (cut_short, "model.safetensors", "The weights are damaged: Error while deserializing header"),
        (lambda folder: (folder / "model.safetensors").write_bytes(bytes(1000)), "model.safetensors", "The weights are damaged"),
        (make_config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), "config.json", "does not know: 'spiral'."),
        (make_config(hidden_act="swoosh"), "config.json", "does not know: 'swoosh'."),
        (make_config(dtype="float7"), "config.json", "does not know: module 'torch' has no attribute 'float7'."),
    ],
    ids=["cut short", "zeros", "rope type", "activation", "dtype"],
)  # fmt: skip
def test_a_base_that_does_not_load_is_a_sentence_with_the_file(tiny_folder, tmp_path, harm, file, message):
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    harm(folder)
    with pytest.raises(StudioError) as caught:
        load_base(folder, FP32)
    assert message in caught.value.message and str(caught.value).startswith(f"{folder / file}: ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "This is a vit model (ViTModel), not one that writes text."),
        ({"model_type": "llama", "architectures": ["LlamaModel", "Other"]}, "This is a llama model (LlamaModel, Other), not one that writes text."),
        ({"model_type": "llama", "architectures": []}, "This is a llama model (unnamed), not one that writes text."),
        ({"model_type": "vit", "architectures": ["ViTForCausalLM"]}, "This is a vit model (ViTForCausalLM), not one that writes text."),
    ],
)  # fmt: skip
def test_a_model_that_writes_no_text_is_refused_by_its_configuration(tmp_path, values, message):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(StudioError) as caught:
        load.read_text_config(tmp_path)
    file = str(tmp_path / "config.json")
    assert caught.value.problems == (Problem(message, "Choose a causal language model.", file, "architectures"),)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "OneForConditionalGeneration"])
def test_one_architecture_that_writes_text_is_enough(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["Other", name]}))
    assert load.read_text_config(tmp_path).model_type == "llama"


@pytest.mark.parametrize(("rows", "after"), [((5,), 8), ((8,), 8), ((9,), 9), ((9, 11), 11), ((), 8)])
def test_a_base_grows_to_the_tokens_that_an_adapter_brings_and_never_shrinks(rows, after):
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = AutoModelForCausalLM.from_config(config)
    before = model.get_input_embeddings().weight.detach().clone()
    state = {f"{number}.embed_tokens.weight": torch.zeros(count, 8) for number, count in enumerate(rows)}
    load._grow_embeddings(model, state | {"lm_head.weight": torch.zeros(30, 8)})
    weight = model.get_input_embeddings().weight
    assert len(weight) == len(model.lm_head.weight) == after and torch.equal(weight[:8], before)


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError(" first.\nsecond."), "first."), (ValueError("no dot"), "no dot."), (KeyError(), "KeyError.")],
)
def test_of_a_librarys_error_the_first_line_is_said(error, line):
    assert load._first_line(error) == line
