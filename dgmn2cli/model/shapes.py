"""Networks for their names and shapes alone, or for weights to come: no random numbers, none of torch's compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Network = TypeVar("Network", bound=nn.Module)

# what weights are filled with; torch runs some of these, on tensors without content, through its compiler
_FILLING: tuple[Callable[..., Tensor], ...] = (
    Tensor.normal_,
    Tensor.uniform_,
    Tensor.erfinv_,
    Tensor.mul_,
    Tensor.add_,
    Tensor.clamp_,
    Tensor.fill_,
    Tensor.zero_,
)


class _LeaveEmpty(TorchFunctionMode):
    """Filling a tensor in place does nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func in _FILLING or getattr(func, "__module__", "") == nn.init.__name__:
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Networks built within the block have their tensors on the meta device, never filled.

    `torch.device("meta")` alone gives the same tensors, but importing torch's compiler for the sake of numbers that are
    nowhere kept takes a second.
    """
    with torch.device("meta"), _LeaveEmpty():
        yield


def unfilled(build: Callable[[], Network]) -> Network:
    """What `build` makes, on the CPU, for weights that are loaded next; drawing others takes longer than loading them.

    Buffers, some of which a file may lack, are 0.
    """
    with shapes_only():
        network = build()
    network.to_empty(device=torch.device("cpu"))
    for buffer in network.buffers():
        buffer.zero_()
    return network
