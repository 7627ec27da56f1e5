"""Numbers of the published network; see tests/data/README.md."""

import re
from dataclasses import replace

import forked
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from divdr import get_divdr_config
from divdr.checkpoint import convert_backbone, convert_model
from divdr.checkpoint.published import _backbone_name
from divdr.errors import CheckpointError, DataError
from divdr.modeling import reference as reference_module
from divdr.modeling.reference import check_reference
from divdr.routing import DynamicRoutingNetwork, RoutingSpace, cost_table

FILES = ["dynamic_routing_l16_c8_small_gate.npz", "dynamic_routing_l16_c8_full_gate.npz"]


@pytest.fixture(params=FILES)
def reference(request, repository):
    return repository / "tests" / "data" / request.param


def test_network_reproduces_the_published_one(reference):
    check = check_reference(reference)
    kind = "small" if "small" in reference.name else "full"
    assert check.description == f"16 layers, 8 channels, {kind} gate, 19 classes"
    assert {c.name for c in check.comparisons} == {
        "gates",
        *(f"output, stride {s}" for s in (4, 8, 16, 32)),
        "logits",
        "head cost",
        "expected cost",
        "real cost",
    }
    for comparison in check.comparisons:
        assert comparison.on_route <= 1e-5, comparison
        assert comparison.passed, comparison


def tampered(reference, folder, **changes):
    content = dict(np.load(reference))
    content.update({name.replace("__", "/"): value for name, value in changes.items()})
    path = folder / "tampered.npz"
    np.savez(path, **content)
    return path


@pytest.mark.parametrize("name", ["out/layer_2", "real_mflops_backbone", "gates_up_keep_down"])
def test_a_wrong_number_is_found(repository, tmp_path, name):
    reference = repository / "tests" / "data" / FILES[0]
    value = np.load(reference)[name].copy()
    value.flat[np.abs(value).argmax()] *= 1.001
    path = tampered(reference, tmp_path, **{name: value})
    result = forked.run(["tools/check_reference.py", path], repository)
    assert result.returncode == 1
    assert "BEYOND" in result.stdout


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, x=np.zeros(3))
    with pytest.raises(DataError, match="no reference file"):
        check_reference(path)


def state(repository, prefix):
    file = np.load(repository / "tests" / "data" / FILES[0])
    return {
        name[len(prefix) :]: torch.from_numpy(file[name])
        for name in file.files
        if name.startswith(prefix)
    }


def test_converter_names_the_first_shape_that_differs(repository):
    wider = DynamicRoutingNetwork(RoutingSpace.build(16, 4), channels=16)
    with pytest.raises(CheckpointError, match=r"'stem.third.1.0.weight'.*\(8, 64, 1, 1\).*\(16, "):
        convert_backbone(state(repository, "backbone/"), wider.state_dict())


def test_converter_names_the_first_key_that_is_missing_or_too_many(repository):
    published = state(repository, "backbone/")
    deeper = DynamicRoutingNetwork(RoutingSpace.build(17, 4), channels=8)
    with pytest.raises(CheckpointError, match=r"lack 'layers.15.0.changes.down.0.weight'"):
        convert_backbone(published, deeper.state_dict())
    shallower = DynamicRoutingNetwork(RoutingSpace.build(15, 4), channels=8)
    with pytest.raises(CheckpointError, match=r"'layers.14.0.gate.predict.weight'.*\(2, 4"):
        convert_backbone(published, shallower.state_dict())
    with pytest.raises(CheckpointError, match=r"'something\.else'"):
        convert_backbone({"something.else": torch.zeros(1)}, deeper.state_dict())


def segmentation_config(**routing) -> CfgNode:
    cfg = get_divdr_config()
    cfg.merge_from_file("configs/dr_a_cityscapes.yaml")
    cfg.MODEL.DEVICE = "cpu"
    for name, value in routing.items():
        cfg.MODEL.ROUTING[name] = value
    return cfg


