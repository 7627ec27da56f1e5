"""A trained model on image files, with what its checkpoint says of it alone."""

import os
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image
from untrained_runs import SCENES, untrained

from divdr.data import ClassificationMapper, register_class_folders, register_segmentation_folder
from divdr.engine import Predictor
from divdr.errors import CheckpointError, ConfigError, DataError
from divdr.visualization.predicting import expand, output_names, predict_files
from divdr.visualization.predictions import (
    best_classes,
    drawing_size,
    prediction_picture,
    reduced,
)

CLASSES = {
    "MODEL.DEVICE": "cpu",
    "MODEL.CLASSIFIER.NUM_CLASSES": 2,
    "INPUT.CLASSIFICATION.SIZE": 8,
}
GREY = {"INPUT.FORMAT": "L", "MODEL.PIXEL_MEAN": [100.0], "MODEL.PIXEL_STD": [50.0]}


@pytest.fixture
def scenes(repository, tmp_path):
    """The config of a segmentation of "sky" and "sea"."""

    def make(**options):
        def register(name):
            for kind in ("images", "labels"):
                (tmp_path / kind).mkdir(exist_ok=True)
                Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / kind / "0.png")
            folders = (str(tmp_path / kind) for kind in ("images", "labels"))
            register_segmentation_folder(
                name, *folders, ["sky", "sea"], colors=[(255, 0, 0), (0, 0, 255)]
            )

        config = repository / "configs/demo/divdr.yaml"
        return untrained(tmp_path, config, {**SCENES, **options}, register)

    return make


@pytest.fixture
def classes(repository, tmp_path):
    """The config of a classifier of "ant" and "bee"."""

    def make(**options):
        def register(name):
            for kind in ("ant", "bee"):
                (tmp_path / "classes" / kind).mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8)).save(tmp_path / "classes" / kind / "0.png")
            register_class_folders(name, str(tmp_path / "classes"))

        config = repository / "configs/classification/digits_single.yaml"
        return untrained(tmp_path, config, {**CLASSES, **options}, register)

    return make


def bounds(record):
    return record.real_cost, record.full_real_cost


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_predicts_at_several_scales_and_in_windows_as_evaluation_does(scenes, tmp_path):
    image = noise(40, 60, 3)
    plain = Predictor(scenes(**{"INPUT.MIN_SIZE_TEST": 50}))
    single = {"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": (50,), "TEST.AUG.FLIP": False}
    one = Predictor(scenes(**single, **{"INPUT.MIN_SIZE_TEST": 64}))
    assert one(image)["sem_seg"].equal(plain(image)["sem_seg"])

    several = {"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": (32, 40)}
    several["TEST.SLIDING_WINDOW.SIZE"] = (40, 40)
    predictor = Predictor(scenes(**several))
    output = predictor(image)
    assert len(output["parts"]) == 2 * (2 + 2)  # 32 × 48 and 40 × 60 pixels
    assert output["sem_seg"].sum(0).allclose(torch.ones(40, 60))
    Image.fromarray(image).save(tmp_path / "seen.png")
    lines = []
    files = [tmp_path / "seen.png"]
    assert not predict_files(predictor, files, tmp_path / "pictures", say=lines.append)
    assert "in 8 forwards" in "".join(lines)
    record = [ran["routing"] for _, ran in output["parts"]]
    real, whole = (sum(map(float, costs)) / 1e9 for costs in zip(*map(bounds, record), strict=True))
    assert real < whole
    found = re.search(r"runs ([\d.]+) of ([\d.]+) GFLOPs in 8", "".join(lines))
    assert [float(n) for n in found.groups()] == pytest.approx([real, whole], rel=0.01)


def test_names_and_colours_are_the_checkpoints(scenes):
    predictor = Predictor(scenes())
    assert "was_there" not in DatasetCatalog.list()
    assert predictor.metadata.stuff_classes == ["sky", "sea"]
    image = noise(40, 60, 3)
    output = predictor(image)
    assert output["sem_seg"].shape == (2, 40, 60)
    picture = prediction_picture(image, output, predictor.metadata)
    rows, columns = 640 * 40 // 60, 640  # enlarged, so that lines and words are thin in it
    assert picture.shape[1] == columns
    assert picture.shape[0] > rows + 10  # the legend
    found = [(255, 0, 0), (0, 0, 255)]
    for number, colour in enumerate(found):
        there = bool((output["sem_seg"].argmax(0) == number).any())
        assert (picture[rows + 1 :] == colour).all(2).any() == there


def test_a_model_of_one_task_has_none_to_choose(scenes):
    with pytest.raises(ConfigError, match="the model has one task, and no task 0 to choose"):
        Predictor(scenes(), 0)


def test_a_grey_model_gets_one_channel(scenes):
    predictor = Predictor(scenes(**GREY))
    seen = []
    predictor.model.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]["image"]))
    grey = noise(40, 60)
    for image in (grey, grey[:, :, None], np.stack([grey] * 3, 2)):
        output = predictor(image)
        assert output["sem_seg"].shape == (2, 40, 60)
    assert seen[0].shape == (1, 32, 48)
    assert seen[1].equal(seen[0])
    assert seen[2].equal(seen[0])


def test_size_0_means_no_resizing_and_thin_images_keep_a_row(scenes):
    predictor = Predictor(scenes(**{"INPUT.MIN_SIZE_TEST": 0}))
    seen = []
    predictor.model.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]["image"]))
    image = noise(40, 60, 3)
    predictor(image)
    assert predictor.cfg.INPUT.FORMAT == "RGB"
    assert seen[0].permute(1, 2, 0).equal(torch.as_tensor(image).float())
    thin = Predictor(scenes(**{"INPUT.MAX_SIZE_TEST": 100}))
    assert thin(noise(1, 900, 3))["sem_seg"].shape == (2, 1, 900)


