"""The examples of CONTRIBUTING.md, put where it says, do what it says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(
    r'^```python (?P<kind>file|line-in)=(?P<path>\S+)(?: (?P<how>before|replace)="(?P<anchor>[^\n]*)")?\n(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)

FORMAT = """
from qlora_studio.data.formats.registry import detect, find_format
from qlora_studio.data.formats.fields import Fields
from qlora_studio.data.readers.rows import Row
row = Row("cards.jsonl", 1, {"front": "Capital of France?", "back": "Paris.", "deck": "geo"})
print(detect([row]).format, [turn.content for turn in find_format("flashcards").convert(Fields(row, {})).turns])
"""
FAMILY = """
from qlora_studio.planner.families import FAMILIES, family_of
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
shape = REFERENCE_SHAPES["SmolLM2-135M"].model_copy(update={"family": "flashlm"})
print("flashlm" in FAMILIES, family_of(shape).norms)
"""
EXPORTER = """
import sys, types
from pathlib import Path
from qlora_studio.engine.exporters.registry import find_exporter
from qlora_studio.core.exports import EXPORT_KINDS, ExportSizes, ExportOptions
stage, source = Path(sys.argv[1]), types.SimpleNamespace(adapter=Path("/runs/pip/adapter"))
exporter = find_exporter("card")
exporter.write(source, stage, lambda event: None)
exporter.check(source, stage, None, lambda event: None)
from qlora_studio.ui.views.export import cards
assert ("Model card\\n1 MiB · A page to publish beside the weights.", "card") in cards(ExportOptions(EXPORT_KINDS[0]), ExportSizes(1 << 20, None))
print([kind.name for kind in EXPORT_KINDS], (stage / "README.md").read_text().strip())
"""
OBJECTIVE = """
import torch
from qlora_studio.engine.objectives.protocol import RowLosses
from qlora_studio.engine.objectives.registry import find_objective
rows = RowLosses((0, 1), torch.tensor([6.0, 4.0]), torch.tensor([3.0, 1.0]))
print(float(find_objective("example_mean").loss(rows).summed))
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Path:
    """A copy of the checkout's package with every example of CONTRIBUTING.md put in its place."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("qlora_studio", "presets", "assets"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", tree / "pyproject.toml")
    examples = list(FENCE.finditer((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert len(examples) == 9
    for example in examples:
        path = tree / example["path"]
        if example["kind"] == "file":
            assert not path.exists()
            path.write_text(example["code"], encoding="utf-8")
            continue
        text, anchor = path.read_text(encoding="utf-8"), example["anchor"]
        assert text.count(anchor) == 1, anchor
        added = example["code"].rstrip("\n") if example["how"] == "replace" else example["code"] + anchor
        path.write_text(text.replace(anchor, added), encoding="utf-8")
    return tree


@pytest.mark.parametrize(
    ("code", "output"),
    [
        (FORMAT, "flashcards ['Capital of France?', 'Paris.']"),
        (FAMILY, "True 2"),
        pytest.param(
            EXPORTER, "['adapter', 'card', 'merged', 'gguf', 'gguf-lora', 'pack'] # pip", marks=pytest.mark.slow
        ),
        pytest.param(OBJECTIVE, "6.0", marks=pytest.mark.slow),
    ],
    ids=["format", "family", "exporter", "objective"],
)
def test_an_example_is_found_by_the_program_and_works(changed, tmp_path, code, output):
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=changed,
        env={"PYTHONPATH": str(changed), "PATH": "", "GOMP_SPINCOUNT": "0"},
        check=False,
    )
    assert done.stdout.strip() == output, done.stderr[-1500:]


def test_the_examples_keep_the_house_rules(changed):
    """Each new file passes the linter that the house uses."""
    files = [match["path"] for match in FENCE.finditer((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))]
    new = sorted({file for file in files if not (ROOT / file).exists()})
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *new], cwd=changed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and len(new) == 3, done.stdout
