"""Experts that begin inside of the backbone, against whole backbones with their weights."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from divdr.config import get_divdr_config
from divdr.errors import ConfigError
from divdr.modeling import freeze_around_mixtures
from divdr.modeling.segmentors.backbone_tail import parts_before

KINDS = {
    "DeepLabV3PlusHead": ("build_resnet_deeplab_backbone", ["res2", "res5"], "res5"),
    "SemSegFPNHead": ("build_resnet_fpn_backbone", ["p2", "p3", "p4", "p5"], "bottom_up.res4"),
}


def config(head, **keys):
    backbone, features, start = KINDS[head]
    cfg = get_divdr_config()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = backbone
    resnet = cfg.MODEL.RESNETS
    resnet.RES2_OUT_CHANNELS, resnet.STEM_OUT_CHANNELS, resnet.WIDTH_PER_GROUP = 8, 8, 4
    resnet.STEM_TYPE = "basic"
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    resnet.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    node = cfg.MODEL.SEM_SEG_HEAD
    node.NAME, node.SINGLE_GATE.BASE_HEAD, node.IN_FEATURES = "SingleGateSegmentor", head, features
    node.NUM_CLASSES, node.CONVS_DIM, node.COMMON_STRIDE, node.NORM = 3, 32, 4, "GN"
    node.ASPP_CHANNELS, node.ASPP_DILATIONS, node.PROJECT_CHANNELS = 32, [1, 2, 3], [32]
    node.SINGLE_GATE.EXPERTS, node.SINGLE_GATE.EXIT = 2, "none"
    node.SINGLE_GATE.BACKBONE_FROM = start
    for key, value in keys.items():
        setattr(node.SINGLE_GATE, key, value)
    return cfg


def build(head, **keys):
    """A model whose experts are far from the base."""
    model = build_model(config(head, **keys)).eval()
    freeze_around_mixtures(model)
    mixture = model.sem_seg_head
    with torch.no_grad():
        for part in (mixture.base, *(expert.head for expert in mixture.experts)):
            part.predictor.weight.normal_(std=0.5)
        for p in mixture.experts.parameters():
            p.mul_(1.2)
    width = mixture.gate.centres.shape[1]
    mixture.gate.fit_samples(torch.randn(9, width))
    return model


def images(count=3, size=64):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator)
    return [{"image": x.float(), "height": size, "width": size} for x in pixels]


def whole(model, expert):
    """The model's backbone with an expert's weights where it has some."""
    backbone = copy.deepcopy(model.backbone)
    state = expert.tail.backbone.state_dict()
    assert state
    own = backbone.state_dict()
    assert set(state) < set(own)
    backbone.load_state_dict({**own, **state})
    return backbone


@pytest.mark.parametrize("head", KINDS)
@torch.no_grad()
def test_experts_are_the_end_of_the_backbone_and_a_head(head):
    model = build(head)
    mixture = model.sem_seg_head
    runs = []
    stem = model.backbone.get_submodule("bottom_up.stem" if "FPN" in head else "stem")
    stem.register_forward_hook(lambda *a: runs.append("stem"))
    batch = images()
    x = (torch.stack([item["image"] for item in batch]) - model.pixel_mean) / model.pixel_std
    features = model.backbone(x)
    seen = []
    handle = mixture.base.predictor.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    base = mixture.base(features)[0].softmax(1)
    handle.remove()
    logits = mixture.gate.linear(seen[0].mean((2, 3)))
    # The last image goes to another expert than the first.
    way = logits[:, 1] - logits[:, 0]
    mixture.gate.linear.bias[1] -= (way[0] + way[-1]) / 2
    chosen = mixture.gate.linear(seen[0].mean((2, 3))).argmax(1)
    assert chosen[0] != chosen[-1]
    found = mixture(features)[0]
    assert runs == ["stem"]
    assert mixture.ran.argmax(1).tolist() == chosen.tolist()
    for row, k in enumerate(chosen.tolist()):
        expert = mixture.experts[k]
        own = expert.head(whole(model, expert)(x[row : row + 1]))[0].softmax(1)
        expected = ((own + base[row : row + 1]) / 2).log()
        torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", KINDS)
@torch.no_grad()
def test_experts_start_as_the_model_and_then_change_nothing(head):
    model = build(head)
    model.sem_seg_head.copy_base(model.backbone)
    found = model(images())
    model.sem_seg_head.gate.fitted.fill_(False)
    for one, other in zip(found, model(images()), strict=True):
        torch.testing.assert_close(one["sem_seg"].softmax(0), other["sem_seg"].softmax(0))


def macs(module, x):
    """Convolutions and matrix products of a module."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        y = module(x)
    return counter.get_total_flops() / 2, y


