"""The page of the demo, with a stand-in for gradio that calls its function."""

import argparse
import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import divdr
from divdr.checkpoint import read_weights, write_atomically
from divdr.engine import RoutingCheckpointer, load_config
from divdr.errors import DivdrError
from divdr.modeling import DialSetting, attached_routing
from divdr.modeling.cost_dial import CostDial

SMALL = {
    "MODEL.ROUTING.LAYERS": 3,
    "MODEL.ROUTING.SCALES": 3,
    "MODEL.ROUTING.CHANNELS": 4,
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2,
    "INPUT.MIN_SIZE_TEST": 32,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a model at random whose checkpoint has a dial that closes and opens gates."""
    folder = tmp_path_factory.mktemp("run")
    model = divdr.create_model("demo/divdr", overrides=SMALL)
    RoutingCheckpointer(model, str(folder), routing=attached_routing(model)).save("model_final")
    content = read_weights(folder / "model_final.pth")
    settings = [DialSetting(9.0, 0.1, 0.01), DialSetting(0.0, 0.9, 0.04)]
    content["routing"] = {**content["routing"], "dial": CostDial(settings).state_dict()}
    write_atomically(folder / "dialled.pth", content)
    cfg = load_config("demo/divdr", [word for pair in SMALL.items() for word in pair])
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture
def demo(repository, monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(repository / "tools"))
    spec = importlib.util.spec_from_file_location("demo", repository / "tools/gradio_demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def named(kind):
    return lambda *args, **kwargs: SimpleNamespace(kind=kind, args=args, **kwargs)


@pytest.fixture
def stand_in(monkeypatch):
    kinds = ("Image", "Plot", "Textbox", "Slider", "Interface")
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace(**{k: named(k) for k in kinds}))


def arguments(weights):
    return argparse.Namespace(config_file="", weights=str(weights), opts=[])


def test_the_page_predicts_and_its_slider_sets_the_cost(demo, stand_in, run):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    function, inputs, outputs = demo.page(arguments(run / "dialled.pth")).args
    assert [part.kind for part in inputs] == ["Image", "Slider"]
    assert [part.kind for part in outputs] == ["Image", "Plot", "Textbox"]
    picture, figure, dear = function(image, 1.0)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert figure.axes
    cheap = function(image, 0.0)[2]
    numbers = [float(words.split("runs ")[-1].split()[0]) for words in (cheap, dear)]
    assert numbers[0] < numbers[1], (cheap, dear)
    # What it says is what the predictor counts.
    predictor = divdr.Predictor.from_files(run / "dialled.pth")
    predictor.turn_dial(0.0)
    real = float(predictor(image)["routing"].real_cost)
    assert numbers[0] == pytest.approx(real / 1e9, rel=0.06)


def test_without_a_dial_there_is_no_slider(demo, stand_in, run):
    function, inputs, _ = demo.page(arguments(run / "model_final.pth")).args
    assert [part.kind for part in inputs] == ["Image"]
    assert len(function(np.zeros((40, 60, 3), np.uint8))) == 3


def test_without_gradio_a_sentence_says_so(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(DivdrError, match="pip install gradio"):
        demo.page(arguments("none.pth"))
