"""Networks with stand-in weights, each tensor drawn once for all tests of a process."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

from torch import Tensor, nn

from dgmn2cli.model.filled import filled_tensor
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.model.shapes import shapes_only, unfilled

Network = TypeVar("Network", bound=nn.Module)
_drawn = lru_cache(maxsize=2000)(filled_tensor)


def stand_ins(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """`filled_state` of what `build` makes; nobody may change these tensors."""
    with shapes_only():
        model = build()
    return {key: _drawn(key, tuple(value.shape), value.dtype) for key, value in model.state_dict().items()}


def filled(build: Callable[[], Network]) -> Network:
    """What `build` makes, for inference, with stand-in weights of its own."""
    model = unfilled(build)
    model.load_state_dict(stand_ins(lambda: model))
    return model.eval()


def segmentor(size: str, head: str, classes: int = 19) -> Segmentor:
    """A network with stand-in weights, for inference."""
    return filled(lambda: Segmentor(size, head, classes))
