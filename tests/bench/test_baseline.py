"""The other side of every timing computes the same thing."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import segmentor

from dgmn2cli import ops
from dgmn2cli.bench.baseline import compiled_unfold, plain_attention, plain_network, torchvision_unfold


@pytest.mark.parametrize("unfold", [compiled_unfold, torchvision_unfold])
@pytest.mark.parametrize("size", [(6, 6), (5, 9), (9, 4)])
def test_plain_attention(unfold: object, size: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(1)
    count = size[0] * size[1]
    qkv = torch.randn(2, count, 3, 2, 16, generator=random, dtype=torch.float64)
    offset = torch.randn(2, count, 2, 18, generator=random, dtype=torch.float64)
    rel_height, rel_width = (torch.randn(11, 16, generator=random, dtype=torch.float64) for _ in range(2))
    tables = ops.resample_table(rel_height, size[0]), ops.resample_table(rel_width, size[1])
    expected = ops.deform_attention(qkv, offset, *tables, size, backend="reference")
    plain = plain_attention(qkv, offset, rel_height, rel_width, size, unfold)  # type: ignore[arg-type]
    assert torch.allclose(plain, expected, atol=1e-12)


@torch.no_grad()
def test_plain_network() -> None:
    model = segmentor("tiny", "setr_naive")
    plain = plain_network(copy.deepcopy(model))
    images = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(2))
    assert (plain(images) - model(images)).abs().max() <= 1e-4
    assert list(plain.state_dict()) == list(model.state_dict())
