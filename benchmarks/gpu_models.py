"""What the benchmarks on a card share: a surrounding like that of a consumer card, and models drawn on the card itself.

Not run on a card yet.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONSUMER = {
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",  # a data-centre card prefers cuDNN's attention
    "CUBLAS_WORKSPACE_CONFIG": ":4096:2:16:8",  # and takes 32 MiB for cuBLAS
    "USE_HUB_KERNELS": "0",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    "GOMP_SPINCOUNT": "0",
}
"""Set before torch is imported, where nobody set it otherwise."""


def environment(**more: str) -> dict[str, str]:
    """Of a measuring process: it finds the package without an installation, and behaves as on a consumer card."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return CONSUMER | dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | more


def run_alone(script: str, arguments: list[str], seconds: float, **more: str) -> tuple[str, str]:
    """The last line that a measuring process prints, and what went wrong; one of the two is empty."""
    command = [sys.executable, script, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=max(1.0, seconds), check=False, env=environment(**more)
        )
    except subprocess.TimeoutExpired:
        return "", f"ran out of time after {seconds:.0f} s"
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return "", f"exit {done.returncode}: {(done.stderr.strip().splitlines() or ['no message'])[-1][:160]}"
    return lines[-1], ""


def draw_base(shape: Any, device: Any, dtype: Any) -> Any:
    """A frozen model of this shape in NF4 with double quantisation, drawn where it will lie, layer by layer.

    Seconds instead of minutes of processor, and no file; random weights of 0.02, norms of 1.
    """
    import bitsandbytes as bnb
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    from qlora_studio.engine.copies import config_for
    from qlora_studio.engine.load import keep_layout

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_for(shape), dtype=dtype, attn_implementation="sdpa")
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer is not head:
            model.set_submodule(name, _draw_four_bit(bnb, layer, device, dtype))
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                drawn = torch.empty(parameter.shape, device=device, dtype=dtype)
                drawn.fill_(1.0) if "norm" in type(module).__name__.lower() else drawn.normal_(std=0.02)
                module._parameters[name] = nn.Parameter(drawn, requires_grad=False)
        if hasattr(module, "inv_freq"):
            module.__init__(config=model.config)  # rotary tables are calculated, not drawn
            module.to(device)
        elif any(buffer is not None and buffer.is_meta for buffer in module._buffers.values()):
            module._buffers.update({n: torch.ones_like(b, device=device) for n, b in module._buffers.items()})
    model.tie_weights()
    model.requires_grad_(False)
    model.is_loaded_in_4bit = True
    model.config.use_cache = False
    keep_layout(model, canonical=True)
    return model


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
