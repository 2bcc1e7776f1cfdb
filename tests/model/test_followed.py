"""Where something else sees or changes operations, the cheaper order steps aside, and nothing fake is kept."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from networks import segmentor
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from dgmn2cli.model.fused.network import InferenceForm
from dgmn2cli.model.heads import FpnHead, SetrMlaHead, SetrPupHead
from dgmn2cli.model.segmentor import HEADS, Segmentor
from dgmn2cli.ops.operators import cached
from dgmn2cli.ops.resample import resize_chain

IMAGES = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(6))


def both_orders(model: Segmentor, result: Callable[[Segmentor], Tensor]) -> list[Tensor]:
    """`result` with the cheaper order where it is taken, and without."""
    found = []
    for model.shortcut in (True, False):
        found.append(result(model).detach())
    return found


def learning(head: str) -> Segmentor:
    model = segmentor("tiny", head, classes=5)
    return model.requires_grad_()


@pytest.mark.parametrize("head", HEADS)
def test_hooks_of_the_head_are_called(head: str) -> None:
    model, seen = learning(head), list[nn.Module]()
    for module in model.decode_head.modules():
        module.register_forward_hook(lambda module, *_: seen.append(module))
    calls = []
    for model.shortcut in (True, False):
        seen.clear()
        model(IMAGES)
        calls.append(list(seen))
    assert calls[0] == calls[1]
    assert model.decode_head in calls[0]


class Twice(nn.Module):
    """Stands in a layer's place, as adapters do; `weight` is the layer's own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    @property
    def weight(self) -> Tensor:
        assert isinstance(self.layer, nn.Conv2d)
        return self.layer.weight

    bias = None

    def forward(self, *inputs: Tensor) -> Tensor:
        return 2 * self.layer(*inputs)


def replace_mla_classifier(head: nn.Module) -> None:
    assert isinstance(head, SetrMlaHead)
    head.conv_seg = Twice(head.conv_seg)  # type: ignore[assignment]


def replace_pup_conv(head: nn.Module) -> None:
    assert isinstance(head, SetrPupHead)
    head.conv_1 = Twice(head.conv_1)


def replace_fpn_layer(head: nn.Module) -> None:
    assert isinstance(head, FpnHead)
    branch = head.scale_heads[2]
    assert isinstance(branch, nn.Sequential)
    branch[2] = Twice(branch[2])


@pytest.mark.parametrize(
    ("head", "replace"),
    [("setr_mla", replace_mla_classifier), ("setr_pup", replace_pup_conv), ("fpn", replace_fpn_layer)],
)
def test_modules_in_the_place_of_the_heads_own_are_run(head: str, replace: Callable[[nn.Module], None]) -> None:
    model = learning(head)
    before = model(IMAGES).detach()
    replace(model.decode_head)
    short, published = both_orders(model, lambda model: model(IMAGES))
    assert torch.equal(short, published)
    assert (short - before).abs().max() > 1e-2


