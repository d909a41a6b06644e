"""The machine as the doctor sees it: every state with its sentence and its remedy."""

from pathlib import Path

from qlora_studio.core.doctor import Check, diagnostics
from qlora_studio.core.machine import Machine, TorchBuild
from qlora_studio.core.plan import GIB, GpuInfo, GpuProcess
from qlora_studio.home import Home
from qlora_studio.planner.doctor import check_cards, check_disk, check_machine, disk_need
from qlora_studio.planner.machine import read_machine
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

CARD = GpuInfo(
    index=0,
    name="RTX 4060",
    total_bytes=8 * GIB,
    free_bytes=round(7.5 * GIB),
    driver="580.10",
    compute_capability=(8, 9),
)
BUILD = TorchBuild(version="2.13.0", cuda="13.0")


def on(card):
    return Machine(cards=(card,), torch=BUILD)


def test_a_good_card_needs_nothing():
    assert check_cards(on(CARD), "") == [
        Check(
            name="Graphics card", state="ok", finding="RTX 4060, 8.00 GiB, compute capability 8.9, computes in bf16."
        ),
        Check(name="Driver", state="ok", finding="Driver 580.10."),
        Check(name="Card memory", state="ok", finding="7.50 GiB of 8.00 GiB free."),
    ]


def test_no_card_says_why_and_what_then():
    assert check_cards(Machine(), "Driver Not Loaded.") == [
        Check(
            name="Graphics card",
            state="warn",
            finding="No NVIDIA card answers: Driver Not Loaded.",
            remedy="Training runs on the processor, slowly. With a card, install its driver and look again.",
        )
    ]


def test_a_full_card_names_who_holds_it():
    processes = (GpuProcess(pid=1, name="game", used_bytes=3 * GIB), GpuProcess(pid=2, name="desktop"))
    full = CARD.model_copy(update={"free_bytes": 4 * GIB, "processes": processes})
    assert check_cards(on(full), "")[-1] == Check(
        name="Card memory",
        state="warn",
        finding="4.00 GiB of 8.00 GiB free; in use by game (3.00 GiB), desktop.",
        remedy="Close game (3.00 GiB) before a run.",
    )


def test_old_cards_and_drivers_are_refused_or_told():
    turing = CARD.model_copy(update={"compute_capability": (7, 5), "driver": "470.1"})
    maxwell = CARD.model_copy(update={"compute_capability": (5, 2)})
    assert check_cards(on(turing), "")[0].finding.endswith("computes in fp16: this card has no bf16.")
    assert [check.state for check in check_cards(on(turing), "")] == ["ok", "bad", "ok"]
    assert [check.state for check in check_cards(on(maxwell), "")] == ["bad", "ok", "ok"]


def test_the_disk_is_measured_against_the_model():
    shape = REFERENCE_SHAPES["Llama-3.1-8B"]
    needed = disk_need(shape)
    assert 2 * 16e9 < needed < 2 * 16e9 + 10e9
    home = Path("/home/someone/studio")
    states = [check_disk(home, free, shape).state for free in (needed, needed - 1, GIB)]
    assert states == ["ok", "warn", "bad"]
    assert check_disk(home, 100 * GIB, None).finding == (
        "100.00 GiB free at /home/someone/studio; a run can take 2.00 GiB."
    )


def test_the_real_machine_is_told_whole(tmp_path):
    home = tmp_path / "not" / "there"
    checks = check_machine(home, read_machine(Home(home)), REFERENCE_SHAPES["SmolLM2-135M"])
    assert [check.name for check in checks if check.name in ("Python", "Graphics card", "Disk")] == [
        "Python",
        "Graphics card",
        "Disk",
    ]
    assert all(check.finding.endswith(".") for check in checks)
    assert all(check.remedy for check in checks if check.state != "ok")


def test_diagnostics_leave_the_person_s_folder_out():
    checks = [
        Check(name="Disk", state="bad", finding="1 GiB free at /home/me/studio.", remedy="Free some space."),
        Check(name="Python", state="ok", finding="Python 3.12.1 on linux."),
    ]
    assert diagnostics(checks, "/home/me", "") == (
        "[bad] Disk: 1 GiB free at ~/studio.\n      Free some space.\n[ok] Python: Python 3.12.1 on linux."
    )
