"""Programs on this machine that take a finished export: LM Studio's folder of models, Ollama's command, the file manager."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from qlora_studio.core.errors import StudioError

LM_STUDIO = ".lmstudio"
POINTER = ".lmstudio-home-pointer"
"""A file in the person's home that says where LM Studio keeps its things, where that was moved."""
OLLAMA_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)?(:[a-zA-Z0-9._-]+)?")
LM_STUDIO_NAME = re.compile(r"[\w.-]+/[\w.-]+")
COPY_BYTES = 16 << 20
POLL_SECONDS = 0.2
Advanced = Callable[[int, int], None]
"""Hears bytes done and total; may raise to stop."""


def lm_studio_models() -> Path | None:
    """LM Studio's folder of models; None where there is no LM Studio."""
    home = Path.home() / LM_STUDIO
    with contextlib.suppress(OSError, UnicodeDecodeError):
        home = Path((Path.home() / POINTER).read_text(encoding="utf-8").strip() or home)
    return home / "models" if home.is_dir() else None


def copy_to_lm_studio(export: Path, name: str, advanced: Advanced) -> Path:
    """Copies the GGUF file of an export to where LM Studio finds it, under `publisher/model`; where it is then.

    Raises a StudioError where there is no LM Studio, no room, or another file of that name.
    """
    if not LM_STUDIO_NAME.fullmatch(name) or ".." in name.split("/") or "." in name.split("/"):
        raise StudioError(f"LM Studio needs a name such as me/model, not '{name}'.", "Give publisher and model.")
    models, source = lm_studio_models(), find_gguf_file(export)
    if models is None:
        raise StudioError(
            "LM Studio is not on this machine: there is no folder .lmstudio in your home.", "Start LM Studio once."
        )
    target = models / name / source.name
    if target.exists():
        raise StudioError("LM Studio has a file of this name already.", "Give it another name.", where=str(target))
    need = source.stat().st_size
    target.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(target.parent).free) < need:
        raise StudioError(
            f"The copy needs {need:,} bytes, and {free:,} are free.", "Free some space.", where=str(target)
        )
    part, done = target.with_name(target.name + ".part"), 0
    try:
        with source.open("rb") as file, part.open("wb") as out:
            while block := file.read(COPY_BYTES):
                out.write(block)
                done += len(block)
                advanced(done, need)
            out.flush()
            os.fsync(out.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def create_in_ollama(export: Path, name: str, stopped: Callable[[], bool]) -> bool:
    """Has Ollama make a model of the export's Modelfile; False where it was stopped. Its output goes to this process's.

    Raises a StudioError where Ollama is not there, or says no.
    """
    if not OLLAMA_NAME.fullmatch(name):
        raise StudioError(f"'{name}' is no name for Ollama.", "Use small letters, digits, dots and dashes.")
    find_gguf_file(export)
    program = shutil.which("ollama")
    if program is None:
        raise StudioError(
            "Ollama is not on this machine: there is no command 'ollama'.", "Install it, or start its service."
        )
    if not (export / "Modelfile").is_file():
        raise StudioError("This export has no Modelfile.", "Export a GGUF file or a pack.", where=str(export))
    environment = {key: value for key, value in os.environ.items() if "TOKEN" not in key}
    with subprocess.Popen(
        [program, "create", name, "-f", "Modelfile"],
        cwd=export, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        while True:
            try:
                output, _ = process.communicate(timeout=POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if stopped():
                    process.terminate()
                    process.communicate()
                    return False
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    if process.returncode:
        last = lines[-1] if lines else f"exit code {process.returncode}"
        raise StudioError(f"Ollama refuses the model: {last}", "Is its service running? Try `ollama list`.")
    return True


def open_folder(folder: Path) -> None:
    """Shows a folder in the system's file manager. Raises a StudioError where there is none to show it."""
    if os.name == "nt":
        os.startfile(folder)  # type: ignore[attr-defined]
        return
    program = shutil.which("open" if sys.platform == "darwin" else "xdg-open")
    seen = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if program is None or not seen:
        raise StudioError("There is no file manager to open it in here.", f"The folder is {folder}.")
    subprocess.Popen(
        [program, str(folder)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip


def find_gguf_file(export: Path) -> Path:
    """The model's GGUF file in an export's folder. Raises a StudioError where there is none, or an adapter alone."""
    files = [path for path in sorted(export.glob("*.gguf")) if not path.name.endswith(".lora.gguf") and path.is_file()]
    if len(files) != 1:
        raise StudioError(
            "This folder holds no GGUF file of a model.", "Export a GGUF file or a pack.", where=str(export)
        )
    return files[0]
