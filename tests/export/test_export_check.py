"""The self-check: what it must let pass because float32 cannot do better, and what it must never let pass."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from dgmn2cli.config import InferenceConfig
from dgmn2cli.errors import NonFiniteError
from dgmn2cli.export import check
from dgmn2cli.export import folder as exporting
from dgmn2cli.export import graph as graphs
from dgmn2cli.export.layers import resize
from dgmn2cli.inference.prediction import ClassList
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.model.segmentor import Segmentor

LIMITS = check.LIMITS["float32"]
NOISE = check.Case.of_window("noise", np.random.default_rng(20).standard_normal((3, 33, 33)).astype(np.float32))
CLASSES = ClassList(tuple("abcde"), np.zeros((5, 3), np.uint8), cityscapes=False)
INFO = RunInfo("five", "", "0" * 64, "cpu", "a CPU", "float32", "native", "published")


def nothing(model: Segmentor) -> None:
    """Leaves a network as it is."""


def rough(model: Segmentor) -> None:
    """Attention that reacts twice as strongly to what the layers before it rounded."""
    for name, weight in model.named_parameters():
        if name.endswith("conv_offset.weight"):
            weight *= 2


def loud(model: Segmentor) -> None:
    """Logits in the hundreds."""
    model.decode_head.conv_seg.weight *= 100


def one_weight(model: Segmentor) -> None:
    """Another network in one weight."""
    model.decode_head.conv_seg.weight[3, 7] *= 1.02


@pytest.fixture
def seen(network, tmp_path: Path) -> Callable[..., check.Difference]:
    """The difference between a network and the graph of it, each changed by a function first."""

    def measure(change: Callable[[Segmentor], None], wrong: Callable[[Segmentor], None] = nothing) -> check.Difference:
        model = deepcopy(network("setr_naive-tiny", 5))
        change(model)
        own = Segmenter(model, CLASSES, INFO, InferenceConfig())
        other = Segmenter(deepcopy(model), CLASSES, INFO, InferenceConfig())
        wrong(other.network)
        protocol = exporting.describe(other, "onnx", False, 33, None, None)
        opened, protocol = exporting.write_graph(tmp_path / protocol.graph, other, protocol)
        exporting.write_protocol(tmp_path, protocol)
        return check.difference(NOISE, own, opened(), LIMITS, lambda: check.in_float64(own))

    return measure


def test_a_usual_network_is_compared_with_its_graph_alone(seen) -> None:
    found = seen(nothing)
    assert (check.faults(found, LIMITS), found.rounding) == ([], None)
    assert found.largest <= 1e-3
    assert found.mean <= 1e-5


def test_a_network_that_enlarges_rounding_is_judged_by_float64(seen) -> None:
    found = seen(rough)
    assert found.mean > LIMITS.mean
    assert found.rounding.network > LIMITS.mean  # the network itself is as far from what it would be
    assert found.rounding.graph <= 1.5 * found.rounding.network
    assert check.faults(found, LIMITS) == []


def test_large_logits_may_differ_in_proportion(seen) -> None:
    found = seen(loud)
    assert found.magnitude > 5 * check.USUAL
    assert found.largest > LIMITS.largest
    assert check.faults(found, LIMITS) == []


@pytest.mark.parametrize("change", [nothing, rough, loud])
def test_one_wrong_weight_is_found(change, seen) -> None:
    assert check.faults(seen(change, one_weight), LIMITS)


@pytest.mark.parametrize("change", [nothing, rough])
def test_another_resize_is_found(change, seen, monkeypatch) -> None:
    monkeypatch.setattr(graphs, "resize_chain", lambda g, x, sizes: resize(g, x, *sizes[-1], corners_aligned=False))
    assert check.faults(seen(change), LIMITS)


def differ(wanted: np.ndarray, found: np.ndarray) -> check.Difference:
    """Of two arrays of logits."""
    both = iter((wanted, found))
    return check.difference(check.Case("arrays", lambda _: next(both)), None, None)


def test_ties_are_no_wrong_classes() -> None:
    wanted = np.zeros((3, 20, 20), np.float32)
    wanted[0], wanted[1], wanted[2] = 20, 20 - 4e-6, 1
    found = wanted.copy()
    found[1] += 8e-6
    seen = differ(wanted, found)
    assert (seen.wrong, seen.agreement, check.faults(seen, LIMITS)) == (0, 0.0, [])
    wanted[1] -= 1e-4
    seen = differ(wanted, found)
    assert seen.wrong == seen.pixels == 400
    assert len(check.faults(seen, LIMITS)) == 2  # the mean and the classes


def test_the_limit_of_each_logit_is_never_wider_for_usual_ones() -> None:
    wanted = np.random.default_rng(1).uniform(-30, 30, (3, 20, 20)).astype(np.float32)
    found = wanted.copy()
    found[2, 3, 4] += 1.1e-3
    seen = differ(wanted, found)
    assert len(check.faults(seen, LIMITS)) == 1
    own = check.Rounding(network=1.0, graph=1.0, network_wrong=400, graph_wrong=400)
    assert len(check.faults(replace(seen, rounding=own), LIMITS)) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_never_agree(value: float) -> None:
    wanted = np.random.default_rng(1).normal(size=(3, 20, 20)).astype(np.float32)
    found = wanted.copy()
    found[0, 0, 0] = value
    assert check.faults(differ(wanted, found), LIMITS)
    with pytest.raises(NonFiniteError):
        differ(found, found)
