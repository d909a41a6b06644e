"""How many small faults the tests notice: random one-line mutants of the program, each met with the tests that run its line.

    python benchmarks/mutants.py [--seed 0] [--count 100] [--room runs] [--touched FILE]

Works on a copy of the checkout. First the quick tests run once under coverage, which says what tests run which lines, in
processes of their own as well. Then each mutant meets those of its line, those of its file's name first, and where they
all pass the slow ones of its file's name, or of a room that has few; the first failure catches it. Prints every mutant that
survives, then how many were caught. `--touched` keeps what tests run which lines, for several runs over the same checkout.
"""

from __future__ import annotations

import argparse
import ast
import copy
import functools
import gc
import importlib
import importlib.util
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("core", "data", "planner", "runs", "engine", "worker")
LONG = ("engine", "worker")
"""Rooms whose slow tests take more than minutes: of these a mutant meets those of its file's name alone."""
QUICK, SLOW = "not slow and not browser", "slow and not browser"
NEEDS = {"triton_gate.py": "triton"}
"""Files of libraries that are no dependency; CI installs them for their tests."""
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


Touched = dict[str, dict[str, list[str]]]
"""Of each file and line the tests that run it, as pytest names them without parameters."""
COVERAGE = """
[run]
source = {tree}/qlora_studio
data_file = {folder}/coverage
parallel = true
dynamic_context = test_function
context = ${{PYTEST_CURRENT_TEST-}}
patch = subprocess, fork, _exit
"""
"""A process that a test starts finds the test's name in its environment."""


@dataclass(frozen=True)
class Mutant:
    """One changed line of one file."""

    file: Path
    line: int
    statement: tuple[int, int]
    """First and last line of the statement; of one with a body, of its head."""
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
            words = f"{what}: {segment.splitlines()[0][:60]} -> {made.splitlines()[0][:60]}"
            yield Mutant(file, node.lineno, _statement_of(node, nodes), words, changed)


def _statement_of(node: ast.expr | ast.stmt, nodes: list[ast.expr | ast.stmt]) -> tuple[int, int]:
    around = [one for one in nodes if isinstance(one, ast.stmt) and any(inner is node for inner in ast.walk(one))]
    innermost = max(around, key=lambda one: (one.lineno, -(one.end_lineno or 0)))
    body = getattr(innermost, "body", None)
    return innermost.lineno, body[0].lineno - 1 if body else innermost.end_lineno or innermost.lineno


def _quiet_parts(node: ast.AST) -> Iterator[ast.AST]:
    """Where a change says nothing about behaviour: annotations, decorators, docstrings, tuned constants, pauses."""
    if isinstance(node, ast.AnnAssign):
        yield node.annotation
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield from node.decorator_list
    if isinstance(node, ast.Assign) and all(map(_names_constants, node.targets)):
        yield node  # how long, how often, how many: a choice, not behaviour
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
        # a guard against the program's own faults
        yield from (one.value for one in node.keywords if one.arg == "strict")
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


def _names_constants(target: ast.expr) -> bool:
    names = target.elts if isinstance(target, ast.Tuple) else [target]
    return all(isinstance(one, ast.Name) and one.id.isupper() for one in names)


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


def find_touched(tree: Path, folder: Path) -> Touched:
    """Runs the quick tests once under coverage; without those that fail there, where everything is slower.

    Raises:
        SystemExit: the tests could not be run.
    """
    settings = folder / "coveragerc"
    settings.write_text(COVERAGE.format(tree=tree, folder=folder), encoding="utf-8")
    run = ["-m", "coverage", "run", f"--rcfile={settings}", "-m", "pytest", "-q", "-rfE", "-n", "2", "-m", QUICK]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    environment.pop("PYTEST_CURRENT_TEST", None)
    done = subprocess.run(
        [sys.executable, *run], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"The tests cannot be run.\n{done.stdout[-2000:]}")
    failed = set(re.findall(r"^(?:FAILED|ERROR) (\S+?::\w+)", done.stdout, re.MULTILINE))
    for test in sorted(failed):
        print(f"left out, since it fails under coverage: {test}", flush=True)
    parts = [str(path) for path in folder.glob("coverage.*")]
    data = coverage.CoverageData(basename=str(folder / "whole"))
    for part in parts:
        one = coverage.CoverageData(basename=part)
        one.read()
        data.update(one)
    touched: Touched = {}
    for file in data.measured_files():
        lines = data.contexts_by_lineno(file)
        name = str(Path(file).relative_to(tree))
        tests = {line: sorted({_test_of(one) for one in found}) for line, found in lines.items()}
        touched[name] = {
            str(line): [test for test in found if test not in failed and _is_there(test, tree)]
            for line, found in tests.items()
        }
    return touched


@functools.cache
def _is_there(test: str, tree: Path) -> bool:
    """Whether pytest would find it: what it does not find it calls a failure."""
    file, _, name = test.partition("::")
    there = bool(name) and file.startswith("tests/") and (tree / file).is_file()
    return there and f"\ndef {name}(" in (tree / file).read_text(encoding="utf-8")


