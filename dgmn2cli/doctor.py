"""The examination of a machine: what is installed, which device and op backends really work, what is found."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from dgmn2cli import resources
from dgmn2cli.config import load_config
from dgmn2cli.errors import Dgmn2Error, ResourceError
from dgmn2cli.model.fused.layers import packing_available
from dgmn2cli.ops import available_backends, deform_attention, deform_unfold
from dgmn2cli.ops import resolve as resolve_backend
from dgmn2cli.runtime import describe_device, resolve_device
from dgmn2cli.version import __version__
from dgmn2cli.zoo import Zoo

REQUIRED = (
    "torch",
    "timm",
    "click",
    "pydantic",
    "rich",
    "requests",
    "urllib3",
    "gdown",
    "filelock",
    "bracex",
    "safetensors",
    "opencv-python-headless",
    "simplejpeg",
    "Pillow",
    "numpy",
    "matplotlib",
    "jinja2",
)
OPTIONAL = {  # each with the extra that installs it; triton comes with PyTorch, where it has one
    "triton": None,
    "tensorboard": "train",
    "wandb": "wandb",
    "cityscapesScripts": "cityscapes",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus-client": "serve",
    "av": "video",
    "ray": "ray",
}
TORCH_TESTED = ((2, 10), (2, 14))  # the oldest that is taken, and the newest: all tests ran with that one only
SHARED_MEMORY = Path("/dev/shm")  # what data workers pass batches through
MAPS = Path("/proc/self/maps")  # the libraries in this process
SHARED_MEMORY_WANTED = 10**9  # bytes: a few batches of 769 x 769 crops for each worker
HOMES = {"native": "cpu", "triton": "cuda"}  # the device a backend is for; the definition runs on the chosen one
TOLERANCE = 1e-4  # of the largest value: float32 against the definition in float64
Verdict = Literal["ok", "note", "failed"]


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    name: str  # what was looked at
    verdict: Verdict  # `ok`; `note`: something is missing that not everyone needs; `failed`
    value: str  # what was found, in words


@dataclass(frozen=True)
class Examination:
    """All findings, and whether the chosen device and the installation can work."""

    device: str
    healthy: bool
    findings: tuple[Finding, ...]


def examine(zoo: Zoo, cache: Path | None, device: str = "auto") -> Examination:
    """Examines the machine; what fails is a finding, not an error.

    Args:
        cache: the cache folder; None for a user without a home.
        device: the device that must work: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
    """
    findings = [
        Finding("dgmn2cli", "ok", f"{__version__} in {Path(__file__).parent}"),
        Finding("Python", "ok", f"{platform.python_version()} ({sys.executable}), {platform.platform(terse=True)}"),
        *_libraries(),
        _torch_version(torch.__version__),
        _guarded(f"device {device}", lambda: _try_device(device)),
        *_gpus(),
        *_backends(device),
        _packing(),
        *_openmp(),
        _guarded("models", lambda: _models(zoo)),
        *_shared_memory(),
        _cache_folder(cache),
    ]
    healthy = all(finding.verdict != "failed" for finding in findings)
    return Examination(device, healthy, tuple(findings))


def _guarded(name: str, look: Callable[[], str]) -> Finding:
    """What `look` finds, or why it fails."""
    try:
        return Finding(name, "ok", look())
    except Dgmn2Error as error:
        return Finding(name, "failed", str(error))
    except (RuntimeError, OSError) as error:  # a driver or kernel that does not run
        return Finding(name, "failed", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")


def _libraries() -> Iterator[Finding]:
    verdict: Verdict
    required: dict[str, str | None] = dict.fromkeys(REQUIRED)
    for kind, names, verdict in (("libraries", required, "failed"), ("optional libraries", OPTIONAL, "note")):
        found, absent = [], []
        for name, extra in names.items():
            try:
                found.append(f"{name} {importlib.metadata.version(name)}")
            except importlib.metadata.PackageNotFoundError:
                absent.append(f"{name} [{extra}]" if extra else name)
        if found:
            yield Finding(kind, "ok", ", ".join(found))
        if absent:
            how = "; in brackets the extra: pip install 'dgmn2cli[EXTRA]'" if names is OPTIONAL else ""
            yield Finding(kind, verdict, f"not installed: {', '.join(absent)}{how}")


def _torch_version(version: str) -> Finding:
    """Whether this version of PyTorch is old or new beyond what was tried."""
    oldest, newest = (".".join(map(str, bound)) for bound in TORCH_TESTED)
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    about = f"{version}; wanted {oldest} or newer, tested with {newest}"
    if found < TORCH_TESTED[0]:
        return Finding("PyTorch", "failed", f"{about}: too old")
    return Finding("PyTorch", "note" if found > TORCH_TESTED[1] else "ok", about)


def _shared_memory() -> Iterator[Finding]:
    """The room for batches on their way from data workers; nothing where the system has no such folder."""
    if not SHARED_MEMORY.is_dir():
        return
    usage = shutil.disk_usage(SHARED_MEMORY)
    about = f"{SHARED_MEMORY}: {usage.total / 1e9:.2f} GB, {usage.free / 1e9:.2f} GB free"
    if usage.free < SHARED_MEMORY_WANTED:
        hint = "training with data workers may need more: enlarge it (docker run --shm-size 2g), or use --workers 0"
        yield Finding("shared memory", "note", f"{about}; {hint}")
    else:
        yield Finding("shared memory", "ok", about)


def _try_device(name: str) -> str:
    """Computes something on the device and compares it with the CPU."""
    device = resolve_device(name)
    numbers = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    product = (numbers.to(device) @ numbers.to(device).T).cpu()
    if not torch.equal(product, numbers @ numbers.T):
        raise ResourceError("the device computes wrongly", where=str(device), why="a small matrix product differs")
    return f"{device}: {describe_device(device)}; op backend {resolve_backend('auto', device)}"


def _gpus() -> Iterator[Finding]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        memory = torch.cuda.get_device_properties(index).total_memory
        yield Finding(f"cuda:{index}", "ok", f"{torch.cuda.get_device_name(index)}, {memory / 2**30:.0f} GiB")
    if not count:
        yield Finding("cuda", "note", "no CUDA device is found")


def _backends(device: str) -> Iterator[Finding]:
    """Each op backend: why it cannot run, or how far it is from the definition."""
    for name, availability in available_backends().items():
        if availability.usable:
            own = HOMES.get(name, "cpu")
            yield _guarded(
                f"op backend {name}", functools.partial(self_test, name, device if device.startswith(own) else own)
            )
        else:
            yield Finding(f"op backend {name}", "note", f"not available: {availability.reason}")


def _packing() -> Finding:
    """Whether inference on the CPU can use oneDNN's prepacked weights."""
    works, why = packing_available()
    return Finding(
        "prepacked weights", "ok" if works else "note", "yes" if works else f"no: {why}; inference is slower"
    )


