"""The Triton kernels of the gated MLP: their numbers in Triton's interpreter, and that they compile for cards.

Triton is no dependency, and a gigabyte: where it is not installed this is skipped. A card is needed by the last test only.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qlora_studio.engine.kernels.fused_gate import VARIABLE, try_kernels
from qlora_studio.engine.kernels.gated_mlp import ACTIVATIONS

ROOT, CASES = Path(__file__).resolve().parents[3], Path(__file__).with_name("interpreted_gate.py")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: neither the numbers of its kernels for gated MLPs nor that they compile is tested; "
    "only when they are taken is (test_fused_gate.py).",
)
CARDS = (75, 80, 89, 90, 120)
"""Compute capabilities: RTX 20, A100, RTX 40, H100, RTX 50."""


def test_numbers_in_the_interpreter():
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-q", str(CASES)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="in the interpreter nothing is compiled")
@pytest.mark.parametrize("capability", CARDS)
def test_both_kernels_compile_for_cards(capability, tmp_path, monkeypatch):
    """What the interpreter does not see: it runs what the compiler refuses, and cuts off where a card rounds."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from qlora_studio.engine.kernels import triton_gate

    for kernel in (triton_gate._product, triton_gate._gradients):
        for dtype in ("bf16", "fp16", "fp32"):
            for name in ("silu", "gelu_tanh", "gelu"):
                made = compile_for(capability, kernel, dtype, name)
                assert made.asm["cubin"]
                moves = set(re.findall(r"(?:ld|st)\.global\S*", made.asm["ptx"]))
                assert moves == {"ld.global.v4.b32", "st.global.v4.b32"}  # 16 bytes at once
                rounds = set(re.findall(r"cvt\.(r\w)\.", made.asm["ptx"]))
                by_hand = dtype == "fp32" or (dtype, capability) == ("bf16", 75)  # a card without bf16
                assert rounds == (set() if by_hand else {"rn"})  # to the nearest


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no card: that a card computes the same is not tested")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda one: one.name)
def test_a_card_takes_them(activation, dtype, monkeypatch):
    from qlora_studio.engine.kernels import triton_gate

    monkeypatch.delenv(VARIABLE, raising=False)
    assert try_kernels(activation, torch.device("cuda", 0), dtype) is triton_gate


def compile_for(capability, kernel, dtype, name):
    """A kernel for three tensors whose rows begin at multiples of 16 bytes, and four numbers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from qlora_studio.engine.kernels.triton_gate import BLOCK

    fixed = {"name": name, "block": BLOCK}
    free = [one for one in kernel.arg_names if one not in fixed]
    kinds = dict(zip(free, [f"*{dtype}"] * 3 + ["i32"] * 4, strict=True))
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(len(free))}
    source = ASTSource(kernel, kinds | dict.fromkeys(fixed, "constexpr"), constexprs=fixed, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True})
