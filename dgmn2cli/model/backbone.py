"""The DGMN2 backbone: four stages of convolutional patch embedding and dynamic graph blocks (arXiv 2209.09760)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dgmn2cli.model.attention import HEAD_WIDTH, TABLE_MARGIN, DynamicGraphAttention
from dgmn2cli.ops.operators import transformed

CHANNELS = (64, 128, 320, 512)
MLP_RATIOS = (8, 8, 4, 4)
BLOCKS = {"tiny": (2, 2, 2, 2), "small": (3, 4, 6, 3), "medium": (3, 4, 18, 3), "large": (3, 8, 27, 3)}
# stride of each patch embedding; FPN and classification shrink to 1/32, the SETR heads keep stages 3 and 4 at 1/8
PYRAMID_STRIDES = (4, 2, 2, 2)
DILATED_STRIDES = (4, 2, 1, 1)
IMAGENET_SIDE = 224
IMAGENET_CLASSES = 1000


class StemEmbedding(nn.Module):
    """Patch embedding of stage 1: three 3x3 convolutions, 1/4 of the image's resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, channels, 3, stride=2, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)

    def forward(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, C, H/4, W/4)`, sides rounded up."""
        x = self.norm1(self.conv1(images)).relu()
        x = self.norm2(self.conv2(x)).relu()
        return self.norm3(self.conv3(x)).relu()


class PatchEmbedding(nn.Module):
    """Patch embedding of stages 2 to 4: one 3x3 convolution."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, H, W)` to `(B, C, H/stride, W/stride)`, sides rounded up."""
        return self.norm(self.conv(x)).relu()


class Mlp(nn.Module):
    """Two Linear layers around an exact (erf) GELU, on the last axis.

    `recompute`: the backward pass takes the GELU anew instead of keeping it; same numbers, a third less to keep.
    """

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.recompute = True
        self.fc1 = nn.Linear(channels, channels * ratio)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(channels * ratio, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, N, C)` to `(B, N, C)`."""
        hidden = self.fc1(tokens)
        if self.recompute and hidden.requires_grad and not transformed():
            return checkpoint(self._contract, hidden, use_reentrant=False, preserve_rng_state=False)
        return self._contract(hidden)

    def _contract(self, hidden: Tensor) -> Tensor:
        return self.fc2(self.act(hidden))


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per image while training (arXiv 1603.09382)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """`(B, N, C)`, whole images zeroed with the given probability, the others scaled up to keep the mean."""
        if not self.training or self.probability == 0.0:
            return branch
        keep = 1.0 - self.probability
        return branch * branch.new_empty(branch.shape[0], 1, 1).bernoulli_(keep) / keep


class Block(nn.Module):
    """Pre-norm transformer block with dynamic graph attention."""

    def __init__(self, channels: int, mlp_ratio: int, table_rows: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = DynamicGraphAttention(channels, channels // HEAD_WIDTH, table_rows)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, mlp_ratio)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """`(B, N, C)` to `(B, N, C)`; `size` is the map's (H, W) with N = H * W."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), size))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


@dataclass(frozen=True)
class StageSpec:
    """What one stage is made of."""

    in_channels: int
    channels: int
    stride: int
    blocks: int
    mlp_ratio: int
    table_rows: int


def stage_specs(size: str, strides: tuple[int, ...]) -> list[StageSpec]:
    """The four stages of a backbone of the given size (`tiny`, `small`, `medium`, `large`)."""
    rows = [IMAGENET_SIDE // (4 * 2**stage) + TABLE_MARGIN for stage in range(4)]
    inputs = (3, *CHANNELS[:-1])
    return [StageSpec(*parts) for parts in zip(inputs, CHANNELS, strides, BLOCKS[size], MLP_RATIOS, rows, strict=True)]


def _add_stages(module: nn.Module, size: str, strides: tuple[int, ...], drop_path: float) -> None:
    """Gives `module` the children `patch_embed1..4` and `block1..4`, in the checkpoints' order."""
    specs = stage_specs(size, strides)
    count = sum(spec.blocks for spec in specs)
    rates = iter([drop_path * index / (count - 1) for index in range(count)])
    module.add_module("patch_embed1", StemEmbedding(specs[0].channels))
    for stage, spec in enumerate(specs[1:], 2):
        module.add_module(f"patch_embed{stage}", PatchEmbedding(spec.in_channels, spec.channels, spec.stride))
    for stage, spec in enumerate(specs, 1):
        blocks = [Block(spec.channels, spec.mlp_ratio, spec.table_rows, next(rates)) for _ in range(spec.blocks)]
        module.add_module(f"block{stage}", nn.ModuleList(blocks))


def _run_stages(module: nn.Module, images: Tensor) -> list[Tensor]:
    features, x = [], images
    for stage in range(1, 5):
        x = module.get_submodule(f"patch_embed{stage}")(x)
        size = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, C)
        for block in module.get_submodule(f"block{stage}").children():
            tokens = block(tokens, size)
        x = tokens.transpose(1, 2).unflatten(2, size)  # (B, C, H, W), channels last in memory
        features.append(x)
    return features


class Backbone(nn.Module):
    """DGMN2 feature extractor.

    Args:
        size: `tiny`, `small`, `medium` or `large`.
        strides: stride of each stage's patch embedding; not part of a checkpoint.
        drop_path: probability of dropping the last block while training; earlier blocks less, linearly.
    """

    def __init__(self, size: str, strides: tuple[int, ...] = PYRAMID_STRIDES, drop_path: float = 0.0) -> None:
        super().__init__()
        _add_stages(self, size, strides, drop_path)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The four stages' feature maps.

        Args:
            images: `(B, 3, H, W)` float, normalised RGB.

        Returns:
            Four tensors `(B, C_i, H_i, W_i)`, strides relative to the image the running product of `strides`.
        """
        return _run_stages(self, images)


class Classifier(nn.Module):
    """The ImageNet network: the four stages, the mean over stage 4's positions, and a Linear head.

    Its keys are the backbone's own plus `head.weight` and `head.bias`, as in the ImageNet checkpoints.
    """

    def __init__(self, size: str, num_classes: int = IMAGENET_CLASSES, drop_path: float = 0.0) -> None:
        super().__init__()
        _add_stages(self, size, PYRAMID_STRIDES, drop_path)
        self.head = nn.Linear(CHANNELS[-1], num_classes) if num_classes else nn.Identity()
        self.apply(_initialise)

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        """The four stages' maps `(B, C_i, H_i, W_i)` at strides 4, 8, 16, 32."""
        return _run_stages(self, images)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores `(B, num_classes)` of `(B, 3, H, W)` normalised RGB images."""
        return self.head(self.forward_stages(images)[-1].mean((2, 3)))


def _initialise(module: nn.Module) -> None:
    """The published initialisation; convolutions and norms keep PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
