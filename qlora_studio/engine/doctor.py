"""What only torch can tell about the machine: its build, the 4-bit kernels, number formats, attention, Triton."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable

import torch

from qlora_studio.core.doctor import Check, install_torch
from qlora_studio.engine.accelerator.attention import has_fused
from qlora_studio.engine.accelerator.choose import choose_accelerator
from qlora_studio.engine.kernels.fused_gate import FUSED_ON, try_kernels
from qlora_studio.engine.kernels.gated_mlp import ACTIVATIONS
from qlora_studio.engine.load import choose_device

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors")
TOLERANCE = 0.05
"""Largest difference of a 4-bit product from the same product with the weights taken out of their four bits."""


def check_engine(cards: int) -> list[Check]:
    """Everything that needs torch. `cards` is how many cards the driver listed."""
    return [
        _check_versions(),
        _check_build(cards),
        _check_four_bit(),
        _check_format(),
        _check_attention(),
        _check_triton(),
    ]


def _check_versions() -> Check:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return Check(name="Packages", state="ok", finding=f"{versions}.")


def _check_build(cards: int) -> Check:
    """Whether torch was built for the card that the driver sees."""
    accelerator = choose_accelerator()
    if (problem := accelerator.find_build_problem()) is not None:
        return Check(name="torch", state="bad", finding=problem, remedy="Install a torch that is built for this card.")
    if accelerator.name == "cuda":
        finding = f"torch {torch.__version__} uses CUDA {torch.version.cuda} on {accelerator.label}."
        return Check(name="torch", state="ok", finding=finding)
    if not cards:
        return Check(name="torch", state="ok", finding=f"torch {torch.__version__} runs on the processor.")
    if torch.version.cuda is None:
        return Check(
            name="torch",
            state="bad",
            finding=f"torch {torch.__version__} is built for processors only, but there is a card.",
            remedy=install_torch(torch.__version__),
        )
    return Check(
        name="torch",
        state="bad",
        finding=f"torch {torch.__version__} wants CUDA {torch.version.cuda}, which the driver does not give.",
        remedy="Update the NVIDIA driver, or install a torch built for an older CUDA.",
    )


def _check_four_bit() -> Check:
    """Multiplies with a matrix in four bits, forward and backward, and compares with the same without."""
    return _attempt("4-bit kernels", _multiply_in_four_bits, "Install bitsandbytes again: its kernels do not run here.")


def _multiply_in_four_bits() -> str:
    import bitsandbytes as bnb

    device = choose_device()
    weight = torch.linspace(-1, 1, 256 * 128, dtype=device.dtype, device=device.torch).view(128, 256)
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    x = torch.linspace(-1, 1, 64 * 256, dtype=device.dtype, device=device.torch).view(64, 256).requires_grad_()
    product = bnb.matmul_4bit(x, packed.t(), quant_state=state)
    product.float().sum().backward()
    plain = bnb.functional.dequantize_4bit(packed, state)
    wanted, gradient = x.detach() @ plain.t(), plain.sum(0).expand(64, -1)
    worst = max(_difference(product.detach(), wanted), _difference(x.grad, gradient))
    if worst > TOLERANCE:
        raise RuntimeError(f"the results differ by {worst:.1%}")
    return (
        f"bitsandbytes {bnb.__version__} multiplies in NF4 on the {'card' if device.type == 'cuda' else 'processor'}."
    )


def _difference(found: torch.Tensor | None, wanted: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    assert found is not None
    return float((found.float() - wanted.float()).abs().max() / wanted.float().abs().max())


def _check_format() -> Check:
    device = choose_device()
    words = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[device.dtype]
    if device.dtype == torch.float32:
        finding = "Computes in fp32: this processor has no fast bf16."
    else:
        finding = f"Computes in {words}."
    return Check(name="Number format", state="ok", finding=finding)


def _check_attention() -> Check:
    """Which attention kernels run here, tried on a few tokens with unequal heads, as most models have them."""
    device = choose_device()
    grouped = device.accelerator.attention_kernels(device.dtype, grouped=True)
    if has_fused(grouped):
        return Check(name="Attention", state="ok", finding=f"Attention kernels: {', '.join(grouped)}.")
    there = device.accelerator.attention_kernels(device.dtype, grouped=False)
    finding = f"Attention kernels: {', '.join(there) or 'none'}."
    if has_fused(there):
        finding += " None is for grouped queries, so keys and values are repeated for every head."
        return Check(name="Attention", state="ok", finding=finding)
    remedy = "Long rows will be slow and take more memory; a newer card or torch has better kernels."
    return Check(name="Attention", state="warn", finding=finding, remedy=remedy)


def _check_triton() -> Check:
    """Whether Triton is there and what it is used for: nothing needs it, so nothing here is bad news."""
    found = f"Triton {_triton_version()}" if importlib.util.find_spec("triton") else "No Triton"
    device = choose_device()
    if device.type not in FUSED_ON:
        return Check(name="Triton", state="ok", finding=f"{found}; nothing here needs it.")
    reasons: dict[str, str] = {}
    for activation in ACTIVATIONS:
        try:
            kernels = try_kernels(activation, device.torch, device.dtype)
        except torch.OutOfMemoryError:
            kernels = "the card has no memory left to try Triton's"
        if isinstance(kernels, str):
            reasons[activation.name] = kernels
    if not reasons:
        work = "The elementwise work of gated MLPs takes one kernel each way."
        return Check(name="Triton", state="ok", finding=f"{found}. {work}")
    where = "" if len(reasons) == len(ACTIVATIONS) else f" with {' and '.join(reasons)}"
    work = f"The elementwise work of gated MLPs{where} takes torch's own kernels"
    return Check(
        name="Triton",
        state="ok",
        finding=f"{found}. {work}: {'; '.join(sorted(set(reasons.values()))).removesuffix('.')}.",
    )


def _triton_version() -> str:
    """Of whichever package brings it: builds for other systems have names of their own."""
    names = importlib.metadata.packages_distributions().get("triton", [])
    return importlib.metadata.version(names[0]) if names else "of an unknown version"


def _attempt(name: str, work: Callable[[], str], remedy: str) -> Check:
    """A check that runs a kernel: what it says, or what went wrong."""
    try:
        return Check(name=name, state="ok", finding=work())
    except (RuntimeError, OSError, ImportError, AttributeError, AssertionError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Check(name=name, state="bad", finding=f"They do not work: {first}.", remedy=remedy)
