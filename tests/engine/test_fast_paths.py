"""Every fast path against plain transformers and PEFT: the same gradients, for every family, kept, checkpointed, tiled."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from qlora_studio.core.config import LoraSettings
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.kernels import gated_mlp
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
from qlora_studio.engine.kernels.gated_mlp import GatedDown, TiledMlp
from qlora_studio.engine.kernels.norm import RmsNorm
from qlora_studio.engine.kernels.replace import replace_gated_mlps, tile_mlps
from qlora_studio.engine.kernels.rotary import Rotate
from qlora_studio.engine.load import Device, attach_adapter, load_base
from tests.engine.architectures import NO_DROPOUT, write_model
from tests.engine.conftest import relative
from tests.matrix import mostly_slow

FAMILIES = {
    "llama": (8, 4), "mistral": (8, 4), "qwen2": (8, 4), "qwen3": (16, 4), "phi3": (8, 4), "gemma": (8, 4),
    "gemma3_text": (24, 4), "smollm3": (8, 4), "granite": (8, 4), "olmo2": (17, 4),
    "gpt2": (0, 0), "falcon": (0, 0), "phi": (0, 0), "gemma4_text": (27, 4), "cohere2": (0, 4),
}  # fmt: skip
"""How many RMS norms and gated MLPs of four layers the gradient goes through; not through a norm in front of the first
trained layer."""
ROTATIONS = {"gpt2": 0, "smollm3": 6, "gemma4_text": 0, "cohere2": 0}
"""Where not queries and keys of all four layers are rotated by ours: 8. SmolLM3 leaves every fourth layer alone; Gemma 4
rotates one tensor at a time, Cohere pairs of neighbours."""
CLOSE = {"gemma4_text": 1e-4}
"""Where fp32 itself is further than 1e-5 from fp64: both are 1e-4 from it here, and 3e-5 from each other (2026-11-22)."""
WAYS = {"kept": (0, False), "checkpointed": (4, False), "tiled": (0, True), "checkpointed and tiled": (3, True)}


def load_pair(family, folder, dtype, **changes) -> tuple[PeftModel, PeftModel]:
    """The engine's model, and one of the same weights as transformers and PEFT compute it."""
    base, device = write_model(family, folder, **NO_DROPOUT | changes), Device(CpuAccelerator(), dtype)
    ours = attach_adapter(load_base(base, device), LoraSettings(rank=4), torch.float32, seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    plain = PeftModel(load_base(base, device), ours.peft_config["default"], autocast_adapter_dtype=False)
    for parameter in plain.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    plain.load_state_dict({name: value for name, value in ours.state_dict().items() if "lora_" in name}, strict=False)
    return ours.train(), plain.train()


def gradient_of(model, ids) -> torch.Tensor:
    model.zero_grad(set_to_none=True)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def random_ids(rows=2, length=40) -> torch.Tensor:
    return torch.randint(3, 500, (rows, length), generator=torch.Generator().manual_seed(3))


def count_calls(monkeypatch) -> dict[str, int]:
    calls = {"RmsNorm": 0, "Rotate": 0, "GatedDown": 0, "TiledMlp": 0}
    for kind in (RmsNorm, Rotate, GatedDown, TiledMlp):

        def counted(*arguments, name=kind.__name__, inner=kind.backward):
            calls[name] += 1
            return inner(*arguments)

        monkeypatch.setattr(kind, "backward", staticmethod(counted))
    return calls


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, "llama", "gemma3_text"))
def test_gradients_are_those_of_transformers_and_peft(family, tmp_path, monkeypatch):
    monkeypatch.setattr(gated_mlp, "ROWS_AT_ONCE", {"cpu": 32})
    monkeypatch.setattr(gated_mlp, "TILE", 32)
    ours, plain = load_pair(family, tmp_path, torch.float32)
    ids, calls = random_ids(), count_calls(monkeypatch)
    wanted = gradient_of(plain, ids)
    assert set(calls.values()) == {0}
    norms, mlps = FAMILIES[family]
    for checkpointed, tiled in WAYS.values():
        calls.update(dict.fromkeys(calls, 0))
        checkpoint_layers(ours, checkpointed)
        tile_mlps(ours, tiled)
        assert relative(gradient_of(ours, ids), wanted) < CLOSE.get(family, 1e-5)
        mlp_calls = {"GatedDown": 0 if tiled else mlps, "TiledMlp": mlps if tiled else 0}
        assert calls == {"RmsNorm": norms, "Rotate": ROTATIONS.get(family, 8), **mlp_calls}


