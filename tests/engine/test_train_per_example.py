"""Per-example routing through tools/train_net.py's own program, from the configs."""

import json
import runpy

import numpy as np
import pytest
import torch
from classifier_runs import CONFIGS, options, refused, results, run
from detectron2.data import DatasetCatalog
from drawn_classification import write_fashion_mnist
from PIL import Image

from divdr.data import register_alphabets, register_published
from divdr.data.classification.alphabets import OMNIGLOT, data_set_name
from divdr.engine import Predictor, load_config
from divdr.engine.execution_modes import load_trained
from divdr.errors import ConfigError
from divdr.visualization import expert_choices, expert_choices_figure
from drawn.glyphs import make_glyphs


@pytest.fixture(autouse=True)
def _in_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)


def test_digits_learn_and_show_which_experts_their_classes_get(
    tmp_path, few_digits, monkeypatch, capsys
):
    config = "digits_per_example.yaml"
    run(config, options(tmp_path, few_digits, "SOLVER.MAX_ITER", 60))
    found = results(tmp_path, few_digits[1])
    assert found["classification"]["top1"] > 40  # 10 is chance
    assert found["cost"]["mean_branches"] == 2
    # By hand: 64 · 64 numbers of an input and of two layers, the gate, two experts and the readout.
    assert found["cost"]["mflops"] == pytest.approx((3 + 2) * 64 * 64e-6 + 64 * (5 + 10) * 1e-6)
    # The weight of the balance losses fades; the last step's is 1 / 60 of the first.
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    last = [line["loss_load"] for line in lines if "loss_load" in line][-1]
    assert 0 < last < 0.01
    weights = ("MODEL.WEIGHTS", tmp_path / "model_final.pth")
    cfg = load_config(CONFIGS + config, options(tmp_path, few_digits, *weights))
    choices = expert_choices(cfg)
    counted = np.zeros((10, 5), int)
    model = load_trained(cfg)
    for record in DatasetCatalog.get(few_digits[1]):
        pixels = torch.tensor(record["pixels"][None], dtype=torch.float32)
        with torch.no_grad():
            (output,) = model([{"image": pixels}])
        counted[record["label"]] += output["ran"].numpy()
    assert choices.counts.tolist() == counted.tolist()
    assert choices.counts.sum() == 2 * 120
    np.testing.assert_allclose(choices.per_class().sum(1), 1)
    shares = counted[:, 3] / max(1, counted[:, 3].sum())
    np.testing.assert_allclose(choices.per_expert()[3], shares)
    _tool_prints_and_draws(tmp_path, config, few_digits, weights, choices, monkeypatch, capsys)
    bars = expert_choices_figure(choices).axes[0].patches
    widths = np.reshape([bar.get_width() for bar in bars], (5, 10))
    np.testing.assert_allclose(widths.T, choices.per_class())
    assert choices.table().splitlines()[0].split() == [
        *("layer", "1"),
        *(word for n in range(1, 6) for word in ("linear", str(n))),
    ]
    with pytest.raises(ConfigError, match="decisions are 0 to 0, and not 1"):
        expert_choices(cfg, 1)


