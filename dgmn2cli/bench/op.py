"""`--bench op`: both deformable ops at the sizes a window gives them, every backend beside the baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgmn2cli.bench.baseline import plain_attention, torchvision_unfold
from dgmn2cli.bench.implementations import (
    PUBLISHED_DESIGNS,
    RECORDED,
    Implementation,
    baseline,
    compare,
    noted,
    ours,
)
from dgmn2cli.bench.macs import ATTENTION_MACS, CORNERS
from dgmn2cli.bench.network import TRAINING_FACTOR
from dgmn2cli.bench.report import Report, Row
from dgmn2cli.bench.request import Request
from dgmn2cli.bench.timing import Step, alternate, copy_probe
from dgmn2cli.model.attention import HEAD_WIDTH, SAMPLES, TABLE_MARGIN
from dgmn2cli.model.backbone import CHANNELS, DILATED_STRIDES, PYRAMID_STRIDES
from dgmn2cli.observer import Observer
from dgmn2cli.ops import available_backends, deform_attention, deform_unfold, resample_table

ATTENTION, UNFOLD = "deform_attention", "deform_unfold"
OFFSET_SCALE = 1.5  # pixels, the deviation that the stand-in weights' offsets have too
TABLE_SCALE = 0.2
ENOUGH = 2.0  # seconds for one implementation of one op at one size: the slow ones take several a run
Operation = Callable[..., Tensor]


@dataclass(frozen=True)
class OpCase:
    """One op at the size one stage gives it."""

    op: str  # `deform_attention` or `deform_unfold`
    stage: int  # 1 to 4
    # heads, height, width: of the stage's map; a head is 64 wide
    heads: int
    height: int
    width: int
    batch: int = 1  # windows

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{self.op}, stage {self.stage}: {self.heads} x {self.height} x {self.width}"

    def inputs(self, used: Implementation) -> tuple[Tensor, ...]:
        """The tensors the op takes, drawn alike for all: maps or qkv, offsets, and attention's stored tables."""
        random = torch.Generator().manual_seed(self.stage)
        count = self.height * self.width
        if self.op == ATTENTION:
            rows = 224 // 2 ** (self.stage + 1) + TABLE_MARGIN
            shapes: list[tuple[int, ...]] = [
                (self.batch, count, 3, self.heads, HEAD_WIDTH),
                (self.batch, count, self.heads, 2 * SAMPLES),
                (rows, HEAD_WIDTH),
                (rows, HEAD_WIDTH),
            ]
        else:
            size = (self.height, self.width)
            shapes = [(self.batch * self.heads, channels, *size) for channels in (HEAD_WIDTH, 2 * SAMPLES)]
        drawn = [
            torch.randn(shape, generator=random) * scale
            for shape, scale in zip(shapes, (1, OFFSET_SCALE, TABLE_SCALE, TABLE_SCALE), strict=False)
        ]
        return tuple(tensor.to(used.device, used.torch_dtype) for tensor in drawn)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a forward run."""
        each = ATTENTION_MACS if self.op == ATTENTION else SAMPLES * CORNERS
        return self.batch * self.height * self.width * self.heads * HEAD_WIDTH * each


def stage_cases(op: str, head: str, height: int, width: int, batch: int) -> list[OpCase]:
    """The op at the four stages of a network with this head, for a window of the given size."""
    cases = []
    strides = PYRAMID_STRIDES if head == "fpn" else DILATED_STRIDES
    for stage, (stride, channels) in enumerate(zip((2, *strides[1:]), CHANNELS, strict=True), 1):
        if stage == 1:  # two convolutions of stride 2
            height, width = (height + 1) // 2, (width + 1) // 2
        height, width = -(-height // stride), -(-width // stride)
        cases.append(OpCase(op, stage, channels // HEAD_WIDTH, height, width, batch))
    return cases


def op_implementations(request: Request, report: Report) -> list[Implementation]:
    """Every usable backend, the chosen one first, then the baselines; what cannot run is told in `report`.

    Raises:
        ResourceError: the named backend cannot run.
    """
    device, dtype = request.device, request.dtype
    found = [ours(device, dtype, request.backend)]
    own = found[0].backend
    for name in available_backends():
        if name != own:
            with noted(report.note):
                found.append(ours(device, dtype, name))
    for name in request.baselines:
        if name not in ("published", RECORDED):  # which are ways to run networks, not an op
            with noted(report.note):
                found.append(baseline(name, device, dtype, own))
    return found


def measure_op(
    case: OpCase, compared: Sequence[Implementation], request: Request, report: Report, observer: Observer
) -> None:
    """Checks and times one op, forward and forward + backward; adds to `report`.

    Args:
        compared: the implementations, the chosen one of this package first.

    Raises:
        CheckFailed: two implementations differ.
    """
    device = torch.device(compared[0].device)
    if case.op == UNFOLD:  # the design is the same for all of them: only the unfold itself differs
        compared = [used for used in compared if used.name != "plain"]
    operations = [_operation(case, used) for used in compared]
    copying = copy_probe(device)
    for backward in (False, True):
        task = "forward + backward" if backward else "forward"
        observer.advance(0, detail=f"{case.name}: {task}")
        steps: list[Step] = []
        own: list[Tensor] = []
        for used, operation in zip(compared, operations, strict=True):
            inputs = case.inputs(used)
            if case.op == ATTENTION and used.form == "fused" and device.type == "cpu" and not backward:
                inputs = (by_head(inputs[0]), *inputs[1:])
            step = _step(operation, inputs, backward)
            answer = step()
            own = own or answer
            if used is not compared[0]:
                what = "gradients" if backward else "output"
                report.agreements.append(compare(case.name, used, what, compared[0], own, answer).require())
            steps.append(step)
        again = max(0, request.warmup - 1)  # the check was the first round
        *timings, copies = alternate([*steps, copying.step], device, again, request.iters, enough=ENOUGH)
        report.rates.append(copying.rate(copies))
        macs = case.macs * (TRAINING_FACTOR if backward else 1)
        for used, seconds in zip(compared, timings, strict=True):
            row = Row.of(case.name, task, (case.batch, case.height, case.width), used, seconds, timings[0])
            gbytes = bytes_moved(case, used, backward) / row.median / 1e9
            report.rows.append(replace(row, macs=macs, gflops=2 * macs / row.median / 1e9, gbytes=gbytes))


def by_head(qkv: Tensor) -> Tensor:
    """`(B, N, 3, h, d)` with the same numbers, laid out as the fused block lays them out at inference.

    That is head by head, and within a head queries, keys and values apart.
    """
    return qkv.permute(3, 2, 0, 1, 4).contiguous().permute(2, 3, 1, 0, 4)


def bytes_moved(case: OpCase, used: Implementation, backward: bool) -> int:
    """Bytes that any implementation must read and write: inputs and result once.

    With a backward pass the inputs and the result's gradient once more, and the inputs' gradients.
    """
    inputs = sum(tensor.numel() for tensor in case.inputs(used)[:2])
    result = case.batch * case.height * case.width * case.heads * HEAD_WIDTH * (1 if case.op == ATTENTION else SAMPLES)
    return used.torch_dtype.itemsize * (3 * inputs + 2 * result if backward else inputs + result)


def _step(operation: Operation, inputs: tuple[Tensor, ...], backward: bool) -> Callable[[], list[Tensor]]:
    """Runs the op; with `backward`, gives the gradients of all inputs for a gradient of the output drawn once."""
    if not backward:

        def forward() -> list[Tensor]:
            with torch.inference_mode():
                return [operation(*inputs)]

        return forward
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    with torch.no_grad():
        random = torch.Generator().manual_seed(0)
        weights = operation(*inputs)
        weights = torch.randn(weights.shape, generator=random).to(weights)

    def both() -> list[Tensor]:
        return list(torch.autograd.grad(operation(*leaves), leaves, weights))

    return both


def _operation(case: OpCase, used: Implementation) -> Operation:
    size = (case.height, case.width)
    if case.op == UNFOLD and used.name == "torchvision":
        return torchvision_unfold

    def unfold(maps: Tensor, offset: Tensor) -> Tensor:
        return deform_unfold(maps, offset, kernel_size=3, padding=1, backend=used.backend)

    def attention(qkv: Tensor, offset: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        tables = (resample_table(rows, size[0]), resample_table(columns, size[1]))
        return deform_attention(qkv, offset, *tables, size, backend=used.backend)

    def as_published(qkv: Tensor, offset: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return plain_attention(qkv, offset, rows, columns, size, PUBLISHED_DESIGNS[used.name])

    chosen = unfold if case.op == UNFOLD else as_published if used.name in PUBLISHED_DESIGNS else attention
    return torch.compile(chosen) if used.compiled else chosen
