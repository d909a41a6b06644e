"""The engine's half of the doctor, on the machine that runs the test."""

import importlib.metadata
import importlib.util
from types import SimpleNamespace

import pytest
import torch

from qlora_studio.core.doctor import Check, install_torch
from qlora_studio.engine import doctor
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.doctor import _attempt, _check_attention, _check_triton, check_engine
from qlora_studio.engine.load import Device


def test_every_check_speaks_and_the_kernels_multiply():
    checks = {check.name: check for check in check_engine(cards=int(torch.cuda.is_available()))}
    assert list(checks) == ["Packages", "torch", "4-bit kernels", "Number format", "Attention", "Triton"]
    assert {name: check.state for name, check in checks.items() if check.state == "bad"} == {}
    assert checks["4-bit kernels"].finding.startswith("bitsandbytes ")
    if not torch.cuda.is_available():
        assert "plain" in checks["Attention"].finding


def test_a_card_without_a_build_for_it_is_bad_news():
    if torch.cuda.is_available():
        return
    (found,) = [check for check in check_engine(cards=1) if check.name == "torch"]
    assert (found.state, found.remedy) == (
        "bad",
        install_torch(torch.__version__),
    )


def test_a_kernel_that_fails_says_what_it_said():
    def broken():
        raise RuntimeError("the results differ by 93.0%\nsecond line")

    assert _attempt("4-bit kernels", broken, "Install it again.") == Check(
        name="4-bit kernels",
        state="bad",
        finding="They do not work: the results differ by 93.0%.",
        remedy="Install it again.",
    )


@pytest.mark.parametrize(
    ("grouped", "equal", "state", "finding"),
    [
        (("flash", "plain"), (), "ok", "Attention kernels: flash, plain."),
        (
            ("plain",),
            ("memory-efficient", "plain"),
            "ok",
            "Attention kernels: memory-efficient, plain. None is for grouped queries, so keys and values are repeated "
            "for every head.",
        ),
        (("plain",), ("plain",), "warn", "Attention kernels: plain."),
    ],
    ids=["flash", "no flash", "plain alone"],
)
def test_attention_is_tried_with_unequal_heads(monkeypatch, grouped, equal, state, finding):
    answers = {True: grouped, False: equal}

    class Pretended(CpuAccelerator):
        def attention_kernels(self, dtype, *, grouped):
            return answers[grouped]

    monkeypatch.setattr("qlora_studio.engine.doctor.choose_device", lambda: Device(Pretended(), torch.float32))
    found = _check_attention()
    assert (found.state, found.finding) == (state, finding)


def test_a_build_without_kernels_for_the_card_is_bad_news(monkeypatch):
    class Newer(CpuAccelerator):
        name = "cuda"

        def find_build_problem(self):
            return "torch is built for older cards."

    monkeypatch.setattr("qlora_studio.engine.doctor.choose_accelerator", Newer)
    (found,) = [check for check in check_engine(cards=1) if check.name == "torch"]
    assert (found.state, found.finding) == ("bad", "torch is built for older cards.")
    assert found.remedy == "Install a torch that is built for this card."


OURS = "The elementwise work of gated MLPs"


@pytest.mark.parametrize(
    ("there", "answers", "finding"),
    [
        (True, {}, f"Triton 3.9.0. {OURS} takes one kernel each way."),
        (
            True,
            {"gelu": "Triton's kernels give other numbers"},
            f"Triton 3.9.0. {OURS} with gelu takes torch's own kernels: Triton's kernels give other numbers.",
        ),
        (
            False,
            dict.fromkeys(("silu", "gelu_tanh", "gelu"), "triton is not installed"),
            f"No Triton. {OURS} takes torch's own kernels: triton is not installed.",
        ),
        (
            True,
            dict.fromkeys(("silu", "gelu_tanh", "gelu"), "Triton does not work here: Failed to find C compiler."),
            f"Triton 3.9.0. {OURS} takes torch's own kernels: Triton does not work here: Failed to find C compiler.",
        ),
        (
            True,
            {"silu": torch.OutOfMemoryError()},
            f"Triton 3.9.0. {OURS} with silu takes torch's own kernels: the card has no memory left to try Triton's.",
        ),
    ],
    ids=["taken", "one refused", "missing", "no compiler", "no memory"],
)
def test_triton_is_tried_on_a_card(monkeypatch, there, answers, finding):
    def answer(activation, device, dtype):
        found = answers.get(activation.name, object())
        if isinstance(found, Exception):
            raise found
        return found

    pretend_triton(monkeypatch, there)
    monkeypatch.setattr(doctor, "FUSED_ON", ("cpu",))
    monkeypatch.setattr(doctor, "try_kernels", answer)
    assert _check_triton() == Check(name="Triton", state="ok", finding=finding)


