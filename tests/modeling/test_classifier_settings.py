"""Every key of ``MODEL.CLASSIFIER`` reaches what it is for."""

import pytest
import torch

from divdr.config import get_divdr_config
from divdr.errors import ConfigError
from divdr.modeling.classifiers import build_classifier, image_classifier
from divdr.modeling.classifiers.builders import network, network_parts, network_stem
from divdr.modeling.classifiers.coe_classifier import build_teacher
from divdr.moe import (
    CollaborationSettings,
    DenseNetParts,
    HydraSettings,
    NamedStem,
    Part,
    ResNetParts,
    RoutingLayer,
    named_classifier,
    named_input,
)
from divdr.moe.resnet import BasicBlock


def config(name="single", coe=(), hydra=(), **keys):
    cfg = get_divdr_config()
    cfg.MODEL.PIXEL_MEAN, cfg.SOLVER.MAX_ITER = [0.0], 50
    classifier = cfg.MODEL.CLASSIFIER
    classifier.NAME, classifier.NUM_CLASSES = f"build_{name}_classifier", 8
    classifier.COE.EXPERTS, classifier.HYDRA.BRANCHES = 3, 4
    for node, values in ((classifier, keys), (classifier.COE, coe), (classifier.HYDRA, hydra)):
        for key, value in dict(values).items():
            setattr(node, key, value)
    return cfg


WIDTHS = {"STEM_WIDTH": 2.0, "BRANCH_WIDTH": 3.0, "GATER_WIDTH": 4.0}


def test_parts():
    common = {
        "depth": 2,
        "in_channels": 1,
        "stem_width": 2.0,
        "branch_width": 3.0,
        "gater_width": 4.0,
        "separable": True,
    }
    keys = {"DEPTH": 2, "SEPARABLE": True, **WIDTHS}
    found = network_parts(config(CHANNELS=5, ENTRY="large", **keys))
    assert found == ResNetParts(channels=5, entry="large", **common)
    keys |= {"ARCHITECTURE": "densenet", "GROWTH": 7, "DENSE_LAYERS": [1, 2, 4]}
    found = network_parts(config(**keys))
    assert found == DenseNetParts(growth=7, layers=(1, 2, 4), **common)


def test_members():
    made = build_classifier(config("ensemble", MEMBERS=3))
    assert len(made.members) == 3
    assert len(build_classifier(config(MEMBERS=3)).members) == 1


def test_hydra():
    keys = {"TOP_K": 3, "THRESHOLD": 0.3, "TRAIN_THRESHOLD": 0.1}
    keys |= {"ENSEMBLE_WEIGHT": 2.0, "GATER_WEIGHT": 0.7, "BRANCH_WEIGHT": 0.2}
    made = build_classifier(config("hydra", hydra=keys, CHANNELS=2))
    assert made.settings == HydraSettings(4, 3, 0.3, 0.1, 2.0, 0.7, 0.2)
    assert made.threshold == 0.3
    assert len(made.branches) == 4


def test_collaboration():
    keys = {"THRESHOLD": 0.6, "DELEGATOR_STAGE": 20.0, "SELECTION_WEIGHT": 0.3}
    keys |= {"WGM": "labels", "ALPHA": [0.1, 0.5], "LGM": "free", "SRM": False}
    keys |= {"DEPTHS": [1, 2, 3], "DELEGATOR_DEPTH": 4}
    made = build_classifier(config("coe", coe=keys, CHANNELS=2))
    expected = CollaborationSettings(
        (0.1, 0.5),
        "labels",
        "free",
        False,
        experts=3,
        depths=(1, 2, 3),
        delegator_depth=4,
        delegator_stage=20.0,
        threshold=0.6,
        selection_weight=0.3,
    )
    assert made.settings == expected
    assert (made.threshold, made.delegator_share) == (0.6, 20 / 50)
    depths = [
        sum(isinstance(m, BasicBlock) for m in part.modules()) // 3
        for part in (made.delegator.extractor, *made.experts)
    ]
    assert depths == [4, 1, 2, 3]


