"""One place chooses the hardware, and nothing else in the program names a kind of it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import qlora_studio
from qlora_studio.engine.accelerator import choose
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.accelerator.cuda import CudaAccelerator
from qlora_studio.engine.accelerator.protocol import Accelerator

PACKAGE = Path(qlora_studio.__file__).parent
HARDWARE = {"cuda", "xpu", "mps", "hip"}


@pytest.mark.parametrize(("card", "kind"), [(True, CudaAccelerator), (False, CpuAccelerator)])
def test_a_card_is_preferred(monkeypatch, card, kind):
    monkeypatch.setattr(CudaAccelerator, "is_available", classmethod(lambda cls: card))
    assert isinstance(choose.choose_accelerator(), kind)


@pytest.mark.parametrize("kind", choose.ACCELERATORS)
def test_every_accelerator_has_all_that_the_engine_asks(kind):
    members = {name for name in vars(Accelerator) if not name.startswith("_")}
    assert {name for name in members if not hasattr(kind, name)} == set()


def named_hardware(path: Path) -> list[str]:
    """Every `torch.<hardware>` of a file, however it is reached."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in HARDWARE and ast.unparse(node.value) == "torch":
            found.append(ast.unparse(node))
        if isinstance(node, ast.Import):
            found += [
                alias.name for alias in node.names if alias.name.split(".")[:2] in [["torch", h] for h in HARDWARE]
            ]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            parts = {*(node.module or "").split("."), *(alias.name for alias in node.names)}
            found += [f"{node.module} import {', '.join(sorted(parts & HARDWARE))}"] if parts & HARDWARE else []
    return found


def test_only_its_own_file_names_a_kind_of_hardware():
    named = {
        str(path.relative_to(PACKAGE)): found
        for path in sorted(PACKAGE.rglob("*.py"))
        if (found := named_hardware(path)) and path.parent.name != "accelerator"
    }
    assert named == {}


def test_the_reader_of_names_sees_every_way_of_writing_them(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(
        "import torch.cuda\nfrom torch import cuda, nn\nfrom torch.xpu import Stream\ntorch.cuda.empty_cache()\n"
    )
    assert len(named_hardware(file)) == 4
