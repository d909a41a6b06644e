"""What the benchmarks on a card share: a surrounding like that of a consumer card, the time of a command, and processes
that measure one thing each.

Not run on a card yet.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONSUMER = {
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",  # a data-centre card prefers cuDNN's attention
    "CUBLAS_WORKSPACE_CONFIG": ":4096:2:16:8",  # and takes 32 MiB for cuBLAS
    "USE_HUB_KERNELS": "0",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "GOMP_SPINCOUNT": "0",
}
"""Set before torch is imported, where nobody set it otherwise."""
SECONDS, LEAST_SECONDS = {True: 3600.0, False: 560.0}, {True: 5.0, False: 25.0}
"""What a command may take, in a rehearsal and else, and with less than what no measurement begins: it imports and draws."""
NEEDED = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "pydantic",
    "platformdirs",
    "psutil",
    "pynvml",
    "filelock",
)
"""Packages without which nothing can be measured: a machine that is lent bare may lack some."""
PROBE_SECONDS = 90.0
TRACEBACK_LINES = 12


class TimeBudget:
    """The seconds of a command, shared out among its measurements in order, so that none can take all that is left."""

    def __init__(self, seconds: float, weights: Sequence[float], least: float) -> None:
        """`weights`: how much of the time each measurement may want, one after the other."""
        self.until = time.monotonic() + seconds
        self.weights = list(weights)
        self.least = least

    def share(self) -> float | None:
        """Seconds that the next measurement may take; None where it cannot begin.

        At most twice its part of what is left, and never what the measurements behind it need to begin at all.
        """
        left = self.until - time.monotonic()
        weight, *behind = self.weights
        part = 2 * left * weight / sum(self.weights)
        self.weights = behind
        allowed = min(left, max(self.least, min(part, left - self.least * len(behind))))
        return allowed if allowed >= self.least else None


def environment(*, rehearse: bool) -> dict[str, str]:
    """Of a measuring process: it finds the package without an installation, and behaves as on a consumer card."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if rehearse else {}
    return CONSUMER | dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | hidden


def measure_alone(
    script: str, arguments: Sequence[str], seconds: float | None, *, rehearse: bool
) -> Iterator[dict[str, Any]]:
    """What a measuring process finds, each finding as soon as it is there; last `says` where it did not end well."""
    if seconds is None:
        yield {"says": "no time left"}
        return
    command = [sys.executable, script, *arguments, *(["--rehearse"] if rehearse else [])]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment(rehearse=rehearse),
            start_new_session=True,
        )
        late = threading.Event()
        timer = threading.Timer(seconds, lambda: (late.set(), _end(process)))
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"'):  # a trainer prints dictionaries as well
                    yield json.loads(line)
        finally:
            timer.cancel()
            if process.poll() is None and not _ends_by_itself(process):
                _end(process)
        if late.is_set():
            yield {"says": f"ran out of time after {seconds:.0f} s"}
        elif process.returncode:
            errors.seek(0)
            yield {"says": _explain(process.returncode, errors.read())}


def _ends_by_itself(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[str]) -> None:
    """Kills the process and those that it started, which would keep its output open."""
    if os.name == "nt":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _explain(code: int, errors: str) -> str:
    """The last line of what a process said, for a cell; its traceback goes to this process's stderr."""
    lines = errors.strip().splitlines() or ["no message"]
    print("\n".join(lines[-TRACEBACK_LINES:]), file=sys.stderr, flush=True)
    return f"exit {code}: {lines[-1][:160]}".replace("|", "/")


def report(found: dict[str, Any]) -> None:
    """Tells the process above of a finding."""
    print(json.dumps(found), flush=True)


def find_hindrance(rehearse: bool) -> str:
    """Why this machine cannot run a benchmark, found out before any time of it is spent; empty where it can."""
    if absent := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        return f"The benchmark has not been run: {', '.join(absent)} not installed."
    if not rehearse and not has_card():
        return "This computer has no CUDA card: the benchmark has not been run."
    return ""


def begin(script: str, arguments: Sequence[str], seconds: float | None, *, rehearse: bool) -> float | None:
    """Prints on what the command runs; returns the seconds that are left of it, None where it cannot and has said why.

    A first process tries a kernel of each kind. Where the allocator cannot take expandable segments on this card,
    everything is measured without, and that is said.
    """
    begun, note = time.monotonic(), ""
    if reason := find_hindrance(rehearse):
        print(reason)
        return None
    found = _first(script, arguments, rehearse)
    if "says" in found and not rehearse:
        note = f" Without expandable segments, for with them: {found['says']}"
        os.environ["PYTORCH_ALLOC_CONF"] = ""
        found = _first(script, arguments, rehearse)
    if "says" in found:
        print(f"The benchmark has not been run: {found['says']}")
        return None
    print(f"{datetime.date.today()}, {found['device']}, {found['versions']}, rank 16.{note}\n", flush=True)
    return (seconds or SECONDS[rehearse]) - (time.monotonic() - begun)


def _first(script: str, arguments: Sequence[str], rehearse: bool) -> dict[str, Any]:
    return next(measure_alone(script, arguments, PROBE_SECONDS, rehearse=rehearse), {"says": "it told nothing"})


def try_machine() -> dict[str, str]:
    """Runs one kernel of each kind that a measurement needs, and tells on what."""
    import bitsandbytes as bnb
    import torch
    import transformers

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    heads = torch.randn(1, 4, 256, 64, device=device, dtype=torch.bfloat16)
    torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    weight = torch.randn(256, 256, device=device, dtype=torch.bfloat16)
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    product = weight @ bnb.functional.dequantize_4bit(packed, state).to(weight.dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor (rehearsal)"
    assert torch.isfinite(product).all(), "a product of finite numbers is not finite"
    return {
        "device": name,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, bitsandbytes {bnb.__version__}",
    }


def has_card() -> bool:
    """Asked of the driver: torch would open a context on the card that is measured."""
    from qlora_studio.planner.gpu import read_gpus

    return bool(read_gpus())


def check_card(rehearse: bool) -> None:
    """Ends a measuring process that would measure the processor: the torch beside this card may be built without CUDA."""
    import torch

    if not rehearse and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no card here, though the driver does")
