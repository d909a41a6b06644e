"""What is asked of `torch.cuda`, on a card that is only pretended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import GIB
from qlora_studio.engine.accelerator import cuda
from qlora_studio.engine.accelerator.cuda import CudaAccelerator, has_kernels, share_of_card
from qlora_studio.engine.accelerator.protocol import Peak

CARD = torch.device("cuda", 0)


@pytest.mark.parametrize(("budget", "total", "share"), [(6, 8, 0.75), (8, 8, 1.0), (12, 8, 1.0), (1, 24, 1 / 24)])
def test_the_cap_is_the_budget_as_a_share_of_the_card(budget, total, share):
    assert share_of_card(budget * GIB, total * GIB) == share


def test_a_budget_of_one_byte_is_one():
    assert share_of_card(1, 4) == 0.25


@pytest.mark.parametrize("budget", [0, -GIB])
def test_a_budget_below_what_cuda_itself_takes_is_refused(budget):
    with pytest.raises(StudioError, match=r"less than CUDA itself takes, so no tensor would fit\.") as caught:
        share_of_card(budget, 8 * GIB)
    assert caught.value.problems[0].field == "memory.budget_gib"


@pytest.fixture
def card(monkeypatch):
    """A pretended card: every call that the accelerator makes, in order, with its arguments."""
    calls: list[tuple] = []
    answers = {
        "get_device_properties": SimpleNamespace(total_memory=8 * GIB),
        "max_memory_allocated": 3,
        "max_memory_reserved": 5,
        "get_rng_state": torch.tensor([7], dtype=torch.uint8),
        "get_device_capability": (7, 5),
        "get_device_name": "NVIDIA GeForce RTX 2060",
    }
    quiet = ("set_per_process_memory_fraction", "reset_peak_memory_stats", "empty_cache", "synchronize")
    for name in (*answers, *quiet, "set_rng_state"):
        answer = answers.get(name)

        def call(*arguments, name=name, answer=answer):
            calls.append((name, *arguments))
            return answer

        monkeypatch.setattr(torch.cuda, name, call)
    return calls


def test_the_cap_is_set_on_the_card(card):
    CudaAccelerator().cap(2 * GIB)
    assert card == [("get_device_properties", CARD), ("set_per_process_memory_fraction", 0.25, CARD)]


def test_the_peak_tells_allocated_from_reserved(card):
    assert CudaAccelerator().peak() == Peak(allocated_bytes=3, reserved_bytes=5)


def test_the_random_state_of_card_and_processor_go_together(card):
    accelerator = CudaAccelerator()
    states = accelerator.random_state()
    assert list(states) == ["cpu", "cuda"] and torch.equal(states["cpu"], torch.get_rng_state())
    torch.rand(1)
    accelerator.set_random_state(states)
    assert torch.equal(torch.get_rng_state(), states["cpu"])
    assert card[-1][0] == "set_rng_state" and card[-1][2] == CARD and torch.equal(card[-1][1], states["cuda"])


def test_a_checkpoint_of_a_processor_has_no_state_for_the_card(card):
    CudaAccelerator().set_random_state({"cpu": torch.get_rng_state()})
    assert card == []


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((12, 0), torch.bfloat16)]
)
def test_auto_is_bf16_from_ampere_on(card, monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert CudaAccelerator().choose_dtype("auto") == dtype
    assert CudaAccelerator().choose_dtype("fp32") == torch.float32


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((7, 5), ["sm_75", "sm_80", "sm_120"], True),
        ((8, 9), ["sm_75", "sm_80", "sm_86", "sm_120"], True),
        ((6, 1), ["sm_75", "sm_80"], False),
        ((8, 0), ["sm_86"], False),
        ((12, 0), ["sm_75", "sm_80", "sm_90a"], False),
        ((12, 0), ["sm_80", "compute_90"], True),
        ((8, 6), [], False),
    ],
)
def test_kernels_run_on_their_major_version_and_what_the_driver_compiles_on_every_later_one(capability, built, runs):
    assert has_kernels(capability, built) is runs


def test_a_build_without_kernels_for_the_card_is_named(card, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    assert CudaAccelerator().find_build_problem() == (
        f"torch {torch.__version__} is built for sm_80, sm_90, and NVIDIA GeForce RTX 2060 has compute capability 7.5."
    )
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    assert CudaAccelerator().find_build_problem() is None


def test_what_is_done_to_the_card_is_done(card):
    accelerator = CudaAccelerator()
    accelerator.reset_peak()
    accelerator.release()
    accelerator.synchronise()
    synchronised = ("synchronize", CARD)
    assert card == [("reset_peak_memory_stats", CARD), synchronised, ("empty_cache",), synchronised]
    assert accelerator.label == "NVIDIA GeForce RTX 2060"


def test_copies_run_behind_what_was_asked_for_and_what_waits_waits_for_them(monkeypatch):
    calls = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            calls.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event):
            calls.append(f"{self.name} waits for the {event}")

        def record_event(self):
            return f"event of {self.name}"

        def __enter__(self):
            calls.append(f"on {self.name}")

        def __exit__(self, *_):
            calls.append(f"off {self.name}")

    here, made = [Stream("first")], []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: (made.append(device), Stream("side"))[1])
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: here[0])
    accelerator = CudaAccelerator()
    wait = accelerator.run_beside(lambda: calls.append("copies"))
    assert calls == ["side waits for first", "on side", "copies", "off side"]
    calls.clear()
    here[0] = Stream("second")
    wait()
    assert calls == ["second waits for the event of side"]
    accelerator.run_beside(lambda: None)
    assert made == [CARD], "one stream for all copies: what comes back was there before"


@pytest.mark.parametrize("there", [True, False])
def test_a_card_is_there_where_cuda_says_so(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert CudaAccelerator.is_available() is there


def test_a_card_is_the_first_one_pins_memory_and_never_gives_any_back_by_itself(monkeypatch):
    assert (CudaAccelerator.name, CudaAccelerator.device, CudaAccelerator.pins_memory) == ("cuda", CARD, True)
    assert CudaAccelerator.release_every_steps is None
    asked = []
    monkeypatch.setattr(cuda, "find_kernels", lambda *a, **named: asked.append((a, named)) or ("flash",))
    assert CudaAccelerator().attention_kernels(torch.float16, grouped=True) == ("flash",)
    assert asked == [((CARD, torch.float16), {"grouped": True})]
