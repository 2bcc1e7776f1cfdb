"""The kernels as PyTorch operators, `dgmn2::NAME` and `dgmn2::NAME_backward`: checked, differentiable, batchable.

`torch.library.custom_op` would import torch's compiler on the first call (as slow as importing torch) and lets
forward-mode tangents fall away without an error, so the dispatcher's keys are filled in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.jit import is_tracing  # type: ignore[attr-defined]  # public, not in the stubs

from dgmn2cli.ops.contract import refuse, require_memory, require_shape, require_tensors
from dgmn2cli.threads import aside

LIBRARY = torch.library.Library("dgmn2", "FRAGMENT")
Outputs = list[tuple[tuple[int, ...], torch.dtype]]
Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")
# PyTorch has no public names for these and may drop them: without one of them the ops run by their definition
_PRIVATE = (
    (torch._C, "_after_autograd_keyset"),
    (torch._C, "_are_functorch_transforms_active"),
    (torch._C, "_AutoDispatchBelowAutograd"),
    (torch._C, "_len_torch_dispatch_stack"),
    (forward_ad, "_current_level"),
)
LACKING = ", ".join(f"{place.__name__}.{name}" for place, name in _PRIVATE if not hasattr(place, name))


def has_tangent(tensors: Sequence[Tensor | None]) -> bool:
    """Whether forward-mode differentiation follows any of the tensors."""
    return any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def wants_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """Whether backward-mode differentiation does."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def transformed() -> bool:
    """Whether a transform of `torch.func` is at work."""
    return bool(LACKING) or torch._C._are_functorch_transforms_active()


def followed() -> bool:
    """Whether something beside autograd's backward mode sees, or changes, the operations of this thread.

    Forward-mode differentiation, `torch.func`, a compiler, a tracer, fake tensors, a counter of operations.
    """
    traced = torch.compiler.is_compiling() or is_tracing() or transformed()
    return traced or torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0


