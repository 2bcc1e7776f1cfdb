"""The fused attention: the definition against independent oracles, the kernels against the definition."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from dgmn2cli import ops
from dgmn2cli.errors import ConfigError
from dgmn2cli.ops import native as native_module
from dgmn2cli.ops.reference import position_logits

# lopsided in every axis, so that a swapped one shows: (batch, height, width, heads, head width)
SHAPES = [
    (1, 6, 6, 1, 64), (2, 5, 9, 2, 64), (1, 11, 4, 5, 64), (3, 7, 7, 8, 16), (1, 3, 5, 1, 7), (2, 1, 1, 1, 64),
    (1, 1, 9, 2, 8), (3, 9, 1, 1, 20), (1, 33, 40, 2, 64), (1, 18, 17, 3, 33),
]  # fmt: skip


def inputs(
    batch: int, height: int, width: int, heads: int, depth: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    """qkv, offset (off the integers, some far out), and both tables."""
    random = torch.Generator().manual_seed(seed + 1000 * height + width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    count = height * width
    offset = normal(batch, count, heads, 18) * 2
    offset = offset + torch.where((offset - offset.round()).abs() < 0.02, 0.05, 0.0)
    return [
        t.to(dtype)
        for t in (normal(batch, count, 3, heads, depth), offset, normal(height + 8, depth), normal(width + 8, depth))
    ]


def run(tensors: list[Tensor], size: tuple[int, int], backend: str, seed: int = 5) -> list[Tensor]:
    """The output and the four gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = ops.deform_attention(*leaves, size, backend=backend)
    weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights)]


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max() / (1 + theirs.double().abs().max()))


def test_definition_against_deform_conv2d() -> None:
    """Keys and values unfolded by torchvision, one-hot weights: an implementation that shares no code with ours."""
    batch, height, width, heads, depth = 2, 5, 7, 2, 6
    qkv, offset, height_table, width_table = inputs(batch, height, width, heads, depth)
    q, k, v = qkv.permute(2, 0, 3, 4, 1).reshape(3, batch * heads, depth, height, width)
    moved = offset.permute(0, 2, 3, 1).reshape(batch * heads, 18, height, width)
    one_hot = torch.eye(9 * depth, dtype=torch.float64).view(9 * depth, depth, 3, 3)
    k_s, v_s = (
        deform_conv2d(part, moved, one_hot, padding=1).view(batch * heads, depth, 9, height, width) for part in (k, v)
    )
    logits = torch.einsum("mdyx,mdsyx->msyx", q, k_s) * depth**-0.5
    logits += (
        position_logits(qkv[:, :, 0], height_table, width_table, (height, width))
        .permute(0, 2, 3, 1)
        .reshape(batch * heads, 9, height, width)
    )
    expected = torch.einsum("msyx,mdsyx->mdyx", logits.softmax(1), v_s)
    expected = expected.reshape(batch, heads * depth, height * width).transpose(1, 2)
    ours = ops.deform_attention(qkv, offset, height_table, width_table, (height, width), backend="reference")
    assert torch.allclose(ours, expected, atol=1e-12)


def test_golden_position_logits(golden: Path) -> None:
    units = np.load(golden / "golden_units.npz")
    names = sorted({key.split("__")[1] for key in units.files if key.startswith("relpos__")})
    assert names == ["bigger_than_56", "native", "square", "tall", "tiny3", "wide"]
    for name in names:
        _, height, width, _ = units[f"relpos__{name}__raw_shape"]
        expected = torch.from_numpy(units[f"relpos__{name}__out"])
        if name == "bigger_than_56":
            seed = int(units[f"relpos__{name}__q_seed"])
            shape = (expected.shape[0], 1, height, width, 64)
            stored = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)
        else:
            stored = units[f"relpos__{name}__q"]
        q = torch.from_numpy(stored).flatten(2, 3).transpose(1, 2)  # (B*h, N, 1, d)
        tables = [
            ops.resample_table(torch.from_numpy(units[f"relpos__{name}__{table}"]), int(length))
            for table, length in (("rel_height", height), ("rel_width", width))
        ]
        ours = position_logits(q, *tables, (int(height), int(width)))[:, :, 0]
        assert (ours - expected).abs().max() <= 2e-5 * expected.abs().max(), name


