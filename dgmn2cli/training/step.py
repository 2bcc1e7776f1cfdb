"""One optimiser step: forward passes on one or many processes, their gradients, and the refusal of NaN."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dgmn2cli.config import Config, LossConfig
from dgmn2cli.data.loaders import TrainBatch
from dgmn2cli.distributed.group import Group
from dgmn2cli.distributed.rendezvous import lost_connections
from dgmn2cli.errors import NonFiniteError, ResourceError
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.ops.resample import resize_chain
from dgmn2cli.runtime import resolve_dtype
from dgmn2cli.training.batchnorm import synchronise_batch_norm
from dgmn2cli.training.loss import PUBLISHED, segmentation_loss
from dgmn2cli.training.optim import make_optimizer, poly_lr, set_lr
from dgmn2cli.training.report import StepResult

_RANDOM_LAYERS = 2  # this use of the seed; the data loaders have 0 and 1


class LossModule(nn.Module):
    """A segmentor that gives its loss: what DistributedDataParallel wraps."""

    def __init__(
        self, model: Segmentor, class_weights: Tensor | None, autocast: torch.dtype | None, loss: LossConfig = PUBLISHED
    ) -> None:
        super().__init__()
        self.model, self.class_weights, self.autocast, self.loss = model, class_weights, autocast, loss

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of `images` `(B, 3, H, W)` and `labels` `(B, H, W)`; see `segmentation_loss`."""
        images = images.to(next(self.model.parameters()).dtype)
        with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
            raw, sizes = self.model.coarse_logits(images, (labels.shape[1], labels.shape[2]))
        raw = resize_chain(raw.to(torch.promote_types(raw.dtype, torch.float32)), sizes)
        return segmentation_loss(raw, labels, self.class_weights, self.loss)


def _mean_in_rank_order(mine: Tensor) -> torch.futures.Future[Tensor]:
    """The mean of a gradient bucket over the processes, added in the order of their ranks.

    A ring adds each element in an order that depends on its place in the bucket, and PyTorch lays the buckets out anew
    after the first step of a run: from three processes on, a resumed run would differ in the last bits.
    """
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    total = torch.stack(parts).sum(0) / len(parts)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(total)
    return done


class Stepper:
    """The network, its optimiser, and how a step is made of batches.

    Args:
        config: the configuration.
        model: on the group's device, in training mode; its batch norms are synchronised here where that is wanted.
        group: the processes.

    Attributes:
        model: the network itself, whose state dict has the published keys.
        optimizer: AdamW over the parameters that learn.
        scaler: loss scaling of float16.
    """

    def __init__(self, config: Config, model: Segmentor, group: Group) -> None:
        self.config, self.model, self.group = config, model, group
        model.to(memory_format=torch.channels_last)  # as its feature maps lie: a sixth less time a step on CPUs
        if config.train.freeze_backbone:
            model.backbone.requires_grad_(requires_grad=False)
        together = group.world > 1
        if together and config.train.sync_bn:
            synchronise_batch_norm(model, group.device)
        dtype = resolve_dtype(config.train.dtype)
        weights = config.train.class_weights
        self.network: nn.Module = LossModule(
            model,
            torch.tensor(weights, dtype=torch.float32, device=group.device) if weights else None,
            None if dtype == torch.float32 else dtype,
            config.loss,
        )
        if together:
            self.network = _distributed(self.network, group)
        self.optimizer = make_optimizer(config.optim, [p for p in model.parameters() if p.requires_grad])
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=dtype == torch.float16)

    def train_mode(self) -> None:
        """Layers as for training; a frozen backbone keeps its batch norm statistics."""
        self.network.train()
        if self.config.train.freeze_backbone:
            self.model.backbone.eval()

    def step(self, iteration: int, batches: Sequence[TrainBatch]) -> StepResult:
        """Optimiser step number `iteration`, counted from 0, over as many batches as the configuration accumulates.

        Raises:
            NonFiniteError: the loss is NaN or infinite on some process; the weights are as before the step.
            ResourceError: out of GPU memory.
            DistributedError: a process is gone.
        """
        settings = self.config
        lr = poly_lr(settings.optim, iteration, settings.train.iters)
        set_lr(self.optimizer, lr)
        torch.manual_seed(layer_seed(settings.train.seed, self.group.rank, iteration))
        self.train_mode()
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        accuracies: list[Tensor] = []
        names: list[str] = []
        for number, batch in enumerate(batches, 1):
            loss, accuracy = self._backward(batch, last=number == len(batches))
            losses.append(loss)
            accuracies.append(accuracy)
            names += batch.names
        own = torch.stack(losses).mean()
        loss_mean, accuracy_mean = self.group.mean([own, torch.stack(accuracies).mean()])
        report = StepResult(iteration + 1, loss_mean, accuracy_mean, lr, tuple(names))
        if not np.isfinite(loss_mean):
            self._refuse(report, float(own))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return report

    def _backward(self, batch: TrainBatch, *, last: bool) -> tuple[Tensor, Tensor]:
        """Adds one batch's gradients; they are exchanged between the processes with the step's last batch."""
        images = batch.images.to(self.group.device, non_blocking=True)
        labels = batch.labels.to(self.group.device, non_blocking=True)
        waiting: AbstractContextManager[Any] = nullcontext()
        if isinstance(self.network, DistributedDataParallel) and not last:
            waiting = self.network.no_sync()
        try:
            with waiting, lost_connections() if self.group.world > 1 else nullcontext():
                loss, accuracy = self.network(images, labels)
                self.scaler.scale(loss / self.config.train.accumulate).backward()
        except torch.OutOfMemoryError as error:
            size = "x".join(map(str, images.shape))
            hint = "Use a smaller --batch-size with --accumulate, a smaller --crop, or --dtype bfloat16."
            why = f"a batch of {size} does not fit"
            raise ResourceError("out of memory on the device", where=self.group.device, why=why, hint=hint) from error
        return loss.detach(), accuracy

    def _refuse(self, report: StepResult, own: float) -> None:
        """Raises NonFiniteError with the step, the learning rate and the images of the processes concerned."""
        found = self.group.gather((own, report.names))
        names = [name for loss, images in found if not np.isfinite(loss) for name in images]
        raise NonFiniteError(
            "the loss is not a finite number",
            where=f"step {report.iteration}",
            why=f"it is {report.loss} at learning rate {report.lr:g}, images {', '.join(names[:8])}",
            hint="No checkpoint was written. Resume with a smaller --set optim.lr and --force, or start anew.",
        )


def layer_seed(seed: int, rank: int, iteration: int) -> int:
    """The seed of everything random within the network's layers at one step on one process."""
    drawn = np.random.SeedSequence([seed, _RANDOM_LAYERS, rank, iteration]).generate_state(1, np.uint64)
    return int(drawn[0] >> np.uint64(1))


def _distributed(network: nn.Module, group: Group) -> DistributedDataParallel:
    on_gpu = group.device.type == "cuda"
    with lost_connections():
        made = DistributedDataParallel(
            network, device_ids=[group.device.index] if on_gpu else None, gradient_as_bucket_view=True
        )
    if not on_gpu:
        made.register_comm_hook(None, lambda state, bucket: _mean_in_rank_order(bucket.buffer()))
    return made
