"""Cards through a small NVML that answers like a driver: honest about what it does not know."""

import sys
from types import SimpleNamespace

import psutil
import pytest

from qlora_studio.core.plan import GpuInfo, GpuProcess
from qlora_studio.planner.gpu import HELD_CLOCK, driver_problem, read_gpus


class Nvml:
    """One card of 8 GiB; laptops tell no power, Windows tells no process its share."""

    class NVMLError(Exception):
        pass

    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_CLOCK_MEM = 0, 1, 2

    def __init__(self, fails=()):
        self.fails = set(fails)
        self.open = 0

    def __getattr__(self, name):
        answers = {
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": "card",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=8 << 30, free=7 << 30, used=1 << 30),
            "nvmlDeviceGetCudaComputeCapability": (8, 9),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=7, memory=1),
            "nvmlDeviceGetPowerUsage": 23500,
            "nvmlDeviceGetNumGpuCores": 3072,
            "nvmlDeviceGetMemoryBusWidth": 128,
            "nvmlDeviceGetName": "NVIDIA GeForce RTX 4060",
            "nvmlDeviceGetUUID": b"GPU-1",
            "nvmlSystemGetDriverVersion": "580.10",
            "nvmlDeviceGetTemperature": 41,
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=999_999_001, usedGpuMemory=100)],
            "nvmlDeviceGetGraphicsRunningProcesses": [
                SimpleNamespace(pid=999_999_002, usedGpuMemory=None),
                SimpleNamespace(pid=999_999_001, usedGpuMemory=300),
            ],
        }
        if name not in answers and name not in ("nvmlInit", "nvmlShutdown", "nvmlDeviceGetMaxClockInfo"):
            raise AttributeError(name)

        def answer(*arguments):
            if name == "nvmlDeviceGetMaxClockInfo":
                return {self.NVML_CLOCK_SM: 3105, self.NVML_CLOCK_MEM: 8501}[arguments[1]]
            if name in self.fails:
                raise self.NVMLError(name)
            self.open += {"nvmlInit": 1, "nvmlShutdown": -1}.get(name, 0)
            return answers.get(name)

        return answer


@pytest.fixture
def driver(monkeypatch):
    def install(**kwargs):
        nvml = Nvml(**kwargs)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return nvml

    return install


def test_a_card_is_read_whole(driver):
    nvml = driver()
    assert read_gpus() == [
        GpuInfo(
            index=0,
            name="NVIDIA GeForce RTX 4060",
            total_bytes=8 << 30,
            free_bytes=7 << 30,
            uuid="GPU-1",
            driver="580.10",
            compute_capability=(8, 9),
            temperature_c=41,
            power_watts=23.5,
            utilisation_percent=7,
            peak_flops=2e6 * 3072 * 3105 * HELD_CLOCK * 2,
            bandwidth=128 / 8 * 2e6 * 8501,
            processes=(
                GpuProcess(pid=999_999_001, name="process 999999001", used_bytes=300),
                GpuProcess(pid=999_999_002, name="process 999999002", used_bytes=None),
            ),
        )
    ]
    assert nvml.open == 0


def test_calculated_speeds_are_those_that_nvidia_publishes(driver):
    """RTX 4060, Ada architecture paper: 30.2 TFLOP/s in 16 bit with fp32 sums without sparsity, 272 GB/s."""
    driver()
    (card,) = read_gpus()
    assert card.peak_flops == pytest.approx(30.2e12, rel=0.04)
    assert card.bandwidth == pytest.approx(272e9, rel=0.001)