@pytest.mark.parametrize("isa", native_module.INSTRUCTION_SETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_against_the_definition(
    native: str, shape: tuple[int, ...], isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = native_module.instruction_set()
    if native_module.INSTRUCTION_SETS.index(isa) > native_module.INSTRUCTION_SETS.index(best):
        pytest.skip(f"this machine's best instruction set is {best}")
    monkeypatch.setenv(native_module.ISA_VARIABLE, isa)
    size = (shape[1], shape[2])
    exact = run(inputs(*shape), size, "reference")
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        rounded = run(inputs(*shape, dtype), size, native)
        for ours, theirs in zip(rounded, exact, strict=True):
            assert ours.dtype == dtype
            assert relative(ours, theirs) <= tolerance


@pytest.mark.parametrize("shape", [(1, 6, 6, 1, 64), (2, 5, 9, 2, 64), (1, 4, 3, 2, 7)])
def test_bfloat16_accumulates_in_float32(native: str, shape: tuple[int, ...]) -> None:
    size = (shape[1], shape[2])
    rounded = inputs(*shape, torch.bfloat16)
    exact = run([tensor.double() for tensor in rounded], size, "reference")
    for ours, theirs in zip(run(rounded, size, native), exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert relative(ours, theirs) <= 2**-8  # the result's own rounding: 8 bits of mantissa


@pytest.mark.parametrize("batch", range(1, 18))
@pytest.mark.parametrize("heads", [1, 2, 5, 8])
def test_every_batch_and_number_of_heads(native: str, batch: int, heads: int) -> None:
    tensors = inputs(batch, 3, 4, heads, 8, seed=batch)
    for ours, theirs in zip(run(tensors, (3, 4), native), run(tensors, (3, 4), "reference"), strict=True):
        assert relative(ours, theirs) <= 1e-12


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_batch_zero(native: str, backend: str) -> None:
    results = run(inputs(0, 4, 5, 2, 8), (4, 5), backend)
    assert [tuple(result.shape) for result in results] == [
        (0, 20, 16),
        (0, 20, 3, 2, 8),
        (0, 20, 2, 18),
        (12, 8),
        (13, 8),
    ]
    assert not any(result.any() for result in results[3:])


@pytest.mark.parametrize(("batch", "size"), [(2, (2, 3)), (1, (4, 4))])
def test_gradcheck(native: str, batch: int, size: tuple[int, int]) -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(batch, *size, 2, 3)]
    for backend in ("reference", native):
        assert torch.autograd.gradcheck(
            lambda *t, b=backend: ops.deform_attention(*t, size, backend=b), leaves, nondet_tol=0
        )


# PyTorch's own checker reads .grad of copies it made
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck(native: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        leaves = [tensor.requires_grad_() for tensor in inputs(2, 4, 5, 2, 8, dtype)]
        torch.library.opcheck(torch.ops.dgmn2.attention.default, (*leaves, 4, 5))


def test_compiles_whole_and_exports(native: str) -> None:
    tensors = inputs(1, 4, 5, 2, 8, torch.float32)

    class Layer(torch.nn.Module):
        def forward(self, *given: Tensor) -> Tensor:
            return ops.deform_attention(*given, (4, 5), backend="native") * 2

    expected = Layer()(*tensors)
    compiled = torch.compile(Layer(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*tensors), expected)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    compiled(*leaves).sum().backward()
    assert all(leaf.grad is not None for leaf in leaves)
    exported = torch.export.export(Layer(), tuple(tensors))
    assert torch.equal(exported.module()(*tensors), expected)


def test_any_strides(native: str) -> None:
    qkv, offset, height_table, width_table = inputs(2, 4, 5, 2, 8)
    expected = run([qkv, offset, height_table, width_table], (4, 5), native)
    wide = torch.zeros(2, 20, 3, 2, 16, dtype=torch.float64)
    wide[..., 4:12] = qkv
    moved = qkv.permute(4, 1, 3, 0, 2).contiguous().permute(3, 1, 4, 2, 0)
    for strided in (wide[..., 4:12], moved, qkv.transpose(0, 1).contiguous().transpose(0, 1)):
        assert not strided.is_contiguous()
        far = offset.transpose(1, 3).contiguous().transpose(1, 3)
        results = run([strided, far, height_table.T.contiguous().T, width_table], (4, 5), native)
        for ours, theirs in zip(results, expected, strict=True):
            assert torch.equal(ours, theirs)


def test_expanded_inputs(native: str) -> None:
    qkv, offset, height_table, width_table = inputs(1, 4, 5, 2, 8)
    one = run([qkv, offset, height_table, width_table], (4, 5), native)[0]
    three = ops.deform_attention(
        qkv.expand(3, -1, -1, -1, -1), offset.expand(3, -1, -1, -1), height_table, width_table, (4, 5), backend=native
    )
    assert torch.equal(three, one.expand(3, -1, -1))


@pytest.mark.parametrize("shape", [(1, 40, 37, 2, 64), (2, 9, 9, 1, 20)])
def test_one_thread_equals_two_bit_for_bit(native: str, shape: tuple[int, ...]) -> None:
    tensors, size, before = inputs(*shape, torch.float32), (shape[1], shape[2]), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(tensors, size, native))
        native_module.loaded().use_threads(0)  # a libtorch without the function: serially
        results.append(run(tensors, size, native))
    finally:
        torch.set_num_threads(before)
        native_module.loaded().use_threads(native_module._parallel_for())
    for other in results[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(results[0], other, strict=True))


HOSTILE = [math.nan, math.inf, -math.inf, 2.0**31, -(2.0**31), 2.0**63, -(2.0**63), 1e30, -1e30]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hostile_offsets(native: str, backend: str, value: float, dtype: torch.dtype) -> None:
    tensors = inputs(2, 5, 6, 2, 64, dtype)
    clean = run(tensors, (5, 6), backend)
    tensors[1][1, 7, 1, 4] = value
    hostile = run(tensors, (5, 6), backend)
    query = hostile[0].view(2, 30, 2, 64)
    others = torch.ones(2, 30, 2, dtype=torch.bool)
    others[1, 7, 1] = False
    assert torch.equal(query[others], clean[0].view(2, 30, 2, 64)[others])
    if math.isfinite(value):  # far outside the map: a zero sample, no gradient for its offset
        assert all(result.isfinite().all() for result in hostile)
        assert not hostile[2][1, 7, 1, 4:6].any()
    else:
        assert query[1, 7, 1].isnan().all()


def test_the_border_is_open(native: str) -> None:
    """A coordinate of exactly -1 or of exactly the map's side samples nothing, and its offset has no gradient."""
    tensors = inputs(1, 4, 4, 1, 8)
    tensors[1].zero_()
    for backend in (native, "reference"):
        grad = run(tensors, (4, 4), backend)[2].view(4, 4, 9, 2)
        assert not grad[0, :, :3].any()  # upper taps of the first row lie at -1
        assert not grad[3, :, 6:].any()  # lower taps of the last row lie at 4
        assert grad[1, 1].any()


WRONG = [
    (0, (1, 20, 3, 2), "qkv"), (0, (1, 19, 3, 2, 8), "qkv"), (0, (1, 20, 2, 2, 8), "qkv"),
    (1, (1, 20, 2, 16), "offset"), (1, (2, 20, 2, 18), "offset"), (2, (13, 8), "height_table"),
    (3, (12, 8), "width_table"), (3, (13, 9), "width_table"),
]  # fmt: skip


@pytest.mark.parametrize(("index", "shape", "name"), WRONG)
def test_wrong_sizes_are_named(index: int, shape: tuple[int, ...], name: str) -> None:
    tensors = inputs(1, 4, 5, 2, 8)
    tensors[index] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ConfigError, match=rf"\({name}\): it is \({shape[0]}"):
        ops.deform_attention(*tensors, (4, 5))


def test_wrong_kinds_are_named() -> None:
    tensors = inputs(1, 4, 5, 2, 8)
    with pytest.raises(ConfigError, match=r"offset.*int64"):
        ops.deform_attention(tensors[0], tensors[1].long(), *tensors[2:], (4, 5))
    with pytest.raises(ConfigError, match="size"):
        ops.deform_attention(*tensors, (0, 5))
    with pytest.raises(ConfigError, match="no such op backend"):
        ops.deform_attention(*tensors, (4, 5), backend="cuda")


def test_backward_needs_no_unfolded_tensor(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside inputs and gradients the backward allocates some numbers per sample, whatever the head width."""
    qkv, offset, height_table, width_table = inputs(1, 16, 15, 2, 64, torch.float32)
    grad = torch.randn(1, 240, 128)
    allocated = 0
    plain_zeros, plain_empty = Tensor.new_zeros, Tensor.new_empty

    def count(make: object) -> object:
        def made(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
            nonlocal allocated
            result = make(tensor, *args, **kwargs)  # type: ignore[operator]
            allocated += result.numel()
            return result

        return made

    monkeypatch.setattr(Tensor, "new_zeros", count(plain_zeros))
    monkeypatch.setattr(Tensor, "new_empty", count(plain_empty))
    grads = torch.ops.dgmn2.attention_backward(grad, qkv, offset, height_table, width_table, 16, 15)
    returned = sum(g.numel() for g in grads)
    samples, cells = 240 * 2 * 9, 17 * 16 * 2
    tables = 9 * (16 + 15) * 64
    assert allocated - returned <= 9 * samples + 8 * cells + tables + 64 + 16
    assert F.mse_loss(grads[0], torch.zeros_like(grads[0])) > 0


def test_the_kernels_bring_no_pool_of_threads_of_their_own(native: str) -> None:
    assert native_module._parallel_for() != 0
    compiled = Path(str(native_module.loaded().__file__)).read_bytes()
    assert [name for name in (b"GOMP_", b"__kmpc", b"libgomp", b"libomp", b"libiomp") if name in compiled] == []


def test_threads_that_cannot_be_started_are_an_error(native: str) -> None:
    """Results would not be complete; what torch returns then is not zero."""
    refuse = ctypes.CFUNCTYPE(ctypes.c_int32)(lambda: 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        native_module.loaded().use_threads(ctypes.cast(refuse, ctypes.c_void_p).value)
        with pytest.raises(RuntimeError, match="threads"):
            run(inputs(1, 9, 9, 1, 16, torch.float32), (9, 9), native)
    finally:
        torch.set_num_threads(before)
        native_module.loaded().use_threads(native_module._parallel_for())
    run(inputs(1, 9, 9, 1, 16, torch.float32), (9, 9), native)