def test_reparametrised_weights_are_used() -> None:
    model = learning("fpn")
    branch = model.decode_head.get_submodule("scale_heads.2.2.conv")

    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrize.register_parametrization(branch, "weight", Doubled())
    short, published = both_orders(model, lambda model: model(IMAGES))
    assert torch.allclose(short, published, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # of torch's own, at its first use
@pytest.mark.parametrize("head", HEADS)
def test_forward_mode_derivatives(head: str) -> None:
    def tangent(model: Segmentor) -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(IMAGES, torch.ones_like(IMAGES))
            found: Tensor = forward_ad.unpack_dual(model(dual)).tangent
            return found

    short, published = both_orders(learning(head), tangent)
    assert torch.equal(short, published)
    assert short.abs().max() > 0


def test_a_traced_network_has_the_networks_results() -> None:
    model = learning("setr_naive")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and has much to say
        traced = torch.jit.trace(model, IMAGES, check_trace=False)  # type: ignore[no-untyped-call]
        found = traced(IMAGES)
    assert torch.allclose(found, model(IMAGES), atol=1e-4)


def test_operations_are_counted_in_the_published_order_and_of_every_image() -> None:
    model = learning("setr_pup")
    form = InferenceForm(segmentor("tiny", "setr_pup", classes=5))

    def operations(network: nn.Module, images: Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            network(images)
        return counter.get_total_flops()

    model.shortcut = False
    published = operations(model, IMAGES)
    model.shortcut = True
    assert operations(model, IMAGES) == published > 0
    assert operations(form, IMAGES.repeat(3, 1, 1, 1)) == 3 * operations(form, IMAGES)


def test_gradients_under_an_autocast_that_began_after_the_forward_pass() -> None:
    found = []
    for autocast in (False, True):
        model = learning("setr_pup")
        loss = model(IMAGES).square().mean()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss.backward()
        grad = model.decode_head.get_parameter("conv_1.weight").grad
        assert grad is not None
        found.append(grad)
    assert (found[1] - found[0]).norm() <= 0.02 * found[0].norm() != 0


@pytest.mark.parametrize("mode", [lambda: torch.device("meta"), FakeTensorMode, torch.inference_mode])
def test_constants_serve_whatever_was_at_work_when_they_were_asked_for(mode: Callable[[], object]) -> None:
    made = []

    @cached
    def constant(count: int) -> Tensor:
        made.append(count)
        return torch.arange(count, device="cpu")

    with mode():  # type: ignore[attr-defined]
        constant(3)
    assert constant(3).tolist() == constant(3).tolist() == [0, 1, 2]
    assert len(made) <= 2
    assert not constant(3).is_inference()
    assert type(constant(3)) is Tensor


@pytest.mark.parametrize("height", [11, 12])  # a size of its own for each: no other test has asked for it
def test_a_network_on_another_default_device_leaves_nothing_behind(height: int) -> None:
    maps = torch.randn(1, 2, height, 7, generator=torch.Generator().manual_seed(1))
    with torch.device("meta") if height == 11 else FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = maps if mode is None or height == 11 else mode.from_tensor(maps)
        found = []
        try:
            found.append(resize_chain(given, ((37, 29), (23, 31))))
        except RuntimeError:  # fake numbers have no places
            assert height == 12
    expected = maps
    for size in ((37, 29), (23, 31)):
        expected = nn.functional.interpolate(expected, size=size, mode="bilinear", align_corners=True)
    assert torch.allclose(resize_chain(maps, ((37, 29), (23, 31))), expected, atol=1e-5)


def test_on_the_meta_device_a_learning_network_has_its_shapes() -> None:
    model = Segmentor("tiny", "setr_pup", 5).to("meta")
    assert model(IMAGES.to("meta")).shape == (1, 5, 32, 48)


@pytest.mark.parametrize("head", HEADS)
def test_the_form_of_a_learning_network_can_be_copied_and_holds_no_graph(head: str) -> None:
    form = InferenceForm(learning(head))
    assert torch.equal(copy.deepcopy(form)(IMAGES), form(IMAGES))
    held = [value for module in form.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    assert held
    assert not any(tensor.requires_grad for tensor in held)


@pytest.mark.parametrize("head", HEADS)
def test_no_images(head: str) -> None:
    assert InferenceForm(segmentor("tiny", head, classes=5))(IMAGES[:0]).shape == (0, 5, 32, 48)


def test_what_training_runs_calls_the_hooks_of_a_head():
    model, called = Segmentor("tiny", "setr_naive"), []
    model.decode_head.register_forward_hook(lambda *_: called.append(1))
    raw, sizes = model.coarse_logits(torch.randn(2, 3, 33, 33), (33, 33))
    assert (len(called), sizes, raw.shape[:2]) == (1, ((33, 33),), (2, 19))