def _test_of(context: str) -> str:
    """`tests/runs/test_lock.py::test_x` for what coverage calls a context; empty for the time between tests."""
    started_by, _, inside = context.rpartition("|")
    if "::" in started_by:
        return started_by.split("[")[0].split(" ")[0]
    module, _, name = inside.rpartition(".")
    return f"{module.replace('.', '/')}.py::{name}" if name.startswith("test_") else ""


def tests_of(mutant: Mutant, tree: Path, touched: Touched) -> list[tuple[str, list[str]]]:
    """Markers and tests, in the order in which this mutant meets them."""
    lines = touched.get(str(mutant.file.relative_to(tree)), {})
    first, last = mutant.statement
    found = {test for line in range(first, last + 1) for test in lines.get(str(line), ())}
    if not found:  # a line that only an import runs: whatever runs any other line of this file
        found = {test for tests in lines.values() for test in tests} if str(first) in lines else set()
    room = mutant.file.relative_to(tree / "qlora_studio").parts[0].removesuffix(".py")
    named = [str(path) for path in sorted((tree / "tests" / room).rglob(f"test_{mutant.file.stem}*.py"))]
    rest = [test for test in sorted(found) if str(tree / test.split("::")[0]) not in named]
    near = [test for test in rest if test.startswith(f"tests/{room}/")]
    others = [test for test in rest if test not in near]
    pages = ["tests/test_docs.py"] if room == "core" else []  # they show the fields of settings, which no line runs
    whole = [] if room in LONG else [str(tree / "tests" / room)]
    return [(QUICK, named), (QUICK, near), (QUICK, [*others, *pages]), (SLOW, named or whole)]


def is_caught(mutant: Mutant, tree: Path, touched: Touched) -> bool:
    """Whether the tests notice.

    Raises:
        SystemExit: the test that failed fails without the mutant as well.
    """
    before, first = mutant.file.read_text(encoding="utf-8"), tree / "first-failure"
    for marker, tests in tests_of(mutant, tree, touched):
        first.unlink(missing_ok=True)
        mutant.file.write_text(mutant.source, encoding="utf-8")
        try:
            passed = not tests or passes(marker, tests, tree)
        finally:
            mutant.file.write_text(before, encoding="utf-8")
        if not passed:
            if first.exists() and not passes(marker, [first.read_text(encoding="utf-8")], tree):
                raise SystemExit(f"{first.read_text(encoding='utf-8')} fails without a mutant: mend it first.")
            return True
    return False


@dataclass(frozen=True)
class FirstFailure:
    """Notes what failed first."""

    path: Path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.path.exists():
            self.path.write_text(report.nodeid, encoding="utf-8")


def passes(marker: str, tests: list[str], tree: Path) -> bool:
    """Whether these tests end, and none fails. They run in a fork of this process, which has the libraries imported."""
    child = os.fork()
    if child == 0:
        os._exit(run_pytest(marker, tests, tree))
    until = time.monotonic() + SECONDS
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.05)
    return os.waitstatus_to_exitcode(found[1]) in (0, pytest.ExitCode.NO_TESTS_COLLECTED)


def run_pytest(marker: str, tests: list[str], tree: Path) -> int:
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
    return int(
        pytest.main(
            ["-x", "-q", "-p", "no:cacheprovider", "-m", marker, *tests], [FirstFailure(tree / "first-failure")]
        )
    )


def can_run(file: Path) -> bool:
    """Whether what the file is written for is installed: else no test runs any line of it here."""
    library = NEEDS.get(file.name)
    there = library is None or importlib.util.find_spec(library) is not None
    if not there:
        print(f"left out: {file.name}, for {library} is not installed", flush=True)
    return there


def import_libraries() -> None:
    """What nearly every test imports, so that each fork finds it there."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--room", choices=ROOMS, help="Only this room; all of them otherwise.")
    parser.add_argument(
        "--touched", type=Path, help="Where it is kept what tests run which lines; read if it is there."
    )
    arguments = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    import_libraries()
    chance, begun, caught, tried = random.Random(arguments.seed), time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache"))
        rooms = [arguments.room] if arguments.room else list(ROOMS)
        files = [file for room in rooms for file in sorted((tree / "qlora_studio" / room).rglob("*.py"))]
        files = [file for file in files if can_run(file)]
        kept = arguments.touched or Path(folder) / "touched.json"
        if not kept.exists():
            kept.write_text(json.dumps(find_touched(tree, Path(folder))), encoding="utf-8")
            print(f"the tests pass without a mutant, {time.monotonic() - begun:.0f} s", flush=True)
        touched: Touched = json.loads(kept.read_text(encoding="utf-8"))
        everything = [mutant for file in files for mutant in mutants_of(file)]
        for mutant in chance.sample(everything, min(arguments.count, len(everything))):
            tried += 1
            if is_caught(mutant, tree, touched):
                caught += 1
            else:
                print(f"survived  {mutant.file.relative_to(tree)}:{mutant.line}  {mutant.what}", flush=True)
            if tried % 10 == 0:
                print(f"{caught} of {tried} caught, {time.monotonic() - begun:.0f} s", flush=True)
    print(f"seed {arguments.seed}: {caught} of {tried} mutants caught ({len(everything)} possible)")


if __name__ == "__main__":
    main()
