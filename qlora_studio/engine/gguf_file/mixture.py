"""Which tensor of a GGUF file gets which type: llama.cpp's own choice for its usual mixtures (src/llama-quant.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import gguf
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as File

from qlora_studio.core.jobs import GgufType

FILES: dict[GgufType, tuple[File, Type]] = {
    "F32": (File.ALL_F32, Type.F32),
    "F16": (File.MOSTLY_F16, Type.F16),
    "BF16": (File.MOSTLY_BF16, Type.BF16),
    "Q8_0": (File.MOSTLY_Q8_0, Type.Q8_0),
    "Q6_K": (File.MOSTLY_Q6_K, Type.Q6_K),
    "Q5_K_M": (File.MOSTLY_Q5_K_M, Type.Q5_K),
    "Q4_K_M": (File.MOSTLY_Q4_K_M, Type.Q4_K),
}
"""What the file is called inside, and the type of most of its matrices."""
FALLBACKS = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
"""For rows that do not divide into blocks of 256."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """The types of one file."""

    kind: GgufType
    layers: int
    tied: bool
    """Whether the token embeddings are the output head as well."""

    def choose(self, name: str, shape: Sequence[int]) -> Type:
        """The type of the tensor that GGUF calls so, (rows, columns) or (columns)."""
        usual = FILES[self.kind][1]
        if len(shape) < 2 or name.endswith("_norm.weight"):
            return Type.F32
        if usual in (Type.F32, Type.F16, Type.BF16):
            return usual
        columns = shape[-1]
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            fits = columns % gguf.GGML_QUANT_SIZES[usual][0] == 0
            usual = Type.Q6_K if fits and usual != Type.Q8_0 else Type.Q8_0
        elif self.kind in ("Q4_K_M", "Q5_K_M") and self._is_sensitive(name):
            usual = Type.Q6_K
        if columns % gguf.GGML_QUANT_SIZES[usual][0]:
            usual = FALLBACKS.get(usual, Type.F16)
        return usual if columns % gguf.GGML_QUANT_SIZES[usual][0] == 0 else Type.F16

    def _is_sensitive(self, name: str) -> bool:
        """Values of attention and the way out of the MLP, in the first and last eighth of the layers and each third."""
        if not name.startswith("blk.") or not any(part in name for part in (".attn_v.", ".attn_qkv.", ".ffn_down.")):
            return False
        layer, eighth = int(name.split(".")[1]), self.layers // 8
        return layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2


def bytes_of(shape: Sequence[int], kind: Type) -> int:
    """Bytes of a tensor of this shape and type."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size
