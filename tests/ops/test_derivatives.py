"""Every kind of differentiation and batching through the compiled ops: right, against the definition, or an error."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import filled
from torch import Tensor
from torch.autograd import forward_ad

import dgmn2cli
from dgmn2cli import ops
from dgmn2cli.errors import ConfigError
from dgmn2cli.model.fused.network import InferenceForm

# PyTorch's own rules of forward mode are scripted when first wanted
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated")
SIZE = (3, 4)
Case = tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    tensor = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return tensor + torch.where((tensor - tensor.round()).abs() < 0.02, 0.05, 0.0)  # offsets off the integers


def case(op: str) -> Case:
    """The op on the kernels, on the definition, and its tensors."""
    if op == "attention":
        tensors = drawn(2, 12, 3, 2, 3), drawn(2, 12, 2, 18), drawn(11, 3), drawn(12, 3)
        return (
            lambda *t: ops.deform_attention(*t, SIZE, backend="native"),
            lambda *t: ops.deform_attention(*t, SIZE, backend="reference"),
            tensors,
        )
    return (
        lambda *t: ops.deform_unfold(*t, padding=1, backend="native"),
        lambda *t: ops.deform_unfold(*t, padding=1, backend="reference"),
        (drawn(2, 2, 3, 4), drawn(2, 18, 3, 4)),
    )


def close(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.fixture(params=["attention", "unfold"])
def both(request: pytest.FixtureRequest, native: str) -> Case:
    return case(request.param)


def test_forward_mode(both: Case) -> None:
    ours, definition, tensors = both
    tangents = tuple(drawn(*tensor.shape, seed=1) for tensor in tensors)
    expected = torch.func.jvp(definition, tensors, tangents)
    assert expected[1].abs().max() > 0.1
    close(torch.func.jvp(ours, tensors, tangents), expected)
    for only in range(len(tensors)):  # a tangent on one argument alone, gradients wanted of the others or of none
        for wanted in (False, True):
            with forward_ad.dual_level():
                given = [tensor.clone().requires_grad_(wanted) for tensor in tensors]
                given[only] = forward_ad.make_dual(given[only], tangents[only])
                found = forward_ad.unpack_dual(ours(*given)).tangent
            alone = [tangent if place == only else tangent * 0 for place, tangent in enumerate(tangents)]
            close(found, torch.func.jvp(definition, tensors, tuple(alone))[1])


def test_numeric_forward_mode(both: Case) -> None:
    """Against differences of the kernels' own values."""
    ours, _, tensors = both
    tangents = tuple(drawn(*tensor.shape, seed=2) for tensor in tensors)
    step = 1e-6
    ahead, behind = (ours(*(t + sign * step * d for t, d in zip(tensors, tangents, strict=True))) for sign in (1, -1))
    found = torch.func.jvp(ours, tensors, tangents)[1]
    assert (found - (ahead - behind) / (2 * step)).abs().max() < 1e-7 * found.abs().max() + 1e-7


def test_functional_gradients(both: Case) -> None:
    ours, definition, tensors = both
    where = tuple(range(len(tensors)))
    found, expected = (
        torch.func.grad(lambda *t, f=function: f(*t).square().sum(), argnums=where)(*tensors)
        for function in (ours, definition)
    )
    close(found, expected)


def test_double_backward(both: Case) -> None:
    ours, definition, tensors = both
    results = []
    for function in (ours, definition):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        mixed = [leaves[0], leaves[1] + leaves[0].sum() * 0.01, *leaves[2:]]  # one argument made from another
        upstream = drawn(*function(*tensors).shape, seed=3).requires_grad_()
        first = torch.autograd.grad(function(*mixed), leaves, upstream, create_graph=True)
        results.append([*first, *torch.autograd.grad([g.square().sum() for g in first], [*leaves, upstream])])
    close(*results)


def test_gradgradcheck(both: Case) -> None:
    ours, _, tensors = both
    assert torch.autograd.gradgradcheck(ours, [tensor.requires_grad_() for tensor in tensors], fast_mode=True)


@pytest.mark.parametrize("outer", ["jacrev", "jacfwd"])
def test_second_derivatives_of_functional_transforms(both: Case, outer: str) -> None:
    """Reverse over reverse and forward over reverse, each through `vmap`."""
    ours, definition, tensors = both
    found, expected = (
        getattr(torch.func, outer)(torch.func.grad(lambda q, f=function: f(q, *tensors[1:]).square().sum()))(tensors[0])
        for function in (ours, definition)
    )
    close(found, expected)


