"""Pictures of which experts are chosen, of a collaboration and of other systems, by naive loops."""

import runpy

import numpy as np
import pytest
import torch
from classifier_runs import CONFIGS, options
from detectron2.data import DatasetCatalog
from PIL import Image

from divdr.engine import Trainer, load_config
from divdr.errors import ConfigError
from divdr.visualization import ExpertChoices, ExpertSelection, expert_choices, expert_selection


@pytest.fixture(autouse=True)
def _in_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)


def untrained(name, folder, names):
    """Configuration and model, whose weights are in its file."""
    cfg = load_config(f"{CONFIGS}digits_{name}.yaml", options(folder, names))
    model = Trainer.build_model(cfg).eval()
    if name == "coe":  # a delegator that selects all experts
        system = model.system
        with torch.no_grad():
            x = torch.cat([x for x, _ in records(model, names[1])])
            features = system.delegator.extractor(x)
            for layer in (system.delegator.task_predictor, system.delegator.expert_selector):
                layer.weight *= 20
                layer.bias.copy_(-layer.weight @ features.mean(0))
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    return cfg, model


def records(model, name):
    """(1, 1, H, W) pixels as the system sees them, and label, of each image."""
    for record in DatasetCatalog.get(name):
        pixels = torch.tensor(record["pixels"][None], dtype=torch.float32)
        yield model.normalise(pixels[None]), record["label"]


def test_what_a_delegator_selects(few_digits, tmp_path, monkeypatch, capsys):
    cfg, model = untrained("coe", tmp_path, few_digits)
    found = expert_selection(cfg)
    by_probability, by_class = np.zeros((10, 4), int), np.zeros((10, 4), int)
    with torch.no_grad():
        for x, label in records(model, few_digits[1]):
            features = model.system.delegator.extractor(x)
            rough = model.system.delegator.task_predictor(features)[0].softmax(0)
            expert = int(model.system.delegator.expert_selector(features)[0].argmax())
            by_probability[min(9, int(10 * rough[label])), expert] += 1
            by_class[int(rough.argmax()), expert] += 1
    assert found.by_probability.tolist() == by_probability.tolist()
    assert found.by_prediction.counts.tolist() == by_class.tolist()
    assert found.by_prediction.classes == [str(n) for n in range(10)]
    assert by_probability.sum() == 120
    assert (by_probability.sum(0) > 0).sum() > 1
    assert (by_probability.sum(1) > 0).sum() > 1

    words = ["--config-file", f"{CONFIGS}digits_coe.yaml", "--delegator", str(tmp_path / "a.png")]
    given = options(tmp_path, few_digits, "MODEL.WEIGHTS", tmp_path / "model.pth")
    monkeypatch.setattr("sys.argv", ["analyse", *words, *given])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        runpy.run_path("tools/analyse_classifier.py", run_name="__main__")
    assert ended.value.code == 0
    assert found.table() in capsys.readouterr().out
    assert Image.open(tmp_path / "a.png").size[0] == 1100


def selection(counts):
    names = [f"c{number}" for number in range(len(counts))]
    experts = [f"expert {number}" for number in range(len(counts[0]))]
    predicted = ExpertChoices("rough prediction", experts, names, np.array(counts))
    return ExpertSelection(np.array([[3, 1], [0, 0], [0, 2]]), predicted)


def drawn(axes, experts):
    """Names of the rows, and each's shares."""
    widths = [bar.get_width() for bar in axes.patches]
    names = [label.get_text() for label in axes.get_yticklabels()]
    return names, np.reshape(widths, (experts, -1)).T


def test_the_picture_shows_shares_and_puts_classes_that_are_alike_together():
    figure = selection([[9, 1], [0, 5], [8, 2], [0, 0], [1, 9]]).figure()
    left, right = figure.axes
    names, shares = drawn(left, 2)
    assert names == ["0.0 to 0.3 (4)", "0.7 to 1.0 (2)"]
    assert shares.tolist() == [[0.75, 0.25], [0, 1]]
    names, shares = drawn(right, 2)
    order = [name.split()[0] for name in names]
    assert set(order) == {"c0", "c1", "c2", "c4"}
    assert abs(order.index("c0") - order.index("c2")) == 1
    assert abs(order.index("c1") - order.index("c4")) == 1
    of = dict(zip(order, shares.round(9).tolist(), strict=True))
    assert of == {"c0": [0.9, 0.1], "c1": [0, 1], "c2": [0.8, 0.2], "c4": [0.1, 0.9]}
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["expert 0", "expert 1"]


def test_pictures_of_many_classes_and_of_one():
    many = selection([[k, 200 - k] for k in range(201)]).figure()
    assert many.axes[1].get_yticks().tolist() == []
    assert many.get_size_inches()[1] < 25
    assert drawn(selection([[0, 0], [1, 3]]).figure().axes[1], 2)[0] == ["c1 (4)"]


def test_choices_of_systems_that_decide_once(few_digits, tmp_path):
    cfg, model = untrained("dynk", tmp_path, few_digits)
    found = expert_choices(cfg)
    counted = np.zeros((10, 5), int)
    with torch.no_grad():
        for x, label in records(model, few_digits[1]):
            counted[label] += model.system(x).ran[0].numpy()
    assert found.counts.tolist() == counted.tolist()
    assert found.counts.sum() >= 120
    assert found.experts == [f"expert {number}" for number in range(5)]
    with pytest.raises(ConfigError, match="decisions are 0 to 0, and not 1"):
        expert_choices(cfg, 1)
    with pytest.raises(ConfigError, match="the model has no delegator"):
        expert_selection(cfg)