@pytest.mark.parametrize("tied", mostly_slow([True, False], False), ids=["tied", "untied"])
@pytest.mark.parametrize("family", mostly_slow(["llama", "qwen3", "gemma3_text", "mistral", "phi3", "gpt2"], "qwen3"))
def test_gradients_in_bf16_point_where_those_of_transformers_and_peft_do(family, tied, tmp_path):
    ours, plain = load_pair(family, tmp_path, torch.bfloat16, tie_word_embeddings=tied, initializer_range=0.06)
    ids = random_ids()
    wanted = gradient_of(plain, ids).float()
    for checkpointed, tiled in WAYS.values():
        checkpoint_layers(ours, checkpointed)
        tile_mlps(ours, tiled)
        assert torch.nn.functional.cosine_similarity(gradient_of(ours, ids), wanted, dim=0) > 0.999


def test_logits_without_gradients_are_those_of_transformers_to_the_bit(tmp_path):
    ours, plain = load_pair("llama", tmp_path, torch.bfloat16)
    ids = random_ids()
    with torch.no_grad(), ours.disable_adapter(), plain.disable_adapter():
        assert torch.equal(ours(ids).logits, plain(ids).logits)


def test_a_second_backward_pass_over_the_same_step_is_refused(tmp_path):
    """The gradients took the place of what was kept: wrong numbers would be the other outcome."""
    ours, _ = load_pair("llama", tmp_path, torch.float32)
    loss = ours(input_ids=random_ids(), use_cache=False).logits.float().square().mean()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_dropout_takes_the_plain_way(tmp_path, monkeypatch):
    calls = count_calls(monkeypatch)
    device = Device(CpuAccelerator(), torch.float32)
    model = attach_adapter(
        load_base(write_model("llama", tmp_path), device), LoraSettings(rank=4, dropout=0.1), torch.float32, seed=1
    )
    gradient_of(model.train(), random_ids())
    assert (calls["GatedDown"], calls["RmsNorm"]) == (0, 8)


def test_a_checkpoint_stops_in_front_of_what_is_not_needed_again(tmp_path, monkeypatch):
    """The last product of an MLP is computed once; in tiles nothing is computed three times."""
    ours, _ = load_pair("llama", tmp_path, torch.float32)
    mlp = ours.get_base_model().model.layers[1].mlp
    first, last = [], []
    mlp.gate_proj.base_layer.register_forward_hook(lambda *_: first.append(1))
    inner = gated_mlp.gated_down
    monkeypatch.setattr(gated_mlp, "gated_down", lambda *arguments: last.append(1) or inner(*arguments))
    checkpoint_layers(ours, 4)
    for tiled in (False, True):
        first.clear(), last.clear()
        tile_mlps(ours, tiled)
        gradient_of(ours, random_ids())
        assert (len(first), len(last)) == (2, 4)


class SquaredMlp(torch.nn.Module):
    """Laid out as a gated MLP and none."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (torch.nn.Linear(4, 4) for _ in range(3))
        self.act_fn = torch.nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)).square() * self.up_proj(x))


def test_a_module_that_only_looks_like_a_gated_mlp_is_left_alone():
    model = torch.nn.ModuleList([SquaredMlp()])
    assert replace_gated_mlps(model) == 0
    assert "forward" not in vars(model[0])
