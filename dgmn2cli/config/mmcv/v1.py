"""MMSegmentation's 1.x format: recognised by its keys, and said in those of the 0.x format, which `map` reads."""

from __future__ import annotations

import re
from typing import Any

from dgmn2cli.config.mmcv import MmcvDocument, table

_DROPPED = (
    *("default_scope", "env_cfg", "vis_backends", "visualizer", "log_processor", "launcher", "resume", "val_cfg"),
    *("test_cfg", "tta_model", "tta_pipeline", "img_ratios", "test_evaluator", "randomness", "data_preprocessor"),
)
_HOOKS = ("timer", "logger", "param_scheduler", "checkpoint", "sampler_seed", "visualization")
_PATHS = (  # 0.x -> 1.x, for messages; the first that fits counts
    (r"data\.samples_per_gpu", "train_dataloader.batch_size"),
    (r"data\.workers_per_gpu", "train_dataloader.num_workers"),
    (r"data\.(train|val|test)\b", r"\1_dataloader.dataset"),
    (r"optimizer_config\.grad_clip", "optim_wrapper.clip_grad"),
    (r"optimizer_config\b", "optim_wrapper"),
    (r"fp16\b", "optim_wrapper.type"),
    (r"optimizer\b", "optim_wrapper.optimizer"),
    (r"lr_config\.min_lr", "param_scheduler.eta_min"),
    (r"lr_config\.policy", "param_scheduler.type"),
    (r"lr_config\b", "param_scheduler"),
    (r"runner\b", "train_cfg"),
    (r"checkpoint_config\b", "default_hooks.checkpoint"),
    (r"evaluation\.interval", "train_cfg.val_interval"),
    (r"evaluation\.metric", "val_evaluator.iou_metrics"),
    (r"custom_hooks\b", "default_hooks or custom_hooks"),
)


def place_in_v1(text: str) -> str:
    """A fault, note or key of the 0.x format, its key called as in the 1.x format."""
    for old, new in _PATHS:
        if re.match(old, text):
            return re.sub(old, new, text, count=1)
    return text


def to_v0(document: MmcvDocument) -> MmcvDocument:
    """A document of the 1.x format in the keys of the 0.x format; what has no counterpart there is kept and refused."""
    values = {key: value for key, value in document.values.items() if key not in _DROPPED}
    model = dict(table(values.get("model")))
    before = table(model.pop("data_preprocessor", document.values.get("data_preprocessor")))
    backbone = dict(table(model.get("backbone")))
    start = backbone.get("init_cfg")
    if isinstance(start, dict) and start.keys() == {"type", "checkpoint"} and start["type"] == "Pretrained":
        model["pretrained"] = start["checkpoint"]
        del backbone["init_cfg"]
    if "model" in values and isinstance(values["model"], dict):
        values["model"] = {**model, "backbone": backbone} if "backbone" in model else model
    _move_optimizer(values)
    _move_loop(values)
    loaders = {key: table(values.pop(f"{key}_dataloader", None)) for key in ("train", "val", "test")}
    data = {key: _dataset(loader["dataset"], before) for key, loader in loaders.items() if "dataset" in loader}
    sizes = (("samples_per_gpu", "batch_size"), ("workers_per_gpu", "num_workers"))
    data |= {old: loaders["train"][new] for old, new in sizes if new in loaders["train"]}
    if data:
        values["data"] = data
    if "seed" in (randomness := table(document.values.get("randomness"))):
        values["seed"] = randomness["seed"]
    note = "MMSegmentation's 1.x format, read as the same settings of the 0.x format"
    return MmcvDocument(values, document.used, [*document.notes, note])


