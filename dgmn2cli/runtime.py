"""Where and how a network runs: device, dtype, threads, and the memory a process uses at most."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

import torch

from dgmn2cli.errors import ConfigError, ResourceError

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_GROUP = Path("/sys/fs/cgroup")
_M_MMAP_THRESHOLD = -3  # mallopt(3)
_RESET_HIGH_WATER = "5"  # proc(5): resets VmHWM to the present resident size
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str = "auto") -> torch.device:
    """The device called `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; `auto` takes a GPU where one works.

    Raises:
        ConfigError: no such name.
        ResourceError: this machine or this PyTorch does not have it.
    """
    if name == "auto":
        return torch.device("cuda" if _cuda_count() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError("no such device", where=name[:60], why="wanted auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and int(name.partition(":")[2] or 0) >= _cuda_count():  # torch wraps at 128
        count = _cuda_count()
        none = "PyTorch finds no CUDA device or driver" if torch.version.cuda else "this PyTorch was built without CUDA"
        found = f"this machine has {count} CUDA device{'s' * (count != 1)}" if count else none
        raise ResourceError("the device is not available", where=name, why=found, hint="Use --device cpu or auto.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ResourceError(
            "the device is not available", where=name, why="PyTorch finds no Metal GPU", hint="Use --device cpu."
        )
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError("no such device", where=name[:60], why="wanted auto, cpu, cuda, cuda:N or mps")
    return device


def _cuda_count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def require_compilable(device: torch.device) -> None:
    """Raises ConfigError where `--compile` is not offered: the packed weights of a CPU are closed to the compiler."""
    if device.type != "cuda":
        why = f"the device is {device}; on a CPU the weights are packed beforehand, which torch.compile cannot take"
        raise ConfigError("--compile is for NVIDIA GPUs", why=why, hint="Leave --compile away.")


def resolve_dtype(name: str) -> torch.dtype:
    """The dtype called `float32`, `bfloat16` or `float16`.

    Raises:
        ConfigError: no such name.
    """
    if name not in DTYPES:
        raise ConfigError("no such dtype", where=name[:60], why=f"wanted one of {', '.join(DTYPES)}")
    return DTYPES[name]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply bfloat16; where it only converts, float32 is as fast."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def set_threads(count: int | None) -> int:
    """Sets the number of CPU threads where one is given, and returns the number in use."""
    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()


def end_with_parent(last: Callable[[], object] = lambda: None) -> None:
    """Lets this process end within a moment when the one that started it is gone, however that ended.

    Its parent's number does not tell: a process may have been forked from a server that lives on.

    Args:
        last: called before this process ends.
    """
    threading.Thread(target=_die_with_parent, args=(last,), daemon=True).start()


def _die_with_parent(last: Callable[[], object]) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        try:
            last()
        finally:
            os._exit(1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch or Python ran out of memory; on a CPU PyTorch says so in words only."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def describe_device(device: torch.device) -> str:
    """A device's name for reports: the GPU's model, or the CPU's with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_model()}, {threads} thread{'s' * (threads != 1)}" if device.type == "cpu" else device.type


def _cpu_model() -> str:
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "CPU"


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
            "memory cannot be measured",
            where=str(device),
            why="that needs Linux's /proc, or an NVIDIA GPU",
            hint="Leave --max-memory away.",
        )
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return_free_memory()
    return _status_bytes("VmRSS")


def highest_use(device: torch.device) -> int:
    """Bytes in use at most, since the process began or a `PeakMeter` last did; errors as `in_use`."""
    in_use(device)
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else _status_bytes("VmHWM")


def machine_memory() -> int:
    """Bytes of main memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available_memory() -> int:
    """Bytes of main memory that this process may still take: what is free, within the limit of its control group."""
    fields = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    free = next(int(value) * 1024 for name, value, *_ in fields if name == "MemAvailable:")
    with suppress(OSError, ValueError, StopIteration):  # no limit is the word "max"
        limit, used = (int((_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        entries = (line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        cached = next(int(value) for name, value in entries if name == "inactive_file")
        free = min(free, limit - used + cached)
    return free


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


@lru_cache(maxsize=1)
def return_large_blocks() -> None:
    """From now on, blocks of 1 MiB and more go back to the system when they are freed (glibc; else nothing).

    Left alone, glibc raises that bound as it sees large blocks freed, to up to 32 MiB, and keeps them in a heap whose
    holes made the same image take 200 MB more in one run than in another.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, 1 << 20)


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
                "the measuring process was killed",
                why="most likely the machine ran out of memory",
                hint="Use a smaller --window or --batch.",
            ) from error
