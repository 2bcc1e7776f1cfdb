"""What an mmcv-style configuration means here: model, optimiser and schedule; what has no counterpart is named."""

from __future__ import annotations

import difflib
from pathlib import PurePosixPath

from dgmn2cli.config.mmcv import MmcvDocument, one_of, same, v1_form
from dgmn2cli.config.mmcv.data import map_data
from dgmn2cli.config.mmcv.node import Mapped, Node
from dgmn2cli.config.mmcv.v1 import place_in_v1, to_v0
from dgmn2cli.config.schema import BACKBONES
from dgmn2cli.validation import MAX_HINTS, show

_STAGE_CHANNELS = [64, 128, 320, 512]
_HARMLESS = (
    *("log_config", "dist_params", "log_level", "workflow", "cudnn_benchmark", "work_dir", "gpu_ids", "custom_imports"),
    *("find_unused_parameters", "resume_from", "auto_resume"),
)
_HELPERS = (
    *("norm_cfg", "img_norm_cfg", "crop_size", "dataset_type", "data_root", "train_pipeline", "test_pipeline"),
    *("classes", "palette"),
)


def map_config(document: MmcvDocument) -> Mapped:
    """What a merged mmcv-style configuration means here, with everything that has no counterpart named."""
    if form := v1_form(document.values):
        return _map_v1(document, form)
    mapped = Mapped(notes=list(document.notes))
    top = Node(document.values, "", mapped)
    _map_model(top)
    map_data(top)
    _map_optimizer(top)
    _map_schedule(top)
    top.fixed(fp16=None, custom_hooks=[])
    if top.has("seed"):
        top.give("seed", "train.seed")
    top.harmless("seed")
    if path := top.text("load_from"):
        mapped.put("train.init", path, "load_from")
    _name_the_rest(top, document)
    return mapped


def _map_v1(document: MmcvDocument, form: str) -> Mapped:
    """As `map_config`, for the 1.x format: read where it says what the 0.x format could say, else one line more."""
    if document.absent:
        return Mapped(faults=[f"{form}; its base files must lie beside it, absent: {', '.join(document.absent)}"])
    mapped = map_config(to_v0(document))
    mapped.origins = {key: place_in_v1(origin) for key, origin in mapped.origins.items()}
    mapped.notes = [place_in_v1(note) for note in mapped.notes]
    tables = ("train_dataloader", "val_dataloader", "test_dataloader", "optim_wrapper", "train_cfg", "default_hooks")
    given = {key: document.values[key] for key in tables if document.values.get(key) is not None}
    faults = [f"{key}: {show(value)}, wanted a dict" for key, value in given.items() if not isinstance(value, dict)]
    faults += [place_in_v1(fault) for fault in mapped.faults]
    mapped.faults = [f"{form}; what it says beyond the 0.x format, or beyond these models:", *faults] if faults else []
    return mapped


def _name_the_rest(top: Node, document: MmcvDocument) -> None:
    """Top-level keys without counterpart: misspelt ones are faults, the others notes."""
    ignored = [key for key in _HARMLESS if key in top.values]
    if ignored:
        top.note("", f"without counterpart, and without influence on results: {', '.join(ignored)}")
    unused: list[str] = []
    for key in top.values:
        if key in (*top.seen, *_HARMLESS, *_HELPERS) or key in document.used:
            continue
        few = len(unused) + len(top.mapped.faults) < MAX_HINTS
        close = difflib.get_close_matches(str(key), sorted(map(str, top.seen)), n=1, cutoff=0.8) if few else []
        if close:
            top.fault(str(key), f"unknown key; did you mean '{close[0]}'?")
        else:
            unused.append(show(key))
    if unused:
        top.note("", f"nothing uses {', '.join(unused[:10])}{' and more' if len(unused) > 10 else ''}")


def _map_model(top: Node) -> None:
    with top.child("model") as model:
        if not top.has("model"):
            top.fault("model", "absent; wanted a dict(type='EncoderDecoder', ...)")
            return
        model.expect("type", ("EncoderDecoder",))
        size = _map_backbone(model)
        head = _map_head(model)
        if head != "fpn":
            model.expect("neck", (None,))
        model.fixed(auxiliary_head=[], train_cfg={}, init_cfg=None)
        top.fixed(train_cfg={})
        _map_pretrained(model, size)
        _map_window(top, model)


