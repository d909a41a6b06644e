"""The machine as the doctor sees it: every state with its sentence and its remedy."""

import sys
from pathlib import Path

from qlora_studio.core.doctor import Check, diagnostics
from qlora_studio.core.machine import Machine, TorchBuild
from qlora_studio.core.plan import GIB, GpuInfo, GpuProcess, PlanSettings
from qlora_studio.home import Home
from qlora_studio.planner import doctor
from qlora_studio.planner.doctor import check_cards, check_disk, check_machine, disk_need
from qlora_studio.planner.estimate import total_bytes
from qlora_studio.planner.machine import read_machine
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from tests.planner.test_families import TINY

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


def test_a_model_needs_its_weights_twice_and_three_checkpoints_of_an_adapter_of_rank_64():
    linears, rest = 2 * 3 * 528, 2 * (20 * 8 + 56) + 2 * 4 * 2  # 16 bit, with embedding and norms; rotary tables
    adapter = 3 * 64 * 122
    assert disk_need(TINY) == 2 * (linears + rest) + 3 * 12 * adapter
    assert disk_need(TINY, rank=1) == 2 * (linears + rest) + 3 * 12 * 3 * 122


def test_a_disk_is_little_below_the_need_and_bad_below_a_run():
    home, needed = Path("/h"), disk_need(REFERENCE_SHAPES["Llama-3.1-8B"])
    shape = REFERENCE_SHAPES["Llama-3.1-8B"]
    assert [check_disk(home, free, shape).state for free in (2 * GIB, 2 * GIB - 1)] == ["warn", "bad"]
    assert [check_disk(home, free, None).state for free in (2 * GIB, 2 * GIB - 1)] == ["ok", "bad"]
    assert check_disk(home, GIB, shape) == Check(
        name="Disk", state="bad",
        finding=f"1.00 GiB free at /h; Llama-3.1-8B, its run and a merged export can take {needed / GIB:.2f} GiB.",
        remedy="Free some space, or set QLORA_STUDIO_HOME to a folder on a larger disk.",
    )  # fmt: skip


def test_three_quarters_of_a_card_are_enough_and_who_is_not_known_is_not_named():
    def memory(free, processes=()):
        card = CARD.model_copy(update={"total_bytes": 8 * GIB, "free_bytes": free, "processes": processes})
        return check_cards(on(card), "")[-1]

    assert (memory(6 * GIB).state, memory(6 * GIB - 1).state) == ("ok", "warn")
    assert memory(GIB).remedy == "Close other programs that use the card before a run."
    nameless = (GpuProcess(pid=1, name="tray"),)
    assert memory(7 * GIB, nameless).finding == "7.00 GiB of 8.00 GiB free; in use by tray."


def test_a_card_whose_driver_tells_little_is_said_to_be_one():
    silent = CARD.model_copy(update={"compute_capability": None, "driver": ""})
    assert [(one.state, one.finding) for one in check_cards(on(silent), "")][:2] == [
        ("ok", "RTX 4060, 8.00 GiB; its driver does not tell its compute capability."),
        ("ok", "Driver of unknown version."),
    ]
    ampere = CARD.model_copy(update={"compute_capability": (8, 0)})
    assert check_cards(on(ampere), "")[0].finding.endswith("compute capability 8.0, computes in bf16.")
    alone = Machine(cards=(CARD.model_copy(update={"driver": "1.0"}), CARD))
    assert [one.state for one in check_cards(alone, "")] == ["ok"] * 6, "without torch no driver is too old"
    assert check_cards(Machine(), "")[0].finding == "No NVIDIA card answers: the driver lists none."


def test_without_a_card_the_memory_has_to_hold_the_small_model(tmp_path, monkeypatch):
    needed = total_bytes(REFERENCE_SHAPES["SmolLM2-135M"], PlanSettings(device="cpu", micro_batch_tokens=512))
    monkeypatch.setattr(doctor, "driver_problem", lambda: "Driver Not Loaded.")

    def checks(available, **more):
        machine = Machine(memory_bytes=8 * GIB, memory_available_bytes=available, disk_free_bytes=9 * GIB, **more)
        return check_machine(tmp_path, machine)

    python, card, memory, disk = checks(needed)
    version = ".".join(map(str, sys.version_info[:3]))
    assert python == Check(name="Python", state="ok", finding=f"Python {version} on {sys.platform}.")
    assert card.finding == "No NVIDIA card answers: Driver Not Loaded." and disk.state == "ok"
    size = f"{needed / GIB:.2f} GiB"
    finding = f"{size} of 8.00 GiB available; the small model takes {size}."
    assert memory == Check(name="Memory", state="ok", finding=finding)
    less = checks(needed - 1)[2]
    assert less == Check(name="Memory", state="bad", finding=finding, remedy="Close other programs.")
    assert "Memory" not in [one.name for one in checks(0, cards=(CARD,))]
