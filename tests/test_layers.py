"""Who may import whom: every import is read, and a fresh process proves the doors that must stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "qlora_studio"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl"}
INSIDE_FUNCTIONS = {
    "datasets": {"data/readers"},
    "huggingface_hub": {"hub"},
    "pyarrow": {"data/readers"},
}
FOUNDATION = {"home", "hub", "bases", "weight_files", "faults", "local_programs"}
"""Files of floor 2 that every room above the ground may use."""
FLOOR = {
    "core": 1,
    "home": 2,
    "hub": 2,
    "bases": 2,
    "weight_files": 2,
    "faults": 2,
    "local_programs": 2,
    "presets": 2,
    "data": 2,
    "planner": 2,
    "runs": 2,
    "engine": 3,
    "studio": 3,
}
FLOOR |= {"worker": 4, "cli": 4, "ui": 4}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every imported module of a file, and whether the import stands at module level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in inner) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            assert not node.level, f"{path}: relative import {base}"
            found += [
                (f"{base}.{alias.name}" if base == "qlora_studio" else base, id(node) not in inner)
                for alias in node.names
            ]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_the_floors(path):
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    for name, top in imports(path):
        first = name.split(".")[0]
        assert first not in HEAVY or here == "engine", f"{name} outside engine/"
        assert first != "gradio" or here == "ui", f"{name} outside ui/"
        if first in INSIDE_FUNCTIONS:
            place = str(path.relative_to(PACKAGE)).removesuffix(".py")
            assert not top and any(place.startswith(allowed) for allowed in INSIDE_FUNCTIONS[first]), name
        if first != "qlora_studio":
            if here == "core":
                assert first in sys.stdlib_module_names | {"pydantic"}, f"core imports {name}"
            continue
        target = name.split(".")[1] if "." in name else "__init__"
        if target == here or target in ("__init__", "__version__"):
            continue
        assert FLOOR[target] <= FLOOR[here], f"{here} imports upward: {name}"
        assert target != "worker", f"{here} imports the worker"
        if here == "studio":
            assert target != "engine", "the facade meets the engine only through a job folder"
        if here in ("cli", "ui"):
            assert target in ("core", "studio"), f"{here} imports {name}"
        if FLOOR[here] == FLOOR[target] == 2:
            assert target in FOUNDATION, f"{here} and {target} do not know each other"
        if here == "engine":
            assert target in {"core", "data"} | FOUNDATION, f"engine imports {name}"


def defined(path: Path) -> set[str]:
    """The names that a file itself makes, as opposed to those it imports."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize(
    "path", [path for path in MODULES if room(path) in ("cli", "ui")], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_a_face_takes_nothing_of_a_deeper_room_by_re_export(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("qlora_studio.studio"):
            continue
        file = PACKAGE.parent.joinpath(*str(node.module).split("."))
        source = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        for alias in node.names:
            assert alias.name in defined(source), f"{alias.name} of {node.module} comes from elsewhere"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("qlora_studio.cli", HEAVY | {"gradio", "datasets", "pyarrow", "pandas"}),
        ("qlora_studio.studio", HEAVY | {"gradio", "datasets", "pyarrow", "pandas"}),
        ("qlora_studio.ui", HEAVY),
    ],
)
def test_a_door_loads_only_what_it_needs(module, absent):
    code = f"import {module}, sys; print(*sorted({{name.split('.')[0] for name in sys.modules}} & {absent!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ""
