"""The implementations that are compared, each built from its name alone, and the check that they compute the same.

All run on the same stand-in weights, drawn from their keys (`model.filled`): neither files nor data are needed, and an
implementation can be rebuilt in another process.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgmn2cli.bench import OURS
from dgmn2cli.bench.baseline import compiled_unfold, plain_network, torchvision_unfold
from dgmn2cli.errors import CheckFailed, ResourceError
from dgmn2cli.inference.arithmetic import open_runtime
from dgmn2cli.inference.cuda_graphs import RecordedNetwork
from dgmn2cli.inference.onnx_model import inputs_of, outputs_of, parse
from dgmn2cli.inference.runtimes import RUNTIMES, require_runtime
from dgmn2cli.model.attention import use_backend
from dgmn2cli.model.filled import filled_state
from dgmn2cli.model.fused.network import InferenceForm
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.model.shapes import unfilled
from dgmn2cli.ops import resolve as resolve_backend
from dgmn2cli.runtime import resolve_dtype

RECORDED = "cuda-graphs"
PUBLISHED_DESIGNS = {"plain": compiled_unfold, "torchvision": torchvision_unfold}
_TORCHVISION_DTYPES = {"cpu": ("float32",), "cuda": ("float32", "float16")}

LARGEST, RELATIVE = "largest absolute", "relative root mean square"
LOGITS_LIMIT = 2e-4  # largest difference between logits or op outputs in float32
GRADIENT_LIMIT = 1e-3  # relative, float32: a gradient sums over the whole map, and sampling has kinks
HALF_LIMIT = 0.05  # relative, where one rounds to 8 or 11 bits after every layer


@dataclass(frozen=True)
class NetworkSpec:
    """Which network is measured: its name in reports, and what `Segmentor` takes."""

    name: str
    backbone: str
    head: str
    num_classes: int = 19

    def build(self) -> Segmentor:
        """The network with fresh weights."""
        return Segmentor(self.backbone, self.head, self.num_classes)


@dataclass(frozen=True)
class Implementation:
    """One way of computing a network or an op."""

    name: str  # `dgmn2cli`, or a key of `BASELINES`
    device: str  # `cpu`, `cuda:0`, ...
    dtype: str  # of weights and activations
    backend: str  # op backend, resolved; for a baseline the one its unfold runs on, or what is used instead
    # `fused` (inference form), `trainer` (as training orders the operations), `published` or `graph` (exported)
    form: str
    compiled: bool = False  # whether it runs under `torch.compile`
    graph: Path | None = None  # the exported graph that a runtime runs

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as PyTorch's."""
        return resolve_dtype(self.dtype)


@dataclass(frozen=True)
class Agreement:
    """That two implementations gave the same answer before they were timed."""

    name: str  # model or op
    # implementation, dtype: what was compared with `dgmn2cli`
    implementation: str
    dtype: str
    what: str  # `logits`, `gradients`, `output`
    difference: float  # how far they lie apart
    limit: float  # how far they may
    measure: str  # what `difference` is: `largest absolute` or `relative root mean square`

    def require(self) -> Agreement:
        """The agreement itself where it holds.

        Raises:
            CheckFailed: the answers differ by more than the limit, or one is not finite.
        """
        if not self.difference <= self.limit:  # in this form so that NaN fails
            raise CheckFailed(
                "the compared implementations do not agree, so no figures are given",
                where=f"{self.name}, {self.implementation}, {self.dtype}",
                why=f"{self.what} differ by {self.difference:.3g} ({self.measure}), wanted at most {self.limit:g}",
                hint="Run `dgmn2 doctor`, which tests each op backend.",
            )
        return self


def compare(
    name: str,
    other: Implementation,
    what: str,
    own: Implementation,
    own_answer: Sequence[Tensor],
    answer: Sequence[Tensor],
) -> Agreement:
    """How far two answers of equal shapes lie apart; `require` checks it.

    In float32, `what` decides: `logits` or `output` are held to a largest difference, `gradients` to a relative one.
    """
    exact = other.dtype == own.dtype == "float32"
    apart = [a.float() - b.float() for a, b in zip(own_answer, answer, strict=True)]
    if exact and what != "gradients":
        # by torch: Python's own max() passes over a NaN that comes second
        difference = float(torch.cat([part.abs().flatten() for part in apart]).max())
        return Agreement(name, other.name, other.dtype, what, difference, LOGITS_LIMIT, LARGEST)
    relative = (_energy(apart) / max(_energy(own_answer), 1e-30)) ** 0.5
    return Agreement(name, other.name, other.dtype, what, relative, GRADIENT_LIMIT if exact else HALF_LIMIT, RELATIVE)


def _energy(tensors: Sequence[Tensor]) -> float:
    return sum(float(torch.linalg.vector_norm(tensor.double())) ** 2 for tensor in tensors)


