"""The whole network: backbone, neck where the head wants one, head, and the resize to the input's size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dgmn2cli.model.backbone import DILATED_STRIDES, PYRAMID_STRIDES, Backbone
from dgmn2cli.model.heads import FpnHead, FpnNeck, SetrMlaHead, SetrNaiveHead, SetrPupHead, is_plain, resize
from dgmn2cli.ops.operators import followed
from dgmn2cli.ops.resample import resize_chain

HEADS: dict[str, Callable[[int], nn.Module]] = {
    "fpn": FpnHead,
    "setr_naive": SetrNaiveHead,
    "setr_pup": SetrPupHead,
    "setr_mla": SetrMlaHead,
}


class Segmentor(nn.Module):
    """A DGMN2 segmentation network with the published parameter names.

    Args:
        size: backbone size, `tiny`, `small`, `medium` or `large`.
        head: `fpn`, `setr_naive`, `setr_pup` or `setr_mla`.
        num_classes: number of classes; 19 for Cityscapes.
        drop_path: stochastic depth of the backbone while training; 0 in every published recipe.

    Attributes:
        shortcut: False keeps the published order of operations also where gradients are recorded. It is kept anyhow
            where the head has hooks or modules of other kinds, and where something else follows the operations.
    """

    neck: FpnNeck | None

    def __init__(self, size: str, head: str, num_classes: int = 19, drop_path: float = 0.0) -> None:
        super().__init__()
        self.num_classes, self.shortcut = num_classes, True
        self.backbone = Backbone(size, PYRAMID_STRIDES if head == "fpn" else DILATED_STRIDES, drop_path)
        if head == "fpn":
            self.neck = FpnNeck()
        else:
            self.neck = None
        self.decode_head = HEADS[head](num_classes)

    def features(self, images: Tensor) -> list[Tensor]:
        """The four maps `(B, C_i, H_i, W_i)` that the head takes."""
        maps = self.backbone(images)
        return maps if self.neck is None else self.neck(maps)

    def raw_logits(self, images: Tensor) -> Tensor:
        """Logits at the head's own resolution, `(B, num_classes, h, w)`, in the published order of operations."""
        return self.decode_head(self.features(images))

    def coarse_logits(self, images: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
        """What training runs: logits before the head's last resizes, and all sizes they are resized to, `size` last.

        As `raw_logits` resized to `size`, up to rounding, once `ops.resample.resize_chain` has taken them there.
        """
        if not is_plain(self.decode_head):
            return self.raw_logits(images), (size,)
        raw, sizes = self.decode_head.coarse(self.features(images))  # type: ignore[operator]
        return raw, (*sizes, size)

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the input's size, `(B, num_classes, H, W)`; float32 gradients are recorded in the cheaper order.

        Args:
            images: `(B, 3, H, W)` float, RGB, normalised with the ImageNet mean and standard deviation.
        """
        size = (images.shape[2], images.shape[3])
        learning = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())
        possible = self.shortcut and images.dtype == torch.float32 and not followed() and is_plain(self.decode_head)
        if possible and learning:
            raw, sizes = self.coarse_logits(images, size)
            return resize_chain(raw, sizes)
        return resize(self.raw_logits(images), size)
