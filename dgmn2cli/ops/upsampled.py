"""Owns the 3x3 convolution of a bilinearly enlarged map at the small map's cost, by the compiled CPU kernels.

A convolution is nine products with a matrix of channels, one per tap, and such products commute with bilinear resizing:
they are taken on the small map and interpolated afterwards. Enlarging by two along both axes leaves a quarter of the
multiply-accumulates, and the enlarged map is never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dgmn2cli.ops import native
from dgmn2cli.ops.resample import source_rows

TAPS = 9
PRODUCT_ELEMENTS = 1 << 21  # products held at a time: they should stay in the cache until they are summed
Size = tuple[int, int]


def can_convolve(size: Size, target: Size, dtype: torch.dtype) -> bool:
    """Whether a convolution over a map of `size` enlarged to `target` can be done here, and pays."""
    pays = 2 * size[0] * size[1] <= target[0] * target[1]
    return pays and dtype == torch.float32 and not native.refusal("cpu", "float32")


def convolve_upsampled(
    lines: Tensor, multiply: Callable[[Tensor], Tensor], bias: Tensor, target: Size
) -> Iterator[Tensor]:
    """Rows of `relu(conv3x3(resize(map)) + bias)`, padding 1, resized with aligned corners, from top to bottom.

    Args:
        lines: `(h, w, I)` contiguous, the small map.
        multiply: the convolution's nine taps: `(n, I)` to `(n, 9 * O)`, O numbers for each tap `3*ky + kx`.
        bias: `(O,)`.
        target: `(H, W)` of the enlarged map.

    Yields:
        `(rows, W, O)` contiguous, H rows in all.
    """
    height, width, _ = lines.shape
    channels = bias.shape[0]
    plan = _plan(height, target[0], max(1, PRODUCT_ELEMENTS // (width * TAPS * channels)))
    down, across = _axis(height, target[0]), _axis(width, target[1])
    ring = lines.new_empty(plan.ring_rows, target[1], 3, channels)
    for rows, made in plan.steps:
        products = multiply(lines[rows].flatten(0, 1))
        out = lines.new_empty(made.stop - made.start, target[1], channels)
        upsampled_rows(products, ring, out, bias, *down, *across, height, width, target[0], rows.start, made.start)
        yield out


@dataclass(frozen=True)
class _Plan:
    """In what steps the rows of a small map become rows of the large one.

    Attributes:
        steps: per step the rows of the small map that are multiplied, and those of the large map that follow from them.
        ring_rows: rows of the small map that some step still needs at a time.
    """

    steps: tuple[tuple[slice, slice], ...]
    ring_rows: int


@lru_cache(maxsize=64)
def _plan(height: int, target: int, rows: int) -> _Plan:
    upper, lower, _ = source_rows(height, target)
    steps, done, deepest = [], 0, 1
    for first in range(0, height, rows):
        stop = min(first + rows, height)
        last = done
        while last < target and int(lower[min(last + 1, target - 1)]) < stop:  # the row below is needed as well
            last += 1
        oldest = int(upper[max(done - 1, 0)])
        deepest = max(deepest, stop - min(oldest, first))
        steps.append((slice(first, stop), slice(done, last)))
        done = last
    assert done == target
    return _Plan(tuple(steps), deepest)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _axis(length: int, target: int) -> tuple[Tensor, Tensor]:
    upper, _, weight = source_rows(length, target)
    return upper.to(torch.int32), weight.contiguous()


@torch.library.custom_op("dgmn2::upsampled_rows", mutates_args=("ring", "out"), device_types="cpu")
def upsampled_rows(
    products: Tensor,
    ring: Tensor,
    out: Tensor,
    bias: Tensor,
    down: Tensor,
    down_weight: Tensor,
    across: Tensor,
    across_weight: Tensor,
    height: int,
    width: int,
    out_height: int,
    first_row: int,
    first_out: int,
) -> None:
    """One step of `convolve_upsampled`.

    Args:
        products: `(rows * w, 9 * O)` contiguous: of source rows `first_row` and on.
        ring: `(ring rows, W, 3, O)`, kept from step to step.
        out: `(out rows, W, O)`, written: rows `first_out` and on of the result.
        bias: `(O,)`.
        down, down_weight: `(H,)` int32, float32: the source row above each row of the large map, and how much the one
            below it counts.
        across, across_weight: `(W,)`, the same along x.
        height, width: of the small map.
        out_height: H.
        first_row, first_out: see above.
    """
    kernels = native.loaded()
    rows = products.shape[0] // width
    kernels.upsampled_rows(
        native.FORMATS[products.dtype],
        torch.get_num_threads(),
        native.instruction_set_level(),
        products.data_ptr(),
        ring.data_ptr(),
        out.data_ptr(),
        bias.data_ptr(),
        down.data_ptr(),
        down_weight.data_ptr(),
        height,
        out_height,
        across.data_ptr(),
        across_weight.data_ptr(),
        width,
        ring.shape[1],
        bias.shape[0],
        rows,
        first_row,
        ring.shape[0],
        out.shape[0],
        first_out,
    )
