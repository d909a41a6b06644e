"""A base's weights as its files hold them, read one tensor at a time, whichever file each is in.

A base that exists only in bitsandbytes' 4 bits is read as what its layers compute with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.four_bit_rows import FourBitRows
from qlora_studio.engine.safetensors_stream import DTYPE_NAMES, SafetensorsFile
from qlora_studio.weight_files import AGAIN, find_weight_files, read_strict_json

STATE = ".quant_state.bitsandbytes__nf4"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as it is read."""

    name: str
    file: str
    dtype: str
    """As safetensors names it; what a 4-bit weight is dequantised to."""
    shape: tuple[int, ...]
    four_bit: bool = False


class ModelWeights:
    """All tensors of a base, in the order of its files. Close it after use."""

    def __init__(self, folder: Path) -> None:
        """Raises a StudioError where the files are not what the index says, or a name stands in two of them."""
        self.files = find_weight_files(folder)
        self.folder = folder
        self._open = {name: SafetensorsFile(folder / name) for name in self.files.names}
        self._states: dict[str, QuantState] = {}
        self.tensors: dict[str, StoredTensor] = {}
        for file, opened in self._open.items():
            for name in opened.header:
                if name in self.tensors:
                    raise StudioError(
                        f"{name[:200]} stands in {self.tensors[name].file} and in {file}.", AGAIN, where=str(folder)
                    )
                self.tensors[name] = StoredTensor(name, file, opened.dtype(name), opened.shape(name))
        for name, file in (self.files.places or {}).items():
            if name not in self.tensors or self.tensors[name].file != file:
                raise StudioError(f"The index says {name[:200]} is in {file}, and it is not.", AGAIN, where=str(folder))
        self.quantised = self._find_four_bit()

    def close(self) -> None:
        for opened in self._open.values():
            opened.close()

    @property
    def metadata(self) -> dict[str, str]:
        return next(iter(self._open.values())).metadata

    def read(self, name: str) -> torch.Tensor:
        """One tensor in its dtype and shape; a 4-bit weight dequantised."""
        found, opened = self.tensors[name], self._open[self.tensors[name].file]
        stored = opened.read(name)
        return dequantize_4bit(stored, self._states[name]) if found.four_bit else stored

    def read_rows(self, name: str, first: int, after: int) -> torch.Tensor:
        """Rows `first` to `after` of a tensor that is not in 4 bits."""
        return self._open[self.tensors[name].file].read_rows(name, first, after)

    def block(self, name: str) -> int:
        """How many values of a weight that is stored in 4 bits share a scale."""
        return int(self._states[name].blocksize)

    def four_bit_rows(self, name: str) -> FourBitRows:
        """A weight that is stored in 4 bits, to be dequantised a few rows at a time."""
        return FourBitRows.of_state(self._open[self.tensors[name].file].read(name), self._states[name])

    def copy(self, name: str, out: IO[bytes]) -> None:
        """The bytes of a tensor that is not in 4 bits, as they are."""
        self._open[self.tensors[name].file].copy(name, out)

    def _find_four_bit(self) -> bool:
        """Makes 4-bit weights the tensors that they stand for. Whether there are any."""
        weights = [name.removesuffix(STATE) for name in self.tensors if name.endswith(STATE)]
        for weight in weights:
            parts = {name: self._read_part(name) for name in list(self.tensors) if name.startswith(f"{weight}.")}
            state = _read_state(dict(parts), self.tensors[weight], self.folder)
            dtype, file = DTYPE_NAMES[state.dtype], self.tensors[weight].file
            self._states[weight] = state
            self.tensors[weight] = StoredTensor(weight, file, dtype, tuple(state.shape), four_bit=True)
            for name in parts:
                del self.tensors[name]
        quantisation: Any = read_strict_json(self.folder / "config.json").get("quantization_config")
        if quantisation and not weights:
            how = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
            raise StudioError(
                f"This base is stored quantised ({str(how)[:50]}), and its weights cannot be taken apart.",
                "Choose the 16-bit version of the model, or export the adapter alone.",
                where=str(self.folder),
            )
        return bool(weights)

    def _read_part(self, name: str) -> torch.Tensor:
        return self._open[self.tensors[name].file].read(name)


def _read_state(parts: dict[str, torch.Tensor], packed: StoredTensor, folder: Path) -> QuantState:
    """How a packed weight is dequantised. Its sizes are checked: native code reads as much as they say."""
    wrong = StudioError(f"The 4-bit weight {packed.name[:200]} is not one.", AGAIN, where=str(folder))
    try:
        state = QuantState.from_dict(parts, device=torch.device("cpu"))
        values, nested = math.prod(state.shape), state.state2
        scales = math.ceil(values / state.blocksize)
        sizes = [
            (math.prod(packed.shape), math.ceil(values / 2)),
            (state.absmax.numel(), scales),
            (state.code.numel(), 16),
        ]
        if nested is not None:
            sizes += [(nested.absmax.numel(), math.ceil(scales / nested.blocksize)), (nested.code.numel(), 256)]
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError):
        raise wrong from None
    whole = packed.dtype == "U8" and state.quant_type == "nf4" and state.dtype in DTYPE_NAMES and values > 0
    if not whole or any(found != wanted for found, wanted in sizes):
        raise wrong
    return state
