"""Other processes that hold a lock, as a worker's guard does: a process is not told of the locks it holds itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLD = """
import sys, time
from pathlib import Path
from qlora_studio.runs.lock import ProcessLock
print(ProcessLock(Path(sys.argv[1]), sys.argv[2]).acquire(), flush=True)
time.sleep(60)
"""


@contextmanager
def held(path: Path, words: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process holds the lock of this file inside the block, and is killed at its end."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
