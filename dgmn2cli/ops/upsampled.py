"""The 3x3 convolution of a bilinearly enlarged map at the small map's cost, by the compiled CPU kernels.

A convolution is nine products with a matrix of channels, one per tap, and such products commute with bilinear resizing:
they are taken on the small map and interpolated afterwards. Enlarging by two along both axes leaves a quarter of the
multiply-accumulates, and the enlarged map is never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgmn2cli.ops import native
from dgmn2cli.ops.contract import refuse, require_memory, require_shape, require_tensors
from dgmn2cli.ops.operators import LIBRARY, below_autograd, cached, has_tangent, wants_gradient
from dgmn2cli.ops.resample import source_rows, source_span

TAPS = 9
LONGEST = 1 << 20  # side of a map; positions are float32
PRODUCT_ELEMENTS = 1 << 20  # products held at a time: they should stay in the cache until they are summed
Size = tuple[int, int]


def can_convolve(size: Size, target: Size, dtype: torch.dtype) -> bool:
    """Whether a convolution over a map of `size` enlarged to `target` can be done here, and pays."""
    pays = 2 * size[0] * size[1] <= target[0] * target[1]
    return pays and dtype == torch.float32 and not native.refusal("cpu", "float32")


def convolve_upsampled(
    lines: Tensor,
    multiply: Callable[[Tensor], Tensor],
    bias: Tensor,
    target: Size,
    *,
    relu: bool = True,
    span: slice | None = None,
    into: Tensor | None = None,
) -> Iterator[Tensor]:
    """Rows of `relu(conv3x3(resize(map)) + bias)`, padding 1, resized with aligned corners, from top to bottom.

    Args:
        lines: `(h, w, I)` contiguous, the small map.
        multiply: the convolution's nine taps: `(n, I)` to `(n, 9 * O)`, O numbers for each tap `3*ky + kx`.
        bias: `(O,)`.
        target: `(H, W)` of the enlarged map.
        relu: False leaves the sums as they are.
        span: the rows wanted, `start` and `stop` within 0..H; all if None.
        into: `(H, W, O)` contiguous, where to write them; new memory for each step if None.

    Yields:
        `(rows, W, O)` contiguous, those of the span in all.
    """
    height, width, _ = lines.shape
    channels = bias.shape[0]
    first, last = (0, target[0]) if span is None else (span.start, span.stop)
    plan = _plan(height, target[0], max(1, PRODUCT_ELEMENTS // (width * TAPS * channels)), first, last)
    ring = lines.new_empty(plan.ring_rows, target[1], 3, channels)
    for rows, made in plan.steps:
        products = multiply(lines[rows].flatten(0, 1))
        out = lines.new_empty(made.stop - made.start, target[1], channels) if into is None else into[made]
        torch.ops.dgmn2.upsampled_rows(
            products, ring, out, bias, height, width, target[0], rows.start, made.start, relu
        )
        if made.stop > made.start:  # a step may only fill the ring
            yield out


@dataclass(frozen=True)
class _Plan:
    """In what steps the rows of a small map become rows of the large one."""

    # per step the rows of the small map that are multiplied, and those of the large map that follow from them
    steps: tuple[tuple[slice, slice], ...]
    ring_rows: int  # rows of the small map that some step still needs at a time


@cached
def _plan(height: int, target: int, rows: int, begin: int, end: int) -> _Plan:
    """How rows `begin` to `end` of `target` are made, `rows` of the small map at a time."""
    upper, lower, _ = source_rows(height, target)
    needed = source_span(height, target, slice(max(begin - 1, 0), min(end + 1, target)))  # with the rows beside them
    steps, done, deepest = [], begin, 1
    for first in range(needed.start, needed.stop, rows):
        stop = min(first + rows, needed.stop)
        last = done
        while last < end and int(lower[min(last + 1, target - 1)]) < stop:  # the row below is needed as well
            last += 1
        oldest = int(upper[max(done - 1, 0)])
        deepest = max(deepest, stop - min(oldest, first))
        steps.append((slice(first, stop), slice(done, last)))
        done = last
    assert done == end
    return _Plan(tuple(steps), deepest)


@cached
def _axis(length: int, target: int) -> tuple[Tensor, Tensor]:
    upper, _, weight = source_rows(length, target)
    return upper.to(torch.int32), weight.contiguous()


def _check(*arguments: Any) -> None:
    """Refuses arguments that do not fit, and a step outside the maps."""
    products, ring, out, bias, height, width, out_height, first_row, first_out, *_ = arguments
    op, tensors = "upsampled_rows", (products, ring, out, bias)
    names = ("products", "ring", "out", "bias")
    require_tensors(op, tensors, names, (torch.float32,))
    if min(height, width, out_height) < 1 or max(height, width, out_height) > LONGEST:
        raise refuse(op, "size", (height, width, out_height), f"numbers from 1 to {LONGEST}")
    if bias.dim() != 1 or ring.dim() != 4 or out.dim() != 3 or products.dim() != 2:
        raise refuse(op, "arguments", [tensor.dim() for tensor in tensors], "2, 4, 3 and 1 dimensions")
    channels, out_width, rows = bias.shape[0], ring.shape[1], products.shape[0] // width
    if channels < 1 or not 1 <= out_width <= LONGEST or ring.shape[0] < 1 or rows < 1:
        raise refuse(op, "arguments", [tuple(tensor.shape) for tensor in tensors], "no empty axis")
    require_shape(op, "products", products, (rows * width, TAPS * channels))
    require_shape(op, "ring", ring, (ring.shape[0], out_width, 3, channels))
    require_shape(op, "out", out, (out.shape[0], out_width, channels))
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise refuse(op, name, f"{tensor.dtype}, strides {tensor.stride()}", "float32, contiguous")
    if first_row < 0 or first_row + rows > height or first_out < 0 or first_out + out.shape[0] > out_height:
        raise refuse(op, "rows", (first_row, first_out), f"a step within {height} and {out_height} rows")


def _check_ring(
    held: int, last_row: int, height: int, out_height: int, first_row: int, first_out: int, rows: int
) -> None:
    """Refuses a ring that cannot hold the small map's rows up to `last_row` that `rows` rows of the result need."""
    if not rows:
        return
    upper, lower, _ = source_rows(height, out_height)
    oldest, newest = int(upper[max(first_out - 1, 0)]), int(lower[min(first_out + rows, out_height - 1)])
    if newest >= last_row or last_row - min(oldest, first_row) > held:
        raise refuse("upsampled_rows", "ring", f"{held} rows up to {last_row}", f"rows {oldest} to {newest}")


