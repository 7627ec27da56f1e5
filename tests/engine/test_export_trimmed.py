"""A trained model trimmed by its training images: files that predict as before."""

import re

import numpy as np
import pytest
import torch

import divdr
from divdr import verbs
from divdr.checkpoint import read_weights, write_atomically
from divdr.engine.execution_modes import load_trained
from divdr.engine.trim_model import trim
from divdr.errors import ConfigError
from divdr.inference import read_route
from divdr.modeling import DialSetting, attached_routing, find_backbone
from divdr.modeling.cost_dial import CostDial
from divdr.routing.gate import StaticGate

PICTURE = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def partly(halves_run, tmp_path_factory):
    """A copy of the run in which one cell always closes and another never goes down."""
    folder = tmp_path_factory.mktemp("partly")
    content = read_weights(halves_run.MODEL.WEIGHTS)
    network = find_backbone(load_trained(halves_run)).network
    shut, half = network.space.layers[1][0], network.space.layers[0][1]
    for node, transforms in ((shut, shut.transforms), (half, (2,))):
        name = f"backbone.network.layers.{node.layer}.{node.scale}.gate.predict"
        for transform in transforms:
            row = node.gated.index(transform)
            content["model"][f"{name}.weight"][row] = 0
            content["model"][f"{name}.bias"][row] = -9
    settings = [DialSetting(1.5, 0.2, 0.01), DialSetting(0.0, 0.9, 0.04)]
    content["routing"] = {**content["routing"], "dial": CostDial(settings).state_dict()}
    write_atomically(folder / "model_final.pth", content)
    (folder / "config.yaml").write_text(halves_run.dump())
    return folder


