"""ResNets whose 3×3 convolutions are chosen for each image."""

import pickle

import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone
from routed_models import HOMOGENEOUS, narrow, routed_resnet
from torch import nn

from divdr.checkpoint.resnet_names import detectron2_resnet_names
from divdr.engine.checkpointer import RoutingCheckpointer
from divdr.errors import CheckpointError, ConfigError
from divdr.modeling import ExpertCosts, RoutedBottleneck, backbone_macs
from divdr.moe import RoutingLayer

K = [5, 5, 5, 4, 4, 4, 4, 3, 3, 3, 3, 2, 2]  # 13 layers from 5 to 2, by hand: 5 - i / 4 rounded


@torch.no_grad()
def decided(backbone, images):
    """A backbone in evaluation whose gates tell these images apart."""
    generator = torch.Generator().manual_seed(1)

    def choose(layer, args):
        pooled = args[0].mean((0, 2, 3))
        weight = layer.router.gate.score.weight
        random = torch.randn(weight.shape, generator=generator)
        # GroupNorm leaves the means of images much alike; what they share decides nothing.
        weight.copy_(random - (random @ pooled)[:, None] * pooled / pooled.square().sum())

    layers = [m for m in backbone.modules() if isinstance(m, RoutingLayer)]
    handles = [layer.register_forward_pre_hook(choose) for layer in layers]
    backbone.eval()(images)
    for handle in handles:
        handle.remove()
    return backbone


def patterns(count, height, width):
    """Images whose means over all pixels differ in every layer."""
    coarse = torch.randn(count, 3, 2, 3)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear") * 2


@pytest.fixture(scope="module")
def diverse():
    torch.manual_seed(0)
    return decided(routed_resnet(), patterns(3, 64, 96))


