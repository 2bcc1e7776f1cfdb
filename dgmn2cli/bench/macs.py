"""Counts of multiply-accumulates: what the published network asks for, and what a form of it executes.

What is asked for is counted from shapes alone, on the meta device; what is executed, while a network runs.

Counted, one each: every multiply-accumulate of a convolution or Linear layer, and of the attention op per query, head
and channel 9 x (q.k, a.v, width and height position, and 4 corners for each of k and v) = 108. Not counted: biases,
norms, activations, softmax, sums and resizes. At 224x224 this agrees with the published figures of the four ImageNet
networks (2.3, 4.3, 7.1, 10.4 G) within 2.5 %; how those were counted is not published.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dgmn2cli.bench.baseline import PlainAttention
from dgmn2cli.model.attention import SAMPLES, DynamicGraphAttention
from dgmn2cli.model.fused.layers import FusedBlock, FusedConv, FusedLinear
from dgmn2cli.model.fused.winograd import WinogradConv

CORNERS = 4
ATTENTION_MACS = SAMPLES * (4 + 2 * CORNERS)  # per query, head and channel


class _SizesOnly(TorchFunctionMode):
    """A resize to a size gives that alone: on the meta device torch runs dozens of operations for it, in Python."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is F.interpolate and named.get("size"):
            return args[0].new_empty((*args[0].shape[:2], *named["size"]))
        return func(*args, **named)


def attention_macs(batch: int, positions: int, channels: int) -> int:
    """Multiply-accumulates of one call of `deform_attention`: `channels` over all heads, `positions` = H * W."""
    return batch * positions * channels * ATTENTION_MACS


def count_macs(model: nn.Module, height: int, width: int, batch: int = 1) -> int:
    """Multiply-accumulates of one forward pass as published, exact.

    Args:
        model: a network on the meta device (built under `model.shapes.shapes_only`), in the published order.
        height, width: of the image, in pixels.
    """
    training = model.training
    try:
        with count_executed(model) as executed, _SizesOnly(), torch.no_grad():
            model.eval()(torch.empty(batch, 3, height, width, device="meta"))
    finally:
        model.train(training)
    return executed[0]


@contextmanager
def count_executed(network: nn.Module) -> Iterator[list[int]]:
    """Counts what a network of any form executes while it runs inside the block.

    Yields:
        A list that holds the count: layers' and attention's multiply-accumulates. The sums of an upsampled convolution
        are interpolation and, like every resize and the transforms around Winograd's products, not counted.
    """
    executed, one_at_a_time = [0], Lock()  # a batch's images may run in threads of their own

    def add(count: int) -> None:
        with one_at_a_time:
            executed[0] += count

    def layer(module: nn.Module, _given: tuple[Any, ...], result: Tensor) -> None:
        add(round(result.numel() * _inputs_of_an_output(module)))

    def attention(_module: nn.Module, given: tuple[Any, ...]) -> None:
        add(attention_macs(*given[0].shape))

    hooks = []
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, FusedLinear, FusedConv, WinogradConv)):
            hooks.append(module.register_forward_hook(layer))
        elif isinstance(module, (DynamicGraphAttention, PlainAttention, FusedBlock)):
            hooks.append(module.register_forward_pre_hook(attention))
    try:
        yield executed
    finally:
        for hook in hooks:
            hook.remove()


def _inputs_of_an_output(layer: nn.Module) -> float:
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if isinstance(layer, nn.Conv2d):
        return layer.weight[0].numel()
    assert isinstance(layer, (FusedLinear, FusedConv, WinogradConv))
    return layer.inputs


def count_parameters(model: nn.Module) -> int:
    """Trained numbers of a network; batch norm statistics are not among them."""
    return sum(parameter.numel() for parameter in model.parameters())
