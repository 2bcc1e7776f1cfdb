"""The published extension's operation: goldens, torchvision's deformable convolution, every geometry, every batch."""

from __future__ import annotations

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

BACKENDS = ("native", "reference")


def case(
    batch: int = 2,
    channels: int = 4,
    size: tuple[int, int] = (5, 7),
    groups: int = 1,
    seed: int = 0,
    **geometry: object,
) -> tuple[Tensor, Tensor, dict[str, object]]:
    """A map, offsets of the right size for the geometry, and the geometry."""
    random = torch.Generator().manual_seed(seed)
    maps = torch.randn(batch, channels, *size, generator=random, dtype=torch.float64)
    plain = {key: value for key, value in geometry.items() if key != "deformable_groups"}
    windows = F.unfold(maps[:1, :1], **{"kernel_size": 3, **plain}).shape[2] if batch else 0  # type: ignore[arg-type]
    kernel = geometry.get("kernel_size", 3)
    taps = kernel**2 if isinstance(kernel, int) else kernel[0] * kernel[1]  # type: ignore[index]
    height = _out(size[0], 0, geometry)
    assert windows % height == 0
    offset = torch.randn(batch, groups * 2 * taps, height, windows // height, generator=random, dtype=torch.float64) * 2
    return maps, offset, {**geometry, "deformable_groups": groups}


def _out(length: int, axis: int, geometry: dict[str, object]) -> int:
    kernel, stride, padding, dilation = (
        value if isinstance(value := geometry.get(name, default), int) else value[axis]  # type: ignore[index]
        for name, default in (("kernel_size", 3), ("stride", 1), ("padding", 0), ("dilation", 1))
    )
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


GEOMETRIES = [
    {"padding": 1}, {}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}, {"kernel_size": 1},
    {"kernel_size": (2, 3), "padding": (0, 1)},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 1), "dilation": (1, 2)},
]  # fmt: skip