def _tool_prints_and_draws(tmp_path, config, names, weights, choices, monkeypatch, capsys):
    picture = tmp_path / "choices.png"
    words = ["--config-file", CONFIGS + config, "--choices", str(picture)]
    monkeypatch.setattr("sys.argv", ["analyse", *words, *options(tmp_path, names, *weights)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        runpy.run_path("tools/analyse_classifier.py", run_name="__main__")
    assert ended.value.code == 0
    assert choices.table() in capsys.readouterr().out
    assert Image.open(picture).size[0] == 1100


TASKS = ("DATASETS.TRAIN", "('glyphs_latin_train', 'glyphs_ogham_train')")
TASKS += ("DATASETS.TEST", "('glyphs_ogham_test', 'glyphs_latin_test')")


@pytest.fixture(scope="module")
def _drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    make_glyphs(root, scripts=("Latin",), letters=3, workers=1)
    (root / "glyphs").rename(root / "latin")
    make_glyphs(root, scripts=("Ogham",), letters=2, workers=1)
    (root / "latin/Latin").rename(root / "glyphs/Latin")
    return root


@pytest.fixture
def alphabets(_drawn, names_under):
    """Two alphabets, of three letters and of two, under their names."""
    with names_under(_drawn):
        register_alphabets(_drawn)
        yield _drawn


def glyph_options(folder, *more):
    few = ("SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "8", "OUTPUT_DIR", str(folder))
    return [*few, *TASKS, "MODEL.CLASSIFIER.PER_EXAMPLE.TASKS", "[3, 2]", *more]


def _the_tool_predicts_a_task(tmp_path, alphabets, monkeypatch, capsys):
    drawing = str(next((alphabets / "glyphs/Ogham").rglob("*.png")))
    given = ["--config-file", CONFIGS + "glyphs_per_example.yaml", "--weights", str(tmp_path)]
    given += ["--output", str(tmp_path / "seen"), drawing]
    opts = ["--opts", *glyph_options(tmp_path)]
    monkeypatch.setattr("sys.argv", ["predict.py", *given, "--task", "1", *opts])
    with pytest.raises(SystemExit) as left:
        runpy.run_path("tools/predict.py", run_name="__main__")
    assert left.value.code == 0
    cfg = load_config(CONFIGS + "glyphs_per_example.yaml", glyph_options(tmp_path))
    cfg.MODEL.WEIGHTS = str(tmp_path)
    predictor = Predictor(cfg, 1)
    scores = predictor(drawing)["scores"]
    assert scores.shape == (3,)
    assert scores[2] == 0  # of Latin alone
    best = predictor.metadata.classes[int(scores.argmax())]
    (said,) = (line for line in capsys.readouterr().out.splitlines() if ".png: class " in line)
    assert f"class {best} ({float(scores.max()):.2f}), then" in said
    assert said.count("(0.") == 2  # of two classes
    with pytest.raises(ConfigError, match=r"0 \(glyphs/Latin\), 1 \(glyphs/Ogham\): say which"):
        Predictor(cfg)


def test_two_alphabets_are_two_tasks_of_one_model(tmp_path, alphabets, monkeypatch, capsys):
    run("glyphs_per_example.yaml", glyph_options(tmp_path))
    for name, images in (("glyphs_latin_test", 18), ("glyphs_ogham_test", 12)):
        found = results(tmp_path, name)
        assert found["classification"]["images"] == images
        assert found["cost"]["mean_branches"] == 7 + 5 + 4 + 2
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert [len(saved[f"system.readouts.{task}.bias"]) for task in (0, 1)] == [3, 2]
    assert saved["system.embedding.weight"].shape == (2, 32)
    _the_tool_predicts_a_task(tmp_path, alphabets, monkeypatch, capsys)
    for more, told in (
        ("[3]", "task 'glyphs/Ogham' of DATASETS.TRAIN has no readout"),
        ("[3, 4]", "TASKS[1] is 4, but data set 'glyphs_ogham_train' has 2 classes"),
    ):
        wrong = ("MODEL.CLASSIFIER.PER_EXAMPLE.TASKS", more)
        with pytest.raises(SystemExit):
            run("glyphs_per_example.yaml", glyph_options(tmp_path / "wrong", *wrong))
        assert told in capsys.readouterr().err
    other = (
        "DATASETS.TRAIN",
        "('glyphs_latin_train',)",
        "MODEL.CLASSIFIER.PER_EXAMPLE.TASKS",
        "[3]",
    )
    with pytest.raises(SystemExit):
        run("glyphs_per_example.yaml", glyph_options(tmp_path / "wrong", *other))
    assert "is of task 'glyphs/Ogham', of which none" in capsys.readouterr().err


def test_one_step_on_omniglot_at_the_paper_s_scale(tmp_path, names_under):
    cfg = load_config(CONFIGS + "omniglot_per_example.yaml")
    blank = tmp_path / "blank.png"
    Image.new("1", (105, 105), 1).save(blank)
    for alphabet, count in OMNIGLOT.items():
        if data_set_name("omniglot", alphabet, "train") not in cfg.DATASETS.TRAIN:
            continue
        for number in range(1, count + 1):
            folder = tmp_path / f"omniglot/images_background/{alphabet}/character{number:02d}"
            folder.mkdir(parents=True)
            for drawing in range(5):
                (folder / f"{number:04d}_{drawing:02d}.png").symlink_to(blank)
    keys = ("SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "0")
    keys += ("DATASETS.TEST", "('omniglot_angelic_test',)", "OUTPUT_DIR", str(tmp_path / "out"))
    with names_under(tmp_path):
        register_alphabets(tmp_path)
        run("omniglot_per_example.yaml", list(keys))
    found = results(tmp_path / "out", "omniglot_angelic_test")
    assert found["classification"]["images"] == 40
    assert found["cost"]["mean_branches"] == 7 + 6 + 6 + 5 + 4 + 3 + 3 + 2
    assert round(found["cost"]["parameters"] / 1e6, 1) == 3.4


def test_one_step_of_cells_on_fashion_mnist(tmp_path, names_under):
    write_fashion_mnist(tmp_path / "fashion_mnist", np.random.default_rng(0))
    keys = ("SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "0")
    with names_under(tmp_path):
        register_published(tmp_path)
        out = ("OUTPUT_DIR", str(tmp_path / "out"))
        run("fashion_mnist_per_example_cells.yaml", [*keys, *out])
    found = results(tmp_path / "out", "fashion_mnist_test")
    assert found["classification"]["images"] == 12


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("K_FIRST", 6, "PER_EXAMPLE.K_FIRST is 6, but there are 5 EXPERTS"),
        ("EXPERTS", "['linear', 'conv3x3']", "an expert 'conv3x3'"),
        ("MODEL", "deep", "must be one of layers, linear, cells, not 'deep'"),
        ("ROUTER", "task", 'router "task" needs several tasks'),
    ],
)
def test_settings_that_cannot_be(key, value, told, capsys, tmp_path, few_digits):
    wrong = (f"MODEL.CLASSIFIER.PER_EXAMPLE.{key}", value)
    assert told in refused(capsys, tmp_path, few_digits, *wrong, config="digits_per_example.yaml")
