"""A convolution over an enlarged map, taken at the small map's resolution, equals resizing and then convolving."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dgmn2cli.ops import native, upsampled
from dgmn2cli.ops.upsampled import can_convolve, convolve_upsampled

pytestmark = pytest.mark.skipif(bool(native.refusal("cpu", "float32")), reason="no compiled kernels")
SETS = native.INSTRUCTION_SETS[: native.INSTRUCTION_SETS.index(native.instruction_set()) + 1]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def both(size: tuple[int, int], target: tuple[int, int], inner: int, outer: int) -> tuple[Tensor, Tensor]:
    """Ours in float32 and the definition in float64, `(H, W, O)`."""
    maps, weight, bias = drawn(1, inner, *size), drawn(outer, inner, 3, 3) / inner**0.5, drawn(outer)
    matrix = weight.permute(2, 3, 0, 1).reshape(9 * outer, inner).float()
    rows = convolve_upsampled(
        maps[0].permute(1, 2, 0).contiguous().float(), lambda x: x @ matrix.T, bias.float(), target
    )
    large = F.interpolate(maps, size=target, mode="bilinear", align_corners=True)
    return torch.cat(list(rows)), F.conv2d(large, weight, bias, padding=1).relu()[0].permute(1, 2, 0)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((5, 7), (10, 14)),
        ((7, 5), (13, 19)),
        ((1, 1), (2, 3)),
        ((1, 6), (40, 12)),
        ((3, 3), (97, 50)),
        ((9, 4), (7, 8)),
    ],
)
@pytest.mark.parametrize("outer", [16, 32, 19, 3])
def test_equals_the_definition(
    isa: str, size: tuple[int, int], target: tuple[int, int], outer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(native.ISA_VARIABLE, isa)
    for elements in (1, 9 * outer * size[1] * 2, upsampled.PRODUCT_ELEMENTS):  # one source row a step, two, all
        monkeypatch.setattr(upsampled, "PRODUCT_ELEMENTS", elements)
        ours, definition = both(size, target, 6, outer)
        assert ours.shape == definition.shape == (*target, outer)
        # positions are rounded to float32, as PyTorch rounds them for float32 maps
        assert (ours - definition).abs().max() <= 2e-5


@pytest.mark.parametrize("elements", [1, 1 << 20])
@pytest.mark.parametrize("span", [slice(0, 19), slice(0, 1), slice(5, 6), slice(3, 17), slice(18, 19)])
def test_rows_by_themselves_are_those_of_the_whole(span: slice, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, weight, bias = drawn(7, 5, 6).float(), drawn(9 * 16, 6).float(), drawn(16).float()
    whole = torch.cat(list(convolve_upsampled(lines, lambda x: x @ weight.T, bias, (19, 11))))
    monkeypatch.setattr(upsampled, "PRODUCT_ELEMENTS", elements)
    bands = list(convolve_upsampled(lines, lambda x: x @ weight.T, bias, (19, 11), span=span))
    assert all(len(band) for band in bands)  # a step that makes no row yields none
    assert (torch.cat(bands) - whole[span]).abs().max() <= 1e-6
    into = torch.full_like(whole, float("nan"))
    for _ in convolve_upsampled(lines, lambda x: x @ weight.T, bias, (19, 11), span=span, into=into):
        pass
    assert torch.equal(into[span], torch.cat(bands))
    assert into.isnan().sum() == (19 - (span.stop - span.start)) * 11 * 16


def test_a_nan_reaches_its_neighbourhood_and_no_further() -> None:
    lines = torch.zeros(8, 8, 4)
    lines[4, 4, 1] = float("nan")
    weight = torch.ones(9 * 16, 4)
    rows = torch.cat(list(convolve_upsampled(lines, lambda x: x @ weight.T, torch.zeros(16), (16, 16))))
    missing = rows.isnan().any(2)
    assert missing[8, 8]
    assert 0 < missing.sum() <= 49  # two small pixels around, and one large one: 6 x 6 and a border


def test_only_where_it_pays() -> None:
    assert can_convolve((97, 97), (194, 194), torch.float32)
    assert not can_convolve((97, 97), (97, 97), torch.float32)
    assert not can_convolve((97, 97), (120, 120), torch.float32)
    assert not can_convolve((97, 97), (194, 194), torch.float64)


def test_operator_contract() -> None:
    height, width, target = 3, 4, (6, 8)
    products, bias = torch.randn(height * width, 9 * 16), torch.randn(16)
    ring, out = torch.zeros(height, target[1], 3, 16), torch.zeros(*target, 16)
    arguments = (products, ring, out, bias, height, width, target[0], 0, 0)
    torch.library.opcheck(torch.ops.dgmn2.upsampled_rows.default, arguments)