def oracle(maps: Tensor, offset: Tensor, geometry: dict[str, object]) -> Tensor:
    """torchvision with one-hot weights, one input channel at a time."""
    kernel = geometry.get("kernel_size", 3)
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    taps, groups = kernel[0] * kernel[1], geometry["deformable_groups"]  # type: ignore[index]
    channels = maps.shape[1]
    weight = torch.eye(channels * taps, dtype=maps.dtype).view(channels * taps, channels, *kernel)  # type: ignore[misc]
    rest = {name: geometry.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))}
    assert offset.shape[1] == groups * 2 * taps  # type: ignore[operator]
    return deform_conv2d(maps, offset, weight, **rest).flatten(2)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_against_deform_conv2d(native: str, backend: str, geometry: dict[str, object], groups: int) -> None:
    maps, offset, given = case(groups=groups, **geometry)
    results = []
    for function in (lambda m, o: ops.deform_unfold(m, o, backend=backend, **given), lambda m, o: oracle(m, o, given)):
        leaves = [maps.clone().requires_grad_(), offset.clone().requires_grad_()]
        out = function(*leaves)
        weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(3))
        results.append([out.detach(), *torch.autograd.grad(out, leaves, weights)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_units(golden: Path, native: str, backend: str) -> None:
    units = np.load(golden / "golden_units.npz")
    names = sorted({key.split("__")[1] for key in units.files if key.startswith("unfold__")})
    assert names == ["u1", "u2", "u3", "u4"]
    for name in names:
        x, offset, gout, y, gx, goff = (
            torch.from_numpy(units[f"unfold__{name}__{part}"]) for part in ("x", "offset", "gout", "y", "gx", "goff")
        )
        leaves = [x.requires_grad_(), offset.requires_grad_()]
        out = ops.deform_unfold(*leaves, padding=1, backend=backend)
        grads = torch.autograd.grad(out, leaves, gout)
        for ours, theirs in zip((out, *grads), (y, gx, goff), strict=True):
            assert (ours - theirs).abs().max() <= 1e-12, name


def test_without_offsets_it_is_unfold(native: str) -> None:
    maps, offset, given = case(padding=1)
    for backend in BACKENDS:
        assert torch.allclose(
            ops.deform_unfold(maps, offset * 0, backend=backend, **given), F.unfold(maps, 3, padding=1)
        )


@pytest.mark.parametrize("batch", [0, 1, 33, 65, 130])
def test_any_batch(native: str, batch: int) -> None:
    """The published extension refuses every batch from 65 up that 64 does not divide."""
    random = torch.Generator().manual_seed(1)
    maps = torch.randn(batch, 2, 3, 4, generator=random, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(batch, 18, 3, 4, generator=random, dtype=torch.float64)
    ours, theirs = (ops.deform_unfold(maps, offset, padding=1, backend=backend) for backend in BACKENDS)
    assert ours.shape == (batch, 18, 12)
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert torch.autograd.grad(ours.sum(), maps)[0].shape == maps.shape


# PyTorch's own checker reads .grad of copies it made
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_gradcheck_and_opcheck(native: str) -> None:
    maps, offset, _ = case(batch=1, channels=2, size=(3, 4), padding=1)
    offset = offset + torch.where((offset - offset.round()).abs() < 0.02, 0.05, 0.0)
    leaves = (maps.requires_grad_(), offset.requires_grad_())
    for backend in BACKENDS:
        assert torch.autograd.gradcheck(lambda m, o, b=backend: ops.deform_unfold(m, o, padding=1, backend=b), leaves)
    torch.library.opcheck(torch.ops.dgmn2.unfold.default, (*leaves, [3, 3, 1, 1, 1, 1, 1, 1, 1]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
def test_number_formats(native: str, dtype: torch.dtype, tolerance: float) -> None:
    maps, offset, given = case(padding=1)
    maps, offset = maps.to(dtype), offset.to(dtype)
    exact = ops.deform_unfold(maps.double(), offset.double(), backend="reference", **given)
    ours = ops.deform_unfold(maps, offset, backend=native, **given)
    assert ours.dtype == dtype
    assert (ours.double() - exact).abs().max() <= tolerance * exact.abs().max()


def test_strides_threads_and_compilation(native: str) -> None:
    maps, offset, given = case(batch=3, channels=6, size=(9, 8), padding=1)
    expected = ops.deform_unfold(maps, offset, backend=native, **given)
    strided = maps.transpose(0, 3).contiguous().transpose(0, 3)
    assert not strided.is_contiguous()
    assert torch.equal(ops.deform_unfold(strided, offset.mT.contiguous().mT, backend=native, **given), expected)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(ops.deform_unfold(maps, offset, backend=native, **given), expected)
    finally:
        torch.set_num_threads(before)
    compiled = torch.compile(
        lambda m, o: ops.deform_unfold(m, o, padding=1, backend="native"), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(maps, offset), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**31, -(2.0**63), 1e30])
def test_hostile_offsets(native: str, backend: str, value: float) -> None:
    maps, offset, given = case(padding=1)
    clean = ops.deform_unfold(maps, offset, backend=backend, **given)
    offset[1, 6, 2, 3] = value  # the vertical shift of tap 3 at position 2 * 7 + 3
    hostile = ops.deform_unfold(maps, offset, backend=backend, **given).view(2, 4, 9, 35)
    changed = hostile[1, :, 3, 17].clone()
    hostile[1, :, 3, 17] = clean.view(2, 4, 9, 35)[1, :, 3, 17]
    assert torch.equal(hostile.view_as(clean), clean)
    assert changed.isnan().all() if not math.isfinite(value) else not changed.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offset": (2, 18, 5, 6)}, "offset"),
        ({"offset": (2, 16, 5, 7)}, "offset"),
        ({"maps": (2, 4, 5)}, "input"),
        ({"deformable_groups": 3}, "deformable_groups"),
        ({"kernel_size": 9}, "input"),
        ({"stride": 0}, "stride"),
        ({"padding": -1}, "padding"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], words: str) -> None:
    maps, offset, given = case(padding=1)
    maps = torch.zeros(change.pop("maps")) if "maps" in change else maps  # type: ignore[arg-type]
    offset = torch.zeros(change.pop("offset")) if "offset" in change else offset  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=words):
        ops.deform_unfold(maps, offset, **{**given, **change})  # type: ignore[arg-type]
