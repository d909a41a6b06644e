"""Out of memory, recognised in whatever form it comes. `ladder.py` answers it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

import torch

SIGNS: tuple[str, ...] = (
    "out of memory",  # torch on CUDA, ROCm, XPU, MPS; CUDA runtime; bitsandbytes
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",  # the handle's workspace did not fit
    "cudnn_status_alloc_failed",
    "allocation_failed",  # CUDNN_STATUS_INTERNAL_ERROR_{HOST,DEVICE}_ALLOCATION_FAILED
    "cusolver_status_alloc_failed",
    "cusparse_status_alloc_failed",
    "cusparse_status_insufficient_resources",
    "cudaerrormemoryallocation",
    "cuda_error_out_of_memory",
    "can't allocate memory",  # torch on a CPU: DefaultCPUAllocator
    "cannot allocate memory",  # libc: mmap, fork
    "not enough memory",  # torch on a CPU under Windows
    "unable to allocate",  # numpy
    "could not create a memory",  # oneDNN on a CPU
    "std::bad_alloc",
    "bad allocation",  # std::bad_alloc under Windows
    "paging file is too small",  # Windows error 1455
)
"""Parts of messages, in lower case, that mean that memory ran out whatever class the error has."""
SIGN_PAIRS: tuple[tuple[str, str], ...] = (
    ("cudnn", "not_supported"),  # cuDNN finds no plan whose workspace fits
    ("unable to find an engine", "execute this computation"),
)
"""Messages that mean it only where both parts stand together."""
NO_PRIMITIVE = re.compile(r"could not create a primitive(?! descriptor)")
"""oneDNN on a CPU: no room for a kernel's buffers. With "descriptor" behind it, it means an operation it does not know."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error, or one that led to it, says that memory ran out."""
    return any(_shows_out_of_memory(link) for link in _chain(error))


def _shows_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if not isinstance(error, RuntimeError | OSError | ValueError):
        return False
    text = str(error).lower()
    if NO_PRIMITIVE.search(text):
        return True
    return any(sign in text for sign in SIGNS) or any(first in text and second in text for first, second in SIGN_PAIRS)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, without going round in circles."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
