"""`act(gate) · up` and its gradients, one Triton kernel each way. Imported only where Triton is: `fused_gate` decides.

Read in any of the engine's formats, computed in fp32, rounded once. Rows may lie apart: gate and up can be halves of one
matrix. Written for cards, and launched on the one that is current, as a process here has only one; on a processor only
Triton's interpreter runs them.

The kernels' arguments have no annotations but `tl.constexpr`: Triton would compile those as well, and fail.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024
"""Numbers of a row for one program: eight a thread, 16 bytes in 16 bit, with Triton's four warps."""


def product(gate: torch.Tensor, up: torch.Tensor, name: str) -> torch.Tensor:
    """`act(gate) · up` for both (rows, inner) as a new tensor; `name` is that of an `Activation`."""
    out = gate.new_empty(gate.shape)
    strides = out.stride(0), gate.stride(0), up.stride(0)
    _product[_grid(gate)](out, gate, up, gate.shape[1], *strides, name, BLOCK, enable_fp_fusion=True)
    return out


def gradients_(inside: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, name: str) -> None:
    """The gradients of gate and up in their place, from `inside`, that of their product; all (rows, inner)."""
    strides = inside.stride(0), gate.stride(0), up.stride(0)
    _gradients[_grid(gate)](inside, gate, up, gate.shape[1], *strides, name, BLOCK, enable_fp_fusion=True)


def _grid(gate: torch.Tensor) -> tuple[int, int]:
    rows, inner = gate.shape
    return rows, -(-inner // BLOCK)  # the first may be two billion, the second 65,535


@triton.jit
def _act(x, name: tl.constexpr):
    """The activation of x, in fp32."""
    if name == "gelu":
        return x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    if name == "gelu_tanh":  # (1 + tanh(z)) / 2 = sigmoid(2z), which loses nothing where z is far below zero
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return x * tl.sigmoid(x)


@triton.jit
def _slope(x, name: tl.constexpr):
    """The derivative of the activation at x, in fp32."""
    if name == "gelu":
        return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    if name == "gelu_tanh":
        s = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        return s + x * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    s = tl.sigmoid(x)
    return s + x * s * (1.0 - s)


@triton.jit
def _product(out, gate, up, inner, out_stride, gate_stride, up_stride, name: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    there = column < inner
    x = tl.load(gate + row * gate_stride + column, mask=there, other=0.0).to(tl.float32)
    y = tl.load(up + row * up_stride + column, mask=there, other=0.0).to(tl.float32)
    found = _act(x, name) * y
    tl.store(out + row * out_stride + column, found.to(out.dtype.element_ty), mask=there)


@triton.jit
def _gradients(inside, gate, up, inner, inside_stride, gate_stride, up_stride, name: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    there = column < inner
    of_gate, of_up = gate + row * gate_stride + column, up + row * up_stride + column
    x = tl.load(of_gate, mask=there, other=0.0).to(tl.float32)
    y = tl.load(of_up, mask=there, other=0.0).to(tl.float32)
    z = tl.load(inside + row * inside_stride + column, mask=there, other=0.0).to(tl.float32)
    tl.store(of_up, (_act(x, name) * z).to(up.dtype.element_ty), mask=there)
    tl.store(of_gate, (z * y * _slope(x, name)).to(gate.dtype.element_ty), mask=there)
