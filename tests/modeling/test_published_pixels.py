"""Published weights under divdr's way of feeding images, and under others."""

import forked
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from divdr import get_divdr_config
from divdr.checkpoint import (
    PUBLISHED_PIXELS,
    Pixels,
    adapt_first_convolution,
    convert_backbone,
    convert_model,
)
from divdr.engine import Predictor
from divdr.errors import CheckpointError
from divdr.routing import DynamicRoutingNetwork, RoutingSpace

MEAN = np.array([103.53, 116.28, 123.675])  # of blue, green, red
FILE = "dynamic_routing_l16_c8_small_gate.npz"


@pytest.fixture(scope="module")
def file(repository):
    return np.load(repository / "tests" / "data" / FILE)


def part(file, prefix):
    names = [name for name in file.files if name.startswith(prefix)]
    return {name[len(prefix) :]: torch.from_numpy(file[name]) for name in names}


def doubled(weights):
    return {k: v.double() if v.is_floating_point() else v for k, v in weights.items()}


def network(weights):
    made = DynamicRoutingNetwork(RoutingSpace.build(16, 4), channels=8, reach="published")
    made = made.double()
    made.load_state_dict(weights)
    return made.eval()


def target():
    return DynamicRoutingNetwork(RoutingSpace.build(16, 4), channels=8).state_dict()


@pytest.mark.parametrize(
    ("order", "mean", "std"),
    [
        ("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),  # divdr's configs
        ("BGR", (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)),
        ("RGB", (0.0, 127.5, 300.0), (1.0, 255.0, 0.1)),
    ],
)
def test_the_gates_of_an_image_are_those_of_the_published_network(file, order, mean, std):
    # The file's input is what the published code has after normalisation: blue, green, red − mean.
    image = torch.from_numpy(file["x"]).double() + torch.from_numpy(MEAN).view(3, 1, 1)
    pixels = Pixels(order, mean, std)
    weights = convert_backbone(doubled(part(file, "backbone/")), target(), pixels)
    channels = image if order == "BGR" else image.flip(1)
    statistics = [torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std)]
    published = network(convert_backbone(part(file, "backbone/"), target()))
    with torch.no_grad():
        ours = network(weights)((channels - statistics[0]) / statistics[1])[1]
        theirs = published(image - torch.from_numpy(MEAN).view(3, 1, 1))[1]
    assert (ours.activations - theirs.activations).abs().max() < 1e-8
    gates = torch.from_numpy(file["gates_up_keep_down"]).flatten(1)
    assert (ours.activations - gates).abs().max() < 1e-2  # the file's float32, over 16 layers
    assert gates.std() > 0.1


def test_convolution_and_norm_by_hand():
    # One output: 2·blue + 3·green + 5·red over a 1×1 window, then BatchNorm.
    state = {
        "a.0.weight": torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64).view(1, 3, 1, 1),
        "a.1.weight": torch.tensor([1.5], dtype=torch.float64),
        "a.1.bias": torch.tensor([0.25], dtype=torch.float64),
        "a.1.running_mean": torch.tensor([7.0], dtype=torch.float64),
        "a.1.running_var": torch.tensor([2e-5], dtype=torch.float64),  # near BatchNorm's epsilon
    }
    old = Pixels("BGR", (10.0, 20.0, 30.0), (1.0, 2.0, 4.0))
    new = Pixels("RGB", (31.0, 18.0, 10.0), (8.0, 8.0, 8.0))
    got = adapt_first_convolution(state, "a.", old, new)
    blue, green, red = 12.0, 50.0, 90.0
    before = 2 * (blue - 10) / 1 + 3 * (green - 20) / 2 + 5 * (red - 30) / 4
    normed = 1.5 * (before - 7.0) / (2e-5 + 1e-5) ** 0.5 + 0.25
    weight = got["a.0.weight"].flatten()
    after = weight @ torch.tensor([red - 31, green - 18, blue - 10], dtype=torch.float64) / 8
    spread = (got["a.1.running_var"] + 1e-5).sqrt()
    again = got["a.1.weight"] * (after - got["a.1.running_mean"]) / spread + got["a.1.bias"]
    assert float(again) == pytest.approx(normed, rel=1e-9)
    # Factors 2, 4 and 8 of red, green and blue keep their ratios; their geometric mean is 4.
    assert weight.tolist() == pytest.approx([5 * 2 / 4, 3 * 4 / 4, 2 * 8 / 4])


def test_an_equal_std_leaves_the_size_of_the_weights(file):
    # So that they train as fast as they did: behind the convolution BatchNorm undoes any factor.
    weights = part(file, "backbone/")
    pixels = Pixels("RGB", (123.675, 116.28, 103.53), (58.0, 58.0, 58.0))
    got = convert_backbone(weights, target(), pixels)["stem.first.0.weight"]
    assert got.allclose(weights["stem.stem_1.weight"].flip(1))


