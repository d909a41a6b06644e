"""Each method of tuning against PEFT's own: the same gradients, an exact resume, and a chat and a merge as trained."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from qlora_studio.core import events as ev
from qlora_studio.core.config import LoraSettings, OptimConfig, TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.engine import loop
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.accumulator import StepRows
from qlora_studio.engine.adapters import adapted_layers, start_from
from qlora_studio.engine.checkpoints import newest_checkpoint
from qlora_studio.engine.kernels.dropout import RowDropout, RowSeeds, add_noise, find_row_seeds
from qlora_studio.engine.kernels.gated_mlp import GatedDown
from qlora_studio.engine.kernels.linear import dense_weight
from qlora_studio.engine.kernels.replace import report_slow_paths
from qlora_studio.engine.load import Device, attach_adapter, keep_layout, load_adapter, load_base
from qlora_studio.engine.merge import MergedWeights, MergeRecipe, write_merged
from qlora_studio.engine.updates import make_optimizer, trained_groups
from tests.engine.adapter_variants import MERGEABLE
from tests.engine.architectures import write_model
from tests.engine.conftest import FP32, make_examples, relative
from tests.engine.test_accumulator import WHOLE, accumulate, make_accumulator
from tests.engine.test_fast_paths import checkpoint_layers, gradient_of, random_ids
from tests.engine.test_loop import Recorder, setup
from tests.engine.test_merge_variants import IDS, merged_model
from tests.matrix import mostly_slow

RANK = 4


def shake(model, seed: int = 2) -> None:
    """Random numbers in B and in DoRA's lengths, so that every weight has a gradient."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
            elif "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))


def load_pair(family, folder, lora, dtype=torch.float32):
    """The engine's model, and one with the same weights as transformers and PEFT compute it."""
    no_dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0) if family == "gpt2" else {}
    base, device = write_model(family, folder, **no_dropout), Device(CpuAccelerator(), dtype)
    ours = attach_adapter(load_base(base, device), lora, torch.float32, seed=1)
    shake(ours)
    plain = PeftModel(load_base(base, device), ours.peft_config["default"], autocast_adapter_dtype=False)
    for parameter in plain.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    plain.load_state_dict({name: value for name, value in ours.state_dict().items() if "lora_" in name}, strict=False)
    return ours.train(), plain.train()


DORA = {
    "plain": LoraSettings(rank=RANK, use_dora=True),
    "with rslora and alpha": LoraSettings(rank=RANK, use_dora=True, use_rslora=True, alpha=7),
    "some modules of some layers": LoraSettings(rank=RANK, use_dora=True, target_modules="v_proj, down_proj", layers="1-2"),
}  # fmt: skip


@pytest.mark.parametrize("kind", mostly_slow(DORA, "with rslora and alpha"))
@pytest.mark.parametrize("family", mostly_slow(["llama", "qwen2", "gemma3_text"], "gemma3_text"))
def test_dora_has_the_gradients_of_peft(family, kind, tmp_path):
    ours, plain = load_pair(family, tmp_path, DORA[kind])
    ids, wanted = random_ids(), gradient_of(plain, random_ids())
    for checkpointed in (0, 3):
        checkpoint_layers(ours, checkpointed)
        assert relative(gradient_of(ours, ids), wanted) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", mostly_slow(["mistral", "qwen3", "phi3", "gpt2"], "phi3"))
def test_dora_has_the_gradients_of_peft_in_other_families(family, tmp_path):
    ours, plain = load_pair(family, tmp_path, DORA["plain"])
    assert relative(gradient_of(ours, random_ids()), gradient_of(plain, random_ids())) < 1e-5


def test_dora_in_bf16_points_where_peft_does(tmp_path):
    ours, plain = load_pair("llama", tmp_path, DORA["plain"], torch.bfloat16)
    found, wanted = gradient_of(ours, random_ids()).float(), gradient_of(plain, random_ids()).float()
    assert torch.nn.functional.cosine_similarity(found, wanted, dim=0) > 0.999


