"""Winograd's convolution is the convolution, with about its rounding."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dgmn2cli.model.fused import winograd
from dgmn2cli.model.fused.layers import FusedConv, can_pack
from dgmn2cli.model.fused.winograd import WinogradConv, fused_conv, transforms


def convolution(inner: int = 64, outer: int = 64, bias: bool = True, seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(inner, outer, 3, padding=1, bias=bias)


@pytest.mark.parametrize("size", [(4, 4), (1, 1), (3, 9), (13, 17), (40, 6)])
@pytest.mark.parametrize("elements", [1, winograd.BAND_ELEMENTS])  # one row of tiles at a time, and all
def test_equals_the_convolution(size: tuple[int, int], elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "BAND_ELEMENTS", elements)
    conv, x = convolution(67, 70), torch.randn(2, 67, *size)
    norm = nn.BatchNorm2d(70).eval()
    norm.running_mean, norm.running_var = torch.randn(70), torch.rand(70) + 0.5
    with torch.no_grad():
        exact = norm.double()(F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1))
        norm.float()
        for relu in (False, True):
            wanted = exact.relu() if relu else exact
            for layout in (torch.contiguous_format, torch.channels_last):
                found = WinogradConv(conv, norm, relu=relu)(x.contiguous(memory_format=layout))
                assert found.is_contiguous(memory_format=torch.channels_last)
                assert (found - wanted).abs().max() <= 2e-5


@pytest.mark.skipif(not can_pack(torch.zeros(1)), reason="no prepacked convolution to compare with")
def test_its_rounding_is_a_few_times_the_convolutions() -> None:
    conv, x = convolution(256, 256, bias=False), torch.randn(1, 256, 24, 24).relu()  # as the network's maps are
    with torch.no_grad():
        exact = F.conv2d(x.double(), conv.weight.double(), padding=1)
        ours = (WinogradConv(conv)(x) - exact).abs().mean()
        plain = (FusedConv(conv)(x) - exact).abs().mean()
    assert ours <= 4 * plain


def test_the_transforms_multiply_polynomials() -> None:
    inputs, filters, outputs = transforms()
    values, kernel = torch.arange(6.0).double(), torch.tensor([2.0, -1.0, 3.0]).double()
    wanted = [sum(values[i + k] * kernel[k] for k in range(3)) for i in range(4)]
    found = outputs @ ((inputs @ values) * (filters @ kernel))
    torch.testing.assert_close(found, torch.stack(wanted))


def test_where_it_serves() -> None:
    narrow, strided = convolution(32, 64), nn.Conv2d(64, 64, 3, stride=2, padding=1)
    pointwise, unpadded = nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 3)
    half = convolution().to(torch.bfloat16)
    assert all(isinstance(fused_conv(conv), FusedConv) for conv in (narrow, strided, pointwise, unpadded, half))
    assert isinstance(fused_conv(convolution()), WinogradConv) == can_pack(convolution().weight)


def test_one_and_two_threads_and_any_batch_give_the_same_bits() -> None:
    conv, x = WinogradConv(convolution(64, 96)), torch.randn(3, 64, 33, 41)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = conv(x)
        torch.set_num_threads(2)
        assert torch.equal(one, conv(x))
        assert torch.equal(one, torch.cat([conv(image[None]) for image in x]))
    finally:
        torch.set_num_threads(threads)


def test_it_can_be_copied_and_pickled() -> None:
    conv, x = WinogradConv(convolution(), relu=True), torch.randn(1, 64, 9, 9)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(conv(x), other(x))
