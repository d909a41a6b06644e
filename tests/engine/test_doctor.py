"""The engine's half of the doctor, on the machine that runs the test."""

import importlib.metadata
import importlib.util

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
