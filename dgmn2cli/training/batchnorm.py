"""Batch norm over the batches of all processes: PyTorch's own on GPUs, the same mathematics through gloo on CPUs.

PyTorch's `SyncBatchNorm` runs on GPUs only. `SyncedBatchNorm` here is its equal for any device whose process group can
add tensors: the mean and the variance are those of the whole batch, and so is the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps), mean and var over the images and pixels of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the normalised `x` `(B, C, H, W)`, mean and (biased) variance `(C,)`, and the number of values."""
        sums = torch.cat([x.sum((0, 2, 3)), x.new_tensor([x.numel() / x.shape[1]])])
        dist.all_reduce(sums)
        count = sums[-1]
        mean = sums[:-1] / count
        centred = x - mean[:, None, None]
        squares = centred.square().sum((0, 2, 3))  # of the centred values: sums of squares cancel badly
        dist.all_reduce(squares)
        variance = squares / count
        scale = (variance + eps).rsqrt()
        normal = centred * scale[:, None, None]
        ctx.save_for_backward(normal, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return normal, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """d x = scale * (d y - mean(d y) - y * mean(d y * y)), the means over all processes."""
        normal, scale, count = ctx.saved_tensors
        gradient = gradients[0]
        sums = torch.cat([gradient.sum((0, 2, 3)), (gradient * normal).sum((0, 2, 3))])
        dist.all_reduce(sums)
        along_one, along_normal = (sums / count).chunk(2)
        inner = gradient - along_one[:, None, None] - normal * along_normal[:, None, None]
        return inner * scale[:, None, None], None


class SyncedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of all processes' batches together; same state dict."""

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same shape."""
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normal, mean, variance, count = _Normalise.apply(wide, self.eps)
        self._track(mean, variance, count)
        return (normal * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Moves the running statistics; the running variance is the unbiased one, as everywhere in PyTorch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), self.momentum)


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with every batch norm synchronised over the default process group; keys and tensors stay.

    Args:
        model: changed in place.
        device: where it will run; PyTorch's own layer serves CUDA.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for name, module in list(model.named_modules()):
        if type(module) is nn.BatchNorm2d:
            model.set_submodule(name, _synced(module))
    return model


def _synced(norm: nn.BatchNorm2d) -> SyncedBatchNorm:
    """The synchronised equal of `norm`, on the same parameters and buffers."""
    twin = SyncedBatchNorm(norm.num_features, norm.eps, norm.momentum)
    twin.weight, twin.bias = norm.weight, norm.bias
    twin.running_mean, twin.running_var = norm.running_mean, norm.running_var
    twin.num_batches_tracked = norm.num_batches_tracked
    return twin.train(norm.training)
