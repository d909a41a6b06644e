"""The weight files of a base as one list of tensors, and what is wrong where they are not one."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.model_weights import ModelWeights, StoredTensor

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
A, B, C = torch.arange(6.0).view(3, 2), torch.ones(2).bfloat16(), torch.arange(4.0)


@pytest.fixture
def folder(tmp_path):
    """Two shards with an index."""
    save_file({"a": A, "b": B}, tmp_path / ONE, metadata={"format": "pt"})
    save_file({"c": C}, tmp_path / TWO, metadata={"format": "pt"})
    write_index(tmp_path, {"a": ONE, "b": ONE, "c": TWO})
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def write_index(folder, places):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_tensors_of_all_files_are_listed_and_read_until_they_are_closed(folder):
    weights = ModelWeights(folder)
    assert weights.tensors == {
        "a": StoredTensor("a", ONE, "F32", (3, 2)),
        "b": StoredTensor("b", ONE, "BF16", (2,)),
        "c": StoredTensor("c", TWO, "F32", (4,)),
    }
    assert not weights.quantised and weights.metadata == {"format": "pt"}
    assert torch.equal(weights.read("a"), A) and torch.equal(weights.read("c"), C)
    assert torch.equal(weights.read_rows("a", 1, 3), A[1:]) and weights.read("b").dtype == torch.bfloat16
    weights.close()
    for name in "ac":
        with pytest.raises(ValueError, match="closed file"):
            weights.read(name)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": TWO, "b": ONE, "c": TWO}, f"The index says a is in {TWO}, and it is not."),
        ({"a": ONE, "b": ONE, "c": TWO, "d": ONE}, f"The index says d is in {ONE}, and it is not."),
        ({"a": ONE, "c": TWO, "z" * 300: ONE}, f"The index says {'z' * 200} is in {ONE}, and it is not."),
    ],
    ids=["another file", "no file", "a long name"],
)
def test_an_index_that_is_wrong_is_refused_with_the_first_name(folder, places, message):
    write_index(folder, places)
    with pytest.raises(StudioError) as caught:
        ModelWeights(folder)
    assert caught.value.problems[0].message == message and caught.value.problems[0].where == str(folder)


def test_a_tensor_in_two_files_is_refused(folder):
    for name in ("a", "n" * 300):
        save_file({name: A}, folder / ONE)
        save_file({name: A}, folder / TWO)
        write_index(folder, {name: ONE, "more": TWO})
        with pytest.raises(StudioError) as caught:
            ModelWeights(folder)
        assert caught.value.problems[0].message == f"{name[:200]} stands in {ONE} and in {TWO}."


@pytest.mark.parametrize(
    ("how", "name"), [({"quant_method": "gptq"}, "gptq"), ("q" * 60, "q" * 50), ({"quant_method": "y" * 60}, "y" * 50)]
)
def test_a_base_that_is_quantised_in_another_way_is_refused(folder, how, name):
    (folder / "config.json").write_text(json.dumps({"quantization_config": how}))
    with pytest.raises(StudioError) as caught:
        ModelWeights(folder)
    assert caught.value.problems[0].message == (
        f"This base is stored quantised ({name}), and its weights cannot be taken apart."
    )