def test_what_cannot_be_rewritten_is_refused():
    state = {"0.weight": torch.ones(1, 3, 1, 1)}
    with pytest.raises(CheckpointError, match="'BGR' cannot be made ones for 'L'"):
        adapt_first_convolution(state, "", PUBLISHED_PIXELS, Pixels("L", (1.0,), (1.0,)))
    with pytest.raises(CheckpointError, match="without BatchNorm"):
        adapt_first_convolution(state, "", PUBLISHED_PIXELS, Pixels("BGR", (0.0,) * 3, (1.0,) * 3))
    same_mean = Pixels("BGR", PUBLISHED_PIXELS.mean, (2.0, 3.0, 4.0))
    scaled = adapt_first_convolution(state, "", PUBLISHED_PIXELS, same_mean)["0.weight"]
    assert scaled.flatten().tolist() == [2.0, 3.0, 4.0]
    with pytest.raises(CheckpointError, match="need 3 numbers"):
        Pixels("RGB", (1.0,), (1.0,))
    with pytest.raises(CheckpointError, match="must be positive"):
        Pixels("L", (1.0,), (0.0,))


@pytest.fixture
def published(file, tmp_path):
    """A published checkpoint whose first layers have seen pixels: input of spread 60, not 1."""
    backbone = part(file, "backbone/")
    backbone["stem.stem_1.weight"] = backbone["stem.stem_1.weight"] / 60
    weights = {f"backbone.{k}": v for k, v in backbone.items()}
    weights.update({f"sem_seg_head.{k}": v for k, v in part(file, "head/").items()})
    torch.save({"model": weights}, tmp_path / "published.pth")
    return backbone


def test_converted_weights_predict_as_the_published_ones_did(
    repository, published, tmp_path, monkeypatch
):
    monkeypatch.chdir(repository)
    config, converted = "configs/dr_a_cityscapes.yaml", tmp_path / "converted.pth"
    channels = ["MODEL.ROUTING.CHANNELS", "8"]
    command = ["tools/convert_checkpoint.py"]
    command += [str(tmp_path / "published.pth"), str(converted), "--config-file", config]
    done = forked.run([*command, "--opts", *channels], repository)
    assert done.returncode == 0, done.stderr
    assert "RGB images" in done.stdout
    assert "MODEL.ROUTING.REACH published" in done.stdout

    cfg = get_divdr_config()
    cfg.merge_from_file(config)
    cfg.merge_from_list([*channels, "MODEL.DEVICE", "cpu", "MODEL.ROUTING.REACH", "published"])
    cfg.merge_from_list(["MODEL.WEIGHTS", str(converted), "INPUT.MIN_SIZE_TEST", "128"])
    rows = np.linspace(0, 255, 128)[:, None, None]
    image = (rows * [0.2, 0.9, 0.5] + np.random.default_rng(0).random((128, 256, 3)) * 25).astype(
        np.uint8
    )
    gates = Predictor(cfg)(image)["routing"].activations
    as_published = image[:, :, ::-1].transpose(2, 0, 1) - MEAN[:, None, None]
    with torch.no_grad():
        wanted = network(convert_backbone(published, target()))(
            torch.from_numpy(as_published[None]).double()
        )[1].activations
    assert (gates - wanted).abs().max() < 2e-2
    assert wanted.std() > 0.1
    # Were they fed as they are, the same image would take another route.
    torch.save({"model": _as_they_are(cfg, tmp_path)}, converted)
    assert (Predictor(cfg)(image)["routing"].activations - wanted).abs().max() > 0.2


def _as_they_are(cfg, folder):
    weights = torch.load(folder / "published.pth", weights_only=True)["model"]
    return convert_model(weights, build_model(cfg).state_dict())


@pytest.mark.parametrize("config", ["dr_a_cityscapes", "dr_a_coco_faster_rcnn"])
def test_a_pretrained_backbone_alone_converts(repository, file, monkeypatch, config):
    monkeypatch.chdir(repository)
    cfg = get_divdr_config()
    cfg.merge_from_file(f"configs/{config}.yaml")
    cfg.merge_from_list(["MODEL.ROUTING.CHANNELS", "8", "MODEL.DEVICE", "cpu"])
    cfg.merge_from_list(["MODEL.ROUTING.LAYERS", "16", "MODEL.ROUTING.SCALES_PER_LAYER", "[]"])
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256]]
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    model = build_model(cfg)
    pixels = Pixels("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    alone = convert_backbone(part(file, "backbone/"), target(), pixels)
    for prefix in ("", "backbone.", "module.backbone."):
        weights = {prefix + name: value for name, value in part(file, "backbone/").items()}
        converted = convert_model(weights, model.state_dict(), pixels)
        left, unexpected = model.load_state_dict(converted, strict=False)
        assert not unexpected
        assert left
        assert not [name for name in left if ".network." in name]
        name = next(n for n in converted if n.endswith("network.stem.first.0.weight"))
        assert converted[name].equal(alone["stem.first.0.weight"])


def test_a_model_without_routing_is_refused(file):
    with pytest.raises(CheckpointError, match="no Dynamic Routing backbone"):
        convert_model(part(file, "backbone/"), {"stem.conv1.weight": torch.zeros(1)})