@torch.no_grad()
def test_an_image_gets_the_same_in_a_batch_of_three_as_alone(diverse):
    torch.manual_seed(0)
    images = patterns(3, 64, 96)
    together, ran = diverse(images), diverse.expert_record.ran
    assert len({tuple(row.tolist()) for row in ran}) == 3, "all took one path; nothing is tested"
    for number in range(3):
        alone = diverse(images[number : number + 1])
        assert diverse.expert_record.ran[0].equal(ran[number])
        for name, maps in alone.items():
            torch.testing.assert_close(maps[0], together[name][number], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_only_chosen_experts_run_and_costs_count_them(diverse):
    layers = [m for m in diverse.modules() if isinstance(m, RoutingLayer)]
    assert [len(layer.experts) for layer in layers] == [5] * 13
    rows, handles = [], []
    for number, expert in enumerate(e for layer in layers for e in layer.experts):
        handles.append(
            expert.register_forward_hook(
                lambda m, args, y, n=number: rows.append((n, len(args[0])))
            )
        )
    diverse(patterns(2, 64, 64))
    for handle in handles:
        handle.remove()
    ran = diverse.expert_record.ran
    assert dict(rows) == {n: int(c) for n, c in enumerate(ran.sum(0)) if c}
    assert diverse.expert_record.mean_ran(diverse.expert_decisions) == K

    cost = ExpertCosts(diverse).at((64, 64))
    # res2.0 at 16 × 16 with 8 channels: convolution, GroupNorm and ReLU; gate and mean are shared.
    pixels, channels = 16 * 16, 8
    numbers = pixels * channels
    by_hand = [numbers * channels * 9 + 3 * numbers, numbers * channels * 25 + 3 * numbers]
    by_hand += [2 * (numbers * channels * 7 + 3 * numbers), 9 * numbers]
    by_hand += [numbers + channels * 1 + 1 + 1 * channels]  # mean, two layers of one neuron, a ReLU
    assert list(cost.experts[:5]) == by_hand
    assert cost.of(ran).tolist() == [
        cost.shared + sum(c for c, r in zip(cost.experts, row, strict=True) if r) for row in ran
    ]


def test_gates_learn_and_balance_sees_every_layer():
    torch.manual_seed(0)
    backbone = routed_resnet()
    maps = backbone(torch.randn(2, 3, 64, 64))
    record = backbone.expert_record
    assert [len(w) for w in record.weights] == [2] * 13
    assert all(w.sum(1).allclose(torch.ones(2)) for w in record.weights)
    (sum(m.square().mean() for m in maps.values()) + sum(x.var() for x in record.loads)).backward()
    for layer in (m for m in backbone.modules() if isinstance(m, RoutingLayer)):
        assert layer.router.gate.score.weight.grad.abs().sum() > 0


def test_half_precision_decides_as_float32_does_and_learns():
    torch.manual_seed(0)
    # Of one stage: behind several, bfloat16's maps are others.
    pairs = ("MODEL.RESNETS.OUT_FEATURES", ["res2"], "MODEL.ROUTED_RESNET.K_FIRST", 2)
    images = patterns(2, 32, 32)
    backbone = decided(routed_resnet(*pairs), images)
    first = next(m for m in backbone.modules() if isinstance(m, RoutingLayer))
    pooled = torch.rand(64, 8)
    wanted = first.router.gate(pooled)
    with torch.autocast("cpu", torch.bfloat16):
        found = first.router.gate(pooled)
        maps = backbone.train()(images)["res2"]
    assert found.weights.equal(wanted.weights)
    assert maps.isfinite().all()
    maps.float().square().mean().backward()
    assert first.router.gate.score.weight.grad.abs().sum() > 0


def test_equal_experts_part_by_the_noise_of_the_gate():
    torch.manual_seed(0)
    pairs = ("MODEL.ROUTED_RESNET.EXPERTS", HOMOGENEOUS, "MODEL.ROUTED_RESNET.K_FIRST", 2)
    backbone = routed_resnet(*pairs)
    layer = next(m for m in backbone.modules() if isinstance(m, RoutingLayer))
    weights = [expert[0][0].weight for expert in layer.experts]
    assert all(w.equal(weights[0]) for w in weights)
    assert len({w.data_ptr() for w in weights}) == 5
    optimiser = torch.optim.SGD(backbone.parameters(), lr=0.1)
    images = torch.randn(4, 3, 64, 64)
    backbone(images)["res5"].square().mean().backward()
    optimiser.step()
    assert not weights[0].equal(weights[1])


def reference(name="build_resnet_backbone", *pairs):
    """Detectron2's ResNet with statistics of its own, and their names in a file."""
    torch.manual_seed(3)
    cfg = narrow("MODEL.RESNETS.NORM", "FrozenBN", *pairs, name=name)
    resnet = build_backbone(cfg).eval()
    for name, value in resnet.named_buffers():
        value.uniform_(0.5, 1.5) if "var" in name or "weight" in name else value.normal_()
    return resnet


FROZEN = ("MODEL.ROUTED_RESNET.NORM", "FrozenBN")
DEEPLAB = ("MODEL.RESNETS.RES5_DILATION", 2, "MODEL.RESNETS.STEM_TYPE", "deeplab")


@pytest.mark.parametrize(
    ("kind", "pairs", "strides"),
    [("", (), [4, 8, 16, 32]), ("deeplab_", DEEPLAB, [4, 8, 16, 16])],
)
@torch.no_grad()
def test_with_an_ordinary_resnet_s_weights_equal_experts_give_its_maps(
    kind, pairs, strides, tmp_path
):
    resnet = reference(f"build_resnet_{kind}backbone", *pairs)
    file = tmp_path / "R-50.pkl"
    state = {name: value.numpy() for name, value in resnet.state_dict().items()}
    content = {"model": state, "__author__": "third_party", "matching_heuristics": True}
    file.write_bytes(pickle.dumps(content))
    experts = ("MODEL.ROUTED_RESNET.EXPERTS", HOMOGENEOUS)
    name = f"build_routed_resnet_{kind}backbone"
    model = nn.ModuleDict({"backbone": routed_resnet(*pairs, *FROZEN, *experts, name=name)})
    RoutingCheckpointer(model).load(str(file))
    images = torch.randn(2, 3, 64, 64)
    found, wanted = decided(model["backbone"], images)(images), resnet(images)
    assert [64 // maps.shape[-1] for maps in found.values()] == strides
    for key, maps in wanted.items():
        torch.testing.assert_close(found[key], maps, rtol=1e-3, atol=1e-3)


def test_weights_go_to_3x3_experts_alone_and_the_rest_starts_anew(tmp_path, training_log):
    resnet = reference()
    torch.save({"model": {f"backbone.{k}": v for k, v in resnet.state_dict().items()}},
               tmp_path / "detector.pth")  # fmt: skip
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": routed_resnet(*FROZEN)})})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    RoutingCheckpointer(model).load(str(tmp_path / "detector.pth"))
    after, own = model.state_dict(), resnet.state_dict()
    place = "backbone.bottom_up.res3.1."
    assert after[f"{place}conv2.experts.0.0.0.weight"].equal(own["res3.1.conv2.weight"])
    mean = own["res3.1.conv2.norm.running_mean"]
    assert after[f"{place}conv2.experts.0.0.1.running_mean"].equal(mean)
    assert after[f"{place}conv1.weight"].equal(own["res3.1.conv1.weight"])
    other = f"{place}conv2.experts.1.0.0.weight"
    assert after[other].equal(before[other])
    # The block that downsamples is an ordinary one.
    assert after["backbone.bottom_up.res3.0.conv2.weight"].equal(own["res3.0.conv2.weight"])
    assert "they start anew" in training_log.text
    saved = model.state_dict()
    torch.save({"model": saved}, tmp_path / "routed.pth")
    RoutingCheckpointer(model, strict=True).load(str(tmp_path / "routed.pth"))


def full_size(depth, norm="FrozenBN"):
    cfg = narrow("MODEL.RESNETS.DEPTH", depth, name="build_resnet_backbone")
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64, 256
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.RESNETS.NORM = 64, norm
    with torch.device("meta"):
        return build_backbone(cfg)


def test_torchvision_s_names_and_shapes_become_detectron2_s():
    with torch.device("meta"):
        theirs = torchvision.models.resnet50().state_dict()
    found = {k: v.shape for k, v in detectron2_resnet_names(theirs).items()}
    wanted = {k: v.shape for k, v in full_size(50).state_dict().items()}
    rest = found.keys() - wanted.keys()
    assert {k for k in rest if not k.endswith("num_batches_tracked")} == {"fc.weight", "fc.bias"}
    assert {k: found[k] for k in wanted} == wanted


def test_caffe2_s_names_become_detectron2_s():
    blobs = ["conv1_w", "res_conv1_bn_s", "res2_0_branch1_w", "res2_0_branch1_bn_b"]
    blobs += ["res4_5_branch2a_w", "res5_2_branch2b_gn_s", "res3_1_branch2c_bn_b", "fc1000_w"]
    assert list(detectron2_resnet_names(dict.fromkeys(blobs, torch.zeros(())))) == [
        *("stem.conv1.weight", "stem.conv1.norm.weight", "res2.0.shortcut.weight"),
        *("res2.0.shortcut.norm.bias", "res4.5.conv1.weight", "res5.2.conv2.norm.weight"),
        *("res3.1.conv3.norm.bias", "fc1000_w"),
    ]


def test_weights_of_another_depth_are_refused(tmp_path):
    names = dict.fromkeys(full_size(101).state_dict(), torch.zeros(1))
    torch.save(names, tmp_path / "R-101.pth")
    with pytest.raises(CheckpointError, match=r"a ResNet of 3, 4, 23, 3 blocks.* 3, 4, 6, 3: set"):
        RoutingCheckpointer(routed_resnet()).load(str(tmp_path / "R-101.pth"))


def test_numbers_at_full_size():
    """The paper prints 52 and 50 million, which no such replacement gives."""
    cfg = narrow()
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64, 256
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 64
    with torch.device("meta"):
        diverse = build_backbone(cfg)
        cfg.MODEL.ROUTED_RESNET.EXPERTS = HOMOGENEOUS
        homogeneous = build_backbone(cfg)
        plain = torchvision.models.resnet50(num_classes=1)
    count = [sum(p.numel() for p in m.parameters()) for m in (diverse, homogeneous, plain)]
    widths = [64] * 3 + [128] * 3 + [256] * 5 + [512] * 2
    more = sum(4 * (9 * w * w + 2 * w) + 2 * 5 * w for w in widths)
    assert count[1] == count[2] - 2049 + more
    assert [round(c / 1e6, 1) for c in count[:2]] == [59.3, 56.4]


def test_frozen_stages_stay_plain_and_a_stride_in_the_first_convolution_routes_every_block():
    pairs = ("MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.RESNETS.STRIDE_IN_1X1", True)
    backbone = routed_resnet(*pairs)
    routed = [n for n, m in backbone.named_modules() if isinstance(m, RoutedBottleneck)]
    assert routed == [f"res{s}.{b}" for s, n in ((3, 4), (4, 6), (5, 3)) for b in range(n)]
    assert not any(p.requires_grad for p in backbone.res2.parameters())


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("ROUTED_RESNET.K_FIRST", 6, "K_FIRST is 6, but there are 5 EXPERTS"),
        ("ROUTED_RESNET.EXPERTS", ["conv3x3"] * 5, "no expert operation 'conv3x3'; nearest are"),
        ("ROUTED_RESNET.EXPERTS", ["linear"] * 5, '"linear" is for vectors'),
        ("ROUTED_RESNET.ROUTER", "task", "needs several tasks"),
        ("ROUTED_RESNET.NORM", "BN", "NORM must be one of GN, FrozenBN"),
        ("ROUTED_RESNET.BALANCE_WEIGHT", [0.1], "BALANCE_WEIGHT is two numbers"),
        ("RESNETS.DEPTH", 18, "DEPTH 50, 101, 152, not 18"),
        ("RESNETS.NUM_GROUPS", 32, "neither groups nor deformable"),
        ("RESNETS.RES5_DILATION", 3, "must be 1, 2 or 4"),
    ],
)
def test_settings_that_cannot_be(key, value, told):
    with pytest.raises(ConfigError, match=told):
        routed_resnet(f"MODEL.{key}", value)


def test_the_size_of_the_plain_parts_is_counted():
    backbone = routed_resnet(*FROZEN, "MODEL.ROUTED_RESNET.EXPERTS", HOMOGENEOUS)
    cost = ExpertCosts(backbone).at((64, 96))
    plain = backbone_macs(reference(), 64, 96)
    gates = sum(
        layer.router.gate.score.weight.numel() for layer in backbone.modules()
        if isinstance(layer, RoutingLayer)
    )  # fmt: skip
    # One expert a layer is the ordinary network; what gates average is what experts read.
    pooled = sum(8 * 2**s * (16 >> s) * (24 >> s) * n for s, n in enumerate((3, 3, 5, 2)))
    one_each = sum(cost.experts[::5])
    assert cost.shared + one_each == pytest.approx(plain + gates + pooled, rel=1e-6)