def test_an_expert_costs_what_runs_after_the_shared_parts():
    model = build("DeepLabV3PlusHead")
    mixture = model.sem_seg_head
    with torch.no_grad():
        model(images(1))
    x = torch.zeros(1, 3, 64, 64)
    backbone, features = macs(model.backbone, x)
    head = macs(mixture.base, features)[0]
    shared, y = 0.0, x
    for name in ("stem", "res2", "res3", "res4"):
        part, y = macs(model.backbone.get_submodule(name), y)
        shared += part
    shapes = {name: tuple(maps.shape[1:]) for name, maps in features.items()}
    cost = mixture.cost({name: shapes[name] for name in mixture.strides})
    # And normalisation, ReLU and pooling, which the other count leaves out.
    assert backbone - shared + head < cost.experts[0] < 1.2 * (backbone - shared + head)
    assert mixture.macs[0] == cost.shared + cost.experts[0]


@pytest.mark.parametrize("head", KINDS)
def test_the_end_learns_and_nothing_before_it(head):
    model = build(head).train()
    mixture = model.sem_seg_head
    mixture.progress = 1.0
    batch = images(2)
    for item in batch:
        item["sem_seg"] = torch.randint(0, 3, (64, 64))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = model(batch)
    assert set(losses) == {"loss_experts"}
    losses["loss_experts"].backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert all(name.startswith("sem_seg_head.experts.") for name in reached)
    for k in range(2):
        place = f"sem_seg_head.experts.{k}."
        own = {n.removeprefix(place) for n in reached if n.startswith(place)}
        assert {name.split(".")[0] for name in own} == {"tail", "head"}
        tail = {n for n in own if n.startswith("tail.backbone.")}
        assert any("res5" in name for name in tail)
        assert not any(part in name for name in tail for part in ("stem", "res2.", "res3."))
    after = model.state_dict()
    assert all(v.equal(after[n]) for n, v in before.items() if "experts" not in n)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"BACKBONE_FROM": "res9"}, "ResNet has no such part behind another; it holds stem, res2"),
        ({"BACKBONE_FROM": "stem"}, "has no such part behind another"),
        ({"WINDOW": 2}, "BACKBONE_FROM is for rows that are whole images"),
    ],
)
def test_settings_that_cannot_be(keys, told):
    with pytest.raises(ConfigError, match=told):
        build("DeepLabV3PlusHead", **keys)


def test_routed_backbones_have_no_such_end():
    cfg = config("DeepLabV3PlusHead")
    cfg.MODEL.BACKBONE.NAME = "build_dynamic_routing_fpn_backbone"
    cfg.MODEL.ROUTING.LAYERS, cfg.MODEL.ROUTING.CHANNELS = 3, 4
    with pytest.raises(ConfigError, match="cannot begin inside of a routed backbone"):
        build_model(cfg)


def test_models_that_nobody_attached():
    model = build_model(config("DeepLabV3PlusHead")).eval()
    width = model.sem_seg_head.gate.centres.shape[1]
    model.sem_seg_head.gate.fit_samples(torch.randn(9, width))
    with torch.no_grad(), pytest.raises(ConfigError, match="freeze_around_mixtures"):
        model(images(1))


def test_parts_are_those_of_the_same_module():
    holder = nn.Sequential(nn.Identity(), nn.Sequential(nn.Identity(), nn.ReLU(), nn.Identity()))
    assert parts_before(holder, "1.2") == ["1.0", "1.1"]
    assert parts_before(holder, "1") == ["0"]
