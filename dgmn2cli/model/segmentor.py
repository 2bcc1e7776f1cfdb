"""The whole network: backbone, neck where the head wants one, head, and the resize to the input's size."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from dgmn2cli.model.backbone import DILATED_STRIDES, PYRAMID_STRIDES, Backbone
from dgmn2cli.model.heads import FIXED_SIDE, FpnHead, FpnNeck, SetrMlaHead, SetrNaiveHead, SetrPupHead, resize, square

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
    """

    neck: FpnNeck | None

    def __init__(self, size: str, head: str, num_classes: int = 19, drop_path: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = Backbone(size, PYRAMID_STRIDES if head == "fpn" else DILATED_STRIDES, drop_path)
        if head == "fpn":
            self.neck = FpnNeck()
        else:
            self.neck = None
        self.decode_head = HEADS[head](num_classes)

    def raw_logits(self, images: Tensor) -> Tensor:
        """Logits at the head's own resolution, `(B, num_classes, h, w)`."""
        features = self.backbone(images)
        return self.decode_head(self.neck(features) if self.neck is not None else features)

    def coarse_logits(self, images: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
        """`raw_logits` before its last resize, and what takes them to `size`, for `ops.resample.resize_chain`.

        SETR-Naive and SETR-MLA resize to 769 x 769 whatever the input: for small inputs that costs more than all else,
        and with the resize that follows it is one small matrix. Where there is no such detour, `raw_logits` and ().
        """
        if isinstance(self.decode_head, (SetrNaiveHead, SetrMlaHead)) and size != square(FIXED_SIDE):
            return self.decode_head.coarse(self.backbone(images)), (square(FIXED_SIDE), size)
        return self.raw_logits(images), ()

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the input's size, `(B, num_classes, H, W)`.

        Args:
            images: `(B, 3, H, W)` float, RGB, normalised with the ImageNet mean and standard deviation.
        """
        return resize(self.raw_logits(images), images.shape[2:])
