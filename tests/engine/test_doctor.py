"""The engine's half of the doctor, on the machine that runs the test."""

import pytest
import torch

from qlora_studio.core.doctor import Check, install_torch
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.doctor import _attempt, _check_attention, check_engine
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
