"""The cards of this computer as their driver describes them, through NVML.

No torch and no CUDA context: asking takes milliseconds and no memory of the card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from qlora_studio.core.plan import GpuInfo, GpuProcess

Answer = TypeVar("Answer")

HELD_CLOCK = 0.82
"""Share of the largest clock that a card holds: its boost clock by its largest (0.81 RTX 4090, 0.85 RTX 3060)."""
TENSOR_FACTORS = (((12, 0), 2), ((9, 0), 16), ((8, 6), 2), ((8, 0), 16), ((7, 5), 4), ((7, 0), 8), ((0, 0), 1))
"""By compute capability: 16-bit tensor cores with fp32 sums against plain fp32, from NVIDIA's architecture papers."""
UNTOLD_CAPABILITY = (8, 6)
"""What a card is taken for whose driver does not tell."""


def read_gpus() -> list[GpuInfo]:
    """Every NVIDIA card with its memory at this moment; an empty list without a card or a driver. Never raises."""
    with _nvml() as nvml:
        if nvml is None:
            return []
        count = _ask(nvml, nvml.nvmlDeviceGetCount, default=0)
        cards = (_read_card(nvml, index) for index in range(count))
        return [card for card in cards if card is not None]


def driver_problem() -> str:
    """Why the driver cannot be asked, as NVML says it; empty where it answers."""
    try:
        import pynvml
    except ImportError:
        return "The package nvidia-ml-py is not installed."
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"{error}."
    pynvml.nvmlShutdown()
    return ""


@contextmanager
def _nvml() -> Iterator[Any]:
    """The NVML module, initialised, or None where there is no driver to ask."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        _ask(pynvml, pynvml.nvmlShutdown, default=None)


def _read_card(nvml: Any, index: int) -> GpuInfo | None:
    """One card, or None where even its memory cannot be read. What a card does not tell stays empty."""
    handle = _ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index, default=None)
    memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle, default=None) if handle is not None else None
    if memory is None:
        return None
    capability = _ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle, default=None)
    utilisation = _ask(nvml, nvml.nvmlDeviceGetUtilizationRates, handle, default=None)
    milliwatts = _ask(nvml, nvml.nvmlDeviceGetPowerUsage, handle, default=None)
    return GpuInfo(
        index=index,
        name=_text(_ask(nvml, nvml.nvmlDeviceGetName, handle, default="NVIDIA GPU")),
        total_bytes=memory.total,
        free_bytes=memory.free,
        uuid=_text(_ask(nvml, nvml.nvmlDeviceGetUUID, handle, default="")),
        driver=_text(_ask(nvml, nvml.nvmlSystemGetDriverVersion, default="")),
        compute_capability=tuple(capability) if capability else None,
        temperature_c=_ask(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU, default=None),
        power_watts=milliwatts / 1000 if milliwatts is not None else None,
        utilisation_percent=utilisation.gpu if utilisation is not None else None,
        peak_flops=_peak_flops(nvml, handle, tuple(capability) if capability else None),
        bandwidth=_bandwidth(nvml, handle),
        processes=_read_processes(nvml, handle),
    )


def _peak_flops(nvml: Any, handle: Any, capability: tuple[int, int] | None) -> float | None:
    """Cores x 2 x clock x what the tensor cores do more than that in 16 bit with fp32 sums."""
    cores = _ask(nvml, nvml.nvmlDeviceGetNumGpuCores, handle, default=None)
    megahertz = _ask(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM, default=None)
    factor = next(times for least, times in TENSOR_FACTORS if (capability or UNTOLD_CAPABILITY) >= least)
    return 2e6 * cores * megahertz * HELD_CLOCK * factor if cores and megahertz else None


def _bandwidth(nvml: Any, handle: Any) -> float | None:
    """Bytes a second: width of the bus x two transfers a clock."""
    bits = _ask(nvml, nvml.nvmlDeviceGetMemoryBusWidth, handle, default=None)
    megahertz = _ask(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM, default=None)
    return bits / 8 * 2e6 * megahertz if bits and megahertz else None


def _read_processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...]:
    """Who holds memory of the card, the largest first; a process that computes and draws is listed once."""
    listed: list[Any] = []
    for question in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        listed += _ask(nvml, question, handle, default=[])
    used: dict[int, int | None] = {}
    for process in listed:
        # Windows (WDDM) tells no process its share: NVML answers None there.
        used[process.pid] = max(used.get(process.pid) or 0, process.usedGpuMemory or 0) or None
    processes = [GpuProcess(pid=pid, name=_process_name(pid), used_bytes=held) for pid, held in used.items()]
    return tuple(sorted(processes, key=lambda process: (-(process.used_bytes or 0), process.pid)))


def _process_name(pid: int) -> str:
    import psutil

    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return f"process {pid}"


def _ask(nvml: Any, question: Callable[..., Answer], *arguments: Any, default: Answer) -> Answer:
    """The driver's answer, or the default where this card or driver has none."""
    try:
        return question(*arguments)
    except (nvml.NVMLError, UnicodeDecodeError):
        return default


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
