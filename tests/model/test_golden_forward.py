"""Logits, features and inner tensors equal those measured on the published system."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import filled
from torch import Tensor, nn

from dgmn2cli.inference.load import build_model
from dgmn2cli.model.fused.network import InferenceForm

TOLERANCE = 2e-4  # absolute, on logits: the measured tensors err by 4e-5 against float64
HEADS = ("fpn", "setr_naive", "setr_pup", "setr_mla")
SIZES = {"fpn": 3, "setr_pup": 3, "setr_naive": 1, "setr_mla": 1}


@pytest.fixture(scope="module", params=HEADS)
def network(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, filled(lambda: build_model(f"{request.param}-tiny"))


def cases(golden: Path, head: str) -> list[tuple[str, Tensor, dict[str, np.ndarray], dict[str, dict[str, object]]]]:
    arrays = np.load(golden / "forward" / f"{head}_tiny.npz")
    inputs = np.load(golden / "forward" / "inputs.npz")
    index = json.loads((golden / "forward" / "index.json").read_text())["files"][f"{head}_tiny.npz"]["arrays"]
    names = sorted({key.split("__")[0] for key in arrays.files})
    assert len(names) == SIZES[head]
    found = []
    for name in names:
        prefix = f"{name}__"
        own = {key.removeprefix(prefix): arrays[key] for key in arrays.files if key.startswith(prefix)}
        about = {k.removeprefix(f"{name}/"): v for k, v in index.items() if k.startswith(f"{name}/")}
        found.append((name, torch.from_numpy(inputs[name]), own, about))
    return found


def sampled(tensor: Tensor, about: dict[str, object]) -> np.ndarray:
    stride = int(about.get("stride", 1))  # type: ignore[call-overload]
    assert list(tensor.shape) == about.get("full_shape", about.get("shape"))
    return tensor[..., ::stride, ::stride].numpy() if stride > 1 else tensor.numpy()


def assert_close(ours: np.ndarray, theirs: np.ndarray, what: str) -> None:
    assert ours.shape == theirs.shape, what
    assert np.abs(ours - theirs).max() <= TOLERANCE, what


@torch.no_grad()
def test_published_order(golden: Path, network: tuple[str, nn.Module]) -> None:
    head, model = network
    compared = 0
    for name, images, arrays, about in cases(golden, head):
        features = model.backbone(images)
        entering = model.neck(features) if model.neck is not None else features
        if head in ("setr_naive", "setr_pup"):
            entering = entering[-1:]
        raw = model.decode_head(entering)
        results = {"raw": raw, "logits": model(images)}
        results |= {f"feat{index}": feature for index, feature in enumerate(entering)}
        for key, tensor in results.items():
            assert_close(sampled(tensor, about[key]), arrays[key], f"{head} {name} {key}")
            compared += 1
    assert compared == {"fpn": 18, "setr_pup": 9, "setr_naive": 3, "setr_mla": 6}[head]


@torch.no_grad()
def test_inference_form(golden: Path, network: tuple[str, nn.Module]) -> None:
    head, model = network
    form = InferenceForm(model)
    for name, images, arrays, about in cases(golden, head):
        logits = form(images)
        assert_close(sampled(logits, about["logits"]), arrays["logits"], f"{head} {name}")
        plain = model(images)
        assert (logits - plain).abs().max() <= 1e-4
        best = plain.topk(2, dim=1).values
        decided = best[:, 0] - best[:, 1] > 1e-3
        assert torch.equal(logits.argmax(1)[decided], plain.argmax(1)[decided])


@torch.no_grad()
def test_inner_tensors(golden: Path) -> None:
    model = filled(lambda: build_model("setr_mla-tiny"))
    [(_, images, arrays, _)] = cases(golden, "setr_mla")
    seen: dict[str, Tensor] = {}
    hooks = []
    for name in ("patch_embed1", "patch_embed2", "patch_embed3", "patch_embed4", "block1.0", "block3.1"):
        module = model.backbone.get_submodule(name)
        parts = {"": module} if name.startswith("patch") else {
            ".attn.conv_offset": module.attn.conv_offset, ".attn.out": module.attn, ".out": module,
        }  # fmt: skip
        for suffix, part in parts.items():
            hooks.append(part.register_forward_hook(lambda _m, _i, out, key=name + suffix: seen.update({key: out})))
    model(images)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 10
    for key, tensor in seen.items():
        assert_close(tensor.reshape(arrays[key].shape).numpy(), arrays[key], key)
