"""A process that only makes tokens goes without torch: it begins 2.6 CPU seconds sooner and holds 265 MiB less.

transformers offers tokenizers without it, and looks once, when it is imported, whether it is there (measured 2026-11-22 with
transformers 5.23.0 and torch 2.13.0: 3.9 and 1.3 CPU seconds, 392 and 127 MiB, to the first token).
"""

from __future__ import annotations

import sys
from typing import Any


def leave_torch_out() -> None:
    """From here on this process imports no torch. Does nothing where torch or transformers is there already."""
    if "torch" not in sys.modules and "transformers" not in sys.modules:
        modules: dict[str, Any] = sys.modules
        modules["torch"] = None
