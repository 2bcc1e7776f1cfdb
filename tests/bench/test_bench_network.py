"""Sides of a network comparison: which there are, that they agree, what becomes of one that does not."""

from __future__ import annotations

import shutil

import pytest
import torch

from dgmn2cli.bench import network as bench_network
from dgmn2cli.bench.macs import count_executed, count_macs, count_parameters
from dgmn2cli.bench.network import TRAINING_FACTOR, Workload, measure_network
from dgmn2cli.bench.report import Findings, Row
from dgmn2cli.bench.sides import NetworkSpec, Side, baseline_side, build_side, own_side, sides_of
from dgmn2cli.errors import CheckFailed, ResourceError
from dgmn2cli.ops import resolve

CPU = torch.device("cpu")
SPEC = NetworkSpec("fpn-tiny", "tiny", "fpn")
SMALL = Workload(height=65, width=97, warmup=0, iters=1, memory=False)


def test_half_precision_stands_beside_the_design_in_float32_too() -> None:
    findings = Findings()
    sides = sides_of(own_side(CPU, "bfloat16", "auto", fused=True), ("torchvision", "published"), findings)
    assert [(side.name, side.dtype) for side in sides] == [
        ("dgmn2cli", "bfloat16"), ("torchvision", "float32"), ("published", "bfloat16"),
    ]  # fmt: skip
    assert "torchvision has no deform_conv2d for cpu, bfloat16" in findings.notes[0]


def test_without_compiled_kernels_there_is_no_plain_design(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgmn2cli.bench.sides.resolve_backend", lambda *given: "reference")
    with pytest.raises(ResourceError, match="no compiled unfold"):
        baseline_side("plain", CPU, "float32", "reference")


def test_without_a_compiler_the_definition_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    findings = Findings()
    sides = sides_of(own_side(CPU, "float32", "auto", fused=True), ("definition",), findings)
    assert len(sides) == 1
    assert "C++ compiler" in findings.notes[0]


@pytest.mark.parametrize("training", [False, True])
def test_rows_agree_with_the_counter(training: bool) -> None:
    work = Workload(2, 65, 97, training, warmup=0, iters=1, memory=False)
    sides = sides_of(own_side(CPU, "float32", "auto", fused=not training), ("torchvision",), findings := Findings())
    measure_network(SPEC, sides, work, findings)
    ours, theirs = findings.rows
    assert isinstance(ours, Row)
    assert isinstance(theirs, Row)
    with torch.device("meta"):
        model = SPEC.build()
    factor = TRAINING_FACTOR if training else 1
    assert theirs.macs == factor * count_macs(model, 65, 97, batch=2)
    assert ours.macs == theirs.macs == theirs.executed
    assert ours.executed is not None
    if training:
        assert ours.executed == ours.macs
    else:  # FPN's later convolutions run at a quarter of the positions
        assert 0.7 * ours.macs < ours.executed < ours.macs
    assert ours.parameters == theirs.parameters == count_parameters(model)
    best = max(rate.gflops or 0 for rate in findings.rates)
    assert ours.gflops == pytest.approx(2 * ours.executed / ours.median / 1e9)
    assert ours.utilisation == pytest.approx(ours.gflops / best)
    assert ours.efficiency == pytest.approx(2 * ours.macs / ours.median / 1e9 / best)
    assert theirs.times_as_fast == pytest.approx(theirs.median / ours.median)
    assert (ours.task, ours.backend) == ("train" if training else "infer", resolve("auto"))
    assert [found.what for found in findings.agreements] == ["gradients" if training else "logits"]


@pytest.mark.parametrize("training", [False, True])
def test_a_wrong_side_gets_no_figures(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    def build(spec: NetworkSpec, side: Side, *, training: bool = False) -> torch.nn.Module:
        made = build_side(spec, side, training=training)
        if side.name == "torchvision":
            with torch.no_grad():
                made.get_parameter("backbone.block1.0.attn.proj.bias").add_(0.05)
        return made

    monkeypatch.setattr(bench_network, "build_side", build)
    own = own_side(CPU, "float32", "auto", fused=False)
    sides, findings = sides_of(own, ("torchvision",), Findings()), Findings()
    work = Workload(1, 65, 97, training, warmup=0, iters=1, memory=False)
    with pytest.raises(CheckFailed, match="do not agree"):
        measure_network(SPEC, sides, work, findings)
    assert findings.rows == []


def test_every_side_sees_the_same_weights_and_pictures() -> None:
    """Stand-in weights depend on nothing but their names, so a side rebuilt elsewhere is the same side."""
    side = own_side(CPU, "float32", "auto", fused=False)
    first, second = (build_side(SPEC, side).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(*(bench_network.random_images(1, 9, 7, side) for _ in range(2)))


@pytest.mark.parametrize(
    ("head", "least", "most"),
    [("setr_naive", 0.98, 1), ("setr_pup", 0.6, 0.75), ("setr_mla", 0.98, 1), ("fpn", 0.7, 1)],
)
def test_inference_executes_no_more_than_published(head: str, least: float, most: float) -> None:
    spec = NetworkSpec("any", "tiny", head)
    with torch.device("meta"):
        published = count_macs(spec.build(), 129, 129)
    network = build_side(spec, own_side(CPU, "float32", "auto", fused=True))
    with count_executed(network) as executed, torch.inference_mode():
        network(torch.zeros(1, 3, 129, 129))
    assert least * published <= executed[0] <= most * published


def test_the_two_counts_agree_in_the_published_order() -> None:
    spec = NetworkSpec("any", "tiny", "setr_mla")
    network = build_side(spec, own_side(CPU, "float32", "auto", fused=False))
    with torch.device("meta"):
        published = count_macs(spec.build(), 65, 97, batch=2)
    with count_executed(network) as executed, torch.inference_mode():
        network(torch.zeros(2, 3, 65, 97))
    assert executed[0] == published
