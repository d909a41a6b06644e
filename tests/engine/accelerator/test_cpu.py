"""The processor as an accelerator."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import psutil
import pytest
import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.accelerator import cpu
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.accelerator.cuda import CudaAccelerator


def test_the_peak_is_what_this_process_has_had_resident():
    before = CpuAccelerator().peak()
    block = bytearray(before.reserved_bytes // 2 + (64 << 20))
    block[::4096] = b"x" * len(block[::4096])
    after = CpuAccelerator().peak()
    assert after.allocated_bytes == after.reserved_bytes
    assert after.reserved_bytes >= psutil.Process().memory_info().rss - (16 << 20) > before.reserved_bytes / 2
    del block
    assert CpuAccelerator().peak().reserved_bytes >= after.reserved_bytes


def test_the_random_state_comes_back():
    accelerator = CpuAccelerator()
    states = accelerator.random_state()
    first = torch.rand(3)
    accelerator.set_random_state(states)
    assert torch.equal(torch.rand(3), first)
    accelerator.set_random_state({"cuda": torch.zeros(1)})  # of a checkpoint from a card


def test_fp16_is_refused_by_field():
    with pytest.raises(StudioError, match="fp16 is not for processors") as caught:
        CpuAccelerator().choose_dtype("fp16")
    assert caught.value.problems[0].field == "model.compute_dtype"


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bf16_where_the_processor_multiplies_in_it(monkeypatch, fast, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert CpuAccelerator().choose_dtype("auto") == dtype
    assert CpuAccelerator().choose_dtype("bf16") == torch.bfloat16


@pytest.mark.parametrize("grouped", [False, True])
def test_attention_kernels_are_those_that_run(grouped):
    kernels = CpuAccelerator().attention_kernels(torch.float32, grouped=grouped)
    assert "plain" in kernels and "cuDNN" not in kernels


@pytest.mark.parametrize("accelerator", [CpuAccelerator(), CudaAccelerator()], ids=["cpu", "cuda"])
def test_what_refers_to_itself_is_given_back(accelerator, monkeypatch):
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: None)

    class Knot:
        pass

    one = Knot()
    one.itself, gone = one, weakref.ref(one)
    gc.disable()
    try:
        del one
        assert gone() is not None
        accelerator.release()
        assert gone() is None
    finally:
        gc.enable()


def test_glibc_is_told_to_keep_large_buffers_and_gives_back_what_is_free(monkeypatch):
    calls = []
    libc = SimpleNamespace(
        mallopt=lambda *a: calls.append(("mallopt", *a)), malloc_trim=lambda *a: calls.append(("malloc_trim", *a))
    )
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(cpu.sys, "platform", "linux")
    CpuAccelerator().prepare()
    CpuAccelerator().release()
    assert calls == [("mallopt", -3, 1 << 30), ("mallopt", -1, 512 << 20), ("malloc_trim", 0)]


@pytest.mark.parametrize("platform", ["darwin", "win32", "linux"])
def test_another_c_library_is_left_alone(monkeypatch, platform):
    def fail(name):
        raise OSError(name)

    monkeypatch.setattr(cpu.sys, "platform", platform)
    if platform == "linux":  # musl has no such function
        monkeypatch.setattr(cpu.ctypes, "CDLL", lambda name: SimpleNamespace())
        assert cpu._glibc() is None
    monkeypatch.setattr(cpu.ctypes, "CDLL", fail)
    assert cpu._glibc() is None
    CpuAccelerator().prepare()
    CpuAccelerator().release()


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("linux", 1024)])
def test_the_system_counts_in_bytes_or_kibibytes(monkeypatch, platform, unit):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(cpu.sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=7000))
    assert CpuAccelerator().peak().reserved_bytes == 7000 * unit


def test_a_processor_is_always_there_pins_nothing_and_gives_memory_back_every_fourth_step():
    assert CpuAccelerator.is_available() is True
    assert (CpuAccelerator.name, CpuAccelerator.device, CpuAccelerator.pins_memory) == (
        "cpu",
        torch.device("cpu"),
        False,
    )
    assert CpuAccelerator.release_every_steps == 4
