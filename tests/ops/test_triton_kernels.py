"""Tests of the Triton kernels against the definition in float64: on a GPU (`gpu`), or interpreted on the CPU.

Which of the two is settled before Triton is imported: `TRITON_INTERPRET=1` gives the interpreter, in a process of its
own (`test_triton.py` starts it); otherwise every test here is marked `gpu`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from dgmn2cli.errors import ConfigError, ResourceError
from dgmn2cli.ops import available_backends, deform_attention, deform_unfold, reference, resample_table, resolve
from dgmn2cli.ops.contract import output_size

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
only_gpu = pytest.mark.gpu  # too large for the interpreter

# relative error of the whole tensor; the interpreter rounds to bfloat16 by cutting off
TOLERANCE = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 8e-3}

# batch, H, W, heads, head width, format
ATTENTIONS = [
    (1, 5, 7, 2, 16, torch.float32),  # more queries than a program takes
    (2, 5, 3, 1, 16, torch.float16),
    (1, 5, 5, 1, 16, torch.bfloat16),
    (1, 4, 4, 2, 24, torch.float32),  # a width that is no power of two
    (1, 1, 3, 1, 40, torch.float32),
    (1, 3, 1, 1, 8, torch.float16),
]
# batch, channels, H, W, groups, kernel, stride, padding, dilation, format
UNFOLDS = [
    (1, 35, 9, 8, 1, (3, 3), (1, 1), (1, 1), (1, 1), torch.float32),  # more channels and positions than a program takes
    (2, 6, 7, 5, 2, (3, 2), (2, 1), (1, 2), (1, 2), torch.float16),
    (1, 9, 4, 6, 1, (1, 1), (1, 1), (0, 0), (1, 1), torch.bfloat16),
    (1, 2, 1, 6, 1, (1, 3), (1, 2), (0, 1), (1, 1), torch.float32),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def draw(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * scale).to(DEVICE, dtype).requires_grad_()


def attention_inputs(
    batch: int, height: int, width: int, heads: int, depth: int, dtype: torch.dtype, reach: float = 2.0
) -> list[Tensor]:
    """qkv, offsets of a few pixels, both tables: leaves that want gradients."""
    count = height * width
    return [
        draw(batch, count, 3, heads, depth, dtype=dtype),
        draw(batch, count, heads, 18, dtype=dtype, scale=reach),
        draw(height + 8, depth, dtype=dtype, scale=depth**-0.5),
        draw(width + 8, depth, dtype=dtype, scale=depth**-0.5),
    ]


def exact(tensors: list[Tensor]) -> list[Tensor]:
    """The same numbers in float64, as leaves of their own."""
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def error(actual: Tensor, wanted: Tensor) -> float:
    """Relative error of a whole tensor: 0 for two empty or zero ones, infinite where either is not finite."""
    assert actual.shape == wanted.shape
    difference, size = (actual.double() - wanted).norm().item(), wanted.norm().item()
    if not math.isfinite(difference):
        return math.inf
    return difference / size if size else difference


def assert_same_gradients(
    run: Callable[..., Tensor], define: Callable[..., Tensor], inputs: list[Tensor], tolerance: float
) -> None:
    """Values and every gradient of `run` against `define` in float64."""
    wanted_inputs = exact(inputs)
    out, wanted = run(*inputs), define(*wanted_inputs)
    assert out.is_contiguous()
    assert out.dtype == inputs[0].dtype
    assert error(out, wanted) < tolerance
    upstream = torch.randn(out.shape, device=out.device).to(out.dtype)
    gradients = torch.autograd.grad(out, inputs, upstream)
    for tensor, gradient, truth in zip(
        inputs, gradients, torch.autograd.grad(wanted, wanted_inputs, upstream.double()), strict=True
    ):
        assert gradient.dtype == tensor.dtype
        assert error(gradient, truth) < tolerance


@pytest.mark.parametrize(("batch", "height", "width", "heads", "depth", "dtype"), ATTENTIONS)
def test_attention(batch: int, height: int, width: int, heads: int, depth: int, dtype: torch.dtype) -> None:
    size = (height, width)
    assert_same_gradients(
        lambda *t: deform_attention(*t, size, backend="triton"),
        lambda *t: reference.deform_attention(*t, size),
        attention_inputs(batch, height, width, heads, depth, dtype),
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize(
    ("batch", "channels", "height", "width", "groups", "kernel", "stride", "padding", "dilation", "dtype"), UNFOLDS
)
def test_unfold(
    batch: int, channels: int, height: int, width: int, groups: int, kernel: tuple[int, int],
    stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], dtype: torch.dtype,
) -> None:  # fmt: skip
    arguments = (kernel, stride, padding, dilation, groups)
    geometry = [*kernel, *stride, *padding, *dilation, groups]
    out_size = output_size((height, width), geometry)
    taps = kernel[0] * kernel[1]
    assert_same_gradients(
        lambda *t: deform_unfold(*t, *arguments, backend="triton"),
        lambda *t: reference.deform_unfold(*t, geometry),
        [
            draw(batch, channels, height, width, dtype=dtype),
            draw(batch, groups * 2 * taps, *out_size, dtype=dtype, scale=2.0),
        ],
        TOLERANCE[dtype],
    )


def test_the_mixed_formats_of_autocast() -> None:
    qkv, offset, *_ = attention_inputs(1, 3, 4, 1, 16, torch.float16)
    tables = [draw(11, 16, scale=0.25), draw(12, 16, scale=0.25)]
    assert_same_gradients(
        lambda *t: deform_attention(*t, (3, 4), backend="triton"),
        lambda *t: reference.deform_attention(*t, (3, 4)),
        [qkv, offset, *tables],
        TOLERANCE[torch.float16],
    )


# numbers that no address may come from: not finite, at and past the range of 32-bit integers, the largest float
HOSTILE = [math.nan, math.inf, -math.inf, 2.0**31, -(2.0**31), 2.0**63, 3.4e38, -3.4e38]


def hostile(offset: Tensor) -> Tensor:
    """`offset` with each of HOSTILE as dy somewhere and as dx elsewhere, all in different queries."""
    offset = offset.detach().clone()
    flat = offset.view(-1, 2)
    step = flat.shape[0] // (2 * len(HOSTILE))
    for i, value in enumerate(HOSTILE):
        flat[2 * i * step, 0] = value
        flat[(2 * i + 1) * step, 1] = value
    return offset.requires_grad_()


def test_offsets_that_are_not_finite_or_far_outside() -> None:
    qkv, offset, *tables = attention_inputs(1, 4, 5, 1, 16, torch.float32)
    inputs = [qkv, hostile(offset), *tables]
    wanted_inputs = exact(inputs)
    out = deform_attention(*inputs, (4, 5), backend="triton")
    wanted = reference.deform_attention(*wanted_inputs, (4, 5))
    lost = out.isnan()
    assert 0 < lost.any(2).sum() < lost.shape[1]
    assert torch.equal(lost, wanted.isnan())
    torch.testing.assert_close(out.double(), wanted, equal_nan=True, rtol=1e-5, atol=1e-6)
    # what the finite outputs say of the queries they belong to: finite, and the definition's
    keep = ~lost.any(2)
    gradient = torch.autograd.grad(out, inputs, torch.ones_like(out))
    truth = torch.autograd.grad(wanted, wanted_inputs, torch.ones_like(wanted))
    torch.testing.assert_close(gradient[1][keep].double(), truth[1][keep], rtol=1e-4, atol=1e-5)
    outside = ~(inputs[1].detach().abs() < 100)
    assert outside.sum() == 2 * len(HOSTILE)
    assert gradient[1][outside].count_nonzero() == 0


def test_unfold_offsets_that_are_not_finite_or_far_outside() -> None:
    maps, offset = draw(1, 3, 5, 4), hostile(draw(1, 18, 5, 4))
    wanted_inputs = exact([maps, offset])
    out = deform_unfold(maps, offset, 3, padding=1, backend="triton")
    wanted = reference.deform_unfold(*wanted_inputs, [3, 3, 1, 1, 1, 1, 1, 1, 1])
    assert out.isnan().any()
    torch.testing.assert_close(out.double(), wanted, equal_nan=True, rtol=1e-5, atol=1e-6)
    gradient = torch.autograd.grad(out, [maps, offset], torch.ones_like(out))
    truth = torch.autograd.grad(wanted, wanted_inputs, torch.ones_like(wanted))
    for actual, expected in zip(gradient, truth, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_coordinate_of_exactly_minus_one_is_outside() -> None:
    qkv, offset, *tables = attention_inputs(1, 2, 3, 1, 16, torch.float32)
    edge = torch.zeros_like(offset)  # the taps above and left of the map lie at exactly -1
    edge.requires_grad_()
    inputs = [qkv, edge, *tables]
    wanted_inputs = exact(inputs)
    out = deform_attention(*inputs, (2, 3), backend="triton")
    wanted = reference.deform_attention(*wanted_inputs, (2, 3))
    assert error(out, wanted) < TOLERANCE[torch.float32]
    gradient = torch.autograd.grad(out.square().sum(), edge)[0]
    truth = torch.autograd.grad(wanted.square().sum(), wanted_inputs[1])[0]
    assert gradient[0, 0, 0, 0] == 0  # query (0, 0), tap (0, 0): dy
    assert gradient[0, 0, 0, 8:10].count_nonzero() == 2  # the centre tap, inside
    assert error(gradient, truth) < 1e-5


def test_inputs_of_any_stride() -> None:
    size = (3, 4)
    qkv, offset, *tables = attention_inputs(2, *size, 2, 16, torch.float32)
    wanted = reference.deform_attention(qkv.double(), offset.double(), *(t.double() for t in tables), size)
    swapped = qkv.detach().permute(2, 0, 3, 1, 4).contiguous().permute(1, 3, 0, 2, 4)
    gapped = torch.zeros(*qkv.shape[:4], 20, device=DEVICE)[..., 2:18].copy_(qkv.detach())
    lastly = qkv.detach().transpose(1, 4).contiguous().transpose(1, 4)  # last stride not 1
    turned = [
        offset.detach().transpose(1, 2).contiguous().transpose(1, 2),
        *(t.detach().t().contiguous().t() for t in tables),
    ]
    assert not any(tensor.is_contiguous() for tensor in (swapped, gapped, lastly, *turned))
    assert error(deform_attention(swapped, *turned, size, backend="triton"), wanted) < TOLERANCE[torch.float32]
    for view in (gapped[1:], lastly[1:]):
        out = deform_attention(view, turned[0][1:], *turned[1:], size, backend="triton")
        assert error(out, wanted[1:]) < TOLERANCE[torch.float32]


def test_unfold_of_channels_last_and_expanded_maps() -> None:
    maps, offset = draw(2, 5, 4, 3), draw(2, 18, 4, 3)
    arguments = ((3, 3), (1, 1), (1, 1), (1, 1), 1)
    geometry = [3, 3, 1, 1, 1, 1, 1, 1, 1]
    for view in (maps.to(memory_format=torch.channels_last), maps[:1].expand(2, -1, -1, -1)):
        assert_same_gradients(
            lambda *t: deform_unfold(*t, *arguments, backend="triton"),
            lambda *t: reference.deform_unfold(*t, geometry),
            [view.detach().requires_grad_(), offset],
            TOLERANCE[torch.float32],
        )


def test_an_empty_batch() -> None:
    inputs = attention_inputs(0, 3, 4, 2, 16, torch.float32)
    out = deform_attention(*inputs, (3, 4), backend="triton")
    assert out.shape == (0, 12, 32)
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert not any(gradient.any() for gradient in gradients)
    maps, offset = draw(0, 4, 3, 3), draw(0, 18, 3, 3)
    unfolded = deform_unfold(maps, offset, 3, padding=1, backend="triton")
    assert unfolded.shape == (0, 36, 9)
    assert torch.autograd.grad(unfolded.sum(), [maps, offset])[0].shape == maps.shape


# PyTorch's own checker reads .grad of copies it made
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_operators_keep_pytorchs_rules() -> None:
    resolve("triton", DEVICE)
    inputs = attention_inputs(1, 2, 3, 1, 16, torch.float32)
    checks = torch.library.opcheck(torch.ops.dgmn2.triton_attention.default, (*inputs, 2, 3))
    assert len(checks) == 4
    assert set(checks.values()) == {"SUCCESS"}
    maps, offset = draw(1, 2, 2, 3), draw(1, 18, 2, 3)
    checks = torch.library.opcheck(torch.ops.dgmn2.triton_unfold.default, (maps, offset, [3, 3, 1, 1, 1, 1, 1, 1, 1]))
    assert set(checks.values()) == {"SUCCESS"}


def test_raw_calls_that_do_not_fit_are_refused() -> None:
    resolve("triton", DEVICE)
    attend, gradient = torch.ops.dgmn2.triton_attention, torch.ops.dgmn2.triton_attention_backward
    given = [tensor.detach() for tensor in attention_inputs(1, 2, 3, 1, 16, torch.float32)]
    out, logits = attend(*given, 2, 3)
    assert len(gradient(out, logits, *given, 2, 3)) == 4
    qkv, offset, *tables = given
    wrong = [
        [*given, 20, 30], [*given, -2, -3], [*given, 2**62, 6], [*given, 3, 2], [qkv.long(), offset, *tables, 2, 3],
        [qkv.double(), offset, *tables, 2, 3], [qkv, offset[:, :5], *tables, 2, 3],
    ]  # fmt: skip
    for arguments in wrong:
        with pytest.raises(ConfigError, match="cannot run"):
            attend(*arguments)
        with pytest.raises(ConfigError, match="cannot run"):
            gradient(out, logits, *arguments)
    for spoilt in (
        (out[:, :5], logits),
        (out, logits[..., :5]),
        (out, logits.double()),
        (out, logits.mT.contiguous().mT),
    ):
        with pytest.raises(ConfigError, match=r"grad|result 1"):
            gradient(*spoilt, *given, 2, 3)
    maps, shifts = draw(1, 2, 2, 3).detach(), draw(1, 18, 2, 3).detach()
    for geometry in (
        [3, 3, 1, 1, 1, 1, 1, 1],
        [3, 3, 0, 1, 1, 1, 1, 1, 1],
        [3, 3, 1, 1, 2**40, 1, 1, 1, 1],
        [2, 2] * 4 + [3],
    ):
        with pytest.raises(ConfigError, match="cannot run"):
            torch.ops.dgmn2.triton_unfold(maps, shifts, geometry)
        with pytest.raises(ConfigError, match="cannot run"):
            torch.ops.dgmn2.triton_unfold_backward(draw(1, 18, 6).detach(), maps, shifts, geometry)


@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated")
def test_other_derivatives_come_from_the_definition() -> None:
    inputs = attention_inputs(1, 2, 3, 1, 16, torch.float32)
    tangents = tuple(torch.randn_like(tensor) for tensor in inputs)
    primals = tuple(tensor.detach() for tensor in inputs)
    found = torch.func.jvp(lambda *t: deform_attention(*t, (2, 3), backend="triton"), primals, tangents)[1]
    double = tuple(tensor.double() for tensor in primals), tuple(tensor.double() for tensor in tangents)
    assert error(found, torch.func.jvp(lambda *t: reference.deform_attention(*t, (2, 3)), *double)[1]) < 1e-5
    seconds = []
    for run, leaves in ((lambda *t: deform_attention(*t, (2, 3), backend="triton"), inputs),
                        (lambda *t: reference.deform_attention(*t, (2, 3)), exact(inputs))):  # fmt: skip
        first = torch.autograd.grad(run(*leaves).square().sum(), leaves, create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for ours, theirs in zip(*seconds, strict=True):
        assert error(ours, theirs) < 1e-4


def test_compiled_without_a_graph_break() -> None:
    backend = "aot_eager" if INTERPRETED else "inductor"
    inputs = attention_inputs(1, 3, 2, 1, 16, torch.float32)

    def attend(qkv: Tensor, offset: Tensor, height_table: Tensor, width_table: Tensor) -> Tensor:
        tables = resample_table(height_table, 3), resample_table(width_table, 2)
        return 2 * deform_attention(qkv, offset, *tables, (3, 2), backend="triton")

    compiled = torch.compile(attend, backend=backend, fullgraph=True)(*inputs)
    plain = attend(*inputs)
    torch.testing.assert_close(compiled, plain)
    gradients = [torch.autograd.grad(out.square().sum(), inputs) for out in (compiled, plain)]
    for compiled_gradient, plain_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled_gradient, plain_gradient, rtol=1e-4, atol=1e-5)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
def test_backward_refuses_to_pass_for_deterministic() -> None:
    inputs = attention_inputs(1, 2, 2, 1, 16, torch.float32)
    out = deform_attention(*inputs, (2, 2), backend="triton")
    assert torch.equal(out, deform_attention(*inputs, (2, 2), backend="triton"))
    with pytest.raises(ResourceError, match=r"deform_attention cannot run .*atomics"):
        out.sum().backward()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with pytest.warns(UserWarning, match="deform_attention is not deterministic"):
        out.sum().backward()


def test_trying_out_configurations_does_not_add_gradients_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from dgmn2cli.ops.triton import operators as triton_ops

    trials = []

    def time_in_order(call: Callable[[], None], quantiles: tuple[float, ...]) -> list[float]:
        call()
        trials.append(len(trials))
        return [float(len(trials))] * 3

    monkeypatch.setattr(triton_ops, "interpreted", lambda: False)
    kernels = (
        triton_ops._attend, triton_ops._attend_values_backward, triton_ops._attend_keys_backward,
        triton_ops._unfold, triton_ops._unfold_backward,
    )  # fmt: skip
    for kernel in kernels:
        monkeypatch.setitem(vars(kernel), "do_bench", time_in_order)
        monkeypatch.setattr(kernel, "cache", {})
    assert_same_gradients(
        lambda *t: deform_attention(*t, (2, 2), backend="triton"),
        lambda *t: reference.deform_attention(*t, (2, 2)),
        attention_inputs(1, 2, 2, 1, 16, torch.float32),
        TOLERANCE[torch.float32],
    )
    assert len(trials) == 3 * 5
    arguments = ((1, 1), (1, 1), (0, 0), (1, 1), 1)
    assert_same_gradients(
        lambda *t: deform_unfold(*t, *arguments, backend="triton"),
        lambda *t: reference.deform_unfold(*t, [1, 1, 1, 1, 0, 0, 1, 1, 1]),
        [draw(1, 2, 2, 3), draw(1, 2, 2, 3)],
        TOLERANCE[torch.float32],
    )
    assert len(trials) == 3 * 5 + 2 * 4


def test_the_choice_is_visible(caplog: pytest.LogCaptureFixture) -> None:
    assert available_backends()["triton"].usable
    assert resolve("triton", DEVICE, torch.bfloat16) == "triton"
    with pytest.raises(ResourceError, match="float32, float16 and bfloat16"):
        resolve("triton", DEVICE, torch.float64)
    if not INTERPRETED:
        with caplog.at_level(logging.INFO, "dgmn2cli"):
            assert resolve("auto", "cuda", torch.float16) == "triton"


@only_gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("height", "width", "heads"), [(193, 193, 1), (97, 97, 8), (49, 97, 5), (193, 97, 2)])
def test_published_sizes(height: int, width: int, heads: int, dtype: torch.dtype) -> None:
    size = (height, width)
    assert_same_gradients(
        lambda *t: deform_attention(*t, size, backend="triton"),
        lambda *t: reference.deform_attention(*t, size),
        attention_inputs(2, height, width, heads, 64, dtype),
        5 * TOLERANCE[dtype],  # float32 sums of up to 2 * 193 * 193 terms in the tables' gradients
    )


@only_gpu
@pytest.mark.parametrize("depth", [16, 48, 128, 256])
def test_other_head_widths(depth: int) -> None:
    assert_same_gradients(
        lambda *t: deform_attention(*t, (33, 20), backend="triton"),
        lambda *t: reference.deform_attention(*t, (33, 20)),
        attention_inputs(2, 33, 20, 2, depth, torch.float32),
        5 * TOLERANCE[torch.float32],
    )


@only_gpu
def test_a_map_past_32_bit_addresses() -> None:
    """More than 2**31 numbers of qkv, about 5 GB; the last rows must be those of a small map cut from there."""
    side, cut = 3400, 16
    size = (side, side)
    with torch.no_grad():
        qkv = torch.randn(1, side * side, 3, 1, 64, device=DEVICE, dtype=torch.bfloat16)
        offset = torch.rand(1, side * side, 1, 18, device=DEVICE, dtype=torch.bfloat16) - 0.5
        table = torch.zeros(side + 8, 64, device=DEVICE, dtype=torch.bfloat16)
        assert qkv.numel() > 2**31
        out = deform_attention(qkv, offset, table, table, size, backend="triton")

        def corner(tensor: Tensor) -> Tensor:
            return tensor.unflatten(1, size)[:, -cut:, -cut:].flatten(1, 2)

        small = torch.zeros(cut + 8, 64, device=DEVICE, dtype=torch.float64)
        wanted = reference.deform_attention(
            corner(qkv).double(), corner(offset).double(), small, small, (cut, cut)
        )  # fmt: skip
        inner = corner(out).unflatten(1, (cut, cut))[:, 2:, 2:]
        assert error(inner, wanted.unflatten(1, (cut, cut))[:, 2:, 2:]) < TOLERANCE[torch.bfloat16]


@only_gpu
def test_inside_a_cuda_graph() -> None:
    inputs = [tensor.detach() for tensor in attention_inputs(1, 33, 33, 2, 64, torch.float16)]
    with torch.no_grad():
        plain = deform_attention(*inputs, (33, 33), backend="triton")  # compiles and tunes outside the capture
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = deform_attention(*inputs, (33, 33), backend="triton")
        inputs[0].copy_(inputs[0].flip(1))
        graph.replay()
        assert torch.equal(captured, deform_attention(*inputs, (33, 33), backend="triton"))
        assert not torch.equal(captured, plain)


@only_gpu
def test_the_second_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    inputs = [tensor.detach().to("cuda:1") for tensor in attention_inputs(1, 5, 6, 1, 16, torch.float32)]
    with torch.no_grad():
        out = deform_attention(*inputs, (5, 6), backend="triton")
    assert error(out, reference.deform_attention(*exact(inputs), (5, 6))) < TOLERANCE[torch.float32]