def _map_backbone(model: Node) -> str:
    """The backbone's size; its `output` is checked with the head, which needs it."""
    with model.child("backbone") as backbone:
        kind = backbone.expect("type", tuple(f"dgmn2_{size}" for size in BACKBONES), default=None)
        size = str(kind).removeprefix("dgmn2_") if kind else ""
        if size:
            model.mapped.put("model.backbone", size, backbone.place("type"))
        backbone.give("drop_path_rate", "model.drop_path")
        backbone.fixed(pretrained=None, init_cfg=None)
        backbone.harmless("output")
        _map_norm(backbone, required=False)
    return size


def _map_pretrained(model: Node, size: str) -> None:
    """First weights of the backbone: the published file by its name, a file of the user's, or none."""
    path, origin = model.text("pretrained"), model.place("pretrained")
    name = PurePosixPath(path or "").name
    published = [other for other in BACKBONES if name == f"dgmn2_{other}_model.pth"]
    if path is None or not published:
        model.mapped.put("train.init", "scratch" if path is None else path, origin)
    elif size and published != [size]:
        model.fault("pretrained", f"{show(path)} is of another backbone than 'dgmn2_{size}'")
    else:
        model.mapped.put("train.init", "imagenet", origin)
        model.note("pretrained", f"{show(path)} is taken as the published ImageNet weights")


def _map_norm(node: Node, *, required: bool) -> None:
    if not node.has("norm_cfg") and not required:
        node.harmless("norm_cfg")
        return
    with node.child("norm_cfg") as norm:
        kind = norm.expect("type", ("SyncBN", "BN"), default=None)
        norm.fixed(requires_grad=True, eps=1e-5, momentum=0.1)
    if kind:
        node.mapped.put_once("train.sync_bn", kind == "SyncBN", norm.place("type"))


def _map_head(model: Node) -> str:
    """The head's name here; every number it fixes is checked."""
    with model.child("decode_head") as head:
        kind = head.expect("type", ("FPNHead", "VisionTransformerUpHead", "VIT_MLAHead"), default=None)
        name = ""
        if kind == "FPNHead":
            name = "fpn"
            _check_fpn(model, head)
        elif kind == "VisionTransformerUpHead":
            convs = head.expect("num_conv", (4, 2), default=1)
            name = {4: "setr_pup", 2: "setr_naive"}.get(convs, "")
            _check_up_head(model, head, name)
        elif kind == "VIT_MLAHead":
            name = "setr_mla"
            _check_mla(model, head)
        if not kind:
            head.harmless(*head.values)  # of a head that is not known nothing can be said
            return ""
        if name:
            model.mapped.put("model.head", name, head.place("type" if name in ("fpn", "setr_mla") else "num_conv"))
        if not head.has("num_classes"):
            head.fault("num_classes", "absent; wanted the number of classes")
        head.give("num_classes", "model.num_classes")
        head.give("ignore_index", "data.ignore_index", default=255)
        head.expect("align_corners", (True,), default=False)
        head.fixed(conv_cfg=None, act_cfg={"type": "ReLU"}, sampler=None, init_cfg=None)
        _map_norm(head, required=name in ("fpn", "setr_pup", "setr_mla"))
        _map_loss(head)
    return name


def _output(model: Node, allowed: tuple[str, ...]) -> None:
    """The backbone's `output`, which sets the strides of stages 3 and 4 and how many maps come out."""
    values = model.values.get("backbone")
    backbone = Node(values if isinstance(values, dict) else {}, model.place("backbone"), model.mapped)
    backbone.expect("output", allowed, default="decode_head")


def _check_fpn(model: Node, head: Node) -> None:
    _output(model, ("neck",))
    with model.child("neck") as neck:
        neck.required(type="FPN", in_channels=_STAGE_CHANNELS, out_channels=256, num_outs=4)
        neck.fixed(
            start_level=0, end_level=-1, upsample_cfg={"mode": "nearest"}, conv_cfg=None, norm_cfg=None, act_cfg=None
        )
        neck.fixed(add_extra_convs=False, extra_convs_on_inputs=False, relu_before_extra_convs=False)
        neck.fixed(no_norm_on_lateral=False)
    head.expect("in_index", ([0, 1, 2, 3],), default=-1)
    head.fixed(in_channels=[256, 256, 256, 256], feature_strides=[4, 8, 16, 32], channels=128, dropout_ratio=0.1)
    head.fixed(input_transform="multiple_select")


