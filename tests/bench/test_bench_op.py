"""`--bench op` works on the maps a window really gives the ops, and refuses implementations that differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dgmn2cli.bench import op as bench_op
from dgmn2cli.bench.implementations import Implementation
from dgmn2cli.bench.op import ATTENTION, UNFOLD, OpCase, bytes_moved, measure_op, op_implementations, stage_cases
from dgmn2cli.bench.report import Report, describe_machine
from dgmn2cli.bench.request import Request
from dgmn2cli.errors import CheckFailed, ResourceError
from dgmn2cli.model.attention import DynamicGraphAttention
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.model.shapes import shapes_only
from dgmn2cli.observer import Silent
from dgmn2cli.ops import available_backends

CPU = torch.device("cpu")
REFERENCE = Implementation("dgmn2cli", "cpu", "float32", "reference", "fused")
TORCHVISION = Implementation("torchvision", "cpu", "float32", "torchvision", "published")


def empty() -> Report:
    return Report("op", describe_machine(CPU))


@pytest.mark.parametrize("head", ["fpn", "setr_naive"])
@pytest.mark.parametrize("size", [(769, 769), (97, 130)])
def test_stages_are_those_of_the_network(head: str, size: tuple[int, int]) -> None:
    with shapes_only():
        model = Segmentor("tiny", head)
        images = torch.empty(1, 3, *size)
    seen: list[tuple[int, tuple[int, int]]] = []

    def note(module: Any, inputs: tuple[Any, ...]) -> None:
        seen.append((module.heads, inputs[1]))

    for module in model.modules():
        if isinstance(module, DynamicGraphAttention):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        model.backbone(images)
    cases = stage_cases(ATTENTION, head, *size, batch=1)
    assert [(case.heads, (case.height, case.width)) for case in cases] == seen[::2]  # two blocks a stage
    assert [case.stage for case in cases] == [1, 2, 3, 4]


def test_the_published_window() -> None:
    sizes = [(case.heads, case.height, case.width) for case in stage_cases(UNFOLD, "setr_pup", 769, 769, 1)]
    assert sizes == [(1, 193, 193), (2, 97, 97), (5, 97, 97), (8, 97, 97)]


def test_heads_apart_are_the_same_numbers() -> None:
    qkv = torch.randn(2, 15, 3, 4, 8)
    apart = bench_op.by_head(qkv)
    assert torch.equal(apart, qkv)
    assert apart.stride() == (15 * 8, 8, 2 * 15 * 8, 3 * 2 * 15 * 8, 1)


def test_bytes_by_hand() -> None:
    case = OpCase(ATTENTION, 2, heads=2, height=5, width=3)
    qkv, offset, result = 15 * 3 * 128, 15 * 2 * 18, 15 * 128
    assert bytes_moved(case, REFERENCE, backward=False) == 4 * (qkv + offset + result)
    assert bytes_moved(case, REFERENCE, backward=True) == 4 * (3 * (qkv + offset) + 2 * result)
    unfold = OpCase(UNFOLD, 2, heads=2, height=5, width=3)
    assert bytes_moved(unfold, REFERENCE, backward=False) == 4 * (15 * 128 + offset + 9 * 15 * 128)


@pytest.mark.parametrize("op", [ATTENTION, UNFOLD])
def test_rows_of_one_case(op: str) -> None:
    report = empty()
    request = Request("op", CPU, baselines=("plain", "torchvision", "published"), warmup=0, iters=2)
    found = op_implementations(request, report)
    usable = [name for name, found in available_backends().items() if found.usable]
    assert [used.name for used in found].count("dgmn2cli") == len(usable)
    case = OpCase(op, 3, heads=5, height=7, width=4, batch=2)
    measure_op(case, found, request, report, Silent())
    compared = [used for used in found if not (op == UNFOLD and used.name == "plain")]
    rows = report.timed()
    assert [(row.task, row.implementation, row.backend) for row in rows] == [
        (task, used.name, used.backend) for task in ("forward", "forward + backward") for used in compared
    ]
    assert {row.name for row in rows} == {f"{op}, stage 3: 5 x 7 x 4"}
    assert all(row.runs == 2 and 0 < row.p10 <= row.median <= row.p90 for row in rows)
    assert [
        row.times_as_fast for row in rows if (row.implementation, row.backend) == ("dgmn2cli", found[0].backend)
    ] == [1, 1]
    assert len(report.agreements) == 2 * (len(compared) - 1)
    assert {agreement.what for agreement in report.agreements} == {"output", "gradients"}


def test_backends_that_cannot_run_are_told() -> None:
    report = empty()
    op_implementations(Request("op", CPU, "float16", "reference", baselines=("torchvision",)), report)
    assert any("torchvision has no deform_conv2d for cpu, float16" in note for note in report.notes)
    with pytest.raises(ResourceError, match="triton"):
        op_implementations(Request("op", CPU, backend="triton"), empty())


@pytest.mark.parametrize("backward", [False, True])
def test_a_wrong_implementation_is_refused(monkeypatch: pytest.MonkeyPatch, backward: bool) -> None:
    """In the second case the result is right and only the gradient is wrong."""

    def wrong(maps: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        right = unfold(maps, offset)
        extra = 0.01 * maps.sum()
        return right + (extra - extra.detach() if backward else extra)

    unfold = bench_op.torchvision_unfold
    monkeypatch.setattr(bench_op, "torchvision_unfold", wrong)
    case, report = OpCase(UNFOLD, 1, heads=1, height=6, width=5), empty()
    with pytest.raises(CheckFailed, match="gradients differ" if backward else "output differ"):
        measure_op(case, [REFERENCE, TORCHVISION], Request("op", CPU, warmup=0, iters=1), report, Silent())
    assert len(report.rows) == (2 if backward else 0)
