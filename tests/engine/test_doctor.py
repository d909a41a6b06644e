"""The engine's half of the doctor, on the machine that runs the test."""

import torch

from qlora_studio.core.doctor import Check, install_torch
from qlora_studio.engine.doctor import _attempt, check_engine


def test_every_check_speaks_and_the_kernels_multiply():
    checks = {check.name: check for check in check_engine(cards=int(torch.cuda.is_available()))}
    assert list(checks) == ["Packages", "torch", "4-bit kernels", "Number format", "Attention", "Triton"]
    assert {name: check.state for name, check in checks.items() if check.state == "bad"} == {}
    assert checks["4-bit kernels"].says.startswith("bitsandbytes ")
    if not torch.cuda.is_available():
        assert "plain" in checks["Attention"].says


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
        says="They do not work: the results differ by 93.0%.",
        remedy="Install it again.",
    )
