"""How many small faults the tests notice: random one-line mutants of the program, each met with its room's tests.

    python benchmarks/mutants.py [--seed 0] [--count 100] [--room runs] [--seen-green]

Works on a copy of the checkout. Prints every mutant that survives, then how many were caught. The tests of a mutant are
those of its file first, then those of its room, without the slow ones; the first failure catches it.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("core", "data", "planner", "runs", "engine", "worker")
USERS = ("test_docs.py", "runs", "planner", "cli", "ui")
"""Where the values of `core` are put to use: their defaults and bounds show there."""
CPU_SECONDS = 600
"""A mutant that keeps its tests computing for longer than this is caught: it made something endless."""
LIBRARIES = (
    "torch", "transformers.models.llama.modeling_llama", "transformers.generation.utils", "peft", "bitsandbytes",
    "datasets", "gradio", "pydantic", "typer", "tokenizers", "safetensors.torch", "gguf",
)  # fmt: skip
"""Not the program's own: each fork imports those from the changed tree."""
SECONDS = 3 * CPU_SECONDS
"""The same for one that waits, however busy the machine is."""
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One changed line of one file."""

    file: Path
    line: int
    what: str
    source: str
    """The whole file with the change in it."""


def mutants_of(file: Path) -> Iterator[Mutant]:
    """Every one-place change of a file that this knows, docstrings and annotations left alone."""
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.expr | ast.stmt)]
    skipped = {id(inner) for node in nodes for part in _quiet_parts(node) for inner in ast.walk(part)}
    for node in nodes:
        if id(node) in skipped:
            continue
        for what, made in _changes(node):
            segment = ast.get_source_segment(text, node)
            if segment is None:
                continue
            start = _offset(text, node.lineno, node.col_offset)
            changed = text[:start] + made + text[start + len(segment) :]
            try:
                compile(changed, str(file), "exec")
            except SyntaxError:
                continue
            yield Mutant(
                file, node.lineno, f"{what}: {segment.splitlines()[0][:60]} -> {made.splitlines()[0][:60]}", changed
            )


def _quiet_parts(node: ast.AST) -> Iterator[ast.AST]:
    """Where a change says nothing about behaviour: annotations, decorators, docstrings, tuned constants, pauses."""
    if isinstance(node, ast.AnnAssign):
        yield node.annotation
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield from node.decorator_list
    if isinstance(node, ast.Assign) and all(isinstance(one, ast.Name) and one.id.isupper() for one in node.targets):
        yield node  # how long, how often, how many: a choice, not behaviour
    if isinstance(node, ast.Expr) and ast.unparse(node.value).startswith("time.sleep("):
        yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield from (
            argument.annotation
            for argument in ast.walk(node.args)
            if isinstance(argument, ast.arg) and argument.annotation
        )
        if node.returns:
            yield node.returns
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        yield node


def _changes(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Names and texts of the changes of one node."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPS:
        other = copy.deepcopy(node)
        other.ops = [SWAPS[type(node.ops[0])]()]  # type: ignore[list-item]
        yield "comparison", f"({ast.unparse(other)})"
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
        other = copy.deepcopy(node)
        other.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
        yield "operator", f"({ast.unparse(other)})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not", f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield "number", str(node.value + 1)
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield "truth", str(not node.value)
    elif isinstance(node, ast.If | ast.While):
        return
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "call left out", "pass"
    elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield "nothing returned", "return None"
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
        other = copy.deepcopy(node)
        other.func = ast.Name({"min": "max", "max": "min"}[node.func.id])
        yield "bound", ast.unparse(other)


def _offset(text: str, line: int, column: int) -> int:
    lines = text.splitlines(keepends=True)
    return sum(map(len, lines[: line - 1])) + len(lines[line - 1].encode()[:column].decode())


def tests_of(file: Path, tree: Path) -> list[str]:
    """The tests of a file's own name first, then those of its room."""
    room = file.relative_to(tree / "qlora_studio").parts[0].removesuffix(".py")
    folder = tree / "tests" / room
    own = [str(path) for path in sorted(folder.rglob(f"test_{file.stem}*.py"))]
    users = [str(tree / "tests" / name) for name in USERS] if room == "core" else []
    return [*own, str(folder), *users]


def is_caught(mutant: Mutant, tree: Path) -> bool:
    """Whether the tests notice."""
    before = mutant.file.read_text(encoding="utf-8")
    mutant.file.write_text(mutant.source, encoding="utf-8")
    try:
        return not all(passes(tests, tree) for tests in tests_of(mutant.file, tree))
    finally:
        mutant.file.write_text(before, encoding="utf-8")


def passes(tests: str, tree: Path) -> bool:
    """Whether these tests end, and none fails. They run in a fork of this process, which has the libraries imported."""
    child = os.fork()
    if child == 0:
        os._exit(run_pytest(tests, tree))
    until = time.monotonic() + SECONDS
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.05)
    return os.waitstatus_to_exitcode(found[1]) in (0, pytest.ExitCode.NO_TESTS_COLLECTED)


def run_pytest(tests: str, tree: Path) -> int:
    """The exit code of pytest over a tree's tests, silent, in this process."""
    os.setpgid(0, 0)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not browser", tests]))


def import_libraries() -> None:
    """What nearly every test imports, so that each fork finds it there."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def check_unchanged(rooms: list[str], tree: Path) -> None:
    """A test that fails without a change would catch every mutant.

    Raises:
        SystemExit: the tests of a room fail as they are.
    """
    for room in rooms:
        for tests in tests_of(tree / "qlora_studio" / room / "__init__.py", tree):
            if not passes(tests, tree):
                raise SystemExit(f"{Path(tests).relative_to(tree)} fails without a mutant: mend it first.")
    print(f"the tests of {', '.join(rooms)} pass without a mutant", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--room", choices=ROOMS, help="Only this room; all of them otherwise.")
    parser.add_argument("--seen-green", action="store_true", help="The unchanged tests were seen to pass; skip them.")
    arguments = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    import_libraries()
    chance, begun, caught, tried = random.Random(arguments.seed), time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache"))
        rooms = [arguments.room] if arguments.room else list(ROOMS)
        files = [file for room in rooms for file in sorted((tree / "qlora_studio" / room).rglob("*.py"))]
        if not arguments.seen_green:
            check_unchanged(rooms, tree)
        everything = [mutant for file in files for mutant in mutants_of(file)]
        for mutant in chance.sample(everything, min(arguments.count, len(everything))):
            tried += 1
            if is_caught(mutant, tree):
                caught += 1
            else:
                print(f"survived  {mutant.file.relative_to(tree)}:{mutant.line}  {mutant.what}", flush=True)
            if tried % 10 == 0:
                print(f"{caught} of {tried} caught, {time.monotonic() - begun:.0f} s", flush=True)
    print(f"seed {arguments.seed}: {caught} of {tried} mutants caught ({len(everything)} possible)")


if __name__ == "__main__":
    main()