def test_the_networks_input_does_not_depend_on_the_size_of_what_it_finds(scenes):
    predictor = Predictor(scenes())
    image = noise(64, 96, 3)
    whole, half = predictor(image), predictor(image, (32, 48))
    assert half["sem_seg"].shape == (2, 32, 48)
    assert whole["routing"].activations.equal(half["routing"].activations)


def test_images_that_come_in_otherwise_are_refused(scenes):
    cfg = scenes()
    cfg.INPUT.FORMAT = "BGR" if cfg.INPUT.FORMAT == "RGB" else "RGB"
    with pytest.raises(CheckpointError, match=r"was trained with INPUT\.FORMAT"):
        Predictor(cfg)


@pytest.mark.parametrize("grey", [False, True])
def test_a_classifier_tells_what_evaluation_would(classes, tmp_path, grey):
    rgb = {"INPUT.FORMAT": "RGB", "MODEL.PIXEL_MEAN": [9.0] * 3, "MODEL.PIXEL_STD": [50.0] * 3}
    cfg = classes(**(GREY if grey else rgb))
    predictor = Predictor(cfg)
    Image.fromarray(noise(12, 16, 3)).save(tmp_path / "animal.png")
    item = ClassificationMapper(cfg, is_train=False)({"file_name": str(tmp_path / "animal.png")})
    with torch.no_grad():
        wanted = predictor.model([item])[0]["scores"]
    reported = []
    failures = predict_files(
        predictor, [tmp_path / "animal.png"], tmp_path / "seen", say=reported.append
    )
    assert failures == []
    best = int(wanted.argmax())
    start = f"{tmp_path}/animal.png: class {('ant', 'bee')[best]} ({float(wanted[best]):.2f})"
    assert reported[0].startswith(start)
    picture = np.asarray(Image.open(tmp_path / "seen" / "animal_prediction.png"))
    assert picture.ndim == 3
    assert picture[-60:].std() > 0  # words below the image
    assert not (tmp_path / "seen" / "animal_route.png").exists()


def test_best_classes_are_named_in_order():
    output = {"scores": torch.tensor([0.1, 0.6, 0.3])}
    best = best_classes(output, ["a", "b", "c"], 2)
    assert [name for name, _ in best] == ["b", "c"]
    assert [score for _, score in best] == pytest.approx([0.6, 0.3])
    assert best_classes(output, ["a"], 1)[0][0] == "1"


def test_a_bad_image_does_not_end_the_others(scenes, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    reported = []
    files = expand([tmp_path / "in", tmp_path / "gone.png", tmp_path / "in" / "good.png"])
    assert [file.name for file in files] == ["bad.png", "good.png", "gone.png"]
    failures = predict_files(Predictor(scenes()), files, tmp_path / "seen", say=reported.append)
    assert len(failures) == 2
    assert "bad.png cannot be read as an image" in failures[0]
    assert failures[1].endswith("gone.png does not exist")
    made = sorted(file.name for file in (tmp_path / "seen").iterdir())
    assert made == ["good_prediction.png", "good_route.png"]
    assert "GFLOPs" in " ".join(reported)


def test_an_empty_folder_and_one_that_is_a_file_are_reported(scenes, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        expand([tmp_path / "empty"])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file cannot be written to"):
        predict_files(Predictor(scenes()), [], tmp_path / "file")


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.jpg", "b.jpg"], ["a", "b"]),
        (["a.jpg", "a.png", "b.png"], ["a_jpg", "a_png", "b"]),
        (["x/a.jpg", "y/a.jpg", "y/b.jpg"], ["x_a_jpg", "y_a_jpg", "b"]),
        (["/x/z/a.jpg", "/y/z/a.jpg"], ["x_z_a_jpg", "y_z_a_jpg"]),
        (["../a.jpg", "a.jpg"], ["a_jpg_1", "a_jpg_2"]),
    ],
)
def test_pictures_of_different_files_have_different_names(files, names):
    assert output_names([Path(file) for file in files]) == names


def test_large_images_are_drawn_smaller():
    assert drawing_size(427, 640) == (427, 640)
    assert drawing_size(1024, 2048) == (1024, 2048)
    rows, columns = drawing_size(3000, 4000)
    assert rows * columns <= 1024 * 2048
    assert rows / columns == pytest.approx(0.75, abs=0.01)
    assert drawing_size(1, 10_000_000)[0] == 1
    small = reduced(noise(30, 40, 3), (15, 20))
    assert small.shape == (15, 20, 3)


def test_the_tool_leaves_with_2_and_the_sentence_when_an_image_is_bad(
    scenes, tmp_path, repository, monkeypatch, capsys
):
    scenes()
    (tmp_path / "bad.png").write_bytes(b"")
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "good.png")
    monkeypatch.syspath_prepend(str(repository / "tools"))
    arguments = ["predict.py", "--config-file", str(tmp_path / "config.yaml")]
    arguments += ["--weights", str(tmp_path), "--output", str(tmp_path / "seen")]
    files = [str(tmp_path / "bad.png"), str(tmp_path / "good.png")]
    monkeypatch.setattr("sys.argv", [*arguments, *files])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(repository / "tools/predict.py"), run_name="__main__")
    assert left.value.code == 2
    reported = capsys.readouterr()
    assert "error: 1 of 2 images are left out: file " in reported.err
    assert "bad.png" in reported.err.strip().splitlines()[-1]
    assert f"pictures are in {tmp_path / 'seen'}" in reported.out
    assert os.listdir(tmp_path / "seen")