@pytest.mark.parametrize(("there", "word"), [(True, "Triton 3.9.0"), (False, "No Triton")])
def test_triton_is_not_tried_on_a_processor(monkeypatch, there, word):
    pretend_triton(monkeypatch, there)
    monkeypatch.setattr(doctor, "choose_device", lambda: Device(CpuAccelerator(), torch.float32))
    assert _check_triton().finding == f"{word}; nothing here needs it."


def pretend_triton(monkeypatch, there):
    metadata = {"packages_distributions": lambda: {"triton": ["pytorch-triton"]}, "version": lambda name: "3.9.0"}
    for name, function in metadata.items():
        monkeypatch.setattr(importlib.metadata, name, function)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)


@pytest.mark.parametrize(
    ("differences", "state", "finding"),
    [
        ((0.0, 0.5), "bad", "They do not work: the results differ by 50.0%."),
        ((0.3, 0.0), "bad", "They do not work: the results differ by 30.0%."),
        ((doctor.TOLERANCE, doctor.TOLERANCE), "ok", "bitsandbytes {} multiplies in NF4 on the processor."),
    ],
    ids=["the gradient is wrong", "the product is wrong", "rounding"],
)
def test_the_worse_of_product_and_gradient_decides_whether_four_bits_work(monkeypatch, differences, state, finding):
    left = list(differences)
    monkeypatch.setattr(doctor, "_difference", lambda found, wanted: left.pop(0))
    monkeypatch.setattr(doctor, "choose_device", lambda: Device(CpuAccelerator(), torch.float32))
    found = doctor._check_four_bit()
    assert (found.name, found.state) == ("4-bit kernels", state) and left == []
    assert found.finding == finding.format(importlib.metadata.version("bitsandbytes"))


def test_a_difference_is_a_share_of_the_largest_value():
    wanted = torch.tensor([[2.0, -8.0], [1.0, 0.0]])
    assert doctor._difference(torch.tensor([[2.0, -8.0], [-1.0, 1.0]]), wanted) == 0.25
    assert doctor._difference(wanted.bfloat16(), wanted) == 0


@pytest.mark.parametrize(
    ("name", "cards", "cuda", "state", "finding"),
    [
        ("cuda", 1, "13.0", "ok", "torch 2.9 uses CUDA 13.0 on a card."),
        ("cpu", 0, None, "ok", "torch 2.9 runs on the processor."),
        ("cpu", 1, None, "bad", "torch 2.9 is built for processors only, but there is a card."),
        ("cpu", 1, "13.0", "bad", "torch 2.9 wants CUDA 13.0, which the driver does not give."),
    ],
)
def test_what_torch_was_built_for_is_held_against_what_the_driver_sees(monkeypatch, name, cards, cuda, state, finding):
    monkeypatch.setattr(torch, "__version__", "2.9")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    accelerator = SimpleNamespace(name=name, label="a card", find_build_problem=lambda: None)
    monkeypatch.setattr(doctor, "choose_accelerator", lambda: accelerator)
    found = doctor._check_build(cards)
    assert (found.name, found.state, found.finding) == ("torch", state, finding)
    assert bool(found.remedy) == (state == "bad")


@pytest.mark.parametrize(
    ("dtype", "finding"),
    [
        (torch.bfloat16, "Computes in bf16."),
        (torch.float16, "Computes in fp16."),
        (torch.float32, "Computes in fp32: this processor has no fast bf16."),
    ],
)
def test_the_number_format_is_the_device_s(monkeypatch, dtype, finding):
    monkeypatch.setattr(doctor, "choose_device", lambda: Device(CpuAccelerator(), dtype))
    assert doctor._check_format() == Check(name="Number format", state="ok", finding=finding)


def test_a_triton_that_no_package_claims_is_of_an_unknown_version(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "packages_distributions", dict)
    assert doctor._triton_version() == "of an unknown version"