def cached(make: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """`make`, which makes constants on the CPU from numbers, with its last 64 results kept for whoever asks next.

    They are made in a thread of their own, where no mode is at work that the one who asks is in: made in inference mode
    they would not serve a training, and fake ones nobody. What a compiler follows is made anew, for its graph.
    """

    def apart(*arguments: Arguments.args, **named: Arguments.kwargs) -> Made:
        return aside(partial(make, *arguments, **named)).result()

    kept: Callable[Arguments, Made] = lru_cache(maxsize=64)(apart)  # type: ignore[assignment]

    @wraps(make)
    def made(*arguments: Arguments.args, **named: Arguments.kwargs) -> Made:
        found = (make if torch.compiler.is_compiling() else kept)(*arguments, **named)
        for holder in list(_holders.values()):
            holder.append(found)
        return found

    return made


_holders: dict[int, list[Any]] = {}


@contextmanager
def held() -> Iterator[list[Any]]:
    """A list of all that `cached` functions give within the block, for whoever needs it longer than they keep it."""
    holder: list[Any] = []
    _holders[id(holder)] = holder
    try:
        yield holder
    finally:
        del _holders[id(holder)]


def below_autograd(op: Any, keyset: Any, *arguments: Any) -> Any:
    """Runs an operator's own kernel from within its autograd kernel."""
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


@dataclass(frozen=True)
class Operator:
    """An operator on tensors and whole numbers, in this order, and its gradient."""

    name: str  # `NAME`
    tensors: tuple[str, ...]  # names of the tensors among its arguments
    dtypes: tuple[torch.dtype, ...]  # what the first of them may be
    check: Callable[..., None]  # takes the arguments; raises ConfigError where they do not fit
    # takes the arguments; shape and dtype of each result. The first is the op's, the others are for the backward pass
    # alone.
    outputs: Callable[..., Outputs]
    # takes the arguments, gives the results (one, or a tuple); annotated, as the schema is made from it
    forward: Callable[..., Any]
    # takes the first result's gradient, the other results and the arguments; gives each tensor's gradient
    backward: Callable[..., Any]
    # the first result in plain PyTorch. Second derivatives and forward-mode ones go through it.
    definition: Callable[..., Tensor]
    extras: int = 0  # how many results there are beside the first

    def register(self, *devices: str) -> None:
        """Makes both operators known to PyTorch, with kernels for the dispatch keys `devices`."""
        kernels = ((self._forward, self._fake, self._autograd), (self._backward, self._fake_backward, self._twice))
        for name, source, (kernel, fake, autograd) in zip(
            (self.name, f"{self.name}_backward"), (self.forward, self.backward), kernels, strict=True
        ):
            LIBRARY.define(name + torch.library.infer_schema(source, mutates_args=()))
            for device in devices:
                LIBRARY.impl(name, kernel, device)
            LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)
            torch.library.register_fake(f"dgmn2::{name}", fake, lib=LIBRARY)
            torch.library.register_vmap(f"dgmn2::{name}", one_by_one(getattr(torch.ops.dgmn2, name)), lib=LIBRARY)

    @property
    def op(self) -> Any:
        """The registered operator."""
        return getattr(torch.ops.dgmn2, self.name).default

    @property
    def backward_op(self) -> Any:
        """The registered operator of its gradient."""
        return getattr(torch.ops.dgmn2, f"{self.name}_backward").default

    def _require(self, arguments: Sequence[Any]) -> None:
        require_tensors(self.name, arguments[: len(self.tensors)], self.tensors, self.dtypes)
        self.check(*arguments)

    def _require_backward(self, arguments: Sequence[Any]) -> Sequence[Any]:
        """Checks a backward operator's arguments; gives those of the forward one among them."""
        given, own = arguments[: 1 + self.extras], arguments[1 + self.extras :]
        self._require(own)
        for place, (tensor, (shape, dtype)) in enumerate(zip(given, self.outputs(*own), strict=True)):
            name = f"result {place}" if place else "grad"
            require_tensors(self.name, (own[0], tensor), (self.tensors[0], name))
            require_shape(self.name, name, tensor, shape)
            if place and (tensor.dtype != dtype or not tensor.is_contiguous()):
                raise refuse(self.name, name, f"{tensor.dtype}, strides {tensor.stride()}", f"{dtype}, contiguous")
        return own

    def _forward(self, *arguments: Any) -> Any:
        self._require(arguments)
        require_memory(self.name, arguments[: len(self.tensors)])
        return self.forward(*arguments)

    def _backward(self, *arguments: Any) -> Any:
        self._require_backward(arguments)
        require_memory(self.name, arguments[: 1 + self.extras + len(self.tensors)])
        return self.backward(*arguments)

    def _fake(self, *arguments: Any) -> Any:
        self._require(arguments)
        made = tuple(arguments[0].new_empty(shape, dtype=dtype) for shape, dtype in self.outputs(*arguments))
        return made if len(made) > 1 else made[0]

    def _fake_backward(self, *arguments: Any) -> Any:
        own = self._require_backward(arguments)
        return tuple(tensor.new_empty(tensor.shape) for tensor in own[: len(self.tensors)])

    def _autograd(self, keyset: Any, *arguments: Any) -> Any:
        tensors = arguments[: len(self.tensors)]
        if has_tangent(tensors) or transformed():
            self._require(arguments)
            out = self.definition(*arguments)
            rest = [out.new_full(shape, torch.nan, dtype=dtype) for shape, dtype in self.outputs(*arguments)[1:]]
            return (out, *rest) if rest else out
        if wants_gradient(tensors):
            return _Gradient.apply(self, keyset, *arguments)
        return below_autograd(self.op, keyset, *arguments)

    def _twice(self, keyset: Any, *arguments: Any) -> Any:
        tensors = arguments[: 1 + self.extras + len(self.tensors)]
        if has_tangent(tensors) or wants_gradient(tensors) or transformed():
            own, count = self._require_backward(arguments), len(self.tensors)
            with torch.enable_grad():  # each tensor apart, even where one was computed from another
                variables = [tensor + torch.zeros_like(tensor, requires_grad=True) for tensor in own[:count]]
                out = self.definition(*variables, *own[count:])
                return torch.autograd.grad(out, variables, arguments[0].to(out.dtype), create_graph=True)
        return below_autograd(self.backward_op, keyset, *arguments)


class _Gradient(torch.autograd.Function):
    """Keeps what the backward operator wants."""

    @staticmethod
    def forward(ctx: Any, operator: Operator, keyset: Any, *arguments: Any) -> Any:
        results = below_autograd(operator.op, keyset, *arguments)
        extras = results[1:] if isinstance(results, tuple) else ()
        count = len(operator.tensors)
        ctx.operator, ctx.rest = operator, arguments[count:]
        ctx.save_for_backward(*extras, *arguments[:count])
        ctx.mark_non_differentiable(*extras)
        return results

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grads = ctx.operator.backward_op(grad, *ctx.saved_tensors, *ctx.rest)
        return (None, None, *grads, *(None for _ in ctx.rest))


def one_by_one(op: Any) -> Callable[..., Any]:
    """The rule of `torch.vmap` for an operator: one call per slice, results stacked."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        sliced = [
            argument.unbind(dim) if isinstance(dim, int) else [argument] * info.batch_size  # of a list, dim is one
            for argument, dim in zip(arguments, in_dims, strict=True)
        ]
        results = [op(*each) for each in zip(*sliced, strict=True)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, tuple(0 for _ in stacked)

    return rule
