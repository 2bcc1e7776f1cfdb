"""Owns the sides of a comparison: this package's network and the baselines, each built from its name alone.

All run on the same stand-in weights, drawn from their keys (`model.filled`): neither files nor data are needed, and a
side can be rebuilt in another process.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from dgmn2cli.bench.baseline import compiled_unfold, plain_network, torchvision_unfold
from dgmn2cli.bench.names import OURS
from dgmn2cli.bench.report import Findings
from dgmn2cli.errors import ResourceError
from dgmn2cli.model.attention import use_backend
from dgmn2cli.model.filled import filled_state
from dgmn2cli.model.fused.network import InferenceForm
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.ops import resolve as resolve_backend
from dgmn2cli.runtime import resolve_dtype

PUBLISHED_DESIGNS = {"plain": compiled_unfold, "torchvision": torchvision_unfold}
_TORCHVISION_DTYPES = {"cpu": ("float32",), "cuda": ("float32", "float16")}


@dataclass(frozen=True)
class NetworkSpec:
    """Which network is measured.

    Attributes:
        name: zoo key or configuration name, for reports.
        backbone: `tiny`, `small`, `medium` or `large`.
        head: `fpn`, `setr_naive`, `setr_pup` or `setr_mla`.
        num_classes: number of classes.
    """

    name: str
    backbone: str
    head: str
    num_classes: int = 19

    def build(self) -> Segmentor:
        """The network with fresh weights."""
        return Segmentor(self.backbone, self.head, self.num_classes)


@dataclass(frozen=True)
class Side:
    """One way of computing a network or an op.

    Attributes:
        name: `dgmn2cli`, or a key of `names.BASELINES`.
        device: `cpu`, `cuda:0`, ...
        dtype: number format of weights and activations.
        backend: op backend, resolved; for a baseline the one its unfold runs on, or what stands in its place.
        form: `fused` (inference form) or `published` (order of operations as published).
        compiled: whether it runs under `torch.compile`.
    """

    name: str
    device: str
    dtype: str
    backend: str
    form: str
    compiled: bool = False

    @property
    def number(self) -> torch.dtype:
        """`dtype` as PyTorch's."""
        return resolve_dtype(self.dtype)


def own_side(device: torch.device, dtype: str, backend: str, *, fused: bool, compiled: bool = False) -> Side:
    """This package's side.

    Raises:
        ResourceError: the named backend cannot run.
    """
    used = resolve_backend(backend, device, resolve_dtype(dtype))
    return Side(OURS, str(device), dtype, used, "fused" if fused else "published", compiled)


def baseline_side(name: str, device: torch.device, dtype: str, own_backend: str) -> Side:
    """A baseline's side.

    Raises:
        ResourceError: it cannot run here; says why.
    """
    backend, compiled = own_backend, False
    if name == "plain":
        backend = resolve_backend("auto", device, resolve_dtype(dtype))
        if backend == "reference":
            raise _cannot(name, f"there is no compiled unfold for {device.type}, {dtype}")
    elif name == "torchvision":
        if find_spec("torchvision") is None:
            raise _cannot(name, "torchvision is not installed")
        if dtype not in _TORCHVISION_DTYPES.get(device.type, ()):
            raise _cannot(name, f"torchvision has no deform_conv2d for {device.type}, {dtype}")
        backend = "torchvision"
    elif name == "definition":
        backend, compiled = "reference", True
        if device.type == "cpu" and not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
            raise _cannot(name, "torch.compile needs a C++ compiler, and none is on PATH")
    return Side(name, str(device), dtype, backend, "published", compiled)


def _cannot(name: str, why: str) -> ResourceError:
    return ResourceError("the baseline cannot run", where=name, why=why)


def sides_of(own: Side, baselines: Sequence[str], findings: Findings) -> tuple[Side, ...]:
    """`own`, then the baselines in its number format; beside half precision the published design in float32 too.

    Args:
        own: this package's side.
        baselines: keys of `names.BASELINES`.
        findings: gets a note for each baseline that cannot run.
    """
    sides = [own]
    for name in baselines:
        formats = [own.dtype]
        if own.dtype != "float32" and name in PUBLISHED_DESIGNS:
            formats.append("float32")
        for dtype in formats:
            try:
                sides.append(baseline_side(name, torch.device(own.device), dtype, own.backend))
            except ResourceError as error:
                findings.note(str(error))
    return tuple(sides)


def build_side(spec: NetworkSpec, side: Side, *, training: bool = False) -> nn.Module:
    """The network of one side with stand-in weights, on its device."""
    model = spec.build()
    model.load_state_dict(filled_state(model))
    if side.name in PUBLISHED_DESIGNS:
        plain_network(model, PUBLISHED_DESIGNS[side.name])
    else:
        use_backend(model, side.backend)
    model = model.to(side.device, side.number).train(training)
    if training and side.name not in PUBLISHED_DESIGNS:
        model.to(memory_format=torch.channels_last)  # as the trainer does
    network: nn.Module = InferenceForm(model) if side.form == "fused" else model
    if side.compiled:
        network.compile()
    return network.requires_grad_(requires_grad=training)


def random_images(batch: int, height: int, width: int, side: Side) -> Tensor:
    """Normalised pictures of noise `(B, 3, H, W)`, the same for every side of one shape."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, height, width, generator=generator).to(side.device, side.number)