def ours(
    device: torch.device, dtype: str, backend: str, form: str = "fused", *, compiled: bool = False
) -> Implementation:
    """This package's implementation; a ResourceError where the named backend cannot run."""
    return Implementation(
        OURS, str(device), dtype, resolve_backend(backend, device, resolve_dtype(dtype)), form, compiled
    )


def baseline(
    name: str, device: torch.device, dtype: str, own_backend: str, graph: Path | None = None
) -> Implementation:
    """A baseline; a ResourceError that says why where it cannot run here."""
    backend, compiled, why = own_backend, False, ""
    if name == "plain":
        backend = resolve_backend("auto", device, resolve_dtype(dtype))
        if backend == "reference":
            why = f"there is no compiled unfold for {device.type}, {dtype}"
    elif name == "torchvision":
        backend = "torchvision"
        if find_spec("torchvision") is None:
            why = "torchvision is not installed"
        elif dtype not in _TORCHVISION_DTYPES.get(device.type, ()):
            why = f"torchvision has no deform_conv2d for {device.type}, {dtype}"
    elif name == "definition":
        backend, compiled = "reference", True
        if device.type == "cpu" and not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
            why = "torch.compile needs a C++ compiler, and none is on PATH"
    elif name in RUNTIMES:
        require_runtime(name)
        if graph is not None and device.type == "cpu":
            return Implementation(name, "cpu", "float32", f"{name} {version(name)}", "graph", graph=graph)
        why = "exported graphs run passes of networks on the CPU only"
    if why:
        raise ResourceError("the baseline cannot run", where=name, why=why)
    return Implementation(name, str(device), dtype, backend, "published", compiled)


def with_baselines(
    own: Implementation, names: Sequence[str], note: Callable[[str], object], graph: Path | None = None
) -> tuple[Implementation, ...]:
    """`own`, then the baselines in its dtype; beside half precision the published design in float32 too.

    `note` is told of each baseline that cannot run; `graph` is what runtimes run.
    """
    found = [own]
    for name in names:
        beside = own.dtype != "float32" and name in PUBLISHED_DESIGNS
        for dtype in (own.dtype, "float32") if beside else (own.dtype,):
            with noted(note):
                if name == RECORDED:
                    found.append(_recorded(own))
                    continue
                found.append(baseline(name, torch.device(own.device), dtype, own.backend, graph))
    return tuple(found)


def _recorded(own: Implementation) -> Implementation:
    if own.form == "trainer" or own.compiled or torch.device(own.device).type != "cuda":
        why = "passes for inference are recorded, not compiled ones, on an NVIDIA GPU"
        raise ResourceError("the baseline cannot run", where=RECORDED, why=why)
    return replace(own, name=RECORDED)


@contextmanager
def noted(note: Callable[[str], object]) -> Iterator[None]:
    """Tells `note` why an implementation cannot run here, which is a ResourceError within the block."""
    try:
        yield
    except ResourceError as error:
        note(str(error))


def write_graph(spec: NetworkSpec, export: Callable[[Segmentor], Any], path: Path) -> Path:
    """Writes the network with stand-in weights as the ONNX graph that `export` makes of it."""
    model = spec.build().eval().requires_grad_(requires_grad=False)
    model.load_state_dict(filled_state(model))
    path.write_bytes(export(model).SerializeToString())
    return path


class RuntimeNetwork(nn.Module):
    """An exported network of one input and one output in a runtime, with as many threads as PyTorch has."""

    def __init__(self, graph: bytes, runtime: str) -> None:
        super().__init__()
        model = parse(graph, Path(runtime))
        [taken], [given] = inputs_of(model), outputs_of(model)
        self.run = open_runtime(runtime, graph, taken.name, given.name, torch.get_num_threads())

    def forward(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, C, H, W)`, float32."""
        return torch.from_numpy(self.run(images.numpy()))


def build(spec: NetworkSpec, used: Implementation, *, training: bool = False) -> nn.Module:
    """The network with stand-in weights, on its device."""
    if used.graph is not None:
        return RuntimeNetwork(used.graph.read_bytes(), used.name)
    model = unfilled(spec.build)
    model.load_state_dict(filled_state(model))
    if used.name in PUBLISHED_DESIGNS:
        plain_network(model, PUBLISHED_DESIGNS[used.name])
    else:
        use_backend(model, used.backend)
    model.shortcut = used.form == "trainer"
    model = model.to(used.device, used.torch_dtype).train(training)
    if training and used.name not in PUBLISHED_DESIGNS:
        model.to(memory_format=torch.channels_last)  # as the trainer does
    network: nn.Module = InferenceForm(model) if used.form == "fused" else model
    if used.compiled:
        network.compile()
    if used.name == RECORDED:
        network = RecordedNetwork(network)
    return network.requires_grad_(requires_grad=training)


def random_images(batch: int, height: int, width: int, used: Implementation) -> Tensor:
    """Normalised images of noise `(B, 3, H, W)`, the same for every implementation."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, height, width, generator=generator).to(used.device, used.torch_dtype)
