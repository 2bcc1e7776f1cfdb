"""A network's implementations: which there are, that they agree, what becomes of one that does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dgmn2cli.bench import network as bench_network
from dgmn2cli.bench.implementations import (
    Implementation,
    NetworkSpec,
    baseline,
    build,
    ours,
    with_baselines,
    write_graph,
)
from dgmn2cli.bench.macs import attention_macs, count_executed, count_macs, count_parameters
from dgmn2cli.bench.network import TRAINING_FACTOR, measure_network
from dgmn2cli.bench.report import Report, describe_machine
from dgmn2cli.bench.request import Request
from dgmn2cli.errors import CheckFailed, ResourceError
from dgmn2cli.export.graph import build_graph
from dgmn2cli.model.attention import DynamicGraphAttention
from dgmn2cli.model.shapes import shapes_only
from dgmn2cli.observer import Silent
from dgmn2cli.ops import resolve

CPU = torch.device("cpu")
SPEC = NetworkSpec("fpn-tiny", "tiny", "fpn")


def small(batch: int, training: bool) -> Request:
    bench = "train" if training else "infer"
    return Request(bench, CPU, size=(97, 65), batch=batch, warmup=0, iters=1, memory=False)


def empty() -> Report:
    return Report("infer", describe_machine(CPU))


def test_half_precision_stands_beside_the_design_in_float32_too() -> None:
    notes: list[str] = []
    found = with_baselines(
        ours(
            CPU,
            "bfloat16",
            "auto",
        ),
        ("torchvision", "published"),
        notes.append,
    )
    assert [(used.name, used.dtype) for used in found] == [
        ("dgmn2cli", "bfloat16"), ("torchvision", "float32"), ("published", "bfloat16"),
    ]  # fmt: skip
    assert "torchvision has no deform_conv2d for cpu, bfloat16" in notes[0]


def test_without_compiled_kernels_there_is_no_plain_design(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgmn2cli.bench.implementations.resolve_backend", lambda *given: "reference")
    with pytest.raises(ResourceError, match="no compiled unfold"):
        baseline("plain", CPU, "float32", "reference")


def test_without_a_compiler_the_definition_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    notes: list[str] = []
    found = with_baselines(
        ours(
            CPU,
            "float32",
            "auto",
        ),
        ("definition",),
        notes.append,
    )
    assert len(found) == 1
    assert "C++ compiler" in notes[0]


@pytest.mark.parametrize("training", [False, True])
def test_rows_agree_with_the_counter(training: bool) -> None:
    report = empty()
    compared = with_baselines(
        ours(CPU, "float32", "auto", "trainer" if training else "fused"), ("torchvision",), report.note
    )
    measure_network(SPEC, compared, small(2, training), report, Silent())
    own, theirs = report.timed()
    with shapes_only():
        model = SPEC.build()
    factor = TRAINING_FACTOR if training else 1
    assert theirs.macs == factor * count_macs(model, 65, 97, batch=2)
    assert own.macs == theirs.macs == theirs.executed
    assert own.parameters == theirs.parameters == count_parameters(model)
    best = max(rate.gflops or 0 for rate in report.rates)
    if training:  # in an order of its own, which nothing counts
        assert own.executed is own.gflops is own.utilisation is None
    else:  # FPN's later convolutions run at a quarter of the positions, its others by Winograd's products
        assert 0.5 * own.macs < own.executed < 0.6 * own.macs
        assert own.gflops == pytest.approx(2 * own.executed / own.median / 1e9)
        assert own.utilisation == pytest.approx(own.gflops / best)
    assert own.efficiency == pytest.approx(2 * own.macs / own.median / 1e9 / best)
    assert theirs.times_as_fast == pytest.approx(theirs.median / own.median)
    assert (own.task, own.backend) == ("train" if training else "infer", resolve("auto"))
    assert [found.what for found in report.agreements] == ["gradients" if training else "logits"]


@pytest.mark.parametrize("training", [False, True])
def test_a_wrong_implementation_gets_no_figures(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    def build_wrong(spec: NetworkSpec, used: Implementation, *, training: bool = False) -> torch.nn.Module:
        made = build(spec, used, training=training)
        if used.name == "torchvision":
            with torch.no_grad():
                made.get_parameter("backbone.block1.0.attn.proj.bias").add_(0.05)
        return made

    monkeypatch.setattr(bench_network, "build", build_wrong)
    report = empty()
    compared = with_baselines(ours(CPU, "float32", "auto", "published"), ("torchvision",), report.note)
    with pytest.raises(CheckFailed, match="do not agree"):
        measure_network(SPEC, compared, small(1, training), report, Silent())
    assert report.rows == []


def test_all_see_the_same_weights_and_images() -> None:
    """Stand-in weights depend on nothing but their names, so a network rebuilt elsewhere is the same."""
    used = ours(CPU, "float32", "auto", "published")
    first, second = (build(SPEC, used).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(*(bench_network.random_images(1, 9, 7, used) for _ in range(2)))


@pytest.mark.parametrize(
    ("head", "least", "most"),
    [("setr_naive", 0.87, 0.91), ("setr_pup", 0.54, 0.58), ("setr_mla", 0.76, 0.8), ("fpn", 0.52, 0.57)],
)
def test_inference_executes_no_more_than_published(head: str, least: float, most: float) -> None:
    spec = NetworkSpec("any", "tiny", head)
    with shapes_only():
        published = count_macs(spec.build(), 129, 129)
    network = build(spec, ours(CPU, "float32", "auto"))
    with count_executed(network) as executed, torch.inference_mode():
        network(torch.zeros(1, 3, 129, 129))
    assert least * published <= executed[0] <= most * published


@pytest.mark.parametrize("head", ["setr_naive", "setr_pup", "setr_mla", "fpn"])
def test_pytorch_counts_the_same(head: str) -> None:
    """PyTorch's own counter, of what reaches it as a convolution or a Linear; it knows no attention op."""
    with shapes_only():
        model = NetworkSpec("any", "tiny", head).build().eval()
        images = torch.empty(2, 3, 65, 97)
    counted = count_macs(model, 65, 97, batch=2)
    attention: list[int] = []
    for module in model.modules():
        if isinstance(module, DynamicGraphAttention):
            module.register_forward_pre_hook(lambda _, given: attention.append(attention_macs(*given[0].shape)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    flops = counter.get_flop_counts()["Global"]
    layers = flops[torch.ops.aten.convolution] + flops[torch.ops.aten.addmm]
    assert counted == layers // 2 + sum(attention)
    assert len(attention) == 8


def test_in_the_published_order_all_is_executed() -> None:
    spec = NetworkSpec("any", "tiny", "setr_mla")
    network = build(spec, ours(CPU, "float32", "auto", "published"))
    with shapes_only():
        published = count_macs(spec.build(), 65, 97, batch=2)
    with count_executed(network) as executed, torch.inference_mode():
        network(torch.zeros(2, 3, 65, 97))
    assert executed[0] == published


def test_runtimes_run_the_exported_graph_in_the_same_rounds(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    graph, report = write_graph(SPEC, build_graph, tmp_path / "window.onnx"), empty()
    own = ours(CPU, "float32", "auto")
    compared = with_baselines(own, ("onnxruntime", "openvino"), report.note, graph)
    measure_network(SPEC, compared, small(1, training=False), report, Silent())
    rows = report.timed()
    assert [(row.implementation, row.form, row.dtype) for row in rows[1:]] == [
        ("onnxruntime", "graph", "float32"), ("openvino", "graph", "float32"),
    ]  # fmt: skip
    assert all(row.backend.startswith(f"{row.implementation} ") for row in rows[1:])
    assert [row.executed for row in rows[1:]] == [None, None]
    with torch.device("meta"):
        assert {row.macs for row in rows} == {count_macs(SPEC.build(), 65, 97, 1)}
    assert [found.what for found in report.agreements] == ["logits", "logits"]


def test_runtimes_are_left_out_where_there_is_no_graph() -> None:
    pytest.importorskip("onnxruntime")
    notes: list[str] = []
    assert (
        len(
            with_baselines(
                ours(
                    CPU,
                    "float32",
                    "auto",
                ),
                ("onnxruntime",),
                notes.append,
            )
        )
        == 1
    )
    assert "onnxruntime" in notes[0]
