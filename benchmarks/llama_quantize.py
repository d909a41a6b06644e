"""llama-quantize's command line over llama.cpp's own library, for where no package brings the program.

    python benchmarks/llama_quantize.py LIBLLAMA.so [--imatrix MATRIX.gguf] IN.gguf OUT.gguf TYPE THREADS

The program does no more than call `llama_model_quantize`. The npm package @node-llama-cpp/linux-x64 brings the library
(`npm pack @node-llama-cpp/linux-x64`, in `bins/`). Loads no torch, so that its memory can be compared.
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path

import gguf
import numpy as np

TYPES = {
    name: getattr(gguf.LlamaFileType, f"MOSTLY_{name}") for name in ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16", "BF16")
}
SETTINGS_BYTES, IMATRIX_AT = 1024, 24
"""Larger than the structure of any version, and where it holds the importance matrix (include/llama.h)."""


class Settings(ctypes.Structure):
    _fields_ = (("nthread", ctypes.c_int32), ("ftype", ctypes.c_int32), ("rest", ctypes.c_uint8 * (SETTINGS_BYTES - 8)))


class Columns(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


def read_matrix(file: Path) -> dict[str, np.ndarray]:
    """How much each column counts, by tensor: sums of squares over tokens, divided by their number."""
    tensors = {tensor.name: np.array(tensor.data, dtype=np.float32).ravel() for tensor in gguf.GGUFReader(file).tensors}
    ends = ".in_sum2"
    return {
        name.removesuffix(ends): sums / tensors[f"{name.removesuffix(ends)}.counts"]
        for name, sums in tensors.items()
        if name.endswith(ends)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("type", choices=sorted(TYPES))
    parser.add_argument("threads", type=int)
    chosen = parser.parse_args()
    library = ctypes.CDLL(str(chosen.library.resolve()))
    library.llama_model_quantize_default_params.restype = Settings
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Settings)]
    settings = library.llama_model_quantize_default_params()
    settings.nthread, settings.ftype = chosen.threads, int(TYPES[chosen.type])
    matrix = read_matrix(chosen.imatrix) if chosen.imatrix else {}
    rows = (Columns * (len(matrix) + 1))()  # the last one is empty
    for row, (name, columns) in zip(rows, matrix.items(), strict=False):
        row.name, row.data, row.size = name.encode(), columns.ctypes.data, columns.size
    if matrix:
        place = ctypes.cast(ctypes.byref(settings, IMATRIX_AT), ctypes.POINTER(ctypes.c_void_p))
        place[0] = ctypes.addressof(rows)
    if library.llama_model_quantize(str(chosen.source).encode(), str(chosen.target).encode(), ctypes.byref(settings)):
        raise SystemExit("llama.cpp could not do it")


if __name__ == "__main__":
    main()