def _openmp() -> Iterator[Finding]:
    """The OpenMP runtimes in this process: torch's should be the only one; nothing where the system does not tell."""
    with contextlib.suppress(OSError):
        found = sorted(set(re.findall(r"(/\S*/lib[gi]?omp\d*\b[^/\s]*)$", MAPS.read_text(), re.MULTILINE)))
        others = "; several pools of threads in one process slow each other down" if len(found) > 1 else ""
        yield Finding("OpenMP runtimes", "note" if others else "ok", f"{len(found)}: {', '.join(found)}{others}")


def self_test(backend: str, device: str) -> str:
    """Runs both ops and their gradients on a small lopsided case and compares them with the definition in float64.

    Raises:
        ResourceError: they differ by more than `TOLERANCE`, or the backend cannot run.
    """
    pairs = zip(_both_ops(backend, device, torch.float32), _both_ops("reference", "cpu", torch.float64), strict=True)
    errors = [(ours.double().cpu() - right).abs().max() / right.abs().max() for ours, right in pairs]
    worst = float(torch.stack(errors).max())  # NaN if any is
    if not worst <= TOLERANCE:
        why = f"it differs from the definition by {worst:.1e} of the largest value, allowed {TOLERANCE:.0e}"
        raise ResourceError("the op backend computes wrongly", where=backend, why=why, hint="Use --backend reference.")
    return f"self-test passed on {device}, values and gradients within {worst:.0e}"


def _both_ops(backend: str, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Outputs of both ops on a 5 x 7 map of 2 images, and the gradients of the sums of their squares."""
    size, heads, width, random = (5, 7), 2, 64, torch.Generator().manual_seed(1)

    def drawn(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(shape, generator=random)).to(device, dtype).requires_grad_()

    rows, columns = (drawn(side + 8, width, scale=width**-0.5) for side in size)
    attended = (drawn(2, 35, 3, heads, width), drawn(2, 35, heads, 18), rows, columns)
    unfolded = (drawn(2, 6, *size), drawn(2, 36, *size))
    found = []
    for inputs, output in (
        (attended, deform_attention(*attended, size, backend=backend)),
        (unfolded, deform_unfold(*unfolded, padding=1, deformable_groups=2, backend=backend)),
    ):
        found += [output.detach(), *torch.autograd.grad(output.square().sum(), inputs)]
    return found


def _models(zoo: Zoo) -> str:
    """Every model of the manifest has its configuration."""
    for entry in zoo.segmentors:
        load_config(entry.config)
    here = f"{zoo.path}, configurations in {resources.config_dir()}"
    return f"{len(zoo.segmentors)} models and {len(zoo.backbones)} backbones in {here}"


def _cache_folder(cache: Path | None) -> Finding:
    """Where downloads go, and whether they can; nothing is created."""
    if cache is None:
        return Finding("cache", "note", "none, the user has no home folder: name one with --cache or DGMN2_CACHE")
    present = next((folder for folder in (cache, *cache.parents) if folder.exists()), cache)
    if not present.is_dir():
        return Finding("cache", "failed", f"{cache}: {present} is no folder")
    files = [path for path in (cache / "files").glob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    free = shutil.disk_usage(present).free
    about = f"{cache}: {len(files)} file{'s' * (len(files) != 1)}, {size / 1e6:.1f} MB; {free / 1e9:.1f} GB free"
    if not os.access(present, os.W_OK | os.X_OK):
        return Finding("cache", "note", f"{about}; it cannot be written, so nothing can be downloaded")
    return Finding("cache", "ok", about)