def _move_optimizer(values: dict[str, Any]) -> None:
    if "optim_wrapper" in values:
        wrapper = dict(table(values.pop("optim_wrapper")))
        kind = wrapper.pop("type", "OptimWrapper")
        if kind != "OptimWrapper":
            values["fp16"] = kind
        groups = {"paramwise_cfg": wrapper.pop("paramwise_cfg")} if "paramwise_cfg" in wrapper else {}
        values["optimizer"] = {**table(wrapper.pop("optimizer", None)), **groups}
        values["optimizer_config"] = {"grad_clip": wrapper.pop("clip_grad", None), **wrapper}
    if "param_scheduler" in values:
        schedulers = values.pop("param_scheduler")
        parts = schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]
        rate = dict(table(parts[0])) if len(parts) == 1 else {"type": [table(part).get("type") for part in parts]}
        policy = rate.pop("type", None)
        if rate.get("begin") == 0:
            del rate["begin"]
        if rate.get("end") == table(values.get("train_cfg")).get("max_iters"):
            rate.pop("end", None)
        if "eta_min" in rate:
            rate["min_lr"] = rate.pop("eta_min")
        values["lr_config"] = {**rate, "policy": "poly" if policy == "PolyLR" else policy}


def _move_loop(values: dict[str, Any]) -> None:
    if "train_cfg" in values:
        loop = dict(table(values.pop("train_cfg")))
        kind = loop.pop("type", None)
        values["evaluation"] = {"interval": loop.pop("val_interval", 1000)}
        values["runner"] = {**loop, "type": "IterBasedRunner" if kind == "IterBasedTrainLoop" else kind}
    if "iou_metrics" in (evaluator := table(values.pop("val_evaluator", None))):
        values["evaluation"] = {**table(values.get("evaluation")), "metric": evaluator["iou_metrics"]}
    if "default_hooks" in values:
        hooks = table(values.pop("default_hooks"))
        if "checkpoint" in hooks:
            values["checkpoint_config"] = hooks["checkpoint"]
        others = [name for name in hooks if name not in _HOOKS]
        if others:
            values["custom_hooks"] = [*others, *(values.get("custom_hooks") or [])]


def _dataset(value: Any, before: dict[Any, Any]) -> Any:
    """One data set, its pipeline with the normalisation and padding that the model's `data_preprocessor` does."""
    if not isinstance(value, dict):
        return value
    result = dict(value)
    if result.get("type") == "BaseSegDataset":
        result["type"] = "CustomDataset"
    prefix = table(result.pop("data_prefix", None))
    moved = {
        "img_dir": prefix.get("img_path"),
        "ann_dir": prefix.get("seg_map_path"),
        **table(result.pop("metainfo", None)),
    }
    if listed := result.pop("ann_file", None):
        moved["split"] = listed
    result |= {key: item for key, item in moved.items() if item is not None}
    steps = result.get("pipeline")
    if isinstance(steps, (list, tuple)) and all(isinstance(step, dict) for step in steps):
        result["pipeline"] = _pipeline(list(steps), before)
    return result


def _pipeline(steps: list[dict[Any, Any]], before: dict[Any, Any]) -> list[dict[Any, Any]]:
    """The steps of a 0.x pipeline: a training pipeline has a random scale or a crop, others are for tests."""
    pad = {key: item for key, item in before.items() if key not in ("type", "mean", "std", "bgr_to_rgb")}
    normalize = {"type": "Normalize", "to_rgb": before.get("bgr_to_rgb", False)}
    normalize |= {key: before[key] for key in ("mean", "std") if key in before}
    ends = [{"type": "DefaultFormatBundle"}, {"type": "Collect"}]
    kinds = [step.get("type") for step in steps]
    result: list[dict[Any, Any]] = []
    if set(kinds) & {"RandomResize", "RandomChoiceResize", "RandomCrop", "RandomFlip"}:
        for step in steps:
            if step.get("type") == "PackSegInputs":
                result += [normalize, {"type": "Pad", **pad}, *ends]
            elif step.get("type") == "RandomResize":
                renamed = {"img_scale" if key == "scale" else key: item for key, item in step.items()}
                result.append({**renamed, "type": "Resize"})
            else:
                result.append(step)
        return result
    inner: list[dict[Any, Any]] = [{"type": "RandomFlip"}, normalize, {"type": "ImageToTensor"}, {"type": "Collect"}]
    for step in steps:
        if step.get("type") == "Resize":
            resize = {key: item for key, item in step.items() if key != "scale"}
            wrapper = {"type": "MultiScaleFlipAug", "img_scale": step.get("scale"), "flip": False}
            result.append({**wrapper, "transforms": [resize, *inner]})
        elif step.get("type") not in ("LoadAnnotations", "PackSegInputs"):
            result.append(step)
    return result
