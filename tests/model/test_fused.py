"""The inference form is the same network: every head, size, number of classes; odd windows; both layer paths."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from networks import segmentor
from torch import nn

from dgmn2cli.model.fused import layers, packing_available
from dgmn2cli.model.fused.network import InferenceForm
from dgmn2cli.model.segmentor import HEADS


def assert_same(model: nn.Module, form: nn.Module, images: torch.Tensor, tolerance: float = 1e-4) -> None:
    with torch.no_grad():
        plain, fast = model(images), form(images)
    assert fast.shape == plain.shape
    assert (plain - fast).abs().max() <= tolerance
    top = plain.topk(2, dim=1).values
    decided = top[:, 0] - top[:, 1] > 1e-3
    assert torch.equal(plain.argmax(1)[decided], fast.argmax(1)[decided])


def test_sixteen_networks() -> None:
    images = torch.randn(1, 3, 65, 65, generator=torch.Generator().manual_seed(2))
    seen = 0
    for size in ("tiny", "small", "medium", "large"):
        for head in HEADS:
            model = segmentor(size, head)
            # the deeper the network, the more rounding: logits have a standard deviation of 2 to 4
            assert_same(model, InferenceForm(model), images, 1e-4 if size in ("tiny", "small") else 2e-4)
            seen += 1
    assert seen == 16


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shape", [(2, 3, 64, 97), (1, 3, 97, 33), (1, 3, 1, 1), (1, 3, 17, 160)])
def test_odd_windows_and_batches(head: str, shape: tuple[int, ...]) -> None:
    model = segmentor("tiny", head, classes=5)
    assert_same(model, InferenceForm(model), torch.randn(shape, generator=torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("head", HEADS)
def test_without_prepacked_weights(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = segmentor("tiny", head)
    monkeypatch.setattr(layers, "can_pack", lambda _weight: False)
    form = InferenceForm(model)
    assert not any(getattr(module, "packed", False) for module in form.modules())
    assert_same(model, form, torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(5)))


HIDDEN = ["_reorder_linear_weight", "_linear_pointwise", "_reorder_convolution_weight", "_convolution_pointwise"]


class Hidden:
    """`torch.ops.mkldnn` of a release without one of its private names, or where it means something else."""

    def __init__(self, name: str, replacement: object = None) -> None:
        self.name, self.replacement = name, replacement

    def __getattr__(self, name: str) -> object:
        if name != self.name:
            return getattr(torch.ops._dgmn2_test_mkldnn, name)
        if self.replacement is None:
            raise AttributeError(f"'_OpNamespace' 'mkldnn' object has no attribute '{name}'")
        return self.replacement


@pytest.fixture
def probe_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    layers._packing_fault.cache_clear()
    monkeypatch.setattr(torch.ops, "_dgmn2_test_mkldnn", torch.ops.mkldnn, raising=False)
    yield monkeypatch
    layers._packing_fault.cache_clear()


@pytest.mark.parametrize("name", HIDDEN)
def test_a_pytorch_without_the_private_names(
    name: str, probe_again: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = segmentor("tiny", "setr_naive")
    probe_again.setattr(torch.ops, "mkldnn", Hidden(name))
    with caplog.at_level(logging.WARNING, logger="dgmn2cli"):
        form = InferenceForm(model)
        InferenceForm(model)
    usable, reason = packing_available()
    assert not usable
    assert name in reason
    assert sum(name in record.getMessage() for record in caplog.records) == 1
    assert not any(getattr(module, "packed", False) for module in form.modules())
    assert_same(model, form, torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(5)))


def test_private_names_that_changed_their_meaning(probe_again: pytest.MonkeyPatch) -> None:
    probe_again.setattr(torch.ops, "mkldnn", Hidden("_convolution_pointwise", lambda x, *_: x * 2))
    assert packing_available() == (False, "wrong results of Conv2d")
    layers._packing_fault.cache_clear()
    probe_again.setattr(torch.ops, "mkldnn", Hidden("_linear_pointwise", lambda x: x))
    assert "TypeError" in packing_available()[1]


def test_packing_is_available_here() -> None:
    """Every x86 build of the tested versions of PyTorch has it."""
    expected, before = torch.backends.mkldnn.is_available(), torch.random.get_rng_state()
    layers._packing_fault.cache_clear()
    assert packing_available() == (expected, "" if expected else "this build of PyTorch has no oneDNN")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_are_prepacked_where_that_is_possible() -> None:
    form = InferenceForm(segmentor("tiny", "setr_naive"))
    fused = [module for module in form.modules() if isinstance(module, layers.FusedLinear | layers.FusedConv)]
    packs = layers.can_pack(torch.zeros(1))
    # eight blocks of five Linears, six convolutions, of which Winograd's form serves two, the classifier
    assert len(fused) == 8 * 5 + 6 + 1 - 2 * packs
    assert all(module.packed == packs for module in fused)


def test_bands_of_the_last_upsampling(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = segmentor("tiny", "setr_pup"), torch.randn(1, 3, 65, 65, generator=torch.Generator().manual_seed(6))
    form = InferenceForm(model)
    whole = form(images)
    for elements in (1, 256 * 36 * 7):
        monkeypatch.setattr("dgmn2cli.model.fused.layers.BAND_ELEMENTS", elements)
        assert (form(images) - whole).abs().max() <= 2e-5


def test_the_form_gives_no_gradient() -> None:
    form = InferenceForm(segmentor("tiny", "fpn"))
    assert not form(torch.randn(1, 3, 33, 33, requires_grad=True)).requires_grad
    assert not any(parameter.requires_grad for parameter in form.parameters())


def test_batch_norm_folds_exactly() -> None:
    conv, norm = nn.Conv2d(3, 5, 3, bias=True), nn.BatchNorm2d(5).eval()
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(norm.weight)
    weight, bias = layers.fold_batch_norm(conv.weight, conv.bias, norm)
    images = torch.randn(2, 3, 9, 11)
    folded = nn.functional.conv2d(images, weight, bias)
    assert torch.allclose(folded, norm(conv(images)), atol=1e-5)
