"""The base files of the published mmcv configurations, for configurations that come without them."""

from __future__ import annotations

from pathlib import PurePath

CITYSCAPES_CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
"""The classes of MMSegmentation's `CityscapesDataset`, which a configuration may leave unsaid."""

# Nothing in the runtime file changes a result.
_RUNTIME = """
log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook', by_epoch=False)])
dist_params = dict(backend='nccl')
log_level = 'INFO'
load_from = None
resume_from = None
workflow = [('train', 1)]
cudnn_benchmark = True
"""
# The schedule of the published DGMN2 models; MMSegmentation's own file of that name has SGD.
_SCHEDULE = """
optimizer = dict(type='AdamW', lr=0.0001, weight_decay=0.0001)
optimizer_config = dict()
lr_config = dict(policy='poly', power=0.9, min_lr=0.0, by_epoch=False)
runner = dict(type='IterBasedRunner', max_iters=40000)
checkpoint_config = dict(by_epoch=False, interval=4000)
evaluation = dict(interval=4000, metric='mIoU')
"""
# MMSegmentation 0.16's Cityscapes data at a scale and crop size.
_CITYSCAPES = """
dataset_type = 'CityscapesDataset'
data_root = 'data/cityscapes/'
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
crop_size = CROP
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', img_scale=SCALE, ratio_range=(0.5, 2.0)),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size=crop_size, pad_val=0, seg_pad_val=255),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_semantic_seg'])]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=SCALE, flip=False, transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='RandomFlip'),
        dict(type='Normalize', **img_norm_cfg),
        dict(type='ImageToTensor', keys=['img']),
        dict(type='Collect', keys=['img'])])]
validation = dict(type=dataset_type, data_root=data_root, img_dir='leftImg8bit/val', ann_dir='gtFine/val',
    pipeline=test_pipeline)
data = dict(samples_per_gpu=2, workers_per_gpu=2, val=validation, test=validation,
    train=dict(type=dataset_type, data_root=data_root, img_dir='leftImg8bit/train', ann_dir='gtFine/train',
        pipeline=train_pipeline))
"""
# A published model file: the tiny backbone, which every configuration replaces by its own.
_MODEL = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    pretrained='pretrained/dgmn2_tiny_model.pth',
    backbone=dict(type='dgmn2_tiny', norm_cfg=norm_cfg),
    decode_head=dict(HEAD, num_classes=19, norm_cfg=norm_cfg,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    test_cfg=dict(mode='slide', crop_size=(769, 769), stride=(513, 513)))
"""
# As the base file has it: the neck's channels are another backbone's and `align_corners` is off; every configuration
# replaces both.
_FPN = """type='FPNHead', in_channels=[256, 256, 256, 256], in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32],
        channels=128, dropout_ratio=0.1, align_corners=False"""
_NECK = "neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=4),\n    "
_UP = """type='VisionTransformerUpHead', in_channels=512, channels=256, in_index=1, img_size=769, embed_dim=512,
        align_corners=True, num_conv="""
_MLA = """type='VIT_MLAHead', in_channels=512, channels=256, img_size=769, mla_channels=[64, 128, 320, 512],
        mlahead_channels=128, align_corners=True"""

_FILES = {
    "default_runtime.py": _RUNTIME,
    "schedules/schedule_40k.py": _SCHEDULE,
    "datasets/cityscapes.py": _CITYSCAPES.replace("SCALE", "(2048, 1024)").replace("CROP", "(512, 1024)"),
    "datasets/cityscapes_769x769.py": _CITYSCAPES.replace("SCALE", "(2049, 1025)").replace("CROP", "(769, 769)"),
    "models/fpn_dgmn2.py": _MODEL.replace("HEAD", _FPN).replace("decode_head", f"{_NECK}decode_head"),
    "models/setr_naive_dgmn2.py": _MODEL.replace("HEAD", f"{_UP}2"),
    "models/setr_pup_dgmn2.py": _MODEL.replace("HEAD", f"{_UP}4"),
    "models/setr_mla_dgmn2.py": _MODEL.replace("HEAD", _MLA),
}


def stock_file(path: PurePath) -> str | None:
    """The text of a published base file, known by its place under `_base_` (`schedules/schedule_40k.py`), or None."""
    if "_base_" not in path.parts:
        return None
    below = path.parts[len(path.parts) - path.parts[::-1].index("_base_") :]
    return _FILES.get("/".join(below))
