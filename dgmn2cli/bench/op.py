"""Owns `--bench op`: both deformable ops at the sizes a window gives them, every backend beside the baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgmn2cli.bench.agreement import compare, require
from dgmn2cli.bench.baseline import plain_attention, torchvision_unfold
from dgmn2cli.bench.macs import ATTENTION_MACS, CORNERS
from dgmn2cli.bench.names import OURS
from dgmn2cli.bench.network import TRAINING_FACTOR
from dgmn2cli.bench.rates import copy_probe
from dgmn2cli.bench.report import Findings, Row
from dgmn2cli.bench.sides import PUBLISHED_DESIGNS, Side, baseline_side
from dgmn2cli.bench.timing import Step, alternate, paired_ratio, spread
from dgmn2cli.errors import ResourceError
from dgmn2cli.model.attention import HEAD_WIDTH, SAMPLES, TABLE_MARGIN
from dgmn2cli.model.backbone import CHANNELS, DILATED_STRIDES, PYRAMID_STRIDES
from dgmn2cli.ops import available_backends, deform_attention, deform_unfold, resample_table, resolve

ATTENTION, UNFOLD = "deform_attention", "deform_unfold"
OFFSET_SCALE = 1.5  # pixels, the deviation that the stand-in weights' offsets have too
TABLE_SCALE = 0.2
ENOUGH = 2.0  # seconds for one side of one op at one size: the slow ones take several a run
Operation = Callable[..., Tensor]


@dataclass(frozen=True)
class OpCase:
    """One op at the size one stage gives it.

    Attributes:
        op: `deform_attention` or `deform_unfold`.
        stage: 1 to 4.
        heads, height, width: of the stage's map; a head is 64 wide.
        batch: windows.
    """

    op: str
    stage: int
    heads: int
    height: int
    width: int
    batch: int = 1

    @property
    def subject(self) -> str:
        """How reports call it."""
        return f"{self.op}, stage {self.stage}: {self.heads} x {self.height} x {self.width}"

    def inputs(self, side: Side) -> tuple[Tensor, ...]:
        """The tensors the op takes, drawn alike for every side: maps or qkv, offsets, and attention's stored tables."""
        random = torch.Generator().manual_seed(self.stage)
        count = self.height * self.width
        if self.op == ATTENTION:
            rows = 224 // 2 ** (self.stage + 1) + TABLE_MARGIN
            drawn = [
                torch.randn(self.batch, count, 3, self.heads, HEAD_WIDTH, generator=random),
                torch.randn(self.batch, count, self.heads, 2 * SAMPLES, generator=random) * OFFSET_SCALE,
                torch.randn(rows, HEAD_WIDTH, generator=random) * TABLE_SCALE,
                torch.randn(rows, HEAD_WIDTH, generator=random) * TABLE_SCALE,
            ]
        else:
            shape = (self.batch * self.heads, -1, self.height, self.width)
            drawn = [
                torch.randn(self.batch * self.heads * HEAD_WIDTH * count, generator=random).view(shape),
                (torch.randn(self.batch * self.heads * 2 * SAMPLES * count, generator=random) * OFFSET_SCALE).view(
                    shape
                ),
            ]
        return tuple(tensor.to(side.device, side.number) for tensor in drawn)

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


def op_sides(
    device: torch.device, dtype: str, backend: str, baselines: Sequence[str], findings: Findings
) -> list[Side]:
    """Every usable backend, the chosen one first, then the baselines; what cannot run is told in `findings`.

    Raises:
        ResourceError: the named backend cannot run.
    """
    number = Side(OURS, str(device), dtype, "", "").number
    chosen = resolve(backend, device, number)
    sides = [Side(OURS, str(device), dtype, chosen, "fused")]
    for name in available_backends():
        if name != chosen:
            try:
                sides.append(Side(OURS, str(device), dtype, resolve(name, device, number), "fused"))
            except ResourceError as error:
                findings.note(str(error))
    for name in baselines:
        if name == "published":  # an order of operations of networks, not of an op
            continue
        try:
            sides.append(baseline_side(name, device, dtype, chosen))
        except ResourceError as error:
            findings.note(str(error))
    return sides