def test_a_published_checkpoint_file_converts_to_a_whole_model(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    published = {
        **{f"backbone.{k}": v for k, v in state(repository, "backbone/").items()},
        **{f"sem_seg_head.{k}": v for k, v in state(repository, "head/").items()},
        "pixel_mean": torch.zeros(3, 1, 1),
    }
    torch.save({"model": published, "iteration": 3}, tmp_path / "published.pth")
    command = ["tools/convert_checkpoint.py"]
    command += [str(tmp_path / "published.pth"), str(tmp_path / "converted.pth")]
    command += ["--config-file", "configs/dr_a_cityscapes.yaml"]
    command += ["--opts", "MODEL.ROUTING.CHANNELS", "8"]
    done = forked.run(command, repository)
    assert done.returncode == 0, done.stderr

    model = build_model(segmentation_config(CHANNELS=8, REACH="published")).eval()
    converted = torch.load(tmp_path / "converted.pth", weights_only=True)["model"]
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not unexpected
    assert not missing
    file = np.load(repository / "tests" / "data" / FILES[0])
    # The file's input is what the published code has after normalisation: BGR − mean.
    image = torch.from_numpy(file["x"][0]) + torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    with torch.no_grad():
        logits = model([{"image": image.flip(0)}])[0]["sem_seg"]
    wanted = file["logits_every_8th_pixel"][0]
    assert np.abs(logits[:, ::8, ::8].numpy() - wanted).max() / np.abs(wanted).max() < 1e-2

    command[-1] = "16"
    done = forked.run(command, repository)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'stem.third.1.0.weight' has shape (8, 64, 1, 1)")


def test_decoder_of_other_classes_is_refused(repository, monkeypatch):
    monkeypatch.chdir(repository)
    cfg = segmentation_config(CHANNELS=8)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 7
    published = {
        **{f"backbone.{k}": v for k, v in state(repository, "backbone/").items()},
        **{f"sem_seg_head.{k}": v for k, v in state(repository, "head/").items()},
    }
    with pytest.raises(CheckpointError, match=r"predictor.weight.*\(19, 8, 3, 3\).*\(7, 8, 3, 3\)"):
        convert_model(published, build_model(cfg).state_dict())


def test_rounding_in_a_free_run_decides_nothing(reference, monkeypatch):
    """As in a network so deep that its free run ends anywhere, nearer to another network's."""
    run, noise = reference_module._run, torch.Generator().manual_seed(0)
    gates = torch.from_numpy(np.load(reference)["gates_up_keep_down"]).flatten(1)
    kind = "small" if "small" in reference.name else "full"

    def anywhere(network, images, route=None):
        maps, record = run(network, images, route)
        if route is not None:
            return maps, record
        logits = torch.atanh(gates.clamp(max=0.999))
        if reference_module._gate_kind(network) == kind:
            logits = logits + torch.randn(logits.shape, generator=noise)
        return [m + 1.0 for m in maps], replace(record, logits=logits)

    monkeypatch.setattr(reference_module, "_run", anywhere)
    check = check_reference(reference)
    assert f"{kind} gate" in check.description
    assert check.chaotic
    assert check.passed
    assert not replace(check.comparisons[0], on_route=2e-4).passed


def test_a_deep_network_passes_by_the_route_of_its_reference(repository, tmp_path):
    # 33 layers, found chaotic: rounding to float32 turns gates from open to closed.
    torch.manual_seed(0)
    network = DynamicRoutingNetwork(RoutingSpace.build(33, 4), channels=4, reach="published")
    for cell in network.cells():
        torch.nn.init.normal_(cell.gate.predict.weight, std=3.0)
        torch.nn.init.normal_(cell.gate.predict.bias, mean=0.8, std=0.5)
    images = torch.randn(12, 3, 64, 96)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        network(images)  # statistics under which signals keep their size
        images = images[:2]
        maps, record = network.eval().double()(images.double())
    path = tmp_path / "deep.npz"
    np.savez(path, **_as_published(repository, network.float(), images, maps, record))
    check = check_reference(path)
    assert check.description == "33 layers, 4 channels, small gate"
    assert check.chaotic
    assert check.passed, check.comparisons


def _as_published(repository, network, images, maps, record):
    """Content of a reference file."""
    known = state(repository, "backbone/")
    parts = {re.sub(r"^all_cell_list\.\d+\.\d+\.", "", n) for n in known if n.startswith("all_")}
    names = [n for n in known if not n.startswith("all_")]
    names += [f"all_cell_list.{c.layer}.{c.scale}.{n}" for c in network.space.cells for n in parts]
    own = network.state_dict()
    weights = {n: own[_backbone_name(n)] for n in names if _backbone_name(n) in own}
    for name, value in weights.items():
        goes_up = name.split("gate_conv_beta")[0] + "res_up.1.weight" in weights
        if "gate_conv_beta.2" in name and len(value) > 1 and goes_up:
            weights[name] = torch.cat([value[1:2], value[:1], value[2:]])  # keep, up, down
    table = cost_table(network, *record.size, affine_norm=False, published_stem=True)
    gates = record.activations.float().unflatten(1, (-1, 3))
    expected, real = table.tensors("cpu").published(gates, record.initial)[:2]
    return {
        **{f"backbone/{name}": value.numpy() for name, value in weights.items()},
        **{f"out/layer_{scale}": value.float().numpy() for scale, value in enumerate(maps)},
        "x": images.numpy(),
        "gates_up_keep_down": gates.numpy(),
        "expected_mflops": expected.numpy() / 1e6,
        "real_mflops_backbone": real.numpy() / 1e6,
    }
