"""The computer as a value: which cards are seen, which torch is installed, without importing it."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.machine import Machine, Speed, TorchBuild
from qlora_studio.core.plan import GpuInfo
from qlora_studio.home import Home
from qlora_studio.planner import machine as machine_module
from qlora_studio.planner.card import find_choice_problem
from qlora_studio.planner.kept import write_kept
from qlora_studio.planner.machine import (
    existing,
    goes_by,
    named_first,
    read_machine,
    read_torch_build,
    visible_cards,
)
from qlora_studio.planner.speeds import learn_speed, read_speeds

FIRST, SECOND = (
    GpuInfo(index=index, name=f"card {index}", total_bytes=8, free_bytes=7, uuid=uuid)
    for index, uuid in enumerate(("GPU-aa1", "GPU-ab2"))
)


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, [FIRST, SECOND]),
        ("", []),
        ("-1", []),
        ("1", [SECOND]),
        ("1,0", [SECOND, FIRST]),
        ("GPU-ab", [SECOND]),
        ("GPU-a", []),
        ("0,7,1", [FIRST]),
        ("0,0", [FIRST]),
    ],
)
def test_only_visible_cards_are_planned_for(visible, seen):
    assert visible_cards([FIRST, SECOND], visible) == seen


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", TorchBuild(version="2.13.0+cpu")),
        ("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\n", TorchBuild(version="2.13.0", cuda="13.0")),
        ("__version__ = '2.4.1'\ncuda = '12.1'\n", TorchBuild(version="2.4.1", cuda="12.1")),
        ("nothing\n", None),
    ],
)
def test_the_build_of_torch_is_read_from_its_file(tmp_path, monkeypatch, text, build):
    (tmp_path / "version.py").write_text(text)
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    assert read_torch_build() == build


@pytest.mark.slow
def test_the_build_that_is_read_is_the_one_that_is_installed():
    code = "import torch; print(torch.__version__, torch.version.cuda or '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, _, cuda = done.stdout.strip().partition(" ")
    assert read_torch_build() == TorchBuild(version=version, cuda=cuda)


def test_this_computer_is_read_without_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from qlora_studio.home import Home; "
        "from qlora_studio.planner.machine import read_machine; m = read_machine(Home(Path(sys.argv[1]))); "
        "print(m.memory_bytes > m.memory_available_bytes > 0, m.cores > 0, m.disk_free_bytes > 0, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True", "False"]


def test_a_home_that_is_not_there_yet_has_the_disk_of_its_parent(tmp_path):
    assert existing(tmp_path / "a" / "b") == tmp_path
    assert read_machine(Home(tmp_path / "a" / "b")).disk_free_bytes > 0
    assert existing(Path("/")) == Path("/")


@pytest.mark.parametrize(
    ("platform", "release", "system"),
    [
        ("linux", "6.8.0-generic", "linux"),
        ("linux", "5.15.167.4-microsoft-standard-WSL2", "wsl"),
        ("win32", "10", "windows"),
        ("darwin", "24.1", "macos"),
    ],
)
def test_linux_under_windows_is_told_apart(monkeypatch, platform, release, system):
    monkeypatch.setattr(machine_module.sys, "platform", platform)
    monkeypatch.setattr("platform.release", lambda: release)
    assert machine_module.read_system() == system


def test_speeds_are_kept_by_machine_and_model_the_newest_first(tmp_path):
    one, two = (Speed(model=name, weights=100, flops_per_second=1e12) for name in ("one", "two"))
    faster = one.model_copy(update={"flops_per_second": 2e12})
    for speed in (one, two, faster):
        learn_speed(tmp_path, FIRST, speed)
    assert read_speeds(tmp_path, FIRST) == (faster, two)
    assert read_speeds(tmp_path, None) == ()
    for number in range(20):
        learn_speed(tmp_path, FIRST, one.model_copy(update={"model": str(number)}))
    assert [speed.model for speed in read_speeds(tmp_path, FIRST)] == [str(number) for number in range(19, 11, -1)]


@pytest.mark.parametrize("text", ["{", "[]", '{"cpu": 3}', '{"cpu": [{"model": 1}, 4]}'])
def test_a_broken_file_of_speeds_says_nothing(tmp_path, text):
    (tmp_path / "speeds.json").write_text(text)
    assert read_speeds(tmp_path, None) == ()


CARDS = [
    GpuInfo(index=index, name=name, total_bytes=8, free_bytes=7, uuid=uuid)
    for index, (name, uuid) in enumerate((("Small", "GPU-aa"), ("Large", "GPU-bb")))
]


@pytest.mark.parametrize(
    ("named", "first"),
    [(None, "Small"), ("1", "Large"), ("GPU-b", "Large"), ("0", "Small"), ("7", "Small"), ("", "Small")],
)
def test_the_card_a_person_names_stands_first(named, first):
    ordered = named_first(CARDS, named)
    assert ordered[0].name == first and sorted(card.index for card in ordered) == [0, 1]


def test_a_card_that_is_not_there_is_refused_by_the_plan():
    machine = Machine(cards=tuple(CARDS))
    problem = find_choice_problem(TrainConfig().replace({"memory.card": "7"}), machine)
    assert problem is not None
    assert str(problem) == (
        "field 'memory.card': There is no card '7'. This computer has: 0 (Small), 1 (Large). Leave it empty for the first."
    )
    for named in (None, "0", "GPU-a"):
        assert find_choice_problem(TrainConfig().replace({"memory.card": named}), machine) is None


def test_a_machine_is_what_its_parts_say(tmp_path, monkeypatch):
    speed = Speed(model="one", weights=100, flops_per_second=1e12)
    home = Home(tmp_path)
    learn_speed(home.cache, SECOND, speed)
    write_kept(home.cache / "memory-corrections.json", {"GPU-ab2": {"factor": 1.25}})
    memory = SimpleNamespace(total=64, available=48)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: None if logical else 6)
    monkeypatch.setattr(machine_module, "read_gpus", lambda: [FIRST, SECOND])
    monkeypatch.setattr(machine_module, "_cpu_has_bf16", lambda: True)
    monkeypatch.setattr(machine_module, "read_system", lambda: "wsl")
    monkeypatch.setattr(machine_module, "read_torch_build", lambda: TorchBuild(version="2.13", cuda="13.0"))
    monkeypatch.setattr(machine_module, "free_bytes_at", lambda place: 99 if place == tmp_path else 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    values = {
        "memory_bytes": 64, "memory_available_bytes": 48, "cores": 6, "cpu_bf16": True, "disk_free_bytes": 99,
        "system": "wsl", "torch": TorchBuild(version="2.13", cuda="13.0"),
    }  # fmt: skip
    assert read_machine(home) == Machine(cards=(FIRST, SECOND), **values)
    named = Machine(cards=(SECOND, FIRST), correction=1.25, speeds=(speed,), **values)
    assert read_machine(home, "1") == named
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert read_machine(home) == named.model_copy(update={"cards": (SECOND,)})


@pytest.mark.parametrize(("real", "all_of_them", "cores"), [(6, 12, 6), (None, 12, 12), (None, None, 1)])
def test_cores_are_the_real_ones_where_they_are_known(tmp_path, monkeypatch, real, all_of_them, cores):
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 99 if logical else real)
    monkeypatch.setattr(machine_module.os, "cpu_count", lambda: all_of_them)
    assert read_machine(Home(tmp_path)).cores == cores


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("flags : fpu avx512_bf16 sse", True), ("flags : amx_bf16", True), ("flags : avx512f", False), (None, False),
    ],
)  # fmt: skip
def test_a_processor_with_bf16_of_its_own_is_known_by_its_flags(tmp_path, monkeypatch, flags, has):
    asked, file = [], tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(flags)
    monkeypatch.setattr(machine_module, "Path", lambda place: asked.append(place) or file)
    assert machine_module._cpu_has_bf16() is has and asked == ["/proc/cpuinfo"]


@pytest.mark.parametrize("origin", [None, "gone/__init__.py", "odd/__init__.py"])
def test_a_torch_whose_file_cannot_be_read_is_none(tmp_path, monkeypatch, origin):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "version.py").write_bytes(b"\xff\xfe\xff")
    spec = SimpleNamespace(origin=origin and str(tmp_path / origin))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    assert read_torch_build() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert read_torch_build() is None


@pytest.mark.parametrize(
    ("named", "goes"), [("0", True), ("GPU-aa1", True), ("GPU-", True), ("", False), ("1", False), ("aa1", False)]
)
def test_a_card_goes_by_its_number_or_the_beginning_of_its_uuid(named, goes):
    assert goes_by(FIRST, named) is goes


def test_spaces_around_an_entry_are_none_of_it():
    assert visible_cards([FIRST, SECOND], " 1 , GPU-aa ") == [SECOND, FIRST]
