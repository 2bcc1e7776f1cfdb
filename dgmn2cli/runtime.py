"""Owns where and how a network runs: device, number format, threads, and that no helper process outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

import torch

from dgmn2cli.errors import ConfigError, ResourceError

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
    if device.type == "cuda" and (device.index or 0) >= _cuda_count():
        count = _cuda_count()
        found = f"this machine has {count} CUDA device{'s' * (count != 1)}" if count else _no_cuda()
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


def _no_cuda() -> str:
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    return "PyTorch finds no CUDA device or driver"


def resolve_dtype(name: str) -> torch.dtype:
    """The number format called `float32`, `bfloat16` or `float16`.

    Raises:
        ConfigError: no such name.
    """
    if name not in DTYPES:
        raise ConfigError("no such number format", where=name[:60], why=f"wanted one of {', '.join(DTYPES)}")
    return DTYPES[name]


def set_threads(count: int | None) -> int:
    """Sets the number of CPU threads where one is given, and returns the number in use."""
    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()


def end_with_parent() -> None:
    """Lets this process end within a moment when the one that started it is gone, however that ended.

    Its parent's number does not tell: a process may have been forked from a server that lives on.
    """
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
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
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return "CPU"
