"""The forward path never waits for the device: it reads no value from a tensor, and copies nothing from the host.

On a GPU it is followed with fake tensors, which need none. Reading a value is an error with them, and a copy shows as
an operation with tensors of two devices. Tables that are made once, before, are stand-ins there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dgmn2cli.inference.load import build_model
from dgmn2cli.model.attention import use_backend
from dgmn2cli.model.backbone import BLOCKS
from dgmn2cli.model.filled import filled_state
from dgmn2cli.model.fused.network import InferenceForm
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.model.shapes import shapes_only
from dgmn2cli.ops import backend, resample
from dgmn2cli.zoo import load_zoo

MODELS = [entry.key for entry in load_zoo().segmentors]
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim", "_unique2")


class Waits(TorchDispatchMode):
    """Collects the operators whose result the host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator."""
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("read", [lambda x: x.sum().item(), lambda x: bool((x > 0).any()), torch.nonzero])
def test_waiting_is_seen(read):
    with Waits() as waits:
        read(torch.ones(3))
    assert waits.seen


@pytest.mark.parametrize("form", ["published", "fused", "training"])
@pytest.mark.parametrize("head", ["fpn", "setr_naive", "setr_pup", "setr_mla"])
def test_forward_reads_no_value(head, form):
    model = build_model(f"{head}-tiny")
    model.load_state_dict(filled_state(model))
    network = InferenceForm(model.eval().requires_grad_(requires_grad=False)) if form == "fused" else model
    network.train(form == "training")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network(images)  # what is prepared once may wait
    with Waits() as waits:
        network(images)
    assert waits.seen == []


class OneDevice(TorchDispatchMode):
    """Notes operations whose tensors are not all on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.crossing = 0, set[str]()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        self.operations += 1
        if {tensor.device.type for tensor in tensors} - {"cuda"}:
            self.crossing.add(str(function))
        return result


def on_gpu(make: Callable[..., Any]) -> Callable[..., Any]:
    """What `make` makes on the CPU of numbers, device and dtype, as fake tensors of that device."""

    def made(*arguments: Any) -> Any:
        device = next(one for one in arguments if isinstance(one, torch.device))
        with unset_fake_temporarily():
            real = make(*(torch.device("cpu") if one is device else one for one in arguments))

        def fake(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return torch.empty(leaf.shape, dtype=leaf.dtype, device=device)

        return pytree.tree_map(fake, real)

    return made


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module, Callable[[nn.Module], nn.Module]], OneDevice]:
    monkeypatch.setitem(backend._REFUSALS, "triton", lambda device, dtype: "")
    for name in ("_bands", "_source_rows_on"):
        monkeypatch.setattr(resample, name, on_gpu(getattr(resample, name)))

    def followed(model: nn.Module, form: Callable[[nn.Module], nn.Module]) -> OneDevice:
        with FakeTensorMode():
            for module in model.modules():
                for tensors in (module._parameters, module._buffers):
                    for name, value in tensors.items():
                        if value is not None:
                            made = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                            tensors[name] = nn.Parameter(made, False) if tensors is module._parameters else made  # type: ignore[assignment]
            network, images = form(model), torch.empty(4, 3, 769, 769, device="cuda")
            with torch.inference_mode(), OneDevice() as seen:
                logits = network(images)
            assert (logits.shape, logits.device.type) == ((4, 19, 769, 769), "cuda")
        return seen

    return followed


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("head", ["fpn", "setr_naive", "setr_pup", "setr_mla"])
@pytest.mark.parametrize("size", ["tiny", "small", "medium", "large"])
def test_a_pass_stays_on_the_gpu(size: str, head: str, fused: bool, follow: Any) -> None:
    with shapes_only():
        model = Segmentor(size, head, 19).eval().requires_grad_(requires_grad=False)
    use_backend(model, "triton")
    seen = follow(model, InferenceForm if fused else lambda model: model)
    assert seen.operations > 200
    assert seen.crossing == set()


def test_what_waits_or_copies_is_seen(follow: Any) -> None:
    class Copies(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images[:, :1].expand(-1, 19, -1, -1) * torch.ones(1).to(images.device)

    class Waits(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images[:, :1].expand(-1, 19, -1, -1) if images.sum() > 0 else images

    assert follow(Copies(), lambda model: model).crossing
    with pytest.raises(DataDependentOutputException):
        follow(Waits(), lambda model: model)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_model_passes_strict_export(model):
    network = build_model(model).eval().requires_grad_(requires_grad=False)
    use_backend(network, "native")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        program = torch.export.export(network, (torch.zeros(1, 3, 129, 129),), strict=True)
    attentions = sum(str(node.target) == "dgmn2.attention.default" for node in program.graph.nodes)
    assert attentions == sum(BLOCKS[model.split("-")[1]])
