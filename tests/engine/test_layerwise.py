"""A model whose weights stay in their files says what it says in memory, and holds one module's weights at a time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlora_studio.core.errors import StudioError
from qlora_studio.engine import layerwise
from qlora_studio.engine.compare import Probe, log_probabilities, probe_answer
from qlora_studio.engine.exporters.merged import layers_of_merged
from qlora_studio.engine.gguf_file.read import layers_of_gguf, load_gguf
from qlora_studio.engine.gguf_file.write import About
from tests.engine.adapter_variants import MERGEABLE
from tests.engine.conftest import FP32
from tests.engine.gguf_file.small_models import FAMILIES, small_base, write_gguf
from tests.matrix import mostly_slow

PROBES = [
    probe_answer(range(3, 20), range(30, 40), stopped=False),
    probe_answer((5, 6), (7, 8, 9), stopped=True),
    Probe(tuple(range(40, 90)), tuple(range(20, 49))),
    Probe(tuple(range(50, 60)), (0, 3, 9)),
]
BASES = [
    "many shards",
    "saved head, tied",
    "base without prefix",
    "transposed layers",
    "gpt-2 without prefix",
    "joined projections",
]


@pytest.mark.parametrize("pass_tokens", [50, 8192])
@pytest.mark.parametrize("name", BASES)
def test_of_a_merged_folder(name, pass_tokens, tmp_path, monkeypatch):
    base, _ = MERGEABLE[name].write(tmp_path)
    monkeypatch.setattr(layerwise, "PASS_TOKENS", pass_tokens)
    expected = log_probabilities(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval(), PROBES)
    steps: list[tuple[int, int]] = []
    found = layers_of_merged(base, FP32).log_probabilities(PROBES, lambda *step: steps.append(step))
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-4)
    assert steps[-1][0] == steps[-1][1] and [done for done, _ in steps] == [*range(1, len(steps) + 1)]


@pytest.mark.parametrize("name", mostly_slow(FAMILIES, "gemma3"))
def test_of_a_gguf_file(name, tmp_path):
    model_type, changes = FAMILIES[name]
    base = small_base(model_type, tmp_path / "base", **changes)
    path = write_gguf(base, tmp_path, "Q8_0", About("small"))
    expected = log_probabilities(load_gguf(path, base, FP32), PROBES)
    assert torch.allclose(layers_of_gguf(path, base, FP32).log_probabilities(PROBES), expected, atol=1e-4)


def most_values_held(folder) -> int:
    """Values of weights still in memory when those of another module are read."""
    model, held = layers_of_merged(folder, FP32), []
    read = model.read

    def count(name):
        held.append(sum(one.numel() for one in model.model.parameters() if one.device.type != "meta"))
        return read(name)

    model.read = count
    model.log_probabilities(PROBES)
    assert len(held) > 50
    return max(held)


def test_no_more_than_one_modules_weights_are_in_memory(tmp_path, monkeypatch):
    base = small_base("llama", tmp_path / "base")
    assert most_values_held(base) == 0
    monkeypatch.setattr(layerwise.LayerwiseModel, "_drop", lambda *_: None)
    assert most_values_held(base) > 100_000, "one that is not let go is noticed"


def test_experts_in_files_of_their_own_are_refused(tmp_path):
    base, _ = MERGEABLE["attention of a mixture"].write(tmp_path)
    with pytest.raises(StudioError, match="cannot be checked layer by layer"):
        layers_of_merged(base, FP32)


def test_probes_go_in_together_padded_and_no_further_than_they_are_asked():
    seen = []

    def answer(input_ids, attention_mask, use_cache):
        seen.append((input_ids.tolist(), attention_mask.tolist(), use_cache))
        return SimpleNamespace(logits=torch.tensor([[[0.0, 0], [0, torch.inf]]])[:, :, :2].nan_to_num(posinf=50.0))

    model = layerwise.LayerwiseModel.__new__(layerwise.LayerwiseModel)
    model.model, model.device = answer, FP32
    found = model._ask([Probe((5, 6, 7, 8), (0, 2)), Probe((9, 10), (0,))])
    assert seen == [([[5, 6, 7], [9, 0, 0]], [[1, 1, 1], [1, 0, 0]], False)]
    assert model._wanted == [(0, 0), (0, 2), (1, 0)]
    torch.testing.assert_close(found, torch.tensor([[-0.6931472, -0.6931472], [-50.0, 0.0]]))


@pytest.mark.parametrize(
    ("widths", "groups"),
    [([10, 10], [[10, 10]]), ([10, 11], [[10], [11]]), ([20], [[20]]), ([30, 5, 5], [[30], [5, 5]]), ([], [])],
)
def test_as_many_probes_go_together_as_fill_a_pass(monkeypatch, widths, groups):
    monkeypatch.setattr(layerwise, "PASS_TOKENS", 20)
    probes = [Probe(tuple(range(40)), (0, width - 1)) for width in widths]
    assert [[one.positions[-1] + 1 for one in group] for group in layerwise._group(probes)] == groups


@pytest.mark.parametrize(("free", "fits"), [(110, False), (111, True)])
def test_a_tenth_is_left_to_compute_with(monkeypatch, free, fits):
    monkeypatch.setattr(layerwise.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert layerwise.fits_in_memory(100) == fits


def test_a_weight_of_another_shape_is_named(tiny_folder):
    model = layers_of_merged(tiny_folder, FP32)
    model.read = lambda name: torch.zeros(3)
    with pytest.raises(
        StudioError, match=r"model\.embed_tokens\.weight has the shape \(3,\), and the model \(256, 64\)"
    ):
        model.log_probabilities(PROBES)
    assert layers_of_merged(tiny_folder, FP32).log_probabilities([Probe((1, 2), ())]).shape == (0, 0)


def test_after_an_error_no_module_keeps_its_weights(tiny_folder):
    model = layers_of_merged(tiny_folder, FP32)
    held = []

    def fail(*_):
        held.append(model.model.model.norm.weight.device.type)
        raise RuntimeError("shapes")

    model.model.model.norm.forward = fail
    with pytest.raises(RuntimeError, match="shapes"):
        model.log_probabilities(PROBES)
    assert held == ["cpu"] and {one.device.type for one in model.model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    "compute",
    [lambda hidden, weight: hidden * weight[0], lambda hidden, weight: torch.nn.functional.linear(hidden, weight[:64])],
    ids=["a product of numbers", "a product of matrices"],
)
def test_a_model_that_computes_with_another_module_s_weight_is_said_to_be_unknown(tiny_folder, compute):
    """Of a weight that is not there torch makes numbers in a product of matrices, and an error elsewhere."""
    model = layers_of_merged(tiny_folder, FP32)
    norm, embedding = model.model.model.norm, model.model.model.embed_tokens
    norm.forward = lambda hidden: compute(hidden, embedding.weight)
    with pytest.raises(StudioError) as caught:
        model.log_probabilities(PROBES)
    assert caught.value.message == (
        "This export does not fit into memory, and a LlamaForCausalLM cannot be checked layer by layer."
    )
