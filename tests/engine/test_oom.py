"""Every known form of out-of-memory is recognised, and nothing else is."""

import errno

import pytest
import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.oom import is_out_of_memory

FORMS = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "accelerator": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cublas handle": RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cudnn 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "cudnn plan": RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if ..."),
    "engine": RuntimeError("GET was unable to find an engine to execute this computation"),
    "bitsandbytes": RuntimeError("Error out of memory at line 113 in file /src/csrc/ops.cu"),
    "driver": RuntimeError("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY"),
    "rocm": RuntimeError("HIP out of memory. Tried to allocate 256.00 MiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
    "cpu windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes."),
    "onednn": RuntimeError("could not create a primitive"),
    "onednn memory": RuntimeError("could not create a memory object"),
    "python": MemoryError(),
    "numpy": MemoryError("Unable to allocate 7.45 GiB for an array"),
    "c++": RuntimeError("std::bad_alloc"),
    "libc": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "windows": OSError("The paging file is too small for this operation to complete. (os error 1455)"),
}
OTHERS = {
    "shape": RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    "disk": OSError(errno.ENOSPC, "No space left on device"),
    "index": IndexError("out of memory"),
    "assert": RuntimeError("CUDA error: device-side assert triggered"),
    "onednn descriptor": RuntimeError("could not create a primitive descriptor for a matmul primitive"),
    "shared memory": RuntimeError("out of resource: shared memory, Required: 98304, Hardware limit: 65536"),
    "person": StudioError("The model is out of memory of its licence."),
}


@pytest.mark.parametrize("error", FORMS.values(), ids=FORMS)
def test_every_form_is_recognised(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS.values(), ids=OTHERS)
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)


def test_a_real_failed_allocation_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_the_cause_counts_and_a_hidden_context_does_not():
    def wrapped(hide):
        try:
            try:
                raise MemoryError
            except MemoryError as error:
                raise StudioError("The model cannot be loaded.") from (None if hide else error)
        except StudioError as error:
            return error

    assert is_out_of_memory(wrapped(hide=False))
    assert not is_out_of_memory(wrapped(hide=True))


def test_a_circle_of_causes_ends():
    first, second = RuntimeError("one"), RuntimeError("two")
    first.__cause__, second.__cause__ = second, first
    assert not is_out_of_memory(first)
