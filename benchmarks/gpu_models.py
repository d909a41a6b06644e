"""Models for the benchmarks on a card: drawn on the card itself, planned for, with an adapter, or written to a folder.

Not run on a card yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TINY = {"layers": 2, "vocab": 512, "hidden": 128, "intermediate": 256, "heads": 4, "kv_heads": 2, "head_dim": 32}
"""A shape of the same family for rehearsals; no figure of it means anything."""
SEED = 0


def shape_of(model: str, rehearse: bool) -> Any:
    """The shape of a model of the reference table; for a rehearsal a tiny one of its family."""
    from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

    shape = REFERENCE_SHAPES[model]
    if not rehearse:
        return shape
    rotary = shape.rotary_dim and shape.rotary_dim * TINY["head_dim"] // shape.head_dim
    return shape.model_copy(update={**TINY, "rotary_dim": rotary, "sliding_layers": min(1, shape.sliding_layers)})


def draw_base(shape: Any, device: Any, dtype: Any, *, embeddings_on_host: bool = False) -> Any:
    """A frozen model of this shape in NF4 with double quantisation, drawn where it will lie, layer by layer.

    Seconds instead of minutes of processor, and no file; random weights of 0.02, norms of 1, the same in every process:
    a processor's random numbers begin elsewhere in each. With `embeddings_on_host` the input embeddings never touch the
    card.
    """
    import bitsandbytes as bnb
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    from qlora_studio.engine.copies import config_for
    from qlora_studio.engine.host_embeddings import look_tokens_up_on_host
    from qlora_studio.engine.load import keep_layout

    torch.manual_seed(SEED)  # of the card as well
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_for(shape), dtype=dtype, attn_implementation="sdpa")
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer is not head:
            model.set_submodule(name, _draw_four_bit(bnb, layer, device, dtype))
    for module in model.modules():
        place = torch.device("cpu") if embeddings_on_host and module is embeddings else device
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                drawn = torch.empty(parameter.shape, device=place, dtype=dtype)
                drawn.fill_(1.0) if "norm" in type(module).__name__.lower() else drawn.normal_(std=0.02)
                module._parameters[name] = nn.Parameter(drawn, requires_grad=False)
        if "rotary" in type(module).__name__.lower():
            module.__init__(config=model.config)  # rotary tables are calculated, not drawn
            module.to(device)
        elif any(buffer is not None and buffer.is_meta for buffer in module._buffers.values()):
            module._buffers.update({n: torch.ones_like(b, device=device) for n, b in module._buffers.items()})
    model.tie_weights()
    model.requires_grad_(False)
    model.is_loaded_in_4bit = True
    model.config.use_cache = False
    keep_layout(model, canonical=True)
    if embeddings_on_host:
        look_tokens_up_on_host(model, device)
    return model


def plan_for(shape: Any, cap: int, *, rehearse: bool, **changes: Any) -> tuple[Any, Any]:
    """Settings of a run and its plan for a card of this many GiB; in a rehearsal for as much of the computer's memory."""
    from qlora_studio.core.config import TrainConfig
    from qlora_studio.planner.fit import make_plan
    from qlora_studio.planner.tables import imagine_machine

    values = {"evaluation.before": False, "optim.learning_rate": 2e-4, **changes}
    machine = imagine_machine(cap)
    if rehearse:
        values["memory.budget_gib"] = float(cap)
        machine = machine.model_copy(update={"cards": ()})
    config = TrainConfig().replace(values)
    return config, make_plan(config, shape, machine)


def network_for(shape: Any, plan: Any, lora: Any) -> Any:
    """A drawn model with an adapter, as the plan wants it: in its formats, offloaded, in tiles; nothing is checkpointed."""
    from qlora_studio.engine import load
    from qlora_studio.engine.accelerator.formats import DTYPES
    from qlora_studio.engine.kernels.replace import tile_mlps

    device = load.choose_device(plan.settings.compute)
    on_host = plan.offload in ("embeddings", "both") and device.type != "cpu"
    base = draw_base(shape, device.torch, device.dtype, embeddings_on_host=on_host)
    network = load.attach_adapter(base, lora, DTYPES[plan.adapter_precision], SEED)
    tile_mlps(network, plan.tiled_mlp)
    return network.train()


def _draw_four_bit(bnb: Any, layer: Any, device: Any, dtype: Any) -> Any:
    import torch

    biased = layer.bias is not None
    made = bnb.nn.Linear4bit(layer.in_features, layer.out_features, biased, dtype, True, "nf4", device="meta")
    weight = torch.empty(layer.weight.shape, device=device, dtype=dtype).normal_(std=0.02)
    made.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=made
    ).to(device)
    if biased:
        made.bias = torch.nn.Parameter(torch.zeros(layer.out_features, device=device, dtype=dtype), requires_grad=False)
    return made


def write_base(shape: Any, device: Any, folder: Path) -> None:
    """Writes a drawn model in 4 bits as transformers loads it, with a tokenizer of one word, for who loads from a folder."""
    import torch
    from safetensors.torch import save_file
    from transformers import BitsAndBytesConfig

    base = draw_base(shape, device, torch.bfloat16)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in base.state_dict().items()}
    if shape.tied_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    base.config.architectures = [type(base).__name__]
    base.config.dtype = torch.bfloat16
    base.config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base.config.save_pretrained(folder)
    one_word_tokenizer().save_pretrained(folder)


def one_word_tokenizer() -> Any:
    """What a trainer wants to be given though it never reads a text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="a", bos_token="b", eos_token="c", unk_token="a")
