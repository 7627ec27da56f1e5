"""The recipe of a fixed route and its search (configs/divdr_plus_*) at full width."""

import numpy as np
import pytest
import torch

import divdr
from divdr.engine import load_config
from divdr.engine.static_controls import random_of
from divdr.modeling import find_backbone
from divdr.routing import cost_table

WORDS = ["MODEL.DEVICE", "cpu"]


def run(model, height, width, seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8)
    item = {"image": torch.from_numpy(image), "height": height, "width": width}
    with torch.no_grad():
        output = model([item])[0]
    return output["sem_seg"], output["routing"]


def whole_cost(size, gate):
    """Real cost of the stem, and of the search's whole space, 10⁹ multiply-adds."""
    words = [*WORDS, "MODEL.ROUTING.BUDGET.TARGET_SHARE", "0.0", "MODEL.ROUTING.GATE", gate]
    network = find_backbone(divdr.create_model("divdr_plus_search_cityscapes", overrides=words))
    table = cost_table(network.network, *size).tensors("cpu")
    return float(table.stem) / 1e9, float(table.full_real_cost) / 1e9


def test_all_images_take_one_route_of_half_of_the_cost():
    model = divdr.create_model("divdr_plus_cityscapes", overrides=WORDS)
    (scores, a), (_, b) = (run(model, 64, 128, seed) for seed in (0, 1))
    assert scores.shape == (19, 64, 128)
    assert a.activations.equal(b.activations)
    assert set(a.activations.unique().tolist()) == {0.0, 1.0}
    stem, whole = whole_cost((64, 128), "small")
    half = stem + 0.5 * (whole - stem)
    assert a.real_cost.item() / 1e9 == pytest.approx(half, rel=0.02)


def test_the_same_with_a_route_of_the_search_and_with_gates(repository, tmp_path):
    file = tmp_path / "route.json"
    _, whole = whole_cost((64, 128), "none")
    cfg = load_config(str(repository / "configs" / "divdr_plus_search_cityscapes.yaml"))
    random_of(cfg, str(file), 0.5 * whole, (64, 128), tolerance=0.05)
    words = [*WORDS, "MODEL.ROUTING.ROUTE", str(file), "MODEL.ROUTING.GATE", "small"]
    model = divdr.create_model("divdr_plus_cityscapes", overrides=words)
    (_, a), (_, b) = (run(model, 64, 128, seed) for seed in (0, 1))
    assert (a.activations > 0).equal(b.activations > 0)
    assert not torch.allclose(a.activations, b.activations, atol=1e-6)
    # What the route costs, and gates on top.
    assert 0.95 < a.real_cost.item() / 1e9 / (0.5 * whole) < 1.1