def test_the_trimmed_model_predicts_as_before(partly, tmp_path, capsys):
    target = tmp_path / "trimmed"
    verbs.main(["export", "--trim", "--weights", str(partly), "--output", str(target)])
    said = capsys.readouterr().out
    assert "0 of 8 training images take another route" in said
    assert {f.name for f in target.iterdir()} == {"model_final.pth", "config.yaml", "route.json"}
    whole, part = (divdr.Predictor.from_files(folder) for folder in (partly, target))
    space = part.routing.backbone.space
    assert space.layers[1][0].bare
    assert space.layers[0][1].transforms == (0, 1)
    a, b = whole(PICTURE), part(PICTURE)
    torch.testing.assert_close(b["sem_seg"], a["sem_seg"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b["routing"].activations, a["routing"].activations)
    assert float(b["routing"].real_cost) < float(a["routing"].real_cost)
    assert whole.expert(a) == part.expert(b)
    assert part.metadata.stuff_classes == ["dark", "bright"]
    counts = [sum(p.numel() for p in each.model.parameters()) for each in (part, whole)]
    assert counts[0] < counts[1]
    assert f"{counts[0]} of {counts[1]} parameters" in said
    # Its gates can still close: those of the whole network, turned down, do.
    for predictor in (whole, part):
        network = predictor.routing.backbone.network
        gate = network.layers[0][0].gate
        with torch.no_grad():
            gate.predict.weight.zero_()
            gate.predict.bias.fill_(-9.0)
    a, b = whole(PICTURE), part(PICTURE)
    assert b["routing"].activations[0, :3].tolist() == [0, 0, 0]
    torch.testing.assert_close(b["routing"].activations, a["routing"].activations)
    with pytest.raises(ConfigError, match="no dial"):
        part.turn_dial(0.5)
    # And again: nothing is left to trim.
    again = divdr.engine.load_config(str(target / "config.yaml"))
    assert f"{counts[0]} of {counts[0]} parameters" in trim(again, tmp_path / "again")


def test_a_position_of_the_dial_stays(partly, tmp_path):
    cfg = divdr.engine.load_config(
        str(partly / "config.yaml"),
        ["MODEL.WEIGHTS", str(partly / "model_final.pth"), "MODEL.ROUTING.DIAL", "0.0"],
    )
    trim(cfg, tmp_path)
    written = divdr.engine.load_config(str(tmp_path / "config.yaml")).MODEL.ROUTING
    assert (written.GATE_THRESHOLD, written.DIAL) == (1.5, -1.0)
    a, b = (each(PICTURE) for each in (divdr.Predictor(cfg), divdr.Predictor.from_files(tmp_path)))
    torch.testing.assert_close(b["routing"].activations, a["routing"].activations)


def test_gates_become_their_mean_and_both_are_evaluated(partly, tmp_path, capsys):
    target = tmp_path / "trimmed"
    words = ["export", "--trim", "--gates-at-mean", "--weights", str(partly)]
    verbs.main([*words, "--output", str(target)])
    said = capsys.readouterr().out
    found = re.search(r"halves: mIoU ([\d.]+), trimmed ([\d.]+)", said)
    assert all(0 < float(value) <= 100 for value in found.groups()), said
    predictor = divdr.Predictor.from_files(target)
    network = predictor.routing.backbone.network
    constant = read_route(target / "route.json", find_backbone(predictor.model).space).constant
    assert f"gates of {len(constant)} constant" in said
    assert len(constant) > 1
    gates = {-1: network.initial.gate} | {c.node.index: c.gate for c in network.cells()}
    assert {k for k, gate in gates.items() if isinstance(gate, StaticGate)} == constant
    assert predictor(PICTURE)["sem_seg"].isfinite().all()


def test_a_model_of_a_fixed_route_is_trimmed_to_it(halves_run, tmp_path):
    content = read_weights(halves_run.MODEL.WEIGHTS)
    network = find_backbone(load_trained(halves_run)).network
    opened = torch.zeros(network.space.num_cells, 3, dtype=torch.bool)
    for node in network.space.cells:
        opened[node.index, 1] = 1 in node.gated and node.scale == 0  # straight on at stride 4
    initial = torch.tensor([False, True, False])
    content["routing"] = {**content["routing"], "route": [opened, initial]}
    write_atomically(tmp_path / "model_final.pth", content)
    (tmp_path / "config.yaml").write_text(halves_run.dump())
    weights = ["MODEL.WEIGHTS", str(tmp_path / "model_final.pth")]
    cfg = divdr.engine.load_config(str(tmp_path / "config.yaml"), weights)

    trim(cfg, tmp_path / "trimmed")

    whole, part = divdr.Predictor(cfg), divdr.Predictor.from_files(tmp_path / "trimmed")
    a, b = whole(PICTURE), part(PICTURE)
    torch.testing.assert_close(b["sem_seg"], a["sem_seg"], rtol=1e-4, atol=1e-5)
    assert (a["routing"].activations.view(-1, 3) > 0).equal(opened)
    assert len(part.model.state_dict()) < len(whole.model.state_dict())


def test_mistakes_end_in_a_sentence(partly, halves_run, tmp_path, capsys):
    for words in (("--size", "32", "32"), ("--format",), ("--no-evaluation",)):
        with pytest.raises(SystemExit):
            verbs.main(["export", "--trim", "--weights", str(partly), *words])
        assert "--trim makes no static experts" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        verbs.main(["export", "--gates-at-mean", "--weights", str(partly)])
    assert "--gates-at-mean is an option of --trim" in capsys.readouterr().err
    cfg = halves_run.clone()
    model = load_trained(cfg)
    route = divdr.inference.Route.open(attached_routing(model).backbone.space)
    route.write(tmp_path / "all.json")
    cfg.MODEL.ROUTING.ROUTE = str(tmp_path / "all.json")
    with pytest.raises(ConfigError, match="stay open"):
        trim(cfg, tmp_path / "no")
    cfg.MODEL.ROUTING.ROUTE, cfg.MODEL.ROUTING.REACH = "", "published"
    with pytest.raises(ConfigError, match="REACH"):
        trim(cfg, tmp_path / "no")
