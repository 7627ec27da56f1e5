"""Static controls of a trained network: their files, their training, and what evaluation runs."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_backbone
from fvcore.nn import FlopCountAnalysis

from divdr.data import build_test_loader, register_segmentation_folder
from divdr.engine import Trainer, load_config
from divdr.engine.execution_modes import load_trained
from divdr.engine.exploration import ExplorationHook
from divdr.engine.static_controls import chains_of, majority_of, random_of, width_of
from divdr.errors import ConfigError, DataError
from divdr.inference import Route, read_route
from divdr.modeling import attached_routing, find_backbone
from divdr.routing import RoutingSpace
from divdr.studies.statistics import backbone_cost, plan_time

KEY = "MODEL.ROUTING."


@pytest.fixture(scope="module")
def configured(repository, tmp_path_factory, overrides, draw_halves):
    """Makes configurations of a tiny network on eight images, each with a folder of its own."""
    folder = tmp_path_factory.mktemp("controls")
    draw_halves(folder, 8)
    register_segmentation_folder(
        "halves", str(folder / "images"), str(folder / "labels"), classes=["dark", "bright"]
    )

    def make(name, **changes):
        pairs = {
            "DATASETS.TRAIN": ("halves",),
            "DATASETS.TEST": ("halves",),
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2,
            "OUTPUT_DIR": str(folder / name),
            KEY + "CLUSTERING.WEIGHT": 0.0,
            **{KEY + key.replace("__", "."): value for key, value in changes.items()},
        }
        (folder / name).mkdir(exist_ok=True)
        words = [str(part) for pair in pairs.items() for part in pair]
        return load_config(str(repository / "configs/demo/dr.yaml"), [*overrides, *words])

    yield make
    DatasetCatalog.remove("halves")


def trained(cfg):
    Trainer(cfg).train()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = f"{cfg.OUTPUT_DIR}/model_final.pth"
    return cfg


@pytest.fixture(scope="module")
def routed(configured):
    return trained(configured("routed", BUDGET__WEIGHT=0.0, BUDGET__TARGET_SHARE=0.6))


def test_the_majority_of_training_images_is_written_and_trained(routed, configured, tmp_path):
    path = tmp_path / "majority.json"
    said = majority_of(routed, str(path), images=8, threshold=0.5)
    model = load_trained(routed)
    backbone = find_backbone(model)
    rows = []
    with torch.no_grad():
        for inputs in build_test_loader(routed, ["halves"]):
            model(inputs)
            rows.append(backbone.routing.activations > 0)
    opened = torch.cat(rows).float().mean(dim=0) > 0.5
    route = read_route(path, backbone.space)
    inside = route.reached.repeat_interleave(3)
    assert ((route.activations > 0) == (opened & inside)).all()
    assert f"{len(route.cells())} of {route.space.num_cells} cells" in said

    cfg = configured("majority", BUDGET__WEIGHT=0.0, GATE="none", ROUTE=str(path))
    trained(cfg)
    results = json.loads((tmp_path / f"{cfg.OUTPUT_DIR}/inference/results.json").read_text())
    figures = results["halves"]["routing"]
    wanted = route.real_cost(backbone.network, *backbone.routing.size) / 1e9
    assert figures["real_gflops"] == pytest.approx(wanted, rel=1e-3)
    assert figures["real_gflops"] == pytest.approx(figures["all_open_gflops"], rel=1e-3)
    (stored,) = (tmp_path / f"{cfg.OUTPUT_DIR}/inference").glob("activations_*.npz")
    with np.load(stored) as arrays:
        assert (arrays["activations"] == route.activations.numpy()).all()
    assert plan_time(tmp_path / cfg.OUTPUT_DIR)["ms"] > 0
    assert backbone_cost(tmp_path / cfg.OUTPUT_DIR) == {"gflops": figures["real_gflops"]}


def test_static_gates_are_steered_to_a_cost_and_all_images_share_a_route(configured):
    cfg = trained(configured("static", GATE="static", BUDGET__WEIGHT=0.0, BUDGET__TARGET_SHARE=0.6))
    model = load_trained(cfg)
    rows = []
    with torch.no_grad():
        for inputs in build_test_loader(cfg, ["halves"]):
            model(inputs)
            rows.append(attached_routing(model).backbone.routing.activations)
    gates = torch.cat(rows)
    assert (gates == gates[0]).all()


def test_exploration_is_part_of_every_step(configured, monkeypatch):
    steps = []
    monkeypatch.setattr(
        ExplorationHook, "before_step", lambda hook: steps.append(hook.trainer.iter)
    )
    Trainer(configured("explored", EXPLORATION__NOISE=1.0)).train()
    assert steps == list(range(10))


def test_random_routes_and_widths_of_a_configuration(routed, tmp_path):
    path = tmp_path / "random.json"
    backbone = find_backbone(Trainer.build_model(routed))
    whole = Route.open(backbone.space).real_cost(backbone.network, 64, 128) / 1e9
    said = random_of(routed, str(path), 0.9 * whole, (64, 128), tolerance=0.05)
    route = read_route(path, backbone.space)
    cost = route.real_cost(backbone.network, 64, 128) / 1e9
    assert cost == pytest.approx(0.9 * whole, rel=0.05)
    assert f"{cost:.6g} GFLOPs" in said
    said = chains_of(routed, str(path), 0.5 * whole, (64, 128))
    route = read_route(path, backbone.space)
    assert f"{len(route.cells())} of {route.space.num_cells} cells" in said
    words = width_of(routed, 0.5 * whole, (64, 128)).split()
    assert words[:3] == ["MODEL.ROUTING.GATE", "none", "MODEL.ROUTING.CHANNELS"]
    assert int(words[3]) % 2 == 0
    assert float(words[-2]) == pytest.approx(0.5 * whole, rel=0.05)


def narrow_detector(repository, *keys):
    words = ["MODEL.BACKBONE.NAME", "build_narrow_fpn_backbone"]
    words += ["MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']", *keys]
    return load_config(str(repository / "configs/studies/controls/shapes.yaml"), words)


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v3_small"])
def test_widths_of_other_networks(repository, network):
    cfg = narrow_detector(repository, "MODEL.NARROW_BACKBONE.NETWORK", network)
    key, width, *_, gflops, unit, _, _ = width_of(cfg, 0.057, (128, 128)).split()
    assert (key, unit) == ("MODEL.NARROW_BACKBONE.WIDTH", "GFLOPs,")
    assert float(gflops) == pytest.approx(0.057, rel=0.05)
    cfg.MODEL.NARROW_BACKBONE.WIDTH = float(width)
    backbone = build_backbone(cfg).eval()
    counted = FlopCountAnalysis(backbone, torch.zeros(1, 3, 128, 128))
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert float(gflops) == pytest.approx(counted.total() / 1e9, rel=0.03)
    with pytest.raises(ConfigError, match=f"{network} of the least width costs"):
        width_of(cfg, 1e-4, (96, 96))


def test_cost_of_a_run_without_routes(tmp_path):
    (tmp_path / "inference").mkdir()
    (tmp_path / "config.yaml").write_text("")
    figures = {"shapes": {"bbox": {"AP": 0.0}, "cost": {"gflops": 0.25}}}
    (tmp_path / "inference" / "results.json").write_text(json.dumps(figures))
    assert backbone_cost(tmp_path) == {"gflops": 0.25}


def test_what_a_route_cannot_be(configured, tmp_path):
    cfg = configured("wrong", GATE="none", ROUTE=str(tmp_path / "none.json"))
    with pytest.raises(DataError, match="holds no route"):
        Trainer.build_model(cfg)
    space = RoutingSpace.build(cfg.MODEL.ROUTING.LAYERS, cfg.MODEL.ROUTING.SCALES)
    Route.open(space).write(tmp_path / "open.json")
    cfg = configured(
        "steered",
        ROUTE=str(tmp_path / "open.json"),
        BUDGET__WEIGHT=0.0,
        BUDGET__TARGET_SHARE=0.5,
    )
    with pytest.raises(ConfigError, match="those of a fixed route"):
        Trainer(cfg)
