"""Whether the model hub can be asked: once, with a short time-out, before a library that would retry for minutes."""

from __future__ import annotations

import os
import urllib.error
import urllib.request

HUB = "https://huggingface.co"
TIMEOUT_SECONDS = 4


def hub_answers() -> bool:
    """True where the hub answered within the time-out and nobody asked to stay offline (`HF_HUB_OFFLINE`)."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    try:
        request = urllib.request.Request(HUB, method="HEAD")
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False
