"""Owns the memory meter: the highest resident memory of a process during a step, above what it held before.

On CPU the kernel's own high-water mark is read (`VmHWM`), in a fresh process per side, so that nothing an earlier side
left behind is reused unseen. It counts every page touched, whoever asked for it: tensors, oneDNN's scratch space, the
extension's buffers. On CUDA PyTorch's allocator keeps the mark.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

import torch

from dgmn2cli.errors import ResourceError

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_HIGH_WATER = "5"  # proc(5): resets VmHWM to the present resident size
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class PeakMeter:
    """Measures a `with` block: `peak` is the highest memory in it above that at its start, in bytes.

    `peak` is None where it cannot be known: on a CPU without Linux's resettable high-water mark.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak: int | None = None
        self._before = 0

    def __enter__(self) -> PeakMeter:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        elif can_measure(self.device):
            return_free_memory()
            _CLEAR.write_text(_RESET_HIGH_WATER)
            self._before = _status_bytes("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak = torch.cuda.max_memory_allocated(self.device) - self._before
        elif can_measure(self.device):
            self.peak = max(_status_bytes("VmHWM") - self._before, 0)


def in_use(device: torch.device) -> int:
    """Bytes in use now: resident memory of this process, or what PyTorch holds on a GPU.

    Raises:
        ResourceError: this system does not tell.
    """
    if not can_measure(device):
        raise ResourceError(
            "memory cannot be measured", where=str(device), why="that needs Linux's /proc, or an NVIDIA GPU",
            hint="Leave --max-memory away.",
        )  # fmt: skip
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return_free_memory()
    return _status_bytes("VmRSS")


def highest_use(device: torch.device) -> int:
    """Bytes in use at most, since the process began or a `PeakMeter` last did; errors as `in_use`."""
    in_use(device)
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else _status_bytes("VmHWM")


def can_measure(device: torch.device) -> bool:
    """Whether `PeakMeter` works for the device on this system."""
    if device.type == "cpu":
        return _STATUS.exists() and os.access(_CLEAR, os.W_OK)
    return device.type == "cuda"


def return_free_memory() -> None:
    """Gives freed heap pages back to the system (glibc; else nothing), so that no later step reuses them unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status_bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def in_fresh_process(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> Result:
    """Runs a module-level function in a new process and returns its picklable result.

    Raises:
        ResourceError: the process was killed, as happens when memory runs out.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments, **named).result()
        except BrokenProcessPool as error:
            raise ResourceError(
                "the measuring process was killed", why="most likely the machine ran out of memory",
                hint="Use a smaller --window or --batch.",
            ) from error  # fmt: skip