def test_per_example():
    cfg = config("per_example")
    node = cfg.MODEL.CLASSIFIER.PER_EXAMPLE
    node.LAYERS, node.FILTERS, node.SHARED_LAYERS, node.NORM_GROUPS = 3, 6, 2, 3
    node.EXPERTS, node.CONVOLUTIONS = ["conv_5x5", "skip_connect", "squeeze_excite"], 1
    node.K_FIRST, node.K_LAST, node.ROUTER, node.TASK_WIDTH = 3, 1, "task", 5
    node.TASKS, node.POOL_AFTER = [4, 2], [0, 3]
    node.BALANCE_WEIGHT, node.BALANCE_STEPS = [0.3, 0.1], 4
    made = build_classifier(cfg)
    layers = [m for m in made.body.layers if isinstance(m, RoutingLayer)]
    assert [layer.router.gate.k for layer in layers] == [3, 2, 1]
    assert [layer.router.kind for layer in layers] == ["task"] * 3
    assert [type(m).__name__ for m in made.body.layers] == ["RoutingLayer"] * 3 + ["MaxPool2d"]
    assert len(layers[0].experts[0]) == 1
    shapes = {tuple(m.weight.shape) for m in made.modules() if isinstance(m, torch.nn.Conv2d)}
    assert shapes == {(6, 1, 3, 3), (6, 6, 3, 3), (6, 6, 5, 5)}
    assert {m.num_groups for m in made.modules() if isinstance(m, torch.nn.GroupNorm)} == {3}
    assert [readout.out_features for readout in made.readouts] == [4, 2]
    assert made.embedding.weight.shape == (2, 5)
    assert made.balance_weight == (0.3, 0.1)
    assert len(made.balance.past) == 3
    node.TASKS = []
    node.ROUTER = "pooled"
    assert build_classifier(cfg).classes == [8]


def test_a_stem_of_a_library_is_the_experts_and_not_the_delegator_s():
    made = build_classifier(config("coe", STEM="torchvision:resnet18.layer1", CHANNELS=2))
    assert all(isinstance(expert.stem, NamedStem) for expert in made.experts)
    assert isinstance(made.delegator.extractor.stem, Part)


@pytest.mark.parametrize("pretrained", [False, True])
def test_weights_of_a_library_are_asked_for(pretrained, monkeypatch):
    asked = []
    for name in ("named_classifier", "named_stem"):
        monkeypatch.setattr(
            f"divdr.modeling.classifiers.builders.{name}",
            lambda *args, name=name, **keys: asked.append((name, *args, keys)),
        )
    cfg = config(PRETRAINED=pretrained, ARCHITECTURE="timm:whole", STEM="timm:stem.1")
    cfg.INPUT.CLASSIFICATION.SIZE = 24
    network(cfg)
    network_stem(cfg, ResNetParts())
    keys = {"in_channels": 1, "pretrained": pretrained, "image_size": 24}
    assert asked == [
        ("named_classifier", "timm:whole", 8, keys),
        ("named_stem", "timm:stem.1", keys),
    ]


def test_a_teacher(tmp_path):
    name = "torchvision:mobilenet_v3_small"
    trained = named_classifier(name, 8, in_channels=1)
    torch.save({"model": trained.state_dict()}, tmp_path / "teacher.pth")
    keys = {"TEACHER": name, "TEACHER_WEIGHTS": str(tmp_path / "teacher.pth")}
    keys |= {"DISTILLATION_WEIGHT": 0.7, "TEMPERATURE": 3.0}
    made = build_teacher(config("coe", coe=keys))
    assert (made.weight, made.temperature) == (0.7, 3.0)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        expected = (trained.eval()(x) / 3).softmax(1)
    torch.testing.assert_close(made.targets(x), expected)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:resnet18"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_embedder_sees_images_as_its_library_s_weights_expect_them(name, channels, monkeypatch):
    modes = []

    def untrained(name, classes, *, pretrained, image_size):
        assert (pretrained, image_size) == (True, 224)
        made = named_classifier(name, classes)
        made.register_forward_hook(lambda module, args, out: modes.append(module.training))
        return made

    monkeypatch.setattr("divdr.modeling.classifiers.image_classifier.named_classifier", untrained)
    cfg = config("hydra", hydra={"EMBEDDER": name, "BRANCHES": 2})
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [100.0, 90.0, 80.0], [60.0, 50.0, 40.0]
    cfg.INPUT.FORMAT = "BGR"
    if channels == 1:
        cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT = [100.0], [60.0], "L"
    pixels = torch.randint(256, (3, channels, 32, 32)).float()
    embedder = image_classifier._embedder(cfg)
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    found = embedder.seen((pixels - mean) / std)
    colours = pixels.flip(1) if channels == 3 else pixels.expand(3, 3, 32, 32)  # red first
    large = torch.nn.functional.interpolate(colours / 255, (224, 224), mode="bilinear")
    imagenet = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (large - imagenet[0][:, None, None]) / imagenet[1][:, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # A whole partition by it, in evaluation.
    labels = torch.arange(8)
    batches = [((pixels[:1].repeat(8, 1, 1, 1) - mean) / std, labels)]
    partition = image_classifier.choose_partition(cfg, list("abcdefgh"), None, lambda: batches)
    assert partition.bincount().tolist() == [4, 4]
    assert modes == [False]


def test_weights_that_a_library_does_not_have():
    for name in ("torchvision:resnot", "timm:resnot"):
        with pytest.raises(ConfigError, match="has no weights for classifier"):
            named_input(name)
