"""The machine and the software that a figure was measured on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from dgmn2cli.runtime import describe_device
from dgmn2cli.version import __version__

# extensions that decide how fast matrices are multiplied, as Linux names them, in the order they are shown
_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve")


@dataclass(frozen=True)
class Machine:
    """Where and when something was measured.

    Attributes:
        processor, gpu: their models; no GPU where the measurement ran on the CPU.
        extensions: instruction-set extensions, empty where the system does not tell.
        capability: the widest instruction set PyTorch's kernels use.
        cores, threads: CPUs this process may run on, and threads that PyTorch uses.
        memory: bytes of main memory, 0 where the system does not tell.
        system, versions: operating system, architecture; Python, PyTorch and this package.
        load: load average of the last minute when the measurement began, -1 where the system does not tell.
        time: when that was, UTC.
    """

    processor: str
    extensions: str
    capability: str
    cores: int
    memory: int
    gpu: str
    system: str
    versions: str
    threads: int
    load: float
    time: str


def describe_machine(device: torch.device) -> Machine:
    """This machine, now."""
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}, dgmn2cli {__version__}"
    return Machine(
        processor=describe_device(torch.device("cpu")),
        extensions=_extensions(),
        capability=torch.backends.cpu.get_cpu_capability(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=_memory(),
        gpu="" if device.type == "cpu" else describe_device(device),
        system=f"{platform.system()} {platform.machine()}",
        versions=versions,
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else -1.0,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _extensions() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    line = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "")
    present = set(line.partition(":")[2].split())
    return " ".join(flag for flag in _FLAGS if flag in present)


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
