"""No pass over the network waits for a GPU or copies to it: followed with fake tensors of a GPU, which need none.

Reading a value (`.item()`, a branch on a tensor, sizes that depend on values) is an error with fake tensors; a copy
between devices shows as an operation with tensors of both. Tables that are made once, before, are stand-ins here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dgmn2cli.model.attention import use_backend
from dgmn2cli.model.fused.network import InferenceForm
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.model.shapes import shapes_only
from dgmn2cli.ops import backend, resample

pytest.importorskip("triton")


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
