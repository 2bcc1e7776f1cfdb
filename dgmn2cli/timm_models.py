"""The four backbones as timm models: `import dgmn2cli.timm_models` registers `dgmn2_tiny` to `dgmn2_large`.

Importing this module is the explicit act of registration; nothing else in the package imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from dgmn2cli.model.backbone import BLOCKS, CHANNELS, IMAGENET_CLASSES, IMAGENET_SIDE, Classifier

__all__ = ["TimmClassifier", "dgmn2_large", "dgmn2_medium", "dgmn2_small", "dgmn2_tiny"]

STRIDES = (4, 8, 16, 32)

default_cfgs = generate_default_cfgs(
    {
        f"dgmn2_{size}": {
            "url": "",  # weights come through dgmn2cli's own verified download, not through timm
            "num_classes": IMAGENET_CLASSES,
            "input_size": (3, IMAGENET_SIDE, IMAGENET_SIDE),
            "pool_size": (IMAGENET_SIDE // STRIDES[-1], IMAGENET_SIDE // STRIDES[-1]),
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed1.conv1",
            "classifier": "head",
        }
        for size in BLOCKS
    }
)


class TimmClassifier(Classifier):
    """The ImageNet classifier with the methods timm expects of a model; same keys, same numbers.

    Args:
        size: `tiny`, `small`, `medium` or `large`.
        num_classes: 0 leaves the head out.
        drop_path_rate: stochastic depth of the last block while training.
        in_chans: 3; timm always passes it.
    """

    def __init__(
        self, size: str, num_classes: int = IMAGENET_CLASSES, drop_path_rate: float = 0.0, in_chans: int = 3
    ) -> None:
        if in_chans != 3:
            raise ValueError(f"in_chans is {in_chans}, wanted 3: the DGMN2 backbones take RGB images")
        super().__init__(size, num_classes, drop_path_rate)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = CHANNELS[-1]
        self.feature_info = [
            {"num_chs": channels, "reduction": stride, "module": f"block{stage}"}
            for stage, (channels, stride) in enumerate(zip(CHANNELS, STRIDES, strict=True), 1)
        ]

    def get_classifier(self) -> nn.Module:
        """The classification layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classification layer by a fresh one for `num_classes`, or by none for 0."""
        self.num_classes = num_classes
        self.head = nn.Linear(CHANNELS[-1], num_classes) if num_classes else nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """Stage 4's map, `(B, 512, H/32, W/32)`."""
        return self.forward_stages(images)[-1]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Class scores `(B, num_classes)` of stage 4's map, or the pooled features `(B, 512)`."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of the stages `indices` (all, the last n, or those named), `(B, C_i, H_i, W_i)`; as in timm."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}, wanted 'NCHW'")
        stages = self.forward_stages(images)
        chosen = [stages[index] for index in _stages(indices)]
        return chosen if intermediates_only else (stages[-1], chosen)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the head; the stages stay, whatever `indices`, because each feeds the next. Returns the stages kept."""
        if prune_head:
            self.reset_classifier(0)
        return _stages(indices)


def _stages(indices: int | Sequence[int] | None) -> list[int]:
    """The stages, 0 to 3, that timm's `indices` mean: all, the last n, or those named, counted from the end if < 0.

    Raises:
        ValueError: there is no such stage.
    """
    count = len(STRIDES)
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        if not 1 <= indices <= count:
            raise ValueError(f"{indices} stages are wanted, and there are {count}")
        indices = range(count - indices, count)
    wrong = [index for index in indices if not -count <= index < count]
    if wrong:
        raise ValueError(f"out_indices {wrong} name no stage, wanted {-count} to {count - 1}")
    return [index % count for index in indices]


def _create(size: str, pretrained: bool, **settings: Any) -> nn.Module:
    out_indices = settings.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        TimmClassifier,
        f"dgmn2_{size}",
        pretrained,
        size=size,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **settings,
    )


@register_model
def dgmn2_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DGMN2-Tiny, 12.1 M parameters."""
    return _create("tiny", pretrained, **kwargs)


@register_model
def dgmn2_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DGMN2-Small, 21.0 M parameters."""
    return _create("small", pretrained, **kwargs)


@register_model
def dgmn2_medium(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DGMN2-Medium, 35.8 M parameters."""
    return _create("medium", pretrained, **kwargs)


@register_model
def dgmn2_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DGMN2-Large, 48.3 M parameters."""
    return _create("large", pretrained, **kwargs)
