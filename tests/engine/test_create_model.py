"""Models by name of a packaged configuration, and predictors by the files of a run."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import divdr
from divdr import verbs
from divdr.data import register_segmentation_folder
from divdr.engine import RoutingCheckpointer, load_config
from divdr.engine.about import About
from divdr.errors import CheckpointError, ConfigError
from divdr.modeling import attached_routing

SMALL = {
    "MODEL.ROUTING.LAYERS": 3,
    "MODEL.ROUTING.SCALES": 3,
    "MODEL.ROUTING.CHANNELS": 4,
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2,
    "INPUT.MIN_SIZE_TEST": 32,
}


@pytest.fixture
def run(tmp_path):
    """The folder of a run, and its model."""
    model = divdr.create_model("demo/divdr", overrides=SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    pairs = [word for pair in SMALL.items() for word in pair]
    cfg = load_config("demo/divdr", pairs)
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN = ("was_there",)
    DatasetCatalog.register("was_there", list)
    MetadataCatalog.get("was_there").set(
        stuff_classes=["a", "b"], ignore_label=255, evaluator_type="sem_seg"
    )
    try:
        about = About.of(cfg, "was_there")
    finally:
        DatasetCatalog.remove("was_there")
        MetadataCatalog.remove("was_there")
    RoutingCheckpointer(model, str(tmp_path), about=[about]).save("model_final")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return tmp_path, model


def test_random_weights_and_overrides_of_both_kinds():
    torch.manual_seed(3)
    model = divdr.create_model("demo/divdr", overrides=SMALL)
    assert not model.training
    assert attached_routing(model).experts.num_experts == 3
    torch.manual_seed(3)
    pairs = [str(word) for pair in SMALL.items() for word in pair]
    same = divdr.create_model("configs/demo/divdr.yaml", overrides=pairs)
    torch.manual_seed(3)
    # Weights at random, whatever the configuration names.
    named = divdr.create_model("demo/divdr", overrides={**SMALL, "MODEL.WEIGHTS": "none.pth"})
    for name, value in model.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
        assert torch.equal(value, named.state_dict()[name]), name
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 32, 64), "height": 32, "width": 64}])
    assert output["sem_seg"].shape == (2, 32, 64)
    assert output["routing"].activations.shape == (1, 3 * (2 + 3 + 3))
    with pytest.raises(ConfigError, match=r"did you mean demo/divdr\?"):
        divdr.create_model("demo/dibdr")


def test_weights_of_a_file_and_of_a_folder(run):
    folder, model = run
    for weights in (folder / "model_final.pth", str(folder)):
        loaded = divdr.create_model(folder / "config.yaml", weights)
        assert not loaded.training
        for name, value in model.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name]), name
    with pytest.raises(CheckpointError):
        divdr.create_model("demo/divdr", folder / "model_final.pth")  # a larger network


def test_a_predictor_of_the_checkpoint_alone(run):
    folder, model = run
    predictor = divdr.Predictor.from_files(folder / "model_final.pth")
    image = np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8)
    output = predictor(image)
    with torch.no_grad():
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
        (expected,) = model([{"image": tensor, "height": 32, "width": 64}])
    torch.testing.assert_close(output["sem_seg"], expected["sem_seg"], atol=1e-4, rtol=1e-3)
    Image.fromarray(image).save(folder / "photo.png")
    again = predictor(folder / "photo.png")
    torch.testing.assert_close(again["sem_seg"], output["sem_seg"])
    assert predictor.metadata.stuff_classes == ["a", "b"]

    (folder / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"holds no config\.yaml beside the weights"):
        divdr.Predictor.from_files(folder)
    named = divdr.Predictor.from_files(folder, "demo/divdr", overrides=SMALL)
    torch.testing.assert_close(named(image)["sem_seg"], output["sem_seg"])


def test_what_would_be_trained_is_checked_and_nothing_written(
    draw_halves, overrides, tmp_path, monkeypatch, capsys
):
    draw_halves(tmp_path)
    monkeypatch.chdir(tmp_path)
    folders = [str(tmp_path / kind) for kind in ("images", "labels")]
    register_segmentation_folder("halves", *folders, ["road", "rest"])
    names = ["DATASETS.TRAIN", "('halves',)", "DATASETS.TEST", "('halves',)"]
    words = ["check", "--config-file", "demo/divdr", "--output", "new/run", *overrides, *names]
    classes = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES"]
    try:
        assert verbs.main([*words, *classes, "2"]) == 0
        said = capsys.readouterr().out.splitlines()[-1]
        assert said.startswith("nothing is wrong: 6 images of halves, 10 iterations of 2, ")
        for more, error in (
            ([*classes, "3"], "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 3"),
            ([*classes, "2", "SOLVER.MAX_ITERS", "3"], "unknown configuration key SOLVER.MAX_ITE"),
            ([*classes, "2", "--weights", "none.pth"], "none.pth does not exist"),
            ([*classes, "2", "MODEL.ROUTING.CLUSTERING.NUM_EXPERTS", "9"], "NUM_EXPERTS is 9"),
        ):
            with pytest.raises(SystemExit) as ended:
                verbs.main([*words, *more])
            assert ended.value.code == 2
            assert error in capsys.readouterr().err.splitlines()[-1]
        Image.new("L", (96, 64), 7).save(tmp_path / "labels/0.png")
        Image.new("L", (96, 60)).save(tmp_path / "labels/1.png")
        with pytest.raises(SystemExit):
            verbs.main([*words, *classes, "2"])
        told = capsys.readouterr().err
        assert all(f"labels/{number}.png" in told for number in (0, 1))  # both at once
    finally:
        DatasetCatalog.remove("halves")
        MetadataCatalog.remove("halves")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels"]