def _upsampled_rows(
    products: Tensor,
    ring: Tensor,
    out: Tensor,
    bias: Tensor,
    height: int,
    width: int,
    out_height: int,
    first_row: int,
    first_out: int,
    relu: bool = True,
) -> None:
    """One step of `convolve_upsampled`, the operator `dgmn2::upsampled_rows`.

    Args:
        products: `(rows * w, 9 * O)` contiguous: of source rows `first_row` and on.
        ring: `(ring rows, W, 3, O)`, kept from step to step.
        out: `(out rows, W, O)`, written: rows `first_out` and on of the result.
        bias: `(O,)`.
        height, width: of the small map.
        out_height: H.
        first_row, first_out: see above.
        relu: whether negative sums are cut to zero.
    """
    _check(products, ring, out, bias, height, width, out_height, first_row, first_out)
    _check_ring(
        ring.shape[0], first_row + products.shape[0] // width, height, out_height, first_row, first_out, out.shape[0]
    )
    down, down_weight = _axis(height, out_height)
    across, across_weight = _axis(width, ring.shape[1])
    tensors = (products, ring, out, bias, down, down_weight, across, across_weight)
    require_memory("upsampled_rows", tensors)
    at = [tensor.data_ptr() for tensor in tensors]
    native.loaded().upsampled_rows(
        native.DTYPES[products.dtype],
        torch.get_num_threads(),
        native.instruction_set_level(),
        *at[:6],
        *(height, out_height),
        *at[6:],
        *(width, ring.shape[1]),
        *(bias.shape[0], products.shape[0] // width, first_row, ring.shape[0], out.shape[0], first_out, relu),
    )


def _refuse_derivatives(keyset: Any, *arguments: Any) -> None:
    tensors = arguments[:4]
    if has_tangent(tensors) or wants_gradient(tensors):
        raise refuse("upsampled_rows", "arguments", "differentiated", "torch.no_grad(): it has no derivative")
    torch.autograd.graph.increment_version(arguments[1:3])
    below_autograd(torch.ops.dgmn2.upsampled_rows.default, keyset, *arguments)


LIBRARY.define("upsampled_rows" + torch.library.infer_schema(_upsampled_rows, mutates_args=("ring", "out")))
LIBRARY.impl("upsampled_rows", _upsampled_rows, "CPU")
LIBRARY.impl("upsampled_rows", _refuse_derivatives, "Autograd", with_keyset=True)
torch.library.register_fake("dgmn2::upsampled_rows", _check, lib=LIBRARY)
