"""Owns what the base files of the published mmcv configurations mean, for configurations that come without them."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

CITYSCAPES_CLASSES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
"""The classes of MMSegmentation's `CityscapesDataset`, which a configuration may leave unsaid."""

_NORM = {"type": "SyncBN", "requires_grad": True}
_MEAN_STD = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": True}
_LOSS = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0}


def stock_file(path: PurePath) -> dict[str, Any] | None:
    """The values a published base file assigns, known by its place under `_base_` (`schedules/schedule_40k.py`).

    Returns:
        A fresh dict, or None if the path is none of the published base files.
    """
    if "_base_" not in path.parts:
        return None
    below = path.parts[len(path.parts) - path.parts[::-1].index("_base_") :]
    known = {
        "default_runtime.py": _runtime,
        "schedules/schedule_40k.py": _schedule,
        "datasets/cityscapes.py": lambda: _cityscapes((2048, 1024), (512, 1024)),
        "datasets/cityscapes_769x769.py": lambda: _cityscapes((2049, 1025), (769, 769)),
        "models/fpn_dgmn2.py": lambda: _model(_fpn_head(), {"neck": _fpn_neck()}),
        "models/setr_naive_dgmn2.py": lambda: _model(_up_head(2)),
        "models/setr_pup_dgmn2.py": lambda: _model(_up_head(4)),
        "models/setr_mla_dgmn2.py": lambda: _model(_mla_head()),
    }
    make = known.get("/".join(below))
    return make() if make is not None else None


def _runtime() -> dict[str, Any]:
    """Logging and launching; nothing that changes a result."""
    return {
        "log_config": {"interval": 50, "hooks": [{"type": "TextLoggerHook", "by_epoch": False}]},
        "dist_params": {"backend": "nccl"},
        "log_level": "INFO",
        "load_from": None,
        "resume_from": None,
        "workflow": [("train", 1)],
        "cudnn_benchmark": True,
    }


def _schedule() -> dict[str, Any]:
    """The schedule of the published DGMN2 models (MMSegmentation's own file of that name has SGD)."""
    return {
        "optimizer": {"type": "AdamW", "lr": 1e-4, "weight_decay": 1e-4},
        "optimizer_config": {},
        "lr_config": {"policy": "poly", "power": 0.9, "min_lr": 0.0, "by_epoch": False},
        "runner": {"type": "IterBasedRunner", "max_iters": 40_000},
        "checkpoint_config": {"by_epoch": False, "interval": 4000},
        "evaluation": {"interval": 4000, "metric": "mIoU"},
    }


def _cityscapes(scale: tuple[int, int], crop: tuple[int, int]) -> dict[str, Any]:
    """MMSegmentation 0.16's Cityscapes data at a scale and crop size."""
    normalize = {"type": "Normalize", **_MEAN_STD}
    train: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {"type": "Resize", "img_scale": scale, "ratio_range": (0.5, 2.0)},
        {"type": "RandomCrop", "crop_size": crop, "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        normalize,
        {"type": "Pad", "size": crop, "pad_val": 0, "seg_pad_val": 255},
        {"type": "DefaultFormatBundle"},
        {"type": "Collect", "keys": ["img", "gt_semantic_seg"]},
    ]
    transforms = [
        {"type": "Resize", "keep_ratio": True},
        {"type": "RandomFlip"},
        normalize,
        {"type": "ImageToTensor", "keys": ["img"]},
        {"type": "Collect", "keys": ["img"]},
    ]
    flip_aug = {"type": "MultiScaleFlipAug", "img_scale": scale, "flip": False, "transforms": transforms}
    test: list[dict[str, Any]] = [{"type": "LoadImageFromFile"}, flip_aug]
    data = {
        "samples_per_gpu": 2,
        "workers_per_gpu": 2,
        "train": _split("train", train),
        "val": _split("val", test),
        "test": _split("val", test),
    }
    names = {"dataset_type": "CityscapesDataset", "data_root": "data/cityscapes/", "img_norm_cfg": dict(_MEAN_STD)}
    return {**names, "crop_size": crop, "train_pipeline": train, "test_pipeline": test, "data": data}


def _split(split: str, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
    """One split of Cityscapes as MMSegmentation names its folders."""
    folders = {"data_root": "data/cityscapes/", "img_dir": f"leftImg8bit/{split}", "ann_dir": f"gtFine/{split}"}
    return {"type": "CityscapesDataset", **folders, "pipeline": pipeline}


def _model(head: dict[str, Any], more: dict[str, Any] | None = None) -> dict[str, Any]:
    """A published model file: the tiny backbone, which every configuration replaces by its own."""
    common = {"num_classes": 19, "norm_cfg": dict(_NORM), "loss_decode": dict(_LOSS)}
    model = {
        "type": "EncoderDecoder",
        "pretrained": "pretrained/dgmn2_tiny_model.pth",
        "backbone": {"type": "dgmn2_tiny", "norm_cfg": dict(_NORM)},
        **(more or {}),
        "decode_head": {**head, **common},
        "test_cfg": {"mode": "slide", "crop_size": (769, 769), "stride": (513, 513)},
    }
    return {"norm_cfg": dict(_NORM), "model": model}


def _fpn_neck() -> dict[str, Any]:
    """As the base file has it: the channels of another backbone, which every configuration replaces."""
    return {"type": "FPN", "in_channels": [256, 512, 1024, 2048], "out_channels": 256, "num_outs": 4}


def _fpn_head() -> dict[str, Any]:
    """As the base file has it: `align_corners` is off there, and on in every configuration."""
    return {
        "type": "FPNHead",
        "in_channels": [256] * 4,
        "in_index": [0, 1, 2, 3],
        "feature_strides": [4, 8, 16, 32],
        "channels": 128,
        "dropout_ratio": 0.1,
        "align_corners": False,
    }


def _up_head(convs: int) -> dict[str, Any]:
    """SETR-Naive (2 convolutions) or SETR-PUP (4)."""
    return {
        "type": "VisionTransformerUpHead",
        "in_channels": 512,
        "channels": 256,
        "in_index": 1,
        "img_size": 769,
        "embed_dim": 512,
        "num_conv": convs,
        "align_corners": True,
    }


def _mla_head() -> dict[str, Any]:
    """SETR-MLA."""
    return {
        "type": "VIT_MLAHead",
        "in_channels": 512,
        "channels": 256,
        "img_size": 769,
        "mla_channels": [64, 128, 320, 512],
        "mlahead_channels": 128,
        "align_corners": True,
    }
