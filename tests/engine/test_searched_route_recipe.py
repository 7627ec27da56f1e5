"""The recipe of a searched route (configs/divdr_plus_*) at full width, with a drawn route."""

import numpy as np
import pytest
import torch

import divdr
from divdr.engine import load_config
from divdr.engine.solver import build_optimizer
from divdr.engine.static_controls import random_of
from divdr.errors import DataError
from divdr.modeling import find_backbone


@pytest.fixture(scope="module")
def route(repository, tmp_path_factory):
    """A file of a route in the search's space, and what it costs, GFLOPs."""
    file = tmp_path_factory.mktemp("route") / "route.json"
    words = ["MODEL.DEVICE", "cpu", "MODEL.ROUTING.BUDGET.TARGET_SHARE", "0.0"]
    search = "divdr_plus_search_cityscapes"
    whole = divdr.create_model(search, overrides=[*words, "MODEL.ROUTING.GATE", "none"])
    half = 0.5 * _run(whole, 64, 128)[1].real_cost.item() / 1e9
    cfg = load_config(str(repository / "configs" / f"{search}.yaml"))
    random_of(cfg, str(file), half, (64, 128), tolerance=0.05)
    return file, half


def _run(model, height, width, seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8)
    item = {"image": torch.from_numpy(image), "height": height, "width": width}
    with torch.no_grad():
        output = model([item])[0]
    return output["sem_seg"], output["routing"]


def test_all_images_take_the_route_and_gates_weigh_it_by_image(route):
    file, gflops = route
    words = {"MODEL.ROUTING.ROUTE": str(file), "MODEL.DEVICE": "cpu"}
    model = divdr.create_model("divdr_plus_cityscapes", overrides=words)
    (scores, a), (_, b) = (_run(model, 64, 128, seed) for seed in (0, 1))
    assert scores.shape == (19, 64, 128)
    assert (a.activations > 0).equal(b.activations > 0)
    assert not torch.allclose(a.activations, b.activations, atol=1e-6)
    assert a.real_cost.item() == b.real_cost.item()
    # What the route costs, and gates on top.
    assert 0.95 < a.real_cost.item() / 1e9 / gflops < 1.1


def test_gates_learn_three_times_as_fast(route):
    cfg = load_config("divdr_plus_cityscapes", ["MODEL.ROUTING.ROUTE", str(route[0])])
    cfg.MODEL.DEVICE = "cpu"
    model = divdr.create_model(
        "divdr_plus_cityscapes",
        overrides={"MODEL.ROUTING.ROUTE": str(route[0]), "MODEL.DEVICE": "cpu"},
    )
    rates = {
        id(parameter): group["lr"]
        for group in build_optimizer(cfg, model).param_groups
        for parameter in group["params"]
    }
    network = find_backbone(model).network
    gates = {id(p) for n, p in network.named_parameters() if ".gate." in n}
    assert gates
    for parameter in network.parameters():
        wanted = 0.15 if id(parameter) in gates else 0.05
        assert rates[id(parameter)] == pytest.approx(wanted)


def test_without_the_search_the_recipe_says_what_is_missing():
    with pytest.raises(DataError, match=r"route\.json"):
        divdr.create_model("divdr_plus_cityscapes", overrides={"MODEL.DEVICE": "cpu"})