@pytest.mark.parametrize("use_dora", mostly_slow([False, True], False), ids=["lora", "dora"])
@pytest.mark.parametrize("family", mostly_slow(["llama", "qwen2", "phi3", "gemma3_text", "gpt2"], "llama"))
def test_dropout_has_the_gradients_of_peft_over_the_same_numbers(family, use_dora, tmp_path, monkeypatch):
    ours, plain = load_pair(family, tmp_path, LoraSettings(rank=RANK, dropout=0.3, use_dora=use_dora))
    layers, ids = [module for module in plain.modules() if isinstance(module, LoraLayer)], random_ids()
    for number, layer in enumerate(layers):
        layer.lora_dropout["default"] = RowDropout(0.3, number, RowSeeds())
    fused, inner = [], GatedDown.backward
    monkeypatch.setattr(GatedDown, "backward", staticmethod(lambda *a: (fused.append(1), inner(*a))[1]))
    for model in (ours, plain):
        for module in model.modules():
            if isinstance(module, RowDropout):
                module.row_seeds.seeds, module.row_seeds.spans = ("one", "two"), ((0, 40), (40, 80))
    wanted = gradient_of(plain, ids)
    for checkpointed in (0, 3):
        checkpoint_layers(ours, checkpointed)
        assert relative(gradient_of(ours, ids), wanted) < 1e-5
    assert len(fused) == (0 if use_dora or family == "gpt2" else 8)
    find_row_seeds(ours).seeds = ("one", "three")
    assert relative(gradient_of(ours, ids), wanted) > 1e-2, "dropout changes nothing"


STARTS = {init: LoraSettings(rank=RANK, init=init) for init in ("pissa", "olora")}


