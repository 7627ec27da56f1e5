"""What a user does wrong is reported in one sentence, and the exit code is 2."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.layers import get_norm
from detectron2.utils import comm
from PIL import Image

from divdr.data import register_segmentation_folder
from divdr.engine import Trainer, launch, load_config, trainer
from divdr.errors import ConfigError


@pytest.fixture
def folder(tmp_path, request):
    """A registered data set of four images with labels 0 and 1."""
    name = request.node.name
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for index in range(4):
        labels = np.zeros((64, 64), np.uint8)
        labels[:, index * 8 : 40] = 1
        Image.fromarray(labels).save(tmp_path / "labels" / f"{index}.png")
        Image.fromarray(np.stack([labels * 200] * 3, 2)).save(tmp_path / "images" / f"{index}.png")
    register_segmentation_folder(
        name, str(tmp_path / "images"), str(tmp_path / "labels"), ["a", "b"]
    )
    yield tmp_path, name
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name)


def run(capsys, folder, overrides, *more, eval_only=False) -> str:
    root, name = folder
    arguments = argparse.Namespace(
        config_file="configs/demo/divdr.yaml",
        eval_only=eval_only,
        resume=False,
        opts=[
            *overrides,
            *("DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)"),
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2", "OUTPUT_DIR", str(root / "out")),
            *map(str, more),
        ],
    )
    with pytest.raises(SystemExit) as exit_info:
        launch.main(arguments)
    assert exit_info.value.code == 2
    errors = capsys.readouterr().err.strip().splitlines()[-1]
    assert errors.startswith("error: ")
    return errors


@pytest.fixture(autouse=True)
def _in_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)


def test_missing_data_folder(capsys, folder, overrides):
    missing = "cityscapes_fine_sem_seg_train"
    MetadataCatalog.get(missing)
    reported = run(capsys, folder, overrides, "DATASETS.TRAIN", f"('{missing}',)")
    assert "expects its images in" in reported
    assert "leftImg8bit/train" in reported


def test_label_out_of_range(capsys, folder, overrides):
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(folder[0] / "labels" / "2.png")
    reported = run(capsys, folder, overrides)
    assert reported.endswith("labels/2.png holds 9; classes are 0 to 1, and 255 is ignored")


def test_image_without_label(capsys, folder, overrides):
    (folder[0] / "labels" / "1.png").unlink()
    reported = run(capsys, folder, overrides)
    assert "1.png" in reported


def test_unknown_operation(capsys, folder, overrides):
    reported = run(capsys, folder, overrides, "MODEL.ROUTING.OPS", "['sep_conv_9x9']")
    assert "unknown operation 'sep_conv_9x9'; nearest are sep_conv_3x3" in reported


def test_unknown_key(capsys, folder, overrides):
    assert "unknown configuration key" in run(capsys, folder, overrides, "MODEL.ROUTNG.LAYERS", 3)


def test_more_experts_than_images(capsys, folder, overrides):
    reported = run(capsys, folder, overrides, "MODEL.ROUTING.CLUSTERING.NUM_EXPERTS", 5)
    assert "NUM_EXPERTS is 5, but the training set holds 4 images" in reported


def test_evaluation_without_weights(capsys, folder, overrides):
    assert "set MODEL.WEIGHTS" in run(capsys, folder, overrides, eval_only=True)


def test_evaluation_of_nothing(capsys, folder, overrides):
    reported = run(capsys, folder, overrides, "DATASETS.TEST", "()", eval_only=True)
    assert reported == "error: --eval-only evaluates DATASETS.TEST, which names no data set"


def test_output_folder_that_is_a_file(capsys, folder, overrides):
    (folder[0] / "taken").touch()
    reported = run(capsys, folder, overrides, "OUTPUT_DIR", folder[0] / "taken")
    assert reported.endswith("taken is a file, not a folder")


def test_a_training_says_once_that_nothing_will_be_evaluated(folder, overrides, training_log):
    root, name = folder
    few = [*overrides, "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()", "OUTPUT_DIR", str(root / "o")]
    few += ["DATASETS.TRAIN", f"('{name}',)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2"]
    Trainer(load_config("configs/demo/divdr.yaml", few)).train()
    assert training_log.text.count("DATASETS.TEST is empty: nothing will be evaluated") == 1


@pytest.mark.parametrize(
    ("words", "gpus", "message"),
    [
        (["--num-gpus", "8", "MODEL.DEVICE", "cuda"], 0, "--num-gpus is 8, but there is no GPU"),
        (["--num-gpus", "8", "MODEL.DEVICE", "cuda"], 2, "--num-gpus is 8, but 2 GPUs are here"),
        (["--num-gpus", "-1"], 0, "--num-gpus -1, --num-machines 1 and --machine-rank 0 do not"),
        (["--machine-rank", "1"], 0, "--machine-rank 1 do not go together"),
        (["--config-file", "configs/lazy/divdr_coco_fcos.py"], 0, "fcos.py is a LazyConfig"),
        (["SOLVER.IMS_PER_BATCH", "0"], 0, "SOLVER.IMS_PER_BATCH must be at least 1, not 0"),
    ],
)
def test_before_processes_start(capsys, monkeypatch, words, gpus, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(launch, "launch", None)  # is not reached
    with pytest.raises(SystemExit) as exit_info:
        launch.run(default_argument_parser().parse_args(words))
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_synchronised_normalisation_of_detectron2_on_cpus(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), get_norm("SyncBN", 2))
    model(torch.ones(2, 1, 3, 3))  # alone it works
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"^1 is normalised by .*SyncBN, which works on GPUs"):
        trainer._distributed(model)


@pytest.mark.parametrize(("looks", "saves"), [(0, 1), (20, 4)])
def test_loss_that_is_not_finite(capsys, folder, overrides, looks, saves):
    root, _ = folder
    reported = run(
        capsys,
        folder,
        overrides,
        "SOLVER.BASE_LR",
        "1e12",
        "SOLVER.LOSS_CHECK_PERIOD",
        looks,
        "SOLVER.CHECKPOINT_PERIOD",
        saves,
        "SOLVER.CLIP_GRADIENTS.ENABLED",
        "False",
    )
    assert "not finite" in reported
    log = (root / "out" / "log.txt").read_text()
    assert f"Stopped: {reported.removeprefix('error: ')}" in log
    assert "Traceback" not in log
    saved = sorted(Path(root / "out").glob("model_*.pth"))
    assert not (root / "out" / "model_final.pth").exists()
    for path in saved:
        weights = torch.load(path, weights_only=True)["model"]
        assert all(torch.isfinite(w).all() for w in weights.values())