def _check_up_head(model: Node, head: Node, name: str) -> None:
    """SETR-Naive and SETR-PUP: both see stage 4 only, at stride 8; neither applies the dropout it may be given."""
    _output(model, ("decode_head",))
    head.expect("embed_dim", (512,), default=1024)
    head.expect("in_index", (0, 1, -1))  # one map comes out, and the published files count it in both ways
    head.fixed(in_channels=512, input_transform=None, upsampling_method="bilinear")
    if name == "setr_pup":
        head.fixed(channels=256, num_upsampe_layer=4)
        head.harmless("img_size", "conv3x3_conv1x1")
    else:
        head.fixed(channels=512, img_size=769, conv3x3_conv1x1=False)
        head.harmless("num_upsampe_layer")
    head.harmless("dropout_ratio")


def _check_mla(model: Node, head: Node) -> None:
    _output(model, ("decode_head_multi",))
    head.fixed(in_channels=512, channels=512, img_size=769, mlahead_channels=128)
    head.expect("mla_channels", (_STAGE_CHANNELS,), default=256)
    head.harmless("dropout_ratio", "in_index", "input_transform")


def _map_loss(head: Node) -> None:
    with head.child("loss_decode") as loss:
        loss.fixed(type="CrossEntropyLoss", use_sigmoid=False, use_mask=False, loss_weight=1.0, reduction="mean")
        loss.fixed(avg_non_ignore=False)
        loss.harmless("loss_name")
        if loss.has("class_weight"):
            loss.give("class_weight", "train.class_weights")
        loss.harmless("class_weight")


def _map_window(top: Node, model: Node) -> None:
    """The sliding window, under `model` or, as older files have it, at the top."""
    home = top if top.has("test_cfg") and not model.has("test_cfg") else model
    with home.child("test_cfg") as test:
        if top.has("test_cfg") and model.has("test_cfg"):
            top.fault("test_cfg", "given here and in the model; wanted one of them")
        top.harmless("test_cfg")
        model.harmless("test_cfg")
        if test.expect("mode", ("slide",), default="whole"):
            test.square("crop_size", "inference.window")
            test.square("stride", "inference.stride")


def _map_optimizer(top: Node) -> None:
    optimizer = top.child("optimizer")
    if top.has("optimizer"):
        optimizer.expect("type", ("AdamW",), default=None)
        for key, default in (("lr", 1e-3), ("betas", (0.9, 0.999)), ("eps", 1e-8), ("weight_decay", 1e-2)):
            optimizer.give(key, f"optim.{key}", default)
        optimizer.fixed(amsgrad=False, paramwise_cfg={}, constructor="DefaultOptimizerConstructor")
        optimizer.done()
    else:
        top.note("optimizer", "absent; the published AdamW holds")
    with top.child("optimizer_config") as hook:
        hook.fixed(type="OptimizerHook", grad_clip=None)


def _map_schedule(top: Node) -> None:
    rate = top.child("lr_config")
    if top.has("lr_config"):
        rate.expect("policy", ("poly", "Poly"), default=None)
        rate.expect("by_epoch", (False,), default=True)
        rate.expect("warmup", (None,))
        rate.harmless("warmup_iters", "warmup_ratio", "warmup_by_epoch")  # nothing without `warmup`
        rate.give("power", "optim.power", default=1.0)
        rate.give("min_lr", "optim.min_lr", default=0.0)
        rate.done()
    else:
        top.note("lr_config", "absent; the published polynomial fall holds")
    with top.child("runner") as runner:
        runner.expect("type", ("IterBasedRunner",))
        runner.give("max_iters", "train.iters")
    if "max_iters" not in runner.values:
        top.give("total_iters", "train.iters")
    top.harmless("total_iters")
    if "train.iters" not in top.mapped.values:
        top.note("runner.max_iters", "absent; the published 40000 iterations hold")
    _map_intervals(top)


def _map_intervals(top: Node) -> None:
    with top.child("checkpoint_config") as saving:
        saving.give("interval", "train.save_every")
        saving.expect("by_epoch", (False,))
        keep = saving.get("max_keep_ckpts", -1)
        top.mapped.put("train.keep", 0 if same(keep, -1) else keep, saving.place("max_keep_ckpts"))
        saving.harmless("save_optimizer", "meta", "create_symlink", "out_dir", "save_last", "type")
    with top.child("evaluation") as evaluation:
        evaluation.give("interval", "train.val_every")
        evaluation.expect("by_epoch", (False,))
        metric = evaluation.get("metric")
        if metric is not None and not one_of(metric, ("mIoU", ["mIoU"])):
            evaluation.note("metric", f"{show(metric)}; evaluation reports mIoU, mAcc and aAcc")
        evaluation.harmless("efficient_test", "pre_eval", "save_best", "rule", "start", "gpu_collect", "tmpdir", "type")