@pytest.mark.parametrize("lora", [DORA["plain"], *STARTS.values()], ids=["dora", *STARTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_nothing(lora, dtype, tmp_path):
    model = attach_adapter(
        load_base(write_model("llama", tmp_path), Device(CpuAccelerator(), dtype)), lora, torch.float32, 1
    )
    with torch.no_grad():
        tuned = model(random_ids()).logits
        with model.disable_adapter():
            assert relative(tuned, model(random_ids()).logits) < (1e-5 if dtype is torch.float32 else 6e-3)


# PiSSA and OLoRA


@pytest.mark.parametrize("rslora", mostly_slow([False, True], True))
def test_pissa_starts_at_the_largest_directions_and_trains_one_half(rslora, tmp_path):
    lora = LoraSettings(rank=RANK, alpha=6, use_rslora=rslora, init="pissa")
    model = attach_adapter(load_base(write_model("llama", tmp_path), FP32), lora, torch.float32, 1).train()
    scale = 6 / (RANK**0.5 if rslora else RANK)
    before = []
    for layer in adapted_layers(model):
        a, b = (part["default"].weight.detach() for part in (layer.lora_A, layer.lora_B))
        assert layer.scaling["default"] == pytest.approx(scale)
        assert torch.equal(a[:RANK], a[RANK:]) and torch.equal(b[:, :RANK], -b[:, RANK:])
        weight = dense_weight(layer.base_layer, torch.float32)
        values = torch.linalg.svdvals(weight)
        start = scale * b[:, :RANK] @ a[:RANK]
        assert torch.linalg.matrix_rank(start) == RANK
        assert (weight - start).square().sum() <= 1.15 * values[RANK:].square().sum()  # of random numbers, flat
        before.append((a[RANK:].clone(), b[:, RANK:].clone(), a[:RANK].clone()))
    optimizer = make_optimizer(trained_groups(model, RATE.optim), RATE, "adamw")
    for _ in range(3):
        gradient_of(model, random_ids())
        optimizer.step()
    for layer, (a, b, moving) in zip(adapted_layers(model), before, strict=True):
        assert torch.equal(layer.lora_A["default"].weight[RANK:], a)
        assert torch.equal(layer.lora_B["default"].weight[:, RANK:], b)
        assert not torch.equal(layer.lora_A["default"].weight[:RANK], moving)


RATE = TrainConfig(optim=OptimConfig(learning_rate=1e-2))


@pytest.mark.parametrize("rank", mostly_slow([RANK, 100], 100), ids=["narrow", "wider than some layers"])
def test_olora_starts_where_peft_does(rank, tmp_path):
    """PEFT takes the first columns and rows of a whole QR decomposition."""
    lora = LoraSettings(rank=rank, alpha=6, init="olora")
    model = attach_adapter(load_base(write_model("llama", tmp_path), FP32), lora, torch.float32, 1)
    for layer in adapted_layers(model):
        a, b = (part["default"].weight.detach() for part in (layer.lora_A, layer.lora_B))
        q, r = torch.linalg.qr(dense_weight(layer.base_layer, torch.float32))
        found = min(rank, q.shape[1])
        assert relative(b[:, :found] @ a[:found], q[:, :rank] @ r[:rank]) < 1e-5
        assert relative(b[:, :found], q[:, :found]) < 1e-4
        assert torch.equal(a[:found], a[rank : rank + found]) and torch.equal(b[:, :found], -b[:, rank : rank + found])


@pytest.mark.parametrize("init", STARTS)
def test_a_start_from_the_base_has_the_gradients_of_an_adapter_on_what_remains(init, tmp_path):
    """PEFT takes the start out of the base's weights; here it stands in the adapter, and comes to the same."""
    folder = write_model("llama", tmp_path)
    ours = attach_adapter(load_base(folder, FP32, four_bit=False), STARTS[init], torch.float32, 1)
    theirs = attach_adapter(load_base(folder, FP32, four_bit=False), LoraSettings(rank=RANK), torch.float32, 1)
    with torch.no_grad():
        for one, other in zip(adapted_layers(ours), adapted_layers(theirs), strict=True):
            a, b = one.lora_A["default"].weight[:RANK], one.lora_B["default"].weight[:, :RANK]
            other.lora_A["default"].weight.copy_(a)
            other.lora_B["default"].weight.copy_(b)
            other.base_layer.weight.sub_(other.scaling["default"] * b @ a)
    halves = []
    gradient_of(ours.train(), random_ids())
    for layer in adapted_layers(ours):
        a, b = layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad
        assert not a[RANK:].any() and not b[:, RANK:].any()
        halves += [a[:RANK].flatten(), b[:, :RANK].flatten()]
    assert relative(torch.cat(halves), gradient_of(theirs.train(), random_ids())) < 1e-4


@pytest.mark.parametrize("init", STARTS)
@pytest.mark.parametrize("changes", [{"optim.weight_decay": 0.1}, {"model.adapter": "other"}, {"lora.use_dora": True}])
def test_what_cannot_go_with_a_start_from_the_base_is_refused_by_name(changes, init):
    with pytest.raises(StudioError, match=rf"field '{next(iter(changes))}': With lora.init {init}"):
        TrainConfig().replace({"lora.init": init, **changes})


# LoRA+ and NEFTune


@pytest.mark.slow
def test_lora_plus_takes_the_steps_of_peft(tmp_path):
    config = TrainConfig(optim=OptimConfig(learning_rate=1e-3, loraplus_ratio=16, weight_decay=0.01))
    ours, theirs = load_pair("llama", tmp_path, LoraSettings(rank=RANK))
    mine = make_optimizer(trained_groups(ours, config.optim), config, "adamw")
    reference = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_weight_decay=0.01, weight_decay=0.01
    )
    for _ in range(3):
        for model, optimizer in ((ours, mine), (theirs, reference)):
            gradient_of(model, random_ids())
            optimizer.step()
    ended = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(parameter, ended[name], atol=2e-5), name


@pytest.mark.slow
def test_noise_is_the_same_however_a_step_is_cut_and_off_in_evaluation(tiny_adapter_model):
    add_noise(tiny_adapter_model, 5.0)
    examples = make_examples(6, seed=3)
    loss, gradient = accumulate(tiny_adapter_model, examples)
    for how in ({"tokens": 1}, {"tokens": 90, "pack": False}, {"checkpointed": 2}):
        other_loss, other = accumulate(tiny_adapter_model, examples, **how)
        assert other_loss == pytest.approx(loss, rel=1e-6) and relative(other, gradient) < 1e-5
    assert accumulate(tiny_adapter_model, examples, step=2)[0] != loss
    embeddings, ids = tiny_adapter_model.get_input_embeddings(), torch.tensor([[7, 9, 11, 13]])
    plain = embeddings.weight[ids]
    seeds = find_row_seeds(tiny_adapter_model)
    seeds.seeds, seeds.spans = ("a row",), ((0, 3),)
    change = embeddings(ids) - plain
    bound = 5.0 / (3 * plain.shape[-1]) ** 0.5
    assert not change[:, 3:].any()
    assert 0.9 * bound < change.abs().max() <= 1.0001 * bound and abs(change.mean()) < 0.2 * bound
    tiny_adapter_model.eval()
    assert torch.equal(embeddings(ids), plain)


# whole runs

RUNS = {
    "dora, dropout": LoraSettings(rank=RANK, use_dora=True, dropout=0.2),
    "pissa": LoraSettings(rank=RANK, init="pissa"),
    "olora": LoraSettings(rank=RANK, alpha=RANK, init="olora"),
    "pissa, rslora": LoraSettings(rank=RANK, init="pissa", use_rslora=True),
    "one layer, two modules": LoraSettings(rank=RANK, layers="1", target_modules="q_proj, up_proj"),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", mostly_slow(RUNS, "dora, dropout"))
def test_a_run_is_resumed_exactly_and_chatted_with_and_merged_as_trained(method, tiny_folder, tmp_path):
    def run(folder, stop_after=None, resume=None):
        model = attach_adapter(load_base(tiny_folder, FP32), RUNS[method], torch.float32, seed=1)
        add_noise(model, 5.0)
        recorder = Recorder(stop_after)
        made = setup(
            model, folder, optim__loraplus_ratio=4.0, saving__adapter="last", held_out=make_examples(2, seed=9)
        )
        loop.train(dataclasses.replace(made, resume=resume), recorder.emit, recorder.find_request)
        return model.eval(), recorder, (folder / "adapter" / "adapter_model.safetensors").read_bytes()

    model, whole, adapter = run(tmp_path / "whole")
    _, first, _ = run(tmp_path / "cut", stop_after=3)
    checkpoint, _ = newest_checkpoint(tmp_path / "cut" / "checkpoints")
    _, rest, again = run(tmp_path / "cut", resume=checkpoint)
    assert first.losses + rest.losses == whole.losses and again == adapter
    assert whole.losses[-1] < whole.losses[0]
    folder = tmp_path / "whole" / "adapter"
    chat = load_adapter(load_base(tiny_folder, FP32), folder).eval()
    merged = MergedWeights(MergeRecipe(tiny_folder, folder, "as_chatted", torch.float32))
    (tmp_path / "out").mkdir()
    write_merged(merged, tmp_path / "out")
    merged.close()
    exported = load_base(tmp_path / "out", FP32, four_bit=False).eval()
    with torch.no_grad():
        trained = model(IDS).logits
        assert relative(chat(IDS).logits, trained) < 1e-5
        assert relative(exported(IDS).logits, trained) < 1e-5
        reference = PeftModel.from_pretrained(load_base(tiny_folder, FP32), folder).eval()
        assert relative(reference(IDS).logits, trained) < 1e-5
        with model.disable_adapter():
            assert relative(model(IDS).logits, trained) > 1e-2


def test_a_run_starts_from_an_adapter_with_dora_and_refuses_one_without(tiny_folder, tmp_path):
    lora = LoraSettings(rank=RANK, use_dora=True)
    model = attach_adapter(load_base(tiny_folder, FP32), lora, torch.float32, seed=1)
    shake(model)
    model.save_pretrained(tmp_path)
    fresh = attach_adapter(load_base(tiny_folder, FP32), lora, torch.float32, seed=5)
    start_from(fresh, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == 3 * 14
    found = {name: value for name, value in fresh.state_dict().items() if "lora_" in name}
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items() if "lora_" in name)
    plain = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=RANK), torch.float32, seed=5)
    with pytest.raises(StudioError, match=r"The adapter to start from has lora\.use_dora True"):
        start_from(plain, tmp_path)
    some = attach_adapter(
        load_base(tiny_folder, FP32), LoraSettings(rank=RANK, use_dora=True, layers="0"), torch.float32, seed=5
    )
    with pytest.raises(StudioError, match="made for another base or other layers"):
        start_from(some, tmp_path)


