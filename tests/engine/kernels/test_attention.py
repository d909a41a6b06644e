"""Attention with repeated heads is torch's own attention, and is chosen where only the plain kernel groups queries."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.kernels import attention
from qlora_studio.engine.kernels.attention import (
    REPEATED_HEADS,
    attend_one_query,
    attend_with_repeated_heads,
    register_repeated_heads,
)
from qlora_studio.engine.kernels.documents import Documents, attend_documents
from qlora_studio.engine.load import Device, choose_attention, prepare_answers
from tests.engine.architectures import config_of


class OldCard(CpuAccelerator):
    """Has a fused kernel, but none for grouped queries, as below compute capability 8.0."""

    def attention_kernels(self, dtype, *, grouped):
        return ("plain",) if grouped else ("memory-efficient", "plain")


OLD, NEW = Device(OldCard(), torch.float16), Device(CpuAccelerator(), torch.float32)


def test_nothing_is_repeated_where_heads_are_equal():
    config = config_of("llama")
    config.num_key_value_heads = config.num_attention_heads
    assert choose_attention(config, OLD) == "sdpa"


@pytest.mark.parametrize(
    ("family", "device", "name"),
    [
        ("llama", NEW, "sdpa"),
        ("llama", None, "sdpa"),
        ("llama", OLD, REPEATED_HEADS),
        ("falcon", OLD, "sdpa"),  # takes no other name
        ("gpt_oss", OLD, "eager"),
    ],
)
def test_heads_are_repeated_where_only_the_plain_kernel_groups_queries(family, device, name):
    assert choose_attention(config_of(family), device) == name


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_repeated_heads_give_the_same_logits_and_gradients(family):
    register_repeated_heads()
    ids = torch.randint(3, 500, (2, 100), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 70:] = 0
    found = {}
    for name in ("sdpa", REPEATED_HEADS):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of(family), dtype=torch.float32, attn_implementation=name)
        assert model.config._attn_implementation == name
        logits = [model(ids).logits, model(ids, attention_mask=mask).logits[:, :70]]
        sum(part.logsumexp(-1).sum() for part in logits).backward()
        gradient = model.get_decoder().layers[0].self_attn.k_proj.weight.grad
        found[name] = [*logits, gradient]
        decoded = model.generate(ids[:, :20], max_new_tokens=5, do_sample=False, pad_token_id=0)
        found[name].append(decoded.float())
    for ours, theirs in zip(found[REPEATED_HEADS], found["sdpa"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gemma4_text", "mistral", "phi3", "gpt2", "olmo2"])
@torch.inference_mode()
def test_an_answer_is_written_by_one_query_as_by_torch_s_attention(family, monkeypatch):
    """Prompt and answer go over the window of local layers, token by token over the cache."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family), dtype=torch.float32, attn_implementation="sdpa").eval()
    ids = torch.randint(3, 500, (1, 90), generator=torch.Generator().manual_seed(1))
    taken, inner = [], attention.one_query
    monkeypatch.setattr(attention, "one_query", lambda *a: (taken.append(1), inner(*a))[1])

    def logits():
        output = model(ids[:, :60], use_cache=True)
        found = [output.logits[:, -1]]
        for place in range(60, 90):
            output = model(ids[:, place : place + 1], past_key_values=output.past_key_values, use_cache=True)
            found.append(output.logits[:, -1])
        return torch.cat(found)

    wanted = logits()
    assert taken == []
    prepare_answers(model, NEW)
    torch.testing.assert_close(logits(), wanted, rtol=1e-4, atol=1e-5)
    layers = model.config.num_hidden_layers
    assert len(taken) == 30 * layers
    assert choose_attention(config_of(family), NEW) == "sdpa"  # for what is loaded next


def test_several_queries_and_gradients_stay_with_torch(monkeypatch):
    monkeypatch.setattr(attention, "one_query", lambda *a: pytest.fail("taken"))
    query, key = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 5, 8)
    module = SimpleNamespace(is_causal=True, num_key_value_groups=2, training=False)
    attend_one_query(module, query, key, key, None)
    with torch.no_grad():
        attend_one_query(module, torch.randn(1, 4, 3, 8), key, key, None)


@pytest.mark.parametrize("added", [False, True])
@torch.no_grad()
def test_padding_is_not_seen(added):
    query, key, value = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    mask = torch.tensor([[True] * 5, [False, False, True, True, True]]).view(2, 1, 1, 5)
    given = torch.zeros(2, 1, 1, 5).masked_fill_(~mask, float("-inf")) if added else mask
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    found, _ = attend_one_query(SimpleNamespace(), query, key, value, given)
    torch.testing.assert_close(found, wanted.transpose(1, 2))


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_answers_in_a_batch_leave_padding_out(family):
    """With a mask that nobody makes for this name, a shorter prompt would look at what fills it up."""
    ids = torch.randint(3, 500, (2, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :25] = 0
    found = []
    for prepare in (lambda *_: None, prepare_answers):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            config_of(family), dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        prepare(model, torch.device("cpu"))
        with torch.no_grad():
            written = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=8,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        found.append(torch.stack(written.logits))
    assert model.config._attn_implementation == attention.ONE_QUERY
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attend", [attend_one_query, attend_with_repeated_heads, attend_documents])
def test_a_mask_may_be_given_by_the_name_that_transformers_gives_it(attend):
    """Doge's layers, and some others, name every argument of their attention function."""
    query, key = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 5, 8)
    mask = torch.tensor([True, False, True, True, False]).view(1, 1, 1, 5)
    named = {"module": SimpleNamespace(), "query": query, "key": key, "value": key}
    with torch.no_grad():
        found, _ = attend(**named, attention_mask=mask, scaling=0.5)
        wanted = torch.nn.functional.scaled_dot_product_attention(
            query, key, key, attn_mask=mask, scale=0.5, enable_gqa=True
        )
    assert torch.allclose(found, wanted.transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize("queries", [1, 3])
def test_a_mask_for_each_head_is_attended_with(queries):
    query, key = torch.randn(1, 4, queries, 8), torch.randn(1, 2, 5, 8)
    mask = torch.randn(1, 4, queries, 5)
    with torch.no_grad():
        found, _ = attend_one_query(SimpleNamespace(num_key_value_groups=2), query, key, key, mask)
    repeated = key.repeat_interleave(2, dim=1)
    wanted = torch.nn.functional.scaled_dot_product_attention(query, repeated, repeated, attn_mask=mask)
    assert torch.allclose(found, wanted.transpose(1, 2), atol=1e-6)


def test_a_mask_that_a_model_made_itself_is_not_left_out():
    query, key, mask = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8), torch.zeros(1, 4, 3, 3)
    for documents in (None, Documents(((0, 3),))):
        with pytest.raises(ValueError, match="masks of their own"):
            attend_documents(None, query, key, key, mask, documents=documents)