def test_vmap(both: Case) -> None:
    ours, _, tensors = both
    shared = tuple(tensor[:1] if tensor.dim() > 2 else tensor for tensor in tensors)
    many = tuple(torch.stack([tensor, tensor * 0.5, tensor + 0.1], 1) for tensor in shared)
    each = torch.stack([ours(*(tensor[:, place] for tensor in many)) for place in range(3)])
    close(torch.vmap(ours, in_dims=1)(*many), each)
    per_sample = torch.vmap(torch.func.grad(lambda *t: ours(*t).square().sum()), in_dims=1)(*many)
    expected = [torch.func.grad(lambda *t: ours(*t).square().sum())(*(t[:, i] for t in many)) for i in range(3)]
    close(per_sample, torch.stack(expected))


def test_traced_by_aot_autograd(both: Case) -> None:
    ours, _, tensors = both
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, ours):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        out = function(*leaves)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    close(*results)


@pytest.fixture
def network(native: str) -> torch.nn.Module:
    torch.set_num_threads(1)
    return filled(lambda: dgmn2cli.build_model("setr_naive-tiny", 3)).double()


def test_a_network_pushes_tangents_forward(network: torch.nn.Module) -> None:
    network.requires_grad_(requires_grad=False)
    images, direction = drawn(1, 3, 32, 48), drawn(1, 3, 32, 48, seed=1)
    out, tangent = torch.func.jvp(network, (images,), (direction,))
    weights = drawn(*out.shape, seed=2)
    leaf = images.clone().requires_grad_()
    gradient = torch.autograd.grad(network(leaf), leaf, weights)[0]
    assert (gradient * direction).sum().item() == pytest.approx((tangent * weights).sum().item(), rel=1e-9)


def test_a_network_as_a_function_of_its_parameters(network: torch.nn.Module) -> None:
    images = drawn(1, 3, 32, 32)
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(network, parameters, (images,)).square().mean()

    found = torch.func.grad(loss)(parameters)
    network(images).square().mean().backward()
    close(found, {name: parameter.grad for name, parameter in network.named_parameters()})


def test_a_traced_network_takes_other_sizes_or_refuses(network: torch.nn.Module) -> None:
    network.float()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about every size that becomes a constant
        traced = torch.jit.trace(network, torch.randn(1, 3, 48, 64), check_trace=False)
        images = torch.randn(1, 3, 48, 64)
        assert torch.equal(traced(images), network(images))
        for size in ((32, 40), (64, 48), (96, 128), (1, 1)):
            with pytest.raises((RuntimeError, ConfigError), match=r"cannot run deform_attention|shape|size"):
                traced(torch.randn(1, 3, *size))


def test_an_inference_form_refuses_tangents(network: torch.nn.Module) -> None:
    form = InferenceForm(network.float())
    images = torch.randn(1, 3, 33, 33)
    with pytest.raises(ConfigError, match="cannot differentiate"):
        torch.func.jvp(form, (images,), (images,))
    assert form(images).shape == (1, 3, 33, 33)


def test_the_first_call_leaves_the_compiler_alone(native: str) -> None:
    """`torch._dynamo` takes as long to import as all the rest of PyTorch; neither pass of a network needs it."""
    code = (
        "import sys, torch, dgmn2cli; torch.set_num_threads(1);"
        "from dgmn2cli.model.fused.network import InferenceForm;"
        "model = dgmn2cli.build_model('setr_pup-tiny', 3); images = torch.zeros(1, 3, 64, 64);"
        "InferenceForm(model.eval())(images); assert 'torch._dynamo' not in sys.modules;"
        "torch.no_grad()(model)(images); assert 'torch._dynamo' not in sys.modules;"
        "import dgmn2cli.ops as ops;"
        "q = torch.zeros(1, 1, 3, 1, 4, requires_grad=True);"
        "rest = torch.zeros(1, 1, 1, 18), torch.zeros(9, 4), torch.zeros(9, 4);"
        "ops.deform_attention(q, *rest, (1, 1), backend='native').sum().backward();"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=120)