def test_what_runs_on_slower_paths_is_said_at_the_start(tiny_folder, tmp_path):
    model = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=RANK, use_dora=True), torch.float32, seed=1)
    recorder = Recorder(stop_after=1)
    loop.train(setup(model, tmp_path / "run"), recorder.emit, recorder.find_request)
    notes = [event.text for event in recorder.of(ev.Noted)]
    assert notes == ["Gated MLPs keep more, because their layers have DoRA."]
    plain = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=RANK, dropout=0.1), torch.float32, seed=1)
    assert report_slow_paths(plain) is None


def test_rows_of_raw_text_are_learned_whole(tiny_adapter_model, tmp_path):
    """Continued pre-training: every token of a block is trained, from its second on."""
    rows = [Example(one.input_ids, ((0, len(one.input_ids)),)) for one in make_examples(8, seed=3)]
    accumulator = make_accumulator(tiny_adapter_model, rows, tokens=WHOLE)
    loss = float(accumulator.add_gradients(StepRows(tuple(range(8)), 1)).loss)
    losses, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row.input_ids])
        logits = tiny_adapter_model(ids).logits[0, :-1]
        losses += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += len(row.input_ids) - 1
    assert loss == pytest.approx(losses / count, rel=1e-5)


@torch.inference_mode()
def test_dora_answers_alike_once_a_processor_has_packed_the_weights(tmp_path):
    """bitsandbytes packs a layer at its first product, on processors with AVX512-BF16; the base may be asked first."""
    device = Device(CpuAccelerator(), torch.bfloat16)
    model = attach_adapter(
        load_base(write_model("llama", tmp_path, initializer_range=0.2), device), DORA["plain"], torch.float32, 1
    )
    shake(model)
    before = model.eval()(IDS).logits.clone()
    with model.disable_adapter():
        base_before = model(IDS).logits.clone()
    for layer in adapted_layers(model):
        layer.kept_norm = None
    keep_layout(model, canonical=False)
    with model.disable_adapter():
        base = model(IDS).logits.clone()
    rounding = relative(base, base_before)  # another kernel, on weights large enough to tell
    assert relative(base, before) > 3 * rounding
    for _ in range(2):
        assert relative(model(IDS).logits, before) <= 2 * rounding
    assert all(layer.kept_norm is not None for layer in adapted_layers(model))


@pytest.mark.parametrize("name", mostly_slow(MERGEABLE, "plain", "dora", "rslora"))
@torch.no_grad()
def test_an_adapter_of_any_kind_is_chatted_with_as_it_is_merged(name, tmp_path):
    base, adapter = MERGEABLE[name].write(tmp_path)
    chat = load_adapter(load_base(base, FP32), adapter).eval()
    merged = merged_model(base, adapter, tmp_path / "out", "as_chatted")
    assert relative(chat(IDS).logits, merged(IDS).logits) < 1e-5
