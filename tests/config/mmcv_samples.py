"""Miniature files in the mmcv language: the published configuration of every head and backbone, in pieces."""

from __future__ import annotations

from dataclasses import replace

from dgmn2cli.config import Config

SIZES = ("tiny", "small", "medium", "large")

HEAD_TEXTS = {
    "fpn": """dict(type='FPNHead', in_channels=[256, 256, 256, 256], in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32], channels=128, dropout_ratio=0.1, num_classes=19, norm_cfg=norm_cfg,
        align_corners=True, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0))""",
    "setr_naive": """dict(type='VisionTransformerUpHead', in_channels=512, channels=512, in_index=0, img_size=769,
        embed_dim=512, num_classes=19, norm_cfg=norm_cfg, dropout_ratio=0, num_conv=2, align_corners=True,
        upsampling_method='bilinear', conv3x3_conv1x1=False)""",
    "setr_pup": """dict(type='VisionTransformerUpHead', in_channels=512, channels=256, in_index=0, img_size=769,
        embed_dim=512, num_classes=19, norm_cfg=norm_cfg, dropout_ratio=0, num_conv=4, align_corners=True,
        num_upsampe_layer=4)""",
    "setr_mla": """dict(type='VIT_MLAHead', in_channels=512, channels=512, img_size=769, mlahead_channels=128,
        mla_channels=[64, 128, 320, 512], num_classes=19, dropout_ratio=0, norm_cfg=norm_cfg, align_corners=True)""",
}
OUTPUTS = {"fpn": ", output='neck'", "setr_mla": ", output='decode_head_multi'"}
NECK = "neck=dict(type='FPN', in_channels=[64, 128, 320, 512], out_channels=256, num_outs=4),"

MODEL = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(type='EncoderDecoder', pretrained='pretrained/dgmn2_{size}_model.pth',
    backbone=dict(type='dgmn2_{size}', norm_cfg=norm_cfg{output}), {neck}
    decode_head={head},
    test_cfg=dict(mode='slide', crop_size=(769, 769), stride=(513, 513)))
"""

DATA = """
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
crop_size = (769, 769)
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
    dict(type='Resize', img_scale=(2049, 1025), ratio_range=(0.5, 2.0)),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75), dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'), dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size=crop_size, pad_val=0, seg_pad_val=255), dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_semantic_seg'])]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(2049, 1025), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), dict(type='Normalize', **img_norm_cfg),
        dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])])]
data = dict(samples_per_gpu=2, workers_per_gpu=2,
    train=dict(type='CityscapesDataset', data_root='data/cityscapes/', img_dir='leftImg8bit/train',
        ann_dir='gtFine/train', pipeline=train_pipeline),
    val=dict(type='CityscapesDataset', data_root='data/cityscapes/', img_dir='leftImg8bit/val',
        ann_dir='gtFine/val', pipeline=test_pipeline),
    test=dict(type='CityscapesDataset', data_root='data/cityscapes/', img_dir='leftImg8bit/val',
        ann_dir='gtFine/val', pipeline=test_pipeline))
"""

SCHEDULE = """
optimizer = dict(type='AdamW', lr=0.0001, weight_decay=0.0001)
optimizer_config = dict()
lr_config = dict(policy='poly', power=0.9, min_lr=0.0, by_epoch=False)
runner = dict(type='IterBasedRunner', max_iters=40000)
checkpoint_config = dict(by_epoch=False, interval=4000)
evaluation = dict(interval=4000, metric='mIoU')
"""

RUNTIME = """
log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook', by_epoch=False)])
dist_params = dict(backend='nccl')
workflow = [('train', 1)]
gpu_ids = range(0, 4)
load_from = None
"""


def model_text(head: str, size: str) -> str:
    """The model part of one published configuration."""
    neck = NECK if head == "fpn" else ""
    return MODEL.format(size=size, output=OUTPUTS.get(head, ""), neck=neck, head=HEAD_TEXTS[head])


def flat_text(head: str = "setr_pup", size: str = "tiny") -> str:
    """One published configuration in one piece, as a checkpoint's meta has it."""
    return model_text(head, size) + DATA + SCHEDULE + RUNTIME


def config_name(head: str, size: str) -> str:
    return f"{head}_dgmn2_{size}_4x2_769x769_40k_cityscapes"


V1 = """
default_scope = 'mmseg'
env_cfg = dict(cudnn_benchmark=True, dist_cfg=dict(backend='nccl'))
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
crop_size = (769, 769)
norm_cfg = dict(type='SyncBN', requires_grad=True)
data_preprocessor = dict(type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True, pad_val=0, seg_pad_val=255, size=crop_size)
model = dict(type='EncoderDecoder', data_preprocessor=data_preprocessor, pretrained=None,
    backbone=dict(type='dgmn2_{size}', norm_cfg=norm_cfg{output},
        init_cfg=dict(type='Pretrained', checkpoint='pretrained/dgmn2_{size}_model.pth')), {neck}
    decode_head={head}, train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(769, 769), stride=(513, 513)))
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(2049, 1025), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75), dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'), dict(type='PackSegInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(2049, 1025), keep_ratio=True),
    dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(batch_size=2, num_workers=2, persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='CityscapesDataset', data_root='data/cityscapes/', pipeline=train_pipeline,
        data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train')))
val_dataloader = dict(batch_size=1, num_workers=4, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CityscapesDataset', data_root='data/cityscapes/', pipeline=test_pipeline,
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val')))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
optimizer = dict(type='AdamW', lr=0.0001, weight_decay=0.0001)
optim_wrapper = dict(type='OptimWrapper', optimizer=optimizer, clip_grad=None)
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=40000, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=40000, val_interval=4000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(timer=dict(type='IterTimerHook'), logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'), sampler_seed=dict(type='DistSamplerSeedHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4000))
"""


def v1_text(head: str = "setr_pup", size: str = "tiny") -> str:
    """One published configuration in MMSegmentation's 1.x format."""
    neck = NECK if head == "fpn" else ""
    return V1.format(size=size, output=OUTPUTS.get(head, ""), neck=neck, head=HEAD_TEXTS[head])


def bare(config: Config) -> Config:
    """The configuration without what differs between two ways of saying it: name and notes."""
    return replace(config, name="x", notes=())


MODELS = [(head, size) for head in HEAD_TEXTS for size in SIZES]
PUP = config_name("setr_pup", "tiny")
