"""What must stand before Gradio is imported: no telemetry, no inherited launch settings, no stub files."""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_MCP_SERVER": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
OVERRIDING = ("GRADIO_SERVER_NAME", "GRADIO_SHARE", "GRADIO_ALLOWED_PATHS", "GRADIO_ROOT_PATH", "GRADIO_SSR_MODE")
"""Variables that would win over what `launch` is told."""
QUEUE_SECONDS = {"sleep_when_free": 0.05, "progress_update_sleep_when_free": 0.1}
NEAR = "127.0.0.1,localhost"


def prepare(cache: Path) -> None:
    """Sets the environment of the page's process; uploads land under `cache`. Call before `import gradio`."""
    os.environ.update(QUIET)
    for name in OVERRIDING:
        os.environ.pop(name, None)
    for name in ("NO_PROXY", "no_proxy"):  # with a proxy set, Gradio would look for its own page through it
        os.environ[name] = ",".join(part for part in (os.environ.get(name, ""), NEAR) if part)
    os.environ["GRADIO_TEMP_DIR"] = str(cache / "uploads")
    sys.meta_path.insert(0, StubsLeftOut())


def let_queue_rest(queue: Any) -> None:
    """Has Gradio's queue look for events twenty times a second, as it does on Windows.

    Elsewhere it looks a thousand times, which costs a twentieth of a core while nobody does anything. Both fields are
    Gradio's own and may be renamed; then an idle page merely costs more again.
    """
    for name, seconds in QUEUE_SECONDS.items():
        if hasattr(queue, name):
            setattr(queue, name, seconds)


class StubsLeftOut(MetaPathFinder):
    """Keeps Gradio from writing an editor stub for every component while it is imported: half of the import's time.

    `create_or_modify_pyi` is Gradio's own and may be renamed; then importing merely takes longer again.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "gradio.component_meta":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_without_stubs(module: ModuleType) -> None:
            execute(module)
            if hasattr(module, "create_or_modify_pyi"):
                module.create_or_modify_pyi = lambda *_: None  # type: ignore[attr-defined]

        spec.loader.exec_module = execute_without_stubs  # type: ignore[method-assign]
        return spec
