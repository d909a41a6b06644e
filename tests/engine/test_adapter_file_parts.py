"""Each way an adapter changes a parameter, worked out by hand, and each setting that is refused by name."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.adapter_file import AdapterFile, RowRange, read_adapter_config, refuse_parameters
from tests.engine.test_adapter_file import HEAD, TOKENS, Q, numbers

MODULE, EMBEDDING = "model.layers.0.self_attn.q_proj", "model.embed_tokens"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
A, B = torch.tensor([[1.0, 0, 2], [0, 1, 1]]), torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, -1]])
FACTORS = {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}
BA = torch.tensor([[1.0, 0, 2], [0, 1, 1], [1, 1, 3], [2, -1, 3]])
"""B·A, (4, 3)."""


def write(folder, tensors, **config):
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder


@pytest.fixture
def opened(tmp_path):
    files = []

    def make(tensors, **config) -> AdapterFile:
        files.append(AdapterFile(write(tmp_path, tensors, **config)))
        return files[-1]

    yield make
    for file in files:
        file.close()


def test_a_layer_gets_alpha_by_rank_times_its_factors_and_the_base_s_weight_stays(opened):
    file, weight = opened(FACTORS), numbers(4, 3).bfloat16()
    merged = file.apply(f"{MODULE}.weight", weight)
    assert torch.equal(merged, numbers(4, 3) + 3 * BA) and merged.dtype == torch.float32
    assert torch.equal(weight, numbers(4, 3).bfloat16()) and file.unused == []
    whole = numbers(4, 3)
    assert torch.equal(file.apply(f"{MODULE}.weight", whole), whole + 3 * BA) and torch.equal(whole, numbers(4, 3))
    rows = file.apply(f"{MODULE}.weight", numbers(4, 3)[1:3], rows=RowRange(1, 3, 4))
    assert torch.equal(rows, numbers(4, 3)[1:3] + 3 * BA[1:3])
    turned = file.apply(f"{MODULE}.weight", numbers(3, 4), transposed=True)
    assert torch.equal(turned, numbers(3, 4) + 3 * BA.T)
    a, b, scale = file.factors(MODULE)
    assert torch.equal(a, A) and torch.equal(b, B) and scale == 3 and a.dtype == torch.float32


def test_what_no_factor_touches_is_given_back_as_it_is(opened):
    file, weight = opened(FACTORS), numbers(4)
    for parameter in ("model.norm.weight", f"{MODULE}.bias", f"{MODULE}.scales", MODULE):
        assert file.apply(parameter, weight) is weight and not file.touches(parameter)
    assert file.touches(f"{MODULE}.weight") and file.unused == sorted(FACTORS)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / math.sqrt(2)),
        ({"rank_pattern": {"q_proj": 4}}, 1.5),
        ({"rank_pattern": {"k_proj": 4}}, 3.0),
        ({"rank_pattern": {"proj": 4}}, 3.0),
        ({"rank_pattern": {"0.self_attn.q_proj": 4}, "alpha_pattern": {"q_proj": 8}}, 2.0),
        ({"alpha_pattern": {".*attn.*": 1}}, 0.5),
        ({"alpha_pattern": {"^self_attn.q_proj": 1}}, 3.0),
        ({"alpha_pattern": {"q_proj": 1, "self_attn.q_proj": 5}}, 0.5),
        ({"rank_pattern": {"q_proj": 9}, "use_rslora": True}, 2.0),
        ({"rank_pattern": None}, 3.0),
    ],
    ids=str,
)
def test_the_scale_follows_patterns_as_peft_matches_them(opened, config, scale):
    assert opened(FACTORS, **config).scale(MODULE) == scale


@pytest.mark.parametrize("transposed", [False, True])
def test_dora_gives_every_output_its_own_length(opened, transposed):
    lengths = torch.tensor([1.0, 2, 3, 4])
    file = opened(FACTORS | {f"{Q}.lora_magnitude_vector": lengths}, use_dora=True)
    weight = numbers(4, 3)
    merged = file.apply(f"{MODULE}.weight", weight.T.contiguous() if transposed else weight, transposed=transposed)
    found = merged.T if transposed else merged
    plain = weight + 3 * BA
    torch.testing.assert_close(found.norm(dim=1), lengths)
    torch.testing.assert_close(found, plain * (lengths / plain.norm(dim=1)).unsqueeze(1))
    if not transposed:
        rows = file.apply(f"{MODULE}.weight", weight[2:4], rows=RowRange(2, 4, 4))
        torch.testing.assert_close(rows, found[2:4])
    assert file.unused == []


def test_embeddings_have_their_factors_the_other_way_round(opened):
    names = {f"{TOKENS}.lora_embedding_A": B.T, f"{TOKENS}.lora_embedding_B": A.T}  # (r, tokens) and (width, r)
    file = opened(names)
    merged = file.apply(f"{EMBEDDING}.weight", numbers(4, 3))
    assert torch.equal(merged, numbers(4, 3) + 3 * BA)
    rows = file.apply(f"{EMBEDDING}.weight", numbers(4, 3)[1:2], rows=RowRange(1, 2, 4))
    assert torch.equal(rows, merged[1:2])
    file.check_fits(f"{EMBEDDING}.weight", (4, 3), transposed=False)
    with pytest.raises(StudioError, match=r"is \(3, 4\), and the adapter was made for \(4, 3\)"):
        file.check_fits(f"{EMBEDDING}.weight", (3, 4), transposed=False)


def test_a_module_that_is_brought_whole_replaces_the_base_s_by_rows_too_and_may_have_another_shape(opened):
    file = opened({f"{HEAD}.modules_to_save.weight": numbers(5, 3)})
    assert file.shape("lm_head.weight", (4, 3)) == (5, 3) and file.shape("model.norm.weight", (4,)) == (4,)
    assert torch.equal(file.apply("lm_head.weight", torch.empty(0)), numbers(5, 3))
    assert torch.equal(file.apply("lm_head.weight", torch.empty(0), rows=RowRange(1, 3, 5)), numbers(5, 3)[1:3])
    assert file.unused == []
    again = opened({f"{HEAD}.modules_to_save.weight": numbers(5, 3)})
    again.apply("lm_head.weight", torch.empty(0), rows=RowRange(1, 3, 5))
    assert again.unused == []
    file.check_fits("lm_head.weight", (4, 3), transposed=False)


def test_the_base_s_own_values_that_peft_saves_along_are_not_missed(opened):
    file = opened({f"{HEAD}.original_module.weight": numbers(4, 3), f"{Q}.base_layer.bias": numbers(4)} | FACTORS)
    assert file.unused == sorted([f"{Q}.base_layer.bias", *FACTORS])
    assert torch.equal(file.apply(f"{MODULE}.bias", torch.zeros(4)), numbers(4)) and file.touches(f"{MODULE}.bias")
    assert not file.touches("lm_head.weight")


DELTA = {f"{TOKENS}.token_adapter.trainable_tokens_delta": torch.tensor([[7.0, 7, 7], [8, 8, 8]])}


@pytest.mark.parametrize("named", [[0, 3], {"embed_tokens": [0, 3]}, {"model.embed_tokens": [0, 3], "x": [1]}])
def test_single_tokens_are_put_into_their_places(opened, named):
    file, weight = opened(DELTA, trainable_token_indices=named), numbers(4, 3).bfloat16()
    expected = numbers(4, 3)
    expected[0], expected[3] = 7, 8
    merged = file.apply(f"{EMBEDDING}.weight", weight)
    assert torch.equal(merged, expected.bfloat16()) and torch.equal(weight, numbers(4, 3).bfloat16())
    for first, after in ((0, 1), (1, 3), (2, 4), (3, 4)):
        part = file.apply(f"{EMBEDDING}.weight", weight[first:after], rows=RowRange(first, after, 4))
        assert torch.equal(part, expected[first:after].bfloat16())
    assert file.touches(f"{EMBEDDING}.weight") and file.unused == []


@pytest.mark.parametrize(
    "named", [[0], [0, 1, 2], [0, 4], [-1, 0], [True, 2], [0, "1"], [0, 1.0], {"lm_head": [0, 3]}], ids=str
)
def test_tokens_that_the_base_does_not_have_are_refused(opened, named):
    file = opened(DELTA, trainable_token_indices=named)
    with pytest.raises(StudioError, match="The adapter's token embeddings do not fit the base"):
        file.apply(f"{EMBEDDING}.weight", numbers(4, 3))


@pytest.mark.parametrize("kind", ["A", "B", "embedding_A"])
def test_a_factor_without_its_other_half_is_named(opened, kind):
    name = f"{Q}.lora_{kind}" + ("" if kind.startswith("embedding") else ".weight")
    with pytest.raises(StudioError) as caught:
        opened({name: A}).check_fits(f"{MODULE}.weight", (4, 3), transposed=False)
    assert caught.value.problems[0].message == f"Of the adapter's factors for {MODULE}.weight one is missing."


def test_only_a_weight_that_has_factors_must_fit_them(opened):
    file = opened(FACTORS)
    file.check_fits(f"{MODULE}.bias", (9,), transposed=False)
    file.check_fits("model.norm.weight", (9,), transposed=False)
    for shape, transposed in (((3, 4), False), ((4, 3), True)):
        with pytest.raises(StudioError, match="Choose the base it was trained on"):
            file.check_fits(f"{MODULE}.weight", shape, transposed=transposed)


def test_the_trained_copy_wins_and_the_base_layer_s_is_a_plain_one(opened):
    file = opened({f"{HEAD}.base_layer.weight": numbers(2), f"{HEAD}.modules_to_save.weight": numbers(2, first=5)})
    assert file.unused == [f"{HEAD}.modules_to_save.weight"]
    assert torch.equal(file.apply("lm_head.weight", torch.zeros(2)), numbers(2, first=5))


FOREIGN = {
    "kind": ({"peft_type": "IA3"}, "is of the kind IA3"),
    "setting": ({"layer_replication": [[0, 1]]}, "uses layer_replication"),
    "first by name": ({"zebra": 1, "alora": 2}, "uses alora"),
    "begun elsewhere": ({"init_lora_weights": "pissa_niter_4"}, "was begun from the base's own weights (init_lora_weights: pissa_niter_4)"),
    "no rank": ({"r": None}, "names no rank or alpha"),
    "rank a word": ({"r": "8"}, "names no rank or alpha"),
    "rank zero": ({"r": 0}, "names no rank or alpha"),
    "no alpha": ({"lora_alpha": None}, "names no rank or alpha"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "problem"), FOREIGN.values(), ids=FOREIGN)
def test_settings_that_are_not_followed_are_refused_by_name(tmp_path, config, problem):
    write(tmp_path, FACTORS, **config)
    with pytest.raises(StudioError) as caught:
        read_adapter_config(tmp_path)
    assert caught.value.problems[0].message == f"This adapter {problem}, which cannot be merged tensor by tensor."
    assert caught.value.problems[0].where == str(tmp_path)


@pytest.mark.parametrize(
    "config", [{"layer_replication": None, "zebra": 0}, {"init_lora_weights": True}, {"r": 1}, {"lora_alpha": 0.5}]
)
def test_settings_that_are_off_or_end_with_the_training_are_none(tmp_path, config):
    assert read_adapter_config(write(tmp_path, FACTORS, **config)) == CONFIG | config


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_one_of_the_two_files_has_no_adapter(tmp_path, missing):
    (write(tmp_path, FACTORS) / missing).unlink()
    with pytest.raises(StudioError, match="There is no adapter in this folder"):
        read_adapter_config(tmp_path)


def test_factors_on_experts_are_refused_with_the_parameters_that_are_named(tmp_path):
    for named, words in ((["a", "b"], "a, b"), (None, "experts"), ([], "experts")):
        message = refuse_parameters({"target_parameters": named}, tmp_path).problems[0].message
        assert f"(target_parameters: {words})" in message


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"peft_type": "x" * 60}, f"is of the kind {'x' * 50}, which"),
        ({"y" * 60: 1}, f"uses {'y' * 50}, which"),
        ({"init_lora_weights": "pissa" + "z" * 60}, f"(init_lora_weights: pissa{'z' * 45}), which"),
    ],
    ids=["kind", "setting", "first values"],
)
def test_of_a_long_foreign_name_fifty_letters_are_said(tmp_path, setting, words):
    with pytest.raises(StudioError) as caught:
        read_adapter_config(write(tmp_path, FACTORS, **setting))
    assert words in caught.value.message


def test_a_closed_adapter_is_read_no_more(tmp_path):
    file = AdapterFile(write(tmp_path, FACTORS))
    file.close()
    with pytest.raises(ValueError, match="closed file"):
        file.factors(MODULE)