def measure_op(
    case: OpCase,
    sides: Sequence[Side],
    warmup: int,
    iters: int,
    findings: Findings,
    progress: Callable[[str], object] = lambda doing: None,
) -> None:
    """Checks and times one op, forward and forward + backward; adds to `findings`.

    Raises:
        CheckFailed: two sides differ.
    """
    device = torch.device(sides[0].device)
    if case.op == UNFOLD:  # the design is the same for all of them: only the unfold itself differs
        sides = [side for side in sides if side.name != "plain"]
    operations = [_operation(case, side) for side in sides]
    copying = copy_probe(device)
    for backward in (False, True):
        progress(f"{case.subject}: {'backward' if backward else 'forward'}")
        steps: list[Step] = []
        own: list[Tensor] = []
        for side, operation in zip(sides, operations, strict=True):
            inputs = case.inputs(side)
            if case.op == ATTENTION and side.form == "fused" and device.type == "cpu" and not backward:
                inputs = (by_head(inputs[0]), *inputs[1:])
            step = _step(operation, inputs, backward)
            answer = step()
            own = own or answer
            if side is not sides[0]:
                what = "gradients" if backward else "output"
                findings.agreements.append(require(compare(case.subject, side, what, sides[0], own, answer)))
            steps.append(step)
        again = max(0, warmup - 1)  # the check was the first round
        *timings, copies = alternate([*steps, copying.step], device, again, iters, enough=ENOUGH)
        findings.rates.append(copying.rate(copies))
        findings.rows += [
            _row(case, side, backward, seconds, timings[0]) for side, seconds in zip(sides, timings, strict=True)
        ]


def _row(case: OpCase, side: Side, backward: bool, seconds: list[float], own: list[float]) -> Row:
    seen = spread(seconds)
    macs = case.macs * (TRAINING_FACTOR if backward else 1)
    return Row(
        subject=case.subject,
        task="forward + backward" if backward else "forward",
        side=side.name,
        form=side.form,
        backend=side.backend,
        dtype=side.dtype,
        compiled=side.compiled,
        batch=case.batch,
        height=case.height,
        width=case.width,
        runs=seen.runs,
        median=seen.median,
        p10=seen.p10,
        p90=seen.p90,
        per_second=case.batch / seen.median,
        times_as_fast=paired_ratio(seconds, own),
        macs=macs,
        gflops=2 * macs / seen.median / 1e9,
        gbytes=bytes_moved(case, side, backward) / seen.median / 1e9,
    )


def by_head(qkv: Tensor) -> Tensor:
    """`(B, N, 3, h, d)` with the same numbers, laid out as the fused block lays them out at inference.

    That is head by head, and within a head queries, keys and values apart.
    """
    return qkv.permute(3, 2, 0, 1, 4).contiguous().permute(2, 3, 1, 0, 4)


def bytes_moved(case: OpCase, side: Side, backward: bool) -> int:
    """Bytes that any implementation must read and write: inputs once and the result once; with a backward pass the
    inputs and the result's gradient once more, and the inputs' gradients."""
    inputs = sum(tensor.numel() for tensor in case.inputs(side)[:2])
    result = case.batch * case.height * case.width * case.heads * HEAD_WIDTH * (1 if case.op == ATTENTION else SAMPLES)
    return side.number.itemsize * (3 * inputs + 2 * result if backward else inputs + result)


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


def _operation(case: OpCase, side: Side) -> Operation:
    size = (case.height, case.width)
    if case.op == UNFOLD and side.name == "torchvision":
        return torchvision_unfold

    def unfold(maps: Tensor, offset: Tensor) -> Tensor:
        return deform_unfold(maps, offset, kernel_size=3, padding=1, backend=side.backend)

    def attention(qkv: Tensor, offset: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        tables = (resample_table(rows, size[0]), resample_table(columns, size[1]))
        return deform_attention(qkv, offset, *tables, size, backend=side.backend)

    def as_published(qkv: Tensor, offset: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return plain_attention(qkv, offset, rows, columns, size, PUBLISHED_DESIGNS[side.name])

    chosen = unfold if case.op == UNFOLD else as_published if side.name in PUBLISHED_DESIGNS else attention
    return torch.compile(chosen) if side.compiled else chosen