def test_what_a_card_does_not_tell_stays_empty(driver):
    driver(fails=["nvmlDeviceGetPowerUsage", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetComputeRunningProcesses"])
    (card,) = read_gpus()
    assert (card.power_watts, card.utilisation_percent, len(card.processes)) == (None, None, 2)


@pytest.mark.parametrize("fails", [["nvmlInit"], ["nvmlDeviceGetCount"], ["nvmlDeviceGetMemoryInfo"]])
def test_without_a_working_driver_there_are_no_cards(driver, fails):
    nvml = driver(fails=fails)
    assert read_gpus() == []
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("capability", "factor"),
    [
        ((12, 0), 2), ((10, 0), 16), ((9, 0), 16), ((8, 9), 2), ((8, 6), 2), ((8, 0), 16), ((7, 5), 4), ((7, 2), 8),
        ((7, 0), 8), ((6, 1), 1), ((3, 0), 1), (None, 2),
    ],
)  # fmt: skip
def test_each_generation_has_its_tensor_cores_and_one_that_is_not_told_those_of_ampere(driver, capability, factor):
    nvml = driver()
    nvml.nvmlDeviceGetCudaComputeCapability = lambda handle: capability
    (card,) = read_gpus()
    assert card.compute_capability == capability
    assert card.peak_flops == 2e6 * 3072 * 3105 * HELD_CLOCK * factor


@pytest.mark.parametrize("missing", ["nvmlDeviceGetNumGpuCores", "nvmlDeviceGetMemoryBusWidth"])
def test_no_speed_is_calculated_from_half_of_what_it_takes(driver, missing):
    (card,) = [driver(fails=[missing]) and read_gpus()[0]]
    assert (card.peak_flops is None, card.bandwidth is None) == (
        missing == "nvmlDeviceGetNumGpuCores", missing == "nvmlDeviceGetMemoryBusWidth",
    )  # fmt: skip


def test_without_clocks_no_speed_is_calculated(driver):
    nvml = driver()
    nvml.nvmlDeviceGetMaxClockInfo = lambda handle, kind: 0
    (card,) = read_gpus()
    assert (card.peak_flops, card.bandwidth) == (None, None)


def test_a_card_that_tells_nothing_but_its_memory_is_listed_all_the_same(driver):
    silent = [
        "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetNumGpuCores", "nvmlDeviceGetMemoryBusWidth", "nvmlDeviceGetName", "nvmlDeviceGetUUID",
        "nvmlSystemGetDriverVersion", "nvmlDeviceGetTemperature", "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetGraphicsRunningProcesses",
    ]  # fmt: skip
    driver(fails=silent)
    assert read_gpus() == [GpuInfo(index=0, name="NVIDIA GPU", total_bytes=8 << 30, free_bytes=7 << 30)]


def test_a_card_that_does_not_answer_is_left_out_and_the_others_keep_their_numbers(driver):
    nvml = driver()
    nvml.nvmlDeviceGetCount = lambda: 3

    def handle(index):
        if index == 1:
            raise nvml.NVMLError("lost")
        return index

    nvml.nvmlDeviceGetHandleByIndex = handle
    assert [card.index for card in read_gpus()] == [0, 2]


def test_a_name_that_is_no_text_is_read_as_far_as_it_is(driver):
    def broken(handle):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    nvml = driver()
    nvml.nvmlDeviceGetName, nvml.nvmlDeviceGetUUID = (lambda handle: b"RTX \xff"), broken
    (card,) = read_gpus()
    assert (card.name, card.uuid) == ("RTX \ufffd", "")


def test_who_holds_memory_is_listed_by_name_the_largest_first_then_by_number(driver):
    own = psutil.Process()
    nvml = driver()
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda handle: [
        SimpleNamespace(pid=pid, usedGpuMemory=used)
        for pid, used in ((999_999_003, 50), (own.pid, 50), (999_999_002, 0), (999_999_001, 70), (999_999_001, 60))
    ]
    nvml.nvmlDeviceGetGraphicsRunningProcesses = lambda handle: []
    (card,) = read_gpus()
    assert [(one.pid, one.used_bytes) for one in card.processes] == [
        (999_999_001, 70), (own.pid, 50), (999_999_003, 50), (999_999_002, None),
    ]  # fmt: skip
    assert card.processes[1].name == own.name()


def test_why_a_driver_cannot_be_asked(driver, monkeypatch):
    nvml = driver()
    assert driver_problem() == "" and nvml.open == 0
    driver(fails=["nvmlInit"])
    assert driver_problem() == "nvmlInit."
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert driver_problem() == "The package nvidia-ml-py is not installed." and read_gpus() == []
