"""The published optimiser, its learning rate over the iterations, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dgmn2cli.config import OptimConfig


def make_optimizer(settings: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW over one parameter group: norms, biases and tables decay like everything else, as published."""
    learning = list(parameters)
    return torch.optim.AdamW(
        learning,
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=all(p.device.type in ("cpu", "cuda") for p in learning),  # a quarter of the time on CPUs
    )


def poly_lr(settings: OptimConfig, iteration: int, iters: int) -> float:
    """Learning rate of `iteration`, counted from 0, of `iters`: (lr - min_lr) * (1 - i/iters)**power + min_lr.

    The first `warmup` iterations have (i + 1)/warmup of it.

    Source: arXiv 1506.04579, section 3.5; the published training has no warm-up.
    """
    share = 1.0 - iteration / iters
    rate = (settings.lr - settings.min_lr) * share**settings.power + settings.min_lr
    return rate * (iteration + 1) / settings.warmup if iteration < settings.warmup else rate


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Makes `lr` the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class MovingAverage:
    """An exponential moving average of a network's parameters; its buffers are the newest ones.

    Attributes:
        state: the averaged state dict, tensors of its own, keys and dtypes as the network's.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {key: value.detach().clone() for key, value in model.state_dict().items()}
        self._averaged = {key for key, _ in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average by one step: average = decay * average + (1 - decay) * weights."""
        for key, value in model.state_dict().items():
            if key in self._averaged:
                self.state[key].lerp_(value, 1.0 - self.decay)
            else:
                self.state[key].copy_(value)

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes over a saved average."""
        for key, value in self.state.items():
            value.copy_(state[key])
