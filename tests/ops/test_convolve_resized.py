"""Training's convolution of an enlarged map: values and gradients are those of resizing, then convolving."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dgmn2cli.ops import convolve_resized as module
from dgmn2cli.ops import native
from dgmn2cli.ops.convolve_resized import convolve_resized

pytestmark = pytest.mark.skipif(bool(native.refusal("cpu", "float32")), reason="no compiled kernels")


def definition(x: Tensor, weight: Tensor, bias: Tensor | None, target: tuple[int, int]) -> Tensor:
    large = F.interpolate(x, size=target, mode="bilinear", align_corners=True)
    return F.conv2d(large, weight, bias, padding=1)


def drawn(size: tuple[int, int], inner: int, outer: int, batch: int = 2) -> list[Tensor]:
    chance = torch.Generator().manual_seed(sum(size) + inner)
    shapes = (batch, inner, *size), (outer, inner, 3, 3), (outer,)
    return [torch.randn(shape, dtype=torch.float64, generator=chance) for shape in shapes]


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((9, 9), (18, 18)),
        ((7, 5), (13, 19)),
        ((1, 1), (2, 3)),
        ((1, 6), (40, 12)),
        ((3, 3), (97, 50)),
        ((40, 35), (80, 70)),  # more than one band along both axes
        ((30, 20), (15, 90)),  # one axis shrinks: some positions give to nothing
    ],
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients(size: tuple[int, int], target: tuple[int, int], with_bias: bool) -> None:
    exact = drawn(size, 6, 5)
    exact = exact if with_bias else exact[:2]
    ours = [value.float().requires_grad_() for value in exact]
    exact = [value.requires_grad_() for value in exact]
    one = definition(*exact, *([] if with_bias else [None]), target)
    other = convolve_resized(*ours, *([] if with_bias else [None]), target)
    assert type(other.grad_fn).__name__ == "_ConvolveResizedBackward"
    assert (one - other).abs().max() <= 2e-5 * one.abs().max()
    weights = torch.randn(one.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted, found = torch.autograd.grad(one, exact, weights), torch.autograd.grad(other, ours, weights.float())
    for gradient, approximate in zip(wanted, found, strict=True):
        assert (gradient - approximate).norm() <= 1e-5 * gradient.norm()


def test_the_gradient_can_be_differentiated() -> None:
    values = [value.float().requires_grad_() for value in drawn((6, 7), 4, 3)]

    def twice(function) -> tuple[Tensor, ...]:
        grad_x, grad_weight, _ = torch.autograd.grad(
            function(*values, (12, 14)).square().sum(), values, create_graph=True
        )
        return torch.autograd.grad(grad_x.square().sum() + grad_weight.square().sum(), values)

    for wanted, found in zip(twice(definition), twice(convolve_resized), strict=True):
        assert (wanted - found).norm() <= 1e-4 * wanted.norm()


def test_where_the_shortcut_does_not_serve() -> None:
    x, weight, bias = (value.float() for value in drawn((6, 6), 4, 3))
    grads = torch.func.grad(lambda weight: convolve_resized(x, weight, bias, (12, 12)).sum())(weight)
    expected = torch.func.grad(lambda weight: definition(x, weight, bias, (12, 12)).sum())(weight)
    assert torch.equal(grads, expected)
    double = [value.double().requires_grad_() for value in (x, weight, bias)]
    assert torch.equal(convolve_resized(*double, (12, 12)), definition(*double, (12, 12)))
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve_resized(x, weight, bias, (12, 12)).dtype == torch.bfloat16


def test_one_and_two_threads_give_the_same_bits() -> None:
    values = [value.float().requires_grad_() for value in drawn((40, 40), 32, 32)]
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            out = convolve_resized(*values, (80, 80))
            results.append([out, *torch.autograd.grad(out.square().sum(), values)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_bands_hold_every_share_once() -> None:
    shares = sum(float(block.sum()) for _, _, block in module._bands(20, 47, 6))
    assert shares == pytest.approx(3 * 47 - 2, rel=1e-6)  # the first and the last position miss one neighbour
